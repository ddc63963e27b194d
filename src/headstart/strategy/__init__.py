"""How a run is spread over devices and processes."""

from headstart.strategy.base import Strategy
from headstart.strategy.single import SingleDevice

__all__ = ["SingleDevice", "Strategy"]
