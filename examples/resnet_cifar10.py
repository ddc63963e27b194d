"""A torchvision ResNet, pretrained on ImageNet, to the ten classes of CIFAR-10: the backbone frozen, a new head.

Weights and CIFAR-10 are fetched by torchvision. What cannot be fetched is replaced, and the program says so: weights by
random ones, CIFAR-10 by handwritten digits (scikit-learn's), enlarged to the same shape, 32 x 32 pixels and 3 channels.

    python examples/resnet_cifar10.py --architecture resnet50
"""

from __future__ import annotations

import argparse
from urllib.error import URLError

import torch
import torchvision
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader, TensorDataset

from headstart import LightningModule, Trainer, seed_everything


class ImagenetTransferLearning(LightningModule):
    def __init__(self, architecture: str = "resnet18", num_target_classes: int = 10):
        super().__init__()
        try:
            backbone = torchvision.models.get_model(architecture, weights="DEFAULT")
        except URLError as error:
            print(
                f"The weights of {architecture} cannot be fetched ({error.reason}): RANDOM weights instead."
            )
            backbone = torchvision.models.get_model(architecture, weights=None)
        self.feature_extractor = nn.Sequential(*list(backbone.children())[:-1])  # all but `fc`
        self.feature_extractor.requires_grad_(False)
        self.classifier = nn.Linear(backbone.fc.in_features, num_target_classes)

    def forward(self, x):
        representations = self.feature_extractor(x).flatten(1)  # (B, 512) or (B, 2048)
        return self.classifier(representations)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return cross_entropy(self(x), y)

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.log("test_accuracy", (self(x).argmax(dim=1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.classifier.parameters(), lr=1e-2)


def load_images(root: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Give 600 images (N, 3, 32, 32), normalised as ImageNet's, and their labels."""
    try:
        cifar10 = torchvision.datasets.CIFAR10(root, download=True)
        images = torch.from_numpy(cifar10.data[:600]).permute(0, 3, 1, 2) / 255
        labels = torch.tensor(cifar10.targets[:600])
    except (URLError, RuntimeError) as error:
        print(f"CIFAR-10 cannot be fetched ({error}): handwritten DIGITS, enlarged, instead.")
        digits = load_digits()
        small = torch.tensor(digits.images[:600], dtype=torch.float32)[:, None] / 16  # (N, 1, 8, 8)
        images = interpolate(small, size=32, mode="bilinear").expand(-1, 3, -1, -1)
        labels = torch.tensor(digits.target[:600])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean[:, None, None]) / std[:, None, None], labels


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--architecture", choices=["resnet18", "resnet50"], default="resnet18")
parser.add_argument("--data", default="cifar10-data", help="the folder to which CIFAR-10 is fetched")
arguments = parser.parse_args()

seed_everything(0)
images, labels = load_images(arguments.data)
model = ImagenetTransferLearning(arguments.architecture)
trainer = Trainer(
    max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
)
trainer.fit(model, DataLoader(TensorDataset(images[:500], labels[:500]), batch_size=20, shuffle=True))
[result] = trainer.test(
    model, DataLoader(TensorDataset(images[500:], labels[500:]), batch_size=100), verbose=False
)
print(f"test accuracy: {result['test_accuracy']:.3f}")
