"""Tables and phrases, as people see them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from headstart.choice import Candidate, choose
from headstart.cli import compare
from headstart.cli.compare import Compared
from headstart.cli.output import (
    candidates_table,
    classes_table,
    command_line,
    facts_table,
    phase_facts,
    show,
)
from headstart.cli.phases import TrainedPhase
from headstart.probe import fit_probe
from headstart.scores import score


def printed(renderable, capsys):
    show(renderable)
    return capsys.readouterr().out


def test_the_table_of_classes_says_what_each_is_mistaken_for(capsys):
    text = printed(
        classes_table(score(np.array([[8, 2, 0], [0, 5, 0], [1, 3, 6]])), ["cat", "dog", "[b]fox"]), capsys
    )
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["cat"] == ["cat", "0.889", "0.800", "0.842", "10", "dog", "(2)"]
    assert lines["dog"] == ["dog", "0.500", "1.000", "0.667", "5"]
    assert lines["[b]fox"][-2:] == ["dog", "(3)"]


@pytest.fixture(scope="module")
def scoreboards():
    """A table of each kind, and the words that are in it, whatever the width."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(30) % 3
    names = ["head alone", "blend 25%", "fine-tuned", "soup of 3"]
    candidates = [
        Candidate(name, cost, torch.randn(30, 3, generator=generator).log_softmax(dim=1))
        for cost, name in enumerate(names)
    ]
    classes = ["cat", "dog", "golden retriever"]
    compared = [
        Compared(
            name=name, num_parameters=3_371_008, width=1280, features=None, targets=targets, class_weights=None,
            feature_seconds=12.5, log_me=-0.059, h_score=0.947, probe_seconds=0.7,
            probe=fit_probe(torch.randn(30, 4, generator=generator), targets),
        )
        for name in ("efficientnet_lite0", "timm:resnet18")
    ]  # fmt: skip
    wrong = np.array([[8, 2, 0], [0, 5, 0], [1, 3, 1016]])
    return {
        "candidates": (candidates_table(choose(candidates, targets)), names),
        "classes": (classes_table(score(wrong), classes), [*classes, "1,020"]),
        "backbones": (
            compare._table(compared),
            [*(each.name for each in compared), "3.4 M", "1280", "12.5 s"],
        ),
    }


@pytest.mark.parametrize("columns", [100, 80, 60, 40, 30])
@pytest.mark.parametrize("kind", ["candidates", "classes", "backbones"])
def test_no_name_and_no_number_is_cut_on_a_narrow_terminal(kind, columns, scoreboards, capsys, monkeypatch):
    table, words = scoreboards[kind]
    monkeypatch.setenv("COLUMNS", "200")
    numbers = re.findall(r"[-+]?\d\.\d{3}", printed(table, capsys))
    monkeypatch.setenv("COLUMNS", str(columns))
    text = printed(table, capsys)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= columns
    assert sorted(re.findall(r"[-+]?\d\.\d{3}", text)) == sorted(numbers)
    assert all(word in text for word in words)
    assert ("─" in text) == (columns >= 80)


def test_long_names_are_folded_in_the_table_as_long_as_they_have_some_room(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    table = classes_table(score(np.array([[8, 2], [0, 5]])), ["x" * 90, "dog"])
    text = printed(table, capsys)
    assert "─" in text
    assert text.count("x") == 90


def test_facts_are_folded_and_not_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = printed(facts_table("Result", [("artefact", "/a/long/path/" + "x" * 60)]), capsys)
    assert "".join(text.split()).count("x") == 60


def test_phases_say_epochs_parameters_and_time():
    phases = [
        TrainedPhase("frozen", "the head alone", 2562, epochs=3, seconds=61.0),
        TrainedPhase("unfrozen", "backbone and head", 3_000_000, epochs=1, seconds=4.25),
    ]
    assert phase_facts(phases, best_epoch=3) == [
        ("frozen phase", "epochs 0 to 2: the head alone, 2,562 parameters train; 1 min 1 s"),
        (
            "unfrozen phase",
            "epoch 3: backbone and head, 3,000,000 parameters train; 4.2 s\nkept: epoch 3, the best in validation",
        ),
    ]


def test_a_phase_that_was_cut_short_has_no_whole_epoch():
    assert (
        "no whole epoch" in phase_facts([TrainedPhase("frozen", "the head alone", 10)], best_epoch=None)[0][1]
    )


def test_commands_can_be_pasted():
    assert command_line("headstart", "fit", "my data") == "headstart fit 'my data'"
