"""What a run remembers of its phases, and where its curves mark them."""

import math

import pytest
from torch.utils.data import DataLoader

from headstart.artefact import read_metadata
from headstart.cli import fit
from headstart.cli.phases import PhaseRecord
from headstart.cli.set_up import num_epochs_of_the_head_alone
from headstart.plan import Phase, Plan
from headstart.plans import named_plan
from headstart.report.figures import loss_figure
from headstart.tasks import ImageClassifier
from tests.callbacks.test_plan import Net
from tests.callbacks.test_plan import fit as fit_plan
from tests.tasks.test_classifier import quiet_trainer, small_data, small_network

PHASES = (
    ("head", {"trains": "head", "steps": 4}),  # ends within an epoch
    ("top", {"trains": ["head", "last block"], "epochs": 1}),  # after the rest of that epoch
    ("<all>", {"trains": "all", "epochs": 1}),
)


@pytest.fixture(scope="module")
def record():
    found = PhaseRecord()
    fit_plan(Plan(phases=[Phase(name=name, **phase) for name, phase in PHASES]), Net(), found)
    return found


def test_the_phases_of_a_plan_keep_their_names_and_begin_at_their_steps(record):
    assert [(each.name, each.trains, each.begins) for each in record.phases] == [
        ("head", "head", 0),
        ("top", "head, last block", 4),
        ("<all>", "all", 9),
    ]
    head, top, everything = (each.num_trainable for each in record.phases)
    assert head < top < everything
    assert sum(each.epochs for each in record.phases) == len(record.epochs)


def test_curves_mark_the_phases_by_their_names_as_text(record):
    phases = [{"name": each.name, "begins": each.begins, "epochs": each.epochs} for each in record.phases]
    learning = {"curves": {"train_loss": [(0, 1.0), (8, 0.5)]}, "epoch_ends": [(2, 8)], "phases": phases}
    layout = loss_figure({"learning": learning})["layout"]
    assert [each["text"] for each in layout["annotations"]] == ["head", "top", "&lt;all&gt;"]
    assert [each["x0"] for each in layout["shapes"]] == [4.5, 9.5]


def test_the_best_epoch_is_one_of_the_last_phase():
    found = PhaseRecord()
    values = [0.9, 0.2, 0.4, 0.4, 0.3]
    plan = Plan(phases=[Phase(name="a", trains="head", epochs=1), Phase(name="b", trains="all", epochs=4)])
    fit_plan(plan, Net(values), found)
    for number, each in enumerate(found.epochs):
        each["val_f1"] = values[number]
    assert found.best_epoch("val_f1", "max") == 2
    assert found.best_epoch("val_f1", "min") == 1
    assert found.best_epoch("another", "max") is None
    for each in found.epochs[1:3]:  # the phase begins with values that are no numbers
        each["val_f1"] = math.nan
    assert found.best_epoch("val_f1", "max") == 3
    assert found.best_epoch("val_f1", "min") == 4
    for each in found.epochs:
        each["val_f1"] = math.nan
    assert found.best_epoch("val_f1", "max") is None


def test_an_epoch_reached_the_mean_of_its_training_loss(tmp_path):
    found = PhaseRecord()
    model = ImageClassifier(small_network(), class_names=["a", "b", "c"], image_size=16, lr=0.1)
    trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=[found])
    loader = DataLoader(small_data(), batch_size=7)
    trainer.fit(model, loader, loader)
    assert found.epochs[1]["train_loss_epoch"] == float(trainer.callback_metrics["train_loss_epoch"])
    # What a plan that watches it has seen.
    assert found.epochs[1]["train_loss"] == float(trainer.callback_metrics["train_loss"])


@pytest.mark.parametrize(
    ("plan", "count"),
    [
        (named_plan("linear_probe", epochs=5), 5),
        (named_plan("full", epochs=5), 0),
        (Plan(phases=[Phase(name=name, **phase) for name, phase in PHASES]), 0),  # ends at a step
        (Plan(phases=[Phase(name="a", trains="head", epochs=3, norms="adapt")]), 0),
        (Plan(phases=[Phase(name="a", trains="head", epochs=3, patience=1)], monitor="val"), 3),
        (Plan(phases=[Phase(name="a", trains="head", epochs=3), Phase(name="b", trains="all", epochs=1)]), 3),
    ],
)
def test_it_is_known_how_long_the_head_alone_trains(plan, count):
    assert num_epochs_of_the_head_alone(plan, Net()) == count


@pytest.mark.slow
def test_a_plan_that_begins_with_the_head_does_frozen_work_once_and_says_which_epoch_it_kept(
    solar_cells, tmp_path, capsys
):
    options = ("--image_size", "64", "--epochs", "2", "--plan", "lp_ft", "--report", "false")
    assert fit.run([str(solar_cells), "--out", str(tmp_path / "run"), *options]) == 0
    assert "in every epoch" not in " ".join(capsys.readouterr())
    found = read_metadata(tmp_path / "run")
    head, everything = found["history"]["phases"]
    assert found["metrics"]["best_epoch"] in range(head["epochs"], head["epochs"] + everything["epochs"])
    assert 0 <= found["metrics"]["validation"]["f1"] <= 1
