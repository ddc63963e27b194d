"""A `LightningDataModule` through fit, test and predict, and the best checkpoint taken up again by word."""

import sys

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from pytorch_lightning.utilities.types import (
    EVAL_DATALOADERS,
    STEP_OUTPUT,
    TRAIN_DATALOADERS,
    OptimizerLRScheduler,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class Rings(pl.LightningDataModule):
    def __init__(self, batch_size: int = 16):
        super().__init__()
        self.save_hyperparameters()

    def prepare_data(self) -> None:
        print("prepare_data")

    def setup(self, stage: str) -> None:
        print("setup for", *(known for known in ("fit", "test", "predict") if stage == known))
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(160, 2, generator=generator)
        data = TensorDataset(x, (x.norm(dim=1) > 1.2).long())
        self.train, self.val, self.test = random_split(data, [96, 32, 32], generator=generator)

    def train_dataloader(self) -> TRAIN_DATALOADERS:
        return DataLoader(self.train, batch_size=self.hparams.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> EVAL_DATALOADERS:
        return DataLoader(self.val, batch_size=self.hparams.batch_size)

    def test_dataloader(self) -> EVAL_DATALOADERS:
        return [
            DataLoader(self.test, batch_size=self.hparams.batch_size),
            DataLoader(self.val, batch_size=20),
        ]

    def predict_dataloader(self) -> EVAL_DATALOADERS:
        return DataLoader(self.test, batch_size=self.hparams.batch_size)

    def teardown(self, stage: str) -> None:
        print("teardown")


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 2))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx: int) -> STEP_OUTPUT:
        x, y = batch
        return {"loss": nn.functional.cross_entropy(self(x), y)}

    def validation_step(self, batch, batch_idx: int) -> STEP_OUTPUT:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("val_loss", loss)
        return loss

    def test_step(self, batch, batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        x, y = batch
        self.log("test_acc", (self(x).argmax(1) == y).float().mean())

    def predict_step(self, batch, batch_idx: int, dataloader_idx: int = 0):
        x, _ = batch
        return self(x).softmax(1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.02, total_steps=self.trainer.estimated_stepping_batches
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Count(Callback):
    def __init__(self):
        self.batches = 0

    @rank_zero_only
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1


if __name__ == "__main__":
    pl.seed_everything(2)
    data, count = Rings(), Count()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=5,
        callbacks=[count, ModelCheckpoint(sys.argv[1], monitor="val_loss")],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), datamodule=data)
    print(f"batches {count.batches}")
    print(f"val_loss {trainer.callback_metrics['val_loss']:.8f}")
    for metrics in trainer.test(datamodule=data, ckpt_path="best", verbose=False):
        print(*(f"{name} {value:.8f}" for name, value in metrics.items()))
    predictions = torch.cat(trainer.predict(datamodule=data))
    print(f"predictions {tuple(predictions.shape)} {predictions[:, 1].sum():.8f}")
