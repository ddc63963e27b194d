"""What the second processes of these tests do: small real runs, and ways to end them at a chosen moment."""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from headstart import Callback, LightningModule, Trainer, seed_everything
from headstart.callbacks import ModelCheckpoint
from headstart.deferred import Reuse

NUM_SAMPLES, BATCH_SIZE, NUM_EPOCHS = 34, 4, 3  # 9 batches an epoch, the last one short
NUM_STEPS = NUM_EPOCHS * 9


class Samples(Dataset):
    """Small whole numbers, so that a frozen layer of whole numbers gives the same bits in every batch."""

    def __init__(self, num_samples=NUM_SAMPLES, augmented=False):
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randint(-3, 4, (num_samples, 6), generator=generator).float()
        self.y = torch.arange(num_samples) % 3
        self.augmented = augmented

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        if not self.augmented:
            return self.x[index], self.y[index]
        # From every global generator, as augmentation draws.
        noise = 0.1 * torch.randn(6) + 0.01 * random.random() + 0.01 * float(np.random.standard_normal())
        return self.x[index] + noise, self.y[index]


class Net(LightningModule):
    """A frozen layer, and a head with statistics, dropout and a schedule: all that has a state of its own."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(6, 16)
        with torch.no_grad():
            self.backbone.weight.copy_(torch.randint(-2, 3, (16, 6)).float())
            self.backbone.bias.zero_()
        self.backbone.requires_grad_(False).eval()
        self.head = nn.Sequential(
            nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.head(self.backbone(x)), y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self.head(self.backbone(x)), y))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.head.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def make_trainer(folder, *, callbacks=(), saving=True, every=2, features=False, **settings):
    folder = Path(folder)
    own = (
        [ModelCheckpoint(folder / "checkpoints", save_last=True, every_n_train_steps=every)]
        if saving is True
        else []
    )
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    reuse = (
        Reuse(setting="exact", directory=folder / "features", min_gain=0, say=lambda _: None)
        if features
        else False
    )
    if not saving:
        quiet["enable_checkpointing"] = False
    return Trainer(
        **{
            "max_epochs": NUM_EPOCHS, "callbacks": [*callbacks, *own], "reuse_frozen": reuse,
            "default_root_dir": folder, **quiet, **settings,
        }
    )  # fmt: skip


def train(
    folder,
    *,
    kill_at=None,
    augmented=False,
    features=False,
    num_workers=0,
    longest_wait=0,
    callbacks=(),
    net=Net,
    data=None,
    **settings,
):
    """Train from the last checkpoint, where there is one, to the end; write the final weights."""
    torch.set_num_threads(1)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if kill_at is not None:
        kill_within_write(*kill_at)
    seed_everything(3)
    model = net()
    data = data or Samples(augmented=augmented)
    loader = DataLoader(data, BATCH_SIZE, shuffle=True, num_workers=num_workers, timeout=longest_wait)
    trainer = make_trainer(folder, callbacks=callbacks, features=features, **settings)
    (folder / "begun").touch()
    ckpt_path = "last" if trainer.checkpoint_callback else None
    import warnings

    warnings.filterwarnings("ignore", message="ckpt_path='last'")
    trainer.fit(model, loader, DataLoader(Samples(8), 4), ckpt_path=ckpt_path)
    torch.save(
        {"state": model.state_dict(), "epoch_loss": trainer.callback_metrics["loss_epoch"]},
        folder / "final.pt",
    )


def kill_within_write(where, what, number):
    """Let this process kill itself with SIGKILL when, for the `number`-th time, it does `what` with files in `where`.

    `what`: a file is opened for writing ("open"), half a piece of it is written ("write"), it is flushed ("fsync"),
    it gets its final name ("rename"), another one is removed ("remove"). When it happens it is written down.
    """
    left = number

    def moment(kind, path):
        nonlocal left
        path = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if f"/{where}/" not in path or kind != what:
            return False
        left -= 1
        if left >= 0:
            return False
        log = os.open(path.partition(f"/{where}/")[0] + "/moments", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, f"{where} {kind} {path}\n".encode())
        return True

    def die():
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def hook(event, args):
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
            if moment("open", args[0]):
                die()
        elif event in {"os.rename", "os.remove"} and moment(event.removeprefix("os."), args[0]):
            die()

    sys.addaudithook(hook)

    open_before = io.open

    class Halved:
        """A file of which, at the chosen moment, half a piece reaches the disk."""

        def __init__(self, file, path):
            self._file, self._path = file, path

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, piece):
            if moment("write", self._path):
                self._file.write(memoryview(piece).cast("B")[: len(memoryview(piece).cast("B")) // 2])
                self._file.flush()
                die()
            return self._file.write(piece)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

    def opened(path, mode="r", *args, **kwargs):
        file = open_before(path, mode, *args, **kwargs)
        return Halved(file, path) if "w" in mode and isinstance(path, str | os.PathLike) else file

    io.open = opened  # what `Path.open` calls
    fsync = os.fsync

    def slow_fsync(descriptor):
        if moment("fsync", os.readlink(f"/proc/self/fd/{descriptor}")):
            die()
        fsync(descriptor)

    os.fsync = slow_fsync


class SignalsItself(Callback):
    """Sends this process a signal in a hook of a batch."""

    def __init__(self, number, *, batch, hook="on_before_backward", times=1):
        self.number, self.batch, self.hook, self.times = number, batch, hook, times

    def _send(self, trainer, hook):
        if hook == self.hook and trainer.progress.total_batches == self.batch:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)

    def on_before_backward(self, trainer, pl_module, loss):
        self._send(trainer, "on_before_backward")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self._send(trainer, "on_validation_batch_start")
