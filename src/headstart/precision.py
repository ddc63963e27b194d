"""Number formats: torch autocast, and a gradient scaler where float16 needs one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from headstart.errors import MisconfigurationError, did_you_mean

# What may be written -> (autocast dtype, dtype of the weights)
_FORMATS: dict[str, tuple[torch.dtype | None, torch.dtype | None]] = {
    "32-true": (None, None), "32": (None, None),
    "64-true": (None, torch.float64), "64": (None, torch.float64),
    "bf16-mixed": (torch.bfloat16, None), "bf16": (torch.bfloat16, None),
    "16-mixed": (torch.float16, None), "16": (torch.float16, None),
    "bf16-true": (None, torch.bfloat16), "16-true": (None, torch.float16),
}  # fmt: skip


class Precision:
    """The number format of a run.

    Args:
        precision: `"32-true"`, `"bf16-mixed"`, `"16-mixed"`, `"64-true"`, `"bf16-true"`, `"16-true"`, or the short
            forms 32, `"bf16"`, 16, 64.
        device: Where the run computes.

    Raises:
        MisconfigurationError: If the word is none of those.

    Example:
        >>> precision = Precision("bf16-mixed", device=torch.device("cpu"))
        >>> with precision.forward_context():
        ...     nn.Linear(2, 2)(torch.ones(1, 2)).dtype
        torch.bfloat16
    """

    def __init__(self, precision: str | int | None = "32-true", *, device: torch.device) -> None:
        self.name = "32-true" if precision is None else str(precision)
        if self.name not in _FORMATS:
            raise MisconfigurationError(
                f"precision is {precision!r}; expected one of {', '.join(_FORMATS)}.{did_you_mean(self.name, _FORMATS)}"
            )
        self._autocast_dtype, self.weights_dtype = _FORMATS[self.name]
        self._device = device
        # float16 gradients underflow: they are scaled up, and unscaled before anybody looks at them.
        self._scaler = torch.amp.GradScaler(device.type) if self._autocast_dtype is torch.float16 else None

    @property
    def is_plain(self) -> bool:
        """Whether nothing is to be done around a forward."""
        return self._autocast_dtype is None

    @property
    def scales(self) -> bool:
        """Whether gradients are scaled, and a step may be skipped because one overflowed."""
        return self._scaler is not None

    def convert(self, module: nn.Module) -> None:
        """Give the module the weights' format."""
        if self.weights_dtype is not None:
            module.to(self.weights_dtype)

    def convert_batch(self, batch: Any) -> Any:
        """Give a batch whose floating-point tensors have the weights' format."""
        if self.weights_dtype is None:
            return batch
        if isinstance(batch, torch.Tensor):
            return batch.to(self.weights_dtype) if batch.is_floating_point() else batch
        if isinstance(batch, dict):
            return {key: self.convert_batch(value) for key, value in batch.items()}
        if isinstance(batch, tuple) and hasattr(batch, "_fields"):
            return type(batch)(*map(self.convert_batch, batch))
        if type(batch) in {list, tuple}:
            return type(batch)(self.convert_batch(value) for value in batch)
        if is_dataclass(batch) and not isinstance(batch, type):
            return replace(
                batch, **{each.name: self.convert_batch(getattr(batch, each.name)) for each in fields(batch)}
            )
        return batch

    def forward_context(self) -> AbstractContextManager[Any]:
        """The context in which a step computes."""
        if self._autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._autocast_dtype)

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Give the loss to call backward on."""
        return loss if self._scaler is None else self._scaler.scale(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        """Bring the gradients back to their true size, before clipping and before hooks look at them."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer, take: Callable[[], Any]) -> Any:
        """Step by `take`, unless a float16 gradient overflowed."""
        if self._scaler is None:
            return take()
        taken = self._scaler.step(optimizer)
        self._scaler.update()
        return taken

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(state)
