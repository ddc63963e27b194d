"""The data behind a loader: what is known of the order of an epoch."""

from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from headstart.deferred.source import is_foreseeable


class OfItsOwn(BatchSampler):
    """Torch's own in all but name."""


def test_a_batch_sampler_of_another_make_is_foreseeable_where_it_says_so():
    data = range(10)
    assert is_foreseeable(DataLoader(data, batch_size=2, shuffle=True))
    sampler = OfItsOwn(RandomSampler(data), 2, drop_last=False)
    assert not is_foreseeable(DataLoader(data, batch_sampler=sampler))
    sampler.is_foreseeable = True
    assert is_foreseeable(DataLoader(data, batch_sampler=sampler))
    sampler.is_foreseeable = lambda: False  # a method of the program's own says nothing
    assert not is_foreseeable(DataLoader(data, batch_sampler=sampler))
