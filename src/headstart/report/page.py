"""From facts to a page that needs nothing else: no network, no files beside it."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from headstart.durations import spelled
from headstart.errors import missing_dependency
from headstart.files import write_together
from headstart.report import figures
from headstart.words import printable

PAGE_FILE = "report.html"
# Rows of a table that are shown at once; the others can be unfolded.
_MOST_ROWS = 20
_NUM_CONFUSIONS = 10


def write_report(run: Path, facts: Mapping[str, Any]) -> Path:
    """Write the page of a run into its folder, and give the file.

    Args:
        run: The folder.
        facts: What `read_facts` gives.

    Raises:
        MissingDependencyError: If plotly is not installed.
        WriteError: If the disk is full or the folder cannot be written.
    """
    return write_page(run / PAGE_FILE, report_page(facts, name=printable(run.resolve().name)))


def write_page(path: Path, page: str) -> Path:
    """Write a page whole or not at all, and give the file."""
    write_together({path: lambda staged: staged.write_text(page, encoding="utf-8")})
    return path


def report_page(facts: Mapping[str, Any], *, name: str) -> str:
    """Give the page of a run.

    Args:
        facts: What `read_facts` gives.
        name: Of the run.

    Raises:
        MissingDependencyError: If plotly is not installed.
    """
    classes = class_rows(facts)
    charts = {
        "loss": figures.loss_figure(facts),
        "score": figures.score_figure(facts),
        "confusion": figures.confusion_figure(facts),
        "reliability": figures.reliability_figure(facts),
        "map": figures.map_figure(facts),
    }
    return render(
        "page.html",
        charts=charts,
        facts=facts,
        name=name,
        title=f"{name}: headstart report",
        tested=tested_on(facts),
        what_was_done=what_was_done(facts),
        what_came_out=what_came_out(facts),
        candidates=facts["candidates"],
        classes=classes[:_MOST_ROWS],
        more_classes=classes[_MOST_ROWS:],
        confusions=confusions(facts) if len(facts["class_names"]) > 2 else [],
    )


def render(template: str, *, charts: Mapping[str, figures.Figure | None], **values: Any) -> str:
    """Give the page that a template of this folder makes of values; every value is text, its tags escaped.

    Args:
        template: Its file.
        charts: A figure for each element with that `data-chart`; `None` where there is nothing to draw.
        values: For the template.

    Raises:
        MissingDependencyError: If plotly is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise missing_dependency("jinja2", needed_for="reports", extra="report") from None

    environment = Environment(
        loader=PackageLoader("headstart.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda value: f"{value:.1%}".replace("%", "\u00a0%"),
        "three": lambda value: f"{value:.3f}",
        "count": lambda value: f"{value:,}",
        "duration": spelled,
        "megabytes": lambda value: f"{value / 1e6:,.0f}\u00a0MB",
        "interval": lambda each: f"{each['low']:.3f} to {each['high']:.3f}",
        # A long path breaks after a slash.
        "path": lambda place: Markup("<wbr>").join(f"{part}/" for part in place.split("/"))[:-1],
        "compact": lambda value: f"{value:,.3g}",
    }
    drawn = {name: figure for name, figure in charts.items() if figure is not None}
    # In a script element nothing but "<" could end it.
    as_json = json.dumps(drawn, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    folder = files("headstart.report")
    return environment.get_template(template).render(
        **values,
        charts=drawn,
        charts_as_json=as_json,
        style=folder.joinpath("page.css").read_text(encoding="utf-8"),
        script=folder.joinpath("page.js").read_text(encoding="utf-8"),
        plotly=_plotly(),
    )


@cache
def _plotly() -> str:
    """Give plotly's JavaScript, gzipped, in base64: 1.9 MB in place of 4.8."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise missing_dependency("plotly", needed_for="reports", extra="report") from None
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


# ---- sentences


def what_was_done(facts: Mapping[str, Any]) -> str:
    """Give the first sentence: which model, which data, which plan."""
    model, data = facts["model"], facts["data"]
    what = "photos" if facts["kind"] == "images" else "texts"
    plan = {
        "auto": "its head was fitted to the optimum, everything was fine-tuned from there, and the best by validation was kept",
        "thaw": "the head was trained on the frozen backbone, then both, and the best epoch by validation was kept",
    }.get(facts["plan"], f"by the plan {facts['plan']}")
    return (
        f"{model['backbone']} ({model['num_parameters'] / 1e6:,.1f} million parameters) learned {len(facts['class_names']):,} "
        f"classes from {data['part_sizes']['train']:,} {what} in {data['source']}: {plan}."
    )


def what_came_out(facts: Mapping[str, Any]) -> str:
    """Give the second sentence: how good it is, and on whose word."""
    scores, kept = (
        facts["scores"],
        next((each["name"] for each in facts["candidates"] if each["is_kept"]), None),
    )
    accuracy, f1 = scores["accuracy"], scores["macro_f1"]
    which = f"What was kept ({kept})" if facts["plan"] == "auto" and kept else "It"
    return (
        f"{which} is right on {accuracy['value']:.1%} of {tested_on(facts)} ({scores['confidence']:.0%} interval "
        f"{accuracy['low']:.1%} to {accuracy['high']:.1%}), with a macro-F1 of {f1['value']:.3f} ({f1['low']:.3f} to "
        f"{f1['high']:.3f})."
    ).replace("%", "\u00a0%")


def tested_on(facts: Mapping[str, Any]) -> str:
    """Give whose scores these are."""
    count = f"{facts['scores']['num_samples']:,}"
    if facts["tested_part"] == "test":
        return f"{count} samples held back from training"
    return f"{count} samples of validation, by which the model was chosen"


# ---- rows


def class_rows(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the scores of each class, the worst first, and what it is most often mistaken for."""
    names, matrix = facts["class_names"], facts["scores"]["confusion_matrix"]
    rows = []
    for index, (name, each) in enumerate(facts["scores"]["classes"].items()):
        wrong = [0 if other == index else count for other, count in enumerate(matrix[index])]
        mistaken = f"{names[wrong.index(max(wrong))]} ({max(wrong):,})" if any(wrong) else ""
        rows.append({"name": name, **each, "mistaken": mistaken})
    return sorted(rows, key=lambda row: (row["num_samples"] == 0, row["f1"]))


def confusions(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the most frequent mistakes: true class, predicted class, how often."""
    names, matrix = facts["class_names"], facts["scores"]["confusion_matrix"]
    cells = [
        {"true": names[true], "predicted": names[predicted], "count": count, "share": count / sum(row)}
        for true, row in enumerate(matrix)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return sorted(cells, key=lambda cell: -cell["count"])[:_NUM_CONFUSIONS]
