"""`headstart sweep DATA --out DIR`: many trials on the same data, the best of them as a RUN."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from headstart.cli.sweep_options import SweepOptions, parse
from headstart.errors import HeadstartError, NonFiniteError
from headstart.words import counted

if TYPE_CHECKING:
    from rich.table import Table

    from headstart.cli.sweep_folder import SweepFolder
    from headstart.data import ClassificationData
    from headstart.sweep.ranking import Ranking, Row
    from headstart.sweep.space import Space
    from headstart.sweep.study import Study
    from headstart.sweep.trial import Outcome, Trials
    from headstart.tasks import Classifier

_INTERRUPTED = 130
_METRICS = {"macro_f1": "macro-F1", "accuracy": "accuracy", "log_loss": "log loss"}
# Rows of the table on the terminal; the files have all.
_MOST_ROWS = 20


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
            return _sweep(options, data, space, folder)
        except SIGTERMException:
            print(f"\nEnded by SIGTERM. Go on: {_command_to_go_on(options)}", flush=True)
            raise


def _sweep(options: SweepOptions, data: ClassificationData, space: Space, folder: SweepFolder) -> int:
    from headstart.cli.options import seconds_of
    from headstart.sweep.study import Study

    study = Study(folder.study, space, metric=options.metric, seed=options.seed, prunes=options.prune)
    trials = _trials_of(options, data, folder, space)
    _say_what_is_tried(options, space, study)
    ends = math.inf if options.time is None else monotonic() + seconds_of(options.time)
    is_interrupted = False
    try:
        while study.num_finished < options.trials and monotonic() < ends:
            _try_one(options, data, study, trials, folder)
        _keep_best(options, data, study, trials, folder)
    except KeyboardInterrupt:
        is_interrupted = True
        study.set_cut_trials_aside()
    ranking = _ranking_of(options, study, trials, folder)
    tested = folder.read_result().get("test")
    if ranking.best is not None and not is_interrupted:
        tested = _test(options, data, ranking.best, folder, before=tested)
    _write(options, data, space, ranking, folder, tested=tested)
    _show(options, ranking, folder, tested=None if is_interrupted else tested)
    if is_interrupted:
        print(f"\nInterrupted. {study.num_finished} of {options.trials} trials are kept; nothing was tested.")
        print(f"Go on: {_command_to_go_on(options)}")
        return _INTERRUPTED
    if study.num_finished < options.trials:
        print(f"The time is over. Go on: {_command_to_go_on(options)}")
    return 0 if ranking.best is not None else 1


# ---- what is tried


def _space_of(options: SweepOptions, data: ClassificationData) -> Space:
    from headstart.backbones import default_backbone
    from headstart.sweep.space import DEFAULT_PLANS, space_of

    return space_of(
        data.kind,
        backbones=options.backbones or [default_backbone(data.kind)],
        plans=options.plans or DEFAULT_PLANS,
        ranges=options.ranges,
    )


def _trials_of(options: SweepOptions, data: ClassificationData, folder: SweepFolder, space: Space) -> Trials:
    """Give what tries settings; every backbone is loaded once, so that a name that is none costs no trial."""
    from pathlib import Path

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


def _say_what_is_tried(options: SweepOptions, space: Space, study: Study) -> None:
    from headstart.sweep.space import HEAD, ON_FEATURES

    for line in space.lines():
        print(line)
    seed = options.seed
    print(
        f"{options.trials} trials, judged by {_METRICS[options.metric]} on the validation part: first every plan's own settings, "
        f"then what optuna's TPE proposes. Seed {seed}: of the split, of what is proposed, and of each trial."
    )
    if options.prune and set(space.plans) - {HEAD}:
        print(
            "A trial ends early where it stays below the median of its plan's others at the same validation."
        )
    if set(space.plans) & ON_FEATURES or "fine_tune" in space.plans:
        print("What a frozen backbone makes of the data is computed once, for all trials.")
    if study.num_finished:
        print(f"There already: {counted(study.num_finished, 'trial')}.")
    sys.stdout.flush()


# ---- trials


def _try_one(
    options: SweepOptions, data: ClassificationData, study: Study, trials: Trials, folder: SweepFolder
) -> None:
    from headstart.sweep.trial import PrunedError

    trial, begun = study.begin(), monotonic()
    outcome: Outcome | None = None
    try:
        outcome = trials.run(trial.settings, trial.report)
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
            best = study.best()
            folder.write_predictions(trial.number, outcome.predictions)
            if best is None or study.sign * outcome.value > study.sign * (best.value or 0.0):
                _save(options, data, trial.number, trial.settings, outcome, trials, folder)
            # Last: what counts as complete is whole.
            trial.end("complete", value=outcome.value, seconds=monotonic() - begun)
    _say_result(options, study)


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


def _keep_best(
    options: SweepOptions, data: ClassificationData, study: Study, trials: Trials, folder: SweepFolder
) -> None:
    """See to it that DIR/best is the best trial; where a process was killed before it was, that trial is run again."""
    best = study.best()
    if best is None or _number_of_best(folder) == best.number:
        return
    print(f"{folder.best} is not trial {best.number}, the best: it is run again.")
    outcome = trials.run(best.settings, lambda _: False)
    with _uninterrupted():
        _save(options, data, best.number, best.settings, outcome, trials, folder)


def _number_of_best(folder: SweepFolder) -> int | None:
    from headstart.artefact import read_metadata
    from headstart.errors import CheckpointError

    try:
        number: int = read_metadata(folder.best)["metrics"]["sweep"]["trial"]
    except (CheckpointError, KeyError):
        return None
    return number


def _save(
    options: SweepOptions,
    data: ClassificationData,
    number: int,
    settings: Any,
    outcome: Outcome,
    trials: Trials,
    folder: SweepFolder,
) -> None:
    """Keep a trial as DIR/best, its probabilities calibrated."""
    from headstart import auto
    from headstart.artefact import save_artefact
    from headstart.cli.ending import found_in

    calibration = auto.fold_in_temperature(outcome.model.head, outcome.predictions, trials.targets)
    metrics = {
        "sweep": {
            "trial": number,
            "plan": settings.plan,
            "settings": dict(settings.values),
            "seed": options.seed,
            "metric": options.metric,
        },
        "validation": {options.metric: outcome.value},
        "calibration": calibration.to_dict(),
    }
    save_artefact(folder.best, outcome.model, metrics=metrics, data_report=found_in(data))


# ---- the end


def _ranking_of(options: SweepOptions, study: Study, trials: Trials, folder: SweepFolder) -> Ranking:
    from headstart.sweep.ranking import rank

    found = study.trials()
    predictions = {
        each.number: folder.read_predictions(each.number) for each in found if each.state == "complete"
    }
    return rank(found, predictions, trials.targets.numpy(), metric=options.metric, seed=options.seed)


def _test(
    options: SweepOptions,
    data: ClassificationData,
    best: Row,
    folder: SweepFolder,
    *,
    before: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Look at the test part, for the best alone; give what was seen, and how often it was looked at."""
    from headstart.artefact import load_artefact, read_metadata, save_artefact
    from headstart.cli.arguments import device_settings
    from headstart.cli.inference import scores_of

    if data.test_set is None:
        return None
    if before is not None and before["trial"] == best.trial.number:
        return before
    model = load_artefact(folder.best)
    data.set_preprocessing(model.preprocessing)
    scores = scores_of(model, data.test_dataloader(), **device_settings(options.fit_options()))
    found = scores.to_dict(data.class_names)
    metadata = read_metadata(folder.best)
    save_artefact(
        folder.best, model.cpu(), metrics={**metadata["metrics"], "test": found}, data_report=metadata["data"]
    )
    looks = 1 if before is None else before["num_looks"] + 1
    return {"trial": best.trial.number, "num_looks": looks, "scores": found}


def _write(
    options: SweepOptions,
    data: ClassificationData,
    space: Space,
    ranking: Ranking,
    folder: SweepFolder,
    *,
    tested: dict[str, Any] | None,
) -> None:
    from headstart.sweep.ranking import write

    about = {
        "data": str(data.source),
        "class_names": data.class_names,
        "part_sizes": data.report.part_sizes,
        "seed": options.seed,
        "sampler": "optuna TPE, after each plan's own settings",
        "pruner": "median of the plan's other trials at the same validation" if options.prune else None,
        "space": space.to_dict(),
        "test": tested,
    }
    write(ranking, folder.path, about=about)


# ---- what is shown


def _say_result(options: SweepOptions, study: Study) -> None:
    """Print a line for the trial that ended."""
    from headstart.cli.output import duration

    ended, best = study.trials()[-1], study.best()
    what = ended.reason or "ended early: it stayed below the others of its plan"
    if ended.value is not None:
        mark = ", the best so far" if best is not None and best.number == ended.number else ""
        what = f"{_METRICS[options.metric]} {ended.value:.3f}{mark}"
    place = f"{study.num_finished} of {options.trials}"
    print(
        f"trial {ended.number} ({place}) {ended.settings}: {what}; {duration(ended.seconds or 0.0)}",
        flush=True,
    )


def _show(
    options: SweepOptions, ranking: Ranking, folder: SweepFolder, *, tested: dict[str, Any] | None
) -> None:
    from headstart.cli import output
    from headstart.scores import Estimate

    best = ranking.best
    if best is None:
        print("No trial was completed.")
        for row in ranking.rows:
            print(f"trial {row.trial.number} {row.trial.settings}: {row.trial.reason or row.trial.state}")
        return
    print()
    output.show(_table(ranking))
    for line in _notes(options, ranking):
        print(line)
    facts = [("best", f"trial {best.trial.number}: {best.trial.settings}")]
    for metric in ("macro_f1", "accuracy"):
        name = f"{_METRICS[metric]} in validation"
        facts.append((name, output.with_interval(best.estimate(metric), confidence=0.95)))  # type: ignore[arg-type]
    if tested is not None:
        looks = (
            "once, for this trial"
            if tested["num_looks"] == 1
            else f"{tested['num_looks']} times, for as many trials"
        )
        facts.append(("test part", f"{tested['scores']['num_samples']:,} samples, looked at {looks}"))
        facts += [
            (
                f"{_METRICS[metric]} in the test",
                output.with_interval(Estimate(**tested["scores"][metric]), confidence=0.95),
            )
            for metric in ("macro_f1", "accuracy")
        ]
    facts += [
        ("artefact", str(folder.best)),
        ("all trials", f"{folder.path / 'trials.csv'}, {folder.result}"),
    ]
    output.show(output.facts_table("Result", facts))
    print(f"Use it: {output.command_line('headstart', 'predict', str(folder.best))} ...")


def _table(ranking: Ranking) -> Table:
    """Give the table of the trials, best first."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from headstart.cli.output import duration

    title = f"Trials, on {ranking.num_samples:,} validation samples, 95 % intervals"
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for heading in ("", "trial"):
        table.add_column(heading, no_wrap=True)
    table.add_column("plan, backbone, settings", overflow="fold")
    for heading in (_METRICS[ranking.metric], "p", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for place, row in enumerate(ranking.rows[:_MOST_ROWS]):
        trial, score = row.trial, row.estimate(ranking.metric)
        mark = "*" if place == 0 else "=" if row.p_value is not None and not row.is_worse else ""
        told = trial.state if score is None else f"{score.value:.3f}\n{score.low:.3f} to {score.high:.3f}"
        p_value = "" if place == 0 or row.p_value is None else f"{row.p_value:.2g}"
        seconds = "" if trial.seconds is None else duration(trial.seconds)
        values = ", ".join(f"{name} {value:.3g}" for name, value in trial.settings.values.items())
        what = f"{trial.settings.plan}, {trial.settings.backbone}\n{values}"
        table.add_row(mark, str(trial.number), Text(what), told, p_value, seconds)
    return table


def _notes(options: SweepOptions, ranking: Ranking) -> Sequence[str]:
    """Say how sure the first place is."""
    from headstart.sweep.ranking import LEVEL

    best = ranking.best
    assert best is not None
    how = f"paired bootstrap of the same samples, corrected for the number of trials, level {LEVEL}"
    others = [row for row in ranking.rows[1:] if row.judged is not None]
    lines = []
    if len(ranking.rows) > _MOST_ROWS:
        lines.append(f"... and {len(ranking.rows) - _MOST_ROWS} more in trials.csv.")
    if others and ranking.as_good:
        numbers = ", ".join(str(row.trial.number) for row in ranking.as_good)
        lines.append(
            f"* trial {best.trial.number}: the best. Not distinguishable from it (=; {how}): {numbers}."
        )
    elif others:
        lines.append(f"* trial {best.trial.number}: the best; all others are shown to be worse ({how}).")
    if others:
        lines.append(
            f"As these samples chose it among {len(others) + 1}, its {_METRICS[options.metric]} on them is expected to be too "
            f"good by about {ranking.optimism:.3f}."
        )
    lines += [
        f"Failed: trial {row.trial.number} {row.trial.settings}: {row.trial.reason}"
        for row in ranking.rows
        if row.trial.state == "failed"
    ]
    return lines


def _command_to_go_on(options: SweepOptions) -> str:
    from headstart.cli.output import command_line

    return command_line("headstart", "sweep", options.data, "--out", options.out, "--resume")
