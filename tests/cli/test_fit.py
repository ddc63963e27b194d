"""`headstart fit`: from data to a tested model, and what happens when it is cut short."""

from __future__ import annotations

import csv
import errno
import json
import signal
import sys
import time

import pytest
import torch
import yaml
from PIL import Image

from headstart.artefact import load_artefact, read_metadata
from headstart.checkpoint import read_checkpoint
from headstart.cli import fit, set_up
from headstart.cli.main import main
from headstart.errors import DataError, HeadstartError, MisconfigurationError, MissingDependencyError
from headstart.plan import Plan
from headstart.plans import named_plan
from headstart.tasks import TextClassifier

pytestmark = pytest.mark.slow


def weights(run):
    return (run / "model.safetensors").read_bytes()


def wait_for(path, process):
    """Wait until a file is there; the process must not end before."""
    for _ in range(3000):
        if path.exists():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")


# ---- a whole run


def test_fit_prints_what_was_found_trained_and_reached(finished, solar_cells):
    run, printed = finished
    lines = " ".join(printed.split())
    assert f"{solar_cells}: 40 samples in 2 classes: 28 train, 6 val, 6 test" in lines
    assert "efficientnet_lite0, 3,371,008 parameters, and a head of 2,562" in lines
    assert "epochs 0 to 1: the head alone, 2,562 parameters train" in lines
    assert "epochs 2 to 4: backbone and head, 3,373,570 parameters train" in lines
    assert "6 samples held back from training" in lines
    assert "95 % interval" in lines
    assert f"artefact {run}" in lines
    assert f"headstart predict {run}" in lines


def test_the_artefact_says_how_it_was_made_and_how_good_it_is(cell_run):
    metadata = read_metadata(cell_run)
    assert metadata["class_names"] == ["defective", "functional"]
    assert metadata["preprocessing"]["size"] == 64
    test = metadata["metrics"]["test"]
    assert test["num_samples"] == 6
    assert test["accuracy"]["low"] <= test["accuracy"]["value"] <= test["accuracy"]["high"]
    assert [phase["name"] for phase in metadata["history"]["phases"]] == ["frozen", "unfrozen"]
    assert [epoch["phase"] for epoch in metadata["history"]["epochs"]] == ["frozen"] * 2 + ["unfrozen"] * 3
    assert metadata["data"]["part_sizes"] == {"train": 28, "val": 6, "test": 6}


def test_the_artefact_is_the_best_epoch_by_validation(cell_run):
    metadata = read_metadata(cell_run)
    scores = [epoch["val_f1"] for epoch in metadata["history"]["epochs"]]
    assert metadata["metrics"]["best_epoch"] == scores.index(max(scores))
    best = read_checkpoint(cell_run / "checkpoints" / "best.ckpt")
    assert best["epoch"] == metadata["metrics"]["best_epoch"]
    state = load_artefact(cell_run).state_dict()
    assert all(value.equal(best["state_dict"][name]) for name, value in state.items())


def test_curves_are_csv_and_tensorboard(cell_run):
    with (cell_run / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["val_acc"]]) == 5
    assert {"train_loss", "val_loss", "val_f1"} <= set(rows[0])
    assert list((cell_run / "logs").glob("events.out.tfevents.*"))


def test_the_backbone_is_frozen_at_first_and_has_a_rate_of_its_own_later(cell_run):
    with (cell_run / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    heads = [float(row["lr-AdamW/pg1"]) for row in rows if row.get("lr-AdamW/pg1")]
    backbones = [float(row["lr-AdamW/pg2"]) for row in rows if row.get("lr-AdamW/pg2")]
    assert set(heads) == {1e-3}
    assert backbones == pytest.approx([1e-4] * 3)
    assert len(read_checkpoint(cell_run / "checkpoints" / "last.ckpt")["loops"]["param_groups"][0]) == 2


def test_a_finished_run_is_not_overwritten_by_accident(cell_run, solar_cells, capsys):
    assert main(["fit", str(solar_cells), "--out", str(cell_run)]) == 1
    assert "holds a run already. Give --resume to go on with it, --overwrite" in capsys.readouterr().err


# ---- texts


def test_texts_are_classified_by_the_same_command(text_run):
    metadata = read_metadata(text_run)
    assert metadata["task"] == "text-classification"
    assert metadata["data"]["text_columns"] == ["what was said"]
    assert metadata["data"]["texts_per_sample"] == 1
    assert metadata["metrics"]["test"]["accuracy"]["value"] > 0.6  # three classes that one word tells apart


def test_pairs_of_texts_are_classified(tmp_path):
    rows = [f"the {a} is {b},it is {b if same else 'blue'},{same}" for a in ("car", "hat", "cup", "bag", "pen", "box")
            for b in ("red", "old") for same in (True, False)]  # fmt: skip
    (tmp_path / "pairs.csv").write_text("\n".join(["premise,hypothesis,follows", *rows]))
    options = ["--text_column", "premise", "--text_pair_column", "hypothesis", "--label_column", "follows"]
    code = fit.run(
        [str(tmp_path / "pairs.csv"), "--out", str(tmp_path / "run"), "--epochs", "1", "--unfreeze_at_epoch", "1",
         *options]
    )  # fmt: skip
    assert code == 0
    metadata = read_metadata(tmp_path / "run")
    assert metadata["data"]["text_columns"] == ["premise", "hypothesis"]
    assert metadata["data"]["texts_per_sample"] == 2
    assert [phase["name"] for phase in metadata["history"]["phases"]] == ["frozen"]


# ---- data as it is


def test_problems_of_the_data_are_named_before_training(solar_cells, tmp_path, capsys):
    for name in ("defective", "functional"):
        (tmp_path / "cells" / name).mkdir(parents=True)
        for photo in sorted((solar_cells / name).iterdir())[:8]:
            (tmp_path / "cells" / name / photo.name).symlink_to(photo)
    (tmp_path / "cells" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "cells" / "functional" / "notes.txt").write_text("cleaned on Monday")
    code = fit.run(
        [str(tmp_path / "cells"), "--out", str(tmp_path / "run"), "--image_size", "32", "--epochs", "1",
         "--test_fraction", "0", "--class_weights", "none"]
    )  # fmt: skip
    printed = " ".join(capsys.readouterr().out.split())
    assert code == 0
    assert "1 hidden file or folder ignored" in printed
    assert "functional/notes.txt: not an image" in printed
    assert printed.index("notes.txt") < printed.index("Epoch 0")
    assert "there is no test part, and these scores are too good" in printed
    assert "test" not in read_metadata(tmp_path / "run")["metrics"]


def test_a_mistake_in_the_data_leaves_an_old_run_alone(cell_run, tmp_path):
    before = weights(cell_run)
    (tmp_path / "cells" / "one class").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "cells" / "one class" / "1.png")
    with pytest.raises(DataError, match="at least two"):
        fit.run([str(tmp_path / "cells"), "--out", str(cell_run), "--overwrite"])
    assert weights(cell_run) == before


def test_a_full_disk_is_said_with_what_to_do(monkeypatch):
    def fail(request, *, command):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fit, "_fit", fail)
    with pytest.raises(
        HeadstartError, match="disk of run is full. The last checkpoint there is whole.*--resume"
    ):
        fit.run(["data", "--out", "run"])


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ((), "or leave the class out.$"),
        (("--report", "false"), "or leave the class out.$"),
        (("--plan", "linear_probe"), "or do without the report: --report false.$"),
        (("--plan", "thaw"), "or do without the report: --report false.$"),
    ],
)
def test_a_class_with_one_training_sample_leaves_no_run_where_a_head_is_fitted(options, advice, tmp_path):
    rows = [f"{label},a text of {label} number {n}" for label in ("good", "bad") for n in range(10)]
    (tmp_path / "texts.csv").write_text("\n".join(["label,text", *rows, "odd,one alone"]))
    with pytest.raises(DataError, match=f"one training sample only of class 'odd'; expected two .*{advice}"):
        fit.run([str(tmp_path / "texts.csv"), "--out", str(tmp_path / "run"), *options])
    assert not (tmp_path / "run").exists()


def test_a_class_with_one_training_sample_is_trained_on_where_no_head_is_fitted(tmp_path):
    for name, count in (("dark", 9), ("light", 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for n in range(count):
            Image.new("L", (32, 32), n).save(tmp_path / "photos" / name / f"{n}.png")
    run = tmp_path / "run"
    options = ("--plan", "linear_probe", "--epochs", "1", *TINY)
    assert fit.run([str(tmp_path / "photos"), "--out", str(run), *options]) == 0
    assert read_metadata(run)["class_names"] == ["dark", "light"]


# ---- a plan that cannot be followed leaves no RUN, and one that can is kept there

TINY = ("--image_size", "32", "--batch_size", "8", "--report", "false")
OWN_PLAN = "phases:\n- {name: a, trains: head, epochs: 1}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "The plan .*p.yaml' cannot be read: No such file"),
        ("phases: [", "The plan .*p.yaml' is no YAML"),
        ("phases:\n- {name: a, trains: head, epoch: 1}\n", "Phase 'a' has no 'epoch'. Did you mean 'epochs'"),
    ],
)
def test_a_plan_that_is_none_is_refused_before_the_data_is_read(content, message, tmp_path, monkeypatch):
    monkeypatch.setattr(set_up, "open_data", None)
    if content is not None:
        (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(MisconfigurationError, match=message):
        fit.run([str(tmp_path), "--out", str(tmp_path / "run"), "--plan", str(tmp_path / "p.yaml")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("phases:\n- {name: a, trains: [head, heda], epochs: 1}\n", "'heda' chooses no parameter. Did you mean 'head'"),
        (OWN_PLAN + "backbone: bakbone\n", "has no part 'bakbone'. Did you mean 'backbone'"),
        (OWN_PLAN + "lora: {targets: [conv_no]}\n", "The adapters do not fit"),
        (OWN_PLAN + "monitor: val_accuracy\n", "monitor is 'val_accuracy'; .* Did you mean 'val_acc'"),
        (OWN_PLAN + "monitor: val_acc\n", "mode is 'min', with which the worst val_acc would be kept. Write mode: max"),
    ],
)  # fmt: skip
def test_a_plan_that_does_not_fit_the_model_leaves_no_run(content, message, solar_cells, tmp_path):
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(MisconfigurationError, match=message):
        fit.run([str(solar_cells), "--out", str(tmp_path / "run"), "--plan", str(tmp_path / "p.yaml"), *TINY])
    assert not (tmp_path / "run").exists()


def test_a_plan_with_adapters_leaves_no_run_where_peft_is_missing(reviews, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match="'peft' is needed for the plan 'lora'"):
        fit.run(
            [str(reviews), "--out", str(tmp_path / "run"), "--plan", "lora", "--text_column", "what was said"]
        )
    assert not (tmp_path / "run").exists()


def test_checking_a_plan_changes_neither_the_model_nor_what_is_drawn_next():
    pytest.importorskip("peft")
    model = TextClassifier("minilm", class_names=["one", "other"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    set_up.check_plan(named_plan("lora"), model)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert drawn.equal(torch.rand(1))
    assert list(before) == list(model.state_dict())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_a_run_goes_on_with_its_copy_of_the_plan(solar_cells, tmp_path, monkeypatch, capsys):
    (tmp_path / "p.yaml").write_text(OWN_PLAN)
    monkeypatch.chdir(tmp_path)
    assert fit.run([str(solar_cells), "--out", "run", "--plan", "p.yaml", *TINY]) == 0
    assert Plan.from_yaml("run/plan.yaml").phases == Plan.from_yaml("p.yaml").phases
    before = read_metadata(tmp_path / "run")["history"]
    again = [str(solar_cells), "--out", str(tmp_path / "run"), "--resume"]
    (tmp_path / "p.yaml").write_text(OWN_PLAN.replace("epochs: 1", "epochs: 2"))
    assert fit.run(again) == 0
    assert "p.yaml is not the plan with which the run was begun" in capsys.readouterr().out
    (tmp_path / "p.yaml").unlink()
    assert fit.run(again) == 0
    assert "is not the plan" not in capsys.readouterr().out
    assert len(read_metadata(tmp_path / "run")["history"]["epochs"]) == len(before["epochs"]) == 1


# ---- cut short


@pytest.fixture(scope="module")
def interrupted(solar_cells, fit_in_second_process, small_settings, tmp_path_factory):
    """A run that got Ctrl-C in the midst of training: its folder, exit code and output."""
    run = tmp_path_factory.mktemp("runs") / "interrupted"
    process = fit_in_second_process(solar_cells, "--out", run, *small_settings)
    wait_for(run / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=300)
    return run, process.returncode, printed, errors, weights(run)


def test_ctrl_c_ends_cleanly_with_what_was_learned(interrupted, solar_cells):
    run, code, printed, errors, _ = interrupted
    assert code == 130
    assert "Traceback" not in errors
    assert "Ctrl-C: ending cleanly" in errors
    assert f"is saved in {run}; it was not tested" in printed
    assert f"headstart fit {solar_cells} --out {run} --resume" in printed
    assert load_artefact(run).class_names == ["defective", "functional"]
    assert not list(run.rglob("*.tmp"))


def test_a_resumed_run_is_bit_for_bit_the_one_that_nobody_interrupted(
    interrupted, finished, solar_cells, fit_in_second_process
):
    run, *_ = interrupted
    process = fit_in_second_process(solar_cells, "--out", run, "--resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert weights(run) == weights(finished[0])
    there, here = (read_metadata(each) for each in (finished[0], run))
    assert here["metrics"] == there["metrics"]
    assert here["history"]["epochs"] == there["history"]["epochs"]


@pytest.mark.parametrize("plan", ["full", "lora"])
def test_ctrl_c_in_a_plan_keeps_its_best_weights(plan, solar_cells, fit_in_second_process, tmp_path):
    run = tmp_path / "run"
    options = (
        "--plan",
        plan,
        "--epochs",
        "500",
        "--image_size",
        "64",
        "--batch_size",
        "8",
        "--report",
        "false",
    )
    process = fit_in_second_process(solar_cells, "--out", run, *options)
    wait_for(run / "checkpoints" / "best.ckpt", process)
    time.sleep(0.5)  # most often some steps beyond it
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "the best in validation so far" in printed
    assert load_artefact(run).class_names == ["defective", "functional"]
    if plan == "lora":
        assert (run / "adapters" / "adapter_config.json").is_file()
        return
    best = read_checkpoint(run / "checkpoints" / "best.ckpt")["state_dict"]
    kept = load_artefact(run).state_dict()
    assert all(torch.equal(value, best[name]) for name, value in kept.items())


def test_sigterm_saves_the_state_and_says_how_to_go_on(
    finished, solar_cells, fit_in_second_process, small_settings, tmp_path
):
    process = fit_in_second_process(solar_cells, "--out", tmp_path / "run", *small_settings)
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
    process.terminate()
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    # That it ends after the step is said where it comes within one, and not in a wait for a batch.
    assert "Ended by SIGTERM, its state saved. Go on: " in printed
    assert f"headstart fit {solar_cells} --out {tmp_path / 'run'} --resume" in printed
    process = fit_in_second_process(solar_cells, "--out", tmp_path / "run", "--resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert weights(tmp_path / "run") == weights(finished[0])


def test_a_kill_leaves_the_last_checkpoint_whole(
    finished, solar_cells, fit_in_second_process, small_settings, tmp_path
):
    process = fit_in_second_process(solar_cells, "--out", tmp_path / "run", *small_settings)
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
    process.kill()
    process.communicate()
    epoch = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["epoch"]
    assert 0 <= epoch < 5
    assert not (tmp_path / "run" / "headstart.json").exists()
    process = fit_in_second_process(solar_cells, "--out", tmp_path / "run", "--resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert weights(tmp_path / "run") == weights(finished[0])


def test_a_run_goes_on_for_more_epochs(cell_run, solar_cells, tmp_path):
    import shutil

    shutil.copytree(cell_run, tmp_path / "run")
    options = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert options["epochs"] == 5
    with pytest.warns(UserWarning, match="its files stay there"):  # it was moved
        code = fit.run([str(solar_cells), "--out", str(tmp_path / "run"), "--resume", "--epochs", "6"])
    assert code == 0
    history = read_metadata(tmp_path / "run")["history"]
    assert [each["epoch"] for each in history["epochs"]] == [0, 1, 2, 3, 4, 5]


def test_a_run_does_not_go_on_with_other_settings_or_data(cell_run, solar_cells, tmp_path):
    with pytest.raises(MisconfigurationError, match="--lr was 0.001 and is 0.1"):
        fit.run([str(solar_cells), "--out", str(cell_run), "--resume", "--lr", "0.1"])
    for name in ("defective", "functional"):
        (tmp_path / "cells" / name).mkdir(parents=True)
        for photo in sorted((solar_cells / name).iterdir())[:10]:
            (tmp_path / "cells" / name / photo.name).symlink_to(photo)
    with pytest.raises(DataError, match="train: 28 samples then, 12 now"):
        fit.run([str(tmp_path / "cells"), "--out", str(cell_run), "--resume"])


def test_a_run_that_was_cut_before_its_first_checkpoint_begins_again(
    solar_cells, small_settings, tmp_path, capsys
):
    from headstart.cli.options import parse
    from headstart.cli.run_folder import RunFolder

    arguments = [str(solar_cells), "--out", str(tmp_path / "run"), *small_settings, "--epochs", "1"]
    options = parse(arguments).options
    RunFolder(tmp_path / "run").begin(options, set_up.open_data(options))
    assert fit.run([str(solar_cells), "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert "it begins from its start" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "headstart.json").read_text())["metrics"]["best_epoch"] == 0
