"""Which trial of a sweep is the best, which are not shown to be worse, and how much too good its score may be."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart.calibration import Floats, Values
from headstart.choice import Candidate, Judged, Metric, choose, expected_optimism, p_values_to_best
from headstart.files import write_together
from headstart.scores import Estimate
from headstart.sweep.study import Trial

#: A trial is shown to be worse than the best if chance alone would give such a lead less often than this.
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """A trial with what its predictions say.

    Attributes:
        trial: As it was kept.
        judged: Its scores with their intervals; `None` for one that has no predictions.
        p_value: Of "as good as the best"; likewise.
    """

    trial: Trial
    judged: Judged | None = None
    p_value: float | None = None

    @property
    def is_worse(self) -> bool:
        """Whether it is shown to be worse than the best."""
        return self.p_value is None or self.p_value < LEVEL

    def estimate(self, metric: Metric) -> Estimate | None:
        """Give its score by a metric, with the interval."""
        return None if self.judged is None else getattr(self.judged, metric)


@dataclass(frozen=True, slots=True)
class Ranking:
    """The trials of a sweep, best first; behind them what was pruned, failed or cut.

    Attributes:
        rows: Of each trial.
        metric: By which they are ranked.
        num_samples: Of the validation part.
        optimism: By how much the best score is expected to be too good, as these samples chose it.
    """

    rows: list[Row]
    metric: Metric
    num_samples: int
    optimism: float

    @property
    def best(self) -> Row | None:
        """The best; `None` where no trial is complete."""
        return self.rows[0] if self.rows and self.rows[0].judged is not None else None

    @property
    def as_good(self) -> list[Row]:
        """Those that are not shown to be worse than the best."""
        return [each for each in self.rows[1:] if each.judged is not None and not each.is_worse]

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "metric": self.metric,
            "confidence": 0.95,
            "level": LEVEL,
            "num_samples": self.num_samples,
            "best": None if self.best is None else self.best.trial.number,
            "not_shown_to_be_worse": [each.trial.number for each in self.as_good],
            "expected_optimism": self.optimism,
            "trials": [_plain(each) for each in self.rows],
        }


def rank(
    trials: Sequence[Trial], predictions: Mapping[int, Floats], targets: Values, *, metric: Metric, seed: int
) -> Ranking:
    """Rank trials by their predictions.

    Args:
        trials: All that were begun.
        predictions: Log-probabilities (N, C) of each complete trial, under its number.
        targets: Class indices (N,) of the validation samples.
        metric: By which they are ranked.
        seed: Of the bootstrap.
    """
    complete = [each for each in trials if each.state == "complete"]
    others = [Row(each) for each in trials if each.state != "complete"]
    if not complete:
        return Ranking(others, metric, len(np.asarray(targets)), 0.0)
    sign = -1.0 if metric == "log_loss" else 1.0
    complete.sort(key=lambda each: (-sign * (each.value or 0.0), each.number))
    # By place, so that of equals the first begun is the best here too.
    candidates = [
        Candidate(str(each.number), place, predictions[each.number]) for place, each in enumerate(complete)
    ]
    judged = {each.name: each for each in choose(candidates, targets, metric=metric, seed=seed).candidates}
    p_values = p_values_to_best(candidates, targets, metric=metric, seed=seed)
    optimism = expected_optimism(candidates, targets, metric=metric, seed=seed)
    rows = [Row(each, judged[str(each.number)], p_values[str(each.number)]) for each in complete]
    return Ranking([*rows, *others], metric, len(np.asarray(targets)), optimism)


def write(ranking: Ranking, folder: Path, *, about: Mapping[str, Any]) -> None:
    """Write the ranking as `trials.json` and `trials.csv`, both or none.

    Args:
        ranking: What is written.
        folder: Where.
        about: What else `trials.json` is to say, before the ranking.
    """
    whole = json.dumps({"format_version": 1, **about, **ranking.to_dict()}, indent=2, ensure_ascii=False)
    table = _as_csv(ranking)
    write_together(
        {
            folder / "trials.csv": lambda path: path.write_text(table, encoding="utf-8"),
            folder / "trials.json": lambda path: path.write_text(whole + "\n", encoding="utf-8"),
        }
    )


def _plain(row: Row) -> dict[str, Any]:
    trial, judged = row.trial, row.judged
    scores: dict[str, Any] = {}
    if judged is not None:
        scores = {
            "accuracy": judged.accuracy.to_dict(),
            "macro_f1": judged.macro_f1.to_dict(),
            "log_loss": judged.log_loss.to_dict(),
            "p_value_to_best": row.p_value,
        }
    return {
        "number": trial.number,
        "state": trial.state,
        "plan": trial.settings.plan,
        "backbone": trial.settings.backbone,
        "settings": dict(trial.settings.values),
        "value": trial.value,
        **scores,
        "validations": list(trial.validations),
        "seconds": trial.seconds,
        "reason": trial.reason,
    }


def _as_csv(ranking: Ranking) -> str:
    """Give a line for each trial; settings that a plan does not have are empty."""
    settings = sorted({name for each in ranking.rows for name in each.trial.settings.values})
    metrics: tuple[Metric, ...] = ("macro_f1", "accuracy", "log_loss")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    bounds = [f"{metric}{end}" for metric in metrics for end in ("", "_low", "_high")]
    writer.writerow(
        ["place", "trial", "state", "plan", "backbone", *settings, *bounds, "p_value_to_best", "seconds"]
    )
    for place, row in enumerate(ranking.rows, start=1):
        trial, estimates = row.trial, [row.estimate(metric) for metric in metrics]
        numbers = [
            number
            for each in estimates
            for number in (("", "", "") if each is None else (each.value, each.low, each.high))
        ]
        writer.writerow(
            [
                "" if row.judged is None else place, trial.number, trial.state, trial.settings.plan, trial.settings.backbone,
                *(trial.settings.values.get(name, "") for name in settings), *numbers,
                "" if row.p_value is None else row.p_value, "" if trial.seconds is None else trial.seconds,
            ]
        )  # fmt: skip
    return file.getvalue()
