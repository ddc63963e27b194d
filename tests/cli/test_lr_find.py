"""`headstart lr-find`: the curve of a phase, as text, JSON and a picture."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

from headstart.cli import lr_find
from headstart.cli.main import main
from headstart.cli.options import parse
from headstart.errors import MisconfigurationError, UnknownNameError

pytestmark = pytest.mark.slow

SMALL = ("--image_size", "32", "--batch_size", "8", "--num_training", "40")


def test_the_phase_of_a_plan_is_tested_on_the_data(solar_cells, tmp_path, capsys):
    plot = tmp_path / "lr.png"
    options = ("--plan", "linear_probe", "--min_lr", "1e-5", "--max_lr", "10", "--plot", str(plot))
    assert main(["lr-find", str(solar_cells), *SMALL, *options]) == 0
    printed, errors = capsys.readouterr()
    assert printed.splitlines()[0].split() == ["rate", "loss"]
    lines = " ".join(printed.split())
    assert "phase head of plan linear_probe" in lines
    assert "rate of the plan 0.001" in lines
    assert f"headstart fit {solar_cells} --out run --plan linear_probe --lr" in printed
    assert "40 samples in 2 classes" in errors
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == [plot]  # nothing else is written


def test_the_command_at_the_end_is_of_the_training_that_was_tested(reviews, capsys):
    given = (
        "--plan", "linear_probe", "--text_column", "what was said", "--label_column", "sentiment", "--batch_size", "4",
        "--max_length", "16", "--class_weights", "none", "--seed", "3", "--report", "false",
    )  # fmt: skip
    assert main(["lr-find", str(reviews), *given, "--num_training", "40", "--min_lr", "1e-5"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    command = shlex.split(last.removeprefix("Use it: "))
    assert command[:2] == ["headstart", "fit"]
    options = parse(command[2:]).options
    assert options.lr is not None
    assert replace(options, lr=None) == parse([str(reviews), "--out", "run", *given]).options


def test_with_auto_the_head_is_fitted_first_and_the_result_is_json(solar_cells, capsys):
    code = lr_find.run([str(solar_cells), *SMALL, "--num_training", "30", "--min_lr", "1e-5", "--json"])
    printed, errors = capsys.readouterr()
    found = json.loads(printed)
    # Whether fine-tuning helps an optimal head on 28 photos is the data's affair: the curve is shown in any case.
    assert (code, set(found["suggestion"])) in [(0, {"valley", "steepest"}), (1, set())]
    assert ("The loss never falls" in errors) == (code == 1)
    assert found["phase"] == "fine-tuning"
    assert found["configured_lr"] == pytest.approx(5e-4)
    assert found["lr"][0] == 1e-5
    assert found["loss"][0] < 0.6  # a head that is not fitted begins at 0.69, the logarithm of 2


def test_what_cannot_be_tested_is_an_error(solar_cells, tmp_path):
    with pytest.raises(MisconfigurationError, match="--plan thaw has no phases to test"):
        lr_find.run([str(solar_cells), "--plan", "thaw"])
    with pytest.raises(
        MisconfigurationError, match=r"expected a file in a folder that is there, ending in .png"
    ):
        lr_find.run([str(solar_cells), "--plot", str(tmp_path / "lr.doc")])
    with pytest.raises(UnknownNameError, match="has no phase 'heads'. Did you mean 'head'"):
        lr_find.run([str(solar_cells), *SMALL, "--plan", "lp_ft", "--phase", "heads"])
    with pytest.raises(SystemExit):
        lr_find.run([str(solar_cells), "--patience", "3"])  # of fit alone
