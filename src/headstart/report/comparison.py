"""Several runs in one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headstart.choice import paired_test
from headstart.report import figures
from headstart.report.page import render, tested_on

#: A run's name, and its facts.
Run = tuple[str, Mapping[str, Any]]

# Classes of which each run's F1 is shown: those in which the runs differ most.
_MOST_CLASSES = 30


def comparison_page(runs: Sequence[Run]) -> str:
    """Give a page that sets runs side by side, the best first.

    Args:
        runs: Two or more.

    Raises:
        MissingDependencyError: If plotly is not installed.
    """
    ordered = sorted(runs, key=lambda run: -run[1]["scores"]["accuracy"]["value"])
    are_paired = are_tested_alike(ordered)
    best = ordered[0][1]
    rows = [
        {
            "name": name,
            "facts": facts,
            "tested": tested_on(facts),
            "p": p_value(facts, best) if are_paired and facts is not best else None,
        }
        for name, facts in ordered
    ]
    return render(
        "comparison.html",
        charts={
            "accuracy": figures.runs_figure(ordered, score="accuracy", title="accuracy"),
            "macro_f1": figures.runs_figure(ordered, score="macro_f1", title="macro-F1"),
            "curves": figures.runs_curves_figure(ordered),
        },
        title=f"{len(ordered)} runs: headstart report",
        rows=rows,
        are_paired=are_paired,
        have_same_classes=len({tuple(facts["class_names"]) for _, facts in runs}) == 1,
        classes=_classes(ordered),
    )


def are_tested_alike(runs: Sequence[Run]) -> bool:
    """Whether all runs were judged by the same samples, so that each sample can be compared."""
    return len({(facts["tested_part"], facts["tested_digest"]) for _, facts in runs}) == 1


def p_value(facts: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Give McNemar's p-value of two runs on the same samples: how likely so large a difference is by chance."""
    targets = np.asarray(facts["targets"])
    return paired_test(np.asarray(facts["predicted"]) == targets, np.asarray(other["predicted"]) == targets)


def _classes(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Give the F1 of each class in each run; none where the runs do not have the same classes."""
    names = runs[0][1]["class_names"]
    if any(facts["class_names"] != names for _, facts in runs):
        return []
    rows = [
        {"name": name, "f1": [facts["scores"]["classes"][name]["f1"] for _, facts in runs]} for name in names
    ]
    return sorted(rows, key=lambda row: min(row["f1"]) - max(row["f1"]))[:_MOST_CLASSES]
