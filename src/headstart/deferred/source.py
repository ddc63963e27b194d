"""The data behind a loader: which samples a batch has, without reading them; and reading them, when that must be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from headstart.deferred.fingerprint import signature
from headstart.deferred.graph import Expression, Root
from headstart.deferred.structure import leaves_of, map_structure
from headstart.deferred.views import Views
from headstart.seed import capture_random_state, restore_random_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Samplers that draw all their randomness when an epoch begins, so that looking ahead changes nothing.
_FORESEEABLE = (RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler)


class Indices(Dataset[int]):
    """A data set whose items are their own numbers."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        if type(index) is not int:
            raise TypeError(f"a sampler gave {index!r}; samples are known by whole numbers")
        return index


class Source:
    """A data set with the way in which its loader makes batches.

    Attributes:
        obstacle: Why its batches cannot be deferred, and what to do; empty where they can.
        roots: The tensors of a batch, in order.
        template: A batch, with `Root`s in the place of its tensors.
        targets: What was forced of the last batch.
        content: A digest of the content, for keys on disk; `None` until it is asked for, empty where it has none.
    """

    def __init__(self, loader: Any) -> None:
        self.roots: list[Root] = []
        self.template: Any = None
        self.targets: list[Expression] = []
        self.content: str | None = None
        self.dataset = getattr(loader, "dataset", loader)
        self.collate: Any = getattr(loader, "collate_fn", None)
        self.obstacle = _obstacle_of(loader)
        if self.obstacle:
            return
        self.num_workers: int = loader.num_workers
        self.signature = signature(self.contents())
        views = self.dataset if isinstance(self.dataset, Views) else None
        self.num_ids: int = len(self.dataset) if views is None else views.num_ids
        self.obstacle = self._probe()

    def contents(self) -> Any:
        """Give all that a sample depends on, beside its id."""
        if isinstance(self.dataset, Views):  # which view is shown now is part of the id
            return self.dataset.dataset, self.dataset.num_views, self.dataset.seed, self.collate
        return self.dataset, self.collate

    def is_unchanged(self) -> bool:
        """Whether the data set and its transform are what they were."""
        return bool(self.signature == signature(self.contents()))

    def is_behind(self, loader: Any) -> bool:
        """Whether `loader` reads this data set, in the same way."""
        return (
            getattr(loader, "dataset", loader) is self.dataset
            and getattr(loader, "collate_fn", None) is self.collate
        )

    def ids_of(self, indices: Sequence[int]) -> Tensor:
        """Give the ids of samples, int64: in a data set of views, those of the current view."""
        ids = torch.tensor(indices, dtype=torch.int64)
        if isinstance(self.dataset, Views):
            return ids * self.dataset.num_views + self.dataset.id_of(0)
        return ids

    def fetch(self, ids: Tensor) -> list[Tensor]:
        """Give the tensors of a batch of these samples, in the order of `roots`.

        Raises:
            ValueError: If the batch is not built like the first.
        """
        return self._tensors(self.collated(ids))

    def collated(self, ids: Tensor) -> Any:
        """Give the batch of these samples, as the loader gives it."""
        collate: Callable[[list[Any]], Any] = self.collate
        return collate(self._items(ids.tolist()))

    def lengths(self, ids: Tensor) -> list[int]:
        """Give the length of each sample: that of its ragged tensors when it is collated alone."""
        ragged = [root.index for root in self.roots if root.is_ragged]
        return [
            max((tensors[index].shape[1] for index in ragged), default=0)
            for tensors in (self.fetch(one) for one in torch.split(ids, 1))
        ]

    def _items(self, ids: list[int]) -> list[Any]:
        if hasattr(self.dataset, "__getitems__"):
            return cast("list[Any]", self.dataset.__getitems__(ids))
        dataset = _ById(self.dataset)
        return [dataset[each] for each in ids]

    def _tensors(self, batch: Any) -> list[Tensor]:
        tensors = [leaf for leaf in leaves_of(batch) if isinstance(leaf, Tensor)]
        if len(tensors) != len(self.roots):
            raise ValueError(
                f"A batch has {len(tensors)} tensors, and the first had {len(self.roots)}. Batches that differ in their "
                "parts cannot be deferred: set reuse_frozen=False."
            )
        return tensors

    def stream(self, chunks: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Give the tensors of each chunk of samples; the next is read while the last is used."""
        if self.num_workers and len(chunks) > self.num_workers:
            yield from map(self._tensors, self.read_all(chunks))
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="headstart-reader") as pool:
            coming = pool.submit(self.fetch, chunks[0]) if chunks else None
            for following in [*chunks[1:], None]:
                assert coming is not None
                tensors = coming.result()
                coming = None if following is None else pool.submit(self.fetch, following)
                yield tensors

    def read_all(self, batches: Sequence[Tensor]) -> Iterator[Any]:
        """Give batches as the loader would, read by as many processes."""
        yield from DataLoader(
            _ById(self.dataset),
            batch_sampler=[each.tolist() for each in batches],
            num_workers=self.num_workers,
            collate_fn=self.collate,
            generator=torch.Generator(),  # the global one is the training's
        )

    def _probe(self) -> str:
        """Fetch a few samples twice, and say what stands in the way; the random state is as it was afterwards."""
        length = len(self.dataset)
        if length == 0:
            return "the data set is empty"
        # Two that lie far apart, so that a constant in place of a sample's own value shows.
        ids = self.ids_of(sorted({0, length // 2}))
        before = capture_random_state()
        try:
            first = self.collated(ids)
            touched = not _equal(before, capture_random_state())
            restore_random_state(before)
            torch.rand(1)  # from another state: what depends on it differs
            second = self.collated(ids)
        finally:
            restore_random_state(before)
        name = type(self.dataset).__name__
        transform = getattr(self.dataset, "transform", None)
        culprit = name if transform is None else f"{name}, transform {_one_line(transform)}"
        remedy = "use a transform without randomness, or headstart.deferred.Views for a fixed number of views"
        if touched:
            return f"reading a sample draws random numbers ({culprit}); {remedy}"
        if not _equal(first, second):
            return f"reading a sample twice gives two different ones ({culprit}); {remedy}"
        return self._describe(first, len(ids))

    def _describe(self, batch: Any, size: int) -> str:
        """Take down how a batch is built."""
        may_be_padded = self.collate is not default_collate
        problem = ""

        def root(leaf: Any) -> Any:
            nonlocal problem
            if not isinstance(leaf, Tensor):
                if not (leaf is None or isinstance(leaf, bool | int | float)):
                    problem = problem or (
                        f"a batch holds {type(leaf).__name__} ({_one_line(leaf)}), and only tensors can be deferred; "
                        "leave it out of the samples"
                    )
                return leaf
            if leaf.ndim == 0 or leaf.shape[0] != size:
                problem = problem or (
                    f"a tensor of the batch has the shape {tuple(leaf.shape)} for {size} samples; expected the samples in "
                    "the first dimension"
                )
            self.roots.append(Root(len(self.roots), leaf, is_ragged=may_be_padded and leaf.ndim > 1))
            return self.roots[-1]

        self.template = map_structure(batch, root)
        return problem or ("" if self.roots else "a batch holds no tensors")


class _ById(Dataset[Any]):
    """A data set by id: for loader processes."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> Any:
        return self._dataset.get(index) if isinstance(self._dataset, Views) else self._dataset[index]


def index_loader(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Give a loader of sample numbers that draws the same random numbers, in the same order, as `loader` does.

    Example:
        >>> list(index_loader(DataLoader([10, 20, 30], batch_size=2)))
        [[0, 1], [2]]
    """
    return DataLoader(
        Indices(len(cast("Any", loader.dataset))),
        batch_sampler=loader.batch_sampler,
        collate_fn=_as_they_are,
        generator=loader.generator,
    )


def _as_they_are(indices: list[int]) -> list[int]:
    return indices


def is_foreseeable(loader: DataLoader[Any]) -> bool:
    """Whether the order of an epoch is fixed when it begins, so that its batches may be looked at ahead."""
    sampler = loader.batch_sampler
    return type(sampler) is BatchSampler and type(sampler.sampler) in _FORESEEABLE


def _obstacle_of(loader: Any) -> str:
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__:
        return f"a {type(loader).__name__} does not say which samples a batch has; use a torch DataLoader"
    if isinstance(loader.dataset, IterableDataset):
        return f"{type(loader.dataset).__name__} is an iterable data set, whose samples have no number; use one with an index"
    if loader.batch_sampler is None:
        return "the loader makes no batches (batch_size=None); give it a batch_size"
    if not hasattr(loader.dataset, "__len__") or not hasattr(loader.dataset, "__getitem__"):
        return f"{type(loader.dataset).__name__} has no length or no index"
    return ""


def _equal(first: Any, second: Any) -> bool:
    ours, others = list(leaves_of(first)), list(leaves_of(second))
    if len(ours) != len(others):
        return False
    return all(
        one.dtype == other.dtype and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
        if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape
        else one is other or (not isinstance(one, Tensor) and bool(one == other))
        for one, other in zip(ours, others, strict=True)
    )  # fmt: skip


def _one_line(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else f"{text[:117]}..."
