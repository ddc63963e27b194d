"""Tables and phrases, as people see them."""

from __future__ import annotations

import numpy as np

from headstart.cli.output import classes_table, command_line, duration, facts_table, phase_facts, show
from headstart.cli.phases import Phase
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


def test_facts_are_folded_and_not_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = printed(facts_table("Result", [("artefact", "/a/long/path/" + "x" * 60)]), capsys)
    assert "".join(text.split()).count("x") == 60


def test_phases_say_epochs_parameters_and_time():
    phases = [
        Phase("frozen", "the head alone", 2562, epochs=3, seconds=61.0),
        Phase("unfrozen", "backbone and head", 3_000_000, epochs=1, seconds=4.25),
    ]
    assert phase_facts(phases, best_epoch=3) == [
        ("frozen phase", "epochs 0 to 2: the head alone, 2,562 parameters train; 1 min 1 s"),
        (
            "unfrozen phase",
            "epoch 3: backbone and head, 3,000,000 parameters train; 4.2 s\nkept: epoch 3, the best in validation",
        ),
    ]


def test_a_phase_that_was_cut_short_has_no_whole_epoch():
    assert "no whole epoch" in phase_facts([Phase("frozen", "the head alone", 10)], best_epoch=None)[0][1]


def test_durations_are_readable():
    assert [duration(seconds) for seconds in (0.04, 59.94, 60, 3599, 3600)] == [
        "0.0 s", "59.9 s", "1 min 0 s", "59 min 59 s", "1 h 0 min",
    ]  # fmt: skip


def test_commands_can_be_pasted():
    assert command_line("headstart", "fit", "my data") == "headstart fit 'my data'"
