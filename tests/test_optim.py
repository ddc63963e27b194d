"""Schedulers go on when a parameter group joins late, and the late group follows the schedule from its own rate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader, TensorDataset

from headstart import Callback, LightningModule, Trainer
from headstart.callbacks import BackboneFinetuning, BaseFinetuning
from headstart.errors import CheckpointError, MisconfigurationError
from headstart.optim import SchedulerConfig, group_names, read_configuration, rebase, regroup, sync_scheduler

NUM_EPOCHS, NUM_BATCHES = 5, 3

SETUPS = {
    "StepLR": lambda o: schedulers.StepLR(o, 2, gamma=0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 4, 7], gamma=0.3),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.8),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, T_max=20),
    "LinearLR": lambda o: schedulers.LinearLR(o, start_factor=0.2, total_iters=6),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, factor=0.25, total_iters=3),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, total_iters=20, power=2.0),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o, 0.1, 3), schedulers.ExponentialLR(o, 0.9)], milestones=[3]
    ),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0, factor=0.7),
    "ReduceLROnPlateau with a min_lr list": lambda o: schedulers.ReduceLROnPlateau(
        o, patience=0, factor=0.7, min_lr=[0.04]
    ),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: min((step + 1) / 4, 1.0)),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda step: 0.9 if step % 2 else 0.8),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=4),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, max_lr=0.3, total_steps=40),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, base_lr=0.02, max_lr=0.1, step_size_up=3),
    # Beyond the fifteen: nested ones, and a floor of each kind.
    "SequentialLR with LambdaLR and cosine": lambda o: schedulers.SequentialLR(
        o,
        [schedulers.LambdaLR(o, lambda step: (step + 1) / 5), schedulers.CosineAnnealingWarmRestarts(o, T_0=9)],
        milestones=[4],
    ),
    "SequentialLR with a late milestone": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=9), schedulers.MultiplicativeLR(o, lambda step: 0.9)], milestones=[9]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.1, 4), schedulers.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "triangular2": lambda o: schedulers.CyclicLR(o, base_lr=0.02, max_lr=0.1, step_size_up=2, mode="triangular2"),
}  # fmt: skip

intervals = pytest.mark.parametrize("interval", ["step", "epoch"])


class Net(LightningModule):
    def __init__(self, make_scheduler, interval: str, *, all_parameters: bool = False):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 1)
        self.make_scheduler, self.interval, self.all_parameters = make_scheduler, interval, all_parameters

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("never better", 1.0)
        return self.head(self.backbone(batch[0])).square().mean()

    def configure_optimizers(self) -> Any:
        parameters = self.parameters() if self.all_parameters else self.head.parameters()
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        config = {
            "scheduler": self.make_scheduler(optimizer),
            "interval": self.interval,
            "monitor": "never better",
        }
        return {"optimizer": optimizer, "lr_scheduler": config}


class ThawOnce(BaseFinetuning):
    """Thaws at epoch 1 at a tenth of the head's rate, and leaves the rate to the scheduler ever after."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)


class Rates(Callback):
    """The rates and momenta of all groups, at each batch."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.momenta: list[list[float]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        groups = trainer.optimizers[0].param_groups
        self.rates.append([group["lr"] for group in groups])
        self.momenta.append([group["momentum"] for group in groups])


def run(make_scheduler, interval: str, finetuning: BaseFinetuning, **options: Any) -> tuple[Rates, Trainer]:
    rates = Rates()
    trainer = Trainer(
        max_epochs=NUM_EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[finetuning, rates],
    )  # fmt: skip
    data = DataLoader(TensorDataset(torch.randn(2 * NUM_BATCHES, 3)), batch_size=2)
    trainer.fit(Net(make_scheduler, interval, **options), data)
    return rates, trainer


def rates_of_one_group(make_scheduler, interval: str) -> list[float]:
    """The rates of an optimizer that never gets a second group, from a plain loop."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    scheduler = make_scheduler(optimizer)
    step = (
        (lambda: scheduler.step(1.0))
        if isinstance(scheduler, schedulers.ReduceLROnPlateau)
        else scheduler.step
    )
    rates = []
    for _ in range(NUM_EPOCHS):
        for _ in range(NUM_BATCHES):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if interval == "step":
                step()
        if interval == "epoch":
            step()
    return rates


@intervals
@pytest.mark.parametrize("name", SETUPS)
def test_a_late_group_follows_the_schedule_from_its_own_rate(name, interval):
    recorded, _ = run(SETUPS[name], interval, ThawOnce())
    expected = rates_of_one_group(SETUPS[name], interval)
    assert [rates[0] for rates in recorded.rates] == pytest.approx(expected, rel=1e-9)
    assert [len(rates) for rates in recorded.rates] == [1] * NUM_BATCHES + [2] * NUM_BATCHES * (
        NUM_EPOCHS - 1
    )
    late = [rates[1] for rates in recorded.rates[NUM_BATCHES:]]
    # In proportion to a schedule without a floor: a tenth of the head's rate when it joined is a tenth for ever.
    assert late == pytest.approx([0.1 * rate for rate in expected[NUM_BATCHES:]], rel=1e-9)
    assert all(len(set(momenta)) == 1 for momenta in recorded.momenta)


@intervals
@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.parametrize("all_parameters", [False, True])
def test_backbone_finetuning_runs_through_its_thawing(name, interval, all_parameters):
    finetuning = BackboneFinetuning(1, train_bn=False, should_align=True)
    if all_parameters:
        with pytest.warns(UserWarning, match="parameters of the backbone stood in one group with others"):
            recorded, _ = run(SETUPS[name], interval, finetuning, all_parameters=True)
    else:
        recorded, _ = run(SETUPS[name], interval, finetuning)
    expected = rates_of_one_group(SETUPS[name], interval)
    assert [rates[0] for rates in recorded.rates] == pytest.approx(expected, rel=1e-9)
    previous = None
    for epoch in range(1, NUM_EPOCHS):
        head = expected[epoch * NUM_BATCHES : (epoch + 1) * NUM_BATCHES]
        backbone = [rates[1] for rates in recorded.rates[epoch * NUM_BATCHES : (epoch + 1) * NUM_BATCHES]]
        # The callback sets the rate where an epoch begins; within it, the schedule moves both alike.
        begin = 0.1 * head[0] if previous is None else min(2.0 * previous, head[0])
        assert backbone == pytest.approx([begin * rate / head[0] for rate in head], rel=1e-9)
        previous = begin


@intervals
@pytest.mark.parametrize(
    "make_scheduler",
    [
        pytest.param(
            lambda o: schedulers.CosineAnnealingLR(o, T_max=20, eta_min=0.001), id="CosineAnnealingLR"
        ),
        pytest.param(
            lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=20, eta_min=0.001),
            id="CosineAnnealingWarmRestarts",
        ),
    ],
)
def test_a_late_group_keeps_its_share_above_a_floor(make_scheduler, interval):
    recorded, _ = run(make_scheduler, interval, ThawOnce())
    above = [
        (late - 0.001) / (head - 0.001) for head, late in (each for each in recorded.rates if len(each) == 2)
    ]
    first = recorded.rates[NUM_BATCHES]
    assert first[1] == pytest.approx(0.1 * first[0])
    assert above == pytest.approx([above[0]] * len(above), rel=1e-6)


def test_the_floor_of_a_plateau_is_in_proportion_for_a_late_group():
    recorded, _ = run(
        lambda o: schedulers.ReduceLROnPlateau(o, patience=0, factor=0.1, min_lr=[0.02]), "epoch", ThawOnce()
    )
    assert recorded.rates[-1] == pytest.approx([0.02, 0.002])


def optimizer_of(*widths: int, lr: float = 0.1) -> tuple[torch.optim.Optimizer, nn.Module]:
    module = nn.ModuleList(nn.Linear(width, 1) for width in widths)
    return torch.optim.SGD([{"params": layer.parameters()} for layer in module], lr=lr, momentum=0.5), module


def test_telling_a_scheduler_of_its_groups_twice_changes_nothing():
    optimizer, module = optimizer_of(1)
    scheduler = schedulers.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.01})
    sync_scheduler(scheduler)
    once = (list(scheduler.base_lrs), len(scheduler.lr_lambdas))
    sync_scheduler(scheduler)
    assert (scheduler.base_lrs, len(scheduler.lr_lambdas)) == once == ([0.1, 0.01], 2)


def test_a_group_that_joins_while_the_schedule_stands_at_zero_takes_its_rate_as_base():
    optimizer, _ = optimizer_of(1)
    scheduler = schedulers.LambdaLR(optimizer, lambda step: step / 10)  # warm-up from zero
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.01})
    sync_scheduler(scheduler)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.001])


def test_a_rate_that_was_set_by_hand_is_the_new_base_of_its_group():
    optimizer, _ = optimizer_of(1, 2)
    scheduler = schedulers.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.param_groups[1]["lr"] = 0.04
    rebase(scheduler, 1, previous=0.1)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.02])


def test_regroup_makes_the_groups_that_the_names_say():
    optimizer, module = optimizer_of(1, 2)
    names = [["0.weight"], [], ["1.bias", "0.bias"]]
    regroup(optimizer, names, module)
    assert group_names(optimizer, module) == names
    assert [group["momentum"] for group in optimizer.param_groups] == [0.5, 0.5, 0.5]


def test_regroup_refuses_a_name_that_the_module_does_not_have():
    optimizer, module = optimizer_of(1)
    with pytest.raises(CheckpointError, match=r"'0.wieght'.*Did you mean '0.weight'\?"):
        regroup(optimizer, [["0.wieght"]], module)


# ---- accumulation


@pytest.mark.parametrize("num_batches", [4, 5, 6, 7])
def test_the_short_last_window_of_accumulation_is_divided_by_what_it_holds(num_batches):
    # F11: the peer divides it by a full window's length.
    class Mean(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.gradients: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return (self.weight * batch[0]).mean()

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.gradients.append(self.weight.grad.item())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    module, values = Mean(), torch.arange(1.0, num_batches + 1)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, accumulate_grad_batches=4,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(values[:, None]), batch_size=1))
    assert module.gradients == pytest.approx([window.mean().item() for window in values.split(4)])


# ---- every form of configure_optimizers


def test_every_form_of_configure_optimizers_is_read():
    optimizer, _ = optimizer_of(1)
    other, _ = optimizer_of(2)
    scheduler = schedulers.StepLR(optimizer, 1)

    def read(configured: Any) -> tuple[list[Any], list[Any]]:
        optimizers, configs = read_configuration(configured, module_name="Net")
        return optimizers, [config.scheduler for config in configs]

    assert read(None) == ([], [])
    assert read(optimizer) == ([optimizer], [])
    assert read([optimizer, other]) == read((optimizer, other)) == ([optimizer, other], [])
    assert read(([optimizer], [scheduler])) == ([optimizer], [scheduler])
    assert read(([optimizer], [{"scheduler": scheduler}])) == ([optimizer], [scheduler])
    assert read([[optimizer, other], []]) == ([optimizer, other], [])
    assert read({"optimizer": optimizer}) == ([optimizer], [])
    assert read({"optimizer": optimizer, "lr_scheduler": scheduler}) == ([optimizer], [scheduler])
    assert read(
        [{"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}, {"optimizer": other}]
    ) == (
        [optimizer, other],
        [scheduler],
    )


def test_a_scheduler_dict_keeps_its_interval_frequency_and_name():
    optimizer, _ = optimizer_of(1)
    scheduler = schedulers.StepLR(optimizer, 1)
    given = {"scheduler": scheduler, "interval": "step", "frequency": 3, "name": "mine"}
    _, (config,) = read_configuration(([optimizer], [given]), module_name="Net")
    assert config == SchedulerConfig(scheduler, interval="step", frequency=3, name="mine")


@pytest.mark.parametrize(
    ("configured", "message"),
    [
        (lambda o: 3, r"Net.configure_optimizers returned int: 3; expected an optimizer"),
        (lambda o: {"optimiser": o}, r"unknown key 'optimiser'. Did you mean 'optimizer'\?"),
        (lambda o: {"lr_scheduler": None}, r"lacks the key 'optimizer'"),
        (
            lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": None, "intervall": "step"}},
            r"unknown key 'intervall'. Did you mean 'interval'\?",
        ),
        (
            lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": schedulers.StepLR(o, 1), "interval": "batch"}},
            r"interval is 'batch'; expected 'epoch' or 'step'",
        ),
        (lambda o: {"optimizer": o, "lr_scheduler": schedulers.ReduceLROnPlateau(o)}, r'"monitor": "val_loss"'),
        (lambda o: ([o], ["StepLR"]), r"'StepLR' is no scheduler"),
    ],
)  # fmt: skip
def test_a_slip_in_configure_optimizers_is_answered(configured, message):
    optimizer, _ = optimizer_of(1)
    with pytest.raises(MisconfigurationError, match=message):
        read_configuration(configured(optimizer), module_name="Net")
