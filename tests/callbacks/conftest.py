"""A module whose validation loss is written down beforehand, and a trainer that is quiet."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from headstart import LightningModule, Trainer


class Scripted(LightningModule):
    """Trains a tiny layer; `val_loss` is `losses[n]` in the n-th validation. Four batches an epoch."""

    def __init__(self, losses=(1.0,)):
        super().__init__()
        self.losses = list(losses)
        self.num_validations = 0
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        # Scripted by epoch, so that the trial run before training counts for nothing.
        self.log("val_loss", self.losses[min(self.num_validations, len(self.losses) - 1)])

    def on_validation_end(self):
        if not self.trainer.sanity_checking:
            self.num_validations += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(8, 2)), batch_size=2)

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(2, 2)), batch_size=2)


class Unvalidated(LightningModule):
    """`Scripted` without validation."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    training_step = Scripted.training_step
    configure_optimizers = Scripted.configure_optimizers
    train_dataloader = Scripted.train_dataloader


@pytest.fixture
def scripted():
    """The class of the module with given validation losses."""
    return Scripted


@pytest.fixture
def unvalidated():
    """The class of the module without validation."""
    return Unvalidated


@pytest.fixture
def fit(tmp_path):
    """Fit a module with callbacks, quietly, in a temporary directory; gives the trainer."""

    def run(module, *callbacks, ckpt_path=None, **settings):
        defaults = {
            "default_root_dir": tmp_path, "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
            "enable_checkpointing": any(type(each).__name__ == "ModelCheckpoint" for each in callbacks),
            "accelerator": "cpu", "max_epochs": 5,
        }  # fmt: skip
        trainer = Trainer(callbacks=list(callbacks), **{**defaults, **settings})
        trainer.fit(module, ckpt_path=ckpt_path)
        return trainer

    return run
