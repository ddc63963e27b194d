"""Loaders: how many batches, in which order, and how to stand again at the batch where a run was cut."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from headstart.errors import MisconfigurationError
from headstart.seed import capture_random_state, restore_random_state

Limit = int | float | None


def as_list(loaders: Any) -> list[Any]:
    """Give validation, test or prediction loaders as a list.

    Example:
        >>> as_list([[1, 2], [3]])
        [[[1, 2], [3]]]
    """
    if loaders is None:
        return []
    if isinstance(loaders, Mapping):
        return list(loaders.values())
    if isinstance(loaders, list | tuple) and loaders and all(_is_loader(each) for each in loaders):
        return list(loaders)
    return [loaders]


def _is_loader(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, torch.Tensor | list | tuple | str | Mapping)


def length_of(loader: Any) -> int | None:
    """The number of batches, or `None` where the loader cannot say."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def num_batches(loader: Any, limit: Limit, *, name: str) -> int | None:
    """The number of batches that a run takes from `loader`; `None` where nobody can say.

    Args:
        loader: The loader.
        limit: A number of batches (int), a fraction of them (float), or `None` for all.
        name: The trainer's argument, for messages.

    Raises:
        MisconfigurationError: If the limit makes no sense for this loader.

    Example:
        >>> num_batches([1, 2, 3, 4], 0.5, name="limit_train_batches")
        2
    """
    length = length_of(loader)
    if limit is None or (isinstance(limit, float) and limit == 1.0):
        return length
    if isinstance(limit, int):
        return limit if length is None else min(limit, length)
    if length is None:
        if limit == 0.0:
            return 0
        raise MisconfigurationError(
            f"{name} is {limit}, a fraction, and the loader does not know its length. Give a number of batches."
        )
    count = int(length * limit)
    if count == 0 and limit > 0.0 and length:
        raise MisconfigurationError(
            f"{name} is {limit}, of {length} batches that is less than one. Give at least {1 / length:.3g}, or a number."
        )
    return count


def without_shuffling(loader: Any) -> Any:
    """Give a loader that yields the same batches in every epoch: for `overfit_batches`."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    # One without a batch size has batches of its own.
    if loader.batch_size is None or isinstance(loader.sampler, SequentialSampler):
        return loader
    what = (
        "shuffles"
        if isinstance(loader.sampler, RandomSampler)
        else f"draws by a {type(loader.sampler).__name__}"
    )
    warnings.warn(
        f"overfit_batches: the training loader {what}; it was given a sequential sampler.", stacklevel=2
    )
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=SequentialSampler(cast("Sized", loader.dataset)),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
    )


def step_size(loader: Any) -> int | None:
    """The number of samples that all processes take from `loader` for a step; `None` where it cannot say.

    Example:
        >>> step_size(DataLoader(range(10), batch_size=4))
        4
    """
    found = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return found if isinstance(found, int) else None


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell the samplers, and the dataset, which epoch begins: those that have a `set_epoch` (`DistributedSampler`)."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners: list[Any] = [
        getattr(loader, "dataset", None),
        getattr(loader, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
    ]
    for each in {id(owner): owner for owner in owners}.values():  # a dataset need not be hashable
        if callable(getattr(each, "set_epoch", None)):
            each.set_epoch(epoch)


class EpochOfBatches:
    """The training batches of one epoch, with what it takes to stand again at any of them.

    The order, and every random draw of the data, is that of `for batch in loader`. To stand at batch `n` after a
    resume, the random state of the epoch's start is put back, `n` batches are fetched and dropped (so that whatever
    the dataset draws is drawn again), and the random state from before that is put back.

    Args:
        loader: The training loader.
        count: How many batches to take; `None` takes all.
        read: Gives the batches of a loader.

    A loader that cannot say its length is read one batch ahead, to know which batch is the last; so is one of an
    `IterableDataset`, whose length is often that of what it reads, before it leaves samples out.

    Example:
        >>> [(index, batch, last) for index, batch, last in EpochOfBatches([10, 20, 30], count=2)]
        [(0, 10, False), (1, 20, True)]
    """

    def __init__(
        self, loader: Any, *, count: int | None, read: Callable[[Any], Iterator[Any]] = iter
    ) -> None:
        self._loader = loader
        self._read = read
        self._count = count
        is_stream = isinstance(getattr(loader, "dataset", None), IterableDataset)
        self._look_ahead = is_stream or length_of(loader) is None
        self._states: dict[str, Any] = {}
        self._skip = 0

    def resume(self, state: Mapping[str, Any], *, batch: int) -> None:
        """Go on after `batch` batches of the epoch whose `state_dict` is `state`."""
        self._states = dict(state)
        self._skip = batch

    def state_dict(self) -> dict[str, Any]:
        """The random states before the epoch's order was drawn, and before the batch that was read ahead."""
        return dict(self._states)

    def random_state(self) -> dict[str, Any]:
        """The states of the global random generators and of the loader's own, as they are now."""
        return {
            "random": capture_random_state(),
            "generators": [generator.get_state() for generator in generators_of(self._loader)],
        }

    def restore(self, state: Mapping[str, Any], *, only_loader: bool = False) -> None:
        """Put back what `random_state` gave; or the loader's own generators alone."""
        if not only_loader:
            restore_random_state(state["random"])
        for generator, own in zip(generators_of(self._loader), state["generators"], strict=False):
            generator.set_state(own.cpu())

    def __iter__(self) -> Iterator[tuple[int, Any, bool]]:
        skip, self._skip = self._skip, 0
        here = self.random_state()
        if skip:
            self.restore(self._states["start"])
        else:
            self._states = {"start": here}
        iterator = iter(self._read(self._loader))
        for _ in range(skip):
            next(iterator)
        if skip and self._look_ahead:
            self.restore(self._states["ahead"])
        ahead: Any = self._read_ahead(iterator) if self._look_ahead else None
        if skip:
            self.restore(here)
        index = skip
        while self._count is None or index < self._count:
            batch = ahead if self._look_ahead else next(iterator, _END)
            if batch is _END:
                if self._count is not None and not self._look_ahead:
                    self._say_that_it_is_short(index)
                return
            is_last = index + 1 == self._count
            if self._look_ahead and not is_last:
                ahead = self._read_ahead(iterator)
                is_last = ahead is _END
            yield index, batch, is_last
            index += 1

    def _say_that_it_is_short(self, num_batches: int) -> None:
        warnings.warn(
            f"The training loader gave {num_batches} batches; expected {self._count}, by its length. What belongs to the last batch of "
            "an epoch is not done: its validation, its schedulers, the step of a window that was cut. Correct the loader's "
            "__len__, or leave it out: a loader without one is read a batch ahead.",
            stacklevel=2,
        )

    def _read_ahead(self, iterator: Iterator[Any]) -> Any:
        self._states["ahead"] = self.random_state()
        return next(iterator, _END)


_END = object()


def generators_of(loader: Any) -> list[torch.Generator]:
    """The generators that a loader and its samplers own, each once."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = [
        loader,
        getattr(loader, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
    ]
    found = [getattr(owner, "generator", None) for owner in owners]
    return list(dict.fromkeys(each for each in found if isinstance(each, torch.Generator)))
