"""What was trained for how long: the frozen phase and the unfrozen one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from headstart import freezing
from headstart.callback import Callback
from headstart.callbacks import EarlyStopping

if TYPE_CHECKING:
    from headstart.module import LightningModule
    from headstart.trainer import Trainer


@dataclass(slots=True)
class Phase:
    """A part of a run in which the same parameters train.

    Attributes:
        name: `"frozen"` while the backbone is frozen, `"unfrozen"` after that.
        num_trainable: Number of trainable parameters.
        epochs: Number of epochs that ended in it.
        seconds: Time, validation included.
    """

    name: Literal["frozen", "unfrozen"]
    num_trainable: int
    epochs: int = 0
    seconds: float = 0.0


class PhaseRecord(Callback):
    """Records phases and what every epoch reached; over a resume, too.

    It stands behind the callback that unfreezes, so that it sees what is unfrozen at the start of an epoch.

    Attributes:
        phases: In their order.
        epochs: For each epoch its number from 0, its phase, and the values of `val_loss`, `val_acc`, `val_f1` and
            `train_loss`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phases: list[Phase] = []
        self.epochs: list[dict[str, Any]] = []
        self._since: float | None = None  # up to when the time is in `phases`

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a phase, if something was unfrozen at the start of this epoch."""
        self._settle()
        name: Literal["frozen", "unfrozen"] = (
            "frozen" if freezing.is_frozen(_backbone(pl_module)) else "unfrozen"
        )
        if not self.phases or self.phases[-1].name != name:
            trainable = sum(each.numel() for each in pl_module.parameters() if each.requires_grad)
            self.phases.append(Phase(name, trainable))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epoch."""
        self._settle()
        self.phases[-1].epochs += 1
        values = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name in {"train_loss", "val_loss", "val_acc", "val_f1"}
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
        self.phases = [Phase(**each) for each in state_dict["phases"]]
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
