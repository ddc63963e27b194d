"""Settings that make no sense are answered: what was received, what was expected, what to do."""

import pytest
import torch

from headstart import Callback, Trainer
from headstart.callbacks import ModelCheckpoint, ModelSummary, ProgressBar, RichProgressBar, Timer
from headstart.errors import MisconfigurationError, UnknownArgumentError
from headstart.loggers import CSVLogger


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_epochs": -2}, "max_epochs is -2; expected -1 .* or more"),
        ({"max_steps": -2}, "max_steps is -2; expected -1 .* or more"),
        ({"num_sanity_val_steps": -2}, "num_sanity_val_steps is -2; expected -1"),
        (
            {"limit_train_batches": 1.5},
            r"limit_train_batches is 1.5; expected a fraction .* number of batches",
        ),
        ({"limit_val_batches": -1}, "limit_val_batches is -1; expected a fraction"),
        ({"limit_test_batches": -0.1}, "limit_test_batches is -0.1; expected a fraction"),
        ({"limit_predict_batches": 2.0}, "limit_predict_batches is 2.0; expected a fraction"),
        ({"overfit_batches": -1}, "overfit_batches is -1; expected a fraction"),
        ({"val_check_interval": 1.5}, "val_check_interval is 1.5; expected a fraction .* number of batches"),
        ({"val_check_interval": 0}, "val_check_interval is 0; expected a fraction"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches is 0; expected 1 or more"),
        (
            {"gradient_clip_algorithm": "norms"},
            "gradient_clip_algorithm is 'norms'; expected 'norm' or 'value'",
        ),
        (
            {"strategy": "fsdpp"},
            "strategy is 'fsdpp'; expected one of auto, .*Did you mean 'fsdp'",
        ),
        (
            {"num_nodes": 2},
            "num_nodes is 2, and torchrun did not start this process: run `torchrun --nnodes=2",
        ),
        ({"accelerator": "cup"}, "accelerator is 'cup'; expected one of auto, cpu, .*Did you mean 'cpu'"),
        ({"num_nodes": 0}, "num_nodes is 0; expected 1 or more"),
        ({"devices": 0}, "devices is 0; expected 1 or more, or -1 for all"),
        ({"devices": "two"}, "devices is 'two'; expected 'auto', how many"),
        ({"precision": "bf16-mix"}, "precision is 'bf16-mix'; expected one of .*Did you mean 'bf16-mixed'"),
        ({"max_time": "8 hours"}, "'8 hours'; expected a time such as 90s, 10m, 1h, or DD:HH:MM:SS"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(setting, message):
    with pytest.raises(MisconfigurationError, match=message):
        Trainer(**{"accelerator": "cpu", "logger": False, **setting})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_accelerator_that_is_not_there_is_named():
    with pytest.raises(MisconfigurationError, match=r"'cuda', and torch finds no CUDA device. Use 'auto'"):
        Trainer(accelerator="cuda")


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is such a device"
)
@pytest.mark.parametrize("accelerator", ["gpu", "mps"])
def test_no_gpu_is_an_error_and_no_silent_cpu(accelerator):
    with pytest.raises(MisconfigurationError, match=f"'{accelerator}', and torch finds no such device"):
        Trainer(accelerator=accelerator)


@pytest.mark.parametrize("devices", ["auto", 1, "1", -1, [0]])
def test_one_device_may_be_written_in_several_ways(devices):
    trainer = Trainer(accelerator="cpu", devices=devices, logger=False)
    assert trainer.strategy.device == torch.device("cpu")


def test_an_unknown_argument_is_answered_with_all_that_are_known():
    with pytest.raises(UnknownArgumentError, match=r"'gpus'.* It takes: accelerator, strategy, devices"):
        Trainer(gpus=1)
    with pytest.raises(TypeError):  # what code written for the field catches
        Trainer(gpus=1)


# ---- callbacks


def test_one_callback_needs_no_list():
    callback = Callback()
    assert callback in Trainer(accelerator="cpu", logger=False, callbacks=callback).callbacks


def test_something_that_is_no_callback_is_refused():
    with pytest.raises(TypeError, match="callbacks received type; expected Callback objects"):
        Trainer(accelerator="cpu", logger=False, callbacks=[ModelCheckpoint])


def test_the_defaults_are_a_bar_a_summary_and_a_checkpoint_and_each_can_be_switched_off(quiet_trainer):
    kinds = [type(each) for each in Trainer(accelerator="cpu", logger=False).callbacks]
    assert kinds == [RichProgressBar, ModelSummary, ModelCheckpoint]
    assert quiet_trainer().callbacks == []


def test_a_given_callback_takes_the_default_s_place():
    own = [ModelCheckpoint(save_last=True), ProgressBar(), ModelSummary(max_depth=2)]
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=own)
    assert sorted(trainer.callbacks, key=id) == sorted(own, key=id)


def test_checkpoints_come_last(quiet_trainer):
    last, first = ModelCheckpoint(), Callback()
    trainer = quiet_trainer(enable_checkpointing=True, callbacks=[last, first])
    assert trainer.callbacks == [first, last]
    assert trainer.checkpoint_callback is last


def test_a_checkpoint_that_is_not_enabled_is_refused(quiet_trainer):
    with pytest.raises(
        MisconfigurationError, match=r"enable_checkpointing=False.*ModelCheckpoint. Choose one"
    ):
        quiet_trainer(callbacks=[ModelCheckpoint()])


def test_two_callbacks_that_would_share_their_state_are_refused(quiet_trainer):
    with pytest.raises(MisconfigurationError, match="state_key 'Timer'.*Override the property state_key"):
        quiet_trainer(callbacks=[Timer(), Timer()])


def test_max_time_adds_a_timer(quiet_trainer):
    (timer,) = quiet_trainer(max_time={"hours": 2}).callbacks
    assert timer.time_remaining() == 7200


def test_a_given_timer_stays_and_max_time_says_that_it_has_no_effect(quiet_trainer):
    own = Timer("00:08:00:00")
    with pytest.warns(UserWarning, match="max_time='00:00:00:01' has no effect: callbacks holds a Timer"):
        trainer = quiet_trainer(max_time="00:00:00:01", callbacks=[own])
    assert trainer.callbacks == [own]


# ---- loggers


def test_loggers_are_none_one_or_several(quiet_trainer, tmp_path):
    one, two = CSVLogger(tmp_path), CSVLogger(tmp_path)
    assert (quiet_trainer().logger, quiet_trainer().loggers) == (None, [])
    assert quiet_trainer(logger=one).loggers == [one]
    several = quiet_trainer(logger=[one, two])
    assert (several.logger, several.loggers) == (one, [one, two])


def test_a_trial_run_neither_logs_nor_saves(quiet_trainer, tmp_path):
    trainer = quiet_trainer(
        fast_dev_run=True, logger=True, enable_checkpointing=True, callbacks=[ModelCheckpoint()]
    )
    assert (trainer.loggers, trainer.callbacks) == ([], [])
