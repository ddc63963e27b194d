"""`EarlyStopping`: end the run when a value stops improving.

*Whether* to stop is `StoppingRule`, which knows nothing of a trainer; *when* to ask it is `EarlyStopping`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from headstart.callback import Callback
from headstart.callbacks.monitored import (
    Mode,
    acts_on_train_epoch_end,
    check_mode,
    is_better,
    never_logged,
    worst,
)

if TYPE_CHECKING:
    from headstart.module import LightningModule
    from headstart.trainer import Trainer


class StoppingRule:
    """Says of each new value whether it is time to stop.

    Args:
        mode: `"min"` where less is better, `"max"` where more is.
        min_delta: An improvement counts if it is larger than this.
        patience: Stop at this many values in a row without an improvement (0 is as 1).
        check_finite: Stop at NaN or infinity.
        stopping_threshold: Stop at a value better than this: it is good enough.
        divergence_threshold: Stop at a value worse than this: it is hopeless.

    Example:
        >>> rule = StoppingRule(mode="min", patience=2)
        >>> [rule.reason_to_stop(value) for value in (1.0, 0.5, 0.6)]
        [None, None, None]
        >>> rule.reason_to_stop(0.7)
        'no improvement in 2 checks, best 0.5'
    """

    def __init__(
        self,
        *,
        mode: Mode = "min",
        min_delta: float = 0.0,
        patience: int = 3,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
    ) -> None:
        check_mode(mode, owner="EarlyStopping")
        self.mode: Mode = mode
        self.min_delta = abs(min_delta)
        self.patience = patience
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget the values so far; the settings stay."""
        self.best_score = worst(self.mode)
        self.wait_count = 0  # values since the last improvement

    def reason_to_stop(self, value: float) -> str | None:
        """Take a new value, and say why to stop now; `None` to go on."""
        if self.check_finite and not math.isfinite(value):
            return f"the value is {value}, which is not finite"
        if self.stopping_threshold is not None and is_better(value, self.stopping_threshold, mode=self.mode):
            return f"{value:.6g} has reached the stopping threshold {self.stopping_threshold:.6g}"
        if self.divergence_threshold is not None and is_better(
            self.divergence_threshold, value, mode=self.mode
        ):
            return f"{value:.6g} has passed the divergence threshold {self.divergence_threshold:.6g}"
        if self.is_improvement(value):
            self.best_score = value
            self.wait_count = 0
            return None
        self.wait_count += 1
        if self.wait_count >= self.patience:
            checks = "check" if self.wait_count == 1 else "checks"
            return f"no improvement in {self.wait_count} {checks}, best {self.best_score:.6g}"
        return None

    def is_improvement(self, value: float) -> bool:
        """Whether a value is better than the best by more than `min_delta`."""
        margin = self.min_delta if self.mode == "min" else -self.min_delta
        return is_better(value + margin, self.best_score, mode=self.mode)


class EarlyStopping(Callback):
    """Ends the run when a logged value stops improving, at the end of an epoch or of a validation.

    `trainer.min_epochs` and `min_steps` are kept. A fit of another module begins anew. Readable: `wait_count`,
    `best_score`, `stopped_epoch` (0 while it has not stopped the run) and `stopping_reason_message`.

    Args:
        monitor: The name of the value, as given to `self.log`.
        min_delta: An improvement counts if it is larger than this.
        patience: Stop at this many checks in a row without an improvement. A check is a validation, not always an epoch.
        verbose: Say when the value improves.
        mode: `"min"` where less is better, `"max"` where more is.
        strict: Whether a value that was not logged is an error; otherwise the check is left out.
        check_finite: Stop at NaN or infinity.
        stopping_threshold: Stop at a value better than this: it is good enough.
        divergence_threshold: Stop at a value worse than this: it is hopeless.
        check_on_train_epoch_end: Check at the end of the training epoch (`True`) or of each validation (`False`).
            `None`: of the validation, where it runs more or less often than once an epoch; else of the epoch.
        log_rank_zero_only: Accepted; messages come from the first process alone.

    Raises:
        MisconfigurationError: If `mode` is another word.

    Example:
        >>> EarlyStopping("val_loss", patience=5).state_key
        "EarlyStopping{'monitor': 'val_loss', 'mode': 'min'}"
    """

    # What the module logs in its own on_train_epoch_end counts.
    runs_after_module = True

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: Mode = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        super().__init__()
        self.monitor = monitor
        self.verbose = verbose
        self.strict = strict
        self.rule = StoppingRule(
            mode=mode,
            min_delta=min_delta,
            patience=patience,
            check_finite=check_finite,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
        )
        self.stopped_epoch = 0
        self.stopping_reason_message: str | None = None
        self._check_on_train_epoch_end = check_on_train_epoch_end

    # ---- what the rule knows

    @property
    def state_key(self) -> str:
        """The class, what it watches, and in which direction."""
        return type(self).__qualname__ + repr({"monitor": self.monitor, "mode": self.rule.mode})

    @property
    def mode(self) -> str:
        """`"min"` or `"max"`."""
        return self.rule.mode

    @property
    def patience(self) -> int:
        """How many checks without an improvement end the run."""
        return self.rule.patience

    @patience.setter
    def patience(self, patience: int) -> None:
        self.rule.patience = patience

    @property
    def min_delta(self) -> float:
        """What an improvement must exceed."""
        return self.rule.min_delta

    @property
    def wait_count(self) -> int:
        """Checks since the last improvement."""
        return self.rule.wait_count

    @property
    def best_score(self) -> torch.Tensor:
        """The best value so far; infinite before the first."""
        return torch.tensor(self.rule.best_score)

    # ---- when to ask

    def on_model_built(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what the fit of another module reached."""
        if trainer.progress.total_batches == 0:  # of this fit; what a checkpoint holds comes later
            self.rule.begin_anew()
            self.stopped_epoch = 0
            self.stopping_reason_message = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, if the epoch's end is the time."""
        if acts_on_train_epoch_end(trainer, self._check_on_train_epoch_end):
            self._check(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, if the validation's end is the time."""
        if (
            trainer.state.fn == "fit"
            and not trainer.sanity_checking
            and not acts_on_train_epoch_end(trainer, self._check_on_train_epoch_end)
        ):
            self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            if self.strict:
                raise never_logged(self.monitor, metrics, owner="EarlyStopping")
            return
        before = self.rule.best_score
        value = float(metrics[self.monitor])
        reason = self.rule.reason_to_stop(value)
        if self.verbose and self.rule.best_score != before:
            trainer.say(f"EarlyStopping: {self.monitor} improved from {before:.6g} to {value:.6g}.")
        # One process that must stop stops all: the others would wait for it forever.
        stop = trainer.strategy.reduce_boolean_decision(reason is not None, all=False)
        if not stop:
            return
        trainer.should_stop = True
        self.stopped_epoch = trainer.current_epoch
        self.stopping_reason_message = f"{self.monitor}: {reason or 'another process stopped'}"
        trainer.say(f"EarlyStopping: {self.stopping_reason_message}. The run ends.")

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """The best value, and how long ago it was. `patience` is a setting: a resumed run may have another."""
        return {
            "wait_count": self.rule.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": self.best_score,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best value of the run that is resumed."""
        self.rule.wait_count = int(state_dict["wait_count"])
        self.rule.best_score = float(state_dict["best_score"])
        self.stopped_epoch = int(state_dict["stopped_epoch"])
