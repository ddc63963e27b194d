"""A custom `BaseFinetuning` of the 1.x series: old import paths, four arguments, no `super().__init__()`."""

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks.finetuning import BaseFinetuning
from pytorch_lightning.core.lightning import LightningModule
from pytorch_lightning.utilities.seed import seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class MyModel(LightningModule):
    def __init__(self):
        super().__init__()
        self.feature_extractor = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU())
        self.linear = nn.Linear(12, 2)
        for p in self.feature_extractor.parameters():
            p.requires_grad = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.linear(self.feature_extractor(x)), y)
        self.log("train_loss", loss, on_epoch=True, prog_bar=True)
        return loss

    def on_train_epoch_end(self):
        groups = self.trainer.optimizers[0].param_groups
        extractor = self.feature_extractor[0].weight.detach().abs().sum()
        print(f"epoch_{self.current_epoch} {len(groups)} {groups[-1]['lr']:.8f} {extractor:.8f}")

    def configure_optimizers(self):
        return torch.optim.Adam(filter(lambda p: p.requires_grad, self.parameters()), lr=1e-2)


class FeatureExtractorFreezeUnfreeze(BaseFinetuning):
    def __init__(self, unfreeze_at_epoch=10):
        self._unfreeze_at_epoch = unfreeze_at_epoch

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.feature_extractor)

    def finetune_function(self, pl_module, current_epoch, optimizer, optimizer_idx):
        if current_epoch == self._unfreeze_at_epoch:
            assert optimizer_idx == 0
            self.unfreeze_and_add_param_group(
                modules=pl_module.feature_extractor, optimizer=optimizer, train_bn=True
            )


if __name__ == "__main__":
    seed_everything(5)
    x = torch.randn(96, 6)
    y = (x.sum(1) > 0).long()
    model = MyModel()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=4,
        callbacks=FeatureExtractorFreezeUnfreeze(unfreeze_at_epoch=2),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(x, y), batch_size=16))
    print(f"train_loss {trainer.callback_metrics['train_loss_epoch']:.8f}")
