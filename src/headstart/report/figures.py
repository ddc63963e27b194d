"""The charts, as plotly's figures in plain data.

A colour is the name of a variable of the page's style sheet, as in `var(--ink)`: the page puts its value in, and does so again
when the theme changes. A name of a class, a file or a run is text: plotly would read tags in it, so it is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from headstart.report.facts import plain

Figure = dict[str, Any]

# Plotly reads tags and the entities that stand for < > &, and no others.
escape = partial(html.escape, quote=False)

_NUM_COLORS = 8
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down")
# Numbers in the cells of a larger confusion matrix are too small to read, and so are names of more classes in a legend.
_MOST_NUMBERS, _MOST_IN_LEGEND, _MOST_TICKS = 12, 20, 40
_LONGEST_NAME = 18
# Beside a confusion matrix on a phone there is room for no longer one.
_LONGEST_TICK = 11
# From this share on a cell of the confusion matrix is so full of colour that its number needs another one.
_FULL = 0.75


def loss_figure(facts: Mapping[str, Any]) -> Figure | None:
    """Give training and validation loss by step, with the phases; `None` where no step was logged."""
    curves = facts["learning"]["curves"]
    lines = [("train_loss", "training", "var(--color-2)"), ("val_loss", "validation", "var(--color-0)")]
    return _curves(facts, [line for line in lines if line[0] in curves], title="loss", head=None)


def score_figure(facts: Mapping[str, Any]) -> Figure | None:
    """Give validation accuracy and macro-F1 by step, the head alone as a line across; `None` where no step was logged."""
    curves = facts["learning"]["curves"]
    lines = [("val_acc", "accuracy", "var(--color-1)"), ("val_f1", "macro-F1", "var(--color-0)")]
    head = next(
        (each["val"]["macro_f1"] for each in facts["candidates"] if each["name"] == "head alone"), None
    )
    return _curves(
        facts,
        [line for line in lines if line[0] in curves],
        title="validation score",
        head=head and head["value"],
    )


def _curves(
    facts: Mapping[str, Any], lines: Sequence[tuple[str, str, str]], *, title: str, head: float | None
) -> Figure | None:
    learning = facts["learning"]
    if not lines:
        return None
    epoch_ends = learning["epoch_ends"]
    traces: list[dict[str, Any]] = []
    for name, label, color in lines:
        points = learning["curves"][name]
        epochs = [next((epoch for epoch, end in epoch_ends if step <= end), "?") for step, _ in points]
        traces.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": label, "line": {"color": color, "width": 2},
                "x": [step + 1 for step, _ in points], "y": [value for _, value in points], "customdata": epochs,
                "marker": {"size": 6, "color": color},
                "hovertemplate": f"{label} %{{y:.4f}}<br>step %{{x}}, epoch %{{customdata}}<extra></extra>",
            }
        )  # fmt: skip
    shapes, annotations = [], []
    if head is not None:
        shapes.append(
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": head, "y1": head,
             "line": {"color": "var(--muted)", "width": 1.5, "dash": "dash"}}
        )  # fmt: skip
        traces.append(
            {"type": "scatter", "mode": "lines", "name": "macro-F1 of the head alone", "x": [None], "y": [None],
             "line": {"color": "var(--muted)", "width": 1.5, "dash": "dash"}}
        )  # fmt: skip
    for phase in learning["phases"]:
        what = {"frozen": "backbone frozen", "unfrozen": "backbone trains"}.get(phase["name"], phase["name"])
        at = phase["begins"] + 0.5
        if phase["begins"]:
            shapes.append(
                {"type": "line", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1,
                 "line": {"color": "var(--muted)", "width": 1, "dash": "dot"}}
            )  # fmt: skip
        annotations.append(
            {"x": at, "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "bottom", "showarrow": False,
             "text": escape(what), "font": {"color": "var(--muted)", "size": 12}}
        )  # fmt: skip
    layout = {
        "height": 320, "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"}, "yaxis": {"title": {"text": title}},
        "shapes": shapes, "annotations": annotations,
    }  # fmt: skip
    return _figure(traces, layout)


def confusion_figure(facts: Mapping[str, Any]) -> Figure:
    """Give the confusion matrix: colour by the share of the true class, numbers where there is room."""
    names, matrix = facts["class_names"], facts["scores"]["confusion_matrix"]
    totals = [max(1, sum(row)) for row in matrix]
    shares = [[count / total for count in row] for row, total in zip(matrix, totals, strict=True)]
    hover: dict[str, Any] = {
        "hoverinfo": "text",
        "hovertext": [
            [
                f"{escape(true)} predicted as {escape(predicted)}: {count:,}<br>{share:.1%} of {escape(true)}"
                for predicted, count, share in zip(names, counts, row, strict=True)
            ]
            for true, counts, row in zip(names, matrix, shares, strict=True)
        ],
    }
    if len(names) > _MOST_TICKS:  # a text for each cell grows with the square of the classes
        axis = [escape(name) for name in names]
        hover = {
            "x": axis,
            "y": axis,
            "hovertemplate": "%{z:.1%} of %{y} predicted as %{x}<extra></extra>",
        }
    trace: dict[str, Any] = {
        "type": "heatmap", "z": shares, "zmin": 0, "zmax": 1, **hover, "xgap": 1, "ygap": 1,
        "colorscale": [[0, "var(--cell-low)"], [1, "var(--cell-high)"]], "showscale": len(names) > _MOST_NUMBERS,
        "colorbar": {"tickformat": ".0%", "thickness": 12, "outlinewidth": 0, "tickfont": {"color": "var(--ink)"}},
    }  # fmt: skip
    numbers = [
        {
            "x": column, "y": row, "text": f"<b>{count:,}</b>", "showarrow": False,
            "font": {
                "color": "var(--on-high)" if shares[row][column] >= _FULL else "var(--on-low)",
                "size": 14 if len(names) < 8 else 11,
            },
        }
        for row, counts in enumerate(matrix)
        for column, count in enumerate(counts)
        if count
    ]  # fmt: skip
    ticks = (
        {
            "tickvals": list(range(len(names))),
            "ticktext": [_short(name, longest=_LONGEST_TICK) for name in names],
        }
        if len(names) <= _MOST_TICKS
        else {"showticklabels": False}
    )
    layout = {
        "height": 380 if len(names) <= _MOST_NUMBERS else 460,
        "xaxis": {"title": {"text": "predicted as"}, "showgrid": False, "zeroline": False, **ticks},
        "yaxis": {"title": {"text": "true"}, "showgrid": False, "zeroline": False, "autorange": "reversed", **ticks},
        "annotations": numbers if len(names) <= _MOST_NUMBERS else [],
    }  # fmt: skip
    return _figure([trace], layout)


def reliability_figure(facts: Mapping[str, Any]) -> Figure:
    """Give accuracy by confidence, with intervals, beside the diagonal on which both are the same."""
    bins = facts["reliability"]["bins"]
    values = [each["accuracy"]["value"] for each in bins]
    trace = {
        "type": "scatter", "mode": "lines+markers", "name": "the model, with 95 % intervals",
        "x": [each["confidence"] for each in bins], "y": values, "customdata": [each["num_samples"] for each in bins],
        "error_y": {
            "type": "data", "symmetric": False, "color": "var(--color-0)", "thickness": 1.5, "width": 4,
            "array": [each["accuracy"]["high"] - value for each, value in zip(bins, values, strict=True)],
            "arrayminus": [value - each["accuracy"]["low"] for each, value in zip(bins, values, strict=True)],
        },
        "line": {"color": "var(--color-0)", "width": 2}, "marker": {"size": 8, "color": "var(--color-0)"},
        "hovertemplate": "sure to %{x:.1%}, right in %{y:.1%}<br>%{customdata} samples<extra></extra>",
    }  # fmt: skip
    diagonal = {
        "type": "scatter", "mode": "lines", "name": "as sure as right", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip",
        "line": {"color": "var(--muted)", "dash": "dash", "width": 1.5},
    }  # fmt: skip
    lowest = min([each["confidence"] for each in bins] + [each["accuracy"]["low"] for each in bins])
    span = [max(0.0, lowest - 0.05), 1.02]
    layout = {
        "height": 380,
        "xaxis": {"title": {"text": "confidence"}, "tickformat": ".0%", "range": span},
        "yaxis": {"title": {"text": "accuracy"}, "tickformat": ".0%", "range": span},
    }
    return _figure([diagonal, trace], layout)


def map_figure(facts: Mapping[str, Any]) -> Figure:
    """Give the map of the features: a colour for each class, a ring around what is predicted wrongly."""
    names, found = facts["class_names"], facts["map"]
    points = found["points"]
    traces: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        mine = [point for point in points if point["true"] == index]
        if not mine:
            continue
        traces.append(
            {
                "type": "scatter", "mode": "markers", "name": _short(name),
                "x": [point["x"] for point in mine], "y": [point["y"] for point in mine],
                "marker": {
                    "color": f"var(--color-{index % _NUM_COLORS})", "size": 8, "opacity": 0.85,
                    "symbol": _SYMBOLS[index // _NUM_COLORS % len(_SYMBOLS)],
                },
                "hoverinfo": "text",
                "hovertext": [
                    f"{_wrapped(point['place'])}<br>true: {escape(name)}<br>predicted: {escape(names[point['predicted']])} "
                    f"({point['confidence']:.0%})"
                    for point in mine
                ],
            }
        )  # fmt: skip
    wrong = [point for point in points if point["true"] != point["predicted"]]
    if wrong:
        traces.append(
            {
                "type": "scatter", "mode": "markers", "name": "predicted wrongly", "hoverinfo": "skip",
                "x": [point["x"] for point in wrong], "y": [point["y"] for point in wrong],
                "marker": {"symbol": "circle-open", "size": 15, "color": "var(--ink)", "line": {"width": 1.5}},
            }
        )  # fmt: skip
    axis = {"showticklabels": False, "showgrid": False, "zeroline": False, "showline": False}
    layout = {"height": 480, "xaxis": axis, "yaxis": axis, "showlegend": len(names) <= _MOST_IN_LEGEND}
    return _figure(traces, layout)


def runs_figure(runs: Sequence[tuple[str, Mapping[str, Any]]], *, score: str, title: str) -> Figure:
    """Give a score of several runs, each with its interval, the first at the top."""
    estimates = [facts["scores"][score] for _, facts in runs]
    values = [each["value"] for each in estimates]
    trace = {
        "type": "scatter", "mode": "markers", "x": values, "y": list(range(len(runs))),
        "marker": {"size": 10, "color": "var(--color-0)"}, "hoverinfo": "text",
        "hovertext": [
            f"{_wrapped(name)}<br>{each['value']:.3f} ({each['low']:.3f} to {each['high']:.3f})"
            for (name, _), each in zip(runs, estimates, strict=True)
        ],
        "error_x": {
            "type": "data", "symmetric": False, "color": "var(--color-0)", "thickness": 2, "width": 5,
            "array": [each["high"] - each["value"] for each in estimates],
            "arrayminus": [each["value"] - each["low"] for each in estimates],
        },
    }  # fmt: skip
    layout = {
        "height": 140 + 34 * len(runs), "showlegend": False, "xaxis": {"title": {"text": title}},
        "yaxis": {
            "autorange": "reversed", "tickvals": list(range(len(runs))), "zeroline": False,
            "ticktext": [_short(name) for name, _ in runs],
        },
    }  # fmt: skip
    return _figure([trace], layout)


def runs_curves_figure(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> Figure | None:
    """Give the macro-F1 of several runs in validation, by step; `None` where none has a curve."""
    traces = [
        {
            "type": "scatter", "mode": "lines+markers", "name": _short(name), "marker": {"size": 5},
            "x": [step + 1 for step, _ in facts["learning"]["curves"]["val_f1"]],
            "y": [value for _, value in facts["learning"]["curves"]["val_f1"]],
            "line": {"color": f"var(--color-{index % _NUM_COLORS})", "width": 2},
            "hoverinfo": "text",
            "hovertext": [
                f"{_wrapped(name)}<br>macro-F1 {value:.4f} at step {step + 1:,}"
                for step, value in facts["learning"]["curves"]["val_f1"]
            ],
        }
        for index, (name, facts) in enumerate(runs)
        if "val_f1" in facts["learning"]["curves"]
    ]  # fmt: skip
    if not traces:
        return None
    layout = {
        "height": 340,
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"title": {"text": "macro-F1 in validation"}},
    }
    return _figure(traces, layout)


def _figure(traces: list[dict[str, Any]], layout: dict[str, Any]) -> Figure:
    has_legend = layout.get("showlegend", True) and any("name" in trace for trace in traces)
    axis = {
        "gridcolor": "var(--line)", "zerolinecolor": "var(--line)", "linecolor": "var(--line)", "automargin": True,
        "tickfont": {"size": 12}, "fixedrange": True,
    }  # fmt: skip
    common = {
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "autosize": True, "dragmode": False,
        "font": {"color": "var(--ink)", "family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 56, "r": 12, "t": 28, "b": 84 if has_legend else 48},
        "legend": {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0, "font": {"size": 12}},
        "showlegend": has_legend,
        "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--muted)", "font": {"color": "var(--ink)"}, "align": "left"},
    }  # fmt: skip
    layout = {**common, **layout, "xaxis": {**axis, **layout["xaxis"]}, "yaxis": {**axis, **layout["yaxis"]}}
    for name in ("xaxis", "yaxis"):
        if "title" in layout[name]:
            layout[name]["title"] = {"font": {"size": 13}, "standoff": 8, **layout[name]["title"]}
    found: Figure = plain({"data": traces, "layout": layout})
    return found


def _short(name: str, *, longest: int = _LONGEST_NAME) -> str:
    return escape(name if len(name) <= longest else name[: longest - 1] + "…")


def _wrapped(place: str, *, width: int = 40) -> str:
    """A long path over several lines: a tooltip is cut off at the chart's edge."""
    return "<br>".join(escape(place[start : start + width]) for start in range(0, len(place), width)) or "?"
