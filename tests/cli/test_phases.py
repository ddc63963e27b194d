"""What a run remembers of its phases, and where its curves mark them."""

import pytest

from headstart.cli.phases import PhaseRecord
from headstart.plan import Phase, Plan
from headstart.report.figures import loss_figure
from tests.callbacks.test_plan import Net, fit

PHASES = (
    ("head", {"trains": "head", "steps": 4}),  # ends within an epoch
    ("top", {"trains": ["head", "last block"], "epochs": 1}),
    ("<all>", {"trains": "all", "epochs": 1}),
)


@pytest.fixture(scope="module")
def record():
    found = PhaseRecord()
    fit(Plan(phases=[Phase(name=name, **phase) for name, phase in PHASES]), Net(), found)
    return found


def test_the_phases_of_a_plan_keep_their_names_and_begin_at_their_steps(record):
    assert [(each.name, each.trains, each.begins) for each in record.phases] == [
        ("head", "head", 0),
        ("top", "head last block", 4),
        ("<all>", "all", 6),
    ]
    head, top, everything = (each.num_trainable for each in record.phases)
    assert head < top < everything
    assert sum(each.epochs for each in record.phases) == len(record.epochs)


def test_curves_mark_the_phases_by_their_names_as_text(record):
    phases = [{"name": each.name, "begins": each.begins, "epochs": each.epochs} for each in record.phases]
    learning = {"curves": {"train_loss": [(0, 1.0), (8, 0.5)]}, "epoch_ends": [(2, 8)], "phases": phases}
    layout = loss_figure({"learning": learning})["layout"]
    assert [each["text"] for each in layout["annotations"]] == ["head", "top", "&lt;all&gt;"]
    assert [each["x0"] for each in layout["shapes"]] == [4.5, 6.5]
