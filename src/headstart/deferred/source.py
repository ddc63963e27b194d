"""The data behind a loader: which samples a batch has, without reading them; and reading them, when that must be."""

from __future__ import annotations

import copy
import operator
import pickle
import random
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
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
from headstart.errors import MisconfigurationError
from headstart.seed import capture_random_state, restore_random_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# Samplers that draw all their randomness when an epoch begins, so that looking ahead changes nothing.
FORESEEABLE = (
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    DistributedSampler,
)


# How deep, and in containers of how many elements, the generators of a data set are looked for.
_DEEPEST, _LONGEST = 4, 100


_REMEDY = "use a transform without randomness, or headstart.deferred.Views for a fixed number of views"


class Indices(Dataset[int]):
    """A data set whose items are their own numbers."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
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
        self.targets: Mapping[Expression, Any] = {}
        self.content: str | None = None
        self.read_before: weakref.WeakSet[Any] = weakref.WeakSet()  # loaders
        self.dataset = getattr(loader, "dataset", loader)
        self.collate: Any = getattr(loader, "collate_fn", None)
        self.obstacle = _obstacle_of(loader)
        if self.obstacle:
            return
        self.num_workers: int = loader.num_workers
        self._worker_init_fn = loader.worker_init_fn
        self._timeout = loader.timeout
        views = self.dataset if isinstance(self.dataset, Views) else None
        self.num_ids: int = len(self.dataset) if views is None else views.num_ids
        self.obstacle = self._probe()
        self.signature = signature(self.contents())

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

    def ids_of(self, indices: Sequence[Any]) -> Tensor | None:
        """Give the ids of samples, int64: in a data set of views, those of the current view.

        `None` where one is no number of a sample, such as a pair of a number and a size.
        """
        numbers = indices
        if set(map(type, indices)) != {int}:
            try:
                numbers = list(map(operator.index, indices))
            except TypeError:
                return None
        if not numbers or min(numbers) < 0 or max(numbers) >= len(self.dataset):
            return None
        ids = torch.tensor(numbers, dtype=torch.int64)
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

    def call_random(self) -> None:
        """Take down that the samples were found to be random after all."""
        self.obstacle = (
            f"reading some samples of {type(self.dataset).__name__} draws random numbers; {_REMEDY}"
        )

    def read(self, indices: list[Any]) -> Any:
        """Give a batch as the loader does, whatever its sampler takes for an index."""
        if getattr(self.dataset, "__getitems__", None):
            return self.collate(self.dataset.__getitems__(indices))
        return self.collate([self.dataset[each] for each in indices])

    def lengths(self, ids: Tensor) -> list[int]:
        """Give the length of each sample: that of its ragged tensors when it is collated alone."""
        ragged = [root.index for root in self.roots if root.is_ragged]
        return [
            max((tensors[index].shape[1] for index in ragged), default=0)
            for tensors in (self.fetch(one) for one in torch.split(ids, 1))
        ]

    def _items(self, ids: list[int]) -> list[Any]:
        if getattr(self.dataset, "__getitems__", None):
            return cast("list[Any]", self.dataset.__getitems__(ids))
        dataset = _ById(self.dataset)
        return [dataset[each] for each in ids]

    def _tensors(self, batch: Any) -> list[Tensor]:
        tensors = [leaf for leaf in leaves_of(batch) if isinstance(leaf, Tensor)]
        name = type(self.dataset).__name__
        if _outline(batch) != self._outline:
            raise MisconfigurationError(
                f"A batch of {name} is built of {_one_line(_outline(batch))}, and the first was of "
                f"{_one_line(self._outline)}. Batches that differ in their parts cannot be deferred: set "
                "reuse_frozen=False."
            )
        for root, tensor in zip(self.roots, tensors, strict=True):
            if tensor.dtype != root.dtype or not (
                root.is_ragged or tuple(tensor.shape[1:]) == root.sample_shape
            ):
                raise MisconfigurationError(
                    f"A sample of {name} has the shape {tuple(tensor.shape[1:])} and holds {tensor.dtype}, and the first had "
                    f"{root.sample_shape} and {root.dtype}. Samples of different shapes cannot be deferred: set "
                    "reuse_frozen=False."
                )
        return tensors

    def stream(self, chunks: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Give the tensors of each chunk of samples; the next is read while the last is used."""
        if self.num_workers and len(chunks) > self.num_workers:
            batches = self.read_all([each.tolist() for each in chunks], by_id=True)
            yield from map(self._tensors, batches)
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="headstart-reader") as pool:
            coming = pool.submit(self.fetch, chunks[0]) if chunks else None
            for following in [*chunks[1:], None]:
                assert coming is not None
                tensors = coming.result()
                coming = None if following is None else pool.submit(self.fetch, following)
                yield tensors

    def read_all(self, batches: list[list[Any]], *, by_id: bool = False) -> Iterator[Any]:
        """Give batches as the loader would, read by as many processes."""
        yield from DataLoader(
            _ById(self.dataset) if by_id else self.dataset,
            batch_sampler=batches,
            num_workers=self.num_workers,
            worker_init_fn=self._worker_init_fn,
            timeout=self._timeout,
            collate_fn=self.collate,
            generator=torch.Generator(),  # the global one is the training's
        )

    def _probe(self) -> str:
        """Fetch a few samples twice, and say what stands in the way; all random state is as it was afterwards."""
        length = len(self.dataset)
        if length == 0:
            return "the data set is empty"
        # Two that lie far apart, so that a constant in place of a sample's own value shows.
        ids = self.ids_of(sorted({0, length // 2}))
        assert ids is not None
        before, own = capture_random_state(), _OwnState(self.contents())
        try:
            first = self.collated(ids)
            touched = own.has_moved() or has_moved(before)
            restore_random_state(before)
            torch.rand(1)  # from another state: what depends on it differs
            second = self.collated(ids)
        except Exception as error:  # noqa: BLE001 (the loader itself will raise it, if it is the program's mistake)
            return f"reading samples {ids.tolist()} outside of the loader raises {type(error).__name__}: {_one_line(error)}"
        finally:
            restore_random_state(before)
            own.restore()
        name = type(self.dataset).__name__
        transform = getattr(self.dataset, "transform", None)
        culprit = name if transform is None else f"{name}, transform {_one_line(transform)}"
        if touched:
            return f"reading a sample draws random numbers ({culprit}); {_REMEDY}"
        if not _equal(first, second):
            return f"reading a sample twice gives two different ones ({culprit}); {_REMEDY}"
        try:
            return self._describe(first, len(ids))
        except Exception:  # noqa: BLE001 (a container of the program's own is built in its own way)
            return f"a batch is a {type(first).__name__}, which cannot be built anew; use a dictionary, a tuple or a list"

    def _describe(self, batch: Any, size: int) -> str:
        """Take down how a batch is built."""
        may_be_padded = self.collate is not default_collate
        problem = ""

        def root(leaf: Any) -> Any:
            nonlocal problem
            if not isinstance(leaf, Tensor):
                if leaf is not None:
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
        self._outline = _outline(batch)
        return problem or ("" if self.roots else "a batch holds no tensors")


class _ById(Dataset[Any]):
    """A data set by id: for loader processes."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> Any:
        return self._dataset.get(index) if isinstance(self._dataset, Views) else self._dataset[index]


def _outline(batch: Any) -> Any:
    """How a batch is built: its keys, and what is a tensor in it."""
    return map_structure(batch, lambda leaf: "tensor" if isinstance(leaf, Tensor) else leaf)


class _OwnState:
    """The attributes of a data set and its transforms, with the random generators among them, before they are used."""

    def __init__(self, value: Any) -> None:
        self._generators: list[tuple[Any, Any]] = []
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._seen: set[int] = set()
        self._visit(value, depth=0)

    def _visit(self, value: Any, *, depth: int) -> None:
        if id(value) in self._seen or depth > _DEEPEST:
            return
        self._seen.add(id(value))
        if _generator_state(value) is not None:
            self._generators.append((value, copy.deepcopy(_generator_state(value))))
        elif isinstance(value, tuple | list | dict):
            if len(value) <= _LONGEST:
                for each in value.values() if isinstance(value, dict) else value:
                    self._visit(each, depth=depth + 1)
        elif hasattr(value, "__dict__") and not isinstance(value, type | Tensor | types.ModuleType):
            self._attributes.append((vars(value), dict(vars(value))))
            for each in list(vars(value).values()):
                self._visit(each, depth=depth + 1)

    def has_moved(self) -> bool:
        """Whether a number was drawn from a generator of its own."""
        return any(
            pickle.dumps(_generator_state(each)) != pickle.dumps(state) for each, state in self._generators
        )

    def restore(self) -> None:
        """Put everything back that is no content of a container."""
        for each, before in self._attributes:
            each.update(before)
        for generator, state in self._generators:
            if isinstance(generator, torch.Generator):
                generator.set_state(state)
            elif isinstance(generator, random.Random):
                generator.setstate(state)
            elif isinstance(generator, np.random.RandomState):
                generator.set_state(state)
            else:
                generator.bit_generator.state = state


def _generator_state(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    return value.bit_generator.state if isinstance(value, np.random.Generator) else None


def index_loader(loader: DataLoader[Any], *, first: bool = True) -> Iterator[list[Any]]:
    """Give the sample numbers of each batch, drawing the same random numbers, in the same order, as `loader` does.

    Args:
        loader: It is left alone.
        first: Whether it was not gone through before; workers that persist get no new seed.

    Example:
        >>> list(index_loader(DataLoader([10, 20, 30], batch_size=2)))
        [[0, 1], [2]]
    """
    assert loader.batch_sampler is not None
    if loader.persistent_workers and not first:
        return iter(cast("Any", loader.batch_sampler))
    return iter(
        DataLoader(
            Indices(len(cast("Any", loader.dataset))),
            batch_sampler=loader.batch_sampler,
            collate_fn=_as_they_are,
            generator=loader.generator,
        )
    )


def _as_they_are(indices: list[Any]) -> list[Any]:
    return indices


def is_foreseeable(loader: DataLoader[Any]) -> bool:
    """Whether the order of an epoch is fixed when it begins, so that its batches may be looked at ahead.

    A batch sampler of another make may say so by an attribute `is_foreseeable` that is True.
    """
    sampler = loader.batch_sampler
    if getattr(sampler, "is_foreseeable", None) is True:
        return True
    return type(sampler) is BatchSampler and type(sampler.sampler) in FORESEEABLE


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


def has_moved(random_state: dict[str, Any]) -> bool:
    """Whether a random number was drawn since `random_state` was captured."""
    return not _equal(random_state, capture_random_state())


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
