"""`Views`: a dataset with random augmentation as one with a fixed number of views of every sample."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from headstart.errors import MisconfigurationError


class Views(Dataset[Any]):
    """A dataset whose random augmentation comes in `num_views` fixed views of every sample, one an epoch in turn.

    **This bounds the augmentation**: training sees at most `num_views` different pictures of each sample, however many
    epochs it runs. In return what a frozen network makes of each can be stored.

    View `v` of sample `i` is drawn from `seed`, `i` and `v` alone: Python's, NumPy's and torch's global generators (of
    the CPU) are seeded from these while the item is fetched, and put back afterwards. A dataset that draws from a
    generator of its own is not governed by this.

    Args:
        dataset: It has a length and gives items by number.
        num_views: Number of views of each sample.
        seed: Of all views.

    Raises:
        MisconfigurationError: If `num_views` is below 1, or the dataset has no length or no items by number.

    Example:
        >>> class Noise(Dataset):
        ...     def __len__(self):
        ...         return 3
        ...
        ...     def __getitem__(self, index):
        ...         return random.random()
        >>> views = Views(Noise(), 2)
        >>> first = views[0]
        >>> views.set_epoch(1)
        >>> other = views[0]
        >>> views.set_epoch(2)
        >>> first == other, first == views[0]
        (False, True)
    """

    fingerprint_excludes = ("_epoch",)  # it decides which view is next, not what a view is

    def __init__(self, dataset: Any, num_views: int, *, seed: int = 0) -> None:
        if num_views < 1:
            raise MisconfigurationError(f"num_views is {num_views}; expected 1 or more.")
        missing = [name for name in ("__len__", "__getitem__") if not hasattr(dataset, name)]
        if missing or isinstance(dataset, IterableDataset):
            raise MisconfigurationError(
                f"Views takes a dataset with a length and items by number; received {type(dataset).__name__}, "
                f"{'an iterable one' if isinstance(dataset, IterableDataset) else 'without ' + ' and '.join(missing)}. "
                "Read it into a list, or into a dataset that has them."
            )
        self.dataset = dataset
        self.num_views = num_views
        self.seed = seed
        # In shared memory, so that loader workers that live on from epoch to epoch are told as well.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.get(self.id_of(index))

    @property
    def num_ids(self) -> int:
        """How many different items there are: `len * num_views`."""
        return len(self) * self.num_views

    def set_epoch(self, epoch: int) -> None:
        """Turn to view `epoch % num_views`; `Trainer` calls it before each epoch, as with samplers."""
        self._epoch.fill_(epoch)

    def id_of(self, index: int) -> int:
        """Give the number, below `num_ids`, of the current view of a sample.

        Raises:
            IndexError: If there is no such sample.
        """
        return range(len(self))[index] * self.num_views + int(self._epoch) % self.num_views

    def get(self, view_id: int) -> Any:
        """Give an item by its number below `num_ids`, whatever the epoch.

        Raises:
            IndexError: If there is no such item.
        """
        view_id = range(self.num_ids)[view_id]
        with _seeded(f"{self.seed} {view_id // self.num_views} {view_id % self.num_views}"):
            return self.dataset[view_id // self.num_views]


@contextmanager
def _seeded(text: str) -> Iterator[None]:
    """Seed the global generators from a text; leave them as they were.

    Leaner than `seed.isolated_random_state`, whose states are made for checkpoints; and without CUDA's generators,
    which a loader worker cannot touch.
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    digest = hashlib.sha256(text.encode()).digest()
    random.seed(digest)
    np.random.seed(np.frombuffer(digest, np.uint32))  # noqa: NPY002
    torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
