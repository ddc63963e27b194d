"""The trainer's settings: checked, and turned into a device, loggers and callbacks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from headstart.callback import Callback
from headstart.deferred import Reuse
from headstart.errors import MisconfigurationError, UnknownArgumentError, did_you_mean
from headstart.hooks import is_overridden
from headstart.plan import Plan
from headstart.strategy import SingleDevice, Strategy


def refuse_unknown(unknown: dict[str, Any], known: Iterable[str]) -> None:
    """Raise for an argument that the trainer does not take.

    Raises:
        UnknownArgumentError: With the name that was probably meant.
    """
    if unknown:
        name = next(iter(unknown))
        raise UnknownArgumentError(
            f"Trainer takes no argument {name!r}.{did_you_mean(name, known)} It takes: {', '.join(known)}."
        )


def check_settings(settings: dict[str, Any]) -> None:
    """Raise for a value that makes no sense.

    Raises:
        MisconfigurationError: With the setting's name, what was received and what was expected.
    """
    for name in ("max_epochs", "max_steps", "num_sanity_val_steps"):
        value = settings[name]
        if value is not None and value < -1:
            raise MisconfigurationError(f"{name} is {value}; expected -1 (no bound), 0 or more.")
    for name in (
        "limit_train_batches",
        "limit_val_batches",
        "limit_test_batches",
        "limit_predict_batches",
        "overfit_batches",
    ):
        value = settings[name]
        if value is not None and (value < 0 or (isinstance(value, float) and value > 1.0)):
            raise MisconfigurationError(
                f"{name} is {value}; expected a fraction from 0.0 to 1.0, or a number of batches."
            )
    interval = settings["val_check_interval"]
    if interval is not None and (interval <= 0 or (isinstance(interval, float) and interval > 1.0)):
        raise MisconfigurationError(
            f"val_check_interval is {interval}; expected a fraction of an epoch from above 0.0 to 1.0, or a number of batches."
        )
    if settings["accumulate_grad_batches"] < 1:
        raise MisconfigurationError(
            f"accumulate_grad_batches is {settings['accumulate_grad_batches']}; expected 1 or more."
        )
    if settings["gradient_clip_algorithm"] not in {None, "norm", "value"}:
        raise MisconfigurationError(
            f"gradient_clip_algorithm is {settings['gradient_clip_algorithm']!r}; expected 'norm' or 'value'."
        )
    if settings["num_nodes"] < 1:
        raise MisconfigurationError(f"num_nodes is {settings['num_nodes']}; expected 1 or more.")
    for name, words in {"on_nan": ("warn", "raise", "skip"), "on_out_of_memory": ("raise", "split")}.items():
        if settings[name] not in words:
            raise MisconfigurationError(
                f"{name} is {settings[name]!r}; expected {' or '.join(map(repr, words))}."
                f"{did_you_mean(str(settings[name]), words)}"
            )


_STRATEGIES = ("auto", "single_device", "ddp", "ddp_find_unused_parameters_true", "fsdp")


def choose_strategy(
    given: Any, *, accelerator: str, devices: Any, num_nodes: int, shares_loaders: bool
) -> Strategy:
    """Give the strategy: one process on one device, or one of several.

    Several run where torchrun started this process, or where more than one device is asked for.

    Args:
        given: A word, or a strategy.
        accelerator: As `Trainer` takes it.
        devices: As `Trainer` takes it.
        num_nodes: As `Trainer` takes it.
        shares_loaders: Whether samples are dealt out.

    Raises:
        MisconfigurationError: If the word is none of those, or the numbers are not those of torchrun.

    Example:
        >>> choose_strategy("auto", accelerator="cpu", devices=1, num_nodes=1, shares_loaders=True).world_size
        1
    """
    from headstart.strategy.processes import from_environment

    if isinstance(given, Strategy):
        given.place(choose_device(accelerator, "auto"), _count(devices))
        return given
    if given not in _STRATEGIES:
        raise MisconfigurationError(
            f"strategy is {given!r}; expected one of {', '.join(_STRATEGIES)}, or a Strategy."
            f"{did_you_mean(str(given), _STRATEGIES)}"
        )
    processes = from_environment()
    count = _count(devices)
    if processes is None and num_nodes > 1:
        raise MisconfigurationError(
            f"num_nodes is {num_nodes}, and torchrun did not start this process: run `torchrun --nnodes={num_nodes} "
            f"--nproc_per_node={count or 'DEVICES'} ...` on every machine."
        )
    if given == "single_device" or (
        given == "auto" and (count == 1 or (processes is None and count is None))
    ):
        return SingleDevice(choose_device(accelerator, devices))
    if processes is not None and (
        count not in {None, processes.local_size} or num_nodes not in {1, processes.num_nodes}
    ):
        raise MisconfigurationError(
            f"devices is {devices!r} and num_nodes is {num_nodes}, and torchrun started {processes.local_size} processes on "
            f"each of {processes.num_nodes} machines. Leave both out, or make them agree."
        )
    from headstart.strategy import DDPStrategy, FSDPStrategy

    device = choose_device(accelerator, "auto")
    common: dict[str, Any] = {"devices": count or 1, "shares_loaders": shares_loaders}
    if given == "fsdp":
        return FSDPStrategy(device, **common)
    return DDPStrategy(device, find_unused_parameters=given == "ddp_find_unused_parameters_true", **common)


def _count(devices: Any) -> int | None:
    """Give how many devices are asked for; `None` for as many as there are processes."""
    if devices == "auto":
        return None
    if isinstance(devices, list | tuple):
        return len(devices)
    try:
        count = int(devices)
    except (TypeError, ValueError):
        raise MisconfigurationError(
            f"devices is {devices!r}; expected 'auto', how many, -1 for all, or a list of numbers."
        ) from None
    if count == -1:
        return max(1, torch.cuda.device_count())
    if count < 1:
        raise MisconfigurationError(f"devices is {devices!r}; expected 1 or more, or -1 for all.")
    return count


def check_faults(*, on_nan: str, splits: bool, automatic: bool, closure: bool, alone: bool) -> None:
    """Raise where a batch cannot be left out or split, because the program or its optimizer takes the step itself.

    Raises:
        MisconfigurationError: With the setting and the reason.
    """
    if splits and not alone:
        raise MisconfigurationError(
            "on_out_of_memory='split' works in one process: the others would not know of the parts. Give smaller batches, and "
            "accumulate_grad_batches."
        )
    if closure and not alone:
        raise MisconfigurationError(
            "An optimizer that calls its closure itself (L-BFGS) needs one process: it would decide by each one's own loss."
        )
    reason = "an optimizer that calls its closure several times" if closure else "manual optimization"
    if automatic and not closure:
        return
    if on_nan == "skip":
        raise MisconfigurationError(f"on_nan='skip' does not work with {reason}. Use 'raise' or 'warn'.")
    if splits:
        raise MisconfigurationError(f"on_out_of_memory='split' does not work with {reason}.")


def choose_device(accelerator: str, devices: Any) -> torch.device:
    """Give the device of a process: the one that `devices` lists, or the first.

    Raises:
        MisconfigurationError: If the accelerator has no such name or is not there.

    Example:
        >>> choose_device("cpu", "auto")
        device(type='cpu')
    """
    known = ("auto", "cpu", "gpu", "cuda", "mps")
    if accelerator not in known:
        raise MisconfigurationError(
            f"accelerator is {accelerator!r}; expected one of {', '.join(known)}.{did_you_mean(str(accelerator), known)}"
        )
    index = devices[0] if isinstance(devices, list | tuple) else 0
    if accelerator in {"gpu", "cuda"} or (accelerator == "auto" and torch.cuda.is_available()):
        if torch.cuda.is_available():
            return torch.device("cuda", index)
        if accelerator == "cuda":
            raise MisconfigurationError(
                "accelerator is 'cuda', and torch finds no CUDA device. Use 'auto' or 'cpu'."
            )
    if accelerator in {"gpu", "mps"} or (accelerator == "auto" and torch.backends.mps.is_available()):
        if torch.backends.mps.is_available():
            return torch.device("mps")
        raise MisconfigurationError(
            f"accelerator is {accelerator!r}, and torch finds no such device. Use 'auto' or 'cpu'."
        )
    return torch.device("cpu")


def choose_reuse(given: Any, *, say: Callable[[str], None]) -> Reuse | None:
    """Give what computes frozen work once, or `None` where it is to be done in every epoch.

    Raises:
        MisconfigurationError: If the setting is none of those.
    """
    if given is False or isinstance(given, Reuse):
        return given or None
    if given not in {"auto", "exact"}:
        raise MisconfigurationError(
            f"reuse_frozen is {given!r}; expected 'auto', 'exact', False or a headstart.deferred.Reuse."
        )
    return Reuse(setting=given, say=say)


def choose_plan(given: Any) -> Plan | None:
    """Give the plan: itself, or what a plan's name, a YAML file or plain values say.

    Raises:
        MisconfigurationError: If it is none of those.
    """
    if given is None or isinstance(given, Plan):
        return given
    if isinstance(given, Mapping):
        return Plan.from_dict(given)
    if isinstance(given, Path) or (isinstance(given, str) and given.endswith((".yaml", ".yml"))):
        return Plan.from_yaml(given)
    if isinstance(given, str):
        from headstart.plans import named_plan

        return named_plan(given)
    raise MisconfigurationError(
        f"plan is a {type(given).__name__}; expected a Plan, the name of one, a YAML file, or plain values."
    )


def gather_loggers(logger: Any, *, default_root_dir: str) -> list[Any]:
    """Give the loggers: those given, or the default (TensorBoard where it is installed, else CSV)."""
    if logger is False:
        return []
    if logger is None or logger is True:
        from headstart import loggers

        default = loggers.TensorBoardLogger if find_spec("tensorboard") else loggers.CSVLogger
        return [default(default_root_dir)]
    return list(logger) if isinstance(logger, list | tuple) else [logger]


def gather_callbacks(
    given: Callback | list[Callback] | None,
    *,
    is_trial: bool,
    checkpointing: bool,
    progress_bar: bool,
    model_summary: bool,
    max_time: Any,
    plan: Plan | None = None,
) -> list[Callback]:
    """Give the callbacks, in order: those given, and the defaults for what is enabled and not given.

    Raises:
        TypeError: If one is no callback.
        MisconfigurationError: If two would share their state in a checkpoint, or a given one is not enabled.
    """
    from headstart import callbacks as own

    callbacks = [given] if isinstance(given, Callback) else list(given or [])
    for each in callbacks:
        if not isinstance(each, Callback):
            raise TypeError(f"callbacks received {type(each).__name__}; expected Callback objects.")
    if plan is not None:
        from headstart.callbacks.plan import PlanRunner

        callbacks.insert(0, PlanRunner(plan))

    def has(kind: type) -> bool:
        return any(isinstance(each, kind) for each in callbacks)

    if is_trial:
        callbacks = [each for each in callbacks if not isinstance(each, own.ModelCheckpoint)]
    elif not checkpointing and has(own.ModelCheckpoint):
        raise MisconfigurationError(
            "enable_checkpointing=False, and callbacks holds a ModelCheckpoint. Choose one."
        )
    if progress_bar and not has(own.ProgressBar):
        callbacks.append(own.RichProgressBar())
    if model_summary and not has(own.ModelSummary):
        callbacks.append(own.ModelSummary())
    if max_time is not None and has(own.Timer):
        warnings.warn(f"max_time={max_time!r} has no effect: callbacks holds a Timer.", stacklevel=3)
    elif max_time is not None:
        callbacks.append(own.Timer(duration=max_time))
    if checkpointing and not is_trial and not has(own.ModelCheckpoint):
        callbacks.append(own.ModelCheckpoint())
    keys = [each.state_key for each in callbacks if is_overridden("state_dict", each, Callback)]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise MisconfigurationError(
            f"Two callbacks have the state_key {twice!r}: in a checkpoint the one's state would overwrite the "
            "other's. Override the property state_key in one of them."
        )
    return in_order(callbacks)


def in_order(callbacks: list[Callback]) -> list[Callback]:
    """Give the callbacks as they were, `ModelCheckpoint` last."""
    from headstart.callbacks import ModelCheckpoint

    return sorted(callbacks, key=lambda each: isinstance(each, ModelCheckpoint))
