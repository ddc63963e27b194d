"""Real values of deferred tensors: looked up by sample, or computed, checked and stored."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from headstart.allocator import memory_kept
from headstart.deferred.columns import Column, RaggedColumn
from headstart.deferred.first_pass import Setting, fastest
from headstart.deferred.graph import Call, Evaluation, Expression, Output, Root, ancestry
from headstart.deferred.source import has_moved
from headstart.flops import flop_counter
from headstart.seed import capture_random_state, restore_random_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart.deferred.report import Report
    from headstart.deferred.store import Store
    from headstart.deferred.tensor import Batch

# What the data set itself gives (labels, lengths) is kept up to this many bytes a sample; images never are.
_SMALL = 4096
# So many expressions that were stored and never looked up say that every batch is computed in another way.
_MOST_IN_VAIN = 32
# In coarser number formats than float32, the same sum in another order differs by more than any tolerance of float32.
_COARSE_TOLERANCE = 2e-2
# Samples that are read at a time: while they are computed, the next are read.
_BLOCK = 32
# Seconds of a first pass from which on it is worth while to look for the fastest setting, with a batch of so many samples.
_WORTHWHILE = 0.5
_FEWEST = 8


@dataclass(eq=False, slots=True)
class Held:
    """What is known of an expression that was forced.

    Attributes:
        column: Its values by sample; `None` where they are not stored.
        length_of: The root whose length is that of a sample's rows, where they are ragged.
        calls_with_rows: The calls in it that take real row arguments.
        depends_on_padding: Whether it may be another if a sample is padded to another length.
        witness: For every sample a digest of those arguments, and of that length, with which its value was computed.
        mixes: Whether a sample's value depends on the others of its batch.
        has_module: Whether a frozen module is part of it.
        seconds: Of computing a sample.
        flops: Floating-point operations of computing a sample.
        is_used: Whether a value was ever looked up.
        setting: How it is computed, ahead of the training step.
        is_fast: Whether it may be computed in another number format or compiled, as the user asked.
        is_kept: Whether its values come from another run.
    """

    column: Column | RaggedColumn | None = None
    length_of: Root | None = None
    calls_with_rows: tuple[Call, ...] = ()
    depends_on_padding: bool = False
    witness: Column | None = None
    mixes: bool = False
    has_module: bool = False
    seconds: float = 0.0
    flops: int = 0
    is_used: bool = False
    setting: Setting | None = None
    is_fast: bool = False
    is_kept: bool = False


class Values:
    """The values of the expressions of a run.

    Args:
        store: Where they are kept.
        key_of: Gives an expression's key in the store; one that begins with "~" is not kept for other runs.
        is_exact: Compute in the user's own batches only.
        tolerance: See `Reuse`.
        min_gain: See `Reuse`.
        dtype: See `Reuse`.
        compiled: See `Reuse`.
        report: What was computed and looked up is counted there.
        say: Tells the user something, once.
    """

    def __init__(
        self,
        store: Store,
        *,
        key_of: Callable[[Expression, Batch], str],
        is_exact: bool,
        tolerance: float,
        min_gain: float,
        dtype: torch.dtype | None,
        compiled: bool,
        report: Report,
        say: Callable[[str], None],
    ) -> None:
        self.held: dict[Expression, Held] = {}
        self._store = store
        self._key_of = key_of
        self._is_exact = is_exact
        self._tolerance = tolerance
        self._min_gain = min_gain
        self._dtype = dtype
        self._compiled = compiled
        self._report = report
        self._say = say
        self._shapes: dict[tuple[Expression, tuple[torch.Size, ...]], torch.Size] = {}
        self._num_in_vain = 0

    @property
    def all_differ(self) -> bool:
        """Whether what is forced is another expression in every batch, so that storing is in vain."""
        return self._num_in_vain > _MOST_IN_VAIN

    def shape_of(self, expression: Expression, batch: Batch) -> torch.Size:
        """Give the shape (B, ...) of an expression whose shape differs from batch to batch."""
        shapes = tuple(each.shape for each in batch.roots())
        if isinstance(expression, Root):
            return shapes[expression.index]
        found = self._shapes.get((expression, shapes))
        if found is None:
            found = batch.evaluation().value(expression).shape
            self._shapes[expression, shapes] = found
        return found

    def value(self, expression: Expression, batch: Batch) -> Tensor:
        """Give the value (B, ...) of an expression."""
        value = batch.forced.get(expression)
        if value is not None:
            return value
        held = self.held.get(expression)
        if held is None:
            value = self._first(expression, batch)
        else:
            if held.column is not None:
                value = self._looked_up(expression, held, batch)
            if value is None:
                value = self._computed(expression, held, batch)
        batch.forced[expression] = batch.known[expression] = value
        return value

    def at_hand(self, expression: Expression, batch: Batch) -> Tensor | None:
        """Give a value (B, ...) that the last batch needed as it is, if it is stored for all samples; else `None`.

        So the program gets a tensor of its own at once, and what it does with it is plain PyTorch. What frozen modules and
        pure functions take stays deferred.
        """
        if expression.feeds_another or expression not in batch.expected:
            return None
        held = self.held.get(expression)
        if held is None or held.witness is not None or not isinstance(held.column, Column):
            return None
        if not held.column.is_complete:
            return None
        batch.forced.setdefault(expression, None)
        return self._looked_up(expression, held, batch)

    def drop(self, expressions: list[Expression]) -> None:
        """Forget the values of expressions."""
        for each in expressions:
            self._give_up(self.held.pop(each))
        gone = set(expressions)
        self._shapes = {key: shape for key, shape in self._shapes.items() if key[0] not in gone}

    def _give_up(self, held: Held) -> None:
        for column in (held.column, held.witness):
            if column is not None:
                self._store.drop(column)
        held.column = held.witness = None

    # ---- the first time

    def _first(self, expression: Expression, batch: Batch) -> Tensor:
        """Compute plainly; see whether it may be stored; store it."""
        value = batch.evaluation().value(expression)
        calls = [each for each in ancestry(expression) if isinstance(each, Call)]
        held = Held(has_module=any(call.module is not None for call in calls))
        held.seconds = sum(call.seconds for call in calls)
        held.calls_with_rows = tuple(call for call in calls if call.num_rows)
        if not held.has_module:
            is_large = value.numel() * value.element_size() > _SMALL * batch.size
            if expression.is_ragged or is_large or not batch.num_recorded:
                return value  # the data's own, and read again with every batch
        elif self.all_differ:
            return value
        self.held[expression] = held
        if batch.size > 1 and not self._keeps_samples_apart(expression, value, batch):
            held.mixes = True
            if held.has_module:
                self._say(
                    f"{_name(expression)} mixes the samples of a batch: it is computed from its inputs every time."
                )
            return value
        self._num_in_vain += 1
        if self.all_differ:
            self._say(
                f"What is computed from frozen work differs in every batch ({_name(expression)}): it is not stored."
            )
            return value
        self._open(expression, held, value, batch)
        self._take_up(expression, held, value, batch)
        if held.column is not None and held.has_module:
            self._judge(expression, held, value, batch)
        if (
            isinstance(held.column, Column)
            and held.witness is None
            and held.has_module
            and not self._is_exact
        ):
            self._settle(expression, held, value, batch)
            value = value if held.column is None else self._take(held, batch)
        elif held.has_module:
            self._report.num_computed += batch.size
        return value

    def _settle(self, expression: Expression, held: Held, plain: Tensor, batch: Batch) -> None:
        """Find the setting in which all samples are computed, these first ones included."""
        roots = [each[:_BLOCK] for each in batch.roots()]

        def run(setting: Setting) -> tuple[Tensor, float]:
            found: list[Tensor] = []
            seconds = setting.run(
                roots, lambda chunk: found.append(self._ahead(chunk, held).value(expression))
            )
            return torch.cat(found)[: len(roots[0])], seconds

        def is_close(values: Tensor) -> bool:
            coarse = held.is_fast and self._dtype is not None
            return self._is_close(values.to(plain.dtype), plain[:_BLOCK], coarse=coarse)

        held.setting = Setting(batch.size)
        with memory_kept(), _disable_current_modes():
            held.is_fast = self._dtype is not None or self._compiled
            if held.is_fast and not is_close(run(Setting(len(roots[0])))[0]):
                held.is_fast = False
                self._say(
                    f"{_name(expression)} is computed as it was called: compiled or in {self._dtype} it differs too much."
                )
            if held.seconds * batch.source.num_ids > _WORTHWHILE and batch.size >= _FEWEST:
                images = any(
                    isinstance(each, Root) and len(each.sample_shape) == 3 for each in ancestry(expression)
                )
                formats = (False, True) if images else (False,)
                held.setting, held.seconds = fastest(len(roots[0]), run, is_close, formats=formats)
                self._report.settings[_name(expression)] = str(held.setting)
        if held.is_kept:
            self._report.num_computed += batch.size
        else:
            self._compute(batch.ids, batch.roots(), {expression: held}, held.setting, batch)

    def _ahead(self, chunk: list[Tensor], held: Held) -> Evaluation:
        """Give the computation of a chunk ahead of the training step, as fast as the user allows."""
        dtype, compiled = (self._dtype, self._compiled) if held.is_fast else (None, False)
        return Evaluation(chunk, {}, size=len(chunk[0]), dtype=dtype, compiled=compiled)

    def _keeps_samples_apart(self, expression: Expression, value: Tensor, batch: Batch) -> bool:
        """Whether each half of the batch, in another order and one of them twice, gives the same for each sample.

        Both halves, for one sample may decide what the others become (the largest of all, say).
        """
        order = torch.randperm(batch.size, generator=torch.Generator().manual_seed(batch.size))
        for half in (order[: batch.size // 2], order[batch.size // 2 :]):
            rows = torch.cat([half, half[:1]])
            alone = _attempt(batch.part(rows), expression)
            if alone is None or not self._is_close(alone, value[rows.to(value.device)]):
                return False
        return True

    def _ignores_padding(self, expression: Expression, value: Tensor, batch: Batch) -> bool:
        """Whether a shorter sample of the batch, collated alone, gives the same: there must be one to know."""
        if any(isinstance(each, Call) and each.num_rows for each in ancestry(expression)):
            return False  # their rows are padded as the batch is
        plain_shapes = [each.shape[1:] for each in batch.roots()]
        for row in range(batch.size):
            roots = batch.source.fetch(batch.ids[row : row + 1])
            if [each.shape[1:] for each in roots] != plain_shapes:
                alone = _attempt(Evaluation(roots, {}, size=1), expression)
                return alone is not None and self._is_close(alone, value[row : row + 1])
        return False

    def _is_close(self, value: Tensor, plain: Tensor, *, coarse: bool = False) -> bool:
        if value.shape != plain.shape or value.dtype != plain.dtype:
            return False
        if not plain.is_floating_point():
            return torch.equal(value, plain)
        fine = plain.dtype in {torch.float32, torch.float64} and not coarse
        tolerance = self._tolerance if fine else max(self._tolerance, _COARSE_TOLERANCE)
        finite = plain.isfinite()
        if not torch.equal(value[~finite].nan_to_num(), plain[~finite].nan_to_num()):
            return False
        largest = plain[finite].abs().max() if bool(finite.any()) else torch.tensor(0.0)
        return bool((value[finite] - plain[finite]).abs().le(tolerance * largest).all())

    def _open(self, expression: Expression, held: Held, value: Tensor, batch: Batch) -> None:
        """Make room for the values of all samples, if there is any."""
        num_samples, shape, key = (
            batch.source.num_ids,
            tuple(value.shape[1:]),
            self._key_of(expression, batch),
        )
        lengths = {
            each: batch.roots()[each.index].shape[1]
            for each in ancestry(expression)
            if isinstance(each, Root) and each.is_ragged
        }
        held.length_of = next(
            (each for each, length in lengths.items() if shape and length == shape[0]), None
        )
        held.depends_on_padding = (
            bool(lengths) and held.length_of is None and not self._ignores_padding(expression, value, batch)
        )
        if any(size in lengths.values() for size in shape[1:]):
            self._say(
                f"{_name(expression)} is computed in every epoch: two of its dimensions differ from batch to batch."
            )
            return
        if held.calls_with_rows or held.depends_on_padding:
            key = f"~{key}"
        if held.length_of is not None:
            held.column = self._store.ragged(key, num_samples=num_samples, rest=shape[1:], dtype=value.dtype)
        else:
            held.column = self._store.column(
                key,
                num_samples=num_samples,
                shape=shape,
                dtype=value.dtype,
                channels_last=expression.channels_last,
            )
        if held.column is None:
            if held.has_module:
                self._say(f"{_name(expression)} is computed in every epoch: {self._store.refusal}")
        elif held.calls_with_rows or held.depends_on_padding:
            held.witness = self._store.column(
                f"{key}/witness", num_samples=num_samples, shape=(), dtype=torch.int64
            )
        if held.column is not None and held.has_module and self._store.is_shared:
            self._say_if_private(expression, held, is_named=not key.startswith("~"))

    def _say_if_private(self, expression: Expression, held: Held, *, is_named: bool) -> None:
        if held.length_of is not None or held.witness is not None:
            why = "its values depend on how batches are padded, or on other tensors"
        elif not is_named:
            why = "its network, its data set or a function in it has no content that is certain"
        else:
            return
        self._say(f"{_name(expression)} is computed once in each process, and not in all: {why}.")

    def _take_up(self, expression: Expression, held: Held, value: Tensor, batch: Batch) -> None:
        """Store the first values; or compare them with those that another run has kept."""
        if held.column is None:
            return
        held.is_kept = self._missing(held, batch) is None
        if held.is_kept and not self._is_close(self._take(held, batch), value.cpu()):
            self._give_up(held)
            self._say(
                f"{_name(expression)} is computed in every epoch: the values that were kept are others."
            )
        elif (missing := self._missing(held, batch)) is not None:
            self._put(
                expression, held, batch, batch.ids[missing], value[missing.to(value.device)], rows=missing
            )

    def _judge(self, expression: Expression, held: Held, value: Tensor, batch: Batch) -> None:
        """Do not store what takes longer to read than to compute; say what was decided."""
        begun = time.perf_counter()
        self._take(held, batch)
        reading = (time.perf_counter() - begun) / batch.size
        column = held.column
        assert column is not None
        if not self._store.agree(column, answer=held.seconds >= reading * self._min_gain):
            self._give_up(held)
            self._say(
                f"{_name(expression)} is computed in every epoch: that takes {_microseconds(held.seconds)} a sample, and "
                f"reading it back {_microseconds(reading)}."
            )
            return
        with _disable_current_modes(), flop_counter() as counter:
            rows = torch.zeros(min(2, batch.size), dtype=torch.int64)  # a single one is another case
            batch.part(rows).value(expression)
        held.flops = counter.get_total_flops() // len(rows)
        where = "in memory" if column.place == "memory" else "on disk"
        where += ", for all processes" if isinstance(column, Column) and column.is_shared else ""
        size = (
            "as long as the samples are" if held.length_of is not None else f"{column.nbytes / 1e6:,.1f} MB"
        )
        self._say(f"Frozen work is done once: {_name(expression)} is stored {where} ({size}).")
        self._report.stored.append(_name(expression))

    # ---- afterwards

    def _computed(self, expression: Expression, held: Held, batch: Batch) -> Tensor:
        """Compute what is not stored: from what its call takes, where that is what keeps samples apart."""
        if held.mixes and isinstance(expression, Output):
            for each in expression.call.inputs:
                batch.known[each] = self.value(each, batch)
        elif held.has_module:
            self._report.num_computed += batch.size
        return batch.evaluation().value(expression)

    def _looked_up(self, expression: Expression, held: Held, batch: Batch) -> Tensor | None:
        missing = self._missing(held, batch)
        num_missing = 0 if missing is None else int(missing.sum())
        if num_missing < batch.size and not held.is_used:
            held.is_used = True
            self._num_in_vain -= 1
        if held.has_module:
            self._report.look_up(batch.size - num_missing, seconds=held.seconds, flops=held.flops)
        if missing is not None:
            if self._is_exact:
                value = batch.evaluation().value(expression)
                self._put(
                    expression, held, batch, batch.ids[missing], value[missing.to(value.device)], rows=missing
                )
                self._report.num_computed += num_missing if held.has_module else 0
                return value
            if held.witness is not None or isinstance(held.column, RaggedColumn):
                self._fill_rows(expression, held, batch, missing)
            else:
                self._fill(expression, held, batch, missing)
            if held.column is None:
                return None
        value = self._take(held, batch)
        return value if value.device == expression.device else value.to(expression.device)

    def _take(self, held: Held, batch: Batch) -> Tensor:
        if isinstance(held.column, RaggedColumn):
            return held.column.take(batch.ids, length=_length(held, batch))
        assert held.column is not None
        return held.column.take(batch.ids)

    def _missing(self, held: Held, batch: Batch) -> Tensor | None:
        if isinstance(held.column, RaggedColumn):
            missing = held.column.missing(batch.ids, length=_length(held, batch))
        else:
            assert held.column is not None
            missing = held.column.missing(batch.ids)
        if held.witness is not None:
            there = torch.arange(batch.size) if missing is None else (~missing).nonzero().flatten()
            digests = _digests(held, batch)[there]
            others = there[held.witness.take(batch.ids[there]) != digests]
            if len(others):
                missing = torch.zeros(batch.size, dtype=torch.bool) if missing is None else missing
                missing[others] = True
        return missing

    def _put(
        self,
        expression: Expression,
        held: Held,
        batch: Batch,
        ids: Tensor,
        value: Tensor,
        *,
        rows: Tensor | None = None,
    ) -> None:
        """Store values (n, ...) of samples; `rows` says which of the batch's they are, where that matters."""
        column = held.column
        assert column is not None
        if isinstance(column, RaggedColumn):
            fits = value.shape[1] == _length(held, batch) and tuple(value.shape[2:]) == column.rest
        else:
            fits = tuple(value.shape[1:]) == column.shape
        if not fits or column.put(ids, value.detach().cpu()) is False:
            why = "its room is used up" if fits else "its shape is not the same for all samples"
            self._give_up(held)
            self._say(f"{_name(expression)} is computed in every epoch from here on: {why}.")
        elif held.witness is not None:
            digests = _digests(held, batch)
            held.witness.put(ids, digests if rows is None else digests[rows])

    # ---- what is missing

    def _fill_rows(self, expression: Expression, held: Held, batch: Batch, missing: Tensor) -> None:
        """Compute rows of this batch: their values depend on how it is padded, or on real row arguments."""
        rows = missing.nonzero().flatten()
        whole = batch.known.get(expression)
        enough = rows if len(rows) > 1 or batch.size == 1 else rows.repeat(2)  # a single one is another case
        value = batch.part(enough).value(expression)[: len(rows)] if whole is None else whole[rows]
        self._put(expression, held, batch, batch.ids[rows], value, rows=rows)
        self._report.num_computed += len(rows) if held.has_module else 0

    def _fill(self, expression: Expression, held: Held, batch: Batch, missing: Tensor) -> None:
        """Compute what this batch lacks, and what the next ones lack, with all that the last batch needed."""
        assert isinstance(held.column, Column)
        ids = batch.ids[missing]
        is_single = batch.size == 1  # and so are all calls of the expression
        if batch.ahead is not None and held.has_module:
            # The full ones will ask for other expressions than a batch of one does.
            coming = [each for each in batch.ahead(batch.reach) if not is_single or len(each) == 1]
            ids = torch.cat([ids, *coming])
            absent = held.column.missing(ids)
            ids = ids if absent is None else ids[absent]
        ids = torch.unique(ids)
        if expression.is_ragged:  # those of a length together: less is computed on padding
            ids = ids[torch.tensor(batch.source.lengths(ids)).argsort(stable=True)]
        wanted = {expression: held}
        for each in batch.source.targets:
            if isinstance(each, Output) and each.call.is_single != is_single:
                continue  # in chunks of this size, its calls would do something else
            other = self.held.get(each)
            if other is None or other.witness is not None or not isinstance(other.column, Column):
                continue
            if not other.column.is_complete and _is_current(each):
                wanted[each] = other
        setting = held.setting or Setting(batch.size)
        random_state = capture_random_state()
        blocks = torch.split(ids, max(_BLOCK, setting.chunk_size))
        with memory_kept():
            for block, roots in zip(blocks, batch.source.stream(blocks), strict=True):
                self._compute(block, roots, wanted, setting, batch)
        if has_moved(random_state):
            # This batch is read once more, by itself, as the loader would.
            restore_random_state(random_state)
            batch.source.call_random()
            self._give_up(held)

    def _compute(
        self,
        ids: Tensor,
        roots: list[Tensor],
        wanted: dict[Expression, Held],
        setting: Setting,
        batch: Batch,
    ) -> None:
        """Compute samples whose tensors are `roots`, in chunks, and store what comes out."""
        coming = iter(torch.split(ids, setting.chunk_size))
        wanted_most = next(iter(wanted.values()))

        def compute(chunk: list[Tensor]) -> None:
            # no_grad, not inference_mode: what a module caches in that, it could never use in training when it thaws.
            evaluation = self._ahead(chunk, wanted_most)
            own = next(coming)  # without the copies that fill the chunk up
            for each, held in wanted.items():
                if held.column is not None:
                    self._put(each, held, batch, own, evaluation.value(each)[: len(own)].to(each.dtype))
                    self._report.num_computed += len(own) if held.has_module else 0

        setting.run(roots, compute)


def _is_current(expression: Expression) -> bool:
    """Whether its modules are what they were when they were called."""
    modules = (each.module for each in ancestry(expression) if isinstance(each, Call))
    return all(each is None or each.is_unchanged() for each in modules)


def _attempt(evaluation: Evaluation, expression: Expression) -> Tensor | None:
    """Give a value, or `None` where it cannot be computed: a size of the first batch stands in its arguments."""
    try:
        with _disable_current_modes():  # who counts FLOPs counts the step, and no check
            return evaluation.value(expression)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None


def _digests(held: Held, batch: Batch) -> Tensor:
    """Give for each sample of a batch a digest of what its value depends on, beside the sample itself."""
    digests = batch.digest_of_rows(held.calls_with_rows)
    if held.depends_on_padding:
        for root in batch.roots():
            digests = digests * 1_000_003 + hash(tuple(root.shape[1:]))
    return digests


def _length(held: Held, batch: Batch) -> int:
    assert held.length_of is not None
    return batch.roots()[held.length_of.index].shape[1]


def _name(expression: Expression) -> str:
    text = repr(expression)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} us"
