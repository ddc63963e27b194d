"""`Deferred`: a tensor of a batch that is known by its samples and by how it is computed, and holds no data.

A pure function of deferred tensors is recorded, and so is a call of a frozen module; both give deferred tensors. Whatever
else meets one (a trainable parameter, the loss, `.item()`, NumPy, an unknown function) *forces* it: its real value is looked
up or computed, and what follows is plain PyTorch. A program need not know that its batch is deferred.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch._ops import OpOverloadPacket

from headstart.deferred import modules, pure
from headstart.deferred.graph import Call, Evaluation, Expression, Output
from headstart.deferred.source import Source, has_moved
from headstart.deferred.structure import leaves_of, map_structure
from headstart.seed import capture_random_state

if TYPE_CHECKING:
    from headstart.deferred.reuse import Reuse


class UnrecordableError(Exception):
    """A call cannot be recorded: it is made on real values. The message says why."""


class Batch:
    """The samples of one batch, and what is known of them.

    Attributes:
        ids: Which samples, int64 (B,).
        reuse: Looks values up, or computes them.
        source: The data set's record.
        ahead: Gives the ids of the batches that come next, as many as asked for.
        known: Real values of the plain computation, as far as it was done.
        forced: Real values that were handed out, looked up or computed; `None` for one that is the program's own.
        rows: Real arguments of module calls that have a row per sample.
        num_recorded: The number of module calls that were recorded.
        reach: How many of the next batches are computed together with it, at the most.
        expected: What will be forced of it, if the program does what it did with the last one.
    """

    def __init__(
        self,
        ids: Tensor,
        *,
        reuse: Reuse,
        source: Source,
        ahead: Callable[[int], list[Tensor]] | None = None,
        reach: int = 0,
    ) -> None:
        self.ids = ids
        self.size = len(ids)
        self.reuse = reuse
        self.source = source
        self.ahead = ahead
        self.known: dict[Expression, Tensor] = {}
        self.rows: dict[Call, tuple[Tensor, ...]] = {}
        self.forced: dict[Expression, Tensor | None] = {}
        self.num_recorded = 0
        self.reach = reach
        self.expected: Mapping[Expression, Any] = {}
        self._roots: list[Tensor] | None = None
        self._digests: dict[int, Tensor] = {}

    def roots(self) -> list[Tensor]:
        """Give the batch's real tensors, fetched and collated as the loader would."""
        if self._roots is None:
            random_state = capture_random_state()
            self._roots = self.source.fetch(self.ids)
            if has_moved(random_state):  # as in the loader itself, so that they stay drawn
                self.source.call_random()
        return self._roots

    def digest_of_rows(self, calls: Sequence[Call]) -> Tensor:
        """Give for each sample a digest, int64 (B,), of the real row arguments of these calls."""
        digest = torch.zeros(self.size, dtype=torch.int64)
        for tensor in (each for call in calls for each in self.rows[call]):
            if id(tensor) not in self._digests:
                self._digests[id(tensor)] = _digest_of_rows(tensor)
            digest = digest * 1_000_003 + self._digests[id(tensor)]
        return digest

    def evaluation(self, *, anew: bool = False) -> Evaluation:
        """Give the plain computation on this batch; `anew` with values of its own, which may be changed in place."""
        if anew:
            return Evaluation([each.clone() for each in self.roots()], self.rows, size=self.size)
        return Evaluation(_LazyRoots(self), self.rows, size=self.size, known=self.known)

    def part(self, rows: Tensor) -> Evaluation:
        """Give the computation on some of its rows alone."""
        own = {call: tuple(each[rows.to(each.device)] for each in given) for call, given in self.rows.items()}
        return Evaluation([each[rows] for each in self.roots()], own, size=len(rows))


def _digest_of_rows(tensor: Tensor) -> Tensor:
    """Give a digest of each row of a tensor (B, ...): sums that wrap around, with odd weights."""
    rows = tensor.detach().cpu().contiguous().reshape(len(tensor), -1).view(torch.uint8).to(torch.int64)
    generator = torch.Generator().manual_seed(rows.shape[1])
    weights = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator) * 2 + 1
    return (rows * weights).sum(dim=1) * 31 + rows.shape[1]


class _LazyRoots(Sequence[Tensor]):
    """The batch's tensors, fetched when one is asked for."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return len(self._batch.source.roots)

    def __getitem__(self, index: Any) -> Any:
        return self._batch.roots()[index]


class Deferred(Tensor):
    """A tensor without data, of a batch; see the module's text."""

    batch: Batch
    expression: Expression
    target: torch.device  # where the program believes it to be
    own: Tensor | None  # its real value, where that may be changed in place, or be seen through a view
    family: list[weakref.ref[Deferred]]  # those that share memory in the plain computation

    def __new__(
        cls, batch: Batch, expression: Expression, device: torch.device, family: list[Any] | None = None
    ) -> Self:
        """Make one; `family` is that of the tensor whose memory it shares."""
        self = Tensor._make_wrapper_subclass(  # noqa: SLF001 (torch's way to make a tensor without data)
            cls, (batch.size, *expression.sample_shape), dtype=expression.dtype, device=device
        )
        self.batch = batch
        self.expression = expression
        self.target = device
        self.own = None
        self.family = [] if family is None else family
        self.family.append(weakref.ref(self))
        return self

    # ---- what is known without a value

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        """The shape (B, ...)."""
        if self.own is not None:
            return self.own.shape
        if self.expression.is_ragged and self.expression.sample_shape:
            return self.batch.reuse.shape_of(self)
        return torch.Size((self.batch.size, *self.expression.sample_shape))

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The number format."""
        return self.expression.dtype if self.own is None else self.own.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the real value will be."""
        return self.target if self.own is None else self.own.device

    @property
    def ndim(self) -> int:  # type: ignore[override]
        """The number of dimensions."""
        return 1 + len(self.expression.sample_shape) if self.own is None else self.own.ndim

    def dim(self) -> int:
        """Give the number of dimensions."""
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """Give the shape, or one of its numbers."""
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return self.batch.size if self.own is None else len(self.own)

    def force(self) -> Tensor:
        """Give the real value: looked up, or computed."""
        if self.own is not None:
            return self.own
        value = self.batch.reuse.value(self.expression, self.batch)
        return value if value.device == self.target else value.to(self.target)

    # ---- what happens when it is used

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        pending = next(_pending(args, kwargs), None)
        if pending is None:
            return _run(func, args, kwargs)
        if func in pure.MOVES and args[0] is pending:
            return _moved(pending, func, args, kwargs)
        if func in pure.METADATA or func in pure.LIKE:
            return func(*map_structure(args, _stand_in), **map_structure(kwargs, _stand_in))
        if any(isinstance(each, nn.Parameter) and each.requires_grad for each in args):
            return _run(func, args, kwargs)  # where most deferred tensors end: in the first layer that trains
        if func in pure.IN_PLACE and args[0] is pending and _is_alone(pending):
            return _changed(pending, func, args, kwargs, recorded=(pure.IN_PLACE[func], args, kwargs))
        if func in pure.PURE and kwargs.get("out") is None:
            if pure.flag(func, "inplace", args, kwargs):
                if args and args[0] is pending and _is_alone(pending):
                    recorded = (func, *pure.without_flag(func, "inplace", args, kwargs))
                    return _changed(pending, func, args, kwargs, recorded=recorded)
            elif not (func in pure.DROPOUTS and pure.flag(func, "training", args, kwargs)):
                return _record(func, args, kwargs, family=pending.family if func in pure.VIEWS else None)
        return _run(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch calls it so
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # What reaches the dispatcher came past __torch_function__: an operation below Python.
        kwargs = kwargs or {}
        if _may_alias(func):
            for each in list(_pending(args, kwargs)):
                _make_real(each)
        return func(*map_structure(args, _real), **map_structure(kwargs, _real))


def _pending(*values: Any) -> Iterator[Deferred]:
    """The deferred tensors in arguments that have no real value of their own."""
    for value in values:
        kind = type(value)
        if kind is Deferred:
            if value.own is None:
                yield value
        elif kind is tuple or kind is list:
            yield from _pending(*value)
        elif kind is dict or isinstance(value, Mapping):
            yield from _pending(*value.values())


def _real(leaf: Any) -> Any:
    return leaf.force() if type(leaf) is Deferred else leaf


def _stand_in(leaf: Any) -> Any:
    """A tensor of the same description, without room for its values."""
    if type(leaf) is not Deferred:
        return leaf
    return torch.empty((), dtype=leaf.dtype, device=leaf.device).expand(leaf.shape)


def _record(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    family: list[Any] | None = None,
) -> Any:
    """Record a function; where that cannot be, call it."""
    batch = next(_pending(args, kwargs)).batch
    try:
        return batch.reuse.record(batch, function, args, kwargs, family=family)
    except UnrecordableError:
        return _run(function, args, kwargs)


def _moved(
    tensor: Deferred, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """To a device, which is not computing; and to a number format, which is recorded."""
    if function is not torch.Tensor.to:
        args = (tensor, "cpu" if function is torch.Tensor.cpu else torch.device("cuda", *args[1:2]))
        kwargs = {}
    parse: Any = torch._C._nn._parse_to  # noqa: SLF001 (as `nn.Module.to` reads its arguments)
    device, dtype, _, memory_format = parse(*map(_stand_in, args[1:]), **kwargs)
    if device is not None and device != tensor.target:
        tensor = Deferred(tensor.batch, tensor.expression, device)
    if memory_format is not None:
        return _record(
            torch.Tensor.contiguous, (tensor,), {"memory_format": memory_format}, family=tensor.family
        )
    if dtype is not None and dtype != tensor.dtype:
        return _record(torch.Tensor.to, (tensor, dtype), {})
    return tensor


def _changed(
    tensor: Deferred,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    recorded: Any,
) -> Any:
    """Change a tensor in place: let it stand for what the same out of place gives, where that can be recorded."""
    try:
        result = tensor.batch.reuse.record(tensor.batch, *recorded)
    except UnrecordableError:
        return _run(function, args, kwargs)
    # In place, neither shape nor number format changes, and torch says so or rounds.
    if type(result) is not Deferred or (result.dtype, result.shape) != (tensor.dtype, tensor.shape):
        return _run(function, args, kwargs)
    tensor.expression = result.expression
    return tensor


def _is_alone(tensor: Deferred) -> bool:
    """Whether nothing else that is alive shares memory with it."""
    return all(each() is None or each() is tensor for each in tensor.family)


_MUTATING = frozenset(
    {"__setitem__", "__set__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__",
     "__ipow__", "__iand__", "__ior__", "__ixor__"}
)  # fmt: skip
# They give a way to the memory itself.
_MEMORY = frozenset(
    {"numpy", "__array__", "data_ptr", "storage", "untyped_storage", "__dlpack__", "_typed_storage"}
)
_FOR_GRADIENTS = frozenset({Tensor.requires_grad_, Tensor.requires_grad.__set__})  # type: ignore[attr-defined]


def _run(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function on real values, as plain PyTorch would: changes in place, and views, included."""
    pending = list(_pending(args, kwargs))
    name = getattr(function, "__name__", "")
    changes = name in _MUTATING or (name.endswith("_") and not name.endswith("__"))
    changes = changes or pure.flag(function, "inplace", args, kwargs)
    for each in (
        pending
        if name in _MEMORY or _may_alias(function)
        else [*_pending(args[:1] if changes else ()), *_pending(kwargs.get("out"))]
    ):
        _make_real(each)
    if function in _FOR_GRADIENTS and pending:
        pending[0].batch.reuse.say(
            "Gradients with respect to a batch, or to what frozen parts make of it, are asked for (requires_grad): where "
            "that is, frozen work is done in every epoch; set reuse_frozen=False if every step does so."
        )
    result = function(*map_structure(args, _real), **map_structure(kwargs, _real))
    if changes and args and type(args[0]) is Deferred and result is args[0].own:
        return args[0]
    viewed = [each for each in pending if each.own is None and _is_seen_through(each, result)]
    if not viewed:
        return result
    # A change of the view is a change of this tensor, and of no other.
    for each in viewed:
        _make_real(each)
    return function(*map_structure(args, _real), **map_structure(kwargs, _real))


def _may_alias(function: Any) -> bool:
    """Whether an operation of the dispatcher gives views of its arguments, or changes them."""
    if isinstance(function, OpOverloadPacket):
        return any(map(_may_alias, (getattr(function, name) for name in function.overloads())))  # type: ignore[no-untyped-call]
    schema = getattr(function, "_schema", None)
    return schema is not None and any(each.alias_info is not None for each in schema.arguments)


def _is_seen_through(tensor: Deferred, result: Any) -> bool:
    value = tensor.batch.forced.get(tensor.expression)
    return value is not None and any(_share_memory(value, leaf) for leaf in leaves_of(result))


def _share_memory(value: Tensor, leaf: Any) -> bool:
    if not isinstance(leaf, Tensor) or leaf.layout != torch.strided or value.layout != torch.strided:
        return False
    return leaf.numel() > 0 and leaf.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()


def _make_real(tensor: Deferred) -> None:
    """Give a tensor, and all that share memory with it, real values that share memory likewise."""
    alive = [each for ref in tensor.family if (each := ref()) is not None and each.own is None]
    evaluation = tensor.batch.evaluation(anew=True)
    for each in alive:
        value = evaluation.value(each.expression)
        each.own = value if value.device == each.target else value.to(each.target)


# ---- calls of modules


def call_module(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What stands in the place of `nn.Module.__call__`: frozen modules are recorded, all others are called."""
    pending = next(_pending(args, kwargs), None)
    if pending is None:
        return modules.plain_call(module, *args, **kwargs)
    try:
        return pending.batch.reuse.record_module(pending.batch, module, args, kwargs)
    except UnrecordableError:
        pass
    if modules.is_opaque(module):
        if any(not each.requires_grad for each in module.parameters()):
            pending.batch.reuse.say(
                f"Frozen work inside a {type(module).__name__} is done in every epoch: that is compiled or scripted as a "
                "whole; compile or script its parts instead."
            )
        args, kwargs = map_structure(args, _real), map_structure(kwargs, _real)
    return modules.plain_call(module, *args, **kwargs)


def real_values(value: Any) -> Any:
    """Give `value` with every deferred tensor in it as its real value.

    Example:
        >>> real_values({"loss": torch.ones(1)})
        {'loss': tensor([1.])}
    """
    return map_structure(value, _real) if next(_pending_or_real(value), None) is not None else value


def _pending_or_real(value: Any) -> Iterator[Deferred]:
    yield from (leaf for leaf in leaves_of(value) if type(leaf) is Deferred)


def deferred_outputs(call: Call, batch: Batch, device: torch.device, family: list[Any] | None) -> Any:
    """Give what a call gives, deferred; or its value, where that is at hand and nobody shares memory with it."""
    template = call.template
    if type(template) is Output:
        value = batch.reuse.at_hand(template, batch) if family is None else None
        if value is not None:
            return value if value.device == device else value.to(device)
        return Deferred(batch, template, device, family)
    family = [] if family is None else family  # tensors that one module gives may be views of each other

    def output(leaf: Any) -> Any:
        return Deferred(batch, leaf, device, family) if type(leaf) is Output else leaf

    return map_structure(template, output)
