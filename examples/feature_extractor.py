"""One LightningModule as the feature extractor of another: an autoencoder, then a classifier of its codes.

The autoencoder learns to take noise out of 1,400 handwritten digits, and sees none of their labels. The classifier learns
from 100 labels, on the frozen encoder of the checkpoint.

    python examples/feature_extractor.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

from headstart import LightningModule, Trainer, seed_everything


class AutoEncoder(LightningModule):
    def __init__(self, code_size: int = 32):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, code_size))
        self.decoder = nn.Sequential(nn.Linear(code_size, 128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, x):
        return self.encoder(x)

    def training_step(self, batch, batch_idx):
        [x] = batch
        loss = mse_loss(self.decoder(self(x + 0.3 * torch.randn_like(x))), x)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class DigitClassifier(LightningModule):
    def __init__(self, checkpoint: Path):
        super().__init__()
        self.feature_extractor = AutoEncoder.load_from_checkpoint(checkpoint)
        self.feature_extractor.freeze()
        self.classifier = nn.Linear(self.feature_extractor.hparams.code_size, 10)

    def forward(self, x):
        return self.classifier(self.feature_extractor(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return cross_entropy(self(x), y)

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.log("test_accuracy", (self(x).argmax(dim=1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.classifier.parameters(), lr=1e-2)


seed_everything(0)
digits = load_digits()
pixels = torch.tensor(digits.data, dtype=torch.float32) / 16  # (1797, 64)
labels = torch.tensor(digits.target)
quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False,
         "enable_progress_bar": False}  # fmt: skip

with tempfile.TemporaryDirectory() as folder:
    checkpoint = Path(folder, "autoencoder.ckpt")
    pretraining = Trainer(max_epochs=20, **quiet)
    pretraining.fit(AutoEncoder(), DataLoader(TensorDataset(pixels[:1400]), batch_size=64, shuffle=True))
    pretraining.save_checkpoint(checkpoint)
    print(f"reconstruction error: {pretraining.callback_metrics['train_loss']:.4f}")
    model = DigitClassifier(checkpoint)

trainer = Trainer(max_epochs=40, **quiet)
trainer.fit(model, DataLoader(TensorDataset(pixels[:100], labels[:100]), batch_size=20, shuffle=True))
[result] = trainer.test(
    model, DataLoader(TensorDataset(pixels[1400:], labels[1400:]), batch_size=100), verbose=False
)
print(f"test accuracy: {result['test_accuracy']:.3f}")
