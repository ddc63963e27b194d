"""The options of `headstart fit`, as they stand on a command line, in a YAML file and in a RUN."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import yaml

from headstart.cli.options import FitOptions, parse, read_options, write_options
from headstart.errors import MisconfigurationError


def test_every_option_of_the_dataclass_is_on_the_command_line(capsys):
    with pytest.raises(SystemExit) as end:
        parse(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name in asdict(FitOptions(data="d", out="o")):
        assert name == "data" or f"--{name} " in text


def test_every_option_is_explained_in_the_help(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Learning rate of the head" in text
    assert "Processes that read samples" in text


def test_options_are_typed():
    options = parse(
        ["photos", "--out", "run", "--lr", "3e-4", "--image_size", "96", "--devices", "1"]
    ).options
    assert (options.data, options.out) == ("photos", "run")
    assert (options.lr, options.image_size, options.devices) == (3e-4, 96, 1)


def test_a_config_file_gives_options_and_the_command_line_wins(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("epochs: 3\nbatch_size: 4\n")
    options = parse(["photos", "--out", "run", "--config", str(config), "--batch_size", "16"]).options
    assert (options.epochs, options.batch_size) == (3, 16)


def test_the_options_of_a_run_are_a_config_file(tmp_path):
    before = FitOptions(data="photos", out="run", epochs=3, text_column="a", text_pair_column="b")
    write_options(before, tmp_path)
    assert parse(["photos", "--out", "run", "--config", str(tmp_path / "run.yaml")]).options == before


def test_print_config_prints_yaml_that_config_reads(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        parse(["photos", "--out", "run", "--epochs", "3", "--print_config"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["epochs"] == 3
    (tmp_path / "config.yaml").write_text(text)
    assert parse(["--config", str(tmp_path / "config.yaml"), "photos", "--out", "run"]).options.epochs == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "3"], "Did you mean '--batch_size'?"),
        (["--class_weights", "some"], "class_weights"),
        (["--epochs", "many"], "epochs"),
    ],
)
def test_a_wrong_use_is_answered_with_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse(["photos", "--out", "run", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_data_and_out_are_needed(capsys):
    for arguments, missing in ((["photos"], "out"), (["--out", "run"], "data")):
        with pytest.raises(SystemExit) as end:
            parse(arguments)
        assert end.value.code == 2
        assert missing in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs is 0; expected 1 or more"),
        ({"lr": 0.0}, "--lr is 0.0; expected a number above 0"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"image_size": 3}, "--image_size is 3; expected 16 or more"),
        ({"text_pair_column": "b"}, "--text_column is missing"),
        ({"plan": "thaw", "views": 4, "augment": "none"}, "all views are the same"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(changes, message):
    with pytest.raises(MisconfigurationError, match=message):
        FitOptions(data="d", out="o", **changes)


def test_an_option_of_the_other_kind_of_data_is_refused():
    with pytest.raises(
        MisconfigurationError, match="--image_size is for a folder of images, and d is a table"
    ):
        FitOptions(data="d", out="o", image_size=64).refuse_options_of_the_other_kind("text")
    with pytest.raises(
        MisconfigurationError, match="--label_column is for a table of texts, and d is a folder"
    ):
        FitOptions(data="d", out="o", label_column="y").refuse_options_of_the_other_kind("images")


@pytest.mark.parametrize("kind", ["images", "text"])
@pytest.mark.parametrize(
    "named", [{"text_column": "x"}, {"text_column": "x", "text_pair_column": "y"}, {"label_column": "x"}]
)
def test_a_column_is_refused_where_the_data_has_none(named, kind):
    name = next(iter(named))
    with pytest.raises(MisconfigurationError, match=f"--{name} is 'x', and d has no columns"):
        FitOptions(data="d", out="o", **named).refuse_options_of_the_other_kind(kind, has_columns=False)


@pytest.mark.parametrize(("name", "value"), [("epochs", 7), ("lr", 0.5)])
def test_what_the_phases_of_a_plan_file_say_is_not_said_beside_it(name, value):
    with pytest.raises(
        MisconfigurationError,
        match=rf"--{name} is {value}, and the plan is the file p.yaml.* write {name}: in",
    ):
        FitOptions(data="d", out="o", plan="p.yaml", **{name: value})


def test_resume_takes_the_options_of_the_run(tmp_path):
    write_options(FitOptions(data="photos", out=str(tmp_path), plan="thaw", lr=0.5, epochs=3), tmp_path)
    request = parse(["photos", "--out", str(tmp_path), "--resume", "--epochs", "5"])
    assert request.resume
    assert (request.options.lr, request.options.epochs) == (0.5, 5)


@pytest.mark.parametrize("plan", ["auto", "full", "lp_ft"])
def test_resume_refuses_other_epochs_of_a_plan_with_phases(plan, tmp_path):
    write_options(FitOptions(data="photos", out=str(tmp_path), plan=plan, epochs=2), tmp_path)
    with pytest.raises(
        MisconfigurationError, match=r"--epochs was 2 and is 4\. Leave them out .* or with --overwrite"
    ):
        parse(["photos", "--out", str(tmp_path), "--resume", "--epochs", "4"])


def test_resume_gives_a_run_with_a_clock_more_time_and_no_other_one_a_clock(tmp_path):
    write_options(FitOptions(data="photos", out=str(tmp_path), time="5s"), tmp_path)
    assert parse(["photos", "--out", str(tmp_path), "--resume", "--time", "9s"]).options.time == "9s"
    write_options(FitOptions(data="photos", out=str(tmp_path)), tmp_path)
    with pytest.raises(MisconfigurationError, match="--time was None and is 5s"):
        parse(["photos", "--out", str(tmp_path), "--resume", "--time", "5s"])


def test_resume_refuses_other_options_and_says_which(tmp_path):
    write_options(FitOptions(data="photos", out=str(tmp_path), lr=0.5), tmp_path)
    with pytest.raises(MisconfigurationError, match=r"--lr was 0.5 and is 0.1.*--seed was 0 and is 3"):
        parse(["photos", "--out", str(tmp_path), "--resume", "--lr", "0.1", "--seed", "3"])


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(MisconfigurationError, match="no run in .*leave out --resume"):
        parse(["photos", "--out", str(tmp_path), "--resume"])


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    write_options(FitOptions(data="photos", out=str(tmp_path)), tmp_path)
    with pytest.raises(MisconfigurationError, match="give one of them"):
        parse(["photos", "--out", str(tmp_path), "--resume", "--overwrite"])


def test_a_damaged_run_file_is_named(tmp_path):
    (tmp_path / "run.yaml").write_text("nothing")
    with pytest.raises(MisconfigurationError, match="run.yaml is damaged"):
        read_options(tmp_path)
