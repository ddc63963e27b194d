"""Modules that thaw were in evaluation mode by the rule: nothing is to be said (tests/test_freezing.py has the others)."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from headstart import LightningModule
from headstart.callbacks import BaseFinetuning


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.head(self.layers(x)), y)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class ThawTheLastLayer(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.layers)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.layers[1], optimizer)


@pytest.fixture
def loader(two_classes):
    return DataLoader(two_classes, batch_size=35)


def test_module_that_thaws_goes_to_training_mode_without_a_word(quiet_trainer, loader, capsys):
    model = Net()
    quiet_trainer(max_epochs=2, callbacks=ThawTheLastLayer()).fit(model, loader)
    assert model.layers.training
    assert "found in evaluation mode" not in capsys.readouterr().err


def test_resume_behind_a_thaw_is_without_a_word(quiet_trainer, loader, capsys, tmp_path):
    first = quiet_trainer(max_epochs=2, callbacks=ThawTheLastLayer())
    first.fit(Net(), loader)
    first.save_checkpoint(tmp_path / "last.ckpt")
    model = Net()
    quiet_trainer(max_epochs=3, callbacks=ThawTheLastLayer()).fit(
        model, loader, ckpt_path=tmp_path / "last.ckpt"
    )
    assert model.layers.training
    assert "found in evaluation mode" not in capsys.readouterr().err
