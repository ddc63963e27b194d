"""The place between two batches, to which a run that fails within the next batch is put back.

What a failed batch has moved already (random state, statistics of batch norms, logged values) would otherwise be in
the checkpoint that is saved then, and the resumed run, which begins that batch anew, would not be the undisturbed one.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart.freezing import is_batch_norm
from headstart.loaders import EpochOfBatches, generators_of
from headstart.metrics import Entry, is_metric
from headstart.whereabouts import say_that_it_waits

if TYPE_CHECKING:
    from headstart.trainer import Trainer

_END = object()


class Boundary:
    """Remembers the state before each batch, where it may be needed.

    Args:
        trainer: Whose run it is.

    Attributes:
        is_running: Whether batches have begun.
        is_kept: Whether the state is remembered at all: where nobody would save it, it is not.
        is_open: Whether a batch is under way.
        is_torn: Whether weights or gradients are half of one step, half of the next: nothing can be saved then.
        is_fetching: Whether the batch under way is still being read.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.is_kept = False
        self.is_running = self.is_open = self.is_torn = self.is_fetching = False
        self.is_first_pass = True  # through this loader in this process
        self._batches: EpochOfBatches | None = None
        self._iterator: Iterator[Any] | None = None
        self._random = _RandomState()
        self._logged = _Logged()
        self._moving = _MovingState()
        self._order: dict[str, Any] = {}

    def begin(self) -> None:
        """The first batch is near: from here on signals wait for the end of a step."""
        self.is_running, self.is_open, self.is_torn, self.is_fetching = True, False, False, False
        self._batches = None
        self._trainer.signals.is_busy = True

    def open_epoch(self) -> None:
        """An epoch begins: what its first hooks do belongs to its first batch, and is done again on a resume."""
        self.is_open, self.is_torn = True, False
        if self.is_kept:
            self._remember()

    def close(self) -> None:
        """The batch, and its step, are done."""
        self.is_open = self.is_torn = False

    def batches(self, source: EpochOfBatches) -> Iterator[Any]:
        """Give what `source` gives, and remember the state before each batch."""
        trainer = self._trainer
        signals, strategy = trainer.signals, trainer.strategy
        self.is_first_pass, self._batches = source is not self._batches, source
        self._moving.find(trainer.lightning_module)
        may_hang = (
            getattr(trainer.train_dataloader, "num_workers", 0) and not trainer.train_dataloader.timeout
        )
        say_slow = partial(say_that_it_waits, trainer) if may_hang else None
        # Held here too: shutting down a loader whose process hangs takes seconds, and comes after the saving.
        self._iterator = iterator = iter(source)
        while True:
            if self.is_kept:
                if not self.is_open:
                    self._remember()
                self._moving.remember()
            self.is_open = self.is_fetching = True
            signals.begin_wait(strategy)
            try:
                if say_slow is None:
                    item = next(iterator, _END)
                else:
                    with signals.alarm(say_slow):
                        item = next(iterator, _END)
            finally:
                signals.is_busy = True
            self.is_fetching = False
            signals.hold_workers()
            if item is _END:
                self.close()
                return
            yield item

    def put_back(self) -> None:
        """Undo what an unfinished batch has moved, if it can be undone."""
        if self.is_open and self.is_kept and not self.is_torn:
            self.undo_step()
            self._random.put_back()
            self._trainer.train_batches.resume(self._order, batch=0)
        self.is_open = False

    def end(self) -> None:
        """The run is over, and what it needed for an exception is not needed any more."""
        self.is_open = self.is_running = self.is_fetching = False
        self._iterator = None

    def undo_step(self) -> None:
        """Undo what a `training_step` has moved, random state apart: statistics, metrics, logged values."""
        self._logged.put_back(self._trainer)
        self._moving.put_back()

    def _remember(self) -> None:
        batches = self._trainer.train_batches
        self._random.remember(generators_of(self._trainer.train_dataloader))
        self._order = batches.state_dict()
        self._logged.remember(self._trainer)


def _bit_generator() -> Any:
    return np.random.get_bit_generator()  # type: ignore[attr-defined] # it is public


class _RandomState:
    """The global random generators, and those of a loader: read at every batch, so read quickly."""

    def __init__(self) -> None:
        self._states: tuple[Any, ...] = ()
        self._generators: list[tuple[torch.Generator, torch.Tensor]] = []
        self._has_cuda = torch.cuda.is_available()
        self._numpy_words = b""
        self._numpy: Any = None

    def remember(self, generators: list[torch.Generator]) -> None:
        cuda = torch.cuda.get_rng_state_all() if self._has_cuda else None
        self._states = (random.getstate(), self._numpy_state(), torch.get_rng_state(), cuda)
        self._generators = [(each, each.get_state()) for each in generators]

    def _numpy_state(self) -> Any:
        # get_state takes 50 microseconds. Its words are compared with the last ones first; a normal number that waits
        # for its turn is not among them.
        generator = _bit_generator()
        if not isinstance(generator, np.random.MT19937):
            return np.random.get_state(legacy=False)  # noqa: NPY002 (the generator that datasets use)
        words = ctypes.string_at(generator.ctypes.state_address, 625 * 4)
        if self._numpy is None or words != self._numpy_words or self._numpy["has_gauss"]:
            self._numpy_words = words
            self._numpy = np.random.get_state(legacy=False)  # noqa: NPY002
        return self._numpy

    def put_back(self) -> None:
        python, numpy, cpu, cuda = self._states
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        for generator, state in self._generators:
            generator.set_state(state)


class _Logged:
    """What the running epoch has logged."""

    def __init__(self) -> None:
        self._entries: list[tuple[Entry, Any, Any, float, bool]] = []
        self._is_complete = False

    def remember(self, trainer: Trainer) -> None:
        logbook = trainer.logbook
        self._is_complete = logbook.training_is_complete
        self._entries = [
            (each, each.value, each.total, each.weight, each.fresh)
            for each in logbook.training.entries.values()
        ]

    def put_back(self, trainer: Trainer) -> None:
        logbook = trainer.logbook
        logbook.training_is_complete = self._is_complete
        for entry, value, total, weight, fresh in self._entries:
            entry.value, entry.total, entry.weight, entry.fresh = value, total, weight, fresh
        logbook.training.keep_only([entry for entry, *_ in self._entries])


class _MovingState:
    """Buffers of modules in training mode (statistics of batch norms), and torchmetrics objects."""

    def __init__(self) -> None:
        self._buffers: list[tuple[Any, str]] = []
        self._metrics: list[Any] = []
        self._copies: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}
        self._counts: dict[int, tuple[int, dict[str, Any]]] = {}

    def find(self, module: torch.nn.Module) -> None:
        """See what there is: at every epoch, for modes change."""
        modules = list(module.modules())
        self._metrics = [each for each in modules if is_metric(each)]
        self._buffers = [
            (each, name)
            for each in modules
            if each.training and not is_metric(each)
            for name, buffer in each._buffers.items()  # noqa: SLF001 (a replaced buffer shows only here)
            if buffer is not None and not buffer.is_inference()
        ]
        self._copies, self._counts = {}, {}

    def remember(self) -> None:
        """Copy what has changed since the last time: buffers that never change are copied once.

        A version counter tells; but batch norms move their statistics past it.
        """
        sources, targets = [], []
        for place, (module, name) in enumerate(self._buffers):
            buffer = module._buffers[name]  # noqa: SLF001
            known = self._copies.get(place)
            if known is None or known[0] is not buffer:
                self._copies[place] = (buffer, buffer._version, buffer.detach().clone())  # noqa: SLF001
            elif known[1] != buffer._version or is_batch_norm(module):  # noqa: SLF001
                sources.append(buffer)
                targets.append(known[2])
                self._copies[place] = (buffer, buffer._version, known[2])  # noqa: SLF001
        if sources:
            with torch.no_grad():
                torch._foreach_copy_(targets, sources)
        for place, metric in enumerate(self._metrics):
            count = metric._update_count  # noqa: SLF001 (no public name)
            if place not in self._counts or self._counts[place][0] != count:
                states = {key: _copy_of(getattr(metric, key)) for key in metric._defaults}  # noqa: SLF001
                self._counts[place] = (count, states)

    def put_back(self) -> None:
        with torch.no_grad():
            for place, (buffer, version, copy) in self._copies.items():
                module, name = self._buffers[place]
                if module._buffers[name] is not buffer:  # noqa: SLF001
                    module._buffers[name] = buffer  # noqa: SLF001
                if buffer._version != version or is_batch_norm(module):  # noqa: SLF001
                    buffer.copy_(copy)
        for place, (count, states) in self._counts.items():
            metric = self._metrics[place]
            if metric._update_count != count:  # noqa: SLF001
                for key, value in states.items():
                    setattr(metric, key, _copy_of(value))
                metric._update_count, metric._computed = count, None  # noqa: SLF001
        self._counts = {}


def _copy_of(state: Any) -> Any:
    return list(state) if isinstance(state, list) else state.clone()
