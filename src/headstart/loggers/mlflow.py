"""`MLFlowLogger`: a run in MLflow, in a local database or on a server."""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headstart.errors import missing_dependency
from headstart.loggers.logger import Logger, as_mapping, as_number, flat, with_prefix
from headstart.loggers.saved import NewFiles

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# What MLflow takes in one call, and in one value of a parameter.
_MOST_PARAMS, _MOST_METRICS, _LONGEST_VALUE = 100, 1000, 6000
_STATUS = {"success": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MLFlowLogger(Logger):
    """Logs to a run of MLflow: hyper-parameters as parameters, values with their steps, the best score as a tag.

    MLflow takes no commas and the like in names: they become `_`. It keeps what it was given: a resumed run goes on in the run `run_id`, and what it logs once more, and is there with the
    same step and value, is not written twice.

    Args:
        experiment_name: The experiment; it is made where there is none.
        run_name: For people.
        tracking_uri: A server or a store; `None` takes the environment's `MLFLOW_TRACKING_URI`, or a database in `save_dir`.
        tags: Of the run, by name.
        save_dir: The folder of the database and of files, where no `tracking_uri` is given.
        log_model: Upload checkpoints: the best and the last one when the run ends (`True`), or each (`"all"`).
        prefix: Put before every name, with a dash.
        artifact_location: Where files of a new experiment go; `None` leaves it to MLflow, or is `save_dir`.
        run_id: A run to go on in; `None` makes one.
        synchronous: Whether to wait until a value is stored; `None` leaves it to MLflow.

    Example:
        >>> MLFlowLogger("cells", save_dir="runs").save_dir
        'runs'
    """

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: Mapping[str, Any] | None = None,
        save_dir: str | os.PathLike[str] | None = "./mlruns",
        log_model: Literal[True, False, "all"] = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
    ) -> None:
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._save_dir = os.fspath(save_dir or "./mlruns")
        self._tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._tags = dict(tags or {})
        self._files = NewFiles(log_model)
        self._prefix = prefix
        self._artifact_location = artifact_location
        self._run_id = run_id
        self._synchronous = synchronous
        self._client: MlflowClient | None = None
        self._experiment_id: str | None = None
        self._is_over = False  # MLflow has been told how it ended
        self._next_step = 0  # of values that are logged without one
        self._resumed_at: int | None = None
        self._known: dict[str, set[tuple[int, float]]] = {}  # what a resumed run had logged, by name

    # ---- the run

    @property
    def experiment(self) -> MlflowClient:
        """The `MlflowClient`; the run is made when it is first asked for, and is `run_id`.

        Raises:
            MissingDependencyError: If mlflow is not installed.
        """
        if self._client is None:
            try:
                from mlflow.tracking import MlflowClient
            except ImportError as error:
                raise missing_dependency("mlflow", needed_for="`MLFlowLogger`", extra="mlflow") from error
            self._client = MlflowClient(self._uri())
            if self._run_id is None:
                self._make_run(self._client)
            else:
                self._experiment_id = self._client.get_run(self._run_id).info.experiment_id
                self._is_over = True  # until it goes on
        if self._is_over:
            assert self._run_id is not None, "there is a run"
            self._client.update_run(self._run_id, status="RUNNING")
            self._is_over = False
        return self._client

    def _uri(self) -> str:
        if self._tracking_uri is not None:
            return self._tracking_uri
        folder = Path(self._save_dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if self._artifact_location is None:
            self._artifact_location = (folder / "artifacts").as_uri()
        return f"sqlite:///{folder / 'mlflow.db'}"

    def _make_run(self, client: MlflowClient) -> None:
        found = client.get_experiment_by_name(self._experiment_name)
        self._experiment_id = (
            client.create_experiment(self._experiment_name, artifact_location=self._artifact_location)
            if found is None
            else found.experiment_id
        )
        tags = {name: str(value) for name, value in self._tags.items()}
        run = client.create_run(self._experiment_id, run_name=self._run_name, tags=tags)
        self._run_id = run.info.run_id

    @property
    def run_id(self) -> str:
        """The run's id: give it to the logger of a run that goes on."""
        if self._run_id is None:
            _ = self.experiment
        assert self._run_id is not None, "the run is made with the client"
        return self._run_id

    @property
    def experiment_id(self) -> str:
        """The experiment's id."""
        if self._experiment_id is None:
            _ = self.experiment
        assert self._experiment_id is not None, "it is found with the client"
        return self._experiment_id

    @property
    def name(self) -> str:
        """The experiment's id."""
        return self.experiment_id

    @property
    def version(self) -> str:
        """The run's id."""
        return self.run_id

    @property
    def save_dir(self) -> str:
        """The folder of the database and of files."""
        return self._save_dir

    # ---- what is logged

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record values; `step=None` is the one after the last."""
        from mlflow.entities import Metric

        step = self._next_step if step is None else int(step)
        self._next_step = step + 1
        now = int(time.time() * 1000)
        client = self.experiment
        named = with_prefix(metrics, self._prefix)
        values = {_allowed(name): float(as_number(value)) for name, value in named.items()}
        found = [
            Metric(name, value, now, step)
            for name, value in values.items()
            if not self._is_known(name, step, value)
        ]
        for start in range(0, len(found), _MOST_METRICS):
            client.log_batch(
                self.run_id, metrics=found[start : start + _MOST_METRICS], synchronous=self._synchronous
            )

    def _is_known(self, name: str, step: int, value: float) -> bool:
        """Whether a resumed run had logged this value before it was cut."""
        if self._resumed_at is None:
            return False
        if name not in self._known:
            history = self.experiment.get_metric_history(self.run_id, name)
            self._known[name] = {(each.step, each.value) for each in history}
        return (step, value) in self._known[name]

    def log_hyperparams(self, params: Any = None, *args: Any, **kwargs: Any) -> None:
        """Record hyper-parameters; nested ones by their path. MLflow keeps the first value of each for ever."""
        from mlflow.entities import Param

        given = {
            _allowed(name): str(value)[:_LONGEST_VALUE] for name, value in flat(as_mapping(params)).items()
        }
        if not given:
            return
        client = self.experiment
        there = client.get_run(self.run_id).data.params
        changed = [name for name, value in given.items() if there.get(name, value) != value]
        if changed:
            warnings.warn(
                f"MLflow keeps the first value of a parameter, so those of this run stay as they were: "
                f"{', '.join(f'{name} is {there[name]}, and was to be {given[name]}' for name in changed)}.",
                stacklevel=2,
            )
        new = [Param(name, value) for name, value in given.items() if name not in there]
        for start in range(0, len(new), _MOST_PARAMS):
            client.log_batch(self.run_id, params=new[start : start + _MOST_PARAMS])

    def resume_from(self, step: int) -> None:
        """Write nothing twice that is there already; what lies after `step` cannot be taken back."""
        self._next_step = self._resumed_at = step
        self._known = {}

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Remember the best score; upload the file, with `log_model="all"`."""
        for path in self._files.saved(checkpoint_callback):
            self.experiment.log_artifact(self.run_id, path, "checkpoints")

    def finalize(self, status: str) -> None:
        """Record the best score, upload what is to be, and tell MLflow how the run ended."""
        if self._client is None or self._is_over:
            return  # nothing was logged since
        for path in self._files.at_the_end():
            self.experiment.log_artifact(self.run_id, path, "checkpoints")
        for name, value in self._files.summary().items():
            self.experiment.set_tag(self.run_id, name, value if isinstance(value, str) else json.dumps(value))
        self.experiment.set_terminated(self.run_id, _STATUS.get(status, "FAILED"))
        self._is_over = True


def _allowed(name: str) -> str:
    """Give a name as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", name)
