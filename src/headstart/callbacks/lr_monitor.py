"""`LearningRateMonitor`: the rates of all parameter groups, in the loggers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from headstart.callback import Callback
from headstart.errors import MisconfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.optim import Optimizer

    from headstart.module import LightningModule
    from headstart.trainer import Trainer


class LearningRateMonitor(Callback):
    """Gives the loggers the learning rate of every parameter group.

    The keys are `lr-SGD`, and `lr-SGD/pg1`, `lr-SGD/pg2` as soon as there are several groups, those that were added in
    mid-run included; `lr-SGD-1` for a second optimizer of a class. A scheduler's `name` (in the dict that
    `configure_optimizers` gives) takes the place of `lr-SGD`, a group's `"name"` that of `pg1`.

    `lrs` holds every recorded rate, by key.

    Args:
        logging_interval: `"step"` for each step that is logged, `"epoch"` for each epoch, with the rates of its first step.
            `None`: both for an optimizer without a scheduler, else as often as its scheduler steps.
        log_momentum: Record momentum (or Adam's first beta) too, as `lr-SGD-momentum`.
        log_weight_decay: Record weight decay too, as `lr-SGD-weight_decay`.

    Raises:
        MisconfigurationError: If the interval is another word.

    Example:
        >>> LearningRateMonitor(logging_interval="epoch").lrs
        {}
    """

    # What the module and other callbacks set as a batch begins is the rate of its step.
    runs_after_module = True

    def __init__(
        self,
        logging_interval: Literal["step", "epoch"] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
    ) -> None:
        super().__init__()
        if logging_interval not in {None, "step", "epoch"}:
            raise MisconfigurationError(
                f"LearningRateMonitor(logging_interval={logging_interval!r}): expected 'step', 'epoch' or None."
            )
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        self.lrs: dict[str, list[float]] = {}
        self._logged_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new record.

        Raises:
            MisconfigurationError: If there is no logger, or two groups of an optimizer have one name.
        """
        if not trainer.loggers and not trainer.fast_dev_run:
            raise MisconfigurationError(
                "LearningRateMonitor has nowhere to record: the Trainer has no logger. Give it one "
                "(logger=CSVLogger('runs')), or leave this callback out."
            )
        self.lrs = {}
        self._logged_step = -1
        for base, optimizer, _ in _named_optimizers(trainer):
            _group_keys(base, optimizer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the rates with which this batch's step is taken, if the epoch starts with it or the step is logged."""
        if batch_idx == 0:  # as the epoch began, a plan's schedule had not set them yet
            self._record(trainer, "epoch")
        step = trainer.progress.logged_steps
        if (step + 1) % trainer.log_every_n_steps == 0 and step != self._logged_step:
            self._logged_step = step  # once a step, however many batches its gradients are made of
            self._record(trainer, "step")

    def _record(self, trainer: Trainer, interval: str) -> None:
        if not trainer.loggers:
            return  # a trial run
        values: dict[str, float] = {}
        for base, optimizer, own_interval in _named_optimizers(trainer):
            wanted = self.logging_interval or own_interval
            if wanted in {interval, None}:
                keys = _group_keys(base, optimizer)
                self._carry_over(base, keys)
                for key, group in zip(keys, optimizer.param_groups, strict=True):
                    self.lrs.setdefault(key, []).append(float(group["lr"]))
                    values |= self._of_group(key, group)
        for logger in trainer.loggers if trainer.is_global_zero and values else ():
            logger.log_metrics(values, step=trainer.progress.logged_steps)

    def _of_group(self, key: str, group: dict[str, Any]) -> dict[str, float]:
        values = {key: float(group["lr"])}
        if self.log_momentum:
            values[f"{key}-momentum"] = float(
                group["betas"][0] if "betas" in group else group.get("momentum", 0.0)
            )
        if self.log_weight_decay:
            values[f"{key}-weight_decay"] = float(group.get("weight_decay", 0.0))
        return values

    def _carry_over(self, base: str, keys: Sequence[str]) -> None:
        """What was recorded while there was one group is the first group's past."""
        if base in self.lrs and base not in keys:
            self.lrs[keys[0]] = self.lrs.pop(base)


def _named_optimizers(trainer: Trainer) -> Iterator[tuple[str, Optimizer, str | None]]:
    """Each optimizer with its name, and the interval of its scheduler (`None` without one)."""
    schedulers = {
        id(getattr(config.scheduler, "optimizer", None)): config for config in trainer.lr_scheduler_configs
    }
    taken: dict[str, int] = {}
    for optimizer in trainer.optimizers:
        config = schedulers.get(id(optimizer))
        name = (config.name if config is not None else None) or f"lr-{type(optimizer).__name__}"
        count = taken[name] = taken.get(name, -1) + 1
        yield f"{name}-{count}" if count else name, optimizer, config.interval if config is not None else None


def _group_keys(base: str, optimizer: Optimizer) -> list[str]:
    """A key for each group of an optimizer."""
    groups = optimizer.param_groups
    if len(groups) == 1 and "name" not in groups[0]:
        return [base]
    names = [str(group.get("name", f"pg{index}")) for index, group in enumerate(groups, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise MisconfigurationError(
            f"Two parameter groups of {base} have the name {twice!r}: give each its own, or none."
        )
    return [f"{base}/{name}" for name in names]
