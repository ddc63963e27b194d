"""`Timer`: how long a run has taken, and when it has taken long enough."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from headstart.callback import Callback
from headstart.durations import seconds_of
from headstart.errors import MisconfigurationError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from headstart.module import LightningModule
    from headstart.trainer import Trainer

_STAGES = ("train", "sanity_check", "validate", "test", "predict")


class Timer(Callback):
    """Measures each stage, and ends training when its time is up.

    Training ends between two batches (or epochs), as if somebody had set `trainer.should_stop`. The clock counts the
    whole of training, its validation included, and goes on in a resumed run.

    Args:
        duration: `"DD:HH:MM:SS"`, `"10m"`, a `timedelta`, the keywords of one (`{"hours": 8}`), or `None` only to measure.
        interval: Whether to look at the clock after each `"step"` or each `"epoch"`.
        verbose: Print that the time is up.

    Raises:
        MisconfigurationError: If the duration or the interval is something else.

    Example:
        >>> timer = Timer("00:08:00:00")
        >>> timer.time_remaining()
        28800.0
        >>> Timer({"minutes": 30}).time_remaining()
        1800.0
    """

    def __init__(
        self,
        duration: str | timedelta | Mapping[str, float] | None = None,
        interval: Literal["step", "epoch"] = "step",
        verbose: bool = True,
    ) -> None:
        if interval not in {"step", "epoch"}:
            raise MisconfigurationError(f"Timer(interval={interval!r}): expected 'step' or 'epoch'.")
        self._duration = None if duration is None else seconds_of(duration, what="Timer(duration=...)")
        self._interval = str(interval)
        self._verbose = verbose
        self._started: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._before_resume = 0.0  # seconds of training in the runs that this one goes on from

    def start_time(self, stage: str = "train") -> float | None:
        """When a stage started, in seconds of the monotonic clock; `None` if it has not."""
        return self._started.get(_check_stage(stage))

    def end_time(self, stage: str = "train") -> float | None:
        """When a stage ended; `None` if it has not."""
        return self._ended.get(_check_stage(stage))

    def time_elapsed(self, stage: str = "train") -> float:
        """The seconds that a stage has taken so far; training includes the runs that were resumed.

        Args:
            stage: `"train"`, `"sanity_check"`, `"validate"`, `"test"` or `"predict"`.

        Raises:
            UnknownNameError: If it is another word.
        """
        started = self.start_time(stage)
        before = self._before_resume if stage == "train" else 0.0
        if started is None:
            return before
        return before + self._ended.get(stage, monotonic()) - started

    def time_remaining(self, stage: str = "train") -> float | None:
        """The seconds that are left of the duration; `None` without one."""
        return None if self._duration is None else self._duration - self.time_elapsed(stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a resumed run whose time is up already does not train."""
        self._start("train")
        self._stop_if_over(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._ended["train"] = monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock."""
        if self._interval == "step" and self._duration is not None:
            self._stop_if_over(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the clock."""
        if self._interval == "epoch" and self._duration is not None:
            self._stop_if_over(trainer)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the sanity check."""
        self._start("sanity_check")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the sanity check."""
        self._ended["sanity_check"] = monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of this validation."""
        if not trainer.sanity_checking:
            self._start("validate")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of this validation."""
        if not trainer.sanity_checking:
            self._ended["validate"] = monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the test."""
        self._start("test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the test."""
        self._ended["test"] = monotonic()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the prediction."""
        self._start("predict")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the prediction."""
        self._ended["predict"] = monotonic()

    def state_dict(self) -> dict[str, Any]:
        """The seconds of each stage so far."""
        return {"time_elapsed": {stage: self.time_elapsed(stage) for stage in _STAGES}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the clock of training go on from where it stood."""
        self._before_resume = float(state_dict.get("time_elapsed", {}).get("train", 0.0))

    def _start(self, stage: str) -> None:
        self._started[stage] = monotonic()
        self._ended.pop(stage, None)

    def _stop_if_over(self, trainer: Trainer) -> None:
        if self._duration is None:
            return
        # Clocks differ between processes: as soon as one says so, all stop.
        over = trainer.strategy.reduce_boolean_decision(
            self.time_elapsed("train") >= self._duration, all=False
        )
        if over and not trainer.should_stop and self._verbose:
            trainer.print(
                f"Time is up after {timedelta(seconds=round(self.time_elapsed('train')))}: training ends."
            )
        trainer.should_stop = trainer.should_stop or over


def _check_stage(stage: str) -> str:
    if stage not in _STAGES:
        raise UnknownNameError(
            f"Timer measures no stage {stage!r}.{did_you_mean(str(stage), _STAGES)} Stages: {', '.join(_STAGES)}."
        )
    return stage
