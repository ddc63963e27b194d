"""Which rates `LearningRateMonitor` records, when, and under which keys."""

import csv
from pathlib import Path

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ExponentialLR

from headstart import Callback
from headstart.callbacks import LearningRateMonitor
from headstart.errors import MisconfigurationError
from headstart.loggers import CSVLogger
from headstart.plan import Phase, Plan
from tests.callbacks.test_plan import fit as fit_plan


@pytest.fixture
def record(fit, scripted, tmp_path):
    """Fit a module with the given optimizers for two epochs of four steps; gives the monitor and the CSV rows."""

    def run(configure, *others, monitor=None, manual=False, **settings):
        class Net(scripted):
            def __init__(self):
                super().__init__()
                self.other = torch.nn.Linear(2, 1)
                self.automatic_optimization = not manual

            def training_step(self, batch, batch_idx):
                if not manual:
                    return self.layer(batch[0]).sum() + self.other(batch[0]).sum()
                for optimizer in self.optimizers():
                    optimizer.step()
                return None

            def configure_optimizers(self):
                return configure(self)

        monitor = monitor or LearningRateMonitor()
        logger = CSVLogger(tmp_path)
        settings = {"log_every_n_steps": 1, "max_epochs": 2, "logger": logger, **settings}
        fit(Net(), monitor, *others, limit_val_batches=0, **settings)
        file = Path(logger.log_dir) / "metrics.csv"
        with file.open(newline="") as opened:
            return monitor, list(csv.DictReader(opened))

    return run


def values(rows, key):
    return [(int(row["step"]), float(row[key])) for row in rows if row.get(key)]


def with_scheduler(interval="epoch", **extra):
    def configure(net):
        optimizer = SGD(net.parameters(), lr=0.1)
        return [optimizer], [{"scheduler": ExponentialLR(optimizer, 0.5), "interval": interval, **extra}]

    return configure


def two_groups(net, **names):
    return SGD(
        [{"params": net.layer.parameters()}, {"params": net.other.parameters(), "lr": 0.5}],
        lr=0.1,
        momentum=0.9,
    )


def test_without_a_scheduler_steps_and_epochs_are_recorded(record):
    monitor, rows = record(lambda net: SGD(net.parameters(), lr=0.1))
    assert monitor.lrs == {"lr-SGD": [0.1] * 10}
    assert sorted(step for step, _ in values(rows, "lr-SGD")) == [0, 0, 1, 2, 3, 4, 4, 5, 6, 7]


def test_a_scheduler_of_epochs_is_recorded_each_epoch(record):
    monitor, rows = record(with_scheduler())
    assert monitor.lrs == {"lr-SGD": [0.1, 0.05]}
    assert values(rows, "lr-SGD") == [(0, 0.1), (4, 0.05)]


def test_a_scheduler_of_steps_is_recorded_each_step(record):
    monitor, rows = record(with_scheduler("step"), max_epochs=1)
    assert monitor.lrs == {"lr-SGD": [0.1, 0.05, 0.025, 0.0125]}
    assert [step for step, _ in values(rows, "lr-SGD")] == [0, 1, 2, 3]


@pytest.mark.parametrize(("interval", "every", "steps"), [("epoch", 1, [0, 4]), ("step", 2, [1, 3, 5, 7])])
def test_the_interval_can_be_chosen(record, interval, every, steps):
    _, rows = record(with_scheduler(), monitor=LearningRateMonitor(interval), log_every_n_steps=every)
    assert [step for step, _ in values(rows, "lr-SGD")] == steps


def test_accumulated_batches_are_recorded_once(record):
    monitor, _ = record(with_scheduler("step"), max_epochs=1, accumulate_grad_batches=2)
    assert monitor.lrs == {"lr-SGD": [0.1, 0.05]}


def test_groups_have_a_number_each(record):
    monitor, _ = record(two_groups)
    assert {key: rates[0] for key, rates in monitor.lrs.items()} == {"lr-SGD/pg1": 0.1, "lr-SGD/pg2": 0.5}


def test_groups_with_a_name_go_by_it(record):
    def configure(net):
        return SGD(
            [{"params": net.layer.parameters(), "name": "head"}, {"params": net.other.parameters()}], lr=0.1
        )

    monitor, _ = record(configure)
    assert monitor.lrs.keys() == {"lr-SGD/head", "lr-SGD/pg2"}


def test_one_group_with_a_name_goes_by_it(record):
    monitor, _ = record(lambda net: SGD([{"params": net.parameters(), "name": "all"}], lr=0.1))
    assert monitor.lrs.keys() == {"lr-SGD/all"}


def test_a_scheduler_may_name_the_rate(record):
    monitor, _ = record(with_scheduler(name="rate"))
    assert monitor.lrs.keys() == {"rate"}


class SetsRates(Callback):
    """Sets the rate of each batch as it begins."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        trainer.optimizers[0].param_groups[0]["lr"] = 1 / (1 + trainer.global_step)


@pytest.mark.parametrize(
    ("interval", "rates"), [("epoch", [1.0, 1 / 5]), ("step", [1 / n for n in range(1, 9)])]
)
@pytest.mark.parametrize("stands_first", [True, False])
def test_rates_that_are_set_as_a_batch_begins_are_the_ones_recorded(
    fit, scripted, tmp_path, interval, rates, stands_first
):
    monitor = LearningRateMonitor(interval)
    callbacks = [monitor, SetsRates()] if stands_first else [SetsRates(), monitor]
    fit(scripted(), *callbacks, max_epochs=2, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    assert monitor.lrs == {"lr-SGD": rates}


def test_an_epochs_rates_are_those_of_the_plans_schedule(tmp_path):
    phase = Phase(name="all", trains="head", lr=1.0, epochs=2, warmup_steps=2, schedule="linear")
    monitor, logger = LearningRateMonitor("epoch"), CSVLogger(tmp_path)
    fit_plan(Plan(phases=[phase]), None, monitor, logger=logger)
    # Three steps an epoch: 1/2, 1, 1, and 3/4, 1/2, 1/4.
    assert monitor.lrs["lr-SGD/head"] == pytest.approx([0.5, 0.75])
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        assert values(csv.DictReader(file), "lr-SGD/head") == [(0, 0.5), (3, 0.75)]


def test_a_group_added_in_mid_run_is_recorded_from_then_on(record):
    class AddsGroup(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.optimizers[0].add_param_group(
                    {"params": list(pl_module.other.parameters()), "lr": 0.3}
                )

    def configure(net):
        return SGD(net.layer.parameters(), lr=0.1)

    monitor, rows = record(configure, AddsGroup(), monitor=LearningRateMonitor("step"))
    assert monitor.lrs == {"lr-SGD/pg1": [0.1] * 8, "lr-SGD/pg2": [0.3] * 4}
    assert [step for step, _ in values(rows, "lr-SGD")] == [0, 1, 2, 3]
    assert values(rows, "lr-SGD/pg2") == [(step, 0.3) for step in (4, 5, 6, 7)]


def test_two_optimizers_of_a_class_are_told_apart(record):
    monitor, _ = record(
        lambda net: [SGD(net.layer.parameters(), lr=0.1), SGD(net.other.parameters(), lr=0.2)], manual=True
    )
    assert {key: rates[0] for key, rates in monitor.lrs.items()} == {"lr-SGD": 0.1, "lr-SGD-1": 0.2}


def test_momentum_and_weight_decay_are_recorded_when_asked_for(record):
    monitor = LearningRateMonitor("epoch", log_momentum=True, log_weight_decay=True)
    _, rows = record(two_groups, monitor=monitor, max_epochs=1)
    assert values(rows, "lr-SGD/pg2-momentum") == [(0, 0.9)]
    assert values(rows, "lr-SGD/pg2-weight_decay") == [(0, 0.0)]


def test_adams_first_beta_is_its_momentum(record):
    monitor = LearningRateMonitor("epoch", log_momentum=True)
    _, rows = record(
        lambda net: AdamW(net.parameters(), lr=0.1, betas=(0.8, 0.99)), monitor=monitor, max_epochs=1
    )
    assert values(rows, "lr-AdamW-momentum") == [(0, 0.8)]


def test_without_a_logger_the_error_says_what_to_do(record):
    with pytest.raises(MisconfigurationError, match="nowhere to record.*logger=CSVLogger"):
        record(with_scheduler(), logger=False)


def test_a_trial_run_needs_no_logger(fit, scripted):
    fit(scripted(), LearningRateMonitor(), fast_dev_run=True)


def test_two_groups_with_one_name_are_refused(record):
    def configure(net):
        return SGD([{"params": each.parameters(), "name": "a"} for each in (net.layer, net.other)], lr=0.1)

    with pytest.raises(MisconfigurationError, match="Two parameter groups of lr-SGD have the name 'a'"):
        record(configure)


def test_an_interval_that_is_none_is_refused():
    with pytest.raises(MisconfigurationError, match="logging_interval='batch'"):
        LearningRateMonitor("batch")
