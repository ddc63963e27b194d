"""`Views`: which view of a sample comes when, and that nothing else notices the drawing."""

import random
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from headstart import seed_everything
from headstart.deferred.fingerprint import content_digest, signature
from headstart.deferred.views import Views
from headstart.errors import MisconfigurationError
from headstart.loaders import set_epoch


class Noise(Dataset):
    """Draws from all three generators."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


def all_of(views):
    return torch.stack([views.get(number) for number in range(views.num_ids)])


def test_a_view_is_the_same_whenever_and_in_whatever_order_it_is_fetched():
    views = Views(Noise(), 3)
    first = all_of(views)
    seed_everything(5)
    backward = torch.stack([views.get(number) for number in reversed(range(views.num_ids))])
    assert torch.equal(first, backward.flip(0))
    assert torch.equal(first, all_of(Views(Noise(), 3)))
    assert torch.equal(first[:, 0], torch.arange(5.0).repeat_interleave(3))


def test_every_view_of_every_sample_and_every_seed_is_drawn_anew():
    draws = torch.cat([all_of(Views(Noise(), 3, seed=seed))[:, 1:] for seed in (0, 1)])
    for column in draws.T:
        assert len(column.unique()) == 30


def test_more_views_leave_the_first_ones_as_they_were():
    few, many = Views(Noise(), 2), Views(Noise(), 4)
    assert torch.equal(few.get(2 * 3 + 1), many.get(4 * 3 + 1))


def test_the_views_come_in_turn():
    views = Views(Noise(), 2)
    assert (len(views), views.num_ids) == (5, 10)
    seen = []
    for epoch in range(4):
        views.set_epoch(epoch)
        seen.append([views.id_of(index) for index in range(5)])
        assert torch.equal(torch.stack(list(views)), torch.stack([views.get(number) for number in seen[-1]]))
    assert seen == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]] * 2


def test_fetching_leaves_the_global_generators_as_they_were():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    seed_everything(3)
    expected = draw()
    seed_everything(3)
    Views(Noise(), 2)[1]
    assert draw() == expected

    class Broken(Noise):
        def __getitem__(self, index):
            raise OSError("damaged")

    seed_everything(3)
    with pytest.raises(OSError, match="damaged"):
        Views(Broken(), 2)[1]
    assert draw() == expected


def test_there_is_nothing_beyond_the_last():
    views = Views(Noise(), 2)
    assert torch.equal(views[-1], views[4])
    for fetch in (views.__getitem__, views.id_of):
        with pytest.raises(IndexError):
            fetch(5)
    with pytest.raises(IndexError):
        views.get(10)


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [True, False])
def test_loader_workers_give_the_view_of_the_epoch(persistent):
    views = Views(Noise(), 2)
    loader = DataLoader(views, batch_size=5, num_workers=1, persistent_workers=persistent)
    for epoch in range(3):
        set_epoch(loader, epoch)
        (batch,) = list(loader)
        assert torch.equal(batch, all_of(views)[epoch % 2 :: 2])


def test_turning_to_the_next_view_changes_no_fingerprint():
    views = Views(Noise(), 2)
    before = signature(views), content_digest(views)
    views.set_epoch(1)
    assert (signature(views), content_digest(views)) == before
    assert content_digest(Views(Noise(), 2, seed=1)) not in {None, before[1]}


@pytest.mark.parametrize("num_views", [0, -1])
def test_fewer_than_one_view_is_refused(num_views):
    with pytest.raises(MisconfigurationError, match=f"num_views is {num_views}; expected 1 or more"):
        Views(Noise(), num_views)


def test_what_has_no_length_or_no_items_by_number_is_refused():
    with pytest.raises(MisconfigurationError, match="received Stream, an iterable one. Read it into a list"):
        Views(Stream(), 2)
    with pytest.raises(MisconfigurationError, match="received generator, without __len__ and __getitem__"):
        Views((number for number in range(3)), 2)


def test_the_seeding_costs_little():
    views = Views(Noise(), 2)
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        views[0]
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.0003  # 0.08 ms were measured
