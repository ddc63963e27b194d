"""The data behind a loader: what is known of the order of an epoch."""

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler

from headstart.deferred.source import is_foreseeable


class OfItsOwn(BatchSampler):
    """Torch's own in all but name."""


def test_torchs_samplers_are_foreseeable_and_others_where_they_say_so():
    data = range(10)
    assert is_foreseeable(DataLoader(data, batch_size=2, shuffle=True))
    share = DistributedSampler(data, num_replicas=2, rank=0)
    assert is_foreseeable(DataLoader(data, batch_size=2, sampler=share))
    sampler = OfItsOwn(RandomSampler(data), 2, drop_last=False)
    assert not is_foreseeable(DataLoader(data, batch_sampler=sampler))
    sampler.is_foreseeable = True
    assert is_foreseeable(DataLoader(data, batch_sampler=sampler))
    sampler.is_foreseeable = lambda: False  # a method of the program's own says nothing
    assert not is_foreseeable(DataLoader(data, batch_sampler=sampler))
