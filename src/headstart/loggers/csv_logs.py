"""`CSVLogger`: a run's values as one CSV file, which any program can plot."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.loggers.logger import FileLogger, as_number, with_prefix


class CSVLogger(FileLogger):
    """Logs to `<save_dir>/<name>/version_<N>/metrics.csv`, and hyper-parameters to `hparams.yaml` beside it.

    One row per call, with the column `step`; empty cells where a value was not logged. Rows are appended, so a run
    that goes on in the same version directory goes on in the same file.

    Args:
        save_dir: The directory of all experiments.
        name: The experiment.
        version: A number, a name, or `None` for the next number.
        prefix: Put before every name, with a dash.
        flush_logs_every_n_steps: How many steps may be lost if the process is killed.

    Example:
        >>> import tempfile
        >>> logger = CSVLogger(tempfile.mkdtemp(), name="tune")
        >>> logger.log_metrics({"loss": 0.5}, step=0)
        >>> logger.log_metrics({"val_loss": 0.7}, step=0)
        >>> logger.save()
        >>> print((Path(logger.log_dir) / "metrics.csv").read_text(), end="")
        step,loss,val_loss
        0,0.5,
        0,,0.7
    """

    NAME_METRICS_FILE = "metrics.csv"

    def __init__(
        self,
        save_dir: str | Path,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(save_dir, name, version)
        self._prefix = prefix
        self._flush_every = flush_logs_every_n_steps
        self._file: MetricsFile | None = None
        self._next_step = 0  # of values that are logged without one
        self._flushed_step = 0

    @property
    def experiment(self) -> MetricsFile:
        """The file that is written to."""
        if self._file is None:
            self._file = MetricsFile(Path(self.log_dir) / self.NAME_METRICS_FILE)
        return self._file

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record values as one row; `step=None` is the one after the last."""
        step = self._next_step if step is None else int(step)
        self._next_step = step + 1
        values = {name: as_number(value) for name, value in with_prefix(metrics, self._prefix).items()}
        self.experiment.add({"step": step, **values})
        # Counted from the last flush: steps are logged in strides.
        if step - self._flushed_step >= self._flush_every:
            self.save()
            self._flushed_step = step

    def resume_from(self, step: int) -> None:
        """Remove the rows after `step`; a row up to there that is logged once more, and the same, is not repeated."""
        self._next_step = self._flushed_step = step
        self.experiment.resume_from(step)

    def save(self) -> None:
        """Append the rows that are held back."""
        if self._file is not None:
            self._file.flush()


class MetricsFile:
    """A CSV file that rows are appended to, whatever columns they have.

    A row with a new column costs one rewriting of the file, to widen it; every other row is only appended.

    Args:
        path: The file. Where it exists already, its rows stay.

    Example:
        >>> import tempfile
        >>> file = MetricsFile(Path(tempfile.mkdtemp()) / "metrics.csv")
        >>> file.add({"step": 0, "lr": 0.1})
        >>> file.flush()
        >>> file.add({"step": 1, "lr": 0.1, "lr-backbone": 0.01})
        >>> file.flush()
        >>> print(file.path.read_text(), end="")
        step,lr,lr-backbone
        0,0.1,
        1,0.1,0.01
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._columns: dict[str, None] = {}  # an ordered set
        self._num_columns_written = 0
        self._rows: list[dict[str, Any]] = []
        # Rows of a resumed run's past that it is about to log once more.
        self._expected: list[dict[str, str]] = []
        if self.path.exists():
            self._continue()

    def add(self, row: dict[str, Any]) -> None:
        """Hold a row back until `flush`."""
        if self._expected and (cells := _cells(row)) in self._expected:
            self._expected.remove(cells)
            return
        self._rows.append(row)
        for name in row:
            self._columns[name] = None

    def flush(self) -> None:
        """Write the rows that are held back."""
        if not self._rows:
            return
        if len(self._columns) > self._num_columns_written:
            self._rewrite()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, restval="", lineterminator="\n").writerows(self._rows)
        self._rows.clear()

    def resume_from(self, step: int) -> None:
        """Remove the rows after `step`, and take those around it that will be added again for the same ones.

        A checkpoint is taken between two rows, and only the steps of rows are known: those of its own step, and the
        means of an epoch that ended with the step before, may be there already or not.
        """
        self.flush()
        if self._num_columns_written:
            self._rewrite(up_to=step)
            with self.path.open(newline="", encoding="utf-8") as file:
                self._expected = [
                    _cells(row) for row in csv.DictReader(file) if float(row["step"]) >= step - 1
                ]

    def _continue(self) -> None:
        """Take over the columns of an existing file, and cut off a last line that a kill has left incomplete."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.path.open("r+b") as file:
                file.truncate(whole)
        with self.path.open(newline="", encoding="utf-8") as file:
            self._columns = dict.fromkeys(next(csv.reader(file), []))
        self._num_columns_written = len(self._columns)

    def _rewrite(self, *, up_to: float = math.inf) -> None:
        """Write the file anew with all columns, and the rows up to a step; it is whole, or as it was before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with temporary.open("w", newline="", encoding="utf-8") as target:
            writer = csv.DictWriter(target, self._columns, restval="", lineterminator="\n")
            writer.writeheader()
            if self._num_columns_written:
                with self.path.open(newline="", encoding="utf-8") as source:
                    writer.writerows(row for row in csv.DictReader(source) if float(row["step"]) <= up_to)
        temporary.replace(self.path)
        self._num_columns_written = len(self._columns)


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a row as they stand in the file, without the empty ones."""
    return {name: str(value) for name, value in row.items() if value is not None and str(value)}
