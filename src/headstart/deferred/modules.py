"""Frozen modules: whether a call of one may be deferred, and whether its state is still what it was."""

from __future__ import annotations

from contextlib import contextmanager
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from headstart.deferred.fingerprint import signature, state_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_versions = attrgetter("_version")
_requires_grad = attrgetter("requires_grad")
_training = attrgetter("training")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_hooks = attrgetter(*_HOOKS)

# The call of every module, before anything is put in its way.
plain_call: Callable[..., Any] = nn.Module.__call__


class FrozenModule:
    """A module with all that its output depends on, at a moment.

    Attributes:
        name: For people.
        version: Grows with every change that is noticed.
        num_in_vain: How often in a row it changed before a value was looked up.
        is_frozen: Whether nothing in it trains.
        obstacle: Why a call of it cannot be deferred, and what to do; empty where it can.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = module
        self.name = name
        self.version = 0
        self.num_in_vain = 0
        self.look()

    def look(self) -> None:
        """Take down the module's state as it is now."""
        self._modules = list(self.module.modules())
        self._tensors = [*self.module.parameters(), *self.module.buffers()]
        self._parameters = list(self.module.parameters())
        self._state = self._quick()
        self._content = self._thorough()
        self.is_frozen = not any(map(_requires_grad, self._parameters))
        self.obstacle = self._obstacle()

    def is_unchanged(self) -> bool:
        """Whether weights, modes, freezing and hooks are what they were: asked at every batch, so it is quick."""
        return self._state == self._quick()

    def is_unchanged_inside(self) -> bool:
        """Whether also nothing was edited past torch's version counters, or replaced: asked at every epoch."""
        return self.is_unchanged() and self._content == self._thorough()

    def renew(self) -> None:
        """The state has changed: what was computed from the former one is another value."""
        self.version += 1
        self.look()

    def _quick(self) -> tuple[list[Any], ...]:
        return (
            # An inference tensor has no version; its content is looked at every epoch.
            [0]
            if any(map(torch.Tensor.is_inference, self._tensors))
            else list(map(_versions, self._tensors)),
            list(map(_requires_grad, self._parameters)),
            list(map(_training, self._modules)),
            [len(each) for hooks in map(_hooks, self._modules) for each in hooks if each],
        )

    def _thorough(self) -> tuple[Any, ...]:
        modules = list(self.module.modules())
        tensors = [*self.module.parameters(), *self.module.buffers()]
        plain = [
            tuple((key, value) for key, value in vars(each).items() if isinstance(value, int | float | str))
            for each in modules
        ]
        forwards = [signature(each.__dict__["forward"]) for each in modules if "forward" in each.__dict__]
        return (
            [id(each) for each in modules],
            [(id(each), each.data_ptr(), each.dtype, each.device) for each in tensors],
            state_sum(tensors),
            plain,
            forwards,
        )

    def _obstacle(self) -> str:
        for name, each in self.module.named_modules():
            path = ".".join(filter(None, (self.name, name)))
            if each.training:
                return f"{path} ({type(each).__name__}) is in training mode; call its eval() if it is meant to be frozen"
            if any(getattr(each, hooks) for hooks in _HOOKS):
                return f"{path} ({type(each).__name__}) has hooks, which must see every batch; remove them"
        if not self._tensors:
            return "it has no parameters"
        return ""


def is_opaque(module: nn.Module) -> bool:
    """Whether a module's insides take real tensors only: what is scripted or compiled."""
    return isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule"


_depth = 0


@contextmanager
def calls_intercepted(call: Callable[..., Any]) -> Iterator[None]:
    """Let `call(module, args, kwargs)` stand in the place of every module's call, while the block runs.

    Blocks may be nested and may overlap; the plain call is back when the last has ended.
    """
    global _depth  # noqa: PLW0603 (there is one `nn.Module`, too)

    def intercepted(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return call(self, args, kwargs)

    if _depth == 0:
        nn.Module.__call__ = intercepted  # type: ignore[method-assign]
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            nn.Module.__call__ = plain_call  # type: ignore[method-assign]
