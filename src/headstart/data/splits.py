"""Splits: by class, seeded, and the same on every machine."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from headstart.errors import MisconfigurationError


class Split(NamedTuple):
    """Positions of the samples of each part, ascending."""

    train: list[int]
    val: list[int]
    test: list[int]


def check_fractions(*, val_fraction: float, test_fraction: float) -> None:
    """Refuse fractions that leave nothing to train on or to choose the best model with.

    Raises:
        MisconfigurationError: If `val_fraction` is not above 0, `test_fraction` is below 0, or their sum reaches 1.
    """
    if not (val_fraction > 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise MisconfigurationError(
            f"val_fraction={val_fraction} and test_fraction={test_fraction}: expected val_fraction above 0, "
            "test_fraction 0 or more, and a sum below 1. The validation part is what the best model is chosen with."
        )


def split_by_class(
    labels: Sequence[str],
    keys: Sequence[str],
    *,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
) -> Split:
    """Give each part its share of every class.

    A class with one sample is in train only; one with two is in train and val; from three on it is in all parts.

    The samples of a class are put into the order of a hash of seed and key, and the parts are cut from that order. So
    the split depends neither on the order of files or rows nor on the machine, a new sample moves few others, and
    samples with equal keys (a text that occurs twice) come to lie in the same part, but for one such group at a cut.

    Args:
        labels: The class of each sample.
        keys: What identifies each sample: its path below the root, its text.
        val_fraction: Share of val, above 0.
        test_fraction: Share of test; 0 leaves it empty.
        seed: Another seed is another split.

    Returns:
        The positions of the samples in train, val and test.

    Raises:
        MisconfigurationError: If the fractions leave nothing to train on.

    Example:
        >>> labels = ["cat"] * 4 + ["dog"] * 2
        >>> keys = ["c1", "c2", "c3", "c4", "d1", "d2"]
        >>> [len(part) for part in split_by_class(labels, keys, val_fraction=0.25, test_fraction=0.25)]
        [3, 2, 1]
    """
    check_fractions(val_fraction=val_fraction, test_fraction=test_fraction)
    by_class: dict[str, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        by_class[label].append(position)
    split = Split([], [], [])
    for positions in by_class.values():
        positions.sort(key=lambda position: _rank(keys[position], seed=seed))
        size = len(positions)
        has_val, has_test = size >= 2, size >= 3 and test_fraction > 0
        # Rounded, at least one, and leaving one each for the parts still to come.
        num_val = min(max(1, round(size * val_fraction)), size - 1 - has_test) if has_val else 0
        num_test = min(max(1, round(size * test_fraction)), size - 1 - num_val) if has_test else 0
        split.test.extend(positions[:num_test])
        split.val.extend(positions[num_test : num_test + num_val])
        split.train.extend(positions[num_test + num_val :])
    for part in split:
        part.sort()
    return split


def _rank(key: str, *, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{key}".encode(errors="surrogatepass")).digest()
