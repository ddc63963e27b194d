"""Values that were logged, by the name under which a callback watches them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from headstart.errors import MisconfigurationError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from headstart.trainer import Trainer

Mode = Literal["min", "max"]


def is_better(value: float, than: float, *, mode: Mode) -> bool:
    """Whether `value` is an improvement; NaN never is, and everything is better than NaN.

    Example:
        >>> is_better(0.5, 0.7, mode="min"), is_better(0.5, 0.5, mode="min"), is_better(0.5, 0.7, mode="max")
        (True, False, False)
        >>> is_better(float("nan"), 0.7, mode="min"), is_better(0.7, float("nan"), mode="min")
        (False, True)
    """
    if math.isnan(value) or math.isnan(than):
        return not math.isnan(value)
    return value < than if mode == "min" else value > than


def worst(mode: Mode) -> float:
    """The value that every other is better than.

    Example:
        >>> worst("min"), worst("max")
        (inf, -inf)
    """
    return math.inf if mode == "min" else -math.inf


def check_mode(mode: str, *, owner: str) -> None:
    """Raise if `mode` is no direction of improvement.

    Raises:
        MisconfigurationError: If it is neither `"min"` nor `"max"`.
    """
    if mode not in {"min", "max"}:
        raise MisconfigurationError(
            f"{owner}(mode={mode!r}): expected 'min' where less is better (a loss), 'max' where more is (an accuracy)."
        )


def acts_on_train_epoch_end(trainer: Trainer, chosen: bool | None) -> bool:
    """Whether a callback acts at an epoch's end, and not after each validation.

    Args:
        trainer: Of the run.
        chosen: What the callback was told; `None` is after each validation, or at the epoch's end where each has one.
    """
    if chosen is not None:
        return chosen
    once_an_epoch = trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1
    return once_an_epoch or not trainer.enable_validation


def never_logged(name: str, logged: Iterable[str], *, owner: str) -> UnknownNameError:
    """Give the error for a monitored name that nobody logged, with the names that somebody did.

    Args:
        name: The name to monitor.
        logged: The names of `trainer.callback_metrics`.
        owner: The class that monitors it.

    Example:
        >>> print(never_logged("val_los", ["train_loss", "val_loss"], owner="EarlyStopping"))
        EarlyStopping(monitor='val_los'): nothing was logged under that name. Did you mean 'val_loss'? Logged so far: \
train_loss, val_loss. Log it with self.log('val_los', value) in the module.
    """
    names = sorted(logged)
    return UnknownNameError(
        f"{owner}(monitor={name!r}): nothing was logged under that name.{did_you_mean(name, names)} "
        f"Logged so far: {', '.join(names) or 'nothing'}. Log it with self.log({name!r}, value) in the module."
    )
