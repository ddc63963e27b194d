"""A finetuning strategy of your own: thaw one layer at each epoch, from the head down, each at half the rate.

A small convolutional network learns the digits 0 to 4; its layers are then finetuned, one after the other, to tell the
digits 5 to 9 apart (gradual unfreezing: Howard and Ruder 2018, section 3.3, https://arxiv.org/abs/1801.06146).

    python examples/custom_finetuning.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from headstart import LightningModule, Trainer, seed_everything
from headstart.callbacks import BaseFinetuning


class DigitNet(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Flatten(), nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Dropout(0.2)),
        )
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        return self.head(self.layers(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return cross_entropy(self(x), y)

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.log("test_accuracy", (self(x).argmax(dim=1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class ThawLayerByLayer(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.layers, train_bn=False)

    def finetune_function(self, pl_module, epoch, optimizer):
        # Epoch 0: the head alone; 1: the last layer; 2: the one below it.
        depth = len(pl_module.layers) - epoch
        if epoch > 0 and depth >= 0:
            head_lr = optimizer.param_groups[0]["lr"]
            self.unfreeze_and_add_param_group(pl_module.layers[depth], optimizer, lr=head_lr / 2**epoch)
        print(f"epoch {epoch}: rates from the head down {[group['lr'] for group in optimizer.param_groups]}")


seed_everything(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # (1797, 1, 8, 8)
labels = torch.tensor(digits.target)
old, new = labels < 5, labels >= 5
train, test = (
    TensorDataset(images[new][:200], labels[new][:200] - 5),
    TensorDataset(images[new][200:], labels[new][200:] - 5),
)
quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False,
         "enable_progress_bar": False}  # fmt: skip

model = DigitNet()
Trainer(max_epochs=3, **quiet).fit(
    model, DataLoader(TensorDataset(images[old], labels[old]), batch_size=32, shuffle=True)
)

trainer = Trainer(max_epochs=5, callbacks=ThawLayerByLayer(), **quiet)
trainer.fit(model, DataLoader(train, batch_size=16, shuffle=True))
[result] = trainer.test(model, DataLoader(test, batch_size=100), verbose=False)
print(f"parameter groups: {len(trainer.optimizers[0].param_groups)}")
print(f"test accuracy: {result['test_accuracy']:.3f}")
