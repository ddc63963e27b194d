"""`headstart sweep DATA --out DIR`: many trials on the same data, the best of them as a RUN."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from headstart.cli.sweep_options import SweepOptions, parse
from headstart.durations import seconds_of
from headstart.errors import HeadstartError, NonFiniteError

if TYPE_CHECKING:
    from headstart.cli.sweep_folder import SweepFolder
    from headstart.data import ClassificationData
    from headstart.sweep.ranking import Ranking, Row
    from headstart.sweep.space import Settings, Space
    from headstart.sweep.study import Study
    from headstart.sweep.trial import Outcome, Trials
    from headstart.tasks import Classifier

_INTERRUPTED = 130


def run(arguments: list[str]) -> int:
    """Sweep and print; give the exit code.

    Args:
        arguments: What follows `headstart sweep`.

    Returns:
        0; 1 if no trial could be completed; 130 after Ctrl-C. After SIGTERM the process ends with 143.

    Raises:
        HeadstartError: If options or data cannot be used, or a file cannot be written.
    """
    request = parse(arguments)
    options = request.options

    from headstart.cli import set_up
    from headstart.cli.compare import check_counts
    from headstart.cli.sweep_folder import SweepFolder
    from headstart.cli.sweep_shown import command_to_go_on
    from headstart.signals import SIGTERMException
    from headstart.sweep.study import alone_in

    folder = SweepFolder(options.out)
    folder.check(request)
    data = set_up.open_data(options.fit_options())
    for line in data.prepare().report.lines():
        print(line)
    check_counts(data)
    space = _space_of(options, data)
    folder.path.mkdir(parents=True, exist_ok=True)
    with alone_in(folder.path):
        if request.resume:
            folder.go_on(options, data)
        else:
            folder.begin(options, data)
        try:
            return _Sweep.open(options, data, space, folder).run()
        except SIGTERMException:
            print(f"\nEnded by SIGTERM. Go on: {command_to_go_on(options)}", flush=True)
            raise


def _space_of(options: SweepOptions, data: ClassificationData) -> Space:
    from headstart.backbones import default_backbone
    from headstart.sweep.space import DEFAULT_PLANS, space_of

    return space_of(
        data.kind,
        backbones=options.backbones or [default_backbone(data.kind)],
        plans=options.plans or DEFAULT_PLANS,
        ranges=options.ranges,
    )


def _trials_of(options: SweepOptions, data: ClassificationData, space: Space, folder: SweepFolder) -> Trials:
    """Give what tries settings; every backbone is loaded once, so that a name that is none costs no trial."""
    from headstart.cli import set_up
    from headstart.cli.arguments import device_settings
    from headstart.sweep.trial import Trials

    base = options.fit_options()

    def make_model(backbone: str, *, weight_decay: float | None = None) -> Classifier:
        changed: dict[str, Any] = {"backbone": backbone}
        if weight_decay is not None:
            changed["weight_decay"] = weight_decay
        return set_up.make_model(replace(base, **changed), data)

    for name in space.backbones:
        make_model(name)
    return Trials(
        data,
        make_model=make_model,
        metric=options.metric,
        seed=options.seed,
        epochs=options.epochs,
        features=folder.features if options.features is None else Path(options.features),
        device=device_settings(base),
    )


@dataclass(frozen=True, slots=True)
class _Sweep:
    """A sweep that is under way."""

    options: SweepOptions
    data: ClassificationData
    space: Space
    folder: SweepFolder
    study: Study
    trials: Trials

    @classmethod
    def open(
        cls, options: SweepOptions, data: ClassificationData, space: Space, folder: SweepFolder
    ) -> _Sweep:
        """Go on with what the folder holds; a sweep that begins has tried nothing yet."""
        from headstart.sweep.study import Study

        study = Study(folder.study, space, metric=options.metric, seed=options.seed, prunes=options.prune)
        return cls(options, data, space, folder, study, _trials_of(options, data, space, folder))

    def run(self) -> int:
        """Try, keep the best, test it, and tell; give the exit code."""
        from headstart.cli import sweep_shown as shown

        options, study = self.options, self.study
        shown.say_what_is_tried(options, self.space, study)
        ends = math.inf if options.time is None else monotonic() + seconds_of(options.time, what="--time")
        is_interrupted = False
        try:
            while study.num_finished < options.trials and monotonic() < ends:
                self._try_one()
                shown.say_result(options, study)
            self._keep_best()
        except KeyboardInterrupt:
            is_interrupted = True
            study.set_cut_trials_aside()
        ranking = self._ranking()
        tested = self.folder.read_result().get("test")
        if ranking.best is not None and not is_interrupted:
            tested = self._test(ranking.best, before=tested)
        self._write(ranking, tested=tested)
        shown.show(options, ranking, self.folder, tested=None if is_interrupted else tested)
        if is_interrupted:
            print(
                f"\nInterrupted. {study.num_finished} of {options.trials} trials are kept; nothing was tested."
            )
            print(f"Go on: {shown.command_to_go_on(options)}")
            return _INTERRUPTED
        if study.num_finished < options.trials:
            print(f"The time is over. Go on: {shown.command_to_go_on(options)}")
        return 0 if ranking.best is not None else 1

    # ---- trials

    def _try_one(self) -> None:
        from headstart.sweep.trial import PrunedError

        trial, begun = self.study.begin(), monotonic()
        outcome: Outcome | None = None
        try:
            outcome = self.trials.run(trial.settings, trial.report)
        except PrunedError:
            with _uninterrupted():
                trial.end("pruned", seconds=monotonic() - begun)
        except NonFiniteError as error:
            with _uninterrupted():
                trial.end("pruned", seconds=monotonic() - begun, reason=f"diverged: {error}")
        except OSError:
            raise  # a full disk, a photo that is gone: the next trial would fare no better
        except Exception as error:  # noqa: BLE001 - any that a network of whatever library raises with these settings
            kind = "" if isinstance(error, HeadstartError) else f"{type(error).__name__}: "
            with _uninterrupted():
                trial.end("failed", seconds=monotonic() - begun, reason=f"{kind}{error}")
        else:
            with _uninterrupted():
                best, sign = self.study.best(), self.study.sign
                self.folder.write_predictions(trial.number, outcome.predictions)
                if best is None or sign * outcome.value > sign * (best.value or 0.0):
                    self._save(trial.number, trial.settings, outcome)
                # Last: what counts as complete is whole.
                trial.end("complete", value=outcome.value, seconds=monotonic() - begun)

    def _keep_best(self) -> None:
        """See to it that DIR/best is the best trial; where a process was killed before it was, that trial is run again."""
        best = self.study.best()
        if best is None or _number_of_best(self.folder) == best.number:
            return
        print(f"{self.folder.best} is not trial {best.number}, the best: it is run again.")
        outcome = self.trials.run(best.settings, lambda _: False)
        with _uninterrupted():
            self._save(best.number, best.settings, outcome)

    def _save(self, number: int, settings: Settings, outcome: Outcome) -> None:
        """Keep a trial as DIR/best, its probabilities calibrated."""
        from headstart import auto
        from headstart.artefact import save_artefact
        from headstart.cli.ending import found_in

        calibration = auto.fold_in_temperature(outcome.model.head, outcome.predictions, self.trials.targets)
        metrics = {
            "sweep": {
                "trial": number,
                "plan": settings.plan,
                "settings": dict(settings.values),
                "seed": self.options.seed,
                "metric": self.options.metric,
            },
            "validation": {self.options.metric: outcome.value},
            "calibration": calibration.to_dict(),
        }
        save_artefact(self.folder.best, outcome.model, metrics=metrics, data_report=found_in(self.data))

    # ---- the end

    def _ranking(self) -> Ranking:
        from headstart.sweep.ranking import rank

        found = self.study.trials()
        predictions = {
            each.number: self.folder.read_predictions(each.number)
            for each in found
            if each.state == "complete"
        }
        targets = self.trials.targets.numpy()
        return rank(found, predictions, targets, metric=self.options.metric, seed=self.options.seed)

    def _test(self, best: Row, *, before: dict[str, Any] | None) -> dict[str, Any] | None:
        """Look at the test part, for the best alone; give what was seen, and how often it was looked at."""
        from headstart.artefact import load_artefact, read_metadata, save_artefact
        from headstart.cli.arguments import device_settings
        from headstart.cli.inference import scores_of

        data, path = self.data, self.folder.best
        if data.test_set is None:
            return None
        if before is not None and before["trial"] == best.trial.number:
            return before
        model = load_artefact(path)
        data.set_preprocessing(model.preprocessing)
        settings = device_settings(self.options.fit_options())
        found = scores_of(model, data.test_dataloader(), **settings).to_dict(data.class_names)
        metadata = read_metadata(path)
        save_artefact(
            path, model.cpu(), metrics={**metadata["metrics"], "test": found}, data_report=metadata["data"]
        )
        looks = 1 if before is None else before["num_looks"] + 1
        return {"trial": best.trial.number, "num_looks": looks, "scores": found}

    def _write(self, ranking: Ranking, *, tested: dict[str, Any] | None) -> None:
        from headstart.sweep.ranking import write

        pruner = "median of the plan's other trials at the same validation"
        about = {
            "data": str(self.data.source),
            "class_names": self.data.class_names,
            "part_sizes": self.data.report.part_sizes,
            "seed": self.options.seed,
            "sampler": "optuna TPE, after each plan's own settings",
            "pruner": pruner if self.options.prune else None,
            "space": self.space.to_dict(),
            "test": tested,
        }
        write(ranking, self.folder.path, about=about)


def _number_of_best(folder: SweepFolder) -> int | None:
    from headstart.artefact import read_metadata
    from headstart.errors import CheckpointError

    try:
        number: int = read_metadata(folder.best)["metrics"]["sweep"]["trial"]
    except (CheckpointError, KeyError):
        return None
    return number


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back while the block writes; it comes when that is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_asked = False

    def take(*_: object) -> None:
        nonlocal is_asked
        is_asked = True

    before = signal.signal(signal.SIGINT, take)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if is_asked:
        raise KeyboardInterrupt
