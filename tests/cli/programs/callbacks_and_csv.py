"""The callbacks of most scripts: best checkpoint, early stop, learning rates, all in a CSV file."""

import csv
import sys

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Model(L.LightningModule):
    def __init__(self, lr: float = 0.5):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.mse_loss(self.layer(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.layer(x), y), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr * 0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, factor=0.3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


def main(out):
    L.seed_everything(11)
    x, noise = torch.randn(100, 10), torch.randn(100, 1)
    y = x[:, :1] * x[:, 1:2] + noise
    train, val = TensorDataset(x[:60], y[:60]), TensorDataset(x[60:], y[60:])
    best = ModelCheckpoint(monitor="val_loss", mode="min", save_top_k=2, filename="{epoch}-{val_loss:.3f}")
    stop = EarlyStopping("val_loss", patience=4, mode="min")
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=40,
        default_root_dir=out,
        callbacks=[best, stop, LearningRateMonitor(logging_interval="epoch")],
        logger=CSVLogger(out, name="logs"),
        log_every_n_steps=2,
        gradient_clip_val=1.0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), DataLoader(train, batch_size=12, shuffle=True), DataLoader(val, batch_size=16))
    print(f"stopped_epoch {stop.stopped_epoch}")
    print(f"best_model_score {best.best_model_score:.8f}")
    print(f"best_model_name {best.best_model_path.rsplit('/')[-1]}")
    print(f"global_step {trainer.global_step}")

    with open(f"{trainer.logger.log_dir}/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    print("columns", *sorted(rows[0]))
    for name in ("val_loss", "train_loss_step", "train_loss_epoch", "lr-Adam"):
        print(name, *(f"{float(row[name]):.8f} @{row['step']}" for row in rows if row[name]))

    again = Model.load_from_checkpoint(best.best_model_path)
    print(f"lr {again.hparams.lr:.8f}")
    metrics = trainer.validate(again, DataLoader(val, batch_size=16), verbose=False)
    print(f"validate {metrics[0]['val_loss']:.8f}")


if __name__ == "__main__":
    main(sys.argv[1])
