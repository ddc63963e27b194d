"""`headstart fit --plan ...`: `auto`, the default, never ends worse than the head alone; the others train as they are told."""

from __future__ import annotations

import csv
import json
import re
import signal
import time

import pytest
import torch

from headstart import auto
from headstart.artefact import load_artefact, read_metadata
from headstart.choice import choose, expected_optimism
from headstart.cli import fit, set_up
from headstart.cli.inference import scores_of
from headstart.cli.options import parse
from headstart.data import write_shards
from headstart.errors import DataError, MisconfigurationError
from headstart.plan import Phase, Plan

pytestmark = pytest.mark.slow

SMALL = ("--image_size", "64", "--batch_size", "8", "--epochs", "2")


def weights(run):
    return (run / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(solar_cells, fit_in_second_process, tmp_path_factory):
    """A run that nobody interrupted: its folder, and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "auto"
    process = fit_in_second_process(solar_cells, "--out", run, *SMALL)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return run, printed, errors


def test_head_and_candidates_are_printed_with_intervals(finished):
    run, printed, errors = finished
    lines = " ".join(printed.split())
    assert "Head fitted to its optimum on 28 samples, accuracy in 5 folds" in lines
    assert "Plan 'auto':" in errors or "Plan 'auto':" in printed
    for name in ("head alone", "blend 25%", "blend 50%", "blend 75%", "fine-tuned"):
        assert name in lines
    assert "validation samples, 95 % intervals" in lines
    assert "kept" in lines
    assert "calibration error" in lines
    assert f"artefact {run}" in lines


def test_the_artefact_holds_the_choice_and_the_calibration(finished, solar_cells):
    metadata = read_metadata(finished[0])
    choice, calibration = metadata["metrics"]["choice"], metadata["metrics"]["calibration"]
    names = [each["name"] for each in choice["candidates"]]
    assert names[0] == "head alone"
    assert choice["chosen"] in names
    kept = next(each for each in choice["candidates"] if each["name"] == choice["chosen"])
    assert metadata["metrics"]["validation"]["acc"] == kept["accuracy"]["value"]
    assert calibration["temperature"] > 0
    # What was saved is what was judged: its predictions on the validation part are the candidate's, at that temperature.
    model = load_artefact(finished[0])
    data = set_up.open_data(fit.parse([str(solar_cells), "--out", "x"]).options).prepare()
    data.eval_transform = model.preprocessing.eval_transform()
    logits, targets = auto.outputs_of(model, data.val_dataloader(), accelerator="cpu")
    assert float((logits.argmax(1) == targets).double().mean()) == pytest.approx(kept["accuracy"]["value"])
    before = logits * calibration["temperature"]
    loss = torch.nn.functional.cross_entropy(before, targets).item()
    assert loss == pytest.approx(kept["log_loss"]["value"], rel=1e-3)  # channels-last sums in another order


@pytest.mark.parametrize("class_weights", ["balanced", "none"])
def test_without_a_test_part_it_is_said_how_much_too_good_the_score_is(
    solar_cells, tmp_path, capsys, monkeypatch, class_weights
):
    asked = {}

    def choose_and_remember(candidates, targets, *, metric, seed):
        asked.update(candidates=candidates, targets=targets, metric=metric, seed=seed)
        return choose(candidates, targets, metric=metric, seed=seed)

    monkeypatch.setattr("headstart.cli.auto.choose", choose_and_remember)
    options = (*SMALL, "--test_fraction", "0", "--class_weights", class_weights)
    assert fit.run([str(solar_cells), "--out", str(tmp_path / "run"), *options]) == 0
    lines = " ".join(capsys.readouterr().out.split())
    found = read_metadata(tmp_path / "run")["metrics"]["choice"]["expected_optimism"]
    assert found == expected_optimism(**asked)
    name = {"balanced": "macro-F1", "none": "accuracy"}[class_weights]
    assert re.search(
        rf"its {name} on them is expected to be too good by (no more than )?about {found:.3f}", lines
    )


def test_with_a_test_part_the_optimism_is_kept_and_not_printed(finished):
    assert read_metadata(finished[0])["metrics"]["choice"]["expected_optimism"] >= 0
    assert "is expected to be too good" not in " ".join(finished[1].split())


def test_what_the_choice_gained_or_cost_is_told_by_the_test_part(finished, solar_cells):
    """Not only what was kept is tested; nothing is chosen by it."""
    run, printed, _ = finished
    metrics = read_metadata(run)["metrics"]
    choice, name = metrics["choice"], {"macro_f1": "macro-F1"}.get(metrics["choice"]["metric"], "accuracy")
    others = {"head alone", "fine-tuned"} - {choice["chosen"]}
    assert set(choice["tested"]) == others
    values = {each: choice["tested"][each][choice["metric"]]["value"] for each in others}
    kept = metrics["test"][choice["metric"]]["value"]
    cost = max(values.values()) - kept
    row = rf"choice {name} in the test: kept {kept:.3f}, "
    row += ", ".join(f"{each} {values[each]:.3f}" for each in ("head alone", "fine-tuned") if each in others)
    row += f"; the choice cost {cost:.3f}" if cost > 0 else ""
    assert row in " ".join(printed.split())
    # The weights that are saved are those that were kept.
    model, data = (
        load_artefact(run),
        set_up.open_data(parse([str(solar_cells), "--out", "unused", *SMALL]).options),
    )
    data.set_preprocessing(model.preprocessing)
    assert (
        scores_of(model, data.test_dataloader(), accelerator="cpu").accuracy.to_dict()
        == metrics["test"]["accuracy"]
    )


def test_where_fine_tuning_ruins_the_model_the_head_alone_is_kept(solar_cells, tmp_path, capsys):
    options = ("--image_size", "64", "--batch_size", "8", "--epochs", "4", "--lr", "3.0")
    assert fit.run([str(solar_cells), "--out", str(tmp_path / "run"), *options]) == 0
    lines = " ".join(capsys.readouterr().out.split())
    metadata = read_metadata(tmp_path / "run")
    candidates = {
        each["name"]: each["macro_f1"]["value"] for each in metadata["metrics"]["choice"]["candidates"]
    }
    kept = metadata["metrics"]["choice"]["chosen"]
    assert candidates[kept] >= candidates["head alone"]
    assert candidates["fine-tuned"] < candidates["head alone"] or kept != "fine-tuned"
    assert "kept" in lines


def test_where_fine_tuning_diverges_it_ends_at_once_and_the_head_alone_is_kept(solar_cells, tmp_path, capsys):
    options = ("--image_size", "64", "--batch_size", "8", "--epochs", "4", "--lr", "1e8")
    with pytest.warns(UserWarning, match="A loss was NaN or infinite"):
        assert fit.run([str(solar_cells), "--out", str(tmp_path / "run"), *options]) == 0
    lines = " ".join(capsys.readouterr().out.split())
    assert re.search(r"ended early: it diverged, val_loss is (nan|inf)", lines)
    metadata = read_metadata(tmp_path / "run")
    assert metadata["metrics"]["choice"]["chosen"] == "head alone"
    assert load_artefact(tmp_path / "run").class_names == ["defective", "functional"]


def test_a_validation_part_of_one_sample_is_enough_for_a_model(solar_cells, tmp_path, capsys):
    for part, count in (("train", 8), ("val", 1)):
        for name in ("defective", "functional")[: 1 if part == "val" else 2]:
            (tmp_path / "cells" / part / name).mkdir(parents=True)
            for photo in sorted((solar_cells / name).iterdir())[-count:]:
                (tmp_path / "cells" / part / name / photo.name).symlink_to(photo)
    run = tmp_path / "run"
    assert fit.run([str(tmp_path / "cells"), "--out", str(run), *SMALL[:4], "--epochs", "1"]) == 0
    assert read_metadata(run)["metrics"]["calibration"]["temperature"] == 1


def test_a_run_that_ctrl_c_ended_goes_on_bit_for_bit(finished, solar_cells, fit_in_second_process, tmp_path):
    run = tmp_path / "run"
    process = fit_in_second_process(solar_cells, "--out", run, *SMALL)
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "it was not tested" in printed
    assert load_artefact(run).class_names == ["defective", "functional"]
    process = fit_in_second_process(solar_cells, "--out", run, "--resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert weights(run) == weights(finished[0])
    assert read_metadata(run)["metrics"]["choice"] == read_metadata(finished[0])["metrics"]["choice"]


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "Interrupted. What is done is kept in"), (signal.SIGTERM, 143, "Ended by SIGTERM")],
)
def test_a_signal_while_features_are_computed_keeps_them_and_says_how_to_go_on(
    number, code, said, solar_cells, fit_in_second_process, tmp_path
):
    for name in ("defective", "functional"):  # enough for a pass of seconds
        (tmp_path / "cells" / name).mkdir(parents=True)
        for photo in (solar_cells / name).iterdir():
            for copy in range(10):
                (tmp_path / "cells" / name / f"{copy}-{photo.name}").symlink_to(photo)
    run = tmp_path / "run"
    process = fit_in_second_process(tmp_path / "cells", "--out", run, "--image_size", "128", "--epochs", "1")
    while not list(run.glob("features/*.work")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(0.5)  # some batches are computed, of a pass of 4 s
    process.send_signal(number)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert said in printed
    assert f"Go on: headstart fit {tmp_path / 'cells'} --out {run} --resume" in printed
    assert not (run / "checkpoints").exists()
    assert list(run.glob("features/*.json"))


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_forgetting_is_a_probe_on_other_data_before_and_after(kind, solar_cells, tmp_path, capsys):
    other = tmp_path / "other"
    photos = [
        (name, photo)
        for name in ("defective", "functional")
        for photo in sorted((solar_cells / name).iterdir())[:12]
    ]
    if kind == "shards":
        write_shards(((photo.read_bytes(), name) for name, photo in photos), other)
    else:
        for name, photo in photos:
            (other / name).mkdir(parents=True, exist_ok=True)
            (other / name / photo.name).symlink_to(photo)
    options = (*SMALL[:4], "--plan", "full", "--epochs", "1", "--lr", "0.3", "--forgetting", str(other))
    assert fit.run([str(solar_cells), "--out", str(tmp_path / "run"), *options]) == 0
    found = read_metadata(tmp_path / "run")["metrics"]["forgetting"]
    assert found["before"]["num_samples"] == found["after"]["num_samples"] > 10
    assert found["before"]["accuracy"] != found["after"]["accuracy"]  # at this rate, the backbone is another
    assert "forgetting a probe on" in " ".join(capsys.readouterr().out.split())


def test_forgetting_needs_data_of_the_same_kind(solar_cells, reviews, tmp_path):
    with pytest.raises(
        MisconfigurationError, match="holds text, and the backbone 'efficientnet_lite0' takes images"
    ):
        fit.run([str(solar_cells), "--out", str(tmp_path / "run"), *SMALL, "--forgetting", str(reviews)])
    assert not (tmp_path / "run").exists()


def test_forgetting_names_a_class_that_no_fold_could_judge(solar_cells, tmp_path):
    for name, count in {"common": 6, "rare": 1}.items():
        (tmp_path / "other" / "train" / name).mkdir(parents=True)
        (tmp_path / "other" / "val" / name).mkdir(parents=True)
        for photo in sorted((solar_cells / "functional").iterdir())[:count]:
            (tmp_path / "other" / "train" / name / photo.name).symlink_to(photo)
            (tmp_path / "other" / "val" / name / photo.name).symlink_to(photo)
    other = ("--forgetting", str(tmp_path / "other"))
    with pytest.raises(DataError, match="other: one training sample only of class 'rare'"):
        fit.run([str(solar_cells), "--out", str(tmp_path / "run"), *SMALL, *other])
    assert not (tmp_path / "run").exists()


def test_to_ask_what_is_forgotten_changes_nothing_in_what_is_trained(solar_cells, tmp_path):
    options = ("--image_size", "32", "--plan", "full", "--epochs", "1", "--report", "false")
    for run, more in {"run": (), "asked": ("--forgetting", str(solar_cells))}.items():
        assert fit.run([str(solar_cells), "--out", str(tmp_path / run), *options, *more]) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "asked")


def test_time_ends_fine_tuning(solar_cells, tmp_path, capsys):
    options = ("--image_size", "64", "--batch_size", "8", "--epochs", "500", "--time", "2s")
    assert fit.run([str(solar_cells), "--out", str(tmp_path / "run"), *options]) == 0
    assert len(read_metadata(tmp_path / "run")["history"]["epochs"]) < 500
    assert "500 epochs, or 2.0 s" in capsys.readouterr().err


def test_where_the_clock_alone_ends_it_it_is_used_and_the_rate_has_come_down(solar_cells, tmp_path, capsys):
    options = ("--image_size", "64", "--batch_size", "8", "--time", "4s")
    assert fit.run([str(solar_cells), "--out", str(tmp_path / "run"), *options]) == 0
    captured = capsys.readouterr()
    assert re.search(r"cosine, .* of warm-up .* 4.0 s\n", captured.err)
    ended_by_clock = "Phase 'fine-tuning' ends: its 4.0 s are over." in captured.err
    assert ended_by_clock != ("ended early" in captured.out)
    with (tmp_path / "run" / "logs" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rates = [float(row["lr-AdamW/head"]) for row in rows if row["lr-AdamW/head"]]
    assert rates[-1] < max(rates)


def test_texts_are_fitted_by_the_same_plan(reviews, tmp_path):
    options = (
        "--epochs",
        "1",
        "--batch_size",
        "8",
        "--text_column",
        "what was said",
        "--label_column",
        "sentiment",
    )
    assert fit.run([str(reviews), "--out", str(tmp_path / "run"), *options]) == 0
    metadata = read_metadata(tmp_path / "run")
    assert metadata["metrics"]["head"]["accuracy"]["value"] > 0.6
    assert metadata["metrics"]["test"]["accuracy"]["value"] > 0.6


@pytest.mark.parametrize("plan", ["linear_probe", "last_blocks"])
def test_a_named_plan_is_followed(solar_cells, tmp_path, plan, capsys):
    options = ("--image_size", "64", "--batch_size", "8", "--epochs", "1", "--plan", plan)
    assert fit.run([str(solar_cells), "--out", str(tmp_path / "run"), *options]) == 0
    assert f"Plan '{plan}':" in capsys.readouterr().err
    assert len(read_metadata(tmp_path / "run")["history"]["epochs"]) == 1


def test_a_plan_of_ones_own_is_followed(solar_cells, tmp_path, capsys):
    plan = Plan(
        phases=[Phase(name="a", trains="head", epochs=1), Phase(name="b", trains=("head", "norms"), epochs=1)]
    )
    plan.to_yaml(tmp_path / "plan.yaml")
    options = ("--image_size", "64", "--batch_size", "8", "--plan", str(tmp_path / "plan.yaml"))
    assert fit.run([str(solar_cells), "--out", str(tmp_path / "run"), *options]) == 0
    assert "Phase 'b' begins" in capsys.readouterr().err
    assert (
        json.loads((tmp_path / "run" / "headstart.json").read_text())["metrics"]["test"]["num_samples"] == 6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plan", "autp"], "--plan is 'autp'.*Did you mean 'auto'"),
        (["--plan", "full", "--time", "10m"], "--time is for --plan auto, and the plan is full"),
        (["--plan", "full", "--unfreeze_at_epoch", "3"], "--unfreeze_at_epoch is for --plan thaw"),
        (["--patience", "3"], "--patience is for --plan thaw, and the plan is auto"),
        (["--time", "soon"], "--time is 'soon'; expected a time such as 90s, 10m, 1h"),
        (["--time", "0m"], "--time is '0m'"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(options, message):
    with pytest.raises(MisconfigurationError, match=message):
        fit.parse(["photos", "--out", "run", *options])
