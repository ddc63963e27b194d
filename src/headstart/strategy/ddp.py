"""One process for each device, each with all weights: torch's `DistributedDataParallel`, built anew when what trains changes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from headstart.strategy.distributed import DistributedStrategy


class DDPStrategy(DistributedStrategy):
    """Trains in several processes, each with all weights, that average their gradients; see `DistributedStrategy`.

    A resumed run is the uncut one to the last bit with two processes; with more, if `Trainer(deterministic=True)`. (Where
    frozen work is reused, that takes `reuse_frozen="exact"`, in one process too.)

    Args:
        device: Of this process; `None` is what the trainer is told.
        find_unused_parameters: Look in every step for trainable parameters that had no part in the loss; slower.
        settings: `devices`, `shares_loaders` and `checks` of `DistributedStrategy`.
    """

    def __init__(
        self,
        device: torch.device | str | None = None,
        *,
        find_unused_parameters: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(device, **settings)
        self._find_unused_parameters = find_unused_parameters
        self._wrapped: DistributedDataParallel | None = None
        self._trains: list[bool] = []  # of the parameters, when it was built

    def wrap(self, module: nn.Module) -> None:
        """Wrap the module anew: the wrapper averages the gradients of what trained when it was built."""
        self._wrapped = None  # its hooks go with it, before the next ones come
        parameters = list(module.parameters())
        if len(parameters) == len(self._trains):
            # Frozen within an accumulation window: the next wrapper would leave each process its own gradient.
            pairs = zip(parameters, self._trains, strict=True)
            self.average_gradients([each for each, trained in pairs if trained and not each.requires_grad])
        self._trains = [parameter.requires_grad for parameter in parameters]
        if not any(self._trains):
            return
        steps = Steps(module)
        frozen = [name for name, parameter in steps.named_parameters() if not parameter.requires_grad]
        buffers = [name for name, _ in steps.named_buffers()]  # `agree_on_statistics` does what they need
        ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model  # noqa: SLF001
        ignore(steps, [*frozen, *buffers])
        self._wrapped = DistributedDataParallel(
            steps,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            # That also keeps torch from laying out its buckets anew after the first step, which a resumed run would do at
            # another step: with three processes or more, sums would be rounded otherwise.
            find_unused_parameters=self._find_unused_parameters
            or torch.are_deterministic_algorithms_enabled(),
            init_sync=False,  # they are the same already
        )

    def step_function(self, module: nn.Module, name: str) -> Callable[..., Any]:
        """Give the step; a training step runs through the wrapper, so that backward averages gradients."""
        if name != "training_step" or not getattr(module, "automatic_optimization", True):
            function: Callable[..., Any] = getattr(module, name)
            return function

        def through_the_wrapper(*args: Any) -> Any:
            if [parameter.requires_grad for parameter in module.parameters()] != self._trains:
                self.wrap(module)  # something was frozen or thawed between two batches
            return getattr(module, name)(*args) if self._wrapped is None else self._wrapped(name, *args)

        return through_the_wrapper

    def without_reduction(self) -> AbstractContextManager[Any]:
        """Let backward leave each process its own gradients."""
        return nullcontext() if self._wrapped is None else cast("Any", self._wrapped.no_sync())

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Give all processes the mean of their gradients; a process without one adds nothing."""
        for parameter in parameters:
            has_one = self.reduce(torch.tensor(float(parameter.grad is not None)), "max")
            if has_one:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad.div_(self.world_size)

    def teardown(self) -> None:
        """Let go of the wrapper."""
        super().teardown()
        self._wrapped = None
        self._trains = []


class Steps(nn.Module):
    """Calls a step of a module: what torch's wrapper wraps, for it knows `forward` only."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, name: str, *args: Any) -> Any:
        """Give what the step of that name gives."""
        return getattr(self.inner, name)(*args)
