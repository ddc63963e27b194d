"""Learning curves, from the CSV file of a run and what each epoch reached."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

_NAMES = ("train_loss", "val_loss", "val_acc", "val_f1")
# Points of a curve on a page, at most.
_MOST_POINTS = 500

#: A value at an optimizer step.
Curve = list[tuple[int, float]]


def read_curves(metrics_file: Path, epochs: list[dict[str, Any]]) -> dict[str, Any]:
    """Give each curve by step, and the last step of each epoch.

    Args:
        metrics_file: What `CSVLogger` wrote. Where it is missing there are no curves.
        epochs: What each reached: its number, `train_loss_epoch`, a point where the step at its end was not logged.

    Returns:
        `curves`, a list of `(step, value)` for each name; `epoch_ends`, as `(epoch, step)`.
    """
    curves: dict[str, dict[int, float]] = {name: {} for name in _NAMES}
    epoch_ends: dict[int, int] = {}
    if metrics_file.is_file():
        with metrics_file.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = int(row["step"])
                if row.get("epoch"):
                    epoch_ends[int(float(row["epoch"]))] = step
                for name in _NAMES:
                    if row.get(name):
                        curves[name][step] = float(row[name] or 0)
    for epoch in epochs:
        if "train_loss_epoch" in epoch and epoch["epoch"] in epoch_ends:
            curves["train_loss"].setdefault(epoch_ends[epoch["epoch"]], epoch["train_loss_epoch"])
    return {
        "curves": {name: _thinned(sorted(points.items())) for name, points in curves.items() if points},
        "epoch_ends": sorted(epoch_ends.items()),
    }


def _thinned(points: Curve) -> Curve:
    every = -(-len(points) // _MOST_POINTS)
    return [point for index, point in enumerate(points) if index % every == 0 or index == len(points) - 1]
