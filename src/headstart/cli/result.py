"""What a run came to, as plain values: what `headstart fit --json` prints."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from headstart.cli.run_folder import RunFolder


def result_of(
    folder: RunFolder, *, status: Literal["finished", "interrupted"], seconds: float
) -> dict[str, Any]:
    """Give scores, what was kept, paths and seconds of the run in a folder.

    Args:
        folder: Of the run.
        status: How it ended.
        seconds: That the command took.

    Returns:
        Values for JSON. `scores` are those of the test part, `None` where there is none or nothing was tested;
        `validation` are those by which the model was chosen.
    """
    from headstart.artefact import read_metadata

    path = folder.path
    found: dict[str, Any] = {"run": str(path), "status": status}
    files = {
        "model": path / "model.safetensors",
        "description": path / "headstart.json",
        "options": path / "run.yaml",
        "curves": folder.metrics_file,
        "report": path / "report.html",
        "last_checkpoint": folder.last_checkpoint,
    }
    paths = {name: str(file) for name, file in files.items() if file.exists()}
    if "description" not in paths:  # cut short before anything was learned
        return {**found, "paths": paths, "seconds": {"total": seconds}}
    metadata = read_metadata(path)
    metrics = metadata.get("metrics") or {}
    choice = metrics.get("choice")
    history = metadata.get("history") or {}
    return {
        **found,
        "task": metadata["task"],
        "backbone": metadata["backbone"]["name"],
        "class_names": metadata["class_names"],
        "samples": (metadata.get("data") or {}).get("part_sizes"),
        "scores": metrics.get("test"),
        "validation": metrics.get("validation"),
        "kept": {
            "name": None if choice is None else choice["chosen"],
            "epoch": metrics.get("best_epoch"),
        },
        "choice": choice,
        "calibration": metrics.get("calibration"),
        "forgetting": metrics.get("forgetting"),
        "paths": paths,
        "phases": history.get("phases", []),
        "seconds": {
            "total": seconds,
            "training": sum(each["seconds"] for each in history.get("phases", [])),
        },
    }


def as_json(value: Any) -> str:
    """Give plain values as JSON; NaN and infinity, which JSON does not know, as null.

    Example:
        >>> print(as_json({"loss": float("nan"), "epochs": [1, 2]}))
        {"loss": null, "epochs": [1, 2]}
    """
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
