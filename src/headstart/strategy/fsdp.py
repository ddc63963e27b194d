"""One process for each device, each with a part of every weight: torch's `fully_shard`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, empty

from headstart.errors import MisconfigurationError
from headstart.strategy.ddp import Steps
from headstart.strategy.distributed import DistributedStrategy


class FSDPStrategy(DistributedStrategy):
    """Trains in several processes that share weights, gradients and optimizer states among them; see `DistributedStrategy`.

    Each block (an element of a `ModuleList` or `Sequential` that is in no other) is gathered while it computes; the rest is
    gathered as one. Parameters are cut one by one, so some may be frozen and others not, and any may thaw at any time. They
    are other objects afterwards (`DTensor`), and the module computes inside its steps only.

    Args:
        device: Of this process; `None` is what the trainer is told.
        saves: `"whole"` checkpoints are files as those of one process; `"parts"` are folders in which every process
            writes its part, by torch.distributed.checkpoint. Both go on in any number of processes, and in one.
        settings: `devices`, `shares_loaders` and `checks` of `DistributedStrategy`.
    """

    computes_alone = False

    def __init__(
        self, device: torch.device | str | None = None, *, saves: str = "whole", **settings: Any
    ) -> None:
        super().__init__(device, **settings)
        if saves not in {"whole", "parts"}:
            raise MisconfigurationError(f"saves is {saves!r}; expected 'whole' or 'parts'.")
        self.saves = saves
        self._roots: dict[nn.Module, Steps] = {}

    def agree(self, module: nn.Module) -> None:
        """Give all processes the weights and buffers of the first; then each keeps its part of them."""
        if module in self._roots:
            return
        super().agree(module)
        mesh = self._mesh()
        for block in _blocks(module):
            fully_shard(block, mesh=mesh)
        root = Steps(module)
        fully_shard(root, mesh=mesh)
        self._roots[module] = root

    def wrap(self, module: nn.Module) -> None:
        """Nothing to build anew: what is frozen has no gradient to reduce."""

    def step_function(self, module: nn.Module, name: str) -> Callable[..., Any]:
        """Give the step, inside which weights are whole."""
        root = self._roots.get(module)
        if not getattr(module, "automatic_optimization", True):
            raise MisconfigurationError(
                "Manual optimization runs backward within the step, where fully_shard has gathered the weights: use strategy='ddp'."
            )
        if root is None:
            function: Callable[..., Any] = getattr(module, name)
            return function

        def through_the_root(*args: Any) -> Any:
            return root(name, *args)

        return through_the_root

    def whole(self, value: Any) -> Any:
        """Give a nested value with whole tensors, on the CPU, in the place of parts; all processes call it."""
        return map_parts(value, lambda part: part.full_tensor().cpu())

    def part(self, value: Tensor, like: Tensor) -> Tensor:
        """Give this process's part of a whole tensor, cut as `like` is."""
        if isinstance(like, DTensor) and not isinstance(value, DTensor):
            return distribute_tensor(value.to(self.device), like.device_mesh, like.placements)
        return value

    def prepare_loader(self, loader: Any, *, shuffle: bool) -> Any:
        """Give this process its share of a loader; all get the same number of batches, for all gather weights together."""
        return super().prepare_loader(loader, shuffle=True)

    def write(self, checkpoint: dict[str, Any], path: str | Path, writer: Callable[..., None]) -> None:
        """Write a checkpoint whole, or in parts; weights alone are whole."""
        if self.saves == "whole" or str(path).endswith(".safetensors"):
            super().write(checkpoint, path, writer)
            return
        from headstart.strategy.parts import write_parts

        write_parts(checkpoint, path, self)

    def new_part(self, shape: tuple[int, ...], *, dtype: torch.dtype) -> Tensor:
        """Give room for this process's part of a tensor; one without dimensions is whole."""
        if not shape:
            return torch.empty(shape, dtype=dtype)
        return empty(*shape, dtype=dtype, device_mesh=self._mesh(), placements=[Shard(0)])

    def _mesh(self) -> DeviceMesh:
        return init_device_mesh(self.device.type, (self.world_size,))

    def without_reduction(self) -> AbstractContextManager[Any]:
        """Gradients are reduced in every backward: nobody has room for whole ones."""
        return nullcontext()

    def largest_difference(self, module: nn.Module) -> float:
        """Give the largest difference between two processes in a buffer: of a weight each has another part."""
        return max(map(self._difference_of, module.buffers()), default=0.0)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Give the elements of the outermost lists of modules, those with parameters."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from (each for each in child if next(each.parameters(), None) is not None)
        else:
            yield from _blocks(child)


def map_parts(value: Any, function: Callable[[DTensor], Any]) -> Any:
    """Give a nested value of dictionaries, lists and tuples with `function(part)` in the place of each part of a tensor."""
    if isinstance(value, DTensor):
        return function(value)
    if isinstance(value, dict):
        return type(value)((key, map_parts(each, function)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return type(value)(map_parts(each, function) for each in value)
    return value
