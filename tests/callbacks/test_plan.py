"""A plan in a run: what trains when, at which rate, and with which weights a phase ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from headstart import Callback, LightningModule, Trainer, freezing
from headstart.callbacks import BackboneFinetuning, LearningRateMonitor
from headstart.callbacks import plan as plan_module
from headstart.callbacks.plan import PlanRunner, runner_of, table_of
from headstart.errors import MisconfigurationError, UnknownNameError
from headstart.loggers import CSVLogger
from headstart.plan import LoRA, Phase, Plan
from headstart.plans import PLANS, named_plan
from tests.test_optim import NUM_BATCHES, NUM_EPOCHS, SETUPS, Rates, intervals, rates_of_one_group

HEAD = ["head.weight", "head.bias"]


class Net(LightningModule):
    """Three blocks with batch norms, and a head; it logs what it is told as `val`."""

    def __init__(self, values: Any = (), *, make_scheduler=None, interval: str = "epoch", optimizer=None):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            *(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.BatchNorm1d(6)) for _ in range(3))
        )
        self.head = nn.Linear(6, 3)
        self.values = list(values)
        self.make_scheduler, self.interval, self.make_optimizer = make_scheduler, interval, optimizer

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = cross_entropy(self.head(self.backbone(batch[0])), batch[1])
        self.log("never better", 1.0)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.values[min(self.current_epoch, len(self.values) - 1)] if self.values else 0.0)

    def configure_optimizers(self) -> Any:
        if self.make_optimizer is not None:
            return self.make_optimizer(self)
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        if self.make_scheduler is None:
            return optimizer
        config = {
            "scheduler": self.make_scheduler(optimizer),
            "interval": self.interval,
            "monitor": "never better",
        }
        return {"optimizer": optimizer, "lr_scheduler": config}


def data(count: int = 2 * NUM_BATCHES, *, batch_size: int = 2) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(count, 6, generator=generator), torch.randint(3, (count,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def trainer_of(plan: Any, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        plan=plan, callbacks=list(callbacks), accelerator="cpu", num_sanity_val_steps=0, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **{"logger": False, **options},
    )  # fmt: skip


def fit(
    plan: Any, module: LightningModule | None = None, *callbacks: Callback, loader=None, **options: Any
) -> Trainer:
    trainer = trainer_of(plan, *callbacks, **options)
    trainer.fit(module or Net(), data() if loader is None else loader, data())
    return trainer


def two_phases(**settings: Any) -> Plan:
    return Plan(
        phases=[
            Phase(name="head", trains="head", lr=0.1, epochs=2),
            Phase(name="all", trains="all", lr=0.05, backbone_lr=0.01, epochs=3),
        ],
        **settings,
    )


class Watch(Callback):
    """What trains at each batch, which groups there are, and their rates."""

    def __init__(self) -> None:
        self.trains: list[list[str]] = []
        self.groups: list[list[str]] = []
        self.rates: list[dict[str, float]] = []
        self.decays: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        groups = trainer.optimizers[0].param_groups
        self.trains.append([name for name, each in pl_module.named_parameters() if each.requires_grad])
        self.groups.append([group["name"] for group in groups])
        self.rates.append({group["name"]: group["lr"] for group in groups})
        self.decays.append({group["name"]: group["weight_decay"] for group in groups})


# ---- what trains


def test_each_phase_trains_what_it_says_in_groups_that_are_there_from_the_first_step():
    watch = Watch()
    trainer = fit(two_phases(), None, watch)
    assert (trainer.current_epoch, trainer.global_step) == (5, 5 * NUM_BATCHES)
    assert watch.trains[: 2 * NUM_BATCHES] == [HEAD] * 2 * NUM_BATCHES
    assert all(len(each) == 14 for each in watch.trains[2 * NUM_BATCHES :])
    names = ["backbone", "backbone, no decay", "head", "head, no decay"]
    assert [sorted(each) for each in watch.groups] == [names] * 5 * NUM_BATCHES
    assert watch.rates[0]["head"] == 0.1
    assert watch.rates[-1] == {
        "backbone": 0.01,
        "backbone, no decay": 0.01,
        "head": 0.05,
        "head, no decay": 0.05,
    }


def test_the_weights_are_those_of_a_plain_loop():
    module, plain = Net(), Net()
    fit(two_phases(), module)
    parameters = [plain.backbone.parameters(), plain.head.parameters()]
    optimizer = torch.optim.SGD([{"params": list(each)} for each in parameters], lr=0.1, momentum=0.9)
    for epoch in range(5):
        plain.backbone.requires_grad_(epoch >= 2)
        plain.backbone.train(epoch >= 2)
        if epoch == 2:
            optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.01, 0.05
        for x, y in data():
            loss = cross_entropy(plain.head(plain.backbone(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name


def test_what_somebody_else_thaws_is_frozen_again():
    class Meddle(Callback):
        def on_train_epoch_start(self, trainer, pl_module) -> None:
            pl_module.backbone[0].requires_grad_(True)

        def on_validation_start(self, trainer, pl_module) -> None:
            pl_module.backbone.requires_grad_(True)

    class Thawing(Net):
        def on_train_epoch_start(self) -> None:
            self.backbone[1].requires_grad_(True)

    class Last(Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            seen.append([name for name, each in pl_module.named_parameters() if each.requires_grad])

    seen: list[list[str]] = []
    module, before = Thawing(), Net().backbone.state_dict()
    fit(named_plan("linear_probe", epochs=2), module, Meddle(), Last())
    assert seen == [HEAD, HEAD]
    assert all(torch.equal(value, before[name]) for name, value in module.backbone.state_dict().items())


def test_what_a_phase_freezes_stands_still_where_gradients_are_set_to_zero_and_not_to_none():
    class Zeroes(Net):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.1)  # which steps on a gradient of zeros, too

        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            optimizer.zero_grad(set_to_none=False)

    seen = []

    class Watches(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append([each.detach().clone() for each in pl_module.backbone.parameters()])

    phases = (Phase(name="all", trains="all", epochs=1), Phase(name="head", trains="head", epochs=2))
    fit(Plan(phases=phases), Zeroes(), Watches())
    assert not torch.equal(seen[0][0], seen[NUM_BATCHES][0])
    for now in seen[NUM_BATCHES:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[NUM_BATCHES], now, strict=True))


def test_a_phase_begins_with_the_rates_of_what_trains_in_it(capsys):
    plan = named_plan("gradual", num_blocks=1, lr=0.1, layer_decay=0.5)
    fit(plan)
    printed = capsys.readouterr().err
    assert "Phase 'last 1 block' begins: learning rates 0.05, 0.1.\n" in printed
    assert "Phase 'all' begins: learning rates 0.0125, 0.025, 0.05, 0.1.\n" in printed


def test_the_figures_of_a_block_that_is_not_found_yet_are_said_to_be_of_another(capsys):
    fit(named_plan("surgical", head_epochs=1, epochs=1))
    assert "the figures are for the first one" in capsys.readouterr().err
    fit(Plan(phases=[Phase(name="a", trains="best block", epochs=1)]))
    assert "the figures are for the first one" not in capsys.readouterr().err


@pytest.mark.parametrize("norms", ["train", "frozen", "adapt"])
def test_the_norms_do_what_their_policy_says(norms):
    module = Net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(Plan(phases=[Phase(name="all", trains="all", norms=norms, epochs=2)]), module)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert ("backbone.0.2.weight" in changed) == (norms == "train")
    assert ("backbone.0.2.running_mean" in changed) == (norms != "frozen")
    assert "backbone.0.0.weight" in changed


def test_a_pin_of_the_users_own_outlives_a_plan():
    module = Net()
    freezing.pin_mode(module.backbone[0], "eval")
    before = module.backbone[0][2].running_mean.clone()
    fit(named_plan("full", epochs=1), module)
    assert torch.equal(module.backbone[0][2].running_mean, before)


def test_a_plan_takes_its_own_pins_away_when_it_ends():
    module = Net()
    freezing.pin_mode(module.backbone[0][2], "train")
    plan = Plan(phases=[Phase(name="all", trains="all", norms="frozen", epochs=1)])
    fit(plan, module)
    assert freezing.pinned_modules(module) == {"backbone.0.2": "train"}

    class Fails(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            assert set(freezing.pinned_modules(pl_module).values()) == {"eval"}
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        fit(plan, module, Fails())
    assert freezing.pinned_modules(module) == {"backbone.0.2": "train"}
    # The next plan trains them.
    before = module.backbone[1][2].running_mean.clone()
    fit(named_plan("full", epochs=1), module)
    assert not torch.equal(module.backbone[1][2].running_mean, before)


# ---- how long


def test_a_phase_of_steps_may_end_within_an_epoch():
    watch = Watch()
    plan = Plan(phases=[Phase(name="head", trains="head", steps=4), Phase(name="all", trains="all", steps=3)])
    trainer = fit(plan, None, watch)
    assert trainer.global_step == 7
    assert [len(each) for each in watch.trains] == [2] * 4 + [14] * 3


def test_a_phase_of_epochs_that_begins_within_one_has_the_rest_of_it_beside_its_own():
    watch = Watch()
    phases = [
        Phase(name="a", trains="head", steps=NUM_BATCHES + 1),
        Phase(name="b", trains="all", lr=0.1, epochs=2, schedule="linear"),
    ]
    trainer = fit(Plan(phases=phases), None, watch)
    rest = NUM_BATCHES - 1
    assert (trainer.current_epoch, trainer.global_step) == (4, 4 * NUM_BATCHES)
    total = rest + 2 * NUM_BATCHES
    wanted = [0.1 * (1 - step / total) for step in range(total)]
    assert [each["head"] for each in watch.rates[NUM_BATCHES + 1 :]] == pytest.approx(wanted)
    history = runner_of(trainer).history
    assert [(each["name"], each["epoch"], each["step"]) for each in history] == [
        ("a", 0, 0),
        ("b", 2, NUM_BATCHES + 1),
    ]


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 12), (2, 8)])
def test_the_rest_of_an_epoch_is_counted_in_optimizer_steps(accumulate, steps):
    phases = [
        Phase(name="a", trains="head", steps=1),
        Phase(name="b", trains="all", epochs=3, schedule="linear"),
    ]
    trainer = fit(Plan(phases=phases), accumulate_grad_batches=accumulate)
    assert trainer.global_step == steps
    assert runner_of(trainer).history[-1]["rest"] == steps // 4 - 1


def test_a_run_cut_anywhere_goes_on_with_the_same_phases_and_rates(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    def make() -> Net:
        return Net(make_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7))

    plan = Plan(
        phases=[
            Phase(name="a", trains="head", lr=0.03, steps=NUM_BATCHES + 1),
            Phase(name="b", trains="all", lr=0.2, layer_decay=0.7, epochs=1),
            Phase(name="c", trains="all", layer_decay=0.5, epochs=1),
        ]
    )
    whole, module = Watch(), make()
    trainer = fit(plan, module, whole, Save())
    assert trainer.global_step == 4 * NUM_BATCHES
    for step in range(1, trainer.global_step):
        rest, resumed = Watch(), make()
        again = trainer_of(plan, rest)
        again.fit(resumed, data(), data(), ckpt_path=tmp_path / f"{step}.ckpt")
        assert rest.rates == whole.rates[step:]
        assert runner_of(again).history == runner_of(trainer).history
        for name, value in module.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (step, name)


class Climbs(LightningModule):
    """Its head is the number of steps that it has trained; the values of validation are given."""

    def __init__(self, values=None):
        super().__init__()
        self.backbone, self.head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.head.weight)
        self.values, self.judged = values, []

    def training_step(self, batch, batch_idx):
        return -self.head(batch[0]).mean()

    def validation_step(self, batch, batch_idx):
        self.judged.append((runner_of(self.trainer).phase, self.head.weight.item()))
        self.log("val", self.head.weight.item() if self.values is None else self.values.pop(0))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def ones(count: int) -> DataLoader:
    return DataLoader(TensorDataset(torch.ones(count, 1)))


def test_a_validation_at_a_phases_last_step_counts_for_that_phase():
    phases = [
        Phase(name="a", trains="head", lr=1.0, steps=4),
        Phase(name="b", trains="head", lr=0.5, steps=2),
    ]
    module = Climbs()
    trainer = trainer_of(Plan(phases=phases, monitor="val", mode="max"), max_epochs=1, val_check_interval=2)
    trainer.fit(module, ones(8), ones(1))
    assert module.judged == [(0, 2.0), (0, 4.0), (1, 5.0)]
    assert [each["best"] for each in runner_of(trainer).history] == [4.0, 5.0]


@pytest.mark.parametrize("at", ["batch", "validation"])
def test_a_run_cut_at_a_phases_last_validation_goes_on_alike(at, tmp_path):
    class Save(Callback):
        def save(self, trainer):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "cut.ckpt")

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            if at == "batch":
                self.save(trainer)

        def on_validation_end(self, trainer, pl_module) -> None:
            if at == "validation":
                self.save(trainer)

    def make(*callbacks: Callback) -> Trainer:
        phases = [
            Phase(name="a", trains="head", lr=1.0, steps=4),
            Phase(name="b", trains="all", lr=0.5, epochs=1),
        ]
        return trainer_of(Plan(phases=phases, monitor="val", mode="min"), *callbacks, val_check_interval=2)

    whole, rest = Climbs(), Climbs()
    trainer, again = make(Save()), make()
    trainer.fit(whole, ones(8), ones(1))
    again.fit(rest, ones(8), ones(1), ckpt_path=tmp_path / "cut.ckpt")
    assert runner_of(again).history == runner_of(trainer).history
    assert torch.equal(rest.head.weight, whole.head.weight)
    assert rest.judged == whole.judged[-len(rest.judged) :]


def test_a_run_that_must_go_on_beyond_its_plan_keeps_the_best_of_the_last_phase():
    module = Climbs([1.0, 2.0, 3.0, 4.0, 5.0])
    plan = Plan(phases=[Phase(name="a", trains="head", lr=1.0, epochs=2)], monitor="val", mode="min")
    trainer = trainer_of(plan, max_epochs=5, min_epochs=5)
    trainer.fit(module, ones(1), ones(1))
    assert trainer.current_epoch == 5
    assert module.head.weight.item() == 1.0


def test_a_run_that_was_cut_is_settled_with_the_best_weights_so_far():
    class Cut(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    module = Climbs([1.0, 2.0])
    plan = Plan(phases=[Phase(name="a", trains="head", lr=1.0, epochs=4)], monitor="val", mode="min")
    trainer = trainer_of(plan, Cut())
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(module, ones(1), ones(1))
    assert module.head.weight.item() == 3.0  # as it is saved, to go on from
    runner_of(trainer).settle(trainer, module)
    assert module.head.weight.item() == 1.0


def test_a_schedule_over_epochs_of_unknown_length_is_an_error():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(data().dataset)

    plan = Plan(phases=[Phase(name="all", trains="all", epochs=1, schedule="linear")])
    with pytest.raises(MisconfigurationError, match=r"Phase 'all': its linear schedule.*give steps="):
        fit(plan, loader=DataLoader(Stream(), batch_size=2))


def test_a_phase_ends_when_its_value_stops_improving():
    watch = Watch()
    plan = Plan(
        phases=[Phase(name="head", trains="head", patience=2), Phase(name="all", trains="all", patience=1)],
        monitor="val",
    )
    trainer = fit(plan, Net([1.0, 0.5, 0.6, 0.7, 0.9, 0.8, 0.85]), watch)
    assert trainer.current_epoch == 7
    assert [len(each) for each in watch.trains[::NUM_BATCHES]] == [2] * 4 + [14] * 3
    history = next(each for each in trainer.callbacks if isinstance(each, PlanRunner)).history
    assert [(each["name"], each["epoch"], round(each["best"], 6)) for each in history] == [
        ("head", 0, 0.5),
        ("all", 4, 0.8),
    ]


def test_a_phase_that_stops_improving_within_an_epoch_says_once_that_it_ends_with_it(capsys):
    plan = Plan(phases=[Phase(name="all", trains="all", patience=1)], monitor="val")
    assert fit(plan, Net([1.0]), val_check_interval=1 / NUM_BATCHES).current_epoch == 1
    assert capsys.readouterr().err.count("Phase 'all' ends with this epoch: val: no improvement") == 1


def test_the_trainer_may_end_before_the_plan():
    assert fit(two_phases(), max_epochs=1).current_epoch == 1


def test_a_phase_ends_with_its_best_weights():
    kept: dict[int, torch.Tensor] = {}

    class Keep(Callback):
        def on_validation_end(self, trainer, pl_module) -> None:
            kept[trainer.current_epoch] = pl_module.head.weight.detach().clone()

        def on_train_epoch_start(self, trainer, pl_module) -> None:
            if trainer.current_epoch == 2:
                assert torch.equal(pl_module.head.weight, kept[0])
                assert not trainer.optimizers[0].state, "moments of other weights"

    module = Net([0.1, 0.9, 0.5, 0.2, 0.4])
    fit(two_phases(monitor="val"), module, Keep())
    assert torch.equal(module.head.weight, kept[3])
    module = Net([0.1, 0.9, 0.5, 0.2, 0.4])
    fit(two_phases(), module)
    assert not torch.equal(module.head.weight, kept[3]), "without a value to watch, the last weights stay"


def test_a_value_that_nobody_logs_is_an_error_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Plan\(monitor='vla'\).*Did you mean 'val'"):
        fit(two_phases(monitor="vla"))


# ---- rates


@intervals
@pytest.mark.parametrize("name", SETUPS)
def test_every_schedule_goes_on_from_the_rates_of_a_phase(name, interval):
    """In proportion: after a phase has set a rate, that is what the schedule's next factors are of."""
    plan = Plan(
        phases=[
            Phase(name="head", trains="head", epochs=2),
            Phase(name="all", trains="all", lr=0.03, backbone_lr=0.003, epochs=NUM_EPOCHS - 2),
        ]
    )
    rates = Rates()
    trainer = fit(plan, Net(make_scheduler=SETUPS[name], interval=interval), rates)
    places = {group["name"]: index for index, group in enumerate(trainer.optimizers[0].param_groups)}
    expected, cut = rates_of_one_group(SETUPS[name], interval), 2 * NUM_BATCHES
    for group, rate in {"head": 0.03, "backbone": 0.003, "backbone, no decay": 0.003}.items():
        found = [each[places[group]] for each in rates.rates]
        assert found[:cut] == pytest.approx(expected[:cut], rel=1e-9)
        if "min_lr" not in name:  # a plateau's floor is a rate, and is in proportion too
            wanted = [rate * each / expected[cut] for each in expected[cut:]]
            assert found[cut:] == pytest.approx(wanted, rel=1e-9)


@intervals
@pytest.mark.parametrize(
    "make_scheduler",
    [
        *SETUPS.values(),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=0.01),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: step / 4),
    ],
    ids=[*SETUPS, "cosine with a floor", "warm-up from zero"],
)
def test_a_phase_without_a_rate_has_the_one_that_it_would_have_had_no_phase_set_one(make_scheduler, interval):
    plan = Plan(
        phases=[
            Phase(name="a", trains="all", lr=0.03, backbone_lr=0.003, epochs=2),
            Phase(name="b", trains="all", epochs=1),
            Phase(name="c", trains="all", layer_decay=0.5, epochs=2),
        ]
    )
    rates = Rates()
    trainer = fit(plan, Net(make_scheduler=make_scheduler, interval=interval), rates)
    places = {group["name"]: index for index, group in enumerate(trainer.optimizers[0].param_groups)}
    expected, cut = rates_of_one_group(make_scheduler, interval), 2 * NUM_BATCHES
    for name in ("head", "block 0", "block 2"):
        found = [each[places[name]] for each in rates.rates]
        assert found[cut : cut + NUM_BATCHES] == pytest.approx(expected[cut : cut + NUM_BATCHES], rel=1e-9)
    begins = 3 * NUM_BATCHES
    for name, factor in {"head": 1.0, "block 2": 0.5, "block 0": 0.125}.items():
        assert rates.rates[begins][places[name]] == pytest.approx(factor * expected[begins], rel=1e-9)


@pytest.mark.parametrize("first", [{"lr": 0.01}, {"lr": 0.01, "schedule": "linear"}, {"schedule": "linear"}])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_a_phase_without_a_rate_has_the_configured_one_whatever_was_before(first, layer_decay):
    watch = Watch()
    phases = [
        Phase(name="a", trains="all", epochs=1, **first),
        Phase(name="b", trains="all", epochs=1, layer_decay=layer_decay),
    ]
    fit(Plan(phases=phases), None, watch)
    for name, rate in watch.rates[-1].items():
        below = {"head": 0, "block 2": 1, "block 1": 2, "block 0": 3}.get(name.removesuffix(", no decay"), 0)
        assert rate == pytest.approx(0.1 * layer_decay**below), name


def test_a_warm_up_from_zero_rises_to_the_decayed_rate_of_each_block():
    def warm_up(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 3))

    watch = Watch()
    plan = Plan(phases=[Phase(name="all", trains="all", layer_decay=0.5, epochs=2)])
    fit(plan, Net(make_scheduler=warm_up, interval="step"), watch)
    assert watch.rates[0]["block 0"] == 0
    found = {name: rate for name, rate in watch.rates[-1].items() if "no decay" not in name}
    assert found == pytest.approx({"block 0": 0.0125, "block 1": 0.025, "block 2": 0.05, "head": 0.1})


def test_groups_of_the_optimizer_keep_their_rates_and_functions():
    def optimizer(net):
        groups = [
            {"params": net.head.parameters(), "lr": 0.2},
            {"params": net.backbone.parameters(), "name": "body"},
        ]
        made = torch.optim.SGD(groups, lr=0.02)
        functions = [lambda step: 0.5**step, lambda step: 0.1**step]
        return [made], [torch.optim.lr_scheduler.LambdaLR(made, functions)]

    watch = Watch()
    fit(Plan(phases=[Phase(name="all", trains="all", epochs=2)]), Net(optimizer=optimizer), watch)
    assert watch.rates[-1] == pytest.approx(
        {
            "pg1, head": 0.1,
            "pg1, head, no decay": 0.1,
            "body, backbone": 0.002,
            "body, backbone, no decay": 0.002,
        }
    )


def test_what_the_optimizer_was_not_given_is_in_it_all_the_same():
    watch = Watch()
    module = Net(optimizer=lambda net: torch.optim.SGD(net.head.parameters(), lr=0.1))
    before = module.backbone[0][0].weight.detach().clone()
    fit(two_phases(), module, watch)
    assert not torch.equal(module.backbone[0][0].weight, before)
    assert len({tuple(each) for each in watch.groups}) == 1


def test_layer_decay_gives_each_block_a_group():
    watch = Watch()
    fit(Plan(phases=[Phase(name="all", trains="all", lr=0.8, layer_decay=0.5, epochs=1)]), None, watch)
    found = {name: rate for name, rate in watch.rates[0].items() if "no decay" not in name}
    assert found == {"block 0": 0.1, "block 1": 0.2, "block 2": 0.4, "head": 0.8}


def test_weight_decay_spares_norms_and_biases():
    watch = Watch()
    fit(Plan(phases=[Phase(name="all", trains="all", weight_decay=0.3, epochs=1)]), None, watch)
    assert watch.decays[0] == {"backbone": 0.3, "head": 0.3, "backbone, no decay": 0.0, "head, no decay": 0.0}


def test_a_phase_warms_up_and_falls():
    watch = Watch()
    phase = Phase(name="all", trains="all", lr=0.4, epochs=2, warmup_steps=2, schedule="linear")
    fit(Plan(phases=[phase]), None, watch)
    assert [each["head"] for each in watch.rates] == pytest.approx([0.2, 0.4, 0.4, 0.3, 0.2, 0.1])


class Slow(Net):
    """Takes a second for a training batch, and half a second for one of validation."""

    now = 1000.0

    def training_step(self, batch, batch_idx):
        type(self).now += 1.0
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        type(self).now += 0.5
        super().validation_step(batch, batch_idx)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(plan_module, "monotonic", lambda: Slow.now)


def test_a_phase_of_a_time_ends_with_it_and_its_rate_is_down_by_then(clock, capsys):
    watch = Watch()
    phases = [
        Phase(name="head", trains="head", lr=0.3, time="6s", schedule="linear"),
        Phase(name="all", trains="all", lr=0.1, epochs=1),
    ]
    trainer = fit(Plan(phases=phases), Slow([1.0] * 9), watch)
    # Three batches, a validation of three, and one more and a half of the second epoch.
    assert NUM_BATCHES == 3
    assert [each["head"] for each in watch.rates] == pytest.approx(
        [0.3, 0.25, 0.2, 0.075, 0.025, 0.1, 0.1, 0.1, 0.1]
    )
    assert [each == HEAD for each in watch.trains] == [True] * 5 + [False] * 4
    assert [each["step"] for each in runner_of(trainer).history] == [0, 5]
    assert "Phase 'head' ends: its 6.0 s are over." in capsys.readouterr().err


def test_the_time_of_a_phase_goes_on_where_a_run_was_cut_and_may_be_another(clock, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    def plan(time: Any, **settings: Any) -> Plan:
        phase = Phase(name="all", trains="all", lr=0.3, time=time, schedule="cosine", **settings)
        return Plan(phases=[phase])

    whole = Watch()
    trainer = fit(plan(20), Slow(), whole, Save())
    assert trainer.global_step == 14  # of four validations, one is due to the end
    for step in (2, 3, 8):
        for time, rates in ((20, whole.rates[step:]), (8, None)):
            Slow.now += 1000.0  # of the time between the runs, nothing counts
            rest = Watch()
            again = trainer_of(plan(time), rest)
            again.fit(Slow(), data(), data(), ckpt_path=tmp_path / f"{step}.ckpt")
            assert again.global_step == (14 if time == 20 else {2: 6, 3: 6, 8: 9}[step])
            if rates is not None:
                assert [each["head"] for each in rest.rates] == pytest.approx(
                    [each["head"] for each in rates]
                )
    again = Trainer(plan=plan(None, epochs=9), accelerator="cpu", logger=False, enable_checkpointing=False,
                    enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    with pytest.raises(MisconfigurationError, match=r"time of phase 'all' was 20.0 and is None"):
        again.fit(Slow(), data(), data(), ckpt_path=tmp_path / "2.ckpt")


@pytest.mark.parametrize(("time", "step"), [(9, 6), (20, 14)])
@pytest.mark.parametrize("is_last", [True, False])
def test_a_phase_whose_time_was_up_goes_on_with_more(clock, tmp_path, time, step, is_last):
    class Save(Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    def plan(time: float) -> Plan:
        phases = [
            Phase(name="head", trains="head", lr=0.3, time=time),
            Phase(name="all", trains="all", lr=0.1, epochs=2),
        ]
        return Plan(phases=phases[:1] if is_last else phases)

    fit(plan(4), Slow(), Save())  # it is up in the validation at the first epoch's end
    again = trainer_of(plan(time))
    again.fit(Slow(), data(), data(), ckpt_path=tmp_path / "3.ckpt")
    history = runner_of(again).history
    assert (again.global_step if is_last else history[1]["step"]) == step


def test_a_time_that_is_up_at_an_epochs_end_lets_the_next_phase_begin_with_the_epoch(clock):
    phases = [
        Phase(name="head", trains="head", time=4),
        Phase(name="all", trains="all", epochs=1),
    ]
    trainer = fit(Plan(phases=phases), Slow())
    assert [each["step"] for each in runner_of(trainer).history] == [0, 3]
    assert trainer.global_step == 6


def test_the_time_of_a_phase_goes_on_in_a_fit_after_one_that_was_cut(clock):
    class Cut(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            if trainer.global_step == 5:
                raise KeyboardInterrupt

    module, cut = Slow(), Cut()
    trainer = trainer_of(Plan(phases=[Phase(name="all", trains="all", lr=0.3, time=20)]), cut)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(module, data(), data())
    Slow.now += 1000.0
    assert runner_of(trainer).seconds == 6.5
    trainer.fit(module, data(), data())
    assert trainer.global_step == 14


def test_a_phase_of_a_time_needs_no_length_of_an_epoch(clock):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(data().dataset)

    phase = Phase(name="all", trains="all", time=5, schedule="cosine")
    assert fit(Plan(phases=[phase]), Slow(), loader=DataLoader(Stream(), batch_size=2)).global_step == 4


def test_the_names_in_the_logs_stay_the_same(tmp_path):
    monitor = LearningRateMonitor(logging_interval="epoch")
    fit(two_phases(), None, monitor, logger=CSVLogger(tmp_path))
    assert {len(each) for each in monitor.lrs.values()} == {5}
    assert "lr-SGD/head" in monitor.lrs


# ---- the named ones


@pytest.mark.parametrize("name", PLANS)
def test_a_named_plan_trains_what_it_says_and_nothing_else(name):
    plan = named_plan(name, lr=0.1, **({"num_blocks": 2} if name == "gradual" else {}))
    module = Net()
    before = {each: value.clone() for each, value in module.state_dict().items()}
    loader = data(36, batch_size=12)  # with two samples, a batch norm hides all differences
    trainer = fit(plan, module, loader=loader)
    assert trainer.current_epoch == sum(phase.epochs for phase in trainer.plan.phases)
    changed = {each for each, value in module.state_dict().items() if not torch.equal(value, before[each])}
    assert set(HEAD) <= changed
    assert set(module.state_dict()) == set(before)
    weights = {f"backbone.{block}.0.weight" for block in range(3)}
    norms = {f"backbone.{block}.2.{each}" for block in range(3) for each in ("weight", "bias")}
    biases = {each for each in before if each.startswith("backbone") and each.endswith("bias")}
    parameters = {each for each, _ in module.named_parameters()} - set(HEAD)
    expected = {
        "linear_probe": set(), "bitfit": biases, "norms_only": norms, "lora": weights,
        "last_blocks": {each for each in parameters if each[9] in "12"},
    }.get(name, parameters)  # fmt: skip
    if name == "surgical":
        assert len({each[:10] for each in changed & parameters}) == 1
    else:
        assert changed & parameters == expected, plan


def test_a_named_plan_of_more_blocks_than_there_are_says_how_many_it_may_have():
    with pytest.raises(
        MisconfigurationError, match=r"Phase 'last 4 blocks': .* has 3 blocks.*num_blocks=3 at most"
    ):
        fit(named_plan("gradual", num_blocks=9))
    assert fit(named_plan("gradual", num_blocks=3)).current_epoch == 5


def test_surgery_is_done_where_the_gradient_is_largest_beside_the_weights():
    module = Net()
    with torch.no_grad():
        for each in module.backbone[1].parameters():
            each.mul_(0.05)  # the norm of the next block makes up for that: the gradient grows alike
    trainer = fit(named_plan("surgical", head_epochs=1, epochs=1), module, loader=data(36, batch_size=12))
    runner = next(each for each in trainer.callbacks if isinstance(each, PlanRunner))
    assert runner.state_dict()["best_block"] == 1


@pytest.mark.parametrize("is_negated", [False, True])
def test_the_first_phase_looks_for_the_block_too(is_negated):
    module = Net()
    with torch.no_grad():
        for each in module.backbone[1].parameters():
            each.mul_(0.05)
    before = {name: value.clone() for name, value in module.named_parameters()}
    trains = ["all", "!best block"] if is_negated else ["head", "best block"]
    phase = Phase(name="a", trains=trains, lr=0.1, epochs=1)
    fit(Plan(phases=[phase]), module, loader=data(36, batch_size=12))
    changed = {name[:10] for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {
        "head.weigh",
        "head.bias",
        *(["backbone.0", "backbone.2"] if is_negated else ["backbone.1"]),
    }


def test_looking_for_the_block_leaves_no_trace():
    def draws(plan):
        torch.manual_seed(5)
        generator = torch.Generator().manual_seed(3)
        loader = DataLoader(data(12).dataset, batch_size=2, shuffle=True, generator=generator)
        fit(plan, loader=loader)
        return torch.rand(1).item(), torch.rand(1, generator=generator).item()

    assert draws(named_plan("surgical", head_epochs=1, epochs=1)) == draws(
        named_plan("lp_ft", head_epochs=1, epochs=1)
    )


def test_adapters_are_added_to_the_weights_when_the_run_ends():
    module = Net()
    outputs = {}

    class Last(Callback):
        def on_train_end(self, trainer, pl_module) -> None:
            assert [
                name for name, each in pl_module.named_parameters() if each.requires_grad and "lora_" in name
            ]
            pl_module.eval()
            with torch.no_grad():
                outputs["with adapters"] = pl_module.backbone(torch.ones(1, 6))

    fit("lora", module, Last())
    module.eval()
    # Float32 sums in another order: (W + BA) x beside Wx + B(Ax).
    assert torch.allclose(module.backbone(torch.ones(1, 6)), outputs["with adapters"], atol=1e-5)
    assert type(module.backbone[0][0]) is nn.Linear


def test_a_convolutional_network_has_adapters_on_its_plain_convolutions():
    class Convolutional(Net):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(
                nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
                nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6)), nn.Conv2d(6, 6, 3, padding=2, dilation=2),
                nn.Conv2d(6, 6, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            )  # fmt: skip

    class Last(Callback):
        def on_train_end(self, trainer, pl_module) -> None:
            adapted.extend(name for name, _ in pl_module.named_parameters() if "lora_B" in name)
            pl_module.eval()
            with torch.no_grad():
                outputs.append(pl_module.backbone(batch))

    adapted, outputs, batch = [], [], data().dataset.tensors[0]
    module, plain = Convolutional(), Convolutional()
    fit(named_plan("lora", lr=0.1), module, Last(), loader=data(36, batch_size=12))
    assert adapted == [f"backbone.{layer}.lora_B.default.weight" for layer in (1, 6)]
    module.eval()
    plain.eval()
    assert torch.allclose(module.backbone(batch), outputs[0], atol=1e-5)
    assert not torch.allclose(plain.backbone(batch), outputs[0], atol=1e-3)
    assert [type(each) for each in module.modules()] == [type(each) for each in plain.modules()]
    before, after = plain.state_dict(), module.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {*HEAD, "backbone.1.weight", "backbone.6.weight"}


def test_a_network_without_a_layer_for_an_adapter_is_an_error():
    module = Net()
    module.backbone = nn.Sequential(nn.LayerNorm(6))
    with pytest.raises(
        MisconfigurationError, match="has no linear layer for an adapter, nor a plain convolution"
    ):
        fit("lora", module)


def test_the_pull_to_where_the_run_began_is_in_the_gradient():
    module = Net(optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1))
    free, pulled = Net(optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1)), module
    start = free.backbone[0][0].weight.detach().clone()
    fit(named_plan("l2_sp", lr=0.1, epochs=5, strength=1e-9), free)
    fit(named_plan("l2_sp", lr=0.1, epochs=5, strength=5.0), pulled)
    far, near = (float((each.backbone[0][0].weight - start).detach().norm()) for each in (free, pulled))
    assert near < far / 2


# ---- what makes no sense


def test_a_plan_and_a_callback_that_both_say_what_trains_are_an_error():
    with pytest.raises(
        MisconfigurationError, match=r"plan=...\) and BackboneFinetuning both say what trains. Choose one"
    ):
        fit(two_phases(), None, BackboneFinetuning(1))


def test_a_schedule_beside_a_scheduler_is_an_error():
    phase = Phase(name="all", trains="all", epochs=1, warmup_steps=2)
    with pytest.raises(MisconfigurationError, match="Choose one"):
        fit(Plan(phases=[phase]), Net(make_scheduler=SETUPS["StepLR"]))


def test_a_pattern_that_matches_nothing_is_an_error_before_anything_trains():
    plan = Plan(
        phases=[Phase(name="a", trains="head", epochs=1), Phase(name="b", trains="backbone.9.*", epochs=1)]
    )
    with pytest.raises(MisconfigurationError, match=r"Phase 'b': 'backbone.9.\*' chooses no parameter"):
        fit(plan)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (
            {"trains": "norms", "norms": "frozen"},
            "of norms, nothing is left with norms='frozen'. Let something",
        ),
        ({"trains": ["head", "!head"]}, "of head, !head, nothing is left. Let something train"),
    ],
)
def test_a_phase_that_trains_nothing_is_an_error_before_anything_trains(phase, message):
    watch = Watch()
    with pytest.raises(MisconfigurationError, match=f"Phase 'b' trains nothing: {message}"):
        fit(
            Plan(phases=[Phase(name="a", trains="head", epochs=2), Phase(name="b", epochs=1, **phase)]),
            None,
            watch,
        )
    assert not watch.trains


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"monitor": "val", "mode": "max"},
            "mode of the plan was 'min' and is 'max', and phases that have begun",
        ),
        ({"monitor": "never better"}, "monitor of the plan was 'val' and is 'never better'"),
        ({"monitor": None}, "monitor of the plan was 'val' and is None"),
        ({"backbone": "backbone.0"}, "backbone of the plan was 'backbone' and is 'backbone.0'"),
        ({"lora": LoRA(rank=2, alpha=3)}, "alpha of LoRA was 16 and is 3"),
        ({"phases": [Phase(name="a", trains="all", lr=0.2, epochs=9)]}, "lr of phase 'a' was 0.1 and is 0.2"),
        (
            {"phases": [Phase(name="b", trains="head", lr=0.1, epochs=9)]},
            r"name of phase 'a' was 'a' and is 'b'; trains of phase 'a' was \('all',\) and is \('head',\)",
        ),
    ],
)
def test_a_resume_with_another_plan_names_what_differs(change, message, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            trainer.save_checkpoint(tmp_path / "a.ckpt")

    settings = {"phases": [Phase(name="a", trains="all", lr=0.1, epochs=9)], "monitor": "val"}
    if "lora" in change:
        settings["lora"] = LoRA(rank=2)
    fit(Plan(**settings), None, Save(), max_epochs=2)
    trainer = trainer_of(Plan(**{**settings, **change}))
    with pytest.raises(MisconfigurationError, match=rf"is in phase 'a' of another plan .*{message}"):
        trainer.fit(Net(), data(), data(), ckpt_path=tmp_path / "a.ckpt")


def test_a_resume_with_a_plan_of_fewer_phases_than_have_begun_is_an_error(tmp_path):
    trainer = fit(two_phases(), max_epochs=3)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = Trainer(plan=Plan(phases=two_phases().phases[:1]), logger=False, enable_checkpointing=False)
    with pytest.raises(MisconfigurationError, match="it has begun 2 phases, and this plan has 1, and phases"):
        again.fit(Net(), data(), data(), ckpt_path=tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("before", "now"),
    [({}, {"layer_decay": 0.5}), ({"layer_decay": 0.5}, {}), ({}, {"decay_norms_and_biases": True})],
)
def test_a_phase_to_come_that_needs_other_groups_is_an_error_at_a_resume(before, now, tmp_path):
    first = Phase(name="a", trains="head", decay_norms_and_biases=True, epochs=1)

    def plan(**settings: Any) -> Plan:
        settings = {"decay_norms_and_biases": False, **settings}
        return Plan(phases=[first, Phase(name="b", trains="all", epochs=1, **settings)])

    trainer = fit(plan(**before), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = Trainer(plan=plan(**now), logger=False, enable_checkpointing=False)
    with pytest.raises(
        MisconfigurationError, match="other groups than the plan 'plan' needs: in a phase to come"
    ):
        again.fit(Net(), data(), data(), ckpt_path=tmp_path / "a.ckpt")


def test_phases_to_come_and_the_plans_name_may_change_at_a_resume(tmp_path):
    trainer = fit(two_phases(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    phases = [two_phases().phases[0], Phase(name="more", trains="all", epochs=1)]
    again = Trainer(
        plan=Plan(name="other", phases=phases), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    again.fit(Net(), data(), data(), ckpt_path=tmp_path / "a.ckpt")
    assert again.current_epoch == 3


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (3, "plan is a int"),
        ("lpft", "Did you mean 'lp_ft'"),
        ("auto", "headstart fit.* nearest .* is 'lp_ft'"),
    ],
)
def test_a_plan_that_is_none_is_refused_by_the_trainer(plan, message):
    with pytest.raises(MisconfigurationError, match=message):
        Trainer(plan=plan, logger=False)


# ---- what is said


def test_a_plan_is_printed_with_parameters_and_flops_of_every_phase(capsys):
    fit(two_phases(), max_epochs=1)
    said = capsys.readouterr()
    lines = (said.out + said.err).splitlines()
    start = next(index for index, line in enumerate(lines) if line.endswith("Plan 'plan':"))
    assert lines[start + 1].split() == [
        "phase",
        "trains",
        "parameters",
        "rate",
        "norms",
        "GFLOP",
        "a",
        "step",
        "length",
    ]
    head, everything = lines[start + 2].split(), lines[start + 3].split()
    assert head[:3] == ["head", "head", "21"]
    assert everything[:3] == ["all", "all", "183"]
    # Forward through three layers and the head, and back through the head alone, or through all but the first input.
    assert float(head[5]) == pytest.approx(2 * 2 * (3 * 36 + 2 * 18) / 1e9, rel=1e-2)
    assert float(everything[7]) > float(head[5]) * 1.5


def test_the_table_says_rates_and_lengths():
    plan = Plan(
        phases=[Phase(name="a", trains="all", lr=0.1, layer_decay=0.5, warmup_steps=3, schedule="cosine", epochs=2, patience=1)],
        monitor="val",
    )  # fmt: skip
    row = table_of(plan, [(5, None)]).splitlines()[2]
    assert "0.1, decay 0.5 a block, cosine, 3 steps of warm-up" in row
    assert row.endswith("2 epochs, or until 1 validation without improvement")
