"""Loaders: how many batches, in which order, and standing again at the batch where a run was cut."""

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    WeightedRandomSampler,
)

from headstart import seed_everything
from headstart.errors import MisconfigurationError
from headstart.loaders import EpochOfBatches, as_list, num_batches, set_epoch, without_shuffling

TEN = torch.arange(10.0)


class Stream(IterableDataset):
    def __iter__(self):
        yield from TEN


def test_loaders_come_as_one_as_a_list_or_by_name():
    one, two = DataLoader(TEN), DataLoader(TEN)
    assert as_list(None) == []
    assert as_list(one) == [one]
    assert as_list([one, two]) == as_list((one, two)) == as_list({"a": one, "b": two}) == [one, two]


def test_a_list_of_batches_is_one_loader():
    batches = [torch.ones(2), torch.ones(2)]
    assert len(as_list(batches)) == 1


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, 10), (1.0, 10), (0.5, 5), (0.39, 3), (0.0, 0), (0, 0), (1, 1), (3, 3), (99, 10)],
)
def test_a_limit_is_a_number_or_a_fraction_of_batches(limit, expected):
    assert num_batches(DataLoader(TEN), limit, name="limit_val_batches") == expected


def test_a_stream_has_no_length_and_takes_a_number():
    stream = DataLoader(Stream())
    assert num_batches(stream, None, name="x") is None
    assert num_batches(stream, 4, name="x") == 4
    assert num_batches(stream, 0.0, name="x") == 0


def test_a_fraction_of_a_stream_is_refused():
    with pytest.raises(MisconfigurationError, match="limit_x is 0.5, a fraction.*Give a number of batches"):
        num_batches(DataLoader(Stream()), 0.5, name="limit_x")


def test_a_fraction_that_leaves_no_batch_is_refused():
    with pytest.raises(MisconfigurationError, match="limit_x is 0.01, of 10 batches.*at least 0.1"):
        num_batches(DataLoader(TEN), 0.01, name="limit_x")


def test_a_shuffled_loader_is_replaced_by_one_in_order_with_a_warning():
    with pytest.warns(UserWarning, match="overfit_batches: the training loader shuffles"):
        found = without_shuffling(DataLoader(TEN, batch_size=4, shuffle=True, drop_last=True))
    assert [batch.tolist() for batch in found] == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]
    in_order = DataLoader(TEN)
    assert without_shuffling(in_order) is in_order


def test_a_loader_that_draws_by_weights_is_replaced_too():
    drawn = WeightedRandomSampler(torch.ones(10), 10)
    with pytest.warns(UserWarning, match="the training loader draws by a WeightedRandomSampler"):
        found = without_shuffling(DataLoader(TEN, batch_size=4, sampler=drawn))
    assert next(iter(found)).tolist() == [0.0, 1.0, 2.0, 3.0]
    own = DataLoader(TEN, batch_sampler=BatchSampler(drawn, 4, drop_last=False))
    assert without_shuffling(own) is own


def test_samplers_are_told_the_epoch_wherever_they_are():
    def sampler():
        return DistributedSampler(TEN, num_replicas=1, rank=0)

    plain, inside = sampler(), sampler()
    set_epoch(DataLoader(TEN, sampler=plain), 3)
    set_epoch(DataLoader(TEN, batch_sampler=BatchSampler(inside, 2, drop_last=False)), 3)
    set_epoch([1, 2], 3)  # nobody to tell
    assert (plain.epoch, inside.epoch) == (3, 3)


def test_a_dataset_is_told_the_epoch_too():
    class Counted(list):  # as unhashable as datasets can be
        def set_epoch(self, epoch):
            self.epochs = [*getattr(self, "epochs", []), epoch]

    dataset = Counted([1, 2])
    set_epoch(DataLoader(dataset), 3)
    assert dataset.epochs == [3]


# ---- the batches of one epoch


def read(epoch):
    return [(index, float(batch), last) for index, batch, last in epoch]


@pytest.mark.parametrize("dataset", [TEN, Stream()], ids=["sized", "stream"])
@pytest.mark.parametrize("count", [None, 4, 99])
def test_the_last_batch_is_known_when_it_comes(dataset, count):
    loader = DataLoader(dataset, batch_size=None)
    length = min(10, count or 10)
    own = (
        count if count != 99 or dataset is not TEN else 10
    )  # a sized loader's count is never above its length
    if own is None and dataset is TEN:
        own = 10
    found = read(EpochOfBatches(loader, count=own))
    assert found == [(index, float(index), index == length - 1) for index in range(length)]


def test_a_stream_is_not_read_beyond_the_limit():
    taken = []

    class Counted(IterableDataset):
        def __iter__(self):
            for value in TEN:
                taken.append(float(value))
                yield value

    read(EpochOfBatches(DataLoader(Counted(), batch_size=None), count=3))
    assert taken == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("own_generator", [True, False])
@pytest.mark.parametrize("batch", [1, 4, 9])
def test_an_epoch_goes_on_in_its_own_order_after_a_cut(own_generator, batch):
    def loader():
        generator = torch.Generator().manual_seed(9) if own_generator else None
        return DataLoader(TEN, batch_size=None, sampler=RandomSampler(TEN, generator=generator))

    seed_everything(2)
    uncut = EpochOfBatches(loader(), count=10)
    expected, states = [], None
    for index, value, last in uncut:
        expected.append((index, float(value), last))
        if index == batch - 1:
            states = uncut.state_dict(), uncut.random_state()
    after = torch.rand(1)

    seed_everything(77)
    again = EpochOfBatches(loader(), count=10)
    again.resume(states[0], batch=batch)
    again.restore(states[1])
    assert read(again) == expected[batch:]
    assert torch.equal(torch.rand(1), after)


def test_the_order_is_that_of_the_plain_loop():
    loader = DataLoader(TEN, batch_size=None, sampler=RandomSampler(TEN))
    seed_everything(4)
    expected = [float(value) for _ in range(2) for value in loader]
    seed_everything(4)
    found = [value for _ in range(2) for _, value, _ in read(EpochOfBatches(loader, count=10))]
    assert found == expected
