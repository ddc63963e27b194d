"""`headstart sweep`: many trials on the same data, judged by the same samples, the best of them a RUN."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import re
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing, redirect_stdout

import numpy as np
import pytest

from headstart.artefact import load_artefact, read_metadata
from headstart.choice import Candidate, p_values_to_best
from headstart.cli import fit, set_up, sweep
from headstart.cli.main import main
from headstart.cli.sweep_options import parse
from headstart.data import ClassificationData
from headstart.errors import DataError, MisconfigurationError, NonFiniteError
from headstart.sweep.study import Study, alone_in
from headstart.sweep.trial import Trials
from tests.cli import sweep_job

LITE0 = "efficientnet_lite0"
SMALL = ("--image_size", "64", "--batch_size", "8")
MIXED = (*SMALL, *"--plan head --plan fine_tune --plan linear_probe --epochs 1 --trials 5".split())


def result_of(folder):
    return json.loads((folder / "trials.json").read_text())


def without_clock(found):
    """What a sweep found, as far as it does not depend on when it was cut."""
    trials = [each for each in found["trials"] if each["state"] != "cut"]
    chosen = {"best", "not_shown_to_be_worse"}
    numbers = sorted(each["number"] for each in trials)
    return {
        **{name: value for name, value in found.items() if name not in {"trials", "test", *chosen}},
        "test": found["test"]["scores"],
        "best": numbers.index(found["best"]),
        "trials": [{**each, "seconds": None, "number": numbers.index(each["number"])} for each in trials],
    }


@pytest.fixture(scope="session")
def swept(solar_cells, tmp_path_factory):
    """A sweep that nobody interrupted: its folder, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("sweeps") / "whole", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setenv("COLUMNS", "160")
        assert sweep.run([str(solar_cells), "--out", str(folder), *MIXED]) == 0
    return folder, printed.getvalue()


@pytest.fixture
def start(tmp_path):
    """Start a sweep in a second process; give the process, and the file with what it prints."""
    context, started = multiprocessing.get_context("forkserver"), []
    context.set_forkserver_preload(["tests.cli.sweep_job"])

    def start(*arguments):
        log = tmp_path / f"{len(started)}.log"
        started.append(context.Process(target=sweep_job.run, args=([*map(str, arguments)], str(log))))
        started[-1].start()
        return started[-1], log

    yield start
    for process in started:
        process.kill()
        process.join()


# ---- what is computed, and what is looked at


@pytest.mark.slow
def test_a_sample_goes_through_each_backbone_once_in_the_whole_sweep_and_the_test_part_once_at_its_end(
    solar_cells, untrained, tmp_path, monkeypatch
):
    make_model, test_loader, run = set_up.make_model, ClassificationData.test_dataloader, Trials.run
    num_rows, tried, tests, recorded = Counter(), [], [], []

    def counted(options, data):
        model = make_model(options, data)
        model.backbone.register_forward_hook(
            lambda _, inputs, __: num_rows.update({options.backbone: len(inputs[0])})
        )
        return model

    def remembered(trials, *arguments):
        outcome = run(trials, *arguments)
        tried.append(dict(num_rows))
        recorded[:] = [trials.num_computed]
        return outcome

    def looked_at(self):
        tests.append(len(tried))
        return test_loader(self)

    monkeypatch.setattr(set_up, "make_model", counted)
    monkeypatch.setattr(Trials, "run", remembered)
    monkeypatch.setattr(ClassificationData, "test_dataloader", looked_at)
    plans = ("--plan", "head", "--plan", "linear_probe", "--backbone", LITE0, "--backbone", untrained)
    options = (*SMALL, *plans, "--trials", "7", "--epochs", "3")
    assert sweep.run([str(solar_cells), "--out", str(tmp_path / "sweep"), *options]) == 0
    # 28 of training and 6 of validation; what else goes through is the check of the first batches, whose values are
    # compared with those of a plain pass.
    assert recorded == [{LITE0: 34, untrained: 34}]
    assert tried[1:] == [tried[1]] * 6  # the second trial is the first of the second backbone
    assert all(34 <= count <= 34 + 3 * 8 for count in tried[1].values())
    assert tests == [7]


@pytest.mark.slow
def test_trials_are_ranked_by_the_metric_with_intervals_and_the_ones_as_good_are_named(swept):
    folder, printed = swept
    found = result_of(folder)
    trials = found["trials"]
    assert [each["state"] for each in trials] == ["complete"] * 5
    values = [each["value"] for each in trials]
    assert values == sorted(values, reverse=True)
    assert {each["plan"] for each in trials} == {"head", "fine_tune", "linear_probe"}
    targets = np.array(
        [0, 0, 0, 1, 1, 1]
    )  # of validation: 3 of each class, in the order of the folder's names
    predictions = {
        each["number"]: np.load(folder / "predictions" / f"{each['number']}.npy") for each in trials
    }
    for each in trials:
        is_right = predictions[each["number"]].argmax(axis=1) == targets
        assert each["accuracy"]["value"] == pytest.approx(is_right.mean())
        assert each["macro_f1"]["low"] <= each["macro_f1"]["value"] == pytest.approx(each["value"])
    candidates = [
        Candidate(str(each["number"]), place, predictions[each["number"]])
        for place, each in enumerate(trials)
    ]
    p_values = p_values_to_best(candidates, targets, metric="macro_f1", seed=0)
    assert {str(each["number"]): each["p_value_to_best"] for each in trials} == p_values
    as_good = [each["number"] for each in trials[1:] if each["p_value_to_best"] >= 0.05]
    assert found["not_shown_to_be_worse"] == as_good
    lines = " ".join(printed.split())
    assert "Not distinguishable from it (=; paired bootstrap" in lines
    assert f"level 0.05): {', '.join(map(str, as_good))}." in lines
    assert "expected to be too good by about" in lines
    assert "Seed 0: of the split, of what is proposed, and of each trial." in lines
    assert "plan fine_tune: lr 5e-05 to 0.005, first 0.0005" in lines
    assert "looked at once, for this trial" in lines

    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    assert [int(row["trial"]) for row in rows] == [each["number"] for each in trials]
    assert [float(row["macro_f1"]) for row in rows] == values
    assert all((row["strength"] == "") == (row["plan"] != "head") for row in rows)


@pytest.mark.slow
def test_the_best_trial_is_a_run(swept, solar_cells, capsys):
    folder, _ = swept
    found, best = result_of(folder), folder / "best"
    metrics = read_metadata(best)["metrics"]
    assert metrics["sweep"]["trial"] == found["best"] == found["test"]["trial"]
    assert metrics["test"] == found["test"]["scores"]
    assert metrics["test"]["num_samples"] == 6
    # It predicts what it was judged by, at its temperature.
    model = load_artefact(best)
    data = set_up.open_data(fit.parse([str(solar_cells), "--out", "x"]).options).prepare()
    data.set_preprocessing(model.preprocessing)
    from headstart import auto

    logits, _ = auto.outputs_of(model, data.val_dataloader(), accelerator="cpu")
    judged = np.load(folder / "predictions" / f"{found['best']}.npy")
    scaled = (logits * metrics["calibration"]["temperature"]).log_softmax(dim=1)
    assert scaled.numpy() == pytest.approx(judged, abs=1e-3)
    photo = str(next((solar_cells / "defective").iterdir()))
    assert main(["predict", str(best), photo, "--format", "json"]) == 0
    assert main(["evaluate", str(best), str(solar_cells), "--format", "json"]) == 0
    assert main(["inspect", str(best)]) == 0
    assert '"num_samples": 40' in capsys.readouterr().out


# ---- ends that are none


@pytest.mark.slow
def test_a_sweep_that_is_killed_and_then_stopped_by_ctrl_c_ends_as_if_nobody_had(
    swept, solar_cells, start, tmp_path
):
    folder = tmp_path / "cut"

    def wait_until(is_so, process, log):
        while not is_so():
            assert process.is_alive(), log.read_text()
            time.sleep(0.01)

    def second_trial_runs():
        try:
            with closing(sqlite3.connect(f"file:{folder / 'sweep.db'}?mode=ro", uri=True)) as study:
                (count,) = study.execute("SELECT count(*) FROM trial_params").fetchone()
        except sqlite3.OperationalError:  # not there yet
            return False
        return count == 8  # 3 of the head, and 5 of what fine-tunes

    process, log = start(solar_cells, "--out", folder, *MIXED)
    wait_until(second_trial_runs, process, log)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    process, log = start(solar_cells, "--out", folder, "--resume")
    # The cut one's settings again, under a new number.
    wait_until((folder / "predictions" / "2.npy").exists, process, log)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    printed = log.read_text()
    assert process.exitcode == 130, printed
    go_on = f"headstart sweep {solar_cells} --out {folder} --resume"
    assert re.search(
        r"Interrupted\. \d of 5 trials are kept; nothing was tested\.\nGo on: " + re.escape(go_on), printed
    )
    assert result_of(folder)["test"] is None
    assert load_artefact(folder / "best").class_names == ["defective", "functional"]

    assert sweep.run(go_on.split()[2:]) == 0
    found = result_of(folder)
    assert "cut" in {each["state"] for each in found["trials"]}
    assert without_clock(found) == without_clock(result_of(swept[0]))
    weights = [(each / "best" / "model.safetensors").read_bytes() for each in (folder, swept[0])]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_more_trials_go_on_from_those_that_are_there(solar_cells, tmp_path, capsys, monkeypatch):
    out = tmp_path / "sweep"
    heads = (*SMALL, "--plan", "head", "--strength", "1e-6", "1e-5")
    assert sweep.run([str(solar_cells), "--out", str(out), *heads, "--trials", "3"]) == 0
    first = result_of(out)
    monkeypatch.setattr(Study, "best", lambda self: self.trials()[-1])  # whatever comes last is the best
    assert sweep.run([str(solar_cells), "--out", str(out), "--resume", "--trials", "5"]) == 0
    found = result_of(out)
    assert "There already: 3 trials." in capsys.readouterr().out
    assert [each for each in found["trials"] if each["number"] < 3][0]["macro_f1"] == first["trials"][0][
        "macro_f1"
    ]
    assert len(found["trials"]) == 5
    assert read_metadata(out / "best")["metrics"]["sweep"]["trial"] == 4

    # DIR/best of another trial, as a kill between two writes leaves it: the best is run again.
    monkeypatch.undo()
    assert sweep.run([str(solar_cells), "--out", str(out), "--resume"]) == 0
    assert "is not trial 0, the best: it is run again" in capsys.readouterr().out
    assert read_metadata(out / "best")["metrics"]["sweep"]["trial"] == 0


@pytest.mark.slow
def test_trials_that_stay_behind_are_pruned_and_what_fails_costs_nothing_of_the_others(
    solar_cells, tmp_path, capsys, monkeypatch
):
    run = Trials.run
    errors = {3: IndexError("index out of range in self"), 4: NonFiniteError("the loss is NaN")}
    count = iter(range(100))

    def sometimes(self, settings, report):
        if error := errors.get(next(count)):
            raise error
        return run(self, settings, report)

    monkeypatch.setattr(Trials, "run", sometimes)
    options = (
        *SMALL,
        "--plan",
        "linear_probe",
        "--lr",
        "1e-7",
        "1e-1",
        "--trials",
        "16",
        "--metric",
        "log_loss",
    )
    assert sweep.run([str(solar_cells), "--out", str(tmp_path / "sweep"), *options]) == 0
    found = result_of(tmp_path / "sweep")
    states = {each["number"]: each["state"] for each in found["trials"]}
    assert (states[3], states[4]) == ("failed", "pruned")
    complete = [each for each in found["trials"] if each["state"] == "complete"]
    values = [each["value"] for each in complete]
    assert values == sorted(values)  # log loss: the least first
    pruned = [each for each in found["trials"] if each["state"] == "pruned" and each["number"] != 4]
    assert pruned
    for each in pruned:
        assert each["value"] is None
        assert 2 <= len(each["validations"]) < 30
        # What was left behind had not come to what the best of the others had at its end.
        assert min(each["validations"]) > values[0]
    printed = capsys.readouterr().out
    assert "IndexError: index out of range in self" in printed
    assert "diverged: the loss is NaN" in printed


@pytest.mark.slow
def test_texts_are_swept_by_a_plan_with_a_name(reviews, tmp_path, capsys):
    columns = ("--text_column", "what was said", "--label_column", "sentiment")
    options = "--plan layer_decay --epochs 1 --trials 2 --metric accuracy --max_length 32".split()
    out = tmp_path / "sweep"
    assert sweep.run([str(reviews), "--out", str(out), *columns, *options, "--test_fraction", "0"]) == 0
    found = result_of(out)
    assert found["test"] is None
    assert [each["plan"] for each in found["trials"]] == ["layer_decay"] * 2
    assert set(found["trials"][0]["settings"]) == {"lr", "layer_decay", "weight_decay"}
    assert len(found["trials"][0]["validations"]) == 1
    assert main(["predict", str(out / "best"), str(reviews), "--text_column", "what was said"]) == 0


# ---- what is refused


@pytest.mark.slow
def test_no_trial_that_could_be_completed_is_exit_code_1(solar_cells, tmp_path, capsys, monkeypatch):
    def broken(self, settings, report):
        raise IndexError("index out of range in self")

    monkeypatch.setattr(Trials, "run", broken)
    assert sweep.run([str(solar_cells), "--out", str(tmp_path / "sweep"), *SMALL, "--trials", "1"]) == 1
    assert "No trial was completed." in capsys.readouterr().out
    assert result_of(tmp_path / "sweep")["best"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trials", "0"], "--trials is 0; expected 1 or more"),
        (["--time", "soon"], "--time is 'soon'; expected a time such as 90s"),
        (["--resume", "--overwrite"], "--resume goes on with DIR and --overwrite deletes it"),
        (["--resume"], r"There is no sweep in 'sweep' to go on with \(no sweep.yaml\)"),
        (["--batch_size", "8", "--image_size", "1"], "--image_size is 1; expected 16 or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MisconfigurationError, match=message):
        parse(["photos", "--out", "sweep", *options])


@pytest.mark.slow
def test_a_sweep_goes_on_with_its_own_settings_and_data_alone(swept, solar_cells, tmp_path):
    folder, _ = swept
    with pytest.raises(
        MisconfigurationError, match="--plan was .*; --seed was 0 and is 1. Leave them out to go on"
    ):
        parse([str(solar_cells), "--out", str(folder), "--resume", "--seed", "1", "--plan", "head"])
    kept = parse(
        [str(solar_cells), "--out", str(folder), "--resume", "--trials", "9", "--epochs", "1"]
    ).options
    assert (kept.trials, kept.plans, kept.image_size) == (9, ("head", "fine_tune", "linear_probe"), 64)
    other = tmp_path / "other"
    for name in ("defective", "functional"):
        (other / name).mkdir(parents=True)
        for photo in sorted((solar_cells / name).iterdir())[:12]:
            (other / name / photo.name).symlink_to(photo)
    with pytest.raises(DataError, match="is not what the run in .* was begun with"):
        sweep.run([str(other), "--out", str(folder), "--resume"])
    with alone_in(folder), pytest.raises(MisconfigurationError, match="Another process is at work"):
        sweep.run([str(solar_cells), "--out", str(folder), "--resume"])


@pytest.mark.slow
def test_a_folder_that_is_not_empty_is_left_alone(swept, solar_cells, tmp_path):
    folder, _ = swept

    def refuses(message, *options, out):
        with pytest.raises(MisconfigurationError, match=message):
            sweep.run([str(solar_cells), "--out", str(out), *options])

    refuses("holds a sweep already. Give --resume", out=folder)
    (tmp_path / "file").touch()
    refuses("file is a file. Give a folder", out=tmp_path / "file")
    refuses("is not empty. Give another folder", out=tmp_path)
    refuses(
        "is no sweep .it has no sweep.yaml., so --overwrite does not delete it", "--overwrite", out=tmp_path
    )
    (solar_cells.parent / "sweep.yaml").touch()
    try:
        refuses("lies in .*, and --overwrite would delete it", "--overwrite", out=solar_cells.parent)
    finally:
        (solar_cells.parent / "sweep.yaml").unlink()


@pytest.mark.slow
def test_damaged_files_are_named(swept, tmp_path):
    import shutil

    from headstart.cli.sweep_folder import SweepFolder

    folder = SweepFolder(shutil.copytree(swept[0], tmp_path / "sweep"))
    (folder.path / "predictions" / "0.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(
        MisconfigurationError, match="0.npy is missing or damaged .*, so trial 0 cannot be compared"
    ):
        folder.read_predictions(0)
    folder.result.write_text("{")
    with pytest.raises(MisconfigurationError, match="trials.json is damaged: .* Delete it"):
        folder.read_result()
    for content in ("[1]", "a: [", "\x00"):
        (folder.path / "sweep.yaml").write_text(content)
        with pytest.raises(MisconfigurationError, match="sweep.yaml is damaged"):
            parse(["photos", "--out", str(folder.path), "--resume"])


@pytest.mark.slow
def test_time_bounds_the_sweep_between_two_trials(solar_cells, tmp_path, capsys):
    out = tmp_path / "sweep"
    options = (*SMALL, "--plan", "head", "--trials", "5000", "--time", "1s")
    assert sweep.run([str(solar_cells), "--out", str(out), *options]) == 0
    assert 0 < len(result_of(out)["trials"]) < 5000
    assert (
        f"The time is over. Go on: headstart sweep {solar_cells} --out {out} --resume"
        in capsys.readouterr().out
    )


def test_a_sweep_runs_on_one_device(tmp_path, capsys):
    assert parse(["photos", "--out", str(tmp_path)]).options.fit_options().devices == 1
    with pytest.raises(SystemExit):
        parse(["photos", "--out", str(tmp_path), "--devices", "2"])
    assert "unrecognized arguments: --devices 2" in capsys.readouterr().err
