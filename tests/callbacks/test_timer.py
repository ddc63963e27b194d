"""`Timer`, on a clock that the training steps themselves move on."""

from datetime import timedelta

import pytest
import torch
from torch.utils.data import DataLoader

from headstart import LightningModule, Trainer
from headstart.callbacks import Timer, timer
from headstart.errors import MisconfigurationError, UnknownNameError


class Clock:
    """Stands still unless somebody moves it on."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timer, "monotonic", clock)
    return clock


class Slow(LightningModule):
    """Takes half a second for a training batch, a tenth for one of validation."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        self.clock.now += 0.5
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.clock.now += 0.125

    def test_step(self, batch, batch_idx):
        self.clock.now += 0.25

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def loader(num_batches=4):
    return DataLoader(torch.zeros(num_batches, 1), batch_size=1)


def make_trainer(tmp_path, *callbacks, **settings):
    settings = {"max_epochs": 5, "num_sanity_val_steps": 0, **settings}
    return Trainer(
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **settings,
    )


@pytest.mark.parametrize(
    "duration",
    ["01:02:03:04", timedelta(days=1, hours=2, minutes=3, seconds=4), {"hours": 26, "seconds": 184}],
)
def test_a_duration_can_be_said_in_three_ways(duration):
    assert Timer(duration).time_remaining() == 86400 + 2 * 3600 + 3 * 60 + 4


@pytest.mark.parametrize("duration", ["8 hours", "08:00", 5, {"hour": 1}, {"hours": "one"}])
def test_another_duration_is_answered_with_the_form_that_is_expected(duration):
    with pytest.raises(MisconfigurationError, match="expected"):
        Timer(duration)


def test_another_interval_is_refused():
    with pytest.raises(MisconfigurationError, match=r"interval='batch'.*'step' or 'epoch'"):
        Timer(interval="batch")


def test_a_stage_that_is_not_measured_is_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'validate'"):
        Timer().time_elapsed("validation")


def test_without_a_duration_nothing_is_left_and_nothing_ends(tmp_path, clock):
    callback = Timer()
    trainer = make_trainer(tmp_path, callback, max_epochs=2)
    trainer.fit(Slow(clock), loader())
    assert trainer.global_step == 8
    assert callback.time_remaining() is None


def test_training_ends_after_the_batch_in_which_the_time_is_up(tmp_path, clock, capsys):
    trainer = make_trainer(tmp_path, Timer("00:00:00:03"))
    trainer.fit(Slow(clock), loader())
    assert trainer.global_step == 6  # 6 x 0.5 s
    assert "Time is up after 0:00:03" in capsys.readouterr().out


def test_with_the_interval_epoch_the_epoch_is_finished(tmp_path, clock):
    trainer = make_trainer(tmp_path, Timer({"seconds": 3}, interval="epoch", verbose=False))
    trainer.fit(Slow(clock), loader())
    assert trainer.global_step == 8


def test_max_time_of_the_trainer_is_a_timer(tmp_path, clock):
    trainer = make_trainer(tmp_path, max_time={"seconds": 1})
    trainer.fit(Slow(clock), loader())
    assert trainer.global_step == 2


def test_each_stage_has_its_own_clock_and_training_includes_its_validation(tmp_path, clock):
    callback = Timer()
    trainer = make_trainer(tmp_path, callback, max_epochs=1, num_sanity_val_steps=1)
    module = Slow(clock)
    trainer.fit(module, loader(4), loader(2))
    trainer.test(module, loader(2), verbose=False)
    assert callback.time_elapsed("sanity_check") == 0.125
    assert callback.time_elapsed("train") == 4 * 0.5 + 2 * 0.125
    assert callback.time_elapsed("validate") == 2 * 0.125
    assert callback.time_elapsed("test") == 2 * 0.25
    assert callback.time_elapsed("predict") == 0
    assert callback.end_time("train") - callback.start_time("train") == callback.time_elapsed("train")


def test_a_resumed_run_goes_on_with_the_clock(tmp_path, clock):
    first = make_trainer(tmp_path, Timer("00:00:00:04"), max_epochs=1)
    first.fit(Slow(clock), loader(4))
    first.save_checkpoint(tmp_path / "half.ckpt")
    clock.now += 1e6  # the time between two runs is not training

    callback = Timer("00:00:00:04")
    second = make_trainer(tmp_path, callback)
    second.fit(Slow(clock), loader(4), ckpt_path=tmp_path / "half.ckpt")
    assert second.global_step == 8
    assert callback.time_elapsed("train") == 4.0


def test_a_resumed_run_whose_time_is_up_does_not_train(tmp_path, clock):
    first = make_trainer(tmp_path, Timer(), max_epochs=1)
    first.fit(Slow(clock), loader(4))
    first.save_checkpoint(tmp_path / "full.ckpt")

    second = make_trainer(tmp_path, Timer("00:00:00:02"))
    second.fit(Slow(clock), loader(4), ckpt_path=tmp_path / "full.ckpt")
    assert second.global_step == 4
