"""What `ModelCheckpoint` saves, when, under which name, and what it removes."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from headstart import Trainer
from headstart.callbacks import ModelCheckpoint
from headstart.callbacks.model_checkpoint import BestFiles
from headstart.errors import MisconfigurationError, UnknownNameError
from headstart.loggers import CSVLogger, Logger

nan = float("nan")


def names(directory):
    """The checkpoints below a directory, sorted."""
    return sorted(str(path.relative_to(directory)) for path in Path(directory).rglob("*.ckpt"))


def load(path):
    return torch.load(path, weights_only=True)


# ---- which files are the best


def test_the_worst_file_goes_when_there_are_too_many():
    best = BestFiles(mode="max", count=2)
    assert [best.add(name, score) for name, score in [("a", 1.0), ("b", 3.0), ("c", 2.0)]] == [
        None,
        None,
        "a",
    ]
    assert (best.best_path, best.worst_path) == ("b", "c")
    assert not best.wants(2.0)
    assert best.wants(2.5)


def test_nan_is_kept_only_while_there_is_nothing_better():
    best = BestFiles(mode="min", count=1)
    assert best.wants(nan)
    best.add("nan", nan)
    assert not best.wants(nan)
    assert best.wants(1000.0)
    assert best.add("number", 1000.0) == "nan"


# ---- names


@pytest.mark.parametrize(
    ("pattern", "values", "settings", "expected"),
    [
        (None, {"epoch": 3, "step": 12}, {}, "epoch=3-step=12.ckpt"),
        (
            "{epoch:03d}-{val_loss:.2f}",
            {"epoch": 3, "val_loss": torch.tensor(0.516)},
            {},
            "epoch=003-val_loss=0.52.ckpt",
        ),
        ("e{epoch}", {"epoch": 3}, {"auto_insert_metric_name": False}, "e3.ckpt"),
        ("x-{val/loss:.1f}", {"val/loss": 0.5}, {"auto_insert_metric_name": False}, "x-0.5.ckpt"),
        ("fixed", {}, {}, "fixed.ckpt"),
    ],
)
def test_names_are_patterns(pattern, values, settings, expected):
    assert ModelCheckpoint(filename=pattern, **settings).format_checkpoint_name(values) == expected


def test_versions_and_prefixes_are_parts_of_a_name():
    saver = ModelCheckpoint(dirpath="/runs", filename="{epoch}")
    assert saver.format_checkpoint_name({"epoch": 1}, ver=2, prefix="cv") == "/runs/cv-epoch=1-v2.ckpt"


def test_a_class_may_choose_the_characters_and_the_name_of_the_last(fit, scripted, tmp_path):
    class Mine(ModelCheckpoint):
        CHECKPOINT_EQUALS_CHAR = "_"
        CHECKPOINT_NAME_LAST = "{epoch}-last"

    saver = Mine(dirpath=tmp_path, save_last=True)
    fit(scripted(), saver, max_epochs=2, enable_checkpointing=True)
    assert names(tmp_path) == ["epoch_1-last-previous.ckpt", "epoch_1-last.ckpt", "epoch_1-step_8.ckpt"]


def test_an_unknown_name_in_the_pattern_warns_with_the_near_one():
    saver = ModelCheckpoint(filename="{val_los:.1f}")
    with pytest.warns(UserWarning, match="'val_los'.*written as 0.*Did you mean 'val_loss'"):
        assert saver.format_checkpoint_name({"val_loss": 0.5}) == "val_los=0.0.ckpt"


def test_a_format_that_cannot_write_the_value_is_answered():
    with pytest.raises(MisconfigurationError, match=r"\{val_loss:d\} cannot write 0\.5"):
        ModelCheckpoint(filename="{val_loss:d}").format_checkpoint_name({"val_loss": 0.5})


# ---- where


def test_the_default_directory_is_below_the_root(fit, scripted, tmp_path):
    saver = ModelCheckpoint()
    fit(scripted(), saver, max_epochs=2)
    assert names(tmp_path) == ["checkpoints/epoch=1-step=8.ckpt"]
    assert saver.dirpath == str(tmp_path / "checkpoints")
    assert saver.best_model_path == str(tmp_path / "checkpoints/epoch=1-step=8.ckpt")
    assert saver.best_model_score is None
    assert saver.best_k_models == {}


def test_with_a_logger_the_directory_is_the_runs(fit, scripted, tmp_path):
    fit(scripted(), ModelCheckpoint(), max_epochs=1, logger=CSVLogger(tmp_path))
    assert names(tmp_path) == ["lightning_logs/version_0/checkpoints/epoch=0-step=4.ckpt"]


def test_a_trainer_saves_without_being_asked(scripted, tmp_path):
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(scripted())
    assert names(tmp_path) == ["checkpoints/epoch=0-step=4.ckpt"]
    assert trainer.checkpoint_callback.best_model_path


def test_a_trial_run_saves_nothing(fit, scripted, tmp_path):
    fit(scripted(), ModelCheckpoint(), fast_dev_run=True)
    assert names(tmp_path) == []


# ---- which of them stay; file names and scores as PyTorch Lightning 2.6.6 leaves them, measured


def test_the_best_file_stays(fit, scripted, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss")
    fit(scripted([5, 4, 3, 4, 2]), saver)
    assert names(tmp_path) == ["epoch=4-step=20.ckpt"]
    assert saver.best_model_score == 2.0


def test_the_two_best_stay(fit, scripted, tmp_path):
    saver = ModelCheckpoint(
        dirpath=tmp_path, monitor="val_loss", save_top_k=2, filename="{epoch}-{val_loss:.2f}"
    )
    fit(scripted([5, 4, 3, 4, 2]), saver)
    assert names(tmp_path) == ["epoch=2-val_loss=3.00.ckpt", "epoch=4-val_loss=2.00.ckpt"]
    assert saver.kth_best_model_path == str(tmp_path / "epoch=2-val_loss=3.00.ckpt")
    assert {Path(path).name: float(score) for path, score in saver.best_k_models.items()} == {
        "epoch=2-val_loss=3.00.ckpt": 3.0,
        "epoch=4-val_loss=2.00.ckpt": 2.0,
    }


def test_with_max_the_highest_is_best(fit, scripted, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", mode="max")
    fit(scripted([5, 4, 3, 4, 2]), saver)
    assert names(tmp_path) == ["epoch=0-step=4.ckpt"]


@pytest.mark.parametrize(
    ("mode", "count", "expected"),
    [("min", 1, ["epoch=3-step=16.ckpt"]), ("max", 2, ["epoch=1-step=8.ckpt", "epoch=4-step=20.ckpt"])],
)
def test_nan_is_never_the_best(fit, scripted, tmp_path, mode, count, expected):
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", mode=mode, save_top_k=count)
    fit(scripted([nan, 4, nan, 3, 5]), saver)
    assert names(tmp_path) == expected


def test_all_stay_with_minus_one_and_none_with_zero(fit, scripted, tmp_path):
    fit(scripted(), ModelCheckpoint(dirpath=tmp_path / "all", save_top_k=-1), max_epochs=3)
    assert names(tmp_path / "all") == ["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt", "epoch=2-step=12.ckpt"]
    fit(scripted(), ModelCheckpoint(dirpath=tmp_path / "none", save_top_k=0), max_epochs=3)
    assert names(tmp_path / "none") == []


def test_a_fixed_name_gets_a_version(fit, scripted, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, filename="fixed", save_top_k=2, monitor="val_loss")
    fit(scripted([5, 4, 3, 4, 2]), saver)
    assert names(tmp_path) == ["fixed-v1.ckpt", "fixed.ckpt"]
    assert saver.best_model_path == str(tmp_path / "fixed-v1.ckpt")
    assert load(tmp_path / "fixed-v1.ckpt")["epoch"] == 4


def test_a_fixed_name_is_replaced_without_the_counter(fit, scripted, tmp_path):
    for epochs in (1, 2):
        saver = ModelCheckpoint(dirpath=tmp_path, filename="fixed", enable_version_counter=False)
        fit(scripted(), saver, max_epochs=epochs)
    assert names(tmp_path) == ["fixed.ckpt"]
    assert load(tmp_path / "fixed.ckpt")["global_step"] == 8


def test_another_runs_files_are_left_alone(fit, scripted, tmp_path):
    for _ in range(2):
        saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
        fit(scripted(), saver, max_epochs=2)
    lasts = ["last-previous.ckpt", "last-v1-previous.ckpt", "last-v1.ckpt", "last.ckpt"]
    assert names(tmp_path) == ["epoch=1-step=8-v1.ckpt", "epoch=1-step=8.ckpt", *lasts]
    assert saver.last_model_path == str(tmp_path / "last-v1.ckpt")


def test_two_callbacks_save_side_by_side(fit, scripted, tmp_path):
    fit(
        scripted([3, 2, 1]), ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", filename="best"),
        ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=5, save_top_k=-1), max_epochs=3,
    )  # fmt: skip
    assert names(tmp_path) == ["best.ckpt", "epoch=1-step=5.ckpt", "epoch=2-step=10.ckpt"]


# ---- last


def test_last_is_the_newest_state_though_it_is_not_the_best(fit, scripted, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_last=True)
    fit(scripted([1, 2, 3]), saver, max_epochs=3)
    assert names(tmp_path) == ["epoch=0-step=4.ckpt", "last-previous.ckpt", "last.ckpt"]
    assert load(tmp_path / "last.ckpt")["global_step"] == 12
    assert saver.last_model_path == str(tmp_path / "last.ckpt")


def test_last_may_be_a_link_to_the_newest_file(fit, scripted, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, save_last="link")
    fit(scripted(), saver, max_epochs=3)
    assert os.readlink(tmp_path / "last.ckpt") == "epoch=2-step=12.ckpt"
    assert load(tmp_path / "last.ckpt")["global_step"] == 12


def test_a_link_becomes_a_file_when_the_newest_state_is_not_kept(fit, scripted, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_last="link")
    fit(scripted([1, 2]), saver, max_epochs=2)
    assert not (tmp_path / "last.ckpt").is_symlink()
    assert load(tmp_path / "last.ckpt")["global_step"] == 8
    assert load(tmp_path / "epoch=0-step=4.ckpt")["global_step"] == 4


# ---- when


def test_every_n_train_steps_saves_within_epochs(fit, scripted, tmp_path):
    fit(scripted(), ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=3, save_top_k=-1), max_epochs=3)
    assert names(tmp_path) == [
        "epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt", "epoch=2-step=12.ckpt", "epoch=2-step=9.ckpt"
    ]  # fmt: skip


def test_accumulated_batches_are_one_step_and_one_file(fit, scripted, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1)
    fit(scripted(), saver, max_epochs=1, accumulate_grad_batches=2)
    assert names(tmp_path) == ["epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt"]


def test_every_n_epochs_leaves_epochs_out(fit, scripted, tmp_path):
    fit(scripted(), ModelCheckpoint(dirpath=tmp_path, every_n_epochs=2, save_top_k=-1))
    assert names(tmp_path) == ["epoch=1-step=8.ckpt", "epoch=3-step=16.ckpt"]


def test_a_time_interval_saves_by_the_clock(fit, scripted, tmp_path):
    always = ModelCheckpoint(dirpath=tmp_path / "a", train_time_interval=timedelta(0), save_top_k=-1)
    never = ModelCheckpoint(dirpath=tmp_path / "n", train_time_interval=timedelta(days=1), save_top_k=-1)
    fit(scripted(), always, never, max_epochs=1)
    assert len(names(tmp_path / "a")) == 4
    assert names(tmp_path / "n") == []


def test_several_validations_an_epoch_save_several_times(fit, scripted, tmp_path):
    fit(scripted(), ModelCheckpoint(dirpath=tmp_path, save_top_k=-1), max_epochs=1, val_check_interval=2)
    assert names(tmp_path) == ["epoch=0-step=2.ckpt", "epoch=0-step=4.ckpt"]


def test_validation_every_other_epoch_saves_every_other_epoch(fit, scripted, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1)
    fit(scripted(), saver, check_val_every_n_epoch=2)
    assert names(tmp_path) == ["epoch=1-step=8.ckpt", "epoch=3-step=16.ckpt"]


def test_without_validation_each_epoch_saves(fit, unvalidated, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="train_loss_epoch", save_top_k=-1)
    fit(unvalidated(), saver, max_epochs=2)
    assert names(tmp_path) == ["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt"]


def test_saving_at_the_validations_end_can_be_asked_for(fit, scripted, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_on_train_epoch_end=False)
    fit(scripted([2, 1]), saver, max_epochs=2)
    assert names(tmp_path) == ["epoch=1-step=8.ckpt"]


def test_the_trial_validation_and_validate_save_nothing(fit, scripted, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, save_on_train_epoch_end=False)
    trainer = fit(scripted(), saver, max_epochs=0)
    trainer.validate(scripted(), verbose=False)
    assert names(tmp_path) == []


class StopsAt(BaseException):
    """Like a KeyboardInterrupt, which pytest would take for its own."""


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(True, ["epoch=0-step=4.ckpt", "last.ckpt"]), (False, ["epoch=0-step=4.ckpt"])],
)
def test_an_exception_saves_what_was_learned_unless_that_is_turned_off(
    fit, scripted, tmp_path, wanted, expected
):
    class Fails(scripted):
        def training_step(self, batch, batch_idx):
            if self.global_step == 6:
                raise StopsAt
            return super().training_step(batch, batch_idx)

    with pytest.raises(StopsAt):
        fit(Fails(), ModelCheckpoint(dirpath=tmp_path, save_on_exception=wanted))
    assert names(tmp_path) == expected
    if wanted:
        assert load(tmp_path / "last.ckpt")["global_step"] == 6


def test_of_several_callbacks_one_saves_on_an_exception_and_none_where_nothing_was_learned(
    fit, scripted, tmp_path
):
    class Fails(scripted):
        def training_step(self, batch, batch_idx):
            if self.global_step == 2 or self.at_once:
                raise StopsAt
            return super().training_step(batch, batch_idx)

    savers = [
        ModelCheckpoint(dirpath=tmp_path / "weights", save_weights_only=True),
        ModelCheckpoint(dirpath=tmp_path / "first", monitor="val_loss"),
        ModelCheckpoint(dirpath=tmp_path / "second", monitor="val_loss", mode="max"),
    ]
    for Fails.at_once, expected in [(True, []), (False, ["first/last.ckpt"])]:
        with pytest.raises(StopsAt):
            fit(Fails(), *savers)
        assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.ckpt")) == expected


def test_a_state_that_cannot_be_saved_does_not_hide_the_exception(fit, scripted, tmp_path, capsys):
    class Fails(scripted):
        def training_step(self, batch, batch_idx):
            if self.global_step == 2:
                (tmp_path / "there").write_text("a file, where a folder should be")
                raise StopsAt
            return super().training_step(batch, batch_idx)

    with pytest.raises(StopsAt):
        fit(Fails(), ModelCheckpoint(dirpath=tmp_path / "there"))
    assert "its state could not be saved" in capsys.readouterr().err


# ---- what is in a file


def test_a_file_holds_the_state_of_the_callback_that_wrote_it(fit, scripted, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_last=True)
    fit(scripted([1]), saver, max_epochs=1)
    for name in names(tmp_path):
        state = load(tmp_path / name)["callbacks"][saver.state_key]
        assert state["best_model_path"] == str(tmp_path / "epoch=0-step=4.ckpt")
        assert state["best_model_score"] == 1.0
    assert state["last_model_path"] == str(tmp_path / "last.ckpt")


def test_weights_only_leaves_the_optimizer_out(fit, scripted, tmp_path):
    fit(scripted(), ModelCheckpoint(dirpath=tmp_path, save_weights_only=True), max_epochs=1)
    checkpoint = load(tmp_path / "epoch=0-step=4.ckpt")
    assert "state_dict" in checkpoint
    assert "optimizer_states" not in checkpoint


def test_what_the_module_logs_at_the_epochs_end_can_be_monitored(fit, scripted, tmp_path):
    class Late(scripted):
        def on_train_epoch_end(self):
            self.log("late", float(self.current_epoch))

    saver = ModelCheckpoint(dirpath=tmp_path, monitor="late", mode="max")
    fit(Late(), saver, max_epochs=2)
    assert saver.best_model_score == 1.0


def test_loggers_hear_of_a_checkpoint(fit, scripted, tmp_path):
    heard = []

    class Listening(Logger):
        name, version = "l", 0

        def log_metrics(self, metrics, step=None): ...
        def log_hyperparams(self, params, *args, **kwargs): ...

        def after_save_checkpoint(self, checkpoint_callback):
            heard.append(Path(checkpoint_callback.best_model_path).name)

    fit(scripted(), ModelCheckpoint(dirpath=tmp_path), max_epochs=2, logger=Listening())
    assert heard == ["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt"]


# ---- an old file goes only when the new one is whole


@pytest.mark.parametrize("monitor", [None, "val_loss"])
def test_a_full_disk_leaves_the_earlier_file(fit, scripted, tmp_path, monkeypatch, monitor):
    saver = ModelCheckpoint(dirpath=tmp_path, monitor=monitor)
    real_save = torch.save

    def full_disk(checkpoint, file):
        if checkpoint["global_step"] > 4:
            raise OSError(28, "No space left on device")
        real_save(checkpoint, file)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        fit(scripted([2, 1]), saver, max_epochs=2)
    assert names(tmp_path) == ["epoch=0-step=4.ckpt"]
    assert load(tmp_path / "epoch=0-step=4.ckpt")["global_step"] == 4


# ---- resuming


def test_a_resumed_run_goes_on_with_the_best_files(fit, scripted, tmp_path):
    def saver():
        return ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_top_k=2, save_last=True)

    fit(scripted([5, 4, 3]), saver(), max_epochs=3)
    assert names(tmp_path) == [
        "epoch=1-step=8.ckpt",
        "epoch=2-step=12.ckpt",
        "last-previous.ckpt",
        "last.ckpt",
    ]
    second = saver()
    fit(scripted([2, 1]), second, max_epochs=5, ckpt_path=tmp_path / "last.ckpt")
    assert names(tmp_path) == [
        "epoch=3-step=16.ckpt",
        "epoch=4-step=20.ckpt",
        "last-previous.ckpt",
        "last.ckpt",
    ]
    assert sorted(map(float, second.best_k_models.values())) == [1.0, 2.0]


def test_the_file_that_was_resumed_from_is_not_removed(fit, scripted, tmp_path):
    fit(scripted(), ModelCheckpoint(dirpath=tmp_path), max_epochs=1)
    start = tmp_path / "epoch=0-step=4.ckpt"
    fit(scripted(), ModelCheckpoint(dirpath=tmp_path), max_epochs=3, ckpt_path=start)
    assert names(tmp_path) == ["epoch=0-step=4.ckpt", "epoch=2-step=12.ckpt"]


def test_resuming_into_another_directory_warns_and_removes_nothing(fit, scripted, tmp_path):
    fit(scripted([1]), ModelCheckpoint(dirpath=tmp_path / "a", monitor="val_loss"), max_epochs=1)
    second = ModelCheckpoint(dirpath=tmp_path / "b", monitor="val_loss")
    with pytest.warns(UserWarning, match="ModelCheckpoint saves to .*b', and the resumed run saved to .*a'"):
        fit(scripted([2]), second, max_epochs=2, ckpt_path=tmp_path / "a" / "epoch=0-step=4.ckpt")
    assert names(tmp_path) == ["a/epoch=0-step=4.ckpt", "b/epoch=1-step=8.ckpt"]
    assert second.best_model_score == 2.0


def test_the_state_that_was_resumed_from_is_not_saved_again(fit, scripted, tmp_path):
    def saver():
        return ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2, save_top_k=-1)

    fit(scripted(), saver(), max_epochs=1)
    fit(scripted(), saver(), max_epochs=2, ckpt_path=tmp_path / "epoch=0-step=2.ckpt", limit_train_batches=2)
    assert "epoch=0-step=2-v1.ckpt" not in names(tmp_path)


def test_best_weights_are_tested_after_fit(fit, scripted, tmp_path):
    class Tested(scripted):
        def test_step(self, batch, batch_idx):
            self.log("step", float(self.layer.weight.sum()))

        test_dataloader = scripted.val_dataloader

    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss")
    trainer = fit(Tested([1, 2]), saver, max_epochs=2)
    expected = load(saver.best_model_path)["state_dict"]["layer.weight"].sum()
    assert trainer.test(ckpt_path="best", verbose=False)[0]["step"] == pytest.approx(
        float(expected), abs=1e-6
    )


# ---- another fit by the same trainer


def test_another_module_has_a_best_of_its_own_and_leaves_the_files_of_the_first(fit, scripted, tmp_path):
    class Tested(scripted):
        def test_step(self, batch, batch_idx):
            self.log("bias", float(self.layer.bias))

        test_dataloader = scripted.val_dataloader

    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_last=True)
    trainer = fit(Tested([1]), saver, max_epochs=1)
    assert names(tmp_path) == ["epoch=0-step=4.ckpt", "last.ckpt"]
    contents = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    second = Tested([2])
    trainer.fit(second)
    assert names(tmp_path) == ["epoch=0-step=4-v1.ckpt", "epoch=0-step=4.ckpt", "last-v1.ckpt", "last.ckpt"]
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents
    assert (Path(saver.best_model_path).name, saver.best_model_score) == ("epoch=0-step=4-v1.ckpt", 2.0)
    assert saver.current_score == 2.0
    trained = second.layer.bias.item()
    assert trainer.test(verbose=False)[0]["bias"] == pytest.approx(trained)


def test_another_module_leaves_the_newest_file_of_the_first(fit, scripted, tmp_path):
    trainer = fit(scripted(), ModelCheckpoint(dirpath=tmp_path), max_epochs=1)
    trainer.max_epochs = 2
    trainer.fit(scripted())
    assert names(tmp_path) == ["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt"]


def test_a_second_fit_of_the_same_module_keeps_the_best(fit, scripted, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_last=True)
    module = scripted([1, 2])
    trainer = fit(module, saver, max_epochs=1)
    trainer.max_epochs = 2
    trainer.fit(module)
    assert names(tmp_path) == ["epoch=0-step=4.ckpt", "last-previous.ckpt", "last.ckpt"]
    assert (Path(saver.best_model_path).name, saver.best_model_score) == ("epoch=0-step=4.ckpt", 1.0)


# ---- mistakes


def test_a_name_that_was_never_logged_is_answered_with_those_that_were(fit, scripted, tmp_path):
    message = r"ModelCheckpoint\(monitor='val_los'\).*Did you mean 'val_loss'\?.*train_loss.*val_loss"
    with pytest.raises(UnknownNameError, match=message):
        fit(scripted(), ModelCheckpoint(dirpath=tmp_path, monitor="val_los"))


def test_before_the_first_validation_a_missing_value_only_warns(fit, scripted, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", every_n_train_steps=2, save_top_k=-1)
    with pytest.warns(UserWarning, match="not logged yet, and no validation has run"):
        fit(scripted(), saver, max_epochs=1, num_sanity_val_steps=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"save_top_k": -2}, "save_top_k=-2.*expected -1"),
        ({"save_top_k": 2}, "best by which value"),
        ({"mode": "lowest"}, "mode='lowest'"),
        ({"save_last": "copy"}, "save_last='copy'.*'link'"),
        ({"every_n_train_steps": -1}, "every_n_train_steps=-1"),
        ({"every_n_epochs": -1}, "every_n_epochs=-1"),
        (
            {"every_n_train_steps": 1, "every_n_epochs": 1},
            "every_n_train_steps and every_n_epochs were given",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(MisconfigurationError, match=message):
        ModelCheckpoint(**settings)
