"""The page for people: one document that fetches nothing but answers."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

from headstart.serving.schemas import ModelFacts

_CALLS = {"photos": "Classify a photo", "texts": "Classify a text", "pairs": "Classify two texts"}


def page(facts: ModelFacts) -> tuple[str, str]:
    """Give the page of a model, and the content security policy under which alone it works.

    Args:
        facts: Of the model.
    """
    folder = files("headstart.serving")
    template, style, script = (
        folder.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    number = len(facts.class_names)
    words = {
        "title": f"{facts.backbone}: {', '.join(facts.class_names[:3])}",
        "heading": _question(facts.class_names) if number <= 3 else _CALLS[facts.takes],
        "subtitle": f"{facts.backbone}, finetuned to tell {number} classes of {facts.takes} apart",
        "calibrated": _calibrated(facts),
        "score": _score(facts.metrics),
    }
    # What stands in a script element is not unescaped, so nothing in it may look like its end.
    plain = facts.model_dump_json(include={"takes", "limits"}).replace("<", "\\u003c")
    document = Template(template).substitute(
        {name: html.escape(word) for name, word in words.items()}, style=style, script=script, facts=plain
    )
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return document, policy


def _question(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}?"


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _calibrated(facts: ModelFacts) -> str:
    if facts.temperature is None:
        return "These probabilities were not calibrated: a model is often surer than it is right."
    return f"Probabilities calibrated on validation samples (temperature {facts.temperature:.2f})."


def _score(metrics: dict[str, Any]) -> str:
    test = metrics.get("test") or {}
    if not (accuracy := test.get("accuracy")):
        return "It was not tested on samples held back from training."
    return (
        f"Right on {accuracy['value']:.1%} of {test['num_samples']:,} test samples "
        f"({test['confidence']:.0%} interval {accuracy['low']:.1%} to {accuracy['high']:.1%})."
    ).replace("%", " %")
