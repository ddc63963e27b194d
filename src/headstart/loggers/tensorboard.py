"""`TensorBoardLogger`: metrics as curves in TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headstart.errors import missing_dependency
from headstart.loggers.logger import FileLogger, as_mapping, as_number, with_prefix
from headstart.seed import isolated_random_state
from headstart.transfer import move_to_device

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLogger(FileLogger):
    """Metrics for TensorBoard in `save_dir/name/version_N`, hyper-parameters in `hparams.yaml` beside them.

    Look at them with `tensorboard --logdir save_dir`.

    Args:
        save_dir: The directory above all experiments.
        name: The experiment; empty or `None` for no directory of its own.
        version: Which run of the experiment: a number, or a directory name; `None` takes the next number.
        log_graph: Record the graph of a module that has an `example_input_array`, as a fit begins.
        default_hp_metric: Give TensorBoard's table of hyper-parameters a metric `hp_metric` where there is no other.
        prefix: Put before each metric's name, with a dash between.
        sub_dir: A directory below the run's own; `None` for none.
        **kwargs: For `torch.utils.tensorboard.SummaryWriter`.

    Example:
        >>> TensorBoardLogger("runs", version=3).log_dir
        'runs/lightning_logs/version_3'
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(save_dir, name, version)
        self._log_graph = log_graph
        self._default_hp_metric = default_hp_metric
        self._prefix = prefix
        self._sub_dir = None if sub_dir is None else os.fspath(sub_dir)
        self._writer_settings = kwargs
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None
        self._next_step = 0  # of values that are logged without one

    @property
    def sub_dir(self) -> str | None:
        """The directory below the run's own, or `None`."""
        return self._sub_dir

    @property
    def log_dir(self) -> str:
        """The directory of this run, `sub_dir` included."""
        return str(Path(super().log_dir) / (self._sub_dir or ""))

    @property
    def experiment(self) -> SummaryWriter:
        """The `SummaryWriter`, for images, histograms and the rest; made when it is first asked for.

        Raises:
            MissingDependencyError: If tensorboard is not installed.
        """
        if self._writer is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise missing_dependency(
                    "tensorboard", needed_for="`TensorBoardLogger`", extra="tensorboard"
                ) from error
            settings = {"purge_step": self._purge_step, **self._writer_settings}
            self._writer = SummaryWriter(log_dir=self.log_dir, **settings)
            # A later file of this run (a test after the fit) hides nothing of it.
            self._purge_step = None
        return self._writer

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a point to each metric's curve.

        Args:
            metrics: Numbers, or tensors with one element, by name; a mapping becomes several curves in one picture.
            step: The number of optimizer steps before these values; `None` goes on counting from the last ones.
        """
        step = self._next_step if step is None else int(step)
        self._next_step = step + 1
        for name, value in with_prefix(metrics, self._prefix).items():
            if isinstance(value, Mapping):
                self.experiment.add_scalars(
                    name, {part: as_number(inner) for part, inner in value.items()}, step
                )
            else:
                self.experiment.add_scalar(name, as_number(value), step)

    def log_hyperparams(
        self, params: Any = None, metrics: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Record hyper-parameters in `hparams.yaml` and in TensorBoard's table of them.

        Args:
            params: A mapping, or an object with attributes.
            metrics: Metrics to stand beside them in the table, by name.
            *args: Accepted; without effect.
            **kwargs: Accepted; without effect.
        """
        super().log_hyperparams(params)
        if metrics is None and self._default_hp_metric and as_mapping(params):
            metrics = {"hp_metric": -1}
        if metrics:
            self.log_metrics(metrics, step=0)
            self._add_to_table(
                as_mapping(params), {name: as_number(value) for name, value in metrics.items()}
            )

    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        """Record the graph of the module, if this logger was made with `log_graph=True`.

        Args:
            model: The module.
            input_array: What to call it with; `None` takes its `example_input_array`, and nothing is recorded without.
        """
        if input_array is None:
            input_array = getattr(model, "example_input_array", None)
        if not self._log_graph or input_array is None:
            return
        parameter = next(model.parameters(), None)
        if parameter is not None:
            input_array = move_to_device(input_array, parameter.device)
        modes = [(each, each.training) for each in model.modules()]
        model.eval()  # so that no statistic moves
        with isolated_random_state(), torch.no_grad():
            self.experiment.add_graph(model, input_array)
        for each, training in modes:
            each.training = training

    def resume_from(self, step: int) -> None:
        """Hide the points after `step`: the run that goes on from a checkpoint logs them once more."""
        self._next_step = step
        self.finalize("success")  # a file says at its beginning what it hides
        self._purge_step = step + 1

    def save(self) -> None:
        """Write what is still held back."""
        if self._writer is not None:
            self._writer.flush()

    def finalize(self, status: str) -> None:
        """Write all and close the file; another opens if more is logged."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add_to_table(self, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Write what makes TensorBoard's table. `SummaryWriter.add_hparams` would put it into another directory."""
        from torch.utils.tensorboard.summary import hparams

        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in params.items()
        }
        file_writer = self.experiment._get_file_writer()  # type: ignore[no-untyped-call]  # noqa: SLF001 (no public way)
        for summary in hparams(plain, metrics):  # type: ignore[no-untyped-call]
            file_writer.add_summary(summary)
