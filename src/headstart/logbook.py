"""What a run has logged: collected while it happens, kept for callbacks, given to the loggers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from headstart.metrics import Results
from headstart.transfer import batch_size_of

if TYPE_CHECKING:
    from headstart.trainer import Trainer


class Logbook:
    """The values of `self.log`: the training epoch's that is running, an evaluation's, and the latest of all others.

    Args:
        trainer: Whose run it is.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.training = Results(trainer.strategy)
        self.evaluation: Results | None = None
        # Whether all batches are over, so that the epoch's values can be read.
        self.training_is_complete = False
        self.evaluation_is_complete = False
        self.current_loader: int | None = None  # of the evaluation batch that is running
        self._num_loaders = 1
        self.kept: dict[str, Any] = {}  # the latest of what is over, as callbacks see it
        self.kept_for_bar: dict[str, Any] = {}
        self._logged: dict[str, Any] = {}  # the latest that the loggers got
        self._counts = True
        self._evaluated_batches = 0  # over all evaluations of the run: the x axis of their step values

    def record(self, name: str, value: Any, *, batch_size: int | None, **options: Any) -> None:
        """Record what `self.log` was given."""
        if options.pop("rank_zero_only") and not self._trainer.is_global_zero:
            return
        options.pop("sync_dist_group")
        if options.pop("add_dataloader_idx") and self.current_loader is not None and self._num_loaders > 1:
            name = f"{name}/dataloader_idx_{self.current_loader}"
        results = self.training if self.evaluation is None else self.evaluation
        hook = self._trainer.hooks.current
        share = self._trainer.share if self.evaluation is None else None
        counts = self._counts and (share is None or not share.is_empty)
        results.record(
            name,
            value,
            hook=hook,
            batch_size=self._size_of_batch if batch_size is None else batch_size,
            counts=counts,
            **options,
        )

    @contextmanager
    def not_counting(self) -> Iterator[None]:
        """Let what is logged be part of no epoch's value while the block runs."""
        self._counts = False
        try:
            yield
        finally:
            self._counts = True

    def _size_of_batch(self) -> int:
        """The number of samples behind a value; one value an epoch needs no weight."""
        return 1 if "_epoch_" in self._trainer.hooks.current else batch_size_of(self._trainer.current_batch)

    # ---- reading

    @property
    def callback_metrics(self) -> dict[str, Any]:
        """The latest value under each name."""
        metrics = dict(self.kept)
        if self.training_is_complete:
            metrics |= self.training.callback_values()
        else:
            for entry, key, value in self.training.step_values(only_fresh=False):
                metrics[entry.name] = metrics[key] = value
        if self.evaluation is not None and self.evaluation_is_complete:
            metrics |= self.evaluation.callback_values()
        return metrics

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The latest values logged with `prog_bar=True`."""
        metrics = dict(self.kept_for_bar)
        metrics |= {
            key: value for entry, key, value in self.training.step_values(only_fresh=False) if entry.prog_bar
        }
        if self.training_is_complete:
            metrics |= {key: value for entry, key, value in self.training.epoch_values() if entry.prog_bar}
        return {key: float(value) for key, value in metrics.items()}

    @property
    def logged_metrics(self) -> dict[str, Any]:
        """The latest value for the loggers under each name; a step's also where its turn to be written is yet to come."""
        steps = {
            key: value for entry, key, value in self.training.step_values(only_fresh=False) if entry.logger
        }
        return {**steps, **self._logged} if self.training_is_complete else {**self._logged, **steps}

    # ---- training

    def begin_training_epoch(self) -> None:
        """Forget the epoch that is over."""
        if self.training_is_complete:
            self.training.reset()
        self.training_is_complete = False

    def close_training_step(self, *, stepped: bool) -> None:
        """Give a step's values to the loggers, every `log_every_n_steps` steps."""
        if not self.training.entries:
            return
        steps = self._trainer.progress.logged_steps
        if stepped and (steps + 1) % self._trainer.log_every_n_steps == 0:
            self._log(
                {key: value for entry, key, value in self.training.step_values() if entry.logger}, steps
            )
        self.training.close_step()

    def complete_training(self) -> None:
        """Say that the epoch's last batch is over, so that its values can be read."""
        self.training.agree()
        self.training_is_complete = True

    def close_training_epoch(self) -> None:
        """Keep and log the values of the epoch that is over."""
        self._close(self.training, step=max(self._trainer.progress.logged_steps - 1, 0))

    # ---- evaluation

    def begin_evaluation(self, num_loaders: int) -> Results:
        """Begin to collect the values of a validation or test."""
        self.evaluation, self.evaluation_is_complete = Results(self._trainer.strategy), False
        self._num_loaders = num_loaders
        return self.evaluation

    def close_evaluation_step(self) -> None:
        """Give a step's values to the loggers: each, for an evaluation is short."""
        assert self.evaluation is not None
        steps = {key: value for entry, key, value in self.evaluation.step_values() if entry.logger}
        if steps:
            self._log(steps, self._evaluated_batches)
        self._evaluated_batches += not self._trainer.sanity_checking
        self.evaluation.close_step()

    def complete_evaluation(self) -> None:
        """Say that the last batch is over, so that the values can be read."""
        assert self.evaluation is not None
        self.evaluation.agree()
        self.current_loader = None
        self.evaluation_is_complete = True

    def close_evaluation(self) -> list[dict[str, float]]:
        """Keep and log what was collected, and give it as numbers, a dict for each loader."""
        assert self.evaluation is not None
        # Within fit this is the step that was just taken: the epoch's values stand at the same place.
        values = self._close(self.evaluation, step=self._trainer.progress.logged_steps)
        suffixes = [f"/dataloader_idx_{index}" for index in range(self._num_loaders)]
        return [
            {
                key: value
                for key, value in values.items()
                if key.endswith(own) or not key.endswith(tuple(suffixes))
            }
            for own in suffixes
        ]

    def end_evaluation(self) -> None:
        """Forget what was collected, and reset its metrics."""
        if self.evaluation is not None:
            self.evaluation.reset()
        self.evaluation, self.evaluation_is_complete = None, False
        self.current_loader = None

    def forget(self) -> None:
        """Begin with no values."""
        self.end_evaluation()
        self.training.reset()
        self.training_is_complete = False
        self.kept, self.kept_for_bar, self._logged = {}, {}, {}
        self._evaluated_batches = 0

    # ---- saving and resuming

    def state_dict(self, module: nn.Module) -> dict[str, Any]:
        """The values; of the running epoch's as `Results.state_dict` gives them."""
        return {
            "kept": dict(self.kept), "kept_for_bar": dict(self.kept_for_bar), "logged": dict(self._logged),
            "evaluated_batches": self._evaluated_batches,
            # Between two epochs all is kept already, and the next one begins anew.
            "training": self.training.state_dict(module) if self._trainer.progress.is_inside_epoch else {},
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any], module: nn.Module, *, is_complete: bool) -> None:
        """Take back what `state_dict` gave; `is_complete` says whether the epoch's last batch is over."""
        self.kept, self.kept_for_bar = dict(state["kept"]), dict(state["kept_for_bar"])
        self._logged, self._evaluated_batches = dict(state["logged"]), state["evaluated_batches"]
        self.training.reset()
        self.training.load_state_dict(state["training"], module)
        self.training_is_complete = is_complete

    # ---- to the loggers

    def _close(self, results: Results, *, step: int) -> dict[str, float]:
        results.agree()
        values = list(results.epoch_values())
        self.kept |= results.callback_values()
        self.kept_for_bar |= {key: value for entry, key, value in values if entry.prog_bar}
        self._log({key: value for entry, key, value in values if entry.logger}, step)
        for logger in self._trainer.loggers if self._trainer.is_global_zero else []:
            logger.save()  # steps' values wait for their turn; an epoch's are on the disk
        return {key: float(value) for _, key, value in values}

    def _log(self, values: dict[str, Any], step: int) -> None:
        trainer = self._trainer
        if not values or trainer.sanity_checking:
            return
        self._logged |= {key: torch.as_tensor(value) for key, value in values.items()}
        if trainer.is_global_zero:
            numbers = {key: float(value) for key, value in values.items()} | {"epoch": trainer.current_epoch}
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=step)

    def log_hyper_parameters(self) -> None:
        """Give the module's and the data module's hyper-parameters to the loggers, and the module's graph."""
        trainer = self._trainer
        values: dict[str, Any] = {}
        for owner in (trainer.datamodule, trainer.lightning_module):
            if owner is not None and owner.__dict__.get("_hparams_for_logger"):
                values |= owner.hparams_initial
        for logger in trainer.loggers if trainer.is_global_zero else []:
            logger.log_hyperparams(values)
            logger.log_graph(trainer.lightning_module)
            logger.save()
