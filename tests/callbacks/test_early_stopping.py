"""When a run ends because a value stopped improving."""

import math

import pytest

from headstart.callbacks import EarlyStopping
from headstart.callbacks.early_stopping import StoppingRule
from headstart.errors import MisconfigurationError, UnknownNameError

nan, inf = math.nan, math.inf


def stops_at(values, **settings):
    """The index of the value at which the rule says stop, or None."""
    rule = StoppingRule(**settings)
    return next((index for index, value in enumerate(values) if rule.reason_to_stop(value)), None)


# Where PyTorch Lightning 2.6.6 stopped with the same arguments, measured.
@pytest.mark.parametrize(
    ("values", "settings", "expected"),
    [
        ([5, 4, 3, 3, 3, 3, 3, 3], {}, 5),
        ([5, 4, 3, 3, 3, 3, 3, 3], {"patience": 1}, 3),
        ([5, 4, 3, 2, 1, 0, 0, 0], {"patience": 0}, 6),
        ([5, 4.9, 4.8, 4.7, 4.6, 4.5, 4.4, 4.3], {"min_delta": 0.15, "patience": 2}, None),
        ([5, 4, nan, 2, 1, 1, 1, 1], {}, 2),
        ([5, 4, inf, 2, 1, 1, 1, 1], {}, 2),
        ([5, 4, nan, 2, 1, 1, 1, 1], {"check_finite": False}, 7),
        ([5, 4, 3, 2, 1, 1, 1, 1], {"stopping_threshold": 3}, 3),
        ([5, 6, 7, 8, 9, 9, 9], {"divergence_threshold": 7}, 3),
        ([1, 2, 3, 4, 4, 4, 4, 4], {"mode": "max", "patience": 2}, 5),
    ],
)
def test_the_rule_stops_where_the_field_does(values, settings, expected):
    assert stops_at(values, **settings) == expected


def test_the_rule_says_why():
    rule = StoppingRule(patience=1, stopping_threshold=0.1, divergence_threshold=9.0)
    assert rule.reason_to_stop(1.0) is None
    assert rule.reason_to_stop(2.0) == "no improvement in 1 check, best 1"
    assert rule.reason_to_stop(0.01) == "0.01 has reached the stopping threshold 0.1"
    assert rule.reason_to_stop(10.0) == "10 has passed the divergence threshold 9"
    assert rule.reason_to_stop(nan) == "the value is nan, which is not finite"


def test_a_run_stops_when_validation_stops_improving(fit, scripted):
    stopping = EarlyStopping("val_loss", patience=2)
    trainer = fit(scripted([5, 4, 3, 3, 3, 3]), stopping, max_epochs=6)
    assert (trainer.current_epoch, trainer.global_step) == (5, 20)
    assert (stopping.stopped_epoch, stopping.wait_count, float(stopping.best_score)) == (4, 2, 3.0)
    assert stopping.stopping_reason_message == "val_loss: no improvement in 2 checks, best 3"


def test_the_run_says_why_it_ends(fit, scripted, capsys):
    fit(scripted([1, 1, 1]), EarlyStopping("val_loss", patience=1))
    assert (
        "EarlyStopping: val_loss: no improvement in 1 check, best 1. The run ends." in capsys.readouterr().err
    )


def test_verbose_says_every_improvement(fit, scripted, capsys):
    fit(scripted([2, 1]), EarlyStopping("val_loss", verbose=True), max_epochs=2)
    assert "val_loss improved from 2 to 1" in capsys.readouterr().err


def test_min_epochs_are_kept(fit, scripted):
    trainer = fit(scripted([1]), EarlyStopping("val_loss", patience=1), min_epochs=4)
    assert trainer.current_epoch == 4


def test_a_training_value_is_watched_at_the_end_of_the_epoch(fit, scripted):
    stopping = EarlyStopping("train_loss_epoch", patience=1, min_delta=100.0)
    assert fit(scripted(), stopping).current_epoch == 2


def test_a_module_without_validation_is_checked_each_epoch(fit, unvalidated):
    stopping = EarlyStopping("train_loss", patience=1, min_delta=100.0)
    assert fit(unvalidated(), stopping, check_val_every_n_epoch=2).current_epoch == 2


def test_a_value_that_the_module_logs_at_the_epochs_end_is_seen(fit, scripted):
    class Late(scripted):
        def on_train_epoch_end(self):
            self.log("late", 1.0)

    assert fit(Late(), EarlyStopping("late", patience=1)).current_epoch == 2


@pytest.mark.parametrize(("interval", "steps"), [(0.5, 4), (1.0, 8)])
def test_each_validation_is_a_check(fit, scripted, interval, steps):
    trainer = fit(scripted([1]), EarlyStopping("val_loss", patience=1), val_check_interval=interval)
    assert trainer.global_step == steps


def test_validation_every_other_epoch_is_checked_every_other_epoch(fit, scripted):
    trainer = fit(scripted([1]), EarlyStopping("val_loss", patience=1), check_val_every_n_epoch=2)
    assert trainer.current_epoch == 4


def test_a_name_that_was_never_logged_is_answered_with_those_that_were(fit, scripted):
    message = r"EarlyStopping\(monitor='val_los'\).*Did you mean 'val_loss'\?.*train_loss.*val_loss"
    with pytest.raises(UnknownNameError, match=message):
        fit(scripted(), EarlyStopping("val_los"))


def test_an_unknown_name_is_no_error_without_strict(fit, scripted):
    stopping = EarlyStopping("val_los", strict=False)
    assert fit(scripted(), stopping, max_epochs=2).current_epoch == 2
    assert stopping.wait_count == 0


def test_a_mode_that_is_none_is_refused():
    with pytest.raises(MisconfigurationError, match="mode='lowest'.*expected 'min'"):
        EarlyStopping("val_loss", mode="lowest")


def test_a_resumed_run_goes_on_counting(fit, scripted, tmp_path):
    losses = [1, 2, 2, 2, 2]
    first = fit(scripted(losses), EarlyStopping("val_loss", patience=3), max_epochs=2)
    first.save_checkpoint(tmp_path / "cut.ckpt")
    stopping = EarlyStopping("val_loss", patience=3)
    trainer = fit(scripted([2]), stopping, ckpt_path=tmp_path / "cut.ckpt")
    assert (trainer.current_epoch, stopping.wait_count, float(stopping.best_score)) == (4, 3, 1.0)


def test_evaluation_alone_is_no_check(fit, scripted):
    stopping = EarlyStopping("val_loss")
    trainer = fit(scripted([1]), stopping, max_epochs=1)
    trainer.validate(verbose=False)
    assert stopping.wait_count == 0


def test_another_module_begins_anew(fit, scripted):
    stopping = EarlyStopping("val_loss", patience=2)
    trainer = fit(scripted([1, 0.5, 0.6, 0.7]), stopping, max_epochs=6)
    assert (trainer.current_epoch, stopping.stopped_epoch) == (4, 3)
    trainer.fit(scripted([5, 4, 3, 2, 1, 0.9]))
    assert (trainer.current_epoch, stopping.stopped_epoch, stopping.stopping_reason_message) == (6, 0, None)
    assert float(stopping.best_score) == pytest.approx(0.9)


def test_a_second_fit_of_the_same_module_goes_on_counting(fit, scripted):
    stopping = EarlyStopping("val_loss", patience=3)
    module = scripted([1, 2, 2, 2, 2])
    trainer = fit(module, stopping, max_epochs=2)
    trainer.max_epochs = 5
    trainer.fit(module)
    assert (trainer.current_epoch, stopping.wait_count, float(stopping.best_score)) == (4, 3, 1.0)
