"""Callbacks: one file each. The names below are loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.callback import Callback
    from headstart.callbacks.early_stopping import EarlyStopping
    from headstart.callbacks.finetuning import BackboneFinetuning, BaseFinetuning
    from headstart.callbacks.lambda_function import LambdaCallback
    from headstart.callbacks.live import LiveView
    from headstart.callbacks.lr_monitor import LearningRateMonitor
    from headstart.callbacks.model_checkpoint import ModelCheckpoint
    from headstart.callbacks.model_summary import ModelSummary, RichModelSummary
    from headstart.callbacks.progress import ProgressBar, RichProgressBar, TQDMProgressBar
    from headstart.callbacks.timer import Timer

# Each public name, and the module in which it is defined.
_DEFINED_IN = {
    "BackboneFinetuning": "headstart.callbacks.finetuning",
    "BaseFinetuning": "headstart.callbacks.finetuning",
    "Callback": "headstart.callback",
    "EarlyStopping": "headstart.callbacks.early_stopping",
    "LambdaCallback": "headstart.callbacks.lambda_function",
    "LearningRateMonitor": "headstart.callbacks.lr_monitor",
    "LiveView": "headstart.callbacks.live",
    "ModelCheckpoint": "headstart.callbacks.model_checkpoint",
    "ModelSummary": "headstart.callbacks.model_summary",
    "ProgressBar": "headstart.callbacks.progress",
    "RichModelSummary": "headstart.callbacks.model_summary",
    "RichProgressBar": "headstart.callbacks.progress",
    "TQDMProgressBar": "headstart.callbacks.progress",
    "Timer": "headstart.callbacks.timer",
}

__all__ = [
    "BackboneFinetuning",
    "BaseFinetuning",
    "Callback",
    "EarlyStopping",
    "LambdaCallback",
    "LearningRateMonitor",
    "LiveView",
    "ModelCheckpoint",
    "ModelSummary",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "TQDMProgressBar",
    "Timer",
]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'headstart.callbacks' has no attribute {name!r}")
    value = getattr(import_module(_DEFINED_IN[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
