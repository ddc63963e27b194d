"""`Logger`: what the trainer asks of every place to which curves and hyper-parameters go."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.loggers.hparams_file import write_hparams


class Logger(ABC):
    """A place to which a run's values and hyper-parameters go.

    The trainer calls a logger on the first process only. Its directory, where it has one, is
    `<save_dir>/<name>/<version>`.

    Example:
        >>> class Printer(Logger):
        ...     name = "printer"
        ...     version = 0
        ...
        ...     def log_metrics(self, metrics, step=None):
        ...         print(step, metrics)
        ...
        ...     def log_hyperparams(self, params):
        ...         print(params)
        >>> Printer().log_metrics({"loss": 0.5}, step=3)
        3 {'loss': 0.5}
    """

    @property
    @abstractmethod
    def name(self) -> str | None:
        """The experiment's name."""

    @property
    @abstractmethod
    def version(self) -> int | str | None:
        """The number or name of this run within the experiment."""

    @property
    def save_dir(self) -> str | None:
        """The directory under which all experiments lie, or `None`."""
        return None

    @property
    def root_dir(self) -> str | None:
        """The directory of the experiment, or `None`."""
        return None

    @property
    def log_dir(self) -> str | None:
        """The directory of this run, or `None`."""
        return None

    @property
    def experiment(self) -> Any:
        """The object of the library underneath, where there is one."""
        return None

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record values.

        Args:
            metrics: Numbers by name.
            step: The optimizer step to which they belong; `None` is the one after the last.
        """

    @abstractmethod
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Record hyper-parameters: a mapping, or a namespace."""

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Record the module's graph, where the logger can."""

    def resume_from(self, step: int) -> None:
        """Forget what was recorded after `step`: the run goes on from a checkpoint that was taken there.

        What was recorded at `step`, or just before it, may be recorded once more.
        """

    def save(self) -> None:
        """Write what is held back."""

    def finalize(self, status: str) -> None:
        """Write what is held back and let go of files; `status` says how the run ended (`"success"`, `"failed"`)."""
        self.save()

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """A `ModelCheckpoint` has just saved: write what is held back, so that file and curves belong together."""
        self.save()


class FileLogger(Logger):
    """A logger that writes files, to `<save_dir>/<name>/version_<number>`. Define `log_metrics`.

    Args:
        save_dir: The directory of all experiments.
        name: The experiment; `None` or `""` puts versions right under `save_dir`.
        version: A number, a name that is taken as it is, or `None` for the number after the highest there.
    """

    NAME_HPARAMS_FILE = "hparams.yaml"

    def __init__(self, save_dir: str | os.PathLike[str], name: str | None, version: int | str | None) -> None:
        self._save_dir = os.fspath(save_dir)
        self._name = name or ""
        self._version = version
        self.hparams: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._name

    @property
    def version(self) -> int | str:
        """The number or name of this run; looked up when it is first asked for, and the same ever after."""
        if self._version is None:
            self._version = next_version(self.root_dir)
        return self._version

    @property
    def save_dir(self) -> str:
        """The directory of all experiments."""
        return self._save_dir

    @property
    def root_dir(self) -> str:
        """The directory of the experiment."""
        return str(Path(self._save_dir) / self._name)

    @property
    def log_dir(self) -> str:
        """The directory of this run; made when something is written."""
        version = self.version if isinstance(self.version, str) else f"version_{self.version}"
        return str(Path(self.root_dir) / version)

    def log_hyperparams(self, params: Any = None, *args: Any, **kwargs: Any) -> None:
        """Add hyper-parameters to `hparams.yaml`."""
        self.hparams.update(as_mapping(params))
        directory = Path(self.log_dir)
        directory.mkdir(parents=True, exist_ok=True)
        write_hparams(directory / self.NAME_HPARAMS_FILE, self.hparams)


def next_version(root: str | Path) -> int:
    """The number after the highest `version_<number>` in a directory; 0 where there is none.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> next_version(root)
        0
        >>> (root / "version_4").mkdir()
        >>> next_version(root)
        5
    """
    root = Path(root)
    if not root.is_dir():
        return 0
    found = (re.fullmatch(r"version_(\d+)", entry.name) for entry in root.iterdir() if entry.is_dir())
    return max((int(match[1]) for match in found if match), default=-1) + 1


def with_prefix(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Give the values under `<prefix>-<name>`; unchanged names for an empty prefix.

    Example:
        >>> with_prefix({"loss": 1.0}, "fold1")
        {'fold1-loss': 1.0}
    """
    return {f"{prefix}-{name}" if prefix else name: value for name, value in metrics.items()}


def as_mapping(params: Any) -> dict[str, Any]:
    """Give hyper-parameters (a mapping, a namespace, or `None`) as a dictionary.

    Example:
        >>> from argparse import Namespace
        >>> as_mapping(Namespace(lr=0.1))
        {'lr': 0.1}
    """
    if params is None:
        return {}
    return dict(params) if isinstance(params, Mapping) else dict(vars(params))


def as_number(value: Any) -> Any:
    """Give a tensor's or an array's one value; a number as it is.

    Example:
        >>> import torch
        >>> as_number(torch.tensor(0.5)), as_number(1)
        (0.5, 1)
    """
    return value.item() if hasattr(value, "item") else value


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Give nested mappings as one, by path.

    Example:
        >>> flat({"lr": 0.1, "net": {"width": 8}})
        {'lr': 0.1, 'net/width': 8}
    """
    found: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{inner}": each for inner, each in flat(value).items()}
        else:
            found[str(name)] = value
    return found


def plain(value: Any) -> Any:
    """Give a value as JSON knows it: what it does not know, as text.

    Example:
        >>> plain({"sizes": (1, 2), "path": Path("runs")})
        {'sizes': [1, 2], 'path': 'runs'}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else str(value)
