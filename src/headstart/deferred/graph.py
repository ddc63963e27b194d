"""What a deferred value is computed from: expressions, interned, and their evaluation on real values.

An `Expression` is a tensor with a row per sample: a `Root` (part of a batch, as the loader collates it) or an `Output` (one
of the tensors that a `Call` of a frozen module or a pure function gives). Equal expressions are one object, in every batch
and every epoch, so an expression is a key. It names everything that its value depends on: the functions, their constant
arguments, the frozen modules with the state of their weights, and the autocast state of each call.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headstart.deferred.structure import leaves_of, map_structure
from headstart.errors import MisconfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from headstart.deferred.modules import FrozenModule

# (device type, dtype), or None where autocast is off
Autocast = tuple[str, torch.dtype] | None


class Expression:
    """A tensor whose first dimension is the sample.

    Attributes:
        sample_shape: Shape of one sample's row, as it was first seen.
        dtype: Of the values.
        device: Where they are computed.
        channels_last: Whether the plain computation gives this memory format.
        is_ragged: Whether the shape may differ from batch to batch.
        feeds_another: Whether something else was ever computed from it.
    """

    __slots__ = ("channels_last", "device", "dtype", "feeds_another", "is_ragged", "sample_shape")

    def __init__(self, example: Tensor, *, is_ragged: bool) -> None:
        self.is_ragged = is_ragged
        self.feeds_another = False
        self.see(example)

    def see(self, example: Tensor) -> None:
        """Take the description of a value of this expression (B, *sample_shape)."""
        self.sample_shape = tuple(example.shape[1:])
        self.dtype = example.dtype
        self.device = example.device
        self.channels_last = (
            example.ndim == 4
            and not example.is_contiguous()
            and example.is_contiguous(memory_format=torch.channels_last)
        )


class Root(Expression):
    """A tensor of the batch."""

    __slots__ = ("index",)

    def __init__(self, index: int, example: Tensor, *, is_ragged: bool) -> None:
        super().__init__(example, is_ragged=is_ragged)
        self.index = index

    def __repr__(self) -> str:
        return f"batch[{self.index}]"


class Output(Expression):
    """One of the tensors that a call gives."""

    __slots__ = ("call", "index")

    def __init__(self, call: Call, index: int, example: Tensor) -> None:
        super().__init__(example, is_ragged=call.is_ragged)
        self.call = call
        self.index = index

    def __repr__(self) -> str:
        return repr(self.call) if len(self.call.outputs) == 1 else f"{self.call!r}[{self.index}]"


class Rows:
    """In a call's arguments: a real tensor with a row per sample, given anew with every batch."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


class BatchSize:
    """In a call's arguments: the number of samples."""


BATCH_SIZE = BatchSize()


@dataclass(eq=False, slots=True)
class Call:
    """A frozen module, or a pure function, applied to expressions.

    Attributes:
        function: Called with real values.
        name: For people.
        args: With `Expression`, `Rows` and `BATCH_SIZE` in the place of what differs from batch to batch.
        kwargs: Likewise.
        autocast: The autocast state in which it was called.
        device: Where its arguments are.
        module: The frozen module's record, or `None`.
        num_rows: The number of `Rows`.
        is_single: Whether it was made on a batch of one sample, which is another case: `squeeze` takes its dimension away.
        template: What it gives, with `Output`s in the place of tensors; `None` until it has run once.
        refusal: Why what it gives must not be looked up; empty where it may.
        seconds: Of its first run, a sample.
    """

    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: Autocast
    device: torch.device
    module: FrozenModule | None = None
    num_rows: int = 0
    is_single: bool = False
    template: Any = None
    outputs: list[Output] = field(default_factory=list)
    refusal: str = ""
    seconds: float = 0.0
    inputs: tuple[Expression, ...] = ()

    def __post_init__(self) -> None:
        found = leaves_of((self.args, self.kwargs))
        self.inputs = tuple(dict.fromkeys(each for each in found if isinstance(each, Expression)))
        for each in self.inputs:
            each.feeds_another = True

    @property
    def is_ragged(self) -> bool:
        """Whether the shapes of what it gives may differ from batch to batch."""
        return any(each.is_ragged for each in self.inputs)

    def outputs_of(self, result: Any) -> list[Output]:
        """Take down what the first run gave; give an output for each tensor in it."""

        def slot(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            self.outputs.append(Output(self, len(self.outputs), leaf))
            return self.outputs[-1]

        self.template = map_structure(result, slot)
        return self.outputs

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(map(repr, self.inputs))})"


def ancestry(expression: Expression) -> Iterator[Expression | Call]:
    """Give an expression, and every expression and call that it depends on, each once."""
    seen: set[int] = set()
    waiting: list[Expression | Call] = [expression]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, Output):
            waiting.append(each.call)
        elif isinstance(each, Call):
            waiting += each.inputs


class Evaluation:
    """Real values for expressions, on some rows of one batch.

    Args:
        roots: The batch's tensors, by index, each with a row per sample.
        rows: The real row arguments of the calls that take some.
        size: The number of rows.
        known: Values that are known already.
        dtype: The autocast format of modules that were called without one; `None` for none.
        compiled: Run modules through `torch.compile`.

    Example:
        >>> images = Root(0, torch.ones(2, 3), is_ragged=False)
        >>> call = Call(torch.relu, "relu", (images,), {}, None, torch.device("cpu"))
        >>> (output,) = call.outputs_of(torch.ones(2, 3))
        >>> Evaluation([-torch.ones(2, 3)], {}, size=2).value(output)
        tensor([[0., 0., 0.],
                [0., 0., 0.]])
    """

    def __init__(
        self,
        roots: Sequence[Tensor],
        rows: Mapping[Call, tuple[Tensor, ...]],
        *,
        size: int,
        known: dict[Expression, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        self._roots = roots
        self._rows = rows
        self._size = size
        self._dtype = dtype
        self._compiled = compiled
        self.known: dict[Expression, Tensor] = {} if known is None else known

    def value(self, expression: Expression) -> Tensor:
        """Give the value (B, ...) of an expression."""
        found = self.known.get(expression)
        if found is not None:
            return found
        if isinstance(expression, Root):
            value = self._roots[expression.index]
            self.known[expression] = value
            return value
        assert isinstance(expression, Output)
        self.run(expression.call)
        return self.known[expression]

    def run(self, call: Call) -> Any:
        """Call with real values, keep its tensors, and give what it gives."""
        args, kwargs = self.arguments(call)
        if call.module is not None and not call.module.is_unchanged():
            raise MisconfigurationError(
                f"{call.name} has changed since it was called, and what it gave then is only now used, so that it was not "
                "yet computed. Use it before the change, or set reuse_frozen=False (in a loop of your own: take the batches "
                "from the loader itself)."
            )
        function, autocast = call.function, call.autocast
        evaluating: AbstractContextManager[None] = nullcontext()
        if call.module is not None:
            evaluating = call.module.evaluating()
            function = call.module.compiled if self._compiled else function
            if autocast is None and self._dtype is not None:
                autocast = (call.device.type, self._dtype)
        # What is deferred never asks for gradients, not even if it was called where others do.
        with torch.no_grad(), autocast_again(autocast), evaluating:
            result = function(*args, **kwargs)
        if call.template is not None:
            tensors = [each for each in leaves_of(result) if isinstance(each, Tensor)]
            if any(len(each) != self._size for each in tensors):
                raise ValueError(f"{call.name} does not give a row for each of {self._size} samples")
            for output, tensor in zip(call.outputs, tensors, strict=True):
                self.known[output] = tensor
        return result

    def arguments(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the real arguments of a call."""
        rows = self._rows.get(call, ())

        def real(leaf: Any) -> Any:
            if isinstance(leaf, Expression):
                value = self.value(leaf)
                return value if value.device == call.device else value.to(call.device)
            if isinstance(leaf, Rows):
                return rows[leaf.index]
            return self._size if leaf is BATCH_SIZE else leaf

        return map_structure(call.args, real), map_structure(call.kwargs, real)


def autocast_now(device_type: str) -> Autocast:
    """Give the autocast state of a kind of device."""
    if not torch.is_autocast_enabled(device_type):
        return None
    return device_type, torch.get_autocast_dtype(device_type)


def autocast_again(state: Autocast) -> AbstractContextManager[Any]:
    """Give the context of an autocast state that was recorded."""
    if state is None:
        # Off where it was off, should a later caller have it on.
        on = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
        return torch.autocast(on[0], enabled=False) if on else nullcontext()
    return torch.autocast(state[0], dtype=state[1])
