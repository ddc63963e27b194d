"""The loop: `fit` > an epoch > a batch; `evaluate`; `predict`. Read downward, this is what a run does.

    fit:
        until the last epoch, the last step, or somebody says stop:
            modes are established (headstart.freezing), on_train_epoch_start
            for each batch:
                on_train_batch_start
                training_step > zero_grad > backward > clip > optimizer step > schedulers
                on_train_batch_end
                validation, where it is due
            on_train_epoch_end
            schedulers that watch a value

`Progress` says at every moment how far that is; a checkpoint holds it, and a resumed run goes on from exactly there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from headstart import freezing, loaders
from headstart.deferred import real_values
from headstart.errors import HeadstartError, MisconfigurationError, UnknownNameError, did_you_mean
from headstart.logbook import Logbook
from headstart.metrics import metrics_kept
from headstart.optim import ManagedOptimizer, SchedulerConfig, needs_closure, sync_scheduler
from headstart.words import counted

if TYPE_CHECKING:
    from headstart.trainer import Trainer

# How far the batch that was last optimized has come: its step is done, its validation is done, nothing is left to
# do for it, the epoch's last hooks are running.
Stage = Literal["stepped", "validated", "settled", "epoch_end"]


@dataclass(slots=True)
class Progress:
    """How far training has come."""

    epoch: int = 0
    batch: int = 0  # finished in this epoch
    global_step: int = 0  # optimizer steps, over all epochs
    total_batches: int = 0  # finished over all epochs
    logged_steps: int = 0  # the x axis of the loggers: batches with which an accumulation window ended
    accumulated: int = 0  # backward passes since the last step
    stage: Stage = "settled"
    is_last_batch: bool = False
    has_stepped: bool = True  # with the last batch

    @property
    def is_inside_epoch(self) -> bool:
        """Whether the epoch has begun and is not over."""
        return self.batch > 0 or self.stage == "epoch_end"

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


# ---- fit


def fit(trainer: Trainer) -> None:
    """Train until the last epoch, the last step, or until somebody says stop."""
    hooks = trainer.hooks
    if trainer.is_done() and not trainer.progress.is_inside_epoch:
        trainer.stand_again()
        trainer.say(
            f"Nothing is left to train: {counted(trainer.current_epoch, 'epoch')} and "
            f"{counted(trainer.global_step, 'step')} are done (max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps})."
        )
        return
    if trainer.train_dataloader is None:
        trainer.load_train_batches()
    if not trainer.progress.is_inside_epoch:
        trainer.logbook.begin_training_epoch()  # what on_train_start logs counts for the first epoch
    hooks("on_train_start")
    trainer.observe_trainable_set()
    trainer.stand_again()
    trainer.boundary.begin()
    while not trainer.is_done() or trainer.progress.is_inside_epoch:
        _train_epoch(trainer)
    hooks("on_train_end")
    trainer.nan_guard.report()


def _train_epoch(trainer: Trainer) -> None:
    """One epoch, or the rest of one that a checkpoint was taken in."""
    progress, hooks, logbook = trainer.progress, trainer.hooks, trainer.logbook
    resuming = progress.is_inside_epoch
    if not resuming:
        trainer.reload_train_batches_if_due()
        logbook.begin_training_epoch()
        loaders.set_epoch(trainer.train_dataloader, progress.epoch)
        trainer.boundary.open_epoch()
        trainer.establish_modes()
        hooks("on_train_epoch_start")
        # A callback may have thawed something just now.
        trainer.observe_trainable_set()
    else:
        loaders.set_epoch(trainer.train_dataloader, progress.epoch)
        trainer.establish_modes()

    if progress.stage != "epoch_end":
        over = False
        if resuming:
            _after_batch(trainer)
            over = progress.is_last_batch or trainer.may_stop_within_epoch()
        if not over:
            for batch_idx, batch, is_last in trainer.boundary.batches(trainer.train_batches):
                progress.is_last_batch = is_last
                trainer.share = trainer.strategy.share_of(trainer.train_dataloader, batch_idx)
                if _train_batch(trainer, batch, batch_idx) == "skip the rest of the epoch":
                    _step_schedulers(trainer, "epoch", watching=False)
                    break
                trainer.agree_between_batches()
                _after_batch(trainer)
                if is_last:
                    trainer.agree_to_stop()
                if trainer.may_stop_within_epoch():
                    break
        trainer.boundary.close()
        trainer.share = None
        progress.accumulated = 0  # of a window in which the epoch was cut short
        progress.stage = "epoch_end"
        trainer.exchange_frozen_work()
        trainer.strategy.agree_on_statistics(trainer.lightning_module)
        logbook.complete_training()
        hooks("on_train_epoch_end")
    logbook.close_training_epoch()
    _step_schedulers(trainer, "epoch", watching=True)
    trainer.agree_to_stop()
    trainer.compare_processes()
    progress.epoch += 1
    progress.batch = 0
    progress.stage = "settled"
    progress.is_last_batch = False
    trainer.signals.check(trainer.strategy)


def _train_batch(trainer: Trainer, batch: Any, batch_idx: int) -> str | None:
    """One batch: `training_step`, gradients, and, at the end of an accumulation window, a step."""
    module, hooks, progress, precision = (
        trainer.lightning_module,
        trainer.hooks,
        trainer.progress,
        trainer.precision_plugin,
    )
    batch = trainer.to_device(batch, 0)
    trainer.current_batch = batch
    if hooks("on_train_batch_start", batch, batch_idx) == -1:
        return "skip the rest of the epoch"
    window, steps_now = _window(trainer, batch_idx)
    outputs: dict[str, Any] | None = None
    automatic = module.automatic_optimization
    before = progress.accumulated  # L-BFGS runs the closure several times: each begins from here
    optimizer = trainer.optimizers[0] if trainer.optimizers and automatic else None
    is_others = trainer.share is not None and trainer.share.is_empty  # a sample that another process has too

    def compute(batch: Any, share: float | None = None, is_first: bool = True) -> torch.Tensor | None:
        """Run `training_step` and the backward pass, of the batch or of a part of it; give the loss."""
        nonlocal outputs
        trainer.current_batch = batch
        hooks.current = "training_step"
        if precision.is_plain and not is_others:
            output = trainer.training_step(*(batch, batch_idx)[: trainer.training_step_arity])
        else:
            with precision.forward_context(), metrics_kept(module) if is_others else nullcontext():
                output = trainer.training_step(*(batch, batch_idx)[: trainer.training_step_arity])
        outputs, loss = _read_output(output, automatic=automatic)
        if loss is not None and not trainer.nan_guard.accepts_loss(loss):
            loss, outputs = None, None
        if loss is None or not automatic:
            return None
        if before == 0 and optimizer is not None and is_first:
            hooks("on_before_zero_grad", optimizer)
            module.optimizer_zero_grad(progress.epoch, batch_idx, optimizer)
        scaled = loss if window == 1 else loss / window
        if trainer.share is not None:
            scaled = scaled * trainer.share.weight
        scaled = scaled if share is None else scaled * share
        hooks("on_before_backward", scaled)
        trainer.boundary.is_torn = before > 0  # the window's gradients, from here on
        module.backward(precision.scale(scaled))
        hooks("on_after_backward")
        progress.accumulated = before + 1
        return loss

    def closure() -> torch.Tensor | None:
        """Compute the batch's gradients, and see that a step can be taken with them; give the loss."""
        progress.accumulated = before
        if trainer.batch_splitter is None:
            loss = compute(batch)
        else:
            loss = trainer.batch_splitter.run(compute, batch, may_repeat=before == 0)
            if loss is not None and outputs is not None:
                outputs["loss"] = loss.detach().clone()
        if steps_now and optimizer is not None:
            can_step = _prepare_step(trainer, optimizer, batch_idx, is_averaged=progress.accumulated > before)
            return loss if can_step else None
        return loss

    if optimizer is None or not steps_now:
        with trainer.strategy.without_reduction() if optimizer is not None else nullcontext():
            closure()
    elif hooks.overrides("optimizer_step") or trainer.optimizer_needs_closure:
        hooks.current = "optimizer_step"
        managed = ManagedOptimizer(
            optimizer, lambda given, closure: _step_with_closure(trainer, given, closure)
        )
        module.optimizer_step(progress.epoch, batch_idx, managed, closure)  # type: ignore[arg-type]
    else:
        closure()
        if progress.accumulated:
            precision.step(optimizer, optimizer.step)
    hooks.current = ""

    progress.batch = batch_idx + 1
    progress.total_batches += 1
    progress.stage = "stepped"
    progress.has_stepped = automatic and steps_now and progress.accumulated > 0
    if automatic and steps_now:
        if progress.has_stepped:  # a window in which every training_step gave None takes no step
            progress.global_step += 1
            progress.accumulated = 0
            _step_schedulers(trainer, "step", watching=False)
        if progress.is_last_batch:
            _step_schedulers(trainer, "epoch", watching=False)
    trainer.current_batch = batch
    trainer.boundary.close()
    hooks("on_train_batch_end", outputs, batch, batch_idx)
    trainer.share = None
    return None


def _after_batch(trainer: Trainer) -> None:
    """What is due between two batches: the log, validation, and schedulers that watch a value step by step."""
    progress = trainer.progress
    if progress.stage == "stepped":
        trainer.logbook.close_training_step(stepped=not progress.accumulated)
        if trainer.is_validation_due():
            validate_within_fit(trainer)
        progress.stage = "validated"
    if progress.stage == "validated":
        if progress.has_stepped:
            _step_schedulers(trainer, "step", watching=True)
        if not progress.accumulated:
            progress.logged_steps += 1
        progress.stage = "settled"


def _window(trainer: Trainer, batch_idx: int) -> tuple[int, bool]:
    """The number of batches whose gradients make this batch's step, and whether the step is taken now.

    The epoch's last window may be short: its gradients are divided by what it holds, not by what a full one would.
    """
    full = trainer.accumulate_grad_batches
    if full == 1:
        return 1, True
    position = batch_idx % full
    total = trainer.num_training_batches
    steps_now = position == full - 1 or trainer.progress.is_last_batch
    if isinstance(total, int):
        return min(full, total - (batch_idx - position)), steps_now
    return full, steps_now


def _prepare_step(
    trainer: Trainer, optimizer: torch.optim.Optimizer, batch_idx: int, *, is_averaged: bool
) -> bool:
    """Give whether a step can be taken with the window's gradients, and bring them to what it is taken with."""
    progress = trainer.progress
    if progress.accumulated and not is_averaged:
        # The window's last batch gave no loss, so no backward pass has averaged what the others gave in each process.
        trainer.strategy.average_gradients(
            [each for group in optimizer.param_groups for each in group["params"]]
        )
    if progress.accumulated and not trainer.nan_guard.accepts_gradients(optimizer):
        progress.accumulated = 0
    if not progress.accumulated:
        # An overridden optimizer_step may step anyway: without gradients nothing moves.
        optimizer.zero_grad(set_to_none=True)
        return False
    _before_step(trainer, optimizer, batch_idx)
    trainer.boundary.is_torn = True  # until the step is taken
    return True


def _before_step(trainer: Trainer, optimizer: torch.optim.Optimizer, batch_idx: int) -> None:
    """The gradients are there: bring them to their true size, show them, clip them."""
    trainer.precision_plugin.unscale(optimizer)
    held = batch_idx % trainer.accumulate_grad_batches + 1
    window, _ = _window(trainer, batch_idx)
    if held != window:
        # The stream ended within a window, which nobody could know when its first gradients were divided.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(window / held)
    hooks, module = trainer.hooks, trainer.lightning_module
    hooks("on_before_optimizer_step", optimizer)
    if trainer.gradient_clip_val or hooks.overrides("configure_gradient_clipping"):
        module.configure_gradient_clipping(
            optimizer,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        )


def _step_with_closure(
    trainer: Trainer, optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None
) -> Any:
    """The step of an optimizer that calls the closure itself, or was given to an overridden `optimizer_step`."""
    if trainer.precision_plugin.scales:
        if needs_closure(optimizer):
            raise MisconfigurationError(
                f"{type(optimizer).__name__} calls its closure itself; that needs precision='32-true'."
            )
        if closure is not None:
            closure()
            if not trainer.progress.accumulated:
                return None  # no batch of the window gave a loss
        return trainer.precision_plugin.step(optimizer, optimizer.step)
    if closure is None:
        return optimizer.step()
    return (
        _step_with_a_loss(trainer, optimizer, closure)
        if needs_closure(optimizer)
        else optimizer.step(closure)
    )


class _NoLossError(Exception):
    """A batch gave no loss, or one that is left out."""


def _step_with_a_loss(trainer: Trainer, optimizer: torch.optim.Optimizer, closure: Callable[[], Any]) -> Any:
    """The step of an optimizer that computes with the loss; none where there is no loss."""
    num_evaluations = 0

    def evaluate() -> Any:
        nonlocal num_evaluations
        loss = closure()
        if loss is None:
            raise _NoLossError
        num_evaluations += 1
        return loss

    try:
        return optimizer.step(evaluate)
    except _NoLossError:
        if num_evaluations:
            raise HeadstartError(
                f"{type(optimizer).__name__} has moved the weights within its step to where training_step gives no finite loss, "
                "so the batch cannot be left out any more. Take a smaller lr, or line_search_fn='strong_wolfe'."
            ) from None
        trainer.progress.accumulated = 0
        return None


def _read_output(output: Any, *, automatic: bool) -> tuple[dict[str, Any] | None, torch.Tensor | None]:
    """What callbacks get as `outputs`, and the loss."""
    if output is None:
        return None, None
    if isinstance(output, dict):
        if automatic and "loss" not in output:
            raise MisconfigurationError(
                f"training_step returned a dict with the keys {sorted(map(str, output))}; expected 'loss' among them."
            )
        loss, extra = output.get("loss"), {key: value for key, value in output.items() if key != "loss"}
    else:
        loss, extra = output, {}
    if automatic and not isinstance(loss, torch.Tensor):
        raise MisconfigurationError(
            f"training_step returned {type(output).__name__}: {output!r:.100}; expected a scalar tensor, a dict with "
            "'loss', or None."
        )
    loss = real_values(loss)
    seen = loss.detach().clone() if isinstance(loss, torch.Tensor) else loss
    return {"loss": seen, **extra}, loss if isinstance(loss, torch.Tensor) else None


# ---- schedulers


def _step_schedulers(trainer: Trainer, interval: str, *, watching: bool) -> None:
    """Step the schedulers of an interval: those that watch a value, or those that do not."""
    if not trainer.lr_scheduler_configs or not trainer.lightning_module.automatic_optimization:
        return
    progress = trainer.progress
    passed = progress.batch if interval == "step" else progress.epoch + 1
    for config in trainer.lr_scheduler_configs:
        if config.interval != interval or config.reduce_on_plateau != watching or passed % config.frequency:
            continue
        sync_scheduler(config.scheduler)
        metric = None
        if watching:
            metric = _watched_value(trainer, config)
            if metric is None:
                continue
        trainer.hooks.current = "lr_scheduler_step"
        trainer.lightning_module.lr_scheduler_step(config.scheduler, metric)
        trainer.hooks.current = ""


def _watched_value(trainer: Trainer, config: SchedulerConfig) -> Any:
    metrics = trainer.callback_metrics
    value = metrics.get(str(config.monitor))
    if trainer.world_size > 1:  # a step's value is each process's own
        known = [
            each
            for each in trainer.strategy.gather_objects(None if value is None else float(value))
            if each is not None
        ]
        value = sum(known) / len(known) if known else None
    if value is not None:
        return value
    message = (
        f"The scheduler watches {config.monitor!r}, which was not logged.{did_you_mean(str(config.monitor), metrics)} "
        f"Logged: {', '.join(sorted(metrics)) or 'nothing'}."
    )
    if config.strict:
        raise UnknownNameError(message)
    trainer.warn(message)
    return None


# ---- validation, test


def sanity_check(trainer: Trainer) -> None:
    """Run a few validation batches before training, so that a fault in them shows now; leave no trace of it."""
    trainer.sanity_checking = True
    logbook, trainer.logbook = trainer.logbook, Logbook(trainer)
    trainer.hooks("on_sanity_check_start")
    trainer.load_validation_batches()
    limits = [trainer.num_sanity_val_steps if count is None else min(trainer.num_sanity_val_steps, count)
              for count in trainer.num_val_batches]  # fmt: skip
    trainer.num_sanity_val_batches = limits
    evaluate(trainer, "validation", trainer.validation_loaders, limits)
    trainer.hooks("on_sanity_check_end")
    trainer.logbook = logbook
    trainer.sanity_checking = False


def validate_within_fit(trainer: Trainer) -> None:
    """Validate between two training batches, and go on training in the modes from before."""
    trainer.stage = "validate"
    trainer.state_before_validation = trainer.train_batches.random_state()
    trainer.load_validation_batches()
    trainer.strategy.agree_on_statistics(trainer.lightning_module)
    evaluate(trainer, "validation", trainer.validation_loaders, trainer.num_val_batches)
    trainer.stage = "train"
    trainer.agree_to_stop()
    trainer.observe_trainable_set()


def evaluate(
    trainer: Trainer,
    kind: Literal["validation", "test"],
    all_loaders: list[Any],
    limits: Sequence[float | None],
) -> list[dict[str, float]]:
    """Run `validation_step` or `test_step` over every loader, and give what was logged, a dict for each loader."""
    hooks, logbook = trainer.hooks, trainer.logbook
    logbook.begin_evaluation(len(all_loaders))
    step, arity = trainer.step_function(f"{kind}_step")
    several = len(all_loaders) > 1
    with _evaluation_mode(trainer, kind):
        hooks(f"on_{kind}_start")
        hooks(f"on_{kind}_epoch_start")
        for loader_idx, (loader, limit) in enumerate(zip(all_loaders, limits, strict=True)):
            logbook.current_loader = loader_idx
            tail = (loader_idx,) if several else ()
            for batch_idx, batch in _limited(trainer, loader, limit):
                batch = trainer.to_device(batch, loader_idx)  # noqa: PLW2901 (the same batch, on the device)
                trainer.current_batch = batch
                if _is_others(trainer, loader, batch_idx):
                    with metrics_kept(trainer.lightning_module), logbook.not_counting():
                        hooks.current = f"{kind}_step"
                        step(*(batch, batch_idx, *tail)[:arity])
                    continue
                hooks(f"on_{kind}_batch_start", batch, batch_idx, *tail)
                hooks.current = f"{kind}_step"
                with trainer.precision_plugin.forward_context():
                    output = real_values(step(*(batch, batch_idx, *tail)[:arity]))
                hooks.current = ""
                hooks(f"on_{kind}_batch_end", output, batch, batch_idx, *tail)
                trainer.signals.check_alone(trainer.strategy)
                logbook.close_evaluation_step()
        trainer.exchange_frozen_work()
        logbook.complete_evaluation()
        hooks(f"on_{kind}_epoch_end")
        summary = logbook.close_evaluation()
        if kind == "validation" and not trainer.sanity_checking and trainer.progress.stage == "stepped":
            # What on_validation_end saves goes on after this validation.
            trainer.progress.stage = "validated"
        hooks(f"on_{kind}_end")
    logbook.end_evaluation()
    return summary


def predict(trainer: Trainer, all_loaders: list[Any], limits: Sequence[float | None], *, keep: bool) -> Any:
    """Run `predict_step` over every loader; give its outputs, a list for each loader where there are several."""
    hooks = trainer.hooks
    step, arity = trainer.step_function("predict_step")
    several = len(all_loaders) > 1
    predictions: list[list[Any]] = [[] for _ in all_loaders]
    with _evaluation_mode(trainer, "predict"):
        hooks("on_predict_start")
        hooks("on_predict_epoch_start")
        for loader_idx, (loader, limit) in enumerate(zip(all_loaders, limits, strict=True)):
            tail = (loader_idx,) if several else ()
            for batch_idx, batch in _limited(trainer, loader, limit):
                batch = trainer.to_device(batch, loader_idx)  # noqa: PLW2901 (the same batch, on the device)
                if _is_others(trainer, loader, batch_idx):
                    step(*(batch, batch_idx, *tail)[:arity])
                    continue
                hooks("on_predict_batch_start", batch, batch_idx, *tail)
                hooks.current = "predict_step"
                with trainer.precision_plugin.forward_context():
                    output = real_values(step(*(batch, batch_idx, *tail)[:arity]))
                hooks.current = ""
                hooks("on_predict_batch_end", output, batch, batch_idx, *tail)
                if keep:
                    predictions[loader_idx].append(output)
        trainer.exchange_frozen_work()
        hooks("on_predict_epoch_end")
        hooks("on_predict_end")
    if not keep:
        return None
    return predictions if several else predictions[0]


def _is_others(trainer: Trainer, loader: Any, batch_idx: int) -> bool:
    """Whether a batch is another process's too: all compute in step, and what comes out of it counts for nothing."""
    share = trainer.strategy.share_of(loader, batch_idx)
    return share is not None and share.is_empty


@contextmanager
def _evaluation_mode(trainer: Trainer, kind: str) -> Iterator[None]:
    """Evaluation mode and no gradients; afterwards the modes from before, and frozen modules in evaluation mode."""
    module = trainer.lightning_module
    # Pairs, no dict: the hash of a torchmetrics object changes with what it has seen.
    modes = [(child, child.training) for child in module.modules()]
    # Inside fit no_grad: what a module caches in inference mode could not be used in a later training step.
    context = torch.inference_mode if trainer.inference_mode and not trainer.is_fitting else torch.no_grad
    trainer.hooks(f"on_{kind}_model_eval")
    try:
        with context():
            yield
    finally:  # also after Ctrl-C: a second fit goes on in the modes from before
        for child, training in modes:
            child.training = training
    trainer.hooks(f"on_{kind}_model_train")
    freezing.establish_modes(module, only_frozen=True)


def _limited(trainer: Trainer, loader: Any, limit: float | None) -> Iterator[tuple[int, Any]]:
    iterator = iter(loader if trainer.reuse is None else trainer.reuse.batches(loader))
    index = 0
    while limit is None or index < limit:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        yield index, batch
        index += 1


def total_steps(num_batches: float, *, accumulate: int, max_epochs: int | None, max_steps: int) -> float:
    """The number of optimizer steps of a whole run; `math.inf` where nothing bounds it.

    Args:
        num_batches: Training batches an epoch; may be `math.inf`.
        accumulate: Batches a step.
        max_epochs: `None` or -1 for no bound.
        max_steps: -1 for no bound.

    Example:
        >>> total_steps(10, accumulate=4, max_epochs=2, max_steps=-1)
        6
    """
    unbounded = max_epochs is None or max_epochs == -1 or math.isinf(num_batches)
    by_epochs = math.inf if unbounded else math.ceil(num_batches / accumulate) * int(max_epochs or 0)
    return by_epochs if max_steps == -1 else min(by_epochs, max_steps)
