"""`Trainer`: what its settings do, what a run leaves behind, and which weights an evaluation uses."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import SumMetric

from headstart import Callback, LightningModule, Trainer, seed_everything
from headstart.callbacks import ModelCheckpoint
from headstart.errors import MisconfigurationError
from headstart.loggers import CSVLogger


def ones(count=2):
    return DataLoader(torch.ones(count, 1))


class Slope(LightningModule):
    """Each batch lowers its weight by the batch's mean."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log("value", self.weight)

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return float(self.weight)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


# ---- the sanity check


class Draws(Slope):
    """Draws random numbers in validation, logs, and counts with a metric."""

    def __init__(self):
        super().__init__()
        self.sum = SumMetric()
        self.tried = 0
        self.drawn = []

    def training_step(self, batch, batch_idx):
        self.drawn.append((random.random(), float(np.random.rand()), float(torch.rand(1))))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.tried += self.trainer.sanity_checking
        random.random(), np.random.rand(), torch.rand(1)
        self.sum.update(batch)
        self.log("sum", self.sum)
        self.log("step", batch.mean(), on_step=True)


@pytest.mark.parametrize(("steps", "tried"), [(None, 2), (0, 0), (1, 1), (2, 2), (-1, 5), (99, 5)])
def test_the_sanity_check_tries_so_many_batches_and_leaves_no_trace(quiet_trainer, tmp_path, steps, tried):
    seen = []

    class Looks(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(
                (dict(trainer.callback_metrics), dict(trainer.logged_metrics), pl_module.sum.update_count)
            )
            assert not trainer.sanity_checking

    class Kept(CSVLogger):
        def log_metrics(self, metrics, step=None):
            seen.append(step)

    def run(steps):
        module = Draws()
        trainer = quiet_trainer(
            num_sanity_val_steps=steps, callbacks=[Looks()], logger=Kept(tmp_path), limit_val_batches=5
        )
        seed_everything(3)
        trainer.fit(module, DataLoader(torch.ones(4, 1), shuffle=True), ones(7))
        return module, trainer

    module, trainer = run(steps)
    assert module.tried == tried
    assert seen[0] == ({}, {}, 0)
    assert seen[1:] == [0, 1, 2, 3, 4, 3]  # five steps of validation, numbered from 0, and its epoch
    assert float(trainer.callback_metrics["sum"]) == 5.0
    assert module.drawn == run(0)[0].drawn


# ---- overfit_batches, deterministic, max_time


@pytest.mark.parametrize(("setting", "taken"), [(2, [0.0, 1.0]), (0.5, [0.0, 1.0, 2.0])])
@pytest.mark.filterwarnings("ignore:overfit_batches")
def test_overfit_batches_trains_on_the_same_few_batches_in_every_epoch(quiet_trainer, setting, taken):
    class Sees(Slope):
        def __init__(self):
            super().__init__()
            self.train_values, self.val_values = [], []

        def training_step(self, batch, batch_idx):
            self.train_values.append(float(batch))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.val_values.append(float(batch))

    module = Sees()
    loader = DataLoader(torch.arange(6.0), shuffle=True)
    trainer = quiet_trainer(overfit_batches=setting, max_epochs=3, num_sanity_val_steps=0)
    trainer.fit(module, loader, DataLoader(torch.arange(6.0)))
    assert module.train_values == module.val_values == taken * 3


@pytest.fixture
def algorithms():
    """Put torch's choice of algorithms back."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.mark.parametrize(
    ("setting", "enabled", "warn_only"), [(True, True, False), ("warn", True, True), (False, False, False)]
)
@pytest.mark.usefixtures("algorithms")
def test_deterministic_chooses_torch_s_algorithms(quiet_trainer, setting, enabled, warn_only):
    quiet_trainer(deterministic=setting)
    assert torch.are_deterministic_algorithms_enabled() is enabled
    assert torch.is_deterministic_algorithms_warn_only_enabled() is warn_only
    quiet_trainer()  # says nothing, changes nothing
    assert torch.are_deterministic_algorithms_enabled() is enabled


def test_max_time_ends_a_run_without_other_bound(quiet_trainer):
    module, trainer = Slope(), quiet_trainer(max_time={"milliseconds": 1}, max_epochs=None)
    trainer.fit(module, ones(1))
    assert trainer.should_stop
    assert module.weight.item() == -trainer.global_step


def test_detect_anomaly_names_the_operation_that_made_a_nan(quiet_trainer):
    class Nan(Slope):
        def training_step(self, batch, batch_idx):
            return torch.sqrt(self.weight * 0 - 1).sum()

    with (
        pytest.raises(RuntimeError, match="SqrtBackward0.*nan"),
        pytest.warns(UserWarning, match="Error detected in"),
        pytest.warns(UserWarning, match="A loss was NaN or infinite"),
    ):
        quiet_trainer(detect_anomaly=True).fit(Nan(), ones())


def test_an_unbounded_run_says_where_it_will_end(quiet_trainer):
    trainer = quiet_trainer(max_epochs=None, callbacks=[StopsAtOnce()])
    with pytest.warns(UserWarning, match="max_epochs was not set.*1000.* Set max_epochs=-1 for no bound"):
        trainer.fit(Slope(), ones())
    assert trainer.max_epochs == 1000


class StopsAtOnce(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = True


@pytest.mark.parametrize("settings", [{"max_steps": 3}, {"fast_dev_run": True}, {"max_time": {"hours": 1}}])
def test_a_run_that_something_else_bounds_says_nothing(quiet_trainer, settings):
    quiet_trainer(max_epochs=None, callbacks=[StopsAtOnce()], **settings).fit(Slope(), ones())


def test_a_validation_interval_longer_than_an_epoch_is_refused(quiet_trainer):
    with pytest.raises(
        MisconfigurationError, match="20 batches, and an epoch has 2.*check_val_every_n_epoch=None"
    ):
        quiet_trainer(val_check_interval=20).fit(Slope(), ones(), ones())


# ---- which weights


@pytest.fixture
def fitted(quiet_trainer, tmp_path):
    """A run of two epochs that ends at -4, its best checkpoint (the highest value) at -2."""

    def fit(**options):
        checkpoint = ModelCheckpoint(tmp_path, monitor="value", mode="max", **options)
        trainer = quiet_trainer(max_epochs=2, enable_checkpointing=True, callbacks=[checkpoint])
        module = Slope()
        trainer.fit(module, ones(), ones())
        assert module.weight.item() == -4.0
        return trainer, module

    return fit


def test_without_a_model_an_evaluation_uses_the_best_weights_of_the_fit(fitted):
    trainer, _ = fitted()
    assert trainer.test(dataloaders=ones(), verbose=False) == [{"value": -2.0}]
    trainer, _ = fitted()
    assert trainer.validate(dataloaders=ones(), verbose=False) == [{"value": -2.0}]
    trainer, _ = fitted()
    assert trainer.predict(dataloaders=ones(1)) == [-2.0]


def test_with_a_model_an_evaluation_uses_its_weights_unless_a_checkpoint_is_named(fitted):
    trainer, module = fitted(save_last=True)
    assert trainer.test(module, ones(), verbose=False) == [{"value": -4.0}]
    assert trainer.test(module, ones(), ckpt_path="best", verbose=False) == [{"value": -2.0}]
    assert trainer.ckpt_path == trainer.checkpoint_callback.best_model_path
    assert trainer.test(module, ones(), ckpt_path="last", verbose=False) == [{"value": -4.0}]
    path = trainer.checkpoint_callback.best_model_path
    assert trainer.test(module, ones(), ckpt_path=path, verbose=False) == [{"value": -2.0}]


def test_without_a_model_and_without_checkpoints_it_is_the_last_module_as_it_is(quiet_trainer):
    trainer = quiet_trainer()
    trainer.fit(Slope(), ones())
    assert trainer.test(dataloaders=ones(), verbose=False) == [{"value": -2.0}]


@pytest.mark.parametrize("word", ["best", "last"])
def test_best_and_last_need_a_checkpoint_callback_that_has_saved(quiet_trainer, tmp_path, word):
    with pytest.raises(
        MisconfigurationError, match=f"'{word}' needs a ModelCheckpoint callback, and there is none"
    ):
        quiet_trainer().test(Slope(), ones(), ckpt_path=word)
    trainer = quiet_trainer(enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path)])
    with pytest.raises(MisconfigurationError, match=f"'{word}', and the ModelCheckpoint has saved none yet"):
        trainer.test(Slope(), ones(), ckpt_path=word)


def test_a_checkpoint_that_is_not_there_is_named(quiet_trainer):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'nowhere.ckpt'"):
        quiet_trainer().test(Slope(), ones(), ckpt_path="nowhere.ckpt")


def test_fit_from_the_last_checkpoint_begins_where_there_is_none_and_then_goes_on(quiet_trainer, tmp_path):
    def run(max_epochs):
        checkpoint = ModelCheckpoint(tmp_path, save_last=True)
        module = Slope()
        trainer = quiet_trainer(max_epochs=max_epochs, enable_checkpointing=True, callbacks=[checkpoint])
        trainer.fit(module, ones(), ckpt_path="last")
        return module.weight.item(), trainer.global_step

    with pytest.warns(UserWarning, match="no last checkpoint yet: training begins"):
        assert run(1) == (-2.0, 2)
    assert run(3) == (-6.0, 6)  # a new trainer, as in a new process


# ---- one trainer, several runs


def test_a_second_fit_of_the_same_module_goes_on(quiet_trainer):
    trainer, module = quiet_trainer(), Slope()
    trainer.fit(module, ones())
    trainer.fit(module, ones())  # nothing is left to do
    assert (trainer.current_epoch, trainer.global_step, module.weight.item()) == (1, 2, -2.0)
    trainer.max_epochs = 3
    trainer.fit(module, ones())
    assert (trainer.current_epoch, trainer.global_step, module.weight.item()) == (3, 6, -6.0)


def test_a_fit_of_another_module_begins_anew(quiet_trainer):
    trainer, other = quiet_trainer(), Slope()
    trainer.fit(Slope(), ones(), ones())
    trainer.fit(other, ones())
    assert (trainer.current_epoch, trainer.global_step, other.weight.item()) == (1, 2, -2.0)
    assert trainer.callback_metrics == {}


class Watched(Slope):
    """Logs in every step of a validation, and a scheduler watches it that takes what was logged last."""

    def validation_step(self, batch, batch_idx):
        self.log("value", 1.0, on_step=True, on_epoch=True)

    def test_step(self, batch, batch_idx):
        self.log("tested", 2.0)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=100)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "value", "strict": False},
        }


@pytest.mark.parametrize("kind", ["test", "validate"])
@pytest.mark.filterwarnings("ignore:The scheduler watches 'value', which was not logged")
def test_an_evaluation_between_two_fits_leaves_no_trace(quiet_trainer, tmp_path, kind):
    class Kept(CSVLogger):
        def log_metrics(self, metrics, step=None):
            logged.append((dict(metrics), step))

    def run(evaluate):
        module = Watched()
        trainer = quiet_trainer(max_epochs=2, check_val_every_n_epoch=2, logger=Kept(tmp_path))
        trainer.fit(module, ones(), ones())
        values = evaluate(trainer, module)
        trainer.save_checkpoint(tmp_path / "between.ckpt")
        kept = torch.load(tmp_path / "between.ckpt", weights_only=True)["loops"]["logbook"]
        logged.clear()
        trainer.max_epochs = 4
        trainer.fit(module, ones(), ones())
        return values, (
            trainer.lr_scheduler_configs[0].scheduler.last_epoch,
            dict(trainer.callback_metrics),
            dict(trainer.logged_metrics),
            list(logged),
            kept,
        )

    def evaluate(trainer, module):
        getattr(trainer, kind)(module, ones(3), verbose=False)
        return dict(trainer.callback_metrics), dict(trainer.logged_metrics)

    logged = []
    values, found = run(evaluate)
    assert found == run(lambda trainer, module: None)[1]
    assert found[0] == 3  # after epochs 1, 2 and 3: before that nothing was logged
    names = {"tested"} if kind == "test" else {"value", "value_step", "value_epoch"}
    # Until the next fit begins, what the evaluation logged can be read, and nothing else.
    assert (set(values[0]), set(values[1])) == (names, names - {"value"})


def test_an_evaluation_that_was_interrupted_leaves_the_next_fit_alone(quiet_trainer, capsys):
    class Interrupted(Slope):
        def training_step(self, batch, batch_idx):
            assert self.training
            self.log("loss", 1.0 + self.current_epoch, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            raise KeyboardInterrupt

    trainer, module = quiet_trainer(), Interrupted()
    trainer.fit(module, ones())
    with pytest.raises(KeyboardInterrupt):
        trainer.validate(module, [ones(), ones()])
    trainer.max_epochs = 2
    trainer.fit(module, ones())
    assert {name: float(value) for name, value in trainer.callback_metrics.items()} == {"loss": 2.0}
    assert "found in evaluation mode" not in capsys.readouterr().err


def test_a_stop_is_forgotten_when_the_next_run_begins(quiet_trainer):
    callback = StopsAtOnce()
    trainer, module = quiet_trainer(max_epochs=2, callbacks=[callback]), Slope()
    trainer.fit(module, ones())
    assert (trainer.global_step, trainer.should_stop) == (1, True)
    trainer.callbacks.remove(callback)
    trainer.fit(module, ones())
    assert (trainer.current_epoch, trainer.should_stop) == (2, False)


# ---- what a trainer refuses, and what it says of itself


def test_something_that_is_no_module_is_refused(quiet_trainer):
    with pytest.raises(TypeError, match="fit received Linear as the model; expected a LightningModule"):
        quiet_trainer().fit(nn.Linear(1, 1), ones())


@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
def test_without_any_model_there_is_nothing_to_evaluate(quiet_trainer, fn):
    with pytest.raises(MisconfigurationError, match="No model was given, and this trainer has none"):
        getattr(quiet_trainer(), fn)(dataloaders=ones())


def test_there_is_nothing_to_save_before_a_run(quiet_trainer, tmp_path):
    with pytest.raises(MisconfigurationError, match="nothing to save before fit, validate, test or predict"):
        quiet_trainer().save_checkpoint(tmp_path / "x.ckpt")


def test_the_stage_is_told_while_it_runs(quiet_trainer):
    seen = {}

    class Looks(Callback):
        def look(self, trainer, name):
            flags = ("training", "validating", "sanity_checking", "testing", "predicting", "is_fitting")
            seen[name] = {flag for flag in flags if getattr(trainer, flag)}

        def on_sanity_check_start(self, trainer, pl_module):
            self.look(trainer, "sanity")

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.look(trainer, "train")

        def on_validation_start(self, trainer, pl_module):
            self.look(trainer, "validate")

        def on_test_start(self, trainer, pl_module):
            self.look(trainer, "test")

        def on_predict_start(self, trainer, pl_module):
            self.look(trainer, "predict")

    trainer, module = quiet_trainer(callbacks=[Looks()]), Slope()
    trainer.fit(module, ones(), ones())
    trainer.test(module, ones(), verbose=False)
    trainer.predict(module, ones())
    assert seen == {
        "sanity": {"sanity_checking", "is_fitting"},
        "train": {"training", "is_fitting"},
        "validate": {"validating", "is_fitting"},
        "test": {"testing"},
        "predict": {"predicting"},
    }
    assert not any((trainer.training, trainer.testing, trainer.predicting, trainer.is_fitting))


def test_what_programs_ask_of_a_trainer(quiet_trainer, tmp_path):
    module, train, val = Slope(), ones(3), ones(4)
    trainer = quiet_trainer(limit_val_batches=2)
    assert trainer.is_global_zero
    assert (trainer.world_size, trainer.global_rank, trainer.num_devices) == (1, 0, 1)
    assert (trainer.log_dir, trainer.default_root_dir) == (str(tmp_path), str(tmp_path))
    trainer.fit(module, train, val)
    assert trainer.model is trainer.lightning_module is module
    assert trainer.train_dataloader is train
    assert trainer.val_dataloaders is val
    assert (trainer.num_training_batches, trainer.num_val_batches) == (3, [2])
    assert (trainer.state.fn, trainer.state.status, trainer.state.finished) == ("fit", "finished", True)
    assert trainer.optimizers[0].param_groups[0]["params"][0] is module.weight
    assert trainer.estimated_stepping_batches == 3


def test_results_are_printed_unless_it_is_forbidden(quiet_trainer, capsys):
    quiet_trainer().test(Slope(), ones())
    assert capsys.readouterr().out.split() == ["test", "value", "0"]
    quiet_trainer().test(Slope(), ones(), verbose=False)
    assert capsys.readouterr().out == ""


def test_settings_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        Trainer("cpu")
