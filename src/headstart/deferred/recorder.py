"""The recorder: from a call on deferred tensors to a `Call`, the same object for the same call in every batch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headstart.deferred import modules, pure
from headstart.deferred.graph import (
    BATCH_SIZE,
    Call,
    Evaluation,
    Expression,
    Rows,
    ancestry,
    autocast_now,
)
from headstart.deferred.structure import leaves_of, map_structure
from headstart.deferred.tensor import Batch, Deferred, UnrecordableError, deferred_outputs
from headstart.seed import capture_random_state, restore_random_state

if TYPE_CHECKING:
    from headstart.deferred.modules import FrozenModule

# A constant tensor among the arguments of a call is part of its key, up to this many bytes.
_LARGEST_CONSTANT = 4 << 20
_PLAIN = (
    bool,
    int,
    float,
    str,
    torch.dtype,
    torch.device,
    torch.memory_format,
    torch.layout,
    type(None),
    type(...),
)


class Recorder:
    """Records calls.

    Args:
        say: Tells the user, once, what could have been recorded and why it is not.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._calls: dict[Any, Call] = {}

    def record(
        self,
        batch: Batch,
        function: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        family: list[Any] | None = None,
        frozen: FrozenModule | None = None,
    ) -> Any:
        """Record a call, and give what it gives, deferred.

        Args:
            batch: The batch whose tensors it takes.
            function: A pure function, or the frozen module.
            args: Its arguments.
            kwargs: Its arguments.
            family: Those with whom a view shares memory.
            frozen: The frozen module's record.

        Raises:
            UnrecordableError: If it must be made on real values.
        """
        if frozen is None:
            args = _checked(function, args, kwargs, batch.size)
        keys = _Keys(batch, takes_rows=frozen is not None)
        parts = keys.of(args), keys.of(kwargs)
        subject = function if frozen is None else (id(frozen), frozen.version)
        autocast = autocast_now(keys.device.type)
        key = (subject, autocast, keys.device, parts)
        rows = tuple(keys.rows)
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = Call(
                function if frozen is None else _Plainly(function),
                getattr(function, "__name__", "function").strip("_") if frozen is None else frozen.name,
                *_symbols(args, kwargs, batch.size, takes_rows=frozen is not None),
                autocast, keys.device, frozen, len(rows),
            )  # fmt: skip
            batch.rows[call] = rows
            _first_run(call, batch)
            if call.refusal and frozen is not None:
                self._say(f"The work of {call.name} is done in every epoch: {call.refusal}.")
        if call.refusal:
            raise UnrecordableError(call.refusal)
        if rows:
            before = batch.rows.setdefault(call, rows)
            if any(one is not other for one, other in zip(before, rows, strict=True)):
                raise UnrecordableError("it was called before with other arguments")
        if frozen is not None:
            batch.num_recorded += 1
        return deferred_outputs(call, batch, keys.device, family)

    def forget(self, is_gone: Callable[[Call], bool]) -> None:
        """Forget calls, and all that were made on what they give."""
        self._calls = {
            key: call
            for key, call in self._calls.items()
            if not any(isinstance(each, Call) and is_gone(each) for x in call.inputs for each in ancestry(x))
            and not is_gone(call)
        }


class _Plainly:
    """A module's own call, whatever stands in its place."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return modules.plain_call(self.module, *args, **kwargs)


def _checked(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], size: int) -> tuple[Any, ...]:
    """Refuse calls whose shape values decide; put the batch's size in the place of its number."""
    if function is torch.Tensor.__getitem__ and any(isinstance(leaf, Tensor) for leaf in leaves_of(args[1])):
        raise UnrecordableError("which rows are taken may depend on values")
    if function is torch.where and len(args) + len(kwargs) < 3:
        raise UnrecordableError("how many indices there are depends on values")
    if function in pure.SIZED and len(args) > 1:
        first, *others = args[1:]
        if type(first) is int and first == size:
            return (args[0], BATCH_SIZE, *others)
        if isinstance(first, tuple | list) and first and type(first[0]) is int and first[0] == size:
            return (args[0], (BATCH_SIZE, *first[1:]), *others)
    return args


class _Keys:
    """What tells one call from another.

    Args:
        batch: The batch whose tensors are deferred.
        takes_rows: Whether a real tensor with a row per sample may be an argument.
    """

    def __init__(self, batch: Batch, *, takes_rows: bool) -> None:
        self._batch = batch
        self._takes_rows = takes_rows
        self.rows: list[Tensor] = []
        self.device = torch.device("cpu")

    def of(self, value: Any) -> Any:
        """Give something hashable that is equal for equal arguments, and for those alone."""
        kind = type(value)
        if kind is Deferred and value.own is None:
            if value.batch is not self._batch:
                raise UnrecordableError("its arguments are of two batches")
            self.device = value.target
            return value.expression
        if kind is tuple or kind is list:
            return (kind, *map(self.of, value))
        if kind is dict:
            return (dict, *((key, self.of(each)) for key, each in value.items()))
        if kind is slice:
            return (slice, self.of(value.start), self.of(value.stop), self.of(value.step))
        if isinstance(value, _PLAIN) or value is BATCH_SIZE:
            return (kind, value)
        if isinstance(value, Tensor):
            return self._of_tensor(value.own if isinstance(value, Deferred) else value)
        if isinstance(value, tuple):
            return (kind, *(self.of(each) for each in value))
        if isinstance(value, Mapping):
            return (kind, *((key, self.of(each)) for key, each in value.items()))
        raise UnrecordableError(f"an argument is a {kind.__name__}")

    def _of_tensor(self, value: Tensor | None) -> Any:
        assert value is not None
        if value.requires_grad:
            raise UnrecordableError("an argument trains")
        if value.ndim and value.shape[0] == self._batch.size and (self._takes_rows or self._batch.size > 1):
            if not self._takes_rows:
                raise UnrecordableError("an argument has a row per sample")
            self.rows.append(value)
            return (Rows, len(self.rows), value.dtype, value.ndim, value.device)
        if value.layout != torch.strided or value.numel() * value.element_size() > _LARGEST_CONSTANT:
            raise UnrecordableError("an argument is too large to be a constant")
        return (Tensor, tuple(value.shape), value.dtype, value.device, digest_of(value))


def digest_of(value: Tensor) -> bytes:
    """Give a digest of a tensor's content.

    Example:
        >>> digest_of(torch.ones(3)) == digest_of(torch.ones(3)), digest_of(torch.ones(3)) == digest_of(torch.zeros(3))
        (True, False)
    """
    data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(data.tobytes(), digest_size=16).digest()


def _symbols(
    args: tuple[Any, ...], kwargs: dict[str, Any], size: int, *, takes_rows: bool
) -> tuple[Any, Any]:
    """Give the arguments with expressions and rows in the place of what differs from batch to batch."""
    num_rows = 0

    def symbol(leaf: Any) -> Any:
        nonlocal num_rows
        if type(leaf) is Deferred:
            if leaf.own is None:
                return leaf.expression
            leaf = leaf.own
        if not isinstance(leaf, Tensor):
            return leaf
        if takes_rows and leaf.ndim and leaf.shape[0] == size:
            num_rows += 1
            return Rows(num_rows - 1)
        return leaf.detach().clone()  # as it is now: what it becomes later is another constant

    return map_structure(args, symbol), map_structure(kwargs, symbol)


# ---- the first run


def _first_run(call: Call, batch: Batch) -> None:
    """Make a call for real, to see what it gives; and what else it does, which must be nothing."""
    if call.module is None:
        evaluation = batch.evaluation()
        begun = time.perf_counter()
        result = evaluation.run(call)
        call.seconds = (time.perf_counter() - begun) / batch.size
        call.refusal = _unfit(result, batch.size)
    else:
        result = _first_run_of_module(call, call.module, batch)
    if not call.refusal:
        for output, tensor in zip(call.outputs_of(result), _tensors(result), strict=True):
            batch.known[output] = tensor


def _first_run_of_module(call: Call, frozen: FrozenModule, batch: Batch) -> Any:
    plain = batch.evaluation()
    # What it may do to its inputs, it does to copies.
    inputs = {each: plain.value(each).clone() for each in call.inputs}
    evaluation = Evaluation(batch.roots(), batch.rows, size=batch.size, known=dict(inputs))
    random_state = capture_random_state()
    buffers = [(each, each.clone()) for each in frozen.module.buffers()]
    begun = time.perf_counter()
    result = evaluation.run(call)
    call.seconds = (time.perf_counter() - begun) / batch.size
    call.refusal = _unfit(result, batch.size)
    places = {each.untyped_storage().data_ptr() for each in evaluation.known.values()}
    if call.refusal:
        pass
    elif has_moved(random_state):
        call.refusal = "it draws random numbers"
    elif any(not torch.equal(inputs[each], plain.value(each)) for each in call.inputs):
        call.refusal = "it changes its input in place"
    elif any(each.untyped_storage().data_ptr() in places for each in _tensors(result)):
        call.refusal = "it hands its input through"
    elif not frozen.is_unchanged():
        call.refusal = "it changes its own buffers"
    if call.refusal:
        # It will be called once more, on real values: as if this had not been.
        restore_random_state(random_state)
        if not frozen.is_unchanged():
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            frozen.look()
    return result


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in leaves_of(result) if isinstance(leaf, Tensor)]


def _unfit(result: Any, size: int) -> str:
    """Why what a call gives cannot be kept by sample; empty where it can."""
    for leaf in leaves_of(result):
        if isinstance(leaf, Tensor):
            if leaf.ndim == 0 or leaf.shape[0] != size:
                return f"it gives a tensor of the shape {tuple(leaf.shape)} for {size} samples"
            if leaf.layout != torch.strided:
                return "it gives a sparse tensor"
        elif not isinstance(leaf, _PLAIN):
            return f"it gives a {type(leaf).__name__}"
    return "" if _tensors(result) else "it gives no tensor"


def has_moved(random_state: dict[str, Any]) -> bool:
    """Whether a random number was drawn since `random_state` was captured."""
    before, now = list(leaves_of(random_state)), list(leaves_of(capture_random_state()))
    return any(
        not torch.equal(one, other) if isinstance(one, Tensor) else one != other
        for one, other in zip(before, now, strict=True)
    )


def expressions_from(held: Mapping[Expression, Any], is_gone: Callable[[Call], bool]) -> list[Expression]:
    """Give those expressions that depend on calls that are gone."""
    return [
        expression
        for expression in held
        if any(isinstance(each, Call) and is_gone(each) for each in ancestry(expression))
    ]
