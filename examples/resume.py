"""A run that is cut in two equals the run that was not: bit for bit, wherever it is cut.

A run of four epochs leaves a checkpoint after every half epoch. From each of them, a new model in a new trainer, started
from another seed, goes on to the end. The backbone is thawed at epoch 2, between the checkpoints.

    python examples/resume.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from headstart import LightningModule, Trainer, seed_everything
from headstart.callbacks import BackboneFinetuning, ModelCheckpoint

NUM_BATCHES, NUM_EPOCHS = 56, 4


class DigitNet(LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return cross_entropy(self.head(self.backbone(x)), y)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad])
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=1e-2, total_steps=NUM_EPOCHS * NUM_BATCHES
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


digits = load_digits()
pixels = torch.tensor(digits.data, dtype=torch.float32)[: 32 * NUM_BATCHES] / 16  # (1792, 64)
data = TensorDataset(pixels, torch.tensor(digits.target)[: 32 * NUM_BATCHES])


def train(folder: str, *, seed: int, checkpoint: Path | None = None) -> tuple[DigitNet, Trainer]:
    """Train to the end, from the start or from a checkpoint."""
    seed_everything(seed)
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=NUM_BATCHES // 2, save_top_k=-1)
    trainer = Trainer(
        max_epochs=NUM_EPOCHS, callbacks=[BackboneFinetuning(2, train_bn=False), saving], accelerator="cpu",
        logger=False, enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    model = DigitNet()
    trainer.fit(model, DataLoader(data, batch_size=32, shuffle=True), ckpt_path=checkpoint)
    return model, trainer


def tensors(model: DigitNet, trainer: Trainer) -> list[torch.Tensor]:
    """Give all that was learned: weights, buffers, and the optimizer's moments."""
    moments = trainer.optimizers[0].state_dict()["state"].values()
    return [*model.state_dict().values(), *(value for state in moments for value in state.values())]


with tempfile.TemporaryDirectory() as folder:
    uncut = tensors(*train(folder, seed=0))
    largest = 0.0
    for cut in range(1, 2 * NUM_EPOCHS):
        checkpoint = Path(folder, f"step={cut * NUM_BATCHES // 2}.ckpt")
        resumed = tensors(*train(folder, seed=cut, checkpoint=checkpoint))
        difference = max(float((a - b).abs().max()) for a, b in zip(uncut, resumed, strict=True))
        print(f"cut after epoch {cut / 2}: largest difference {difference}")
        largest = max(largest, difference)
print(f"largest difference of all: {largest}")
