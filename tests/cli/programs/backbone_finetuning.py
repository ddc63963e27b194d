"""`BackboneFinetuning`: the head alone for two epochs, then the backbone too, at a rate that doubles."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks.finetuning import BackboneFinetuning
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh())
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.backbone(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def on_train_epoch_end(self):
        rates = " ".join(f"{group['lr']:.8f}" for group in self.trainer.optimizers[0].param_groups)
        print(f"epoch_{self.current_epoch} {rates} {self.trainer.callback_metrics['loss']:.8f}")

    def configure_optimizers(self):
        # Only what trains: the callback brings the rest.
        optimizer = torch.optim.SGD(
            filter(lambda p: p.requires_grad, self.parameters()), lr=0.1, momentum=0.9
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5),
        }


if __name__ == "__main__":
    pl.seed_everything(1, workers=True)
    x = torch.randn(120, 8)
    y = (x[:, :3]).argmax(1)
    model = Model()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=6,
        callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=2, backbone_initial_ratio_lr=0.1)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(x, y), batch_size=20, shuffle=True))
    print(f"backbone {model.backbone[0].weight.abs().sum():.8f}")
    print(f"global_step {trainer.global_step}")
