"""Losses and gradients that are NaN or infinite: said, or stopped before they reach the weights, or left out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch

from headstart.errors import NonFiniteError
from headstart.whereabouts import describe_batch

if TYPE_CHECKING:
    from headstart.trainer import Trainer

OnNaN = Literal["warn", "raise", "skip"]

_ADVICE = (
    "Often the reason is a sample (look at them), a rate that is too high, or float16. Trainer(detect_anomaly=True) finds "
    "the operation that made it."
)
_SHOWN = 10


class NonFiniteGuard:
    """Looks at losses and gradients, as `Trainer(on_nan=...)` says.

    `"warn"` reads the losses of many steps at once, every `log_every_n_steps`, so that no device is waited for. `"raise"`
    and `"skip"` read the loss and the norm of the gradients in every step, before the optimizer does.

    Args:
        trainer: Whose run it is.
        setting: `"warn"`, `"raise"` or `"skip"`.
    """

    def __init__(self, trainer: Trainer, setting: OnNaN) -> None:
        self._trainer = trainer
        self.setting = setting
        self.skipped: list[str] = []  # what was left out, and where
        self._trace: torch.Tensor | None = None  # finite as long as all losses are
        self._has_warned = False

    def accepts_loss(self, loss: torch.Tensor) -> bool:
        """Whether to go on with this loss.

        Raises:
            NonFiniteError: In the setting `"raise"`, if it is not finite.
        """
        if self.setting == "warn":
            if not self._has_warned:
                seen = loss.detach()
                if seen.device.type == "cpu":  # nothing to wait for
                    if not math.isfinite(seen.item()):
                        self._trace = seen
                else:
                    zero = seen - seen
                    self._trace = zero if self._trace is None else self._trace + zero
                if self._trainer.progress.total_batches % self._trainer.log_every_n_steps == 0:
                    self.warn_if_needed()
            return True
        strategy = self._trainer.strategy
        is_finite = math.isfinite(loss.item())
        if strategy.world_size > 1:
            is_finite = strategy.reduce_boolean_decision(is_finite)
        return is_finite or self._reject(f"the loss is {loss.item():g}")

    def accepts_gradients(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether to step with these gradients.

        Raises:
            NonFiniteError: In the setting `"raise"`, if one of them is not finite.
        """
        if self.setting == "warn" or self._trainer.precision_plugin.scales:
            return True  # overflowing gradients are part of float16's scaling, and are left out there
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm(gradients).item() if gradients else 0.0
        return math.isfinite(norm) or self._reject(f"the norm of the gradients is {norm:g}")

    def warn_if_needed(self) -> None:
        """In the setting `"warn"`: say once that a loss was not finite."""
        if self._trace is None or self._has_warned:
            return
        if not math.isfinite(self._trace.item()):
            self._has_warned = True
            self._trainer.warn(
                f"A loss was NaN or infinite, at epoch {self._trainer.progress.epoch}, batch "
                f"{self._trainer.progress.batch} or up to {self._trainer.log_every_n_steps} batches before. "
                "Trainer(on_nan='raise') stops before such a batch reaches the weights and names its samples; "
                "on_nan='skip' leaves it out."
            )
        self._trace = None

    def report(self) -> None:
        """At the end of a fit: say what was left out."""
        self.warn_if_needed()
        if self.skipped:
            count = len(self.skipped)
            more = f"\n  and {count - _SHOWN} more" if count > _SHOWN else ""
            self._trainer.say(
                f"on_nan='skip' left out {count} {'batch' if count == 1 else 'batches'}:\n  "
                + "\n  ".join(self.skipped[:_SHOWN])
                + more
            )

    def begin(self, state: Any = ()) -> None:
        """A fit begins, or goes on with what was left out before."""
        self.skipped, self._trace, self._has_warned = list(state), None, False

    def _reject(self, what: str) -> bool:
        where = describe_batch(self._trainer)
        if self.setting == "raise":
            raise NonFiniteError(
                f"{what[0].upper()}{what[1:]} in {where}. Nothing of this batch has reached the weights. {_ADVICE} "
                "Trainer(on_nan='skip') leaves such batches out."
            )
        self.skipped.append(f"{where}: {what}")
        if len(self.skipped) == 1:
            self._trainer.say(f"on_nan='skip' leaves out a batch: {self.skipped[0]}. {_ADVICE}")
        self._trainer.boundary.undo_step()
        return False
