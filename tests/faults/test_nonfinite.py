"""Losses and gradients that are NaN or infinite: said, stopped before the weights see them, or left out."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from headstart import LightningModule
from headstart.callbacks import ModelCheckpoint
from headstart.errors import MisconfigurationError, NonFiniteError

BAD = 21  # the sample that is bad, in batch 5 of 4


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def training_step(self, batch, batch_idx):
        loss = self.layers(batch[0]).square().mean()
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class BadGradient(Net):
    """A finite loss, whose gradient is infinite."""

    def training_step(self, batch, batch_idx):
        loss = self.layers(batch[0].nan_to_num()).square().mean()
        weight = self.layers[0].weight
        return loss + (0 * weight.sum() + (1 if not batch[0].isnan().any() else 0)).abs().sqrt()


def samples(value=float("nan")):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    x[BAD] = value
    return x


def fit(trainer, net, x):
    trainer.fit(net, DataLoader(TensorDataset(x), 4), ckpt_path=None)
    return trainer


def plain(net, batches, epochs=1):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for x in batches:
            optimizer.zero_grad()
            net.layers(x).square().mean().backward()
            optimizer.step()
    return net


def same(one, other):
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_raise_names_the_samples_and_loses_nothing(value, quiet_trainer, tmp_path):
    torch.manual_seed(0)
    net = Net()
    reference = copy.deepcopy(net)
    trainer = quiet_trainer(on_nan="raise", callbacks=[ModelCheckpoint(tmp_path)], enable_checkpointing=True)
    with pytest.raises(
        NonFiniteError,
        match=r"The loss is (nan|inf) in epoch 0, batch 5, after 5 steps; samples 20, 21, 22, 23",
    ):
        fit(trainer, net, samples(value))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 5
    plain(reference, samples().split(4)[:5])
    assert same(net, reference)
    assert all(
        torch.equal(saved["state_dict"][name], value) for name, value in reference.state_dict().items()
    )


def test_skip_is_the_run_without_the_batch_and_is_counted(quiet_trainer, capsys):
    torch.manual_seed(0)
    net = Net()
    reference = plain(copy.deepcopy(net), [*samples().split(4)[:5], *samples().split(4)[6:]], epochs=2)
    trainer = fit(quiet_trainer(on_nan="skip", max_epochs=2), net, samples())
    assert same(net, reference)
    assert trainer.global_step == 18
    assert trainer.skipped_batches == [
        "epoch 0, batch 5, after 5 steps; samples 20, 21, 22, 23: the loss is nan",
        "epoch 1, batch 5, after 14 steps; samples 20, 21, 22, 23: the loss is nan",
    ]
    assert torch.isfinite(trainer.callback_metrics["loss_epoch"])
    assert "on_nan='skip' left out 2 batches:\n  epoch 0, batch 5" in capsys.readouterr().err


def test_what_was_left_out_is_remembered_by_a_resume(quiet_trainer, tmp_path):
    trainer = fit(quiet_trainer(on_nan="skip"), Net(), samples())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = quiet_trainer(on_nan="skip", max_epochs=2)
    again.fit(Net(), DataLoader(TensorDataset(samples()), 4), ckpt_path=tmp_path / "a.ckpt")
    assert len(again.skipped_batches) == 2


@pytest.mark.parametrize("setting", ["raise", "skip"])
def test_a_gradient_that_is_not_finite_is_treated_alike(setting, quiet_trainer):
    net = BadGradient()
    trainer = quiet_trainer(on_nan=setting)
    if setting == "raise":
        with pytest.raises(
            NonFiniteError, match="The norm of the gradients is nan in epoch 0, batch 5, .*samples 20, 21"
        ):
            fit(trainer, net, samples())
    else:
        fit(trainer, net, samples())
        assert trainer.global_step == 9
    assert all(value.isfinite().all() for value in net.state_dict().values())


def test_a_bad_batch_counts_as_nothing_in_its_accumulation_window(quiet_trainer):
    torch.manual_seed(0)
    net = Net()
    reference = copy.deepcopy(net)
    fit(quiet_trainer(on_nan="skip", accumulate_grad_batches=2), net, samples())
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for window in samples().split(8):
        optimizer.zero_grad()
        for x in window.split(4):
            if x.isfinite().all():
                (reference.layers(x).square().mean() / 2).backward()
        optimizer.step()
    assert same(net, reference)


@pytest.mark.parametrize("base", [Net, BadGradient])
@pytest.mark.parametrize("watches", [False, True])
def test_a_schedule_of_steps_does_not_move_at_a_batch_that_is_left_out(base, watches, quiet_trainer):
    class Scheduled(base):
        def training_step(self, batch, batch_idx):
            self.log("watched", 1.0)
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = (
                torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=100)
                if watches
                else torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            )
            return [optimizer], [{"scheduler": schedule, "interval": "step", "monitor": "watched"}]

    trainer = fit(quiet_trainer(on_nan="skip"), Scheduled(), samples())
    assert (trainer.global_step, len(trainer.skipped_batches)) == (9, 1)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 9


def test_by_default_it_is_said_and_changes_nothing(quiet_trainer):
    torch.manual_seed(0)
    net = Net()
    reference = plain(copy.deepcopy(net), samples().split(4))
    with pytest.warns(UserWarning, match="A loss was NaN or infinite, .*on_nan='raise'"):
        trainer = fit(quiet_trainer(log_every_n_steps=4), net, samples())
    assert trainer.global_step == 10
    assert torch.equal(net.layers[0].weight.isnan(), reference.layers[0].weight.isnan())


def test_large_losses_are_no_reason_to_warn(quiet_trainer):
    class Large(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0 + 3e38

    fit(quiet_trainer(), Large(), samples(1.0))


def test_settings_that_cannot_work_are_refused(quiet_trainer):
    class Manual(Net):
        automatic_optimization = False

    with pytest.raises(
        MisconfigurationError,
        match="on_nan is 'skp'; expected 'warn' or 'raise' or 'skip'. Did you mean 'skip'",
    ):
        quiet_trainer(on_nan="skp")
    for settings in ({"on_nan": "skip"}, {"on_out_of_memory": "split"}):
        net = Net()
        net.automatic_optimization = False
        with pytest.raises(MisconfigurationError, match="does not work with manual optimization"):
            fit(quiet_trainer(**settings), net, samples())
