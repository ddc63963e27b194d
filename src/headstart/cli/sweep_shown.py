"""What `headstart sweep` shows: what it is about to try, a line for each trial, and the table at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headstart.choice import METRIC_NAMES
from headstart.durations import spelled
from headstart.words import counted

if TYPE_CHECKING:
    from rich.table import Table

    from headstart.cli.sweep_folder import SweepFolder
    from headstart.cli.sweep_options import SweepOptions
    from headstart.sweep.ranking import Ranking
    from headstart.sweep.space import Space
    from headstart.sweep.study import Study

# Rows of the table on the terminal; the files have all.
_MOST_ROWS = 20


def say_what_is_tried(options: SweepOptions, space: Space, study: Study) -> None:
    """Print the space, and how it is searched."""
    from headstart.sweep.space import HEAD, ON_FEATURES

    for line in space.lines():
        print(line)
    seed = options.seed
    print(
        f"{options.trials} trials, judged by {METRIC_NAMES[options.metric]} on the validation part: first every plan's own settings, "
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


def say_result(options: SweepOptions, study: Study) -> None:
    """Print a line for the trial that ended."""
    ended, best = study.trials()[-1], study.best()
    what = ended.reason or "ended early: it stayed below the others of its plan"
    if ended.value is not None:
        mark = ", the best so far" if best is not None and best.number == ended.number else ""
        what = f"{METRIC_NAMES[options.metric]} {ended.value:.3f}{mark}"
    place = f"{study.num_finished} of {options.trials}"
    print(
        f"trial {ended.number} ({place}) {ended.settings}: {what}; {spelled(ended.seconds or 0.0)}",
        flush=True,
    )


def show(
    options: SweepOptions, ranking: Ranking, folder: SweepFolder, *, tested: dict[str, Any] | None
) -> None:
    """Print the table of the trials, how sure the first place is, and where everything lies."""
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
        name = f"{METRIC_NAMES[metric]} in validation"
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
                f"{METRIC_NAMES[metric]} in the test",
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

    title = f"Trials, on {ranking.num_samples:,} validation samples, 95 % intervals"
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for heading in ("", "trial"):
        table.add_column(heading, no_wrap=True)
    table.add_column("plan, backbone, settings", overflow="fold")
    for heading in (METRIC_NAMES[ranking.metric], "p", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for place, row in enumerate(ranking.rows[:_MOST_ROWS]):
        trial, score = row.trial, row.estimate(ranking.metric)
        mark = "*" if place == 0 else "=" if row.p_value is not None and not row.is_worse else ""
        told = trial.state if score is None else f"{score.value:.3f}\n{score.low:.3f} to {score.high:.3f}"
        p_value = "" if place == 0 or row.p_value is None else f"{row.p_value:.2g}"
        seconds = "" if trial.seconds is None else spelled(trial.seconds)
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
            f"As these samples chose it among {len(others) + 1}, its {METRIC_NAMES[options.metric]} on them is expected to be too "
            f"good by about {ranking.optimism:.3f}."
        )
    lines += [
        f"Failed: trial {row.trial.number} {row.trial.settings}: {row.trial.reason}"
        for row in ranking.rows
        if row.trial.state == "failed"
    ]
    return lines


def command_to_go_on(options: SweepOptions) -> str:
    """Give the command that goes on with this sweep."""
    from headstart.cli.output import command_line

    return command_line("headstart", "sweep", options.data, "--out", options.out, "--resume")
