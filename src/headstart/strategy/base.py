"""`Strategy`: the seam between one process and many. The loop asks it to place, wrap, reduce and gather."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Strategy(ABC):
    """Where the module lives, and how processes agree."""

    device: torch.device
    world_size: int
    global_rank: int
    local_rank: int

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that prints, logs and saves."""
        return self.global_rank == 0

    @property
    def root_device(self) -> torch.device:
        """The device of this process."""
        return self.device

    @abstractmethod
    def setup(self, module: nn.Module) -> None:
        """Put the module on its device. Parameters stay the same objects."""

    @abstractmethod
    def wrap(self, module: nn.Module) -> None:
        """Wrap the module for training. Called again after any change of what trains."""

    @abstractmethod
    def step_function(self, module: nn.Module, name: str) -> Callable[..., Any]:
        """Give the function that runs `module.<name>` (a step) through the wrapper, where there is one."""

    @abstractmethod
    def prepare_loader(self, loader: Any, *, shuffle: bool) -> Any:
        """Give this process its share of a loader."""

    @abstractmethod
    def reduce(self, tensor: torch.Tensor, operation: str = "mean") -> torch.Tensor:
        """Give the `"mean"`, `"sum"`, `"min"` or `"max"` over all processes."""

    @abstractmethod
    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """Give every process's tensors, stacked along a new first dimension."""

    @abstractmethod
    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:  # noqa: A002 (the field's name)
        """Whether all (or any) of the processes decided so."""

    @abstractmethod
    def broadcast(self, value: Any, src: int = 0) -> Any:
        """Give every process the value of process `src`."""

    @abstractmethod
    def barrier(self, name: str | None = None) -> None:
        """Wait until every process is here."""

    def teardown(self) -> None:
        """Let go of what `setup` took."""
