"""One process on one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from headstart.strategy.base import Strategy


class SingleDevice(Strategy):
    """One process on one device: nothing to wrap, and nobody to agree with.

    Example:
        >>> SingleDevice(torch.device("cpu")).reduce(torch.tensor(2.0))
        tensor(2.)
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def setup(self, module: nn.Module) -> None:
        module.to(self.device)

    def wrap(self, module: nn.Module) -> None:
        pass

    def step_function(self, module: nn.Module, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(module, name)
        return function

    def reduce(self, tensor: torch.Tensor, operation: str = "mean") -> torch.Tensor:
        return tensor

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        return data

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:  # noqa: A002
        return decision

    def broadcast(self, value: Any, src: int = 0) -> Any:
        return value

    def barrier(self, name: str | None = None) -> None:
        pass
