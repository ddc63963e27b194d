"""How a run is spread over devices and processes."""

from typing import TYPE_CHECKING, Any

from headstart.strategy.base import Share, Strategy
from headstart.strategy.single import SingleDevice

if TYPE_CHECKING:
    from headstart.strategy.ddp import DDPStrategy
    from headstart.strategy.fsdp import FSDPStrategy

__all__ = ["DDPStrategy", "FSDPStrategy", "Share", "SingleDevice", "Strategy"]

# They import torch.distributed, which one process does without.
_LATER = {"DDPStrategy": "ddp", "FSDPStrategy": "fsdp"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(f"headstart.strategy.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
