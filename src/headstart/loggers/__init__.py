"""Loggers: where the curves and hyper-parameters of a run go. The names below are loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.loggers.csv_logs import CSVLogger
    from headstart.loggers.logger import Logger
    from headstart.loggers.mlflow import MLFlowLogger
    from headstart.loggers.tensorboard import TensorBoardLogger
    from headstart.loggers.wandb import WandbLogger

# Each public name, and the module in which it is defined.
_DEFINED_IN = {
    "CSVLogger": "headstart.loggers.csv_logs",
    "Logger": "headstart.loggers.logger",
    "MLFlowLogger": "headstart.loggers.mlflow",
    "TensorBoardLogger": "headstart.loggers.tensorboard",
    "WandbLogger": "headstart.loggers.wandb",
}

__all__ = ["CSVLogger", "Logger", "MLFlowLogger", "TensorBoardLogger", "WandbLogger"]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'headstart.loggers' has no attribute {name!r}")
    value = getattr(import_module(_DEFINED_IN[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
