"""`LightningModule`: a torch module that also says how it is trained, evaluated and used to predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import nn
from torch.optim import Optimizer

from headstart import freezing
from headstart.datamodule import DataHooks
from headstart.errors import MisconfigurationError

if TYPE_CHECKING:
    from headstart.optim import ManagedOptimizer
    from headstart.trainer import Trainer


class LightningModule(DataHooks, nn.Module):
    """A torch module with its training, validation, test and prediction steps, and its optimizers.

    Define `training_step` and `configure_optimizers`; everything else is optional.

    Example:
        >>> class Line(LightningModule):
        ...     def __init__(self, lr: float = 0.1):
        ...         super().__init__()
        ...         self.save_hyperparameters()
        ...         self.layer = nn.Linear(1, 1)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         x, y = batch
        ...         return nn.functional.mse_loss(self.layer(x), y)
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
        >>> Line(lr=0.5).hparams.lr
        0.5
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Plain instance attributes, not registered: the trainer is no part of the module.
        self.__dict__["_trainer"] = None
        self.automatic_optimization: bool = True
        self.strict_loading: bool = True
        self.example_input_array: Any = None

    # ---- what the run says about itself

    @property
    def trainer(self) -> Trainer:
        """The trainer that runs this module.

        Raises:
            RuntimeError: If there is none.
        """
        trainer: Trainer | None = self.__dict__.get("_trainer")
        if trainer is None:
            raise RuntimeError(
                f"{type(self).__qualname__} is not attached to a `Trainer`: it is inside fit, test, ..."
            )
        return trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        self.__dict__["_trainer"] = trainer
        for child in self.children():
            if isinstance(child, LightningModule):
                child.trainer = trainer

    @property
    def device(self) -> torch.device:
        """The device of the first parameter or buffer; the CPU where there is none."""
        return _first_tensor(self).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first parameter or buffer."""
        return _first_tensor(self).dtype

    @property
    def current_epoch(self) -> int:
        """The epoch that is running, from 0; 0 without a trainer."""
        return self.trainer.current_epoch if self.__dict__.get("_trainer") else 0

    @property
    def global_step(self) -> int:
        """The number of optimizer steps taken, over all epochs; 0 without a trainer."""
        return self.trainer.global_step if self.__dict__.get("_trainer") else 0

    @property
    def global_rank(self) -> int:
        """The number of this process among all; 0 without a trainer."""
        return self.trainer.global_rank if self.__dict__.get("_trainer") else 0

    @property
    def local_rank(self) -> int:
        """The number of this process on its machine; 0 without a trainer."""
        return self.trainer.local_rank if self.__dict__.get("_trainer") else 0

    @property
    def logger(self) -> Any:
        """The first logger of the run, or `None`."""
        return self.trainer.logger if self.__dict__.get("_trainer") else None

    @property
    def loggers(self) -> list[Any]:
        """All loggers of the run."""
        return self.trainer.loggers if self.__dict__.get("_trainer") else []

    @property
    def fabric(self) -> None:
        """Always `None`: there is no second trainer underneath."""
        return

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print once, whatever the number of processes, and without breaking the progress bar."""
        if self.__dict__.get("_trainer"):
            self.trainer.print(*args, **kwargs)
        else:
            print(*args, **kwargs)

    # ---- the steps

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the prediction; what `module(x)` calls."""
        return super().forward(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Give the loss of a batch.

        Called with `(batch)`, `(batch, batch_idx)`. Give a scalar tensor, a dict with a `"loss"`, or `None` to skip
        the batch.
        """
        raise NotImplementedError("training_step is not defined.")

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a validation batch: `(batch, batch_idx)`, and `dataloader_idx` with several loaders."""

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a test batch: `(batch, batch_idx)`, and `dataloader_idx` with several loaders."""

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Give the prediction for a batch; by default `self(batch)`."""
        return self(args[0] if args else kwargs["batch"])

    # ---- configuration

    def configure_optimizers(self) -> Any:
        """Give the optimizers and learning-rate schedulers.

        One optimizer; a list of them; `(optimizers, schedulers)`; a dict with `"optimizer"` and, if wanted,
        `"lr_scheduler"`; a tuple or list of such dicts; or `None` to train without one. A scheduler is itself, or a
        dict with `scheduler`, and `interval` (`"epoch"` or `"step"`), `frequency`, `monitor`, `strict`, `name`.
        """
        raise NotImplementedError("configure_optimizers is not defined.")

    def configure_model(self) -> None:
        """Build parts of the module late, once the trainer is known. It may be called again: check what exists."""

    def configure_callbacks(self) -> Any:
        """Give a callback, or a list of them, for the trainer; one of the same type replaces the trainer's."""
        return []

    # ---- hooks of a run

    def on_fit_start(self) -> None:
        """As in `Callback`; so are the hooks below."""

    def on_fit_end(self) -> None: ...
    def on_train_start(self) -> None: ...
    def on_train_end(self) -> None: ...
    def on_train_epoch_start(self) -> None: ...
    def on_train_epoch_end(self) -> None: ...
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None: ...
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...
    def on_validation_start(self) -> None: ...
    def on_validation_end(self) -> None: ...
    def on_validation_epoch_start(self) -> None: ...
    def on_validation_epoch_end(self) -> None: ...
    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...
    def on_validation_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None: ...
    def on_test_start(self) -> None: ...
    def on_test_end(self) -> None: ...
    def on_test_epoch_start(self) -> None: ...
    def on_test_epoch_end(self) -> None: ...
    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...
    def on_test_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None: ...
    def on_predict_start(self) -> None: ...
    def on_predict_end(self) -> None: ...
    def on_predict_epoch_start(self) -> None: ...
    def on_predict_epoch_end(self) -> None: ...
    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...
    def on_predict_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None: ...
    def on_before_zero_grad(self, optimizer: Optimizer) -> None: ...
    def on_before_backward(self, loss: torch.Tensor) -> None: ...
    def on_after_backward(self) -> None: ...
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None: ...
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None: ...
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None: ...

    def on_validation_model_eval(self) -> None:
        """Put the module into evaluation mode for validation."""
        self.eval()

    def on_test_model_eval(self) -> None:
        """Put the module into evaluation mode for the test."""
        self.eval()

    def on_predict_model_eval(self) -> None:
        """Put the module into evaluation mode for prediction."""
        self.eval()

    def on_validation_model_train(self) -> None:
        """Validation is over, and the modes from before it are back."""

    def on_test_model_train(self) -> None:
        """The test is over, and the modes from before it are back."""

    def on_predict_model_train(self) -> None:
        """Prediction is over, and the modes from before it are back."""

    # ---- the parts of a training step, to be overridden singly

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients of `loss`.

        Raises:
            MisconfigurationError: If nothing that trains is behind it.
        """
        if not loss.requires_grad:
            trains = freezing.trainable_names(self)
            reason = (
                "it was detached, or made under torch.no_grad, or none of what trains is used for it"
                if trains
                else "every parameter of the module is frozen"
            )
            raise MisconfigurationError(f"The loss of {type(self).__name__} has no gradient: {reason}.")
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take one step. The closure runs `training_step` and the backward pass; call it, or hand it on."""
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Forget the gradients of the last step."""
        optimizer.zero_grad()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler; `metric` is its monitored value, or `None`."""
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients; override it to clip in another way."""
        self.clip_gradients(
            optimizer, gradient_clip_val=gradient_clip_val, gradient_clip_algorithm=gradient_clip_algorithm
        )

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of an optimizer's parameters.

        Args:
            optimizer: Whose parameters.
            gradient_clip_val: The largest norm or value; `None` and 0 clip nothing.
            gradient_clip_algorithm: `"norm"` (of all gradients together, the default) or `"value"` (each element).

        Raises:
            MisconfigurationError: If the algorithm is another word.
        """
        if not gradient_clip_val:
            return
        algorithm = gradient_clip_algorithm or "norm"
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if algorithm == "norm":
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        elif algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            raise MisconfigurationError(
                f"gradient_clip_algorithm is {algorithm!r}; expected 'norm' or 'value'."
            )

    # ---- manual optimization

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """Give the optimizer, or the list of them, for `automatic_optimization = False`.

        Args:
            use_pl_optimizer: Wrap each, so that its steps are counted and the hooks run; `False` gives torch's own.
        """
        found: list[ManagedOptimizer] | list[Optimizer]
        found = self.trainer.manual_optimizers if use_pl_optimizer else self.trainer.optimizers
        return found[0] if len(found) == 1 else found

    def lr_schedulers(self) -> Any:
        """Give the scheduler, the list of them, or `None`, for manual optimization."""
        found = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        if not found:
            return None
        return found[0] if len(found) == 1 else found

    def manual_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients of `loss` under the run's precision, with the hooks around it."""
        self.trainer.manual_backward(loss, *args, **kwargs)

    def toggle_optimizer(self, optimizer: Any) -> None:
        """Give gradients to the parameters of this optimizer alone, until `untoggle_optimizer`."""
        own = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        remembered: dict[nn.Parameter, bool] = self.__dict__.setdefault("_toggled", {})
        for other in self.trainer.optimizers:
            for group in other.param_groups:
                for parameter in group["params"]:
                    remembered.setdefault(parameter, parameter.requires_grad)
                    parameter.requires_grad_(parameter in own and remembered[parameter])

    def untoggle_optimizer(self, optimizer: Any) -> None:
        """Undo `toggle_optimizer`."""
        for parameter, wanted in self.__dict__.pop("_toggled", {}).items():
            parameter.requires_grad_(wanted)

    # ---- freezing

    def freeze(self) -> None:
        """Freeze the whole module: no gradient, evaluation mode."""
        freezing.freeze(self)

    def unfreeze(self) -> None:
        """Undo `freeze`: every parameter trains, training mode."""
        freezing.unfreeze(self)

    # ---- logging

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Record a value under a name.

        Args:
            name: The key in the loggers and in `trainer.callback_metrics`.
            value: A number, a tensor with one element, or a torchmetrics metric.
            prog_bar: Show it in the progress bar.
            logger: Give it to the loggers (the default).
            on_step: Record each step's value; the default in `training_step` and its hooks.
            on_epoch: Record the epoch's value; the default everywhere else. With both, the keys are `name_step` and
                `name_epoch`.
            reduce_fx: How an epoch's value is made of its steps': `"mean"` (weighted by batch size), `"sum"`,
                `"min"` or `"max"`.
            enable_graph: Accepted; a recorded value never holds a graph.
            sync_dist: Reduce a step's value over all processes, all of which log it then; an epoch's always is.
            sync_dist_group: The process group of that.
            add_dataloader_idx: With several loaders, add `/dataloader_idx_N` to the key.
            batch_size: The weight of this value in an epoch's mean; `None` reads it off the batch.
            metric_attribute: Accepted; a metric is found by itself.
            rank_zero_only: Record on the first process only.

        Raises:
            MisconfigurationError: If nothing can be logged at this moment, or the value is of another type.
        """
        trainer: Trainer | None = self.__dict__.get("_trainer")
        if trainer is None:
            return  # a step that is called by hand, outside a run
        trainer.logbook.record(
            name,
            value,
            prog_bar=prog_bar,
            logger=logger is not False,
            on_step=on_step,
            on_epoch=on_epoch,
            reduce_fx=reduce_fx,
            sync_dist=sync_dist,
            sync_dist_group=sync_dist_group,
            add_dataloader_idx=add_dataloader_idx,
            batch_size=batch_size,
            rank_zero_only=rank_zero_only,
        )

    def log_dict(self, dictionary: Mapping[str, Any], **kwargs: Any) -> None:
        """Record every value of a dictionary (or of a torchmetrics `MetricCollection`); keywords as in `log`."""
        for name, value in dictionary.items():
            self.log(name, value, **kwargs)

    # ---- saving and loading

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        *,
        on_mismatch: Literal["error", "skip"] = "error",
        weights_only: bool | None = None,  # noqa: ARG003 (the field's signature)
        **kwargs: Any,
    ) -> Self:
        """Give a module built with the hyper-parameters of a checkpoint, and with its weights.

        Args:
            checkpoint_path: The file. It is read with `weights_only=True`, always: nothing in it is run or imported.
            map_location: The device to load to, as in `torch.load`; `None` is the CPU.
            hparams_file: A YAML file with hyper-parameters, for a checkpoint without.
            strict: Whether every name must match; `None` asks `strict_loading`.
            on_mismatch: What to do with a weight of another shape (a head for another number of classes):
                `"error"`, or `"skip"` to load the rest and print what was left out.
            weights_only: Accepted; it is always on.
            **kwargs: Arguments of `__init__`; they win over the saved ones.

        Raises:
            CheckpointError: If the file is damaged, unsafe or no checkpoint, or weights do not fit.
            UnknownArgumentError: If `__init__` does not take one of `kwargs`.
        """
        from headstart.checkpoint import load_module

        return load_module(
            cls,
            checkpoint_path,
            map_location=map_location,
            hparams_file=hparams_file,
            strict=strict,
            on_mismatch=on_mismatch,
            kwargs=kwargs,
        )

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """Give the values of all processes, stacked along a new first dimension."""
        return self.trainer.strategy.all_gather(data, group=group, sync_grads=sync_grads)

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of the module does not drag its trainer along.
        return {**self.__dict__, "_trainer": None}


def _first_tensor(module: nn.Module) -> torch.Tensor:
    found: torch.Tensor | None = next(module.parameters(), None)
    if found is None:
        found = next(module.buffers(), None)
    return torch.empty(0) if found is None else found
