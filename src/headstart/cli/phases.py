"""What was trained for how long: the phases of a plan, or the frozen phase and the unfrozen one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from headstart import freezing
from headstart.callback import Callback
from headstart.callbacks import EarlyStopping
from headstart.callbacks.plan import PlanRunner, runner_of

if TYPE_CHECKING:
    from headstart.module import LightningModule
    from headstart.trainer import Trainer


@dataclass(slots=True)
class TrainedPhase:
    """A part of a run in which the same parameters train.

    Attributes:
        name: That of the plan's phase; without a plan `"frozen"` while the backbone is frozen, `"unfrozen"` after that.
        trains: What trains, in words.
        num_trainable: Number of trainable parameters.
        begins: Optimizer steps before it.
        epochs: Number of epochs that ended in it.
        seconds: Time, validation included.
    """

    name: str
    trains: str
    num_trainable: int
    begins: int = 0
    epochs: int = 0
    seconds: float = 0.0


class PhaseRecord(Callback):
    """Records phases and what every epoch reached; over a resume, too.

    It stands behind what unfreezes or follows the plan, so that it sees what trains from now on.

    Attributes:
        phases: In their order.
        epochs: For each epoch its number from 0, its phase, the values of `val_loss`, `val_acc` and `val_f1`, the mean of
            the training loss as `train_loss_epoch`, and that of the last batch as `train_loss`, which a plan may watch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phases: list[TrainedPhase] = []
        self.epochs: list[dict[str, Any]] = []
        self._since: float | None = None  # up to when the time is in `phases`

    def best_epoch(self, monitor: str | None, mode: Literal["min", "max"]) -> int | None:
        """Give the epoch of the last phase with the best value, the first of equals; `None` where it was not recorded."""
        last = self.phases[-1].name if self.phases else None
        found: dict[int, float] = {
            each["epoch"]: each[monitor]
            for each in self.epochs
            if each["phase"] == last and monitor in each and not math.isnan(each[monitor])
        }
        if not found:
            return None
        best = (max if mode == "max" else min)(found.values())
        return next(epoch for epoch, value in found.items() if value == best)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a phase, if another one begins with this epoch."""
        self._settle()
        runner = runner_of(trainer)
        if runner is not None:
            self._follow(runner, trainer, pl_module)
        elif freezing.is_frozen(_backbone(pl_module)):
            self._begin("frozen", "the head alone", trainer, pl_module)
        else:
            self._begin("unfrozen", "backbone and head", trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a phase, if the plan's last one ended within this epoch."""
        runner = runner_of(trainer)
        if runner is not None and len(self.phases) <= runner.phase:
            self._settle()
            self._follow(runner, trainer, pl_module)

    def _follow(self, runner: PlanRunner, trainer: Trainer, module: LightningModule) -> None:
        phase = runner.plan.phases[runner.phase]
        self._begin(phase.name, ", ".join(phase.trains), trainer, module)

    def _begin(self, name: str, trains: str, trainer: Trainer, module: LightningModule) -> None:
        if not self.phases or self.phases[-1].name != name:
            trainable = sum(each.numel() for each in module.parameters() if each.requires_grad)
            self.phases.append(TrainedPhase(name, trains, trainable, begins=trainer.global_step))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epoch."""
        self._settle()
        self.phases[-1].epochs += 1
        values = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name in {"train_loss", "train_loss_epoch", "val_loss", "val_acc", "val_f1"}
        }
        self.epochs.append({"epoch": trainer.current_epoch, "phase": self.phases[-1].name, **values})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the clock."""
        self._stop()

    def state_dict(self) -> dict[str, Any]:
        """Everything so far."""
        self._settle()
        return {
            "phases": [asdict(each) for each in self.phases],
            "epochs": [dict(each) for each in self.epochs],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.phases = [TrainedPhase(**each) for each in state_dict["phases"]]
        self.epochs = [dict(each) for each in state_dict["epochs"]]

    def _settle(self) -> None:
        if self._since is None:
            return
        now = monotonic()
        if self.phases:
            self.phases[-1].seconds += now - self._since
        self._since = now

    def _stop(self) -> None:
        self._settle()
        self._since = None


class EarlyStoppingOnceUnfrozen(EarlyStopping):
    """Early stopping that is patient while the backbone is frozen, when an epoch costs next to nothing."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """While the backbone is frozen, let the check that follows not count."""
        if freezing.is_frozen(_backbone(pl_module)):
            self.rule.wait_count = -1


def _backbone(module: LightningModule) -> Any:
    return module.backbone
