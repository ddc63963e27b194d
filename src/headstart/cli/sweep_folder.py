"""The folder DIR of `headstart sweep`: what lies where in it, and whether a sweep may begin, go on or be replaced there.

DIR/
  sweep.yaml              the options
  data.json               what was found in the data, and digests of its parts
  sweep.db                the trials, for --resume
  predictions/            what each complete trial says of the validation samples
  features/               what the frozen backbones made of the samples
  best/                   the best trial as a RUN
  trials.csv, trials.json the result
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from headstart.cli.run_folder import digests, refuse_other_data
from headstart.cli.sweep_options import OPTIONS_FILE, SweepOptions, SweepRequest, write_options
from headstart.errors import MisconfigurationError
from headstart.files import remove, write_together

_LOCK = ".lock"


class SweepFolder:
    """The folder of one sweep.

    Args:
        path: Where it is, or will be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.study = self.path / "sweep.db"
        self.features = self.path / "features"
        self.best = self.path / "best"
        self.result = self.path / "trials.json"

    def check(self, request: SweepRequest) -> None:
        """Refuse now, before any work, what `begin` could not do.

        Raises:
            MisconfigurationError: If something is there already, or `--overwrite` would delete more than a sweep.
        """
        if request.resume or not self.path.exists():
            return
        if not self.path.is_dir():
            raise MisconfigurationError(f"--out {self.path} is a file. Give a folder, which will be made.")
        if not self._content():
            return
        is_sweep = (self.path / OPTIONS_FILE).is_file()
        if not request.overwrite:
            advice = (
                "--resume to go on with it, --overwrite to delete it and begin anew, or " if is_sweep else ""
            )
            what = "holds a sweep already" if is_sweep else "is not empty"
            raise MisconfigurationError(f"--out {self.path} {what}. Give {advice}another folder.")
        if not is_sweep:
            raise MisconfigurationError(
                f"--out {self.path} is no sweep (it has no {OPTIONS_FILE}), so --overwrite does not delete it. Give another "
                "folder."
            )
        if Path(request.options.data).resolve().is_relative_to(self.path.resolve()):
            raise MisconfigurationError(
                f"{request.options.data} lies in {self.path}, and --overwrite would delete it. Give another folder."
            )

    def begin(self, options: SweepOptions, data: Any) -> None:
        """Make the folder empty but for the options and what was found in the data."""
        for child in self._content():
            remove(child)
        found = {"report": data.report.to_dict(), "digests": digests(data)}
        text = json.dumps(found, indent=2, ensure_ascii=False)
        (self.path / "data.json").write_text(text, encoding="utf-8", errors="surrogateescape")
        write_options(options)

    def go_on(self, options: SweepOptions, data: Any) -> None:
        """Check that the data is that of the sweep which goes on, and keep the options that may change.

        Raises:
            DataError: If a part of the data has changed.
        """
        refuse_other_data(self.path, data)
        write_options(options)

    def write_predictions(self, number: int, predictions: Any) -> None:
        """Keep what a trial says of the validation samples: log-probabilities (N, C)."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.save(file, np.asarray(predictions, dtype=np.float32))

        write_together({self._predictions(number): write})

    def read_predictions(self, number: int) -> Any:
        """Give what a complete trial says of the validation samples.

        Raises:
            MisconfigurationError: If the file is missing or damaged.
        """
        path = self._predictions(number)
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise MisconfigurationError(
                f"{path} is missing or damaged ({error}), so trial {number} cannot be compared. Put the file back, or begin anew "
                "(--overwrite)."
            ) from error

    def read_result(self) -> dict[str, Any]:
        """Give what `trials.json` says; nothing where there is none yet.

        Raises:
            MisconfigurationError: If it is damaged.
        """
        if not self.result.is_file():
            return {}
        try:
            found: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise MisconfigurationError(
                f"{self.result} is damaged: {error}. Delete it: it is written anew."
            ) from error
        return found

    def _predictions(self, number: int) -> Path:
        return self.path / "predictions" / f"{number}.npy"

    def _content(self) -> list[Path]:
        return [child for child in self.path.iterdir() if child.name != _LOCK]
