"""Where the curves of `headstart fit` go: the loggers that `--logger` names."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from headstart.errors import MisconfigurationError, did_you_mean, missing_dependency

if TYPE_CHECKING:
    from headstart.cli.run_folder import RunFolder

#: Each logger's library, and the extra that brings it.
_LIBRARIES = {"csv": None, "tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}


def read_names(given: str) -> list[str]:
    """Give the loggers that are named, with commas between.

    Raises:
        MisconfigurationError: If there is no such logger, or none is named.

    Example:
        >>> read_names("csv,mlflow")
        ['csv', 'mlflow']
    """
    names = list(dict.fromkeys(each.strip() for each in given.split(",") if each.strip()))
    unknown = next((each for each in names if each not in _LIBRARIES), None)
    if unknown is not None or not names:
        raise MisconfigurationError(
            f"--logger is {given!r}; expected one or more of {', '.join(_LIBRARIES)}, with commas between."
            f"{did_you_mean(str(unknown), _LIBRARIES)}"
        )
    return names


def loggers_of(folder: RunFolder, given: str | None) -> list[Any]:
    """Give the loggers of a run.

    Runs of MLflow and Weights & Biases are gone on with where the run goes on: their ids stand in `logs/loggers.json`.

    Args:
        folder: Of the run.
        given: Names with commas between, beside CSV; `None` is TensorBoard, where it is installed.

    Raises:
        MissingDependencyError: If the library of one that was named is not installed.
    """
    from headstart.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

    # The report reads the curves from the CSV file.
    names = ["csv", "tensorboard"] if given is None else list(dict.fromkeys(["csv", *read_names(given)]))
    if given is None and find_spec("tensorboard") is None:
        hint = missing_dependency("tensorboard", needed_for="curves in TensorBoard", extra="tensorboard")
        print(f"{hint} Without it, the curves are in {folder.metrics_file} alone.")
        names = ["csv"]
    for name in names:
        library = _LIBRARIES[name]
        if library is not None and find_spec(library) is None:
            raise missing_dependency(library, needed_for=f"--logger {name}", extra=library)
    logs = folder.metrics_file.parent
    ids = _ids_of(folder)
    here: dict[str, Any] = {"name": None, "version": logs.name}
    loggers: list[Any] = []
    for name in names:
        if name == "csv":
            loggers.append(CSVLogger(folder.path, **here))
        elif name == "tensorboard":
            loggers.append(TensorBoardLogger(folder.path, **here))
        elif name == "mlflow":
            loggers.append(
                MLFlowLogger("headstart", run_name=folder.path.name, save_dir=logs, run_id=ids.get(name))
            )
        else:
            is_offline = not {"WANDB_MODE", "WANDB_API_KEY"} & set(os.environ)
            if is_offline:
                print(
                    f"Weights & Biases: offline, as neither WANDB_API_KEY nor WANDB_MODE is set. Send the run later: wandb sync "
                    f"{logs / 'wandb'}/offline-run-*"
                )
            project = os.environ.get("WANDB_PROJECT", "headstart")
            loggers.append(
                WandbLogger(
                    folder.path.name, save_dir=logs, project=project, id=ids.get(name), offline=is_offline
                )
            )
    _keep_ids(folder, {name: each for name, each in zip(names, loggers, strict=True) if name not in ids})
    return loggers


def _ids_of(folder: RunFolder) -> dict[str, str]:
    file = folder.metrics_file.parent / "loggers.json"
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def _keep_ids(folder: RunFolder, loggers: dict[str, Any]) -> None:
    """Write the ids of new runs down; only the first process has runs."""
    new = (
        {name: each.version for name, each in loggers.items() if name in {"mlflow", "wandb"}}
        if folder.is_ours
        else {}
    )
    if new:
        file = folder.metrics_file.parent / "loggers.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_ids_of(folder) | new), encoding="utf-8")


def places_of(folder: RunFolder, given: str | None) -> str:
    """Say where the curves are."""
    names = ["csv"] if given is None else read_names(given)
    logs = folder.metrics_file.parent
    places = {
        "csv": str(folder.metrics_file),
        "tensorboard": f"tensorboard --logdir {logs}",
        "mlflow": os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{logs / 'mlflow.db'}",
        "wandb": f"{logs / 'wandb'}",
    }
    return "\n".join(places[name] for name in names)
