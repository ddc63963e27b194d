"""headstart: transfer learning and finetuning for PyTorch.

The names below are loaded when they are first used, so that `import headstart` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from headstart.callback import Callback
    from headstart.datamodule import LightningDataModule
    from headstart.module import LightningModule
    from headstart.plan import Phase, Plan
    from headstart.seed import seed_everything
    from headstart.trainer import Trainer

# Each public name, and the module in which it is defined.
_DEFINED_IN = {
    "Callback": "headstart.callback",
    "LightningDataModule": "headstart.datamodule",
    "LightningModule": "headstart.module",
    "Phase": "headstart.plan",
    "Plan": "headstart.plan",
    "Trainer": "headstart.trainer",
    "seed_everything": "headstart.seed",
}
_SUBMODULES = ("callbacks", "loggers", "backbones", "tasks", "data", "freezing")

__all__ = [
    "Callback",
    "LightningDataModule",
    "LightningModule",
    "Phase",
    "Plan",
    "Trainer",
    "seed_everything",
]


def __getattr__(name: str) -> Any:
    if name in _DEFINED_IN:
        value = getattr(import_module(_DEFINED_IN[name]), name)
    elif name in _SUBMODULES:
        value = import_module(f"headstart.{name}")
    else:
        raise AttributeError(f"module 'headstart' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES, "__version__"])
