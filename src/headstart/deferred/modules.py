"""Frozen modules: whether a call of one may be deferred, and whether their state is still what it was."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from operator import attrgetter, methodcaller
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.utils.hooks import RemovableHandle

from headstart.deferred.fingerprint import StateSum, signature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_versions = attrgetter("_version")
_requires_grad = attrgetter("requires_grad")
_training = attrgetter("training")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_hooks = attrgetter(*_HOOKS)
_tables = attrgetter("_modules", "_parameters", "_buffers")
_description = attrgetter("dtype", "device", "shape")
_values_of = methodcaller("values")
_GLOBAL_HOOKS = tuple(getattr(torch_modules, f"_global{hooks}") for hooks in _HOOKS)

# So many tensors of a module, from the first to the last, are looked into at every call: one number of each.
_NUM_WATCHED = 16

# The calls of every module and every autograd function, before anything is put in their way.
plain_call: Callable[..., Any] = nn.Module.__call__
_plain_set: Callable[..., None] = nn.Module.__setattr__
_plain_apply = torch.autograd.Function.__dict__["apply"]


class FrozenModule:
    """A module with all that its output depends on, as it was at one moment.

    Attributes:
        name: For people.
        is_frozen: Whether nothing in it trains.
        foreign: Tensors that it reads and that are no parameters or buffers of it.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = module
        self.name = name
        self._modules = list(module.modules())
        self._ids = frozenset(map(id, self._modules))
        self._hooks = list(chain.from_iterable(map(_hooks, self._modules)))
        self._parameters = list(module.parameters())
        self.foreign: list[Tensor] = []
        self._tensors = [*self._parameters, *module.buffers()]
        self.is_frozen = not any(map(_requires_grad, self._parameters))
        self._is_evaluating = False
        self._as_of: tuple[int, int] | None = None
        self._look()

    @cached_property
    def compiled(self) -> Callable[..., Any]:
        """What it computes, through `torch.compile`."""
        compiled: Callable[..., Any] = torch.compile(self.module.forward)
        return compiled

    def _look(self) -> None:
        self._since = _Clocks.clock
        # An inference tensor has no version; its content is looked at every epoch.
        self._versioned = [each for each in self._tensors if not each.is_inference()]
        self._spread = self._tensors[:: -(-len(self._tensors) // _NUM_WATCHED) or 1]
        self._watched = _one_number_of_each(self._spread)
        self._numbers = torch.cat(self._watched) if self._watched else None
        self._state = self._quick()
        self._layout = self._layout_now()
        self._sum = StateSum(self._tensors)
        self._content = self._sum.value()
        self._attributes = _attributes_of(self._modules)

    def also_reads(self, tensors: Sequence[Tensor]) -> None:
        """Watch tensors that are no parameters or buffers of it, and are read by it all the same."""
        known = set(map(id, self._tensors))
        new = [each for each in tensors if id(each) not in known]
        self.foreign += new
        self._tensors += new
        self._look()

    def is_evaluating(self) -> bool:
        """Whether, at this moment, all of it is in evaluation mode and nobody's hook wants to see its calls.

        Asked at every call, so it is looked at anew only when some module was given a mode, or some hook registered.
        """
        now = (_Clocks.modes_clock, RemovableHandle.next_id)
        if now != self._as_of:
            self._as_of = now
            self._is_evaluating = not (
                any(map(_training, self._modules)) or any(self._hooks) or any(_GLOBAL_HOOKS)
            )
        return self._is_evaluating

    def is_unchanged(self) -> bool:
        """Whether weights, freezing and attributes are what they were: asked at every call, so it is quick."""
        return (
            self._state == self._quick()
            and (self._numbers is None or torch.equal(self._numbers, torch.cat(self._watched)))
            and not _Clocks.were_set(self._ids, since=self._since)
        )

    def is_unchanged_inside(self) -> bool:
        """Whether also nothing was edited past torch's version counters, or replaced: asked at every epoch."""
        self._as_of = None
        return (
            self.is_unchanged()
            and self._layout == self._layout_now()
            and self._content == self._sum.value()
            and self.has_own_attributes()
        )

    def has_own_attributes(self) -> bool:
        """Whether the attributes of its modules are what they were; asked after a call of it."""
        return self._attributes == _attributes_of(self._modules)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Let its modules be in evaluation mode while the block runs: a program may have called `train()` since."""
        training = [each for each in self._modules if each.training]
        for each in training:
            each.training = False
        try:
            yield
        finally:
            for each in training:
                each.training = True

    def _quick(self) -> tuple[Any, ...]:
        return (
            any(map(_requires_grad, self._parameters)),
            list(map(_versions, self._versioned)),
            list(map(Tensor.data_ptr, self._spread)),
        )

    def _layout_now(self) -> tuple[Any, ...]:
        """Give what its modules consist of, and where in memory each tensor lies."""
        tables = list(chain.from_iterable(map(_tables, self._modules)))
        return (
            list(map(len, tables)),
            list(map(id, chain.from_iterable(map(_values_of, tables)))),
            list(map(_description, self._tensors)),
            list(map(Tensor.stride, self._tensors)),
            list(map(Tensor.data_ptr, self._tensors)),
        )

    def obstacle(self) -> str:
        """Say why a call of it cannot be deferred now, and what to do; empty where it can."""
        for name, each in self.module.named_modules():
            path = ".".join(filter(None, (self.name, name)))
            if each.training:
                return f"{path} ({type(each).__name__}) is in training mode; call its eval() if it is meant to be frozen"
            if any(_hooks(each)):
                return f"{path} ({type(each).__name__}) has hooks, which must see every batch; remove them"
        return ""


# What every module has, and its mode, which is another matter.
_BOOKKEEPING = frozenset(vars(nn.Module())) | {"_trainer"}
_SCALARS = frozenset({bool, int, float, str, type(None), torch.dtype})


def _attributes_of(modules: Sequence[nn.Module]) -> tuple[Any, ...]:
    """Give what modules keep in attributes: numbers and words, and a signature of everything else, classes too."""
    scalars: list[Any] = []
    others: dict[int, Any] = {}  # each once: a configuration stands in many modules
    for each in modules:
        kind = type(each)  # with its attributes and functions, and the globals that they use
        others[id(kind)] = kind
        for name, value in vars(each).items():
            if name in _BOOKKEEPING:
                continue
            if type(value) in _SCALARS or (type(value) is tuple and _SCALARS.issuperset(map(type, value))):
                scalars.append((name, value))
            elif not isinstance(value, nn.Module):
                others[id(value)] = value
    return scalars, signature(list(others.values()))


@torch.no_grad()
def _one_number_of_each(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Give a view of one number of each of these tensors, where that can be.

    Version counters do not show what is done through `.data`, as averaged teachers and old optimizers do it; but that
    changes nearly every number.
    """
    fit = [
        each for each in tensors if each.layout == torch.strided and each.is_floating_point() and each.numel()
    ]
    fit = [
        each
        for each in fit
        if each.device == fit[0].device and each.dtype == fit[0].dtype and not each.is_meta
    ]
    return [each.detach().as_strided((1,), (1,), each.storage_offset()) for each in fit]


def is_opaque(module: nn.Module) -> bool:
    """Whether a module's insides take real tensors only: what is scripted or compiled."""
    return (
        isinstance(module, torch.jit.ScriptModule)
        or type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
    )


# ---- what is put in the way of every call


class _Clocks:
    """When attributes of modules were set: a module that is told `scale = 2.0` gives something else from then on."""

    clock = 0
    modes_clock = 0  # of `training`
    last_set: dict[int, int] = {}  # noqa: RUF012 (there is one `nn.Module`, too); by the module's id

    @classmethod
    def were_set(cls, ids: frozenset[int], *, since: int) -> bool:
        return cls.clock > since and any(when > since and each in ids for each, when in cls.last_set.items())


def _set_attribute(module: nn.Module, name: str, value: Any) -> None:
    if name == "training":
        _Clocks.modes_clock += 1
    else:
        before = module.__dict__.get(name)
        is_same = before is value or (
            type(before) is type(value) in {int, float, str, bool} and before == value
        )
        if not is_same:
            _Clocks.clock += 1
            _Clocks.last_set[id(module)] = _Clocks.clock
    _plain_set(module, name, value)


_set_attribute.__wrapped__ = _plain_set  # type: ignore[attr-defined]  # as `functools.wraps` marks it

_depth = 0


@contextmanager
def calls_intercepted(call: Callable[..., Any], real: Callable[[Any], Any]) -> Iterator[None]:
    """Let `call(module, args, kwargs)` stand in the place of every module's call, while the block runs.

    The arguments of autograd functions go through `real`: what they save and give is torch's own affair. Blocks may be
    nested and may overlap; everything is as before when the last has ended.
    """
    global _depth  # noqa: PLW0603 (there is one `nn.Module`, too)

    def intercepted(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return call(self, args, kwargs)

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return _plain_apply.__get__(None, cls)(*real(args), **real(kwargs))

    intercepted.__wrapped__ = plain_call  # type: ignore[attr-defined]
    apply.__wrapped__ = _plain_apply  # type: ignore[attr-defined]
    if _depth == 0:
        nn.Module.__call__ = intercepted  # type: ignore[method-assign]
        nn.Module.__setattr__ = _set_attribute  # type: ignore[assignment]
        torch.autograd.Function.apply = classmethod(apply)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            nn.Module.__call__ = plain_call  # type: ignore[method-assign]
            nn.Module.__setattr__ = _plain_set  # type: ignore[method-assign]
            torch.autograd.Function.apply = _plain_apply
