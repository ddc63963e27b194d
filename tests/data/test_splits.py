from __future__ import annotations

import random
from collections import Counter

import pytest

from headstart.data import split_by_class
from headstart.errors import MisconfigurationError


def samples_of(sizes: dict[str, int]) -> tuple[list[str], list[str]]:
    labels = [name for name, size in sizes.items() for _ in range(size)]
    return labels, [f"{name}/{number}.jpg" for number, name in enumerate(labels)]


def test_parts_cover_every_sample_once():
    labels, keys = samples_of({"a": 40, "b": 17, "c": 3, "d": 1})
    split = split_by_class(labels, keys)
    assert sorted([*split.train, *split.val, *split.test]) == list(range(61))


def test_each_class_has_its_share_of_each_part():
    labels, keys = samples_of({"common": 1000, "rare": 20})
    split = split_by_class(labels, keys, val_fraction=0.2, test_fraction=0.1)
    assert Counter(labels[i] for i in split.val) == {"common": 200, "rare": 4}
    assert Counter(labels[i] for i in split.test) == {"common": 100, "rare": 2}


@pytest.mark.parametrize(
    ("size", "expected"), [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (4, (2, 1, 1)), (10, (6, 2, 2))]
)
def test_small_classes_keep_one_in_train_then_in_val_then_in_test(size, expected):
    labels, keys = samples_of({"a": size})
    assert tuple(len(part) for part in split_by_class(labels, keys)) == expected


@pytest.mark.parametrize("fractions", [(0.49, 0.49), (0.9, 0.05), (0.05, 0.9)])
@pytest.mark.parametrize("size", range(1, 12))
def test_train_and_val_keep_one_at_extreme_fractions(size, fractions):
    labels, keys = samples_of({"a": size})
    split = split_by_class(labels, keys, val_fraction=fractions[0], test_fraction=fractions[1])
    assert sum(map(len, split)) == size
    assert split.train
    assert split.val or size == 1


def test_the_order_of_samples_changes_nothing():
    labels, keys = samples_of({"a": 30, "b": 20})
    order = list(range(50))
    random.Random(1).shuffle(order)
    plain = split_by_class(labels, keys, seed=3)
    mixed = split_by_class([labels[i] for i in order], [keys[i] for i in order], seed=3)
    for one, other in zip(plain, mixed, strict=True):
        assert {keys[i] for i in one} == {keys[order[i]] for i in other}


def test_another_seed_is_another_split_and_the_same_seed_the_same():
    labels, keys = samples_of({"a": 30, "b": 20})
    assert split_by_class(labels, keys, seed=1) == split_by_class(labels, keys, seed=1)
    assert split_by_class(labels, keys, seed=1) != split_by_class(labels, keys, seed=2)


def test_another_class_moves_no_sample_of_the_others():
    labels, keys = samples_of({"a": 30})
    more_labels, more_keys = labels + ["b"] * 10, keys + [f"b/{n}" for n in range(10)]
    assert [i for i in split_by_class(more_labels, more_keys).val if i < 30] == split_by_class(
        labels, keys
    ).val


def test_a_sample_that_occurs_often_is_split_at_one_cut_at_most():
    keys = [f"text {n % 25}" for n in range(100)]  # each four times
    parts = [{keys[i] for i in part} for part in split_by_class(["a"] * 100, keys)]
    shared = sum(len(one & other) for one, other in [parts[:2], parts[1:], parts[::2]])
    assert shared <= 2


def test_without_a_test_fraction_there_is_no_test_part():
    labels, keys = samples_of({"a": 30})
    assert split_by_class(labels, keys, test_fraction=0).test == []


@pytest.mark.parametrize(
    ("val", "test"), [(0, 0.1), (-0.1, 0.1), (0.5, 0.5), (0.1, -0.1), (1.2, 0), (float("nan"), 0)]
)
def test_fractions_that_leave_nothing_are_refused(val, test):
    with pytest.raises(MisconfigurationError, match="sum below 1"):
        split_by_class(["a"], ["a"], val_fraction=val, test_fraction=test)
