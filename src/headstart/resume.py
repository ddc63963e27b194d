"""From a run to a checkpoint, and back: everything that it takes to go on as if nothing had happened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from headstart import __version__, freezing, loaders
from headstart.checkpoint import load_weights, newest_whole, previous_path
from headstart.errors import CheckpointError, MisconfigurationError
from headstart.hparams import refuse_unreadable
from headstart.loop import Progress
from headstart.metrics import load_metric_states, metric_states
from headstart.optim import group_names, regroup, sync_scheduler

if TYPE_CHECKING:
    from headstart.callbacks import ModelCheckpoint
    from headstart.trainer import Trainer


def dump(trainer: Trainer, *, weights_only: bool = False) -> dict[str, Any]:
    """Give what a checkpoint of `trainer` holds.

    Args:
        trainer: The run.
        weights_only: Leave out what only a resume needs.
    """
    module, datamodule = trainer.lightning_module, trainer.datamodule
    checkpoint: dict[str, Any] = {
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        # The layout of the file is that of this version of the field's most used trainer.
        "pytorch-lightning_version": "2.6.0",
        "headstart_version": __version__,
        "state_dict": module.state_dict(),
    }
    if not weights_only:
        checkpoint["loops"] = training_state(trainer)
        checkpoint["callbacks"] = {
            each.state_key: state for each in trainer.callbacks if (state := each.state_dict())
        }
        checkpoint |= optimizer_state(trainer)
    for owner, prefix in ((module, ""), (datamodule, "datamodule_")):
        if owner is not None and owner.hparams:
            checkpoint[f"{prefix}hparams_name"] = owner.__dict__.get("_hparams_name", "kwargs")
            # They may have changed since __init__.
            refuse_unreadable(owner.hparams, owner=type(owner).__name__)
            checkpoint[f"{prefix}hyper_parameters"] = dict(owner.hparams)
    if datamodule is not None:
        if state := datamodule.state_dict():
            checkpoint[type(datamodule).__qualname__] = state
        datamodule.on_save_checkpoint(checkpoint)
    if not weights_only:
        for callback in trainer.callbacks:
            callback.on_save_checkpoint(trainer, module, checkpoint)
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def training_state(trainer: Trainer) -> dict[str, Any]:
    """What a resume needs beside weights, optimizers, schedulers and callbacks."""
    module, strategy = trainer.lightning_module, trainer.strategy
    own, *others = strategy.gather_objects(_state_of_process(trainer))
    state: dict[str, Any] = {
        "progress": trainer.progress.state_dict(),
        "trainable": freezing.trainable_names(module),
        "param_groups": [group_names(each, module) for each in trainer.optimizers],
        **own,
    }
    if not strategy.computes_alone:
        state |= _gradients(trainer)  # each process has its part of the same
    if others:
        state |= {"num_processes": strategy.world_size, "other_processes": others}
    return state


def _state_of_process(trainer: Trainer) -> dict[str, Any]:
    """What of that differs from process to process."""
    module, progress, logbook = trainer.lightning_module, trainer.progress, trainer.logbook
    state: dict[str, Any] = {
        # A validation that is cut off is begun anew on a resume, and draws again what it has drawn.
        "random_state": trainer.state_before_validation
        if logbook.evaluation is not None and progress.stage == "stepped"
        else trainer.train_batches.random_state(),
        "logbook": trainer.fit_logbook.state_dict(module),
    }
    if trainer.train_dataloader is not None:
        state["data"] = data_sizes(trainer)
    if trainer.skipped_batches:
        state["left_out"] = list(trainer.skipped_batches)
    if progress.is_inside_epoch:
        state["order"] = trainer.train_batches.state_dict()
        # An evaluation that is running is over on a resume, or begins anew: its metrics begin anew either way.
        evaluated = logbook.evaluation.entries.values() if logbook.evaluation is not None else ()
        state["metric_states"] = metric_states(module, leave_out=[entry.metric for entry in evaluated])
    if trainer.strategy.computes_alone:
        state |= _gradients(trainer)
    if not trainer.is_global_zero:  # running statistics, which each moves by its own samples until they agree
        state["buffers"] = {name: buffer.cpu() for name, buffer in module.named_buffers()}
    return state


def _gradients(trainer: Trainer) -> dict[str, Any]:
    """What an accumulation window that is under way has gathered, and what manual optimization may step with later."""
    if not trainer.progress.accumulated and trainer.lightning_module.automatic_optimization:
        return {}
    found = ((name, parameter.grad) for name, parameter in trainer.lightning_module.named_parameters())
    return {"gradients": {name: gradient for name, gradient in found if gradient is not None}}


def data_sizes(trainer: Trainer) -> dict[str, int]:
    """How many samples and batches the training data has, and a step of all processes, where that is known."""
    loader = trainer.train_dataloader
    found = {
        "samples": loaders.length_of(getattr(loader, "dataset", None)),
        "batches": loaders.length_of(loader),
        "samples a step": loaders.step_size(loader),
    }
    return {name: count for name, count in found.items() if count is not None}


def check_data(trainer: Trainer, before: Mapping[str, int]) -> None:
    """See whether the training data is as large as it was: in the middle of an epoch its order is drawn from that.

    Raises:
        CheckpointError: If the run goes on in the middle of an epoch, and the data has another size.
    """
    now, progress = data_sizes(trainer), trainer.progress
    changed = [
        f"{before[name]:,} {name} then, {now[name]:,} now"
        for name in before
        if name in now and now[name] != before[name]
    ]
    if not changed:
        return
    source = trainer.ckpt_path or "The last fit"
    is_inside = progress.batch > 0 and not progress.is_last_batch and progress.stage != "epoch_end"
    if is_inside:
        raise CheckpointError(
            f"{source} is from the middle of epoch {progress.epoch}, after batch {progress.batch}, and the training data has "
            f"changed since: {', '.join(changed)}. Which samples are left of that epoch cannot be known. Give the data and "
            "the batch size as they were, or go on from a checkpoint of an epoch's end, or begin a new fit from the "
            "weights alone: load_from_checkpoint."
        )
    if trainer.ckpt_path is not None:
        trainer.warn(
            f"{source}: the training data has changed since: {', '.join(changed)}. Epoch {progress.epoch} begins with the new "
            "data; the result is not that of an uncut run, and schedules that count batches were made for the old."
        )


def optimizer_state(trainer: Trainer) -> dict[str, Any]:
    """The states of the optimizers, the schedulers and the gradient scaler."""
    return {
        "optimizer_states": [each.state_dict() for each in trainer.optimizers],
        "lr_schedulers": [each.scheduler.state_dict() for each in trainer.lr_scheduler_configs],
        "precision": trainer.precision_plugin.state_dict(),
    }


def resolve(trainer: Trainer, ckpt_path: str | Path) -> str:
    """Give the file that `ckpt_path` means: itself, or what `"best"` and `"last"` stand for.

    Where the last one is damaged, the newest one before it that is whole takes its place, with a warning.

    Raises:
        MisconfigurationError: If there is no such checkpoint yet.
        CheckpointError: If all that `"last"` could mean are damaged.
    """
    if ckpt_path not in {"best", "last"}:
        return str(ckpt_path)
    callback = trainer.checkpoint_callback
    if callback is None:
        raise MisconfigurationError(
            f"ckpt_path={ckpt_path!r} needs a ModelCheckpoint callback, and there is none."
        )
    if ckpt_path == "last" and (candidates := last_checkpoints(callback)):
        # The first process alone looks: it renames what is damaged, under the eyes of the others.
        return str(trainer.strategy.by_first(lambda: newest_whole(candidates, say=trainer.warn)))
    path = callback.best_model_path if ckpt_path == "best" else ""
    if not path:
        hint = " (it needs save_last=True)" if ckpt_path == "last" else ""
        raise MisconfigurationError(
            f"ckpt_path={ckpt_path!r}, and the ModelCheckpoint has saved none yet{hint}."
        )
    return str(path)


def last_checkpoint(callback: ModelCheckpoint) -> str:
    """Give the last checkpoint that a `ModelCheckpoint` saved, in this process or an earlier one; `""` for none."""
    return next(iter(last_checkpoints(callback)), "")


def last_checkpoints(callback: ModelCheckpoint) -> list[str]:
    """Give the last checkpoint that a `ModelCheckpoint` saved, and those before it that are still there."""
    own, folder = callback.last_model_path, callback.dirpath
    found = [Path(own), previous_path(own)] if own else []
    lasts = list(Path(folder).glob("last*.ckpt")) if folder else []
    times = {path: path.lstat().st_mtime for path in lasts}
    for path in sorted(times, key=times.__getitem__, reverse=True):
        latest = path.with_stem(path.stem.removesuffix("-previous"))
        found += [latest, previous_path(latest)]
    return [str(path) for path in dict.fromkeys(found) if os.path.lexists(path)]


# ---- back again


def restore_weights(trainer: Trainer, checkpoint: dict[str, Any], *, source: str) -> None:
    """Load the weights, and give the module and the data module what they saved."""
    module, datamodule = trainer.lightning_module, trainer.datamodule
    if "state_dict" not in checkpoint:
        raise CheckpointError(f"{source} has no 'state_dict'. It holds: {', '.join(map(str, checkpoint))}.")
    if datamodule is not None:
        datamodule.on_load_checkpoint(checkpoint)
        if (key := type(datamodule).__qualname__) in checkpoint:
            datamodule.load_state_dict(checkpoint[key])
    module.on_load_checkpoint(checkpoint)
    own = module.state_dict()
    weights = {
        name: trainer.strategy.part(value, own[name]) if name in own else value
        for name, value in checkpoint["state_dict"].items()
    }
    load_weights(module, weights, strict=bool(module.strict_loading), source=source)


def restore_callbacks(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Give every callback its state, and say which states nobody takes."""
    states = checkpoint.get("callbacks") or {}
    lost = set(states) - {each.state_key for each in trainer.callbacks}
    if lost:
        trainer.warn(
            f"The checkpoint holds the state of callbacks that this trainer does not have: {', '.join(sorted(lost))}."
        )
    for callback in trainer.callbacks:
        callback.on_load_checkpoint(trainer, trainer.lightning_module, checkpoint)
        if callback.state_key in states:
            callback.load_state_dict(dict(states[callback.state_key]))


def own_state(trainer: Trainer, state: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Give of what `training_state` gave what is this process's.

    A run may go on in another number of processes: at an epoch's boundary as if nothing had happened, but for random numbers
    beside those of the order; in the middle of an epoch if all take as many samples a step as before (`check_data`).
    """
    before, now = state.get("num_processes", 1), trainer.world_size
    if "progress" not in state or (before == now and trainer.is_global_zero):
        return dict(state)
    if before == now:
        return {**state, **state["other_processes"][trainer.global_rank - 1]}
    others = state.get("other_processes", [])
    if 0 < trainer.global_rank <= len(others):
        state = {**state, "random_state": others[trainer.global_rank - 1]["random_state"]}
    if not Progress(**state["progress"]).is_inside_epoch:
        return dict(state)
    trainer.warn(
        f"{source} is of {before} processes, and now there are {now}: of the epoch under way, what was logged counts from here on."
    )
    own = {**state, "logbook": {**state["logbook"], "training": {}}, "metric_states": {}}
    if "gradients" in state:
        parts = [state["gradients"], *(each["gradients"] for each in others if "gradients" in each)]
        own["gradients"] = {name: sum(each[name] for each in parts) / len(parts) for name in parts[0]}
    return own


def restore_training(
    trainer: Trainer, state: Mapping[str, Any], checkpoint: Mapping[str, Any], *, source: str
) -> None:
    """Put a run back where it was: progress, what trains, groups, logged values, optimizers and schedulers.

    Args:
        trainer: The run, its optimizers as `configure_optimizers` gave them.
        state: What `training_state` gave, or the `loops` of another trainer's checkpoint.
        checkpoint: Where the optimizers' states are.
        source: Its name, for messages.
    """
    module, logbook = trainer.lightning_module, trainer.logbook
    if "progress" in state:
        trainer.progress = Progress(**state["progress"])
        _name_what_is_new(trainer, checkpoint, source=source)
        freezing.set_trainable(module, state["trainable"])
        for optimizer, names in zip(trainer.optimizers, state["param_groups"], strict=False):
            regroup(optimizer, names, module)
        is_complete = trainer.progress.stage == "epoch_end"
        logbook.load_state_dict(state["logbook"], module, is_complete=is_complete)
        load_metric_states(module, state.get("metric_states", {}))
        buffers = dict(module.named_buffers())
        for name, value in state.get("buffers", {}).items():
            if name in buffers:
                buffers[name].copy_(value)
        for name, gradient in state.get("gradients", {}).items():
            parameter = module.get_parameter(name)
            parameter.grad = trainer.strategy.part(gradient, parameter)
    else:
        trainer.progress = _progress_of_another_trainer(state, checkpoint)
    for config in trainer.lr_scheduler_configs:
        sync_scheduler(config.scheduler)
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    for kind, owners in (("optimizer_states", trainer.optimizers), ("lr_schedulers", schedulers)):
        _load_states(trainer, kind, owners, checkpoint.get(kind), source=source)
    trainer.precision_plugin.load_state_dict(checkpoint.get("precision") or {})


def _name_what_is_new(trainer: Trainer, checkpoint: Mapping[str, Any], *, source: str) -> None:
    """Say which parameters the checkpoint does not know (`strict_loading` is off): a resume trains what trained."""
    known = checkpoint.get("state_dict")
    new = (
        [] if known is None else sorted(set(freezing.trainable_names(trainer.lightning_module)) - set(known))
    )
    if new:
        more = f" and {len(new) - 5} more" if len(new) > 5 else ""
        trainer.warn(
            f"{source} does not know {', '.join(new[:5])}{more}: a resumed run trains what trained, so they stay "
            "frozen. To train them, begin a new fit from the weights alone: load_from_checkpoint(..., strict=False)."
        )


def _progress_of_another_trainer(state: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Progress:
    """Where a checkpoint of another trainer stands: at an epoch's end, for it says nothing of the order within one."""
    begun = state.get("fit_loop", {}).get("epoch_progress", {}).get("current", {}).get("ready")
    steps = int(checkpoint.get("global_step", 0))
    epoch = int(checkpoint.get("epoch", -1)) + 1 if begun is None else int(begun)
    return Progress(epoch=epoch, global_step=steps, logged_steps=steps)


def _load_states(
    trainer: Trainer, kind: str, owners: list[Any], states: list[Any] | None, *, source: str
) -> None:
    if states is None:
        trainer.warn(f"{source} holds no {kind} (was it saved with weights only?): they begin anew.")
        return
    if len(owners) != len(states):
        raise CheckpointError(
            f"{source} holds {len(states)} {kind}, and configure_optimizers gave {len(owners)}."
        )
    for owner, state in zip(owners, states, strict=True):
        try:
            owner.load_state_dict(state)
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{source}: one of its {kind} does not fit: {error}") from error
        if isinstance(owner, Optimizer):
            for parameter, kept in owner.state.items():
                for name, value in kept.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        kept[name] = trainer.strategy.part(value, parameter)
        groups = getattr(owner, "param_groups", [])
        lacking = [key for group in groups for key in owner.defaults if key not in group]
        if lacking:
            raise CheckpointError(
                f"{source}: one of its {kind} is of another class than {type(owner).__name__}: it has no "
                f"{lacking[0]!r}. Build the optimizer that was saved, or begin a new fit from the weights alone: "
                "load_from_checkpoint."
            )
