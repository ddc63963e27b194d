"""The batches of each process: a loader's own order, dealt out so that every sample is seen once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sized
from typing import Any, cast

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Sampler,
)

from headstart.deferred.source import FORESEEABLE
from headstart.strategy.base import Share
from headstart.transfer import batch_size_of


class Shares(Sampler[Any]):
    """The batches of one process.

    All processes go through the same order: that of the loader's sampler in the first process. Of a loader that makes
    batches of `batch_size` samples, all processes together take `batch_size * size` samples at a time, and each every
    `size`-th of those: so a step is the step of one process with batches so large. Of a loader with a batch sampler of
    its own, whole batches are dealt out in turn.

    Args:
        loader: The loader, the same in all processes.
        rank: Of this process.
        size: How many processes.
        in_step: Whether all get the same number of batches. Where samples are left for some only, the others get one of
            theirs, and `share` says that it counts for nothing.
        order: Gives `list(sampler)` as the first process has it.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        rank: int,
        size: int,
        in_step: bool,
        order: Callable[[DataLoader[Any]], list[Any]],
    ) -> None:
        self._loader = loader
        self._rank, self._size = rank, size
        self._in_step = in_step
        self._order = order
        batches = loader.batch_sampler
        self._splits = type(batches) is BatchSampler
        self.sampler: Any = batches.sampler if self._splits else (batches or loader.sampler)  # type: ignore[union-attr]
        self.batch_size: int = loader.batch_size * size if self._splits else size  # type: ignore[operator]
        self._drop_last = self._splits and loader.drop_last
        self._length: int | None = None  # of the order that was drawn last
        self._sizes: list[int] = []  # of the batches that are dealt, where they are

    @property
    def is_foreseeable(self) -> bool:
        """Whether the order of an epoch is fixed when it begins."""
        return type(self.sampler) in FORESEEABLE

    def __iter__(self) -> Iterator[Any]:
        order = self._order(self._loader)
        self._length = len(order)
        if not self._splits:
            self._sizes = [len(each) if isinstance(each, Sized) else 1 for each in order]
        for start in range(0, len(order), self.batch_size):
            together = order[start : start + self.batch_size]
            if self._drop_last and len(together) < self.batch_size:
                return
            own = together[self._rank :: self._size]
            if not own:
                if not self._in_step:
                    return
                own = [together[self._rank % len(together)]]
            yield own if self._splits else own[0]

    def __len__(self) -> int:
        length = len(self.sampler)
        if self._drop_last:
            return length // self.batch_size
        whole, rest = divmod(length, self.batch_size)
        return whole + (rest > (0 if self._in_step else self._rank))

    def share(self, batch_idx: int) -> Share | None:
        """Give what this process has of the samples of a step; `None` where all have alike."""
        start = batch_idx * self.batch_size
        length = len(self.sampler) if self._length is None else self._length
        if self._splits:
            total = min(self.batch_size, length - start)
            if total % self._size == 0:
                return None
            return Share(max(0, -(-(total - self._rank) // self._size)), total, self._size)
        sizes = self._sizes[start : start + self.batch_size]
        if len(sizes) == self._size and len(set(sizes)) == 1:
            return None
        return Share(sizes[self._rank] if self._rank < len(sizes) else 0, sum(sizes), self._size)


class SharedStream:
    """The batches of one process of a loader without an index: each goes through the whole stream, and takes every `size`-th.

    Args:
        loader: The loader, the same in all processes.
        rank: Of this process.
        size: How many processes.
        in_step: As in `Shares`.
    """

    def __init__(self, loader: Any, *, rank: int, size: int, in_step: bool) -> None:
        self._loader = loader
        self._rank, self._size = rank, size
        self._in_step = in_step
        self._shares: list[Share] = []

    def __iter__(self) -> Iterator[Any]:
        self._shares = []
        together: list[Any] = []
        for batch in self._loader:
            together.append(batch)
            if len(together) == self._size:
                yield self._own(together)
                together = []
        if together and (self._in_step or self._rank < len(together)):
            yield self._own(together)

    def _own(self, together: list[Any]) -> Any:
        sizes = list(map(batch_size_of, together))
        own = sizes[self._rank] if self._rank < len(sizes) else 0
        self._shares.append(Share(own, sum(sizes), self._size))
        return together[self._rank % len(together)]

    def __len__(self) -> int:
        whole, rest = divmod(len(self._loader), self._size)
        return whole + (rest > (0 if self._in_step else self._rank))

    def share(self, batch_idx: int) -> Share:
        """Give what this process has of the samples of a step."""
        return self._shares[batch_idx]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_loader"], name)


def shared_loader(
    loader: Any,
    *,
    rank: int,
    size: int,
    in_step: bool,
    order: Callable[[DataLoader[Any]], list[Any]],
) -> Any:
    """Give a process's share of a loader; one that shares itself out (by a `DistributedSampler`) stays as it is.

    Args:
        loader: The loader, the same in all processes.
        rank: Of this process.
        size: How many processes.
        in_step: As in `Shares`.
        order: As in `Shares`.
    """
    batches = getattr(loader, "batch_sampler", None)
    samplers = (getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    if any(isinstance(each, DistributedSampler | Shares) for each in samplers):
        return loader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return SharedStream(loader, rank=rank, size=size, in_step=in_step)
    shares = Shares(loader, rank=rank, size=size, in_step=in_step, order=order)
    # A copy with another sampler: a loader may be of a class with an __init__ of its own, and refuses to be changed.
    shared = copy.copy(loader)
    vars(shared)["batch_sampler" if loader.batch_sampler is not None else "sampler"] = shares
    vars(shared)["_iterator"] = None  # persistent workers are the other one's
    return cast("Any", shared)


def shares_of(loader: Any) -> Shares | SharedStream | None:
    """Give what shares a loader out; `None` where nothing here does."""
    if isinstance(loader, SharedStream):
        return loader
    for name in ("batch_sampler", "sampler"):
        found = getattr(loader, name, None)
        if isinstance(found, Shares):
            return found
    return None
