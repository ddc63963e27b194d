"""Odd moments and plausible mistakes, each found by trying it."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import SWALR
from torch.utils.data import DataLoader, TensorDataset

from headstart import Callback, LightningModule, Trainer
from headstart.callbacks import BackboneFinetuning
from headstart.errors import CheckpointError, MisconfigurationError


class Net(LightningModule):
    def __init__(self, backbone=None):
        super().__init__()
        torch.manual_seed(1)
        self.backbone = backbone or nn.Sequential(nn.Linear(4, 8), nn.Dropout())
        self.head = nn.Linear(8, 2)

    def training_step(self, batch, batch_idx):
        return self.head(self.backbone(batch[0])).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


def loader():
    data = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(data), batch_size=4, shuffle=True)


def run(module, *callbacks, max_epochs=3, **kwargs):
    trainer = Trainer(
        max_epochs=max_epochs, callbacks=list(callbacks), accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader(), loader(), **kwargs)
    return trainer


def saving_at(hook, path, *, epoch=0):
    def save(self, trainer, *rest):
        if trainer.current_epoch == epoch and not trainer.sanity_checking:
            trainer.save_checkpoint(path)

    return type("Saver", (Callback,), {hook: save})()


@pytest.mark.parametrize(
    "hook", ["on_validation_start", "on_validation_batch_end", "on_validation_epoch_end", "on_validation_end"]
)
def test_a_checkpoint_from_within_a_validation_resumes_bit_for_bit(tmp_path, hook):
    torch.manual_seed(5)
    uncut = Net()
    torch.manual_seed(7)
    run(uncut, saving_at(hook, tmp_path / "a.ckpt"))
    resumed = Net()
    torch.manual_seed(99)
    run(resumed, ckpt_path=tmp_path / "a.ckpt")
    for name, value in uncut.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "run.ckpt"
    run(Net(), max_epochs=1).save_checkpoint(path)
    return path


def test_an_optimizer_of_another_class_is_an_error_that_says_so(checkpoint):
    class WithAdam(Net):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    with pytest.raises(CheckpointError, match=r"another class than Adam.*'betas'"):
        run(WithAdam(), ckpt_path=checkpoint)


def test_parameters_that_the_checkpoint_does_not_know_are_named(checkpoint):
    module = Net()
    module.extra = nn.Linear(2, 2)
    module.strict_loading = False
    with pytest.warns(UserWarning, match=r"does not know extra\.bias, extra\.weight"):
        run(module, ckpt_path=checkpoint)


def test_a_resume_with_nothing_left_to_train_says_so(checkpoint, capsys):
    run(Net(), max_epochs=1, ckpt_path=checkpoint)
    assert "Nothing is left to train: 1 epoch and 3 steps" in capsys.readouterr().err


def test_swalr_runs_through_an_unfreezing():
    class WithSwalr(Net):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [SWALR(optimizer, 0.05, anneal_epochs=4)]

    trainer = run(WithSwalr(), BackboneFinetuning(2, train_bn=False))
    head, backbone = trainer.optimizers[0].param_groups
    assert backbone["swa_lr"] == pytest.approx(head["swa_lr"] / 10)


def test_a_frozen_lazy_batch_norm_is_made_at_its_first_batch():
    module = Net(nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d()))
    run(module, BackboneFinetuning(1, train_bn=False), max_epochs=2)
    assert module.backbone[1].running_mean.abs().sum() > 0


def test_a_loss_without_gradient_says_why():
    class Detached(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx).detach()

    with pytest.raises(MisconfigurationError, match="it was detached"):
        run(Detached())

    class Frozen(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(MisconfigurationError, match="every parameter of the module is frozen"):
        run(Frozen().requires_grad_(False))
