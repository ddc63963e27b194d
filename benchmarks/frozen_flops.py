"""Count what a training step costs while the backbone is frozen: FLOPs an image of ResNet-50 at 224 px.

Counted by torch's `FlopCounterMode` over one step: forward and backward (a multiplication and an addition are two).
Beside it, how many of the batch norms' running statistics that step moved. The weights are random: they do not change
the count. With `--peer PYTHON`, an interpreter that has pytorch-lightning 2.x counts its own callback in the same run.

    python benchmarks/frozen_flops.py [--peer /path/to/python] [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import subprocess
import tempfile
import warnings

BATCH_SIZE = 2
NUM_CLASSES = 10
SETUPS = {
    "by hand": "plain PyTorch: backbone frozen, in eval mode",
    "features": "plain PyTorch: head alone, on stored features",
    "frozen": "BackboneFinetuning(train_bn=False)",
    "default": "BackboneFinetuning(), train_bn=True",
    "full": "no callback: everything trains",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the FLOPs of a step with a frozen backbone.")
    parser.add_argument("--peer", help="a Python interpreter that has pytorch-lightning 2.x and torchvision")
    parser.add_argument("--quick", action="store_true", help="ResNet-18 at 32 px, to see that it runs")
    parser.add_argument("--worker", choices=["pytorch_lightning"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    architecture, size = ("resnet18", 32) if arguments.quick else ("resnet50", 224)
    if arguments.worker:
        print(json.dumps(count_library(arguments.worker, architecture, size)))
        return
    rows = [
        ("torch", "by hand", *count_by_hand(architecture, size)),
        ("torch", "features", *count_on_features(architecture)),
        *count_library("headstart", architecture, size),
    ]
    if arguments.peer:
        command = [arguments.peer, __file__, "--worker", "pytorch_lightning"]
        command += ["--quick"] if arguments.quick else []
        rows += json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    frozen = rows[0][2]
    print(f"{architecture} at {size} px, {NUM_CLASSES} classes")
    print(f"{'library':<20}{'set-up':<48}{'GFLOP an image':>15}{'ratio':>8}{'statistics moved':>18}")
    for library, setup, flops, moved in rows:
        print(f"{library:<20}{SETUPS[setup]:<48}{flops / 1e9:>15.5f}{flops / frozen:>8.2f}{moved:>18}")


def count_by_hand(architecture: str, size: int) -> tuple[float, str]:
    from torch import nn

    backbone, width = new_backbone(architecture)
    backbone.requires_grad_(False).eval()
    model = nn.Sequential(backbone, nn.Linear(width, NUM_CLASSES))
    return count(model, lambda: step(model, *new_batch(size)))


def count_on_features(architecture: str) -> tuple[float, str]:
    import torch
    from torch import nn

    head = nn.Linear(new_backbone(architecture)[1], NUM_CLASSES)
    features = torch.randn(BATCH_SIZE, head.in_features)
    return count(head, lambda: step(head, features, torch.zeros(BATCH_SIZE, dtype=torch.long)))


def step(model, inputs, targets) -> None:
    from torch.nn import functional

    functional.cross_entropy(model(inputs), targets).backward()


def count_library(library: str, architecture: str, size: int) -> list[tuple[str, str, float, str]]:
    return [
        (library, setup, *count_trainer(library, setup, architecture, size))
        for setup in ("frozen", "default", "full")
    ]


def count_trainer(library: str, setup: str, architecture: str, size: int) -> tuple[float, str]:
    """Fit one batch, with the library's own callback."""
    import torch
    from torch import nn
    from torch.nn import functional

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    package = __import__(library)
    callbacks = __import__(f"{library}.callbacks", fromlist=["BackboneFinetuning"])
    settings = {"frozen": {"train_bn": False}, "default": {}}

    class Net(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.backbone, width = new_backbone(architecture)
            self.head = nn.Linear(width, NUM_CLASSES)

        def training_step(self, batch, batch_idx):
            images, targets = batch
            return functional.cross_entropy(self.head(self.backbone(images)), targets)

        def configure_optimizers(self):
            trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return torch.optim.SGD(trainable, lr=0.01)

    model = Net()
    with tempfile.TemporaryDirectory() as directory:
        trainer = package.Trainer(
            # The callback thaws the backbone at epoch 10; only one step is taken.
            max_epochs=20,
            max_steps=1,
            accelerator="cpu",
            default_root_dir=directory,
            callbacks=[callbacks.BackboneFinetuning(**settings[setup])] if setup in settings else [],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = torch.utils.data.DataLoader([new_batch(size)], batch_size=None)
        with contextlib.redirect_stdout(io.StringIO()):  # what the trainers say
            return count(model, lambda: trainer.fit(model, data))


def count(model, run) -> tuple[float, str]:
    """FLOPs an image of `run`, and how many of the batch norms' running statistics it moved."""
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.utils.flop_counter import FlopCounterMode

    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [norm.running_mean.clone() for norm in norms]
    with FlopCounterMode(display=False) as counter:
        run()
    moved = sum(not old.equal(norm.running_mean) for old, norm in zip(before, norms, strict=True))
    return counter.get_total_flops() / BATCH_SIZE, f"{moved} of {len(norms)}"


def new_backbone(architecture: str):
    """A ResNet without its last layer, and the width of its features."""
    import torchvision
    from torch import nn

    backbone = getattr(torchvision.models, architecture)(weights=None)
    width = backbone.fc.in_features
    backbone.fc = nn.Identity()
    return backbone, width


def new_batch(size: int):
    import torch

    return torch.randn(BATCH_SIZE, 3, size, size), torch.zeros(BATCH_SIZE, dtype=torch.long)


if __name__ == "__main__":
    main()
