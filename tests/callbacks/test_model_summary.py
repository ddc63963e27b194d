import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from headstart import LightningModule, Trainer, freezing
from headstart.callbacks import ModelSummary
from headstart.callbacks.model_summary import summarize
from headstart.errors import MisconfigurationError


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 1)
        self.scale = nn.Parameter(torch.ones(5))

    def training_step(self, batch, batch_idx):
        return self.head(self.backbone(batch)).sum() * self.scale.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def names(summary):
    return [row.name for row in summary.rows]


def test_the_totals_are_those_of_the_module():
    net = Net()
    net.backbone.requires_grad_(False)
    summary = summarize(net)
    backbone = 2 * 3 + 3 + 3 + 3  # weights and biases, by the definition of the layers
    assert summary.total_parameters == backbone + 4 + 5
    assert summary.trainable_parameters == 4 + 5
    assert summary.non_trainable_parameters == backbone
    assert summary.model_size == pytest.approx((backbone + 4 + 5) * 4 / 1e6)  # float32: 4 bytes each


def test_the_rows_add_up_with_the_parameters_of_the_root_itself():
    summary = summarize(Net())
    assert names(summary) == ["backbone", "head", "other params"]
    assert sum(row.num_parameters for row in summary.rows) == summary.total_parameters


def test_the_depth_decides_which_rows_there_are():
    inner = ["backbone.0", "backbone.1"]
    assert names(summarize(Net(), max_depth=0)) == []
    assert names(summarize(Net(), max_depth=2)) == ["backbone", *inner, "head", "other params"]
    assert names(summarize(Net(), max_depth=-1)) == names(summarize(Net(), max_depth=2))


@pytest.mark.parametrize(
    "function", [lambda: summarize(Net(), max_depth=-2), lambda: ModelSummary(max_depth=-2)]
)
def test_a_depth_below_everything_is_refused(function):
    with pytest.raises(MisconfigurationError, match="max_depth is -2"):
        function()


def test_a_frozen_module_is_named_as_such():
    net = Net()
    freezing.freeze(net.backbone)
    rows = {row.name: row for row in summarize(net).rows}
    assert rows["backbone"].is_frozen
    assert rows["backbone"].mode == "eval"
    assert not rows["head"].is_frozen
    assert "frozen" in next(line for line in str(summarize(net)).splitlines() if "backbone" in line)


def test_a_module_without_parameters_is_not_called_frozen():
    assert not summarize(nn.Sequential(nn.ReLU())).rows[0].is_frozen


def test_a_parameter_without_a_shape_yet_counts_as_nothing_and_is_mentioned():
    summary = summarize(nn.Sequential(nn.LazyLinear(3), nn.Linear(2, 2)))
    assert summary.total_parameters == 6
    assert "2 whose shapes the first batch decides" in str(summary)


def test_a_shared_parameter_counts_once_in_the_totals():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    assert summarize(net).total_parameters == 4


def fit(tmp_path, module, **settings):
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        **settings,
    )
    trainer.fit(module, DataLoader(torch.ones(2, 2), batch_size=2))


def test_the_table_shows_the_modes_in_which_training_will_run(tmp_path, capsys):
    net = Net()
    net.backbone.requires_grad_(False)  # by hand: it is in training mode until the first epoch starts
    fit(tmp_path, net)
    lines = capsys.readouterr().out.splitlines()
    backbone = next(line for line in lines if "backbone" in line)
    assert backbone.split() == ["0", "backbone", "Sequential", "15", "frozen", "eval"]
    assert any("9 trainable, 15 frozen" in line for line in lines)


def test_looking_leaves_the_modes_as_they_were(tmp_path):
    net = Net()
    net.backbone.requires_grad_(False)
    net.head.eval()
    before = [child.training for child in net.modules()]

    class Spectator(ModelSummary):
        def on_fit_start(self, trainer, pl_module):
            found = [child.training for child in pl_module.modules()]
            super().on_fit_start(trainer, pl_module)
            assert [child.training for child in pl_module.modules()] == found == before

    fit(tmp_path, net, callbacks=Spectator())


def test_it_can_be_switched_off(tmp_path, capsys):
    fit(tmp_path, Net(), enable_model_summary=False)
    assert "backbone" not in capsys.readouterr().out
