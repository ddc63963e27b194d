"""What the loggers hold after a real run, and after one that was cut and resumed."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

from headstart import Callback, LightningModule, Trainer, seed_everything
from headstart.callbacks import LearningRateMonitor, ModelCheckpoint
from headstart.loggers import CSVLogger, TensorBoardLogger


class Net(LightningModule):
    def __init__(self, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch[0]).pow(2).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.arange(16.0).reshape(8, 2) / 16), batch_size=2, shuffle=True)

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(2, 2)), batch_size=2)


def fit(directory, logger, *callbacks, ckpt_path=None):
    seed_everything(0)
    trainer = Trainer(
        default_root_dir=directory, max_epochs=2, logger=logger, log_every_n_steps=1, accelerator="cpu",
        callbacks=[LearningRateMonitor(), *callbacks], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
    )  # fmt: skip
    trainer.fit(Net(), ckpt_path=ckpt_path)
    return trainer


def test_every_value_has_its_step(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(tmp_path, logger)
    with logger.experiment.path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = {name: [int(row["step"]) for row in rows if row[name]] for name in rows[0]}
    assert steps["train_loss_step"] == list(range(8))
    assert steps["train_loss_epoch"] == steps["val_loss"] == [3, 7]
    assert {row["lr-SGD"] for row in rows} == {"", "0.1"}


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_hyper_parameters_lie_beside_the_curves(tmp_path, kind):
    logger = kind(tmp_path)
    fit(tmp_path, logger)
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == {"lr": 0.1}


class Resumes(Callback):
    """Tells the logger where the run goes on."""

    def on_train_start(self, trainer, pl_module):
        trainer.logger.resume_from(trainer.progress.logged_steps)


def savers(directory):
    """One for each moment at which a run can be cut."""
    return [
        ModelCheckpoint(dirpath=directory / "steps", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(
            dirpath=directory / "val", save_on_train_epoch_end=False, save_top_k=-1, monitor="val_loss"
        ),
        ModelCheckpoint(dirpath=directory / "epochs", every_n_epochs=1, save_top_k=-1),
    ]


def test_the_curves_of_a_resumed_run_equal_those_of_one_that_was_never_cut(tmp_path):
    whole = tmp_path / "whole"
    logger = CSVLogger(whole, version=0)
    fit(whole, logger, *savers(whole))
    expected = logger.experiment.path.read_text()
    files = sorted(whole.glob("*/*.ckpt"))
    assert len(files) == 8 + 2 + 2
    for number, file in enumerate(files):
        again = tmp_path / str(number)
        # The cut run went on for a while after this checkpoint, and its directory is gone on with.
        shutil.copytree(whole / "lightning_logs", again / "lightning_logs")
        logger = CSVLogger(again, version=0)
        with pytest.warns(UserWarning, match="the resumed run saved to"):
            fit(again, logger, Resumes(), *savers(again), ckpt_path=file)
        assert logger.experiment.path.read_text() == expected, file
