"""The progress bar: live in a terminal, one line an epoch where the output goes to a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from headstart.callback import Callback

if TYPE_CHECKING:
    from headstart.module import LightningModule
    from headstart.trainer import Trainer

# Seconds between two drawings. A drawing takes some milliseconds, so the bar costs about a hundredth of the time.
_REFRESH_INTERVAL = 0.25


class ProgressBar(Callback):
    """What every progress bar has in common: it can be switched off, and it says which metrics to show.

    A subclass draws; override `get_metrics` to show something else.

    Example:
        >>> bar = RichProgressBar()
        >>> bar.disable()
        >>> bar.is_disabled
        True
    """

    #: The metrics of an epoch are shown with what the module logs in its own hook.
    runs_after_module = True

    def __init__(self) -> None:
        self._is_enabled = True

    @property
    def is_enabled(self) -> bool:
        """Whether it draws."""
        return self._is_enabled

    @property
    def is_disabled(self) -> bool:
        """Whether it does not draw."""
        return not self._is_enabled

    def enable(self) -> None:
        """Draw from now on."""
        self._is_enabled = True

    def disable(self) -> None:
        """Draw nothing from now on; what processes other than the first do."""
        self._is_enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without breaking the bar."""
        print(*args, **kwargs)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, int | str | float]:
        """What was logged with `prog_bar=True`, as numbers by name."""
        return {
            name: value.item() if hasattr(value, "item") else value
            for name, value in trainer.progress_bar_metrics.items()
        }

    # ---- validation, test, prediction: the same with three names

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        if trainer.sanity_checking:
            self._begin_evaluation(trainer, "Sanity check", _total(trainer.num_sanity_val_batches))
        else:
            self._begin_evaluation(trainer, "Validation", _total(trainer.num_val_batches))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch."""
        self._count_evaluation(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last batch is over."""
        self._end_evaluation(trainer, "Validation")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._begin_evaluation(trainer, "Test", _total(trainer.num_test_batches))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch."""
        self._count_evaluation(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last batch is over."""
        self._end_evaluation(trainer, "Test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._begin_evaluation(trainer, "Prediction", _total(trainer.num_predict_batches))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch."""
        self._count_evaluation(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last batch is over."""
        self._end_evaluation(trainer, "Prediction")

    def _begin_evaluation(self, trainer: Trainer, name: str, num_batches: int | None) -> None:
        """Show that an evaluation begins; `None` batches: a stream's length is not known."""

    def _count_evaluation(self, trainer: Trainer) -> None:
        """Count one of its batches, and draw if it is time to."""

    def _end_evaluation(self, trainer: Trainer, name: str) -> None:
        """Show that it is over."""


class RichProgressBar(ProgressBar):
    """A bar for the epoch, with batches a second, the time left, and what was logged with `prog_bar=True`.

    It draws a few times a second at most; a batch costs it two comparisons. Where the output is no terminal, it prints
    one line for each epoch, and one for each validation, test and prediction that is not part of fit.

    Args:
        refresh_rate: Batches between two drawings at least; 0 draws nothing.
        leave: Leave the bar of every epoch in the terminal, in place of that of the last.
        console_kwargs: Keywords of the `rich.console.Console` to draw on.

    Example:
        >>> RichProgressBar(refresh_rate=0).is_enabled
        False
    """

    def __init__(
        self, refresh_rate: int = 1, leave: bool = False, console_kwargs: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self._refresh_rate = refresh_rate
        self._leave = leave
        self._console_kwargs = console_kwargs or {}
        if refresh_rate == 0:
            self.disable()
        self._stage = ""  # of the run: fit, validate, test or predict
        self._live: Progress | None = None  # None where there is no terminal
        self._train_task: TaskID | None = None
        self._evaluation_task: TaskID | None = None
        self._next_batch = 0
        self._next_time = 0.0
        # A counter and a clock for the epoch, and for an evaluation in it or on its own.
        self._first_batch = 0  # of the epoch in this run; more than 0 where it was resumed within it
        self._num_train_batches = self._num_evaluation_batches = 0
        self._train_started: float | None = None
        self._evaluation_started = 0.0

    # ---- set-up and end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look whether there is a terminal to draw on."""
        self._stage = stage
        if not trainer.is_global_zero:
            self.disable()
        console = Console(**self._console_kwargs)
        # A notebook is no terminal, and rich draws in it all the same.
        if self.is_enabled and (console.is_interactive or console.is_jupyter):
            self._live = _new_live(console)
            self._next_time = 0.0

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal in order."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the terminal in order."""
        self._close()

    # ---- training

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a bar."""
        self._begin_epoch(trainer, first_batch=0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and draw if it is time to."""
        if self._train_started is None:  # resumed within the epoch: its start was in the run before
            self._begin_epoch(trainer, first_batch=batch_idx)
        self._num_train_batches += 1
        if self._live is None or batch_idx < self._next_batch or monotonic() < self._next_time:
            return
        self._next_batch = batch_idx + self._refresh_rate
        self._show_epoch(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the epoch's metrics."""
        if self._live is not None:
            self._show_epoch(trainer, pl_module)
            if self._leave and self._train_task is not None:
                self._live.stop_task(self._train_task)
                self._train_task = None
        elif self.is_enabled:
            seconds = monotonic() - (self._train_started or monotonic())
            self._print_line(
                _epoch_name(trainer), self._num_train_batches, seconds, self.get_metrics(trainer, pl_module)
            )
        self._train_started = None

    # ---- drawing

    def _begin_epoch(self, trainer: Trainer, *, first_batch: int) -> None:
        self._first_batch = first_batch
        self._num_train_batches = 0
        self._next_batch = 0
        self._train_started = monotonic()
        if self._live is None:
            return
        total = _total([trainer.num_training_batches])
        if self._train_task is None:
            self._train_task = self._add_task(_epoch_name(trainer), total, completed=first_batch)
        else:
            # The metrics of the last epoch stay until there are new ones.
            self._live.reset(
                self._train_task, total=total, completed=first_batch, description=_epoch_name(trainer)
            )

    def _show_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._live is not None and self._train_task is not None:
            completed = self._first_batch + self._num_train_batches
            metrics = _as_text(self.get_metrics(trainer, pl_module))
            self._live.update(self._train_task, completed=completed, metrics=metrics)
            self._draw()

    def _begin_evaluation(self, trainer: Trainer, name: str, num_batches: int | None) -> None:
        self._num_evaluation_batches = 0
        self._evaluation_started = monotonic()
        if self._live is not None:
            self._evaluation_task = self._add_task(name, num_batches)

    def _count_evaluation(self, trainer: Trainer) -> None:
        self._num_evaluation_batches += 1
        if self._live is None or monotonic() < self._next_time or self._evaluation_task is None:
            return
        self._live.update(self._evaluation_task, completed=self._num_evaluation_batches)
        self._draw()

    def _end_evaluation(self, trainer: Trainer, name: str) -> None:
        if self._stage == "fit":  # the metrics stand in the bar of the epoch
            if self._live is not None and self._evaluation_task is not None:
                self._live.remove_task(self._evaluation_task)
                self._evaluation_task = None
        # Without metrics: the trainer prints those of an evaluation, and its result.
        elif self._live is None:
            self._print_line(name, self._num_evaluation_batches, monotonic() - self._evaluation_started, {})
        elif self._evaluation_task is not None:
            self._live.update(self._evaluation_task, completed=self._num_evaluation_batches)

    def _add_task(self, name: str, total: int | None, *, completed: int = 0) -> TaskID:
        assert self._live is not None
        self._live.start()  # nothing happens if it has started
        task = self._live.add_task(name, total=total, completed=completed, metrics="")
        self._draw()
        return task

    def _draw(self) -> None:
        """Draw, unless the last drawing was a moment ago."""
        now = monotonic()
        if self._live is not None and now >= self._next_time:
            self._live.refresh()
            # From the end of the drawing: a slow terminal is not drawn on without pause.
            self._next_time = monotonic() + _REFRESH_INTERVAL

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()  # draws a last time
        self._live = self._train_task = self._evaluation_task = None
        self._train_started = None

    def _print_line(
        self, name: str, num_batches: int, seconds: float, metrics: dict[str, int | str | float]
    ) -> None:
        if self.is_enabled:
            # In the time of an epoch, as in its bar, is that of its validation.
            print(
                f"{name}: {num_batches} batches in {seconds:.1f} s  {_as_text(metrics)}".rstrip(), flush=True
            )


class TQDMProgressBar(RichProgressBar):
    """`RichProgressBar`, with the arguments of the bar that many programs name.

    Args:
        refresh_rate: Batches between two drawings at least; 0 draws nothing.
        process_position: Accepted; the bar finds its place by itself.
        leave: Leave the bar of every epoch in the terminal.
    """

    def __init__(self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False) -> None:
        super().__init__(refresh_rate, leave)


class _Pace(ProgressColumn):
    """`0:12<1:03, 45.3 it/s`: the time taken, the time left, and batches a second (or seconds a batch)."""

    def render(self, task: Task) -> Text:
        """Give the text for a task."""
        times = clock(task.elapsed or 0)
        if task.time_remaining:
            times += f"<{clock(task.time_remaining)}"
        speed = task.finished_speed or task.speed
        if not speed:
            return Text(times, style="progress.elapsed")
        pace = f"{speed:.1f} it/s" if speed >= 1 else f"{1 / speed:.1f} s/it"
        return Text(f"{times}, {pace}", style="progress.elapsed")


def clock(seconds: float) -> str:
    """Give a time span as a clock shows it.

    Example:
        >>> clock(63), clock(7201)
        ('1:03', '2:00:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _new_live(console: Console) -> Progress:
    """A bar that is drawn when it is told to, and not by a thread of its own."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Pace(),
        TextColumn("{task.fields[metrics]}", table_column=Column(ratio=1, overflow="fold")),
        console=console,
        auto_refresh=False,
        expand=True,
    )


def _epoch_name(trainer: Trainer) -> str:
    """`Epoch 0/4`: the epoch, and the last one where it is known."""
    last = trainer.max_epochs
    return f"Epoch {trainer.current_epoch}" + ("" if last is None or last < 1 else f"/{last - 1}")


def _total(num_batches: Sequence[float | None]) -> int | None:
    """The batches of all loaders; `None` where a stream's length is not known."""
    known = [count for count in num_batches if count is not None and math.isfinite(count)]
    return int(sum(known)) if len(known) == len(num_batches) else None


def _as_text(metrics: dict[str, int | str | float]) -> str:
    """The metrics in four digits."""
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in metrics.items()
    )
