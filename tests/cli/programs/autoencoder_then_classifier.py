"""A LightningModule as the feature extractor of another: an autoencoder, saved, then a classifier on its codes."""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def pictures(count):
    """Light squares in one of four corners of an 8x8 picture, in noise; the corner is the class."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(4, (count,), generator=generator)
    images = torch.randn(count, 1, 8, 8, generator=generator) * 0.3
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[0, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 1.0
    return TensorDataset(images, labels)


class AutoEncoder(pl.LightningModule):
    def __init__(self, width=16, lr=1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, width))
        self.decoder = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 64))

    def forward(self, x):
        return self.encoder(x)

    def training_step(self, batch, batch_idx):
        x, _ = batch
        loss = nn.functional.mse_loss(self.decoder(self.encoder(x)), x.flatten(1))
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


class Classifier(pl.LightningModule):
    def __init__(self, path):
        super().__init__()
        self.feature_extractor = AutoEncoder.load_from_checkpoint(path)
        self.feature_extractor.freeze()
        self.classifier = nn.Linear(self.feature_extractor.hparams["width"], 4)

    def forward(self, x):
        return self.classifier(self.feature_extractor(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", nn.functional.cross_entropy(logits, y), prog_bar=True)
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def main(out):
    pl.seed_everything(7)
    data = pictures(256)
    train, val = torch.utils.data.Subset(data, range(192)), torch.utils.data.Subset(data, range(192, 256))
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }

    keeper = ModelCheckpoint(dirpath=out, filename="autoencoder")
    trainer = pl.Trainer(max_epochs=4, callbacks=keeper, **quiet)
    trainer.fit(AutoEncoder(), DataLoader(train, batch_size=32, shuffle=True))
    print(f"train_loss {trainer.callback_metrics['train_loss']:.8f}")

    model = Classifier(keeper.best_model_path)
    before = [p.clone() for p in model.feature_extractor.parameters()]
    trainer = pl.Trainer(max_epochs=3, enable_checkpointing=False, **quiet)
    trainer.fit(model, DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, batch_size=64))
    assert all(torch.equal(a, b) for a, b in zip(before, model.feature_extractor.parameters(), strict=True))
    print(f"val_loss {trainer.callback_metrics['val_loss']:.8f}")
    print(f"val_acc {trainer.callback_metrics['val_acc']:.8f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
