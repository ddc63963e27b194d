"""A job of several processes that is killed: `torchrun ... process_job.py FOLDER [FAULT]`; what it learned goes to `FOLDER/final.pt`."""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from headstart import Callback, LightningModule, Trainer, seed_everything
from headstart.callbacks import BackboneFinetuning, ModelCheckpoint


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        loss = cross_entropy(self.head(self.backbone(batch[0])), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(
            [each for each in self.parameters() if each.requires_grad], lr=0.05, momentum=0.9
        )


class Fault(Callback):
    """Kills one process in the sixth step of the first attempt, or waits in it for a signal."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def on_before_backward(self, trainer, pl_module, loss):
        is_first_attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if trainer.global_step == 5 and is_first_attempt:
            if self.kind == "kill" and trainer.global_rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "raise" and trainer.global_rank == 1:
                raise RuntimeError("a fault of one process")
            if self.kind == "wait":
                Path(trainer.default_root_dir, f"waits{trainer.global_rank}").touch()
                time.sleep(3)


def main():
    folder, *kind = sys.argv[1:]
    torch.set_num_threads(1)
    seed_everything(1, verbose=False)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(28, 6, generator=generator)
    loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=4, shuffle=True)
    saves = ModelCheckpoint(Path(folder) / "checkpoints", save_last=True, every_n_train_steps=2, save_top_k=0)
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, reuse_frozen="exact",
        callbacks=[BackboneFinetuning(1, train_bn=True), saves, Fault(kind[0] if kind else "none")],
    )  # fmt: skip
    module = Net()
    trainer.fit(module, loader, ckpt_path="last")
    if trainer.is_global_zero:
        torch.save(
            {"state": module.state_dict(), "loss": float(trainer.callback_metrics["loss"])},
            f"{folder}/final.pt",
        )


if __name__ == "__main__":
    main()
