"""Manual optimization: two optimizers that take turns, their schedulers stepped by hand."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Adversaries(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))

    def training_step(self, batch, batch_idx):
        (real,) = batch
        optimizer_g, optimizer_d = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4))
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        score = nn.functional.binary_cross_entropy_with_logits

        self.toggle_optimizer(optimizer_g)
        loss_g = score(self.discriminator(fake), ones)
        optimizer_g.zero_grad()
        self.manual_backward(loss_g)
        self.clip_gradients(optimizer_g, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        optimizer_g.step()
        self.untoggle_optimizer(optimizer_g)

        self.toggle_optimizer(optimizer_d)
        loss_d = score(self.discriminator(real), ones) + score(self.discriminator(fake.detach()), zeros)
        optimizer_d.zero_grad()
        self.manual_backward(loss_d)
        optimizer_d.step()
        self.untoggle_optimizer(optimizer_d)

        self.log_dict({"loss_g": loss_g, "loss_d": loss_d}, prog_bar=True, on_step=False, on_epoch=True)
        if self.trainer.is_last_batch:
            for scheduler in self.lr_schedulers():
                scheduler.step()

    def configure_optimizers(self):
        optimizers = [
            torch.optim.Adam(self.generator.parameters(), lr=0.01, betas=(0.5, 0.999)),
            torch.optim.Adam(self.discriminator.parameters(), lr=0.01, betas=(0.5, 0.999)),
        ]
        return optimizers, [
            torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for optimizer in optimizers
        ]


if __name__ == "__main__":
    pl.seed_everything(4)
    data = TensorDataset(torch.randn(64, 2) * 0.2 + 1.0)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Adversaries(), DataLoader(data, batch_size=16))
    for name in ("loss_g", "loss_d"):
        print(f"{name} {trainer.callback_metrics[name]:.8f}")
    print(f"lr {trainer.optimizers[0].param_groups[0]['lr']:.8f}")
    print(f"global_step {trainer.global_step}")
