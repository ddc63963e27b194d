"""`WandbLogger`: a run in Weights & Biases, online or in files that are sent later."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from headstart.errors import MisconfigurationError, missing_dependency
from headstart.loggers.logger import Logger, as_mapping, as_number, plain, with_prefix
from headstart.loggers.saved import NewFiles

if TYPE_CHECKING:
    from torch import nn
    from wandb import Run

# The x axis of every curve: wandb's own step only ever grows, and a resumed run logs some steps once more.
_STEP = "trainer/global_step"


class WandbLogger(Logger):
    """Logs to a run of Weights & Biases: hyper-parameters as its config, values over `trainer/global_step`, a summary.

    A resumed run goes on in the run `id`. Weights & Biases keeps what it was given, so the steps between the checkpoint and the
    end of the run before stand there twice.

    Args:
        name: For people.
        save_dir: Where files go.
        version: The same as `id`.
        offline: Write files only, which `wandb sync` sends later.
        dir: The same as `save_dir`.
        id: Of the run; one that is there already is gone on with. `None` makes one up.
        anonymous: Handed to wandb, which no longer knows it in new versions.
        project: `None` takes the environment's `WANDB_PROJECT`, or `"lightning_logs"`.
        log_model: Upload checkpoints: the best and the last one when the run ends (`True`), or each (`"all"`).
        experiment: A run that was begun elsewhere (`wandb.init`).
        prefix: Put before every name, with a dash.
        checkpoint_name: Of the artefact with the checkpoints; `None` is `model-<id>`.
        **kwargs: For `wandb.init`: `entity`, `group`, `tags`, `notes`, ...

    Raises:
        MisconfigurationError: If both names of one argument say different things.

    Example:
        >>> WandbLogger(project="cells", id="first", offline=True).version
        'first'
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] = ".",
        version: str | None = None,
        offline: bool = False,
        dir: str | os.PathLike[str] | None = None,  # noqa: A002 (the field's name)
        id: str | None = None,  # noqa: A002
        anonymous: bool | None = None,
        project: str | None = None,
        log_model: Literal[True, False, "all"] = False,
        experiment: Run | None = None,
        prefix: str = "",
        checkpoint_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if version is not None and id is not None and version != id:
            raise MisconfigurationError(
                f"WandbLogger: id is {id!r} and version is {version!r}, which mean the same. Give one of them."
            )
        self._save_dir = os.fspath(save_dir if dir is None else dir)
        own = None if experiment is None else experiment.id
        # Random, and no draw of the program's generators.
        self._id = own or id or version or secrets.token_hex(4)
        self._project = project or os.environ.get("WANDB_PROJECT", "lightning_logs")
        self._name = name
        self._files = NewFiles(log_model)
        self._prefix = prefix
        self._checkpoint_name = checkpoint_name
        self._settings: dict[str, Any] = {"resume": "allow", **kwargs}
        if offline:
            self._settings["mode"] = "offline"
        if anonymous is not None:
            self._settings["anonymous"] = anonymous
        self._run: Run | None = None
        self._given = experiment
        self._next_step = 0  # of values that are logged without one

    # ---- the run

    @property
    def experiment(self) -> Run:
        """The `wandb.Run`, for images, tables and the rest; begun when it is first asked for.

        Raises:
            MissingDependencyError: If wandb is not installed.
        """
        if self._run is None:
            try:
                import wandb
            except ImportError as error:
                raise missing_dependency("wandb", needed_for="`WandbLogger`", extra="wandb") from error
            if self._given is not None:
                self._run = self._given
            else:
                os.makedirs(self._save_dir, exist_ok=True)  # noqa: PTH103 (wandb warns where it is not there)
                self._run = wandb.init(
                    project=self._project,
                    name=self._name,
                    dir=self._save_dir,
                    id=self._id,
                    **self._settings,
                )
            self._run.define_metric(_STEP)
            self._run.define_metric("*", step_metric=_STEP, step_sync=True)
        return self._run

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """The run's id: give it to the logger of a run that goes on."""
        return self._id

    @property
    def save_dir(self) -> str:
        """Where files go."""
        return self._save_dir

    # ---- what is logged

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record values; `step=None` is the one after the last."""
        step = self._next_step if step is None else int(step)
        self._next_step = step + 1
        values = {name: as_number(value) for name, value in with_prefix(metrics, self._prefix).items()}
        self.experiment.log({**values, _STEP: step})

    def log_hyperparams(self, params: Any = None, *args: Any, **kwargs: Any) -> None:
        """Record hyper-parameters in the run's config."""
        values = {name: plain(value) for name, value in as_mapping(params).items()}
        self.experiment.config.update(values, allow_val_change=True)

    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        """Nothing: `watch` records the graph."""

    def watch(
        self,
        model: nn.Module,
        log: Literal["gradients", "parameters", "all"] | None = "gradients",
        log_freq: int = 100,
        log_graph: bool = True,
    ) -> None:
        """Record gradients or weights of a module as histograms, and its graph; see `wandb.Run.watch`."""
        self.experiment.watch(model, log=log, log_freq=log_freq, log_graph=log_graph)

    def unwatch(self, model: nn.Module) -> None:
        """End that."""
        self.experiment.unwatch(model)

    def resume_from(self, step: int) -> None:
        """Go on counting from there; what lies after `step` cannot be taken back."""
        self._next_step = step

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Remember the best score; upload the file, with `log_model="all"`."""
        self._upload(self._files.saved(checkpoint_callback))

    def finalize(self, status: str) -> None:
        """Write the summary, and upload what is to be; the run stays open for what the program logs after this.

        It ends with the program, or with `logger.experiment.finish()`. One that failed ends here.
        """
        if self._run is None:
            return
        self._upload(self._files.at_the_end())
        self._run.summary.update(self._files.summary())
        if status == "failed":
            self._run.finish(exit_code=1)
            self._run = self._given = None  # what is logged after this goes on in the same run

    def _upload(self, paths: list[str]) -> None:
        if not paths:
            return
        import wandb

        artifact = wandb.Artifact(self._checkpoint_name or f"model-{self.experiment.id}", type="model")
        for path in paths:
            artifact.add_file(path) if os.path.isfile(path) else artifact.add_dir(path)  # noqa: PTH113
        self.experiment.log_artifact(artifact)
