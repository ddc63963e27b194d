"""`LiveView`: a whole run in a few lines: where it is, how good it is, how fast, and how long it still takes.

In a terminal the lines are drawn anew, at most ten times a second; elsewhere there is one for each epoch, and one a minute in
a long epoch. What is shown is a `View`, made of the trainer when it is time to draw; a step costs a comparison of clocks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.text import Text

from headstart import loaders
from headstart.callbacks.progress import ProgressBar, clock
from headstart.callbacks.screen import Screen, can_be_drawn_on

if TYPE_CHECKING:
    from headstart.module import LightningModule
    from headstart.trainer import Trainer

# Seconds between two drawings, and how many times as long as a drawing at least: it costs two hundredths at most.
_INTERVAL, _PAUSE = 0.1, 50
# Seconds between two lines where there is no terminal.
_LINE_INTERVAL = 60.0
_NUM_LOSSES = 100
_BAR, _GAP = 30, 3  # cells
# What the batches of an evaluation are for; the title says so of a prediction.
_WORK = {
    "Sanity check": "trial of validation, batch",
    "Validation": "validation, batch",
    "Test": "test, batch",
    "Prediction": "batch",
}


@dataclass(slots=True)
class View:
    """What is shown.

    Attributes:
        title: The phase.
        epoch: Which of how many; empty outside of training.
        work: What the batches are for.
        done: Batches that are over.
        total: Batches there are; `None` where nobody can say.
        values: Loss, the monitored value and others, by name.
        facts: Learning rates, pace, and what was not computed again.
        times: How long so far, and how long to go.
    """

    title: str
    epoch: str = ""
    work: str = "batch"
    done: int = 0
    total: int | None = None
    values: list[tuple[str, str]] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    times: list[str] = field(default_factory=list)


def lines_of(view: View, width: int, *, is_ascii: bool = False) -> list[Text]:
    """Give a view as lines of a width: what does not fit into one goes on in the next.

    Args:
        view: What is shown.
        width: In cells.
        is_ascii: Whether the terminal has no other characters.

    Example:
        >>> view = View("head", "epoch 0/4", done=3, total=6, values=[("loss", "0.69")], times=["0:01"])
        >>> for line in lines_of(view, 40):
        ...     print(line)
        head   epoch 0/4   batch 3/6
        ━━━━━━━━━━━━━━━───────────────  50 %
        loss 0.69
        0:01
    """
    first = [Text(view.title, style="bold"), *([Text(view.epoch)] if view.epoch else [])]
    first.append(Text(f"{view.work} {view.done:,}" + ("" if view.total is None else f"/{view.total:,}")))
    if view.total:
        share = min(1.0, view.done / view.total)
        cells = min(_BAR, width - 7)
        full = round(share * cells)
        bar = Text(("#" if is_ascii else "━") * full, style="green")
        bar.append(("-" if is_ascii else "─") * (cells - full), style="dim")
        first.append(bar.append(f"  {share:.0%}".replace("%", " %"), style="default"))
    values = [Text.assemble((f"{name} ", "dim"), value) for name, value in view.values]
    groups = [first, values, [Text(each) for each in view.facts], [Text(each) for each in view.times]]
    return [line for group in groups for line in _flow(group, width)]


def _flow(pieces: Sequence[Text], width: int) -> list[Text]:
    """Put pieces beside each other as long as they fit."""
    lines: list[Text] = []
    for piece in pieces:
        if lines and lines[-1].cell_len + _GAP + piece.cell_len <= width:
            lines[-1].append(" " * _GAP).append_text(piece)
        else:
            lines.append(piece.copy())
    return lines


class LiveView(ProgressBar):
    """The view of a run: phase, epoch, loss, the monitored value, learning rates, pace, time left.

    Args:
        title: What the run is called where no plan gives its phases names.
        monitor: The logged value to show with its best; `None` takes that of the plan, or of a callback that has one.
        mode: Whether less or more of it is better; `None` takes it from there too.
        keep: Whether the last view of a fit stays in the terminal.
        console: Where to draw; `None` is standard output.

    Example:
        >>> LiveView(title="fine-tuning").is_enabled
        True
    """

    def __init__(
        self,
        *,
        title: str = "",
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        keep: bool = True,
        console: Console | None = None,
    ) -> None:
        super().__init__()
        self.title = title
        self.monitor = monitor
        self.mode = mode
        self.keep = keep
        self._console = Console(highlight=False) if console is None else console
        self._screen: Screen | None = None  # None where there is no terminal
        self._stage = ""
        self._forget()

    def _forget(self) -> None:
        self._next_time = 0.0
        self._begun = monotonic()
        self._phase = ""
        self._losses: deque[Any] = deque(maxlen=_NUM_LOSSES)  # since the last drawing, on their device
        self._loss: float | None = None
        self._watched: float | None = None
        self._best: float | None = None
        # The epoch: its clock, how much of that was validation, the batches of this run, and the first of them.
        self._epoch = 0
        self._epoch_begun: float | None = None
        self._validated = 0.0
        self._num_batches = self._first_batch = 0
        self._last_epoch: float | None = None  # seconds of the phase's last whole epoch
        # An evaluation, in the epoch or on its own.
        self._evaluation: tuple[str, int | None] | None = None
        self._evaluation_begun = 0.0
        self._num_evaluated = 0

    # ---- set-up and end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look whether there is a terminal to draw on."""
        self._stage = stage
        self._forget()
        if not trainer.is_global_zero:
            self.disable()
        if self.is_enabled and self._screen is None and can_be_drawn_on(self._console):
            self._screen = Screen(self._console)
        if self._screen is None:
            self._next_time = monotonic() + _LINE_INTERVAL

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal in order."""
        self._close(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the terminal in order."""
        self._close(trainer)

    def _close(self, trainer: Trainer) -> None:
        if self._screen is not None:
            is_kept = self.keep and self._stage == "fit" and self._epoch_begun is not None
            if is_kept:
                self._screen.show(self._lines(trainer))
            self._screen.close(keep=is_kept)
        self._screen = None

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the view."""
        print(*args, **kwargs)

    # ---- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See what is watched."""
        owners: list[Any] = [getattr(each, "plan", each) for each in trainer.callbacks if each is not self]
        watching = [each for each in owners if getattr(each, "monitor", None) is not None]
        if self.monitor is None and watching:
            self.monitor = watching[0].monitor
        if self.mode is None:
            same = [each for each in watching if each.monitor == self.monitor]
            modes = [getattr(each, "mode", None) or getattr(each, "rule", each).mode for each in same]
            self.mode = modes[0] if modes else "min"

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        self._begin_epoch(trainer, first_batch=0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and draw if it is time to."""
        if self._epoch_begun is None:  # resumed within the epoch: its start was in the run before
            self._begin_epoch(trainer, first_batch=batch_idx)
        self._num_batches += 1
        if outputs is not None and "loss" in outputs:
            self._losses.append(outputs["loss"])
        if monotonic() >= self._next_time:
            self._draw(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the epoch's values."""
        now = monotonic()
        if self._epoch_begun is not None and self._first_batch == 0:
            self._last_epoch = now - self._epoch_begun
        self._watch(trainer)
        if self._screen is None:
            self._print_line(trainer)

    def _begin_epoch(self, trainer: Trainer, *, first_batch: int) -> None:
        phase = _phase_of(trainer)
        if phase != self._phase:
            self._phase, self._last_epoch = phase, None  # another phase has another pace
        self._first_batch, self._num_batches, self._validated = first_batch, 0, 0.0
        self._epoch, self._epoch_begun = trainer.current_epoch, monotonic()
        if self._screen is not None and self._epoch_begun >= self._next_time:
            self._draw(trainer)

    # ---- validation, test, prediction

    def _begin_evaluation(self, trainer: Trainer, name: str, num_batches: int | None) -> None:
        # In training, validation stands in the place of the epoch's batches.
        self._evaluation = _WORK[name], num_batches
        self._num_evaluated, self._evaluation_begun = 0, monotonic()
        if self._screen is not None and self._evaluation_begun >= self._next_time:
            self._draw(trainer)

    def _count_evaluation(self, trainer: Trainer) -> None:
        self._num_evaluated += 1
        if monotonic() >= self._next_time:
            self._draw(trainer)

    def _end_evaluation(self, trainer: Trainer, name: str) -> None:
        self._evaluation = None
        if name == "Validation":
            self._validated += monotonic() - self._evaluation_begun
            if not trainer.sanity_checking:
                self._watch(trainer)

    # ---- drawing

    def _draw(self, trainer: Trainer) -> None:
        begun = monotonic()
        if self._screen is not None:
            self._screen.show(self._lines(trainer))
        else:
            self._print_line(trainer)
        end = monotonic()
        pause = max(_INTERVAL, _PAUSE * (end - begun))
        self._next_time = end + (pause if self._screen is not None else _LINE_INTERVAL)

    def _lines(self, trainer: Trainer) -> list[Text]:
        console = self._console
        return lines_of(self.view(trainer), console.width - 1, is_ascii=console.options.ascii_only)

    def _print_line(self, trainer: Trainer) -> None:
        """One line without control codes."""
        if not self.is_enabled:
            return
        view = self.view(trainer)
        begin = view.epoch[:1].upper() + view.epoch[1:]
        head = ", ".join(filter(None, [begin, view.title])) or "Run"
        batches = f"{view.work} {view.done:,}" + ("" if view.total is None else f"/{view.total:,}")
        values = [f"{name} {value}" for name, value in view.values]
        print(
            f"{head}: {', '.join([batches, *values, *view.facts, *view.times])}",
            file=self._console.file,
            flush=True,
        )

    def view(self, trainer: Trainer) -> View:
        """Give what there is to show now."""
        now = monotonic()
        phase = _phase_of(trainer) if self._stage == "fit" else ""
        title = phase or self.title or {"fit": "training"}.get(self._stage, self._stage)
        if self._stage != "fit" or self._epoch_begun is None:
            work, total = self._evaluation or ("batch", None)
            pace = self._num_evaluated / max(1e-9, now - self._evaluation_begun)
            left = [] if not total or not self._num_evaluated else [(total - self._num_evaluated) / pace]
            return View(
                title, work=work, done=self._num_evaluated, total=total, facts=_reused(trainer),
                times=[*self._times(now), *(f"about {clock(each)} left" for each in left)],
            )  # fmt: skip
        self._settle_loss()
        count = trainer.num_training_batches
        view = View(
            title,
            epoch=_epoch_name(trainer, self._epoch),
            done=self._first_batch + self._num_batches,
            total=int(count) if math.isfinite(count) else None,
            values=self._values(trainer),
            facts=[*_rates(trainer), *self._pace(trainer, now), *_reused(trainer)],
            times=[*self._times(now), *self._left(trainer, now)],
        )
        if self._evaluation is not None:
            view.work, view.total = self._evaluation
            view.done = self._num_evaluated
        return view

    def _settle_loss(self) -> None:
        """Read the losses since the last drawing: the only place that waits for a device."""
        if self._losses:
            found = [float(each) for each in self._losses]
            self._loss = sum(found) / len(found)
            self._losses.clear()

    def _watch(self, trainer: Trainer) -> None:
        if self.monitor is None or self.monitor not in trainer.callback_metrics:
            return
        self._watched = float(trainer.callback_metrics[self.monitor])
        if self._best is None or (
            self._watched > self._best if self.mode == "max" else self._watched < self._best
        ):
            self._best = self._watched

    def _values(self, trainer: Trainer) -> list[tuple[str, str]]:
        values: list[tuple[str, str]] = []
        if self._loss is not None:
            values.append(("loss", f"{self._loss:.4g}"))
        if self._watched is not None and self._best is not None:
            values.append((str(self.monitor), f"{self._watched:.4g} (best {self._best:.4g})"))
        for name, value in self.get_metrics(trainer, trainer.lightning_module).items():
            if name not in {self.monitor, "v_num", "train_loss", "train_loss_step"}:
                values.append((name, f"{value:.4g}" if isinstance(value, float) else str(value)))
        return values

    def _pace(self, trainer: Trainer, now: float) -> list[str]:
        """Samples a second of training alone, in this epoch."""
        validating = now - self._evaluation_begun if self._evaluation is not None else 0.0
        seconds = now - (self._epoch_begun or now) - self._validated - validating
        if seconds <= 0 or not self._num_batches:
            return []
        loader = trainer.train_dataloader
        size = loaders.step_size(loader)
        if size is None:
            return [f"{self._num_batches / seconds:,.3g} batches/s"]
        # The last batch may have less.
        dataset: Any = getattr(loader, "dataset", None)
        most = len(dataset) if hasattr(dataset, "__len__") else math.inf
        return [f"{min(self._num_batches * size, most) / seconds:,.0f} samples/s"]

    def _times(self, now: float) -> list[str]:
        return [f"{clock(now - self._begun)} so far"]

    def _left(self, trainer: Trainer, now: float) -> list[str]:
        """Say how long it takes to the end, or to the end of the phase: another has another pace."""
        from headstart.callbacks.plan import runner_of
        from headstart.callbacks.timer import Timer

        total, seconds = trainer.num_training_batches, now - (self._epoch_begun or now)
        found: list[tuple[float, str]] = []
        if self._num_batches and math.isfinite(total):
            pace = seconds / self._num_batches
            epoch = self._last_epoch or pace * total
            rest = epoch * max(0.0, 1.0 - (self._first_batch + self._num_batches) / total)
            end, what = _end_of_phase(trainer)
            if end is not None:
                epochs = 0 if trainer.should_stop else max(0, end - 1 - trainer.current_epoch)
                found.append((rest + epochs * epoch, what))
            if trainer.max_steps != -1:
                steps = max(0, trainer.max_steps - trainer.global_step)
                found.append((steps * trainer.accumulate_grad_batches * pace, "left"))
        bounds = [each.time_remaining() for each in trainer.callbacks if isinstance(each, Timer)]
        found += [(max(0.0, each), "left") for each in bounds if each is not None]
        runner = runner_of(trainer)
        if runner is not None and math.isfinite(runner.seconds_left):
            found.append(
                (runner.seconds_left, "left" if len(runner.plan.phases) == 1 else "left in this phase")
            )
        return [f"about {clock(seconds)} {what}" for seconds, what in sorted(found)[:1]]


def _phase_of(trainer: Trainer) -> str:
    """Give the name of the plan's phase, or of that before or after the thaw; empty where there are none."""
    from headstart.callbacks.finetuning import BackboneFinetuning
    from headstart.callbacks.plan import PlanRunner

    for each in trainer.callbacks:
        if isinstance(each, PlanRunner):
            count, name = len(each.plan.phases), each.plan.phases[each.phase].name
            return name if count == 1 else f"{name} (phase {each.phase + 1} of {count})"
        if isinstance(each, BackboneFinetuning):
            thaws = each.unfreeze_backbone_at_epoch
            return "frozen phase" if trainer.current_epoch < thaws else "unfrozen phase"
    return ""


def _end_of_phase(trainer: Trainer) -> tuple[int | None, str]:
    """Give the epoch before which the phase ends, as far as it is known, and what is left until then."""
    from headstart.callbacks.finetuning import BackboneFinetuning
    from headstart.callbacks.plan import PlanRunner

    last = None if trainer.max_epochs in {None, -1} else trainer.max_epochs
    for each in trainer.callbacks:
        if isinstance(each, PlanRunner) and len(each.plan.phases) > 1:
            epochs = each.plan.phases[each.phase].epochs
            return None if epochs is None else each.history[-1]["epoch"] + epochs, "left in this phase"
        if isinstance(each, BackboneFinetuning) and trainer.current_epoch < each.unfreeze_backbone_at_epoch:
            thaws = each.unfreeze_backbone_at_epoch
            if last is None or thaws < last:
                return thaws, "left to the thaw"
    return last, "left"


def _epoch_name(trainer: Trainer, epoch: int) -> str:
    """Give the epoch, counted from 0, and the last one where it is known."""
    last = trainer.max_epochs
    return f"epoch {epoch}" + ("" if last is None or last < 1 else f"/{last - 1}")


def _rates(trainer: Trainer) -> list[str]:
    """Give the learning rates of what trains: one, or the highest and the lowest."""
    rates = [
        float(group["lr"])
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
        if any(each.requires_grad for each in group["params"])
    ]
    if not rates:
        return []
    high, low = max(rates), min(rates)
    return [f"lr {high:.3g}" if high == low else f"lr {high:.3g} to {low:.3g}"]


def _reused(trainer: Trainer) -> list[str]:
    """Give the share of frozen work that was looked up."""
    if trainer.reuse is None:
        return []
    report = trainer.reuse.report()
    count = report.num_computed + report.num_looked_up
    return [f"{100 * report.num_looked_up / count:.0f} % of frozen work looked up"] if count else []
