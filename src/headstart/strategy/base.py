"""`Strategy`: the seam between one process and many. The loop asks it to place, wrap, share out, reduce and gather."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from headstart.deferred import Reuse


@dataclass(frozen=True, slots=True)
class Share:
    """How much of the samples that all processes step on together is this process's.

    Args:
        own: Samples of this process.
        total: Of all processes.
        num_processes: How many processes.

    Example:
        >>> Share(2, 3, 2).weight, Share(1, 3, 2).weight  # an uneven last batch
        (1.3333333333333333, 0.6666666666666666)
    """

    own: int
    total: int
    num_processes: int

    @property
    def weight(self) -> float:
        """By what a mean over the own samples is multiplied, so that the mean over processes is that over all samples."""
        return self.own * self.num_processes / self.total

    @property
    def is_empty(self) -> bool:
        """Whether there was no sample left for this process: it steps on one of another's, which counts for nothing."""
        return self.own == 0


class Strategy(ABC):
    """Where the module lives, and how processes agree.

    What is not abstract says what holds for one process. A method that agrees on something must be called by all
    processes at the same point of the program.
    """

    device: torch.device
    world_size: int = 1
    global_rank: int = 0
    local_rank: int = 0
    node_rank: int = 0
    # Whether a process can run the module when the others do not.
    computes_alone: bool = True

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that prints, logs and saves."""
        return self.global_rank == 0

    @property
    def root_device(self) -> torch.device:
        """The device of this process."""
        return self.device

    def place(self, device: torch.device, num_devices: int | None) -> None:
        """Take the device, and how many there are on a machine, from the trainer, where nothing was said before."""
        return

    def connect(self) -> None:
        """Meet the other processes, before a run begins; once is enough."""
        return

    @abstractmethod
    def setup(self, module: nn.Module) -> None:
        """Put the module on its device. Parameters stay the same objects."""

    def agree(self, module: nn.Module) -> None:
        """Give all processes the weights and buffers of the first."""
        return

    def agree_on_statistics(self, module: nn.Module) -> None:
        """Make the buffers of what trains the same in all processes: running statistics, moved by each one's own samples."""
        return

    @abstractmethod
    def wrap(self, module: nn.Module) -> None:
        """Wrap the module for training. Called again after any change of what trains."""

    @abstractmethod
    def step_function(self, module: nn.Module, name: str) -> Callable[..., Any]:
        """Give the function that runs `module.<name>` (a step) through the wrapper, where there is one."""

    def whole(self, value: Any) -> Any:
        """Give a nested value with whole tensors in the place of this process's parts of them."""
        return value

    def part(self, value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Give this process's part of a tensor: as much as it has of `like`."""
        return value

    def write(self, checkpoint: dict[str, Any], path: str | Path, writer: Callable[..., None]) -> None:
        """Write a checkpoint, of which every process has its part.

        Args:
            checkpoint: What it holds.
            path: Where to.
            writer: `writer(checkpoint, path)` writes a whole one.
        """
        writer(checkpoint, path)

    def without_reduction(self) -> AbstractContextManager[Any]:
        """Let backward leave each process its own gradients: within an accumulation window."""
        return nullcontext()

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Give all processes the mean of their gradients, where backward has not done so."""
        return

    def prepare_loader(self, loader: Any, *, shuffle: bool) -> Any:
        """Give this process its share of a loader.

        Args:
            loader: The loader, the same in all processes.
            shuffle: Whether it is for training: then all processes get the same number of batches.
        """
        return loader

    def share_of(self, loader: Any, batch_idx: int) -> Share | None:
        """Give what this process has of a batch of a loader that `prepare_loader` gave; `None` where all have alike."""
        return None

    @abstractmethod
    def reduce(self, tensor: torch.Tensor, operation: str = "mean") -> torch.Tensor:
        """Give the `"mean"`, `"sum"`, `"min"` or `"max"` over all processes."""

    @abstractmethod
    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """Give every process's tensors, stacked along a new first dimension."""

    def gather_objects(self, value: Any) -> list[Any]:
        """Give every process's value, which can be pickled, in the order of the processes."""
        return [value]

    def in_order(self, batches: list[torch.Tensor]) -> torch.Tensor:
        """Give the rows of all processes, (N, ...), in the order of the loader that `prepare_loader` shared out.

        Args:
            batches: What this process has, a tensor for each of its batches, on the CPU.
        """
        return torch.cat(batches)

    @abstractmethod
    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:  # noqa: A002 (the field's name)
        """Whether all (or any) of the processes decided so."""

    def any_by_now(self, decisions: list[bool]) -> list[bool]:
        """Whether any process had decided so at its last call, of each decision: agreed on without waiting for anybody."""
        return decisions

    @abstractmethod
    def broadcast(self, value: Any, src: int = 0) -> Any:
        """Give every process the value of process `src`."""

    def by_first(self, function: Callable[[], Any]) -> Any:
        """Let the first process call a function; give all what it returned, or raise in all what it raised."""
        return function()

    @abstractmethod
    def barrier(self, name: str | None = None) -> None:
        """Wait until every process is here."""

    def largest_difference(self, module: nn.Module) -> float:
        """Give the largest difference between two processes in a weight or buffer of the module: 0.0, or something is wrong."""
        return 0.0

    def share_frozen_work(self, reuse: Reuse) -> None:
        """Let all processes compute a sample's frozen work once."""
        return

    def exchange_frozen_work(self, reuse: Reuse) -> None:
        """Bring what each machine has computed to the others: between two passes over a loader."""
        return

    def teardown(self) -> None:
        """Let go of what `setup` took."""
        return
