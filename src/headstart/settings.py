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
from headstart.strategy import Strategy


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
    strategy = settings["strategy"]
    if not isinstance(strategy, Strategy) and strategy not in {"auto", "single_device"}:
        raise MisconfigurationError(
            f"strategy is {strategy!r}; expected 'auto' or a Strategy. Training runs in one process."
        )
    if settings["num_nodes"] != 1:
        raise MisconfigurationError(f"num_nodes is {settings['num_nodes']}; training runs on one machine.")


def choose_device(accelerator: str, devices: Any) -> torch.device:
    """Give the device of the one process.

    Raises:
        MisconfigurationError: If the accelerator has no such name or is not there, or more than one device is asked for.

    Example:
        >>> choose_device("cpu", "auto")
        device(type='cpu')
    """
    known = ("auto", "cpu", "gpu", "cuda", "mps")
    if accelerator not in known:
        raise MisconfigurationError(
            f"accelerator is {accelerator!r}; expected one of {', '.join(known)}.{did_you_mean(str(accelerator), known)}"
        )
    count = len(devices) if isinstance(devices, list | tuple) else devices
    if count not in {"auto", 1, "1", -1, "-1"}:
        raise MisconfigurationError(
            f"devices is {devices!r}; training runs on one device: give 1, 'auto', or [its number]."
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
