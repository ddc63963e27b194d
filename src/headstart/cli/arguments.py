"""Arguments that several commands have in common."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.cli.options import FitOptions
    from headstart.strategy import Strategy


def add_device_arguments(parser: argparse.ArgumentParser, *, may_be_several: bool = True) -> None:
    """Add how samples are read, and on what they are computed.

    Args:
        parser: Of the command.
        may_be_several: Whether the number of devices may be said; without, it is one.
    """
    parser.add_argument("--batch_size", type=positive, default=32, help="samples at a time (default: 32)")
    parser.add_argument(
        "--num_workers",
        type=int,
        default=0,
        help="processes that read samples; 0 reads them in this one (default: 0)",
    )
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, gpu, cuda or mps (default: auto)")
    if may_be_several:
        parser.add_argument("--devices", default="auto", help="how many devices (default: auto)")
    parser.add_argument("--precision", default="32-true", help="number format, as for fit (default: 32-true)")


def device_settings(options: argparse.Namespace | FitOptions) -> dict[str, Any]:
    """Give on what is computed, as the keyword arguments of `Trainer`."""
    return {"accelerator": options.accelerator, "devices": options.devices, "precision": options.precision}


def meet(options: argparse.Namespace | FitOptions) -> Strategy:
    """Give the strategy of a command, with the other processes met; where `--devices` asks for several, start them.

    The first process alone writes files, and prints: what the others print goes nowhere.
    """
    from headstart.settings import choose_strategy

    strategy = choose_strategy(
        "auto", accelerator=options.accelerator, devices=options.devices, num_nodes=1, shares_loaders=True
    )
    strategy.connect()
    if not strategy.is_global_zero:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    return strategy


def positive(text: str) -> int:
    """Give the whole number above 0 that was written, for `argparse`."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value
