"""Which learning rate: a range test, in which the rate grows from step to step while the loss is watched.

The test trains a copy: the module, its optimizer, the callbacks and every random generator are afterwards what they were before.

Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3, https://arxiv.org/abs/1506.01186
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import DataLoader

from headstart import loaders
from headstart.callback import Callback
from headstart.callbacks.finetuning import BaseFinetuning
from headstart.callbacks.plan import PlanRunner, runner_of
from headstart.deferred import Reuse
from headstart.errors import MisconfigurationError, UnknownNameError, did_you_mean, missing_dependency
from headstart.seed import isolated_random_state
from headstart.trainer import Trainer

if TYPE_CHECKING:
    from headstart.datamodule import LightningDataModule
    from headstart.module import LightningModule

Rule = Literal["valley", "steepest"]
_RULES: tuple[Rule, ...] = ("valley", "steepest")

# Fewer points than this show no curve.
_FEWEST = 10
# Half the window over which losses are smoothed, as a share of the steps.
_WINDOW = 0.05
# Of the running mean by which a loss that diverges is noticed.
_BETA = 0.98
_BAR = 40  # cells


@dataclass(frozen=True, kw_only=True)
class LRCurve:
    """The losses that a range test has seen.

    Attributes:
        lrs: The rate of each step: of the group with the highest one; the others keep their ratio to it.
        losses: The loss of each step, before it was taken.
        configured_lr: The highest rate that the optimizer was made with, or that the plan gives.
        phase: The phase of the plan; `None` without one.
        is_diverged: Whether the loss grew beyond all bounds, which ended the test.

    Example:
        >>> lrs = [10 ** (-5 + step / 10) for step in range(51)]
        >>> curve = LRCurve(lrs=lrs, losses=[abs(-2 - math.log10(lr)) for lr in lrs], configured_lr=0.001)
        >>> 1e-4 < curve.suggestion() < 1e-2
        True
    """

    lrs: list[float]
    losses: list[float]
    configured_lr: float
    phase: str | None = None
    is_diverged: bool = False

    @property
    def results(self) -> dict[str, list[float]]:
        """Rates and losses, as `"lr"` and `"loss"`."""
        return {"lr": list(self.lrs), "loss": list(self.losses)}

    @property
    def smoothed(self) -> list[float]:
        """The mean over neighbours, without the delay of a running mean, of their medians: one odd batch makes no peak."""
        return [fmean(window) for window in _windows([median(each) for each in _windows(self.losses)])]

    @property
    def is_clear(self) -> bool:
        """Whether the loss falls by more than the noise of batches would make it seem to."""
        smoothed = self.smoothed
        noise = 1.4826 * median(abs(a - b) for a, b in zip(self.losses, smoothed, strict=True))
        count = len(_windows(self.losses)[len(self.losses) // 2])
        return max(smoothed[: 1 + smoothed.index(min(smoothed))]) - min(smoothed) > 4 * noise / math.sqrt(
            count
        )

    def suggestion(self, method: Rule = "valley", skip_begin: int | None = None, skip_end: int = 1) -> float:
        """Give a learning rate.

        Args:
            method: `"valley"`: the longest fall of the loss, which other losses may interrupt (as in fastai's `lr_find`, of which
                it is the default), and in it the rate at which half of the fall is done; `"steepest"`: where the loss falls
                fastest over the logarithm of the rate (as in PyTorch Lightning's `Tuner.lr_find`).
            skip_begin: Steps at the beginning that are not looked at; `None` is a tenth.
            skip_end: Steps at the end that are not looked at.

        Returns:
            The rate for the group with the highest one.

        Raises:
            MisconfigurationError: If there are too few steps, or the loss never falls.
        """
        if method not in _RULES:
            raise UnknownNameError(
                f"method is {method!r}; expected 'valley' or 'steepest'.{did_you_mean(str(method), _RULES)}"
            )
        skip_begin = len(self.losses) // 10 if skip_begin is None else skip_begin
        end = len(self.losses) - skip_end
        lrs, losses = self.lrs[skip_begin:end], self.smoothed[skip_begin:end]
        if len(losses) < _FEWEST:
            raise MisconfigurationError(
                f"{len(self.losses)} steps were taken before the loss was too large or not finite, and {skip_begin} + {skip_end} "
                f"of them are left out; expected {_FEWEST} or more that remain. Give a smaller min_lr, a larger num_training, or "
                "look at the data."
            )
        lowest = min(range(len(losses)), key=losses.__getitem__)
        if losses[lowest] >= losses[0]:
            raise MisconfigurationError(
                f"The loss never falls between the rates {lrs[0]:.3g} and {lrs[-1]:.3g}: nothing can be suggested. Give a smaller "
                "min_lr, or look at the data and the loss."
            )
        # Beyond its lowest the loss may fall once more, from where it had diverged to.
        lrs, losses = lrs[: lowest + 1], losses[: lowest + 1]
        if method == "valley":
            fall = longest_fall(losses)
            half = (losses[fall[0]] + losses[fall[-1]]) / 2
            found = next(place for place in fall if losses[place] <= half)
        else:
            slopes = _slopes([math.log(lr) for lr in lrs], losses)
            found = min(range(len(lrs)), key=slopes.__getitem__)
        return lrs[found]

    def table(self, num_rows: int = 20) -> str:
        """Give the curve as text: rates, losses, a bar for each, and where the suggestions lie.

        Args:
            num_rows: At most.
        """
        smoothed = self.smoothed
        marks: dict[int, list[str]] = {}
        every = max(1, -(-len(self.lrs) // num_rows))
        for rule in _RULES:
            try:
                rate = self.suggestion(rule)
            except MisconfigurationError:
                continue  # a curve without one is shown, too
            row = self.lrs.index(rate) // every
            marks.setdefault(row, []).append(f"< {rule}: {rate:.3g}")
        shown = smoothed[::every]
        low, high = min(shown), max(sorted(shown)[: max(1, round(0.95 * len(shown)))])
        lines = [f"{'rate':>9}  {'loss':>9}"]
        for row, loss in enumerate(shown):
            share = min(1.0, max(0.0, (loss - low) / ((high - low) or 1.0)))
            bar = "#" * round(_BAR * share)
            mark = " ".join(marks.get(row, []))
            lines.append(f"{self.lrs[row * every]:>9.2e}  {loss:>9.4g}  {bar} {mark}".rstrip())
        return "\n".join(lines)

    def plot(self, suggest: bool = True, show: bool = False, ax: Any = None) -> Any:
        """Give the curve as a matplotlib figure.

        Args:
            suggest: Mark the suggestions.
            show: Show it, in a program with a window.
            ax: Where to draw; `None` makes a figure.

        Raises:
            MissingDependencyError: If matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise missing_dependency("matplotlib", needed_for="`LRCurve.plot`", extra="plots") from None
        if ax is None and show:
            from matplotlib import pyplot as plt

            figure, ax = plt.subplots(figsize=(7, 4.5))
        elif ax is None:
            figure = Figure(figsize=(7, 4.5), layout="constrained")
            ax = figure.subplots()
        else:
            figure = ax.figure
        smoothed = self.smoothed
        ax.plot(self.lrs, self.losses, color="0.8", linewidth=1, label="loss of a step")
        ax.plot(self.lrs, smoothed, color="C0", label="smoothed")
        ax.set_xscale("log")
        # What diverges at the end would press all else flat.
        low, start = min(smoothed), max(smoothed[: max(1, len(smoothed) // 3)])
        ax.set_ylim(low - 0.1 * (start - low or 1.0), start + 0.5 * (start - low or 1.0))
        if suggest:
            for color, rule in zip(("C1", "C2"), _RULES, strict=True):
                rate = self.suggestion(rule)
                loss = smoothed[self.lrs.index(rate)]
                ax.plot([rate], [loss], "o", color=color, label=f"{rule}: {rate:.3g}")
        ax.set_xlabel("learning rate")
        ax.set_ylabel("training loss")
        ax.set_title("Learning-rate range test" + ("" if self.phase is None else f", phase {self.phase!r}"))
        ax.legend()
        if show:
            figure.show()
        return figure


def _windows(values: Sequence[float]) -> list[Sequence[float]]:
    """Give each value with its neighbours."""
    half = max(1, round(_WINDOW * len(values)))
    return [values[max(0, place - half) : place + half + 1] for place in range(len(values))]


def longest_fall(values: Sequence[float]) -> list[int]:
    """Give the places of the longest series of falling values, which others may interrupt.

    Example:
        >>> longest_fall([3.0, 2.5, 3.5, 2.0, 1.0, 4.0])
        [0, 1, 3, 4]
    """
    lowest: list[float] = []  # of each length, minus the value at which such a series can end highest
    ends: list[int] = []
    before: list[int] = []
    for place, value in enumerate(values):
        length = bisect_left(lowest, -value)
        before.append(ends[length - 1] if length else -1)
        lowest[length : length + 1] = [-value]
        ends[length : length + 1] = [place]
    place = ends[-1]
    series = []
    while place >= 0:
        series.append(place)
        place = before[place]
    return series[::-1]


def _slopes(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """Give the slope at each point, by its neighbours."""
    last = len(x) - 1
    pairs = [(max(0, place - 1), min(last, place + 1)) for place in range(len(x))]
    return [(y[right] - y[left]) / (x[right] - x[left]) for left, right in pairs]


# ---- the test


def find_lr(
    trainer: Trainer,
    model: LightningModule,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    datamodule: LightningDataModule | None = None,
    *,
    phase: str | int | None = None,
    min_lr: float = 1e-8,
    max_lr: float = 1.0,
    num_training: int = 100,
    mode: Literal["exponential", "linear"] = "exponential",
    early_stop_threshold: float | None = 4.0,
) -> LRCurve:
    """Give the curve of the loss over the rate, as `trainer` would train `model`; look at it, and take its `suggestion()`.

    What is frozen stays frozen, and all groups keep their ratios. With a plan, the phases before the one that is asked for are
    trained first, as the plan says: the test begins in the state in which that phase begins. Without one, it begins where `fit`
    would. All of it happens to a copy of the module: neither the module nor trainer, callbacks, data module or random state
    are changed. Callbacks other than those that freeze do not run.

    Args:
        trainer: Its settings count; it does not run.
        model: As for `Trainer.fit`; likewise the loaders and the data module.
        train_dataloaders: See `Trainer.fit`.
        val_dataloaders: See `Trainer.fit`; for the phases before the one that is asked for.
        datamodule: See `Trainer.fit`.
        phase: The phase of the trainer's plan, by name or number; `None` is the first.
        min_lr: The rate of the first step.
        max_lr: That of the last one.
        num_training: Number of optimizer steps.
        mode: Whether the rate is multiplied from step to step, or something is added.
        early_stop_threshold: The test ends where the running mean of the loss is this many times its lowest; `None` goes on to
            the end. A loss that is not finite always ends it.

    Raises:
        MisconfigurationError: If the settings make no sense, or this cannot be tested.
        UnknownNameError: If the plan has no such phase.

    Example:
        >>> from headstart.demos.boring_classes import BoringModel
        >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        >>> curve = find_lr(Trainer(**quiet), BoringModel(), num_training=30, early_stop_threshold=None)
        >>> len(curve.lrs), curve.lrs[0]
        (30, 1e-08)
    """
    _check(trainer, min_lr=min_lr, max_lr=max_lr, num_training=num_training, mode=mode)
    runner = runner_of(trainer)
    plan, index = (None, 0) if runner is None else (runner.plan, _number_of(runner, phase))
    if runner is None and phase is not None:
        raise MisconfigurationError(
            f"phase is {phase!r}, and the trainer has no plan, so there are no phases: the test begins where fit does. Leave it "
            "out, or give Trainer(plan=...)."
        )
    freezers = [each for each in trainer.callbacks if isinstance(each, BaseFinetuning)]
    try:
        trial_model, freezers = copy.deepcopy((model, freezers), {id(trainer): None})
    except Exception as error:
        raise MisconfigurationError(
            f"{type(model).__name__} cannot be copied ({error}), and find_lr trains a copy so that the module stays as it is. Keep "
            "out of its attributes what copy.deepcopy cannot copy."
        ) from error
    own = [each for each in _as_list(trial_model.configure_callbacks()) if isinstance(each, BaseFinetuning)]
    trial_model.configure_callbacks = lambda: own  # type: ignore[method-assign] # no others: they may write files
    steps = [step / (num_training - 1) for step in range(num_training)]
    lrs = [
        min_lr * (max_lr / min_lr) ** share if mode == "exponential" else min_lr + (max_lr - min_lr) * share
        for share in steps
    ]
    callbacks: list[Callback] = list(freezers)
    trial_runner = None
    if plan is not None:
        # The last phase is as long as the test; nobody judges it.
        last = replace(
            plan.phases[index],
            epochs=None, steps=num_training + 1, time=None, patience=None, schedule="constant", warmup_steps=0,
        )  # fmt: skip
        phases = (*plan.phases[:index], last)
        monitor = plan.monitor if index else None
        trial_runner = PlanRunner(replace(plan, phases=phases, monitor=monitor), say_table=False)
        callbacks.insert(0, trial_runner)
    test = _RangeTest(lrs, runner=trial_runner, phase=index, threshold=early_stop_threshold)
    trial = _trial_of(trainer, [*callbacks, test])
    with isolated_random_state():
        try:
            trial.fit(
                trial_model,
                _copied(train_dataloaders),
                _copied(val_dataloaders),
                datamodule=copy.copy(datamodule),  # what `setup` assigns is assigned to the copy
            )
        finally:
            test.put_back_generators()
    if not test.losses:
        raise MisconfigurationError(
            f"The loss is not finite at the first rate, {min_lr:.3g}: look at the data, or give a smaller min_lr."
        )
    return LRCurve(
        lrs=lrs[: len(test.losses)],
        losses=test.losses,
        configured_lr=test.configured_lr,
        phase=None if plan is None else plan.phases[index].name,
        is_diverged=test.is_diverged,
    )


def _check(trainer: Trainer, *, min_lr: float, max_lr: float, num_training: int, mode: str) -> None:
    if not 0 < min_lr < max_lr < math.inf:
        raise MisconfigurationError(
            f"min_lr is {min_lr} and max_lr is {max_lr}; expected 0 < min_lr < max_lr."
        )
    if num_training < _FEWEST:
        raise MisconfigurationError(f"num_training is {num_training}; expected {_FEWEST} or more.")
    if mode not in {"exponential", "linear"}:
        raise MisconfigurationError(
            f"mode is {mode!r}; expected 'exponential' or 'linear'.{did_you_mean(mode, ['exponential', 'linear'])}"
        )
    if trainer.world_size > 1:
        raise MisconfigurationError(
            f"find_lr runs in one process, and the trainer has {trainer.world_size}. Find the rate with devices=1, with batches as "
            "large as those of all processes together."
        )


def _number_of(runner: PlanRunner, phase: str | int | None) -> int:
    names = [each.name for each in runner.plan.phases]
    if phase is None:
        return 0
    if isinstance(phase, int) and 0 <= phase < len(names):
        return phase
    if phase in names:
        return names.index(str(phase))
    raise UnknownNameError(
        f"Plan {runner.plan.name!r} has no phase {phase!r}.{did_you_mean(str(phase), names)} It has: {', '.join(names)}."
    )


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _copied(given: Any) -> Any:
    """Give loaders whose worker processes, where they persist, are not those of the loaders that were given."""
    if isinstance(given, list | tuple):
        return [_copied(each) for each in given]
    if not isinstance(given, DataLoader):
        return given
    copied = copy.copy(given)
    copied._iterator = None  # noqa: SLF001 (where it keeps them)
    return copied


def _trial_of(trainer: Trainer, callbacks: list[Callback]) -> Trainer:
    """Give a trainer with the settings of another that bear on the loss; it writes nothing."""
    device = trainer.strategy.device
    trial = Trainer(
        accelerator=device.type,
        devices="auto" if device.index is None else [device.index],
        strategy="single_device",
        precision=trainer.precision,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_epochs=-1,
        log_every_n_steps=10**9,
        reuse_frozen=False
        if trainer.reuse is None
        else Reuse(setting=trainer.reuse.setting, say=lambda _: None),
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        gradient_clip_val=trainer.gradient_clip_val,
        gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        limit_train_batches=trainer.limit_train_batches,
        limit_val_batches=trainer.limit_val_batches,
        overfit_batches=trainer.overfit_batches,
        val_check_interval=trainer.val_check_interval,
        check_val_every_n_epoch=trainer.check_val_every_n_epoch,
        detect_anomaly=trainer.detect_anomaly,
        default_root_dir=trainer.default_root_dir,
    )
    trial.say = lambda _: None  # type: ignore[method-assign,assignment] # of phases that nobody asked to see
    return trial


class _RangeTest(Callback):
    """Sets the rate of each step, and keeps its loss; from the phase on that is asked for."""

    def __init__(
        self, lrs: Sequence[float], *, runner: PlanRunner | None, phase: int, threshold: float | None
    ) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.configured_lr = 0.0
        self.is_diverged = False
        self._lrs = lrs
        self._runner = runner
        self._phase = phase
        self._threshold = threshold
        self._ratios: list[float] | None = None  # of each group to the highest; None before the test begins
        self._window: list[torch.Tensor] = []
        self._mean, self._lowest = 0.0, math.inf
        self._generators: dict[int, tuple[torch.Generator, torch.Tensor]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the states of the loader's generators; refuse what has no rate to be tested."""
        if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
            raise MisconfigurationError(
                f"find_lr needs one optimizer and automatic optimization; {type(pl_module).__name__} has "
                f"{len(trainer.optimizers)} optimizers."
            )
        self._remember(trainer.train_dataloader)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise."""
        for loader in trainer.validation_loaders:
            self._remember(loader)

    def _remember(self, loader: Any) -> None:
        for each in loaders.generators_of(loader):
            self._generators.setdefault(id(each), (each, each.get_state()))

    def put_back_generators(self) -> None:
        """Let loaders begin where they would have begun."""
        for generator, state in self._generators.values():
            generator.set_state(state)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rates of this step."""
        if self._ratios is None:
            if self._runner is not None and self._runner.phase < self._phase:
                return
            self._begin(trainer)
        assert self._ratios is not None, "it was just set"
        rate = self._lrs[len(self.losses)]
        for group, ratio in zip(trainer.optimizers[0].param_groups, self._ratios, strict=True):
            group["lr"] = rate * ratio

    def _begin(self, trainer: Trainer) -> None:
        trainer.lr_scheduler_configs = []
        trainer.limit_val_batches = 0
        groups = trainer.optimizers[0].param_groups
        # A scheduler with a warm-up may have set the rate to 0.
        rates = [float(group["lr"]) or float(group.get("initial_lr", 0.0)) for group in groups]
        trains = [any(each.requires_grad for each in group["params"]) for group in groups]
        self.configured_lr = max(
            (rate for rate, does in zip(rates, trains, strict=True) if does), default=0.0
        )
        if not self.configured_lr > 0:
            raise MisconfigurationError(
                "Nothing trains at a rate above 0, so there are no ratios to keep: let something train, and give the optimizer a rate."
            )
        self._ratios = [rate / self.configured_lr for rate in rates]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss, and end the test where it is over."""
        if self._ratios is None:
            return
        loss = None if outputs is None else outputs.get("loss")
        if loss is not None:
            self._window.append(loss)
        if trainer.progress.accumulated:
            return
        if self._window:
            self._take(float(torch.stack(self._window).float().mean()), trainer)
        self._window = []
        if self.is_diverged or len(self.losses) == len(self._lrs):
            trainer.should_stop = True

    def _take(self, loss: float, trainer: Trainer) -> None:
        if not math.isfinite(loss):
            self.is_diverged = True
            trainer.nan_guard.begin()  # it is no news
            return
        self.losses.append(loss)
        count = len(self.losses)
        self._mean = _BETA * self._mean + (1 - _BETA) * loss
        mean = self._mean / (1 - _BETA**count)
        if count < _FEWEST:  # the mean of a few batches says little
            return
        self._lowest = min(self._lowest, mean)
        # A loss may be negative: then no multiple of it is a bound.
        self.is_diverged = (
            self._threshold is not None and self._lowest > 0 and mean > self._threshold * self._lowest
        )
