"""The recorder: from a call on deferred tensors to a `Call`, the same object for the same call in every batch."""

from __future__ import annotations

import copy
import hashlib
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from headstart.deferred import modules, pure
from headstart.deferred.graph import (
    BATCH_SIZE,
    Call,
    Evaluation,
    Expression,
    Rows,
    ancestry,
    autocast_again,
    autocast_now,
)
from headstart.deferred.source import has_moved
from headstart.deferred.structure import leaves_of, map_structure
from headstart.deferred.tensor import Batch, Deferred, UnrecordableError, deferred_outputs
from headstart.seed import capture_random_state, restore_random_state

if TYPE_CHECKING:
    from headstart.deferred.modules import FrozenModule

# A constant tensor among the arguments of a call is part of its key, up to this many bytes.
_LARGEST_CONSTANT = 4 << 20
# One function of the same inputs with so many different constants: it is given another in every batch.
_MOST_VARIANTS = 64
# A batch of this many samples, and more than it has: no number in a call fits that by chance.
_OTHER_SIZE = 10_007
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
        self._num_variants: Counter[Any] = Counter()

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
        subject = frozen or function
        autocast = autocast_now(keys.device.type)
        key = (subject, autocast, keys.device, batch.size == 1, parts)
        call = self._calls.get(key)
        if call is None:
            call = Call(
                function if frozen is None else _Plainly(function),
                getattr(function, "__name__", "function").strip("_") if frozen is None else frozen.name,
                *_symbols(args, kwargs, batch.size, takes_rows=frozen is not None),
                autocast, keys.device, frozen, len(keys.rows), batch.size == 1,
            )  # fmt: skip
            variant = (subject, call.inputs)
            self._num_variants[variant] += 1
            if self._num_variants[variant] > _MOST_VARIANTS:
                raise UnrecordableError("its other arguments differ from batch to batch")
            self._calls[key] = call
            batch.rows[call] = _as_they_are_now(keys.rows)
            try:
                _first_run(call, batch)
            except BaseException:
                del self._calls[key]
                raise
            if call.refusal and frozen is not None:
                self._say(f"The work of {call.name} is done in every epoch: {call.refusal}.")
        if call.refusal:
            raise UnrecordableError(call.refusal)
        if keys.rows and not all(map(torch.equal, keys.rows, self._rows_of(call, batch, keys.rows))):
            raise UnrecordableError("it was called before with other arguments")
        if frozen is not None:
            batch.num_recorded += 1
        return deferred_outputs(call, batch, keys.device, family)

    @staticmethod
    def _rows_of(call: Call, batch: Batch, rows: list[Tensor]) -> tuple[Tensor, ...]:
        if call not in batch.rows:
            batch.rows[call] = _as_they_are_now(rows)
        return batch.rows[call]

    def forget(self, is_gone: Callable[[Call], bool]) -> None:
        """Forget calls, and all that were made on what they give."""
        self._calls = {
            key: call
            for key, call in self._calls.items()
            if not any(isinstance(each, Call) and is_gone(each) for x in call.inputs for each in ancestry(x))
            and not is_gone(call)
        }
        self._num_variants.clear()


def _as_they_are_now(rows: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Give copies: the program may change its own before the call is computed."""
    return tuple(each.detach().clone() for each in rows)


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
    is_pending = bool(args) and type(args[0]) is Deferred and args[0].own is None
    if function in pure.VIEWS and function not in pure.OF_SEVERAL and not is_pending:
        raise UnrecordableError("it gives a view of a real tensor")
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
        if kind is float:
            return (kind, value.hex())  # 0.0 == -0.0
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
        if type(value) not in {Tensor, nn.Parameter}:
            raise UnrecordableError(f"an argument is a {type(value).__name__}")
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
        call.refusal = _unfit(result, batch.size) or _refusal_by_size(call, result, evaluation, batch.size)
    else:
        result = _first_run_of_module(call, call.module, batch)
    if not call.refusal:
        for output, tensor in zip(call.outputs_of(result), _tensors(result), strict=True):
            batch.known[output] = tensor


def _refusal_by_size(call: Call, result: Any, evaluation: Evaluation, size: int) -> str:
    """Ask for the shapes that a function gives for another number of samples: `x[:8]` is all of this batch, not of any."""
    if size == 1:
        return ""

    other_size = _OTHER_SIZE + 2 * size

    def larger(leaf: Any) -> Any:
        if isinstance(leaf, Expression):
            value = evaluation.value(leaf)
            shape = (other_size, *value.shape[1:])
            return torch.empty_strided(shape, value.stride(), dtype=value.dtype, device="meta")
        if isinstance(leaf, Tensor):
            return leaf.to("meta") if leaf.ndim else leaf
        return other_size if leaf is BATCH_SIZE else leaf

    try:
        with torch.no_grad(), _disable_current_modes():
            found = call.function(*map_structure(call.args, larger), **map_structure(call.kwargs, larger))
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError):
        found = None
    expected = [(other_size, *each.shape[1:]) for each in _tensors(result)]
    if [tuple(each.shape) for each in _tensors(found)] == expected:
        return ""
    return "what it gives is not a row for every sample in a batch of another size"


def _first_run_of_module(call: Call, frozen: FrozenModule, batch: Batch) -> Any:
    plain = batch.evaluation()
    # What it may do to its inputs, it does to copies.
    inputs = {each: plain.value(each).clone() for each in call.inputs}
    evaluation = Evaluation((), batch.rows, size=batch.size, known=dict(inputs))
    rows = _as_they_are_now(batch.rows[call])
    random_state = capture_random_state()
    before = _Before(frozen.module)
    result = None
    try:
        begun = time.perf_counter()
        result = evaluation.run(call)
        call.seconds = (time.perf_counter() - begun) / batch.size
        call.refusal = _unfit(result, batch.size)
        if not call.refusal and frozen.has_own_attributes():
            call.refusal = _look_at_reads(call, frozen, batch)
    except Exception as error:  # noqa: BLE001 (it will be raised by the plain call, if it is the program's own)
        call.refusal = f"without gradients, by itself, it raises {type(error).__name__}"
    places = {each.untyped_storage().data_ptr() for each in evaluation.known.values()}
    if call.refusal:
        pass
    elif has_moved(random_state):
        call.refusal = "it draws random numbers"
    elif any(not _same(inputs[each], plain.value(each)) for each in call.inputs):
        call.refusal = "it changes its input in place"
    elif not all(map(_same, rows, batch.rows[call])):
        call.refusal = "it changes its arguments in place"
    elif any(each.untyped_storage().data_ptr() in places for each in _tensors(result)):
        call.refusal = "it hands its input through"
    elif not (frozen.is_unchanged() and frozen.has_own_attributes()):
        call.refusal = "it changes its own buffers or attributes"
    if call.refusal:
        # It will be called once more, on real values: as if this had not been.
        restore_random_state(random_state)
        before.restore()
    return result


class _Before:
    """The state of a module before its first run."""

    def __init__(self, module: nn.Module) -> None:
        self._attributes = [(each, dict(vars(each))) for each in module.modules()]
        values = [value for _, attributes in self._attributes for value in attributes.values()]
        self._containers = [(each, copy.copy(each)) for each in values if isinstance(each, list | dict | set)]
        self._buffers = [(each, each.clone()) for each in module.buffers()]

    def restore(self) -> None:
        for module, attributes in self._attributes:
            vars(module).clear()
            vars(module).update(attributes)
        for container, elements in self._containers:
            container.clear()
            container.extend(elements) if isinstance(container, list) else container.update(elements)
        with torch.no_grad():
            for buffer, content in self._buffers:
                if not _same(buffer, content):
                    buffer.copy_(content)


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes down which tensors are read that were there before, and are not among those that are known."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places = {_place(each) for each in known}
        self._found: dict[int, weakref.ref[Tensor]] = {}
        self.trains = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in leaves_of((args, kwargs or {})):
            if isinstance(leaf, Tensor) and leaf.numel() and _place(leaf) not in self._places:
                self._found[id(leaf)] = weakref.ref(leaf)
                self.trains = self.trains or leaf.requires_grad
        result = func(*args, **(kwargs or {}))
        self._places.update(_place(leaf) for leaf in leaves_of(result) if isinstance(leaf, Tensor))
        return result

    def found(self) -> list[Tensor]:
        """Give those that are still there: the others were made by the call."""
        return [each for ref in self._found.values() if (each := ref()) is not None]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def _look_at_reads(call: Call, frozen: FrozenModule, batch: Batch) -> str:
    """Run a module on two samples, to see whether it reads tensors that are not its own; let them be watched."""
    part = batch.part(torch.arange(min(2, batch.size)))
    args, kwargs = part.arguments(call)
    given = [leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Tensor)]
    own = [*frozen.module.parameters(), *frozen.module.buffers()]
    reads = _Reads([*given, *own])
    with torch.no_grad(), autocast_again(call.autocast), _disable_current_modes(), reads:
        result = call.function(*args, **kwargs)
    if reads.trains:
        return "it reads a tensor that trains and is no parameter of it; register that as one"
    if found := reads.found():
        frozen.also_reads(found)
    return _unfit(result, min(2, batch.size))


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, NaN to NaN."""
    return torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num())


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in leaves_of(result) if isinstance(leaf, Tensor)]


def _unfit(result: Any, size: int) -> str:
    """Why what a call gives cannot be kept by sample; empty where it can."""
    for leaf in leaves_of(result):
        if isinstance(leaf, Tensor):
            if leaf.ndim == 0 or leaf.shape[0] != size:
                return f"it gives a tensor of the shape {tuple(leaf.shape)} for {size} samples"
            if leaf.layout != torch.strided or type(leaf) is not Tensor:
                return "it gives a tensor of an own kind"
        elif not isinstance(leaf, _PLAIN):
            return f"it gives a {type(leaf).__name__}"
    if not _tensors(result):
        return "it gives no tensor"
    try:
        map_structure(result, lambda leaf: leaf)
    except Exception:  # noqa: BLE001 (a container of the program's own is built in its own way)
        return f"it gives a {type(result).__name__}"
    return ""


def expressions_from(held: Mapping[Expression, Any], is_gone: Callable[[Call], bool]) -> list[Expression]:
    """Give those expressions that depend on calls that are gone."""
    return [
        expression
        for expression in held
        if any(isinstance(each, Call) and is_gone(each) for each in ancestry(expression))
    ]
