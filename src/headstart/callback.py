"""`Callback`: every moment at which code from outside can look at a run, in the order in which they fire.

A callback's hook runs before the module's hook of the same name. Callbacks run in the order in which they were given,
`ModelCheckpoint` last, so that a checkpoint holds what the others did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer

    from headstart.module import LightningModule
    from headstart.trainer import Trainer


class Callback:
    """Code that runs at given moments of a run, apart from the module.

    Override the hooks that you need. `trainer` and `pl_module` are passed by position.

    Example:
        >>> class Shout(Callback):
        ...     def on_train_epoch_end(self, trainer, pl_module):
        ...         print(f"epoch {trainer.current_epoch} is over")
        >>> Shout().state_key
        'Shout'
    """

    #: Whether this callback's hooks run after the module's, so that it sees what the module logged in them.
    runs_after_module: bool = False

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint; override it where one run holds two of a class."""
        return type(self).__qualname__

    # ---- set-up

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """First hook of fit, validate, test and predict. `stage` is one of those four words."""

    def on_model_built(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """`configure_model` has run, all parameters exist, no optimizer does. Only in fit.

        headstart's own hook: the moment to freeze, whether the module is built in `__init__` or in `configure_model`.
        """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The optimizers exist; on resume, their state is not loaded yet."""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the trial run of validation."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the trial run of validation."""

    # ---- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before an epoch's first batch."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> int | None:
        """The batch is on the device. Return -1 to skip the rest of the epoch."""

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Before the gradients are set to None."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Before `loss.backward()`; `loss` is a scalar, scaled for accumulation."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The gradients are there."""

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """The gradients are unscaled and not clipped yet."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the step. `outputs` is a dict: `"loss"`, detached and not scaled, and what else `training_step` gave."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the epoch's batches and its validation; the epoch's means are in `trainer.callback_metrics`."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last epoch."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last hook of fit before `teardown`."""

    # ---- validation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before validation; the module is in evaluation mode."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first validation batch."""

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The validation batch is on the device."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """`outputs` is what `validation_step` gave."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last validation batch; what is logged here still counts for this epoch."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The validation means are in `trainer.callback_metrics`."""

    # ---- test

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the test."""

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first test batch."""

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The test batch is on the device."""

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """`outputs` is what `test_step` gave."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last test batch."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the test."""

    # ---- prediction

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before prediction."""

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first batch to predict."""

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The batch to predict is on the device."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """`outputs` is what `predict_step` gave."""

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last batch to predict."""

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After prediction."""

    # ---- the end, and what can happen at any time

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The last hook of fit, validate, test and predict, also after an exception."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The run ends with `exception` (a `KeyboardInterrupt` included)."""

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What this callback wants back after a resume: plain types and tensors only."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add to `checkpoint` before it is written."""

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read from `checkpoint` before it is applied."""
