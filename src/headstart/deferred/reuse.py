"""`Reuse`: frozen work is done once, in any training loop."""

from __future__ import annotations

import sys
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from headstart.deferred import modules
from headstart.deferred.graph import Call, Expression, Root, ancestry
from headstart.deferred.loader import ReusedLoader
from headstart.deferred.modules import FrozenModule
from headstart.deferred.portable import portable_key
from headstart.deferred.recorder import Recorder, expressions_from
from headstart.deferred.report import Report
from headstart.deferred.source import Source, index_loader, is_foreseeable
from headstart.deferred.store import Store
from headstart.deferred.structure import map_structure
from headstart.deferred.tensor import Batch, Deferred, UnrecordableError, call_module
from headstart.deferred.values import Values
from headstart.errors import MisconfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ReuseSetting = Literal["auto", "exact"]

# Batches that are computed together with the one that is asked for, at most.
_FURTHEST = 64
# Data sets whose values are kept at a time: more are loaders that are made anew in every epoch.
_MOST_SOURCES = 8


class Reuse:
    """Computes the output of what is frozen once for each sample, and looks it up ever after.

    Two lines in any training loop::

        reuse = Reuse(model)
        for x, y in reuse.batches(loader):  # instead of `for x, y in loader`
            ...

    The batches are those that the loader would give, in its order, as tensors that are read when something needs their
    values. A frozen module (nothing in it trains, all of it is in evaluation mode) gives values that never change for a
    sample; they are computed once, and the samples themselves are not read again. `Trainer(reuse_frozen=...)` does the
    same in fit, validate, test and predict.

    Args:
        model: The network, for the names in messages; and so that the loader of a network in which nothing is frozen is
            left alone.
        setting: `"exact"` computes in the user's own batches and memory format, so that a run without shuffling is
            bit-identical to the plain one; `"auto"` may compute in other chunks, ahead of the training step and in
            channels-last order, within `tolerance` of the plain computation.
        directory: Where values are kept for other runs; `None` keeps nothing.
        memory_limit: Bytes of values in memory; `None` is a quarter of what is free.
        disk_limit: Bytes of values on disk; `None` is half of what is free.
        directory_limit: Bytes in `directory`, beyond which what was used longest ago is deleted; `None` is 20 GB.
        tolerance: Largest difference from the plain computation that is accepted, as a share of the largest value, in
            float32 and float64; coarser formats are given 2e-2.
        min_gain: Values are stored where computing them takes at least this many times as long as reading them.
        say: Takes lines for the user; `None` prints them on standard error.

    Raises:
        MisconfigurationError: If the setting is another word.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> loader = DataLoader(TensorDataset(torch.randn(8, 3), torch.zeros(8, 1)), batch_size=4)
        >>> model = nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 1))
        >>> _ = model[0].requires_grad_(False).eval()
        >>> reuse = Reuse(model, min_gain=0, say=lambda line: None)
        >>> for epoch in range(3):
        ...     for x, y in reuse.batches(loader):
        ...         loss = (model(x) - y).square().mean()
        >>> reuse.report().num_computed, reuse.report().num_looked_up
        (8, 16)
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        setting: ReuseSetting = "auto",
        *,
        directory: str | Path | None = None,
        memory_limit: int | None = None,
        disk_limit: int | None = None,
        directory_limit: int | None = None,
        tolerance: float = 1e-5,
        min_gain: float = 1.0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if setting not in {"auto", "exact"}:
            raise MisconfigurationError(f"setting is {setting!r}; expected 'auto' or 'exact'.")
        self.setting = setting
        self._say = say
        self._report = Report()
        self._store = Store(
            memory_limit=memory_limit,
            disk_limit=disk_limit,
            directory=directory,
            directory_limit=directory_limit,
            on_note=self.say,
        )
        self._is_kept = directory is not None
        self._recorder = Recorder(self.say)
        self._values = Values(
            self._store,
            key_of=self._key_of,
            is_exact=setting == "exact",
            tolerance=tolerance,
            min_gain=min_gain,
            report=self._report,
            say=self.say,
        )
        self._model: nn.Module | None = None
        self._names: dict[int, str] = {}
        self._modules: dict[nn.Module, FrozenModule] = {}
        self._unfit: dict[nn.Module, bool] = {}  # modules that are no concern of ours, in which grad mode
        self._moving: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._sources: list[Source] = []
        self._trains = False  # whether the loop that runs computes gradients
        self._useless: dict[
            bool, Any
        ] = {}  # what was to train when nothing was deferred: training, evaluating
        if model is not None:
            self.watch(model)

    # ---- for users

    def watch(self, model: nn.Module) -> None:
        """Take the names of the parts of `model`, for messages."""
        self._model = model
        self._names = {id(each): name for name, each in model.named_modules()}
        self._useless.clear()

    def batches(self, loader: Any) -> Iterator[Any]:
        """Give the batches of `loader`, deferred where that is right and may pay, else as they are.

        Args:
            loader: A torch `DataLoader`; anything else is handed through, and one line says why.
        """
        self._trains = trains = torch.is_grad_enabled()
        self.refresh()
        source = None if self._is_useless() else self._source_of(loader)
        if source is None:
            yield from loader
            return
        with self.active():
            yield from self._deferred(loader, source, trains=trains)
        self._store.save()

    def loader(self, loader: Any) -> ReusedLoader:
        """Give `loader` as one whose batches are deferred in every pass: for a trainer that takes a loader."""
        return ReusedLoader(self, loader)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let calls of frozen modules be recorded while the block runs; `batches` does this itself."""
        with modules.calls_intercepted(call_module):
            yield

    def refresh(self) -> None:
        """Look at every frozen module anew, for what no version counter shows; `batches` does this when it begins."""
        self._unfit.clear()
        for each in list(self._modules.values()):
            if not each.is_unchanged_inside():
                self._renew(each)

    def report(self) -> Report:
        """Give what was computed, looked up and saved so far."""
        return self._report

    def close(self) -> None:
        """Write what is to be kept, and let go of everything else."""
        self._store.close()
        self._values.held.clear()

    def say(self, line: str) -> None:
        """Tell the user something, once."""
        if line in self._report.remarks:
            return
        self._report.remarks.append(line)
        if self._say is None:
            print(line, file=sys.stderr)
        else:
            self._say(line)

    # ---- for deferred tensors

    def record(self, batch: Batch, function: Any, args: Any, kwargs: Any, *, family: Any = None) -> Any:
        """Record a pure function of deferred tensors; see `Recorder.record`."""
        return self._recorder.record(batch, function, args, kwargs, family=family)

    def record_module(self, batch: Batch, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Record a call of a module, if it is frozen.

        Raises:
            UnrecordableError: If it must be called on real values, or its parts one by one.
        """
        frozen = self._frozen(module)
        if frozen is None:
            raise UnrecordableError
        return self._recorder.record(batch, module, args, kwargs, frozen=frozen)

    def value(self, expression: Expression, batch: Batch) -> Tensor:
        """Give the real value of an expression."""
        return self._values.value(expression, batch)

    def shape_of(self, tensor: Deferred) -> torch.Size:
        """Give the shape of a tensor whose shape differs from batch to batch."""
        return self._values.shape_of(tensor.expression, tensor.batch)

    def _frozen(self, module: nn.Module) -> FrozenModule | None:
        """Give the record of a module whose calls are deferred; `None` for any other."""
        computes_gradients = torch.is_grad_enabled()
        frozen = self._modules.get(module)
        if frozen is not None:
            return frozen if frozen.is_frozen or not computes_gradients else None
        if self._unfit.get(module) == computes_gradients or module in self._moving:
            return None
        found = None
        parameters = list(module.parameters())
        is_frozen = bool(parameters) and not any(each.requires_grad for each in parameters)
        # In a loop that trains, what is run in evaluation mode and without gradients is frozen in all but name. In one
        # that evaluates, everything is run so.
        is_meant = self._trains and not computes_gradients and not module.training
        is_made = not any(map(is_lazy, parameters))
        if is_made and (is_frozen or (parameters and is_meant)):
            found = FrozenModule(module, self._names.get(id(module)) or type(module).__name__)
            if found.obstacle:
                if is_frozen:
                    self.say(f"The work of {found.name} is done in every epoch: {found.obstacle}.")
                found = None
        if found is None:
            self._unfit[module] = computes_gradients
        else:
            self._modules[module] = found
        return found

    def _key_of(self, expression: Expression, batch: Batch) -> str:
        key = portable_key(expression, batch.source, setting=self.setting) if self._is_kept else None
        return key or f"~{id(expression)}"

    # ---- batches

    def _source_of(self, loader: Any) -> Source | None:
        """Give the record of the data behind a loader; `None` where its batches cannot be deferred."""
        source = next((each for each in self._sources if each.is_behind(loader)), None)
        if source is not None and not source.obstacle and not source.is_unchanged():
            self._forget_source(source)
            self.say(
                f"{type(source.dataset).__name__} or its transform has changed: frozen work is done anew."
            )
            source = None
        if source is None:
            source = Source(loader)
            self._sources.append(source)
            for old in self._sources[:-_MOST_SOURCES]:
                self._forget_source(old)
        if not source.obstacle:
            return source
        if self._model is None or any(not each.requires_grad for each in self._model.parameters()):
            self.say(f"Frozen work is done in every epoch: {source.obstacle}.")
        return None

    def _deferred(self, loader: Any, source: Source, *, trains: bool) -> Iterator[Any]:
        order = (source.ids_of(each) for each in index_loader(loader))
        coming: list[Tensor] = []

        def ahead(count: int) -> list[Tensor]:
            while len(coming) < count and (ids := next(order, None)) is not None:
                coming.append(ids)
            return coming[:count]

        foresees = self.setting == "auto" and is_foreseeable(loader)
        reach = 1
        while ahead(1):
            self._trains = trains  # between two training batches, others may have been evaluated
            for each in list(self._modules.values()):
                if not each.is_unchanged():
                    self._renew(each)
            batch = Batch(
                coming.pop(0), reuse=self, source=source, ahead=ahead if foresees else None, reach=reach
            )
            yield _handed_out(batch)
            reach = min(2 * reach, _FURTHEST)
            source.targets = list(batch.forced)
            if batch.forced and not batch.num_recorded:
                self._useless[trains] = self._what_trains()
                break
            if source.obstacle:
                self.say(f"Frozen work is done in every epoch: {source.obstacle}.")
                self._forget_values(source)
                break
        # Where nothing is deferred, the rest of the epoch is read as the loader would.
        if source.num_workers:
            yield from source.read_all(ahead(sys.maxsize))
        while ahead(1):
            yield source.collated(coming.pop(0))

    # ---- what changes

    def _what_trains(self) -> Any:
        if self._model is None:
            return None
        return [each.requires_grad for each in self._model.parameters()]

    def _is_useless(self) -> bool:
        """Whether nothing was deferred when the same trained as now."""
        found = self._useless.get(self._trains)
        return found is not None and found == self._what_trains()

    def _renew(self, frozen: FrozenModule) -> None:
        """A module has changed: what was computed with it is another module's work."""

        def is_gone(call: Call) -> bool:
            return call.module is frozen

        gone = expressions_from(self._values.held, is_gone)
        in_vain = not any(self._values.held[each].is_used for each in gone)
        frozen.num_in_vain = frozen.num_in_vain + 1 if gone and in_vain else 0
        was_meant_so = frozen.is_frozen
        frozen.renew()
        self._values.drop(gone)
        self._recorder.forget(is_gone)
        if not frozen.is_frozen or frozen.obstacle or frozen.num_in_vain > 1:
            del self._modules[frozen.module]
        if frozen.num_in_vain > 1 or not (was_meant_so or frozen.is_frozen):
            self._moving.add(frozen.module)
            self.say(f"The work of {frozen.name} is done in every epoch: its weights keep changing.")

    def _forget_source(self, source: Source) -> None:
        self._sources.remove(source)
        self._forget_values(source)

    def _forget_values(self, source: Source) -> None:
        roots = set(source.roots)
        self._values.drop([each for each in self._values.held if not roots.isdisjoint(ancestry(each))])
        self._recorder.forget(lambda call: not roots.isdisjoint(call.inputs))


def _handed_out(batch: Batch) -> Any:
    """Give a batch built as the loader builds it, of deferred tensors."""
    cpu = torch.device("cpu")
    return map_structure(
        batch.source.template, lambda leaf: Deferred(batch, leaf, cpu) if type(leaf) is Root else leaf
    )
