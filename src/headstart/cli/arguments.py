"""Arguments that several commands have in common."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import DataError

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


def named_text_columns(options: argparse.Namespace, trained_on: Mapping[str, Any]) -> list[str] | None:
    """Give the columns of texts that were named, for the model of a run; `None` where there are none.

    Args:
        options: With `run`, `text_column` and `text_pair_column`.
        trained_on: What the model remembers of its training data.

    Raises:
        MisconfigurationError: If the second of two is named alone.
        DataError: If the model takes another number of texts.
    """
    from headstart.cli.options import columns_of_texts

    named = columns_of_texts(options)
    if named is None:
        return None
    received = (
        "--text_column names one column"
        if len(named) == 1
        else "--text_column and --text_pair_column name two"
    )
    _refuse_other_texts(len(named), options.run, trained_on, received=received)
    return named


def refuse_other_texts(
    text: str | tuple[str, ...], *, source: str, run: Path, trained_on: Mapping[str, Any]
) -> None:
    """Refuse pairs where a model judges single texts, and the other way round: it would answer to both.

    Args:
        text: One sample of the data.
        source: The data, for the message.
        run: Of the model.
        trained_on: What the model remembers of its training data.

    Raises:
        DataError: If the model takes another number of texts.
    """
    num_texts = 1 if isinstance(text, str) else len(text)
    kind = "single texts" if num_texts == 1 else "pairs"
    _refuse_other_texts(num_texts, run, trained_on, received=f"the samples of {source} are {kind}")


def _refuse_other_texts(num_texts: int, run: Path, trained_on: Mapping[str, Any], *, received: str) -> None:
    if trained_on.get("texts_per_sample", num_texts) == num_texts:
        return
    if num_texts == 1:
        takes = "pairs of texts"
        what_to_do = "Give pairs; of a table, name both columns with --text_column and --text_pair_column."
    else:
        takes = "single texts"
        what_to_do = "Give single texts; of a table, name their column with --text_column alone."
    raise DataError(f"The model in {run} judges {takes}, and {received}. {what_to_do}")


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
