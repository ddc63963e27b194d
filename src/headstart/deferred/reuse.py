"""`Reuse`: frozen work is done once, in any training loop."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
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
from headstart.deferred.tensor import Batch, Deferred, UnrecordableError, call_module, real_values
from headstart.deferred.values import Values
from headstart.errors import MisconfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from headstart.deferred.exchange import Group

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
        dtype: In `"auto"`, run frozen modules that were called without autocast in this autocast format, such as
            `torch.bfloat16`; the values are stored in their own. `None` runs them as they are.
        compiled: In `"auto"`, run frozen modules through `torch.compile`.
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
        dtype: torch.dtype | None = None,
        compiled: bool = False,
        min_gain: float = 1.0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if setting not in {"auto", "exact"}:
            raise MisconfigurationError(f"setting is {setting!r}; expected 'auto' or 'exact'.")
        if setting == "exact" and (dtype is not None or compiled):
            raise MisconfigurationError(
                f"setting='exact' computes as the plain loop does; dtype={dtype} and compiled={compiled} are for 'auto'."
            )
        self.setting = setting
        self._how = f"{setting} {dtype} {'compiled' if compiled else ''}"
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
            dtype=dtype,
            compiled=compiled,
            report=self._report,
            say=self.say,
        )
        self._model: nn.Module | None = None
        self._names: dict[int, str] = {}
        self._modules: dict[nn.Module, FrozenModule] = {}
        self._unfit: dict[nn.Module, bool] = {}  # modules that are no concern of ours, in which grad mode
        self._num_in_vain: Counter[nn.Module] = Counter()  # changes in a row before a value was looked up
        self._moving: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._told: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # and all in them: one line is enough
        self._sources: list[Source] = []
        self._trains = False  # whether the loop that runs computes gradients
        # What was to train when nothing was deferred, while training and while evaluating.
        self._useless: dict[bool, Any] = {}
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
        try:
            with self.active():
                yield from self._deferred(loader, source, trains=trains)
        finally:  # also where the last batches are not asked for
            self._store.save()

    def loader(self, loader: Any) -> ReusedLoader:
        """Give `loader` as one whose batches are deferred in every pass: for a trainer that takes a loader."""
        return ReusedLoader(self, loader)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let calls of frozen modules be recorded while the block runs; `batches` does this itself."""
        with modules.calls_intercepted(call_module, real_values):
            yield

    def refresh(self) -> None:
        """Look at every frozen module anew, for what no version counter shows; `batches` does this when it begins."""
        self._unfit.clear()
        for each in list(self._modules.values()):
            if not each.is_unchanged_inside():
                self._renew(each)

    @property
    def can_be_shared(self) -> bool:
        """Whether `share` may be called: nothing was read yet, and it was not called before."""
        return not self._sources and not self._store.is_shared

    def share(self, directory: str | Path, *, is_first: bool, num_processes: int = 1) -> None:
        """Compute a sample once in all processes of a job on this machine, which train on a share of the samples each.

        Every process calls this, before its first batch. Afterwards one finds what another has computed, in the same epoch or
        a later one. Each must read the same data set, whole: the shares are made by samplers. Memory and disk limits are
        those of the machine.

        Args:
            directory: The same for all of them, and for no other job: `headstart.deferred.shared.new_directory` makes
                one. It is removed when the last process has closed or ended.
            is_first: Whether this process saves for later runs: one of them does.
            num_processes: Of the job on this machine.

        Raises:
            MisconfigurationError: If batches were given before, or it was called before.
            OSError: If the directory cannot be made.
        """
        if not self.can_be_shared:
            raise MisconfigurationError(
                "share() came after "
                + ("the first batches" if self._sources else "another share()")
                + "; expected one call, before the first pass over a loader. Make a new Reuse for another job."
            )
        self._store.share(directory, is_first=is_first, num_processes=num_processes)

    def exchange(self, group: Group) -> int:
        """Bring what each machine has computed to all others: between two passes, in the first process of every machine.

        The other processes of a machine see it at once; they must not begin the next pass before this ends, or they compute
        some of it again. Without it, each machine computes what its own processes meet.

        Args:
            group: The first processes, which must all have called `share`.

        Returns:
            How many rows this machine received.
        """
        return self._store.exchange(group)

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

    def at_hand(self, expression: Expression, batch: Batch) -> Tensor | None:
        """Give the real value of an expression at once, where it will be asked for as it is and is stored."""
        return self._values.at_hand(expression, batch)

    def shape_of(self, tensor: Deferred) -> torch.Size:
        """Give the shape of a tensor whose shape differs from batch to batch."""
        return self._values.shape_of(tensor.expression, tensor.batch)

    def _frozen(self, module: nn.Module) -> FrozenModule | None:
        """Give the record of a module whose calls are deferred; `None` for any other."""
        computes_gradients = torch.is_grad_enabled()
        frozen = self._modules.get(module)
        if frozen is not None and not frozen.is_unchanged():
            frozen = self._renew(frozen)
        if frozen is not None:
            is_meant = frozen.is_frozen or not computes_gradients
            return frozen if is_meant and self._can_be_deferred(frozen) else None
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
        if found is None or not self._can_be_deferred(found):
            self._unfit[module] = computes_gradients
            return None
        self._modules[module] = found
        return found

    def _can_be_deferred(self, frozen: FrozenModule) -> bool:
        """Whether a call can be deferred now; of several obstacles one inside the other, the outermost is named."""
        if frozen.is_evaluating():
            return True
        if frozen.is_frozen and frozen.module not in self._told and (obstacle := frozen.obstacle()):
            self.say(f"The work of {frozen.name} is done in every epoch: {obstacle}.")
            self._told.update(frozen.module.modules())
        return False

    def _key_of(self, expression: Expression, batch: Batch) -> str:
        has_name = self._is_kept or self._store.is_shared
        key = portable_key(expression, batch.source, setting=self._how) if has_name else None
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
        order = index_loader(loader, first=loader not in source.read_before)
        source.read_before.add(loader)
        coming: list[list[Any]] = []
        num_drawn = 0

        def have(count: int) -> bool:
            nonlocal num_drawn
            while len(coming) < count and (indices := next(order, None)) is not None:
                coming.append(list(indices))
                num_drawn += 1
            return bool(coming)

        def ahead(count: int) -> list[Tensor]:
            # Not beyond the last: a sampler draws once more when it ends, and who counts batches never asks for that.
            have(min(count, len(coming) + len(loader) - num_drawn))
            return [ids for indices in coming[:count] if (ids := source.ids_of(indices)) is not None]

        foresees = self.setting == "auto" and is_foreseeable(loader)
        # As far as the workers of the loader would be ahead: a sampler may draw from the generator that training uses.
        in_flight = loader.num_workers * (loader.prefetch_factor or 0)
        reach = 1
        # By the first batch of a pass, nothing: it may be another program.
        expected: Mapping[Expression, Any] = {}
        while have(1 + in_flight):
            self._trains = trains  # between two training batches, others may have been evaluated
            ids = source.ids_of(coming[0])
            if ids is None:
                self.say(
                    f"Frozen work is done in every epoch: the sampler gives {coming[0]!r:.80}, and samples are known by "
                    f"whole numbers from 0 to {len(source.dataset) - 1}; use a sampler of such numbers."
                )
                break
            del coming[0]
            batch = Batch(ids, reuse=self, source=source, ahead=ahead if foresees else None, reach=reach)
            batch.expected = expected
            yield _handed_out(batch)
            reach = min(2 * reach, _FURTHEST)
            source.targets = expected = batch.forced
            if source.obstacle:
                self.say(f"Frozen work is done in every epoch: {source.obstacle}.")
                self._forget_values(source)
                break
            if batch.forced and not batch.num_recorded:
                self._useless[trains] = self._what_trains()
                break
        # Where nothing is deferred, the rest of the epoch is read as the loader would.
        rest = _emptied(coming, have)
        if source.num_workers:
            yield from source.read_all(list(rest))
        else:
            yield from map(source.read, rest)

    # ---- what changes

    def _what_trains(self) -> Any:
        if self._model is None:
            return None
        return [each.requires_grad for each in self._model.parameters()]

    def _is_useless(self) -> bool:
        """Whether nothing was deferred when the same trained as now."""
        found = self._useless.get(self._trains)
        return found is not None and found == self._what_trains()

    def _renew(self, frozen: FrozenModule) -> FrozenModule | None:
        """A module has changed: what was computed with it is another module's work. Give its new record, if it has one."""

        def is_gone(call: Call) -> bool:
            return call.module is frozen

        module = frozen.module
        gone = expressions_from(self._values.held, is_gone)
        in_vain = not any(self._values.held[each].is_used for each in gone)
        self._num_in_vain[module] = self._num_in_vain[module] + 1 if in_vain else 0
        self._values.drop(gone)
        self._recorder.forget(is_gone)
        del self._modules[module]
        new = FrozenModule(module, frozen.name)
        if self._num_in_vain[module] > 1 or not (frozen.is_frozen or new.is_frozen):
            self._moving.add(module)
            self.say(f"The work of {frozen.name} is done in every epoch: it keeps changing.")
            return None
        if not new.is_frozen:
            return None
        self._modules[module] = new
        return new

    def _forget_source(self, source: Source) -> None:
        self._sources.remove(source)
        self._forget_values(source)

    def _forget_values(self, source: Source) -> None:
        roots = set(source.roots)
        self._values.drop([each for each in self._values.held if not roots.isdisjoint(ancestry(each))])
        self._recorder.forget(lambda call: not roots.isdisjoint(call.inputs))


def _emptied(coming: list[list[Any]], have: Callable[[int], bool]) -> Iterator[list[Any]]:
    while have(1):
        yield coming.pop(0)


def _handed_out(batch: Batch) -> Any:
    """Give a batch built as the loader builds it, of deferred tensors."""
    cpu = torch.device("cpu")

    def handed_out(leaf: Any) -> Any:
        if type(leaf) is not Root:
            return leaf
        value = batch.reuse.at_hand(leaf, batch)
        return Deferred(batch, leaf, cpu) if value is None else value

    return map_structure(batch.source.template, handed_out)
