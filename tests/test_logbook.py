"""`self.log`: what is recorded, under which key, and when. Expected values are the field's, worked out by hand.

The training data are the numbers 1 to 5 in batches of two: batch means 1.5, 3.5 and 5.0, mean of the samples 3.0.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MaxMetric, MeanMetric, MetricCollection

from headstart import Callback, LightningModule
from headstart.errors import MisconfigurationError
from headstart.loggers import CSVLogger


def numbers(batch_size=2):
    return DataLoader(torch.arange(1.0, 6.0).reshape(5, 1), batch_size)


class Steps(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.mean = MeanMetric()
        self.other = MeanMetric()
        self.several = MetricCollection({"mean": MeanMetric(), "max": MaxMetric()})

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum() * 0

    def validation_step(self, batch, batch_idx, dataloader_idx=0): ...

    def test_step(self, batch, batch_idx): ...

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def logging_in(hook, log):
    """A module that calls `log` in `hook`."""

    def method(self, *args, **kwargs):
        log(self)
        return getattr(Steps, hook)(self, *args, **kwargs)

    return type("Logs", (Steps,), {hook: method})()


def logging_steps(log):
    """A module that calls `log(self, batch, batch_idx)` in `training_step`."""

    class Logs(Steps):
        def training_step(self, batch, batch_idx):
            log(self, batch, batch_idx)
            return super().training_step(batch, batch_idx)

    return Logs()


def as_numbers(metrics):
    return {name: float(value) for name, value in metrics.items()}


@pytest.fixture
def after_fit(quiet_trainer):
    """Fit over one epoch without sanity check, and give (callback, logged, progress bar) metrics as numbers."""

    def fit(module, *, loader=None, **settings):
        trainer = quiet_trainer(num_sanity_val_steps=0, **settings)
        trainer.fit(module, numbers() if loader is None else loader, numbers())
        return tuple(
            map(as_numbers, (trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics))
        )

    return fit


class Kept(CSVLogger):
    """Keeps what it is given."""

    def __init__(self, folder):
        super().__init__(folder)
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


# ---- step, epoch, both


def test_in_training_step_the_default_is_the_step_s_value(after_fit):
    callback, logged, bar = after_fit(logging_steps(lambda self, batch, _: self.log("x", batch.mean())))
    assert (callback, logged, bar) == ({"x": 5.0}, {"x": 5.0}, {})


def test_step_and_epoch_have_a_key_each_and_callbacks_also_find_the_plain_name(after_fit):
    module = logging_steps(lambda self, batch, _: self.log("x", batch.mean(), on_epoch=True, prog_bar=True))
    callback, logged, bar = after_fit(module)
    assert callback == {"x": 3.0, "x_step": 5.0, "x_epoch": 3.0}
    assert logged == bar == {"x_step": 5.0, "x_epoch": 3.0}


def test_an_epoch_s_value_alone_keeps_its_name(after_fit):
    module = logging_steps(
        lambda self, batch, _: self.log("x", batch.mean(), on_step=False, on_epoch=True, logger=False)
    )
    assert after_fit(module) == ({"x": 3.0}, {}, {})


def test_in_a_test_step_the_default_is_the_epoch_s_value(quiet_trainer):
    class Logs(Steps):
        def test_step(self, batch, batch_idx):
            self.log("x", batch.mean())
            self.log("both", batch.mean(), on_step=True)

    trainer = quiet_trainer()
    summary = trainer.test(Logs(), numbers(), verbose=False)
    assert summary == [{"x": 3.0, "both_epoch": 3.0}]
    assert as_numbers(trainer.callback_metrics) == {
        "x": 3.0, "both": 3.0, "both_step": 5.0, "both_epoch": 3.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reduce_fx", "expected"),
    [
        ("mean", 3.0), (torch.mean, 3.0), ("sum", 10.0), (sum, 10.0), ("min", 1.5), (min, 1.5), ("max", 5.0),
        (torch.max, 5.0),
    ],
)  # fmt: skip
def test_an_epoch_s_value_is_reduced_from_its_steps(after_fit, reduce_fx, expected):
    module = logging_steps(
        lambda self, batch, _: self.log("x", batch.mean(), on_step=False, on_epoch=True, reduce_fx=reduce_fx)
    )
    assert after_fit(module)[0] == {"x": expected}


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(True), torch.tensor(200, dtype=torch.uint8), torch.tensor(-100, dtype=torch.int8),
        torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor(300.0, dtype=torch.float16), torch.tensor(2**40 + 1),
        torch.tensor(1.0), torch.tensor(0.1, dtype=torch.float64),
    ],
    ids=lambda value: str(value.dtype),
)  # fmt: skip
def test_a_sum_is_as_large_as_its_values_make_it_in_any_number_format(after_fit, value):
    # As many steps as take a sum in the value's own format to its end.
    steps = DataLoader(torch.ones(300, 1))
    module = logging_steps(
        lambda self, batch, _: self.log("x", value, on_step=False, on_epoch=True, reduce_fx="sum")
    )
    expected = sum(value.tolist() for _ in range(300))
    assert after_fit(module, loader=steps)[0]["x"] == pytest.approx(expected, rel=1e-7)


def test_a_sum_of_booleans_counts_them(after_fit):
    module = logging_steps(
        lambda self, batch, _: self.log("x", (batch > 2).any(), on_step=False, on_epoch=True, reduce_fx="sum")
    )
    assert after_fit(module)[0] == {"x": 2.0}


def test_another_reduction_is_refused(after_fit):
    module = logging_steps(lambda self, batch, _: self.log("x", 1.0, on_epoch=True, reduce_fx="median"))
    with pytest.raises(MisconfigurationError, match="'median'.*expected 'mean', 'sum', 'min' or 'max'"):
        after_fit(module)


def test_a_given_batch_size_is_the_weight(after_fit):
    module = logging_steps(
        lambda self, batch, i: self.log("x", batch.mean(), on_epoch=True, batch_size=(2, 2, 6)[i])
    )
    assert after_fit(module)[0]["x_epoch"] == (2 * 1.5 + 2 * 3.5 + 6 * 5.0) / 10


def test_the_weight_is_the_length_of_the_first_tensor_of_a_nested_batch(after_fit):
    batches = [{"name": None, "x": [torch.zeros(3, 7)]}, {"name": None, "x": [torch.zeros(1, 7)]}]

    class Logs(Steps):
        def training_step(self, batch, batch_idx):
            self.log("x", float(batch_idx), on_step=False, on_epoch=True)
            return self.layer.weight.sum()

    assert after_fit(Logs(), loader=batches)[0] == {"x": 0.25}


def test_a_value_logged_twice_in_a_step_counts_twice_in_the_epoch_and_its_last_is_the_step_s(after_fit):
    def log(self, batch, batch_idx):
        for value in (1.0, 2.0):
            self.log("x", value, on_epoch=True)

    assert after_fit(logging_steps(log))[0] == {"x": 1.5, "x_step": 2.0, "x_epoch": 1.5}


def test_what_an_epochs_end_logs_under_the_name_of_its_steps_is_the_value(quiet_trainer):
    class Logs(Steps):
        def training_step(self, batch, batch_idx):
            self.log("acc", batch.mean())
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self):
            self.log("acc", 100.0)

        def validation_step(self, batch, batch_idx):
            self.log("val", batch.mean())

        def on_validation_epoch_end(self):
            self.log("val", 50.0)

    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(Logs(), numbers(), numbers())
    assert trainer.callback_metrics == {"acc": 100.0, "val": 50.0}
    assert trainer.logged_metrics == {"acc": 100.0, "val": 50.0}
    assert trainer.validate(dataloaders=numbers()) == [{"val": 50.0}]


def test_a_value_that_the_caller_goes_on_changing_stays_as_it_was_logged(after_fit):
    def log(self, batch, batch_idx):
        value = batch.mean()
        self.log("x", value, on_epoch=True)
        value += 100

    assert after_fit(logging_steps(log))[0]["x"] == 3.0


def test_a_recorded_value_holds_no_graph(quiet_trainer):
    trainer = quiet_trainer()
    module = logging_steps(lambda self, batch, _: self.log("x", self.layer(batch).mean(), on_epoch=True))
    trainer.fit(module, numbers())
    assert not any(value.requires_grad for value in trainer.callback_metrics.values())


def test_the_epoch_s_values_begin_anew_in_each_epoch(quiet_trainer):
    module = logging_steps(
        lambda self, batch, _: self.log("x", float(self.current_epoch), on_step=False, on_epoch=True)
    )
    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(module, numbers())
    assert as_numbers(trainer.callback_metrics) == {"x": 2.0}


def test_a_name_of_training_and_validation_is_the_validation_s_for_callbacks(after_fit):
    class Logs(Steps):
        def training_step(self, batch, batch_idx):
            self.log("x", 1.0)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.log("x", 3.0)

    seen = []

    class Looks(Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append(float(trainer.callback_metrics["x"]))

    after_fit(Logs(), callbacks=[Looks()])
    assert seen == [3.0]


def test_nothing_is_recorded_outside_a_run():
    assert Steps().log("x", 1.0) is None


def test_log_dict_logs_each_value_with_the_same_options(after_fit):
    module = logging_steps(
        lambda self, batch, _: self.log_dict({"a": 1, "b": batch.mean()}, prog_bar=True, on_epoch=True)
    )
    callback, _, bar = after_fit(module)
    assert bar == {"a_step": 1.0, "a_epoch": 1.0, "b_step": 5.0, "b_epoch": 3.0}
    assert callback == {**bar, "a": 1.0, "b": 3.0}


# ---- several loaders


class LogsValidation(Steps):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("x", batch.mean())
        self.log("both", batch.mean(), on_step=True)
        self.log(f"own_{dataloader_idx}", batch.mean(), add_dataloader_idx=False)

    def on_validation_epoch_end(self):
        self.log("end", 7.0)


def test_several_loaders_add_their_number_to_the_name(quiet_trainer):
    trainer = quiet_trainer()
    one, two = trainer.validate(LogsValidation(), [numbers(), numbers(1)], verbose=False)
    assert one == {
        "x/dataloader_idx_0": 3.0, "both_epoch/dataloader_idx_0": 3.0, "own_0": 3.0, "own_1": 3.0, "end": 7.0,
    }  # fmt: skip
    assert two == {
        "x/dataloader_idx_1": 3.0, "both_epoch/dataloader_idx_1": 3.0, "own_0": 3.0, "own_1": 3.0, "end": 7.0,
    }  # fmt: skip
    found = as_numbers(trainer.callback_metrics)
    assert found["both_step/dataloader_idx_0"] == found["both_step/dataloader_idx_1"] == 5.0


def test_one_loader_in_a_list_adds_none(quiet_trainer):
    assert quiet_trainer().validate(LogsValidation(), [numbers()], verbose=False) == [
        {"x": 3.0, "both_epoch": 3.0, "own_0": 3.0, "end": 7.0}
    ]


# ---- loggers


def test_loggers_get_steps_every_n_steps_and_epochs_at_their_end(quiet_trainer, tmp_path):
    class Logs(Steps):
        def training_step(self, batch, batch_idx):
            self.log("a", batch.mean(), on_epoch=True)
            self.log("hidden", 1.0, logger=False)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.log("v", batch.mean())

    logger = Kept(tmp_path)
    quiet_trainer(max_epochs=2, logger=logger, log_every_n_steps=2).fit(Logs(), numbers(), numbers())
    # Three steps an epoch, numbered from 0: of six, the second, fourth and sixth are written.
    assert logger.rows == [
        (1, {"epoch": 0, "a_step": 3.5}),
        (2, {"epoch": 0, "v": 3.0}),
        (2, {"epoch": 0, "a_epoch": 3.0}),
        (3, {"epoch": 1, "a_step": 1.5}),
        (5, {"epoch": 1, "a_step": 5.0}),
        (5, {"epoch": 1, "v": 3.0}),
        (5, {"epoch": 1, "a_epoch": 3.0}),
    ]


def test_with_accumulation_a_step_is_an_optimizer_s_step(quiet_trainer, tmp_path):
    logger = Kept(tmp_path)
    module = logging_steps(lambda self, batch, _: self.log("a", batch.mean()))
    trainer = quiet_trainer(logger=logger, log_every_n_steps=1, accumulate_grad_batches=2)
    trainer.fit(module, numbers())
    assert logger.rows == [(0, {"epoch": 0, "a": 3.5}), (1, {"epoch": 0, "a": 5.0})]


# ---- torchmetrics


def test_a_metric_object_gives_the_step_s_value_and_its_own_epoch_s(after_fit):
    def log(self, batch, batch_idx):
        self.mean(batch)
        self.log("m", self.mean, on_step=True, on_epoch=True, prog_bar=True)

    module = logging_steps(log)
    callback, logged, bar = after_fit(module)
    assert callback == {"m": 3.0, "m_step": 5.0, "m_epoch": 3.0}
    assert logged == bar == {"m_step": 5.0, "m_epoch": 3.0}


def test_a_metric_object_is_reset_when_an_epoch_is_over(quiet_trainer):
    class Logs(Steps):
        def validation_step(self, batch, batch_idx):
            self.mean.update(batch * (1 + self.current_epoch))
            self.log("m", self.mean)

    module, trainer = Logs(), quiet_trainer(max_epochs=2)
    trainer.fit(module, numbers(), numbers())
    assert as_numbers(trainer.callback_metrics) == {"m": 6.0}  # of the second epoch alone
    assert module.mean.update_count == 0


def test_a_metric_that_was_only_updated_has_no_step_s_value(after_fit):
    def log(self, batch, batch_idx):
        self.mean.update(batch)
        self.log("m", self.mean, on_step=True)

    assert after_fit(logging_steps(log))[0] == {}


def test_the_computed_value_of_a_metric_is_a_number_like_others(after_fit):
    def log(self, batch, batch_idx):
        self.mean.update(batch)
        self.log("m", self.mean.compute(), on_epoch=True)

    # Means so far 1.5, 2.5 and 3.0, weighted by batches of 2, 2 and 1: nothing resets a metric that is not logged.
    assert after_fit(logging_steps(log))[0]["m_epoch"] == pytest.approx(2.2)


def test_a_collection_is_logged_by_log_dict(after_fit):
    def log(self, batch, batch_idx):
        self.several.update(batch)
        self.log_dict(self.several, on_step=False, on_epoch=True)

    assert after_fit(logging_steps(log))[0] == {"mean": 3.0, "max": 5.0}


def test_a_collection_given_to_log_is_refused(after_fit):
    with pytest.raises(MisconfigurationError, match="MetricCollection"):
        after_fit(logging_steps(lambda self, batch, _: self.log("c", self.several)))


def test_two_metrics_under_one_name_are_refused(after_fit):
    def log(self, batch, batch_idx):
        self.mean(batch), self.other(batch)
        self.log("m", self.other if batch_idx else self.mean)

    with pytest.raises(MisconfigurationError, match="'m'.*two different metrics"):
        after_fit(logging_steps(log))


# ---- types


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3.0), (True, 1.0), (2.5, 2.5), (np.float32(2.5), 2.5), (np.float64(2.5), 2.5), (np.int64(2), 2.0),
        (torch.tensor(3), 3.0), (torch.tensor(True), 1.0), (torch.ones(1), 1.0), (torch.ones(1, 1), 1.0),
        (torch.tensor(1.5, dtype=torch.float64), 1.5), (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
        (float("inf"), math.inf),
    ],
)  # fmt: skip
def test_numbers_and_tensors_with_one_element_are_taken(after_fit, value, expected):
    module = logging_steps(lambda self, batch, _: self.log("x", value, on_epoch=True))
    assert after_fit(module)[0] == {"x": expected, "x_step": expected, "x_epoch": expected}


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("text", "received str: 'text'; expected a number"),
        (None, "received NoneType"),
        ([1.0], "received list"),
        (1j, "received complex"),
        (np.ones(2), "received ndarray"),
        (torch.ones(2), r"a tensor of shape \(2,\); expected one number"),
        (torch.ones(0), r"a tensor of shape \(0,\)"),
        ({"a": 1.0}, "received a dict; give its values by self.log_dict"),
    ],
)
def test_other_values_are_refused(after_fit, value, complaint):
    with pytest.raises(MisconfigurationError, match=complaint):
        after_fit(logging_steps(lambda self, batch, _: self.log("x", value)))


def test_a_value_that_is_not_to_be_recorded_at_all_is_refused(after_fit):
    with pytest.raises(MisconfigurationError, match="records nothing"):
        after_fit(logging_steps(lambda self, batch, _: self.log("x", 1.0, on_step=False)))


# ---- hooks


@pytest.mark.parametrize(
    "hook",
    [
        "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_zero_grad", "optimizer_zero_grad",
        "on_before_backward", "backward", "on_after_backward", "on_before_optimizer_step",
        "configure_gradient_clipping", "optimizer_step", "on_train_batch_end", "on_train_epoch_end",
        "on_validation_start", "on_validation_epoch_start", "on_validation_batch_start", "validation_step",
        "on_validation_batch_end", "on_validation_epoch_end",
    ],
)  # fmt: skip
def test_every_hook_of_training_and_validation_may_log(after_fit, hook):
    module = logging_in(hook, lambda self: self.log("x", 1.0))
    assert after_fit(module, gradient_clip_val=1.0)[0] == {"x": 1.0}


@pytest.mark.parametrize(
    "hook",
    ["on_test_start", "on_test_epoch_start", "on_test_batch_start", "on_test_batch_end", "on_test_epoch_end"],
)
def test_every_hook_of_the_test_may_log(quiet_trainer, hook):
    module = logging_in(hook, lambda self: self.log("x", 1.0))
    assert quiet_trainer().test(module, numbers(), verbose=False) == [{"x": 1.0}]


@pytest.mark.parametrize(
    "hook",
    [
        "setup", "prepare_data", "configure_callbacks", "configure_model", "configure_optimizers", "on_fit_start",
        "on_train_end", "on_fit_end", "on_validation_end", "teardown",
    ],
)  # fmt: skip
def test_hooks_outside_the_epochs_refuse_and_are_named(after_fit, hook):
    with pytest.raises(MisconfigurationError, match=f"called in {hook}, where nothing can be recorded"):
        after_fit(logging_in(hook, lambda self: self.log("x", 1.0)))


@pytest.mark.parametrize(
    "hook", ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"]
)
def test_transfer_hooks_refuse(after_fit, hook):
    with pytest.raises(MisconfigurationError, match="nothing can be recorded"):
        after_fit(logging_in(hook, lambda self: self.log("x", 1.0)))


@pytest.mark.parametrize("hook", ["on_predict_start", "predict_step", "on_predict_batch_end"])
def test_prediction_refuses(quiet_trainer, hook):
    module = logging_in(hook, lambda self: self.log("x", 1.0))
    module.forward = module.layer.forward
    with pytest.raises(MisconfigurationError, match=f"called in {hook}"):
        quiet_trainer().predict(module, numbers())


def test_there_is_no_step_in_an_epoch_s_hook(after_fit):
    module = logging_in("on_train_epoch_end", lambda self: self.log("x", 1.0, on_step=True))
    with pytest.raises(MisconfigurationError, match="on_train_epoch_end: there is no step there"):
        after_fit(module)


def test_a_callback_logs_in_its_hooks_as_the_module_does(after_fit):
    class Logs(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.log("start", 4.0)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.log("step", batch.mean())
            self.log_dict({"sum": batch.sum()}, on_epoch=True, batch_size=1)

        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            self.log("val", batch.mean())

        def on_train_epoch_end(self, trainer, pl_module):
            self.log("end", 1.0)

    assert after_fit(Steps(), callbacks=[Logs()])[0] == {
        "start": 4.0, "step": 5.0, "sum": 5.0, "sum_step": 5.0, "sum_epoch": 5.0, "val": 3.0, "end": 1.0,
    }  # fmt: skip


def test_a_callback_is_refused_where_a_module_is(after_fit):
    class Logs(Callback):
        def on_fit_start(self, trainer, pl_module):
            self.log("x", 1.0)

    with pytest.raises(MisconfigurationError, match="called in on_fit_start"):
        after_fit(Steps(), callbacks=[Logs()])
