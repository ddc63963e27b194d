"""The contract of the `BaseFinetuning` family, and the failures that a user was never told of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from headstart import Callback, LightningModule, Trainer, seed_everything
from headstart.callbacks import BackboneFinetuning, BaseFinetuning
from headstart.errors import MisconfigurationError


class Net(LightningModule):
    """`everything`: the optimizer is given all parameters, or else those that train."""

    def __init__(self, *, everything: bool = False, lr: float = 0.1):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)
        self.everything, self.lr = everything, lr

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self(batch[0]).square().mean())

    def configure_optimizers(self) -> Any:
        chosen = [parameter for parameter in self.parameters() if self.everything or parameter.requires_grad]
        return torch.optim.SGD(chosen, lr=self.lr)


class Rates(Callback):
    """The rates of all groups at the first batch of each epoch."""

    def __init__(self) -> None:
        self.by_epoch: list[list[list[float]]] = []
        self.groups: list[list[list[str]]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 0:
            names = {parameter: name for name, parameter in pl_module.named_parameters()}
            self.by_epoch.append(
                [[group["lr"] for group in each.param_groups] for each in trainer.optimizers]
            )
            self.groups.append(
                [[names[p] for p in group["params"]] for group in trainer.optimizers[0].param_groups]
            )


def loader(num_samples: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(num_samples, 4, generator=generator)), batch_size=4)


def fit(
    module: LightningModule, *callbacks: Callback, max_epochs: int = 5, data: Any = None, **options: Any
) -> Trainer:
    trainer = Trainer(
        max_epochs=max_epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(module, data or loader(), loader())
    return trainer


# ---- static members


class OwnsParameters(nn.Module):
    """An inner module with a parameter of its own, as a vision transformer has."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1))
        self.layer = nn.Linear(1, 1)


def kinds(modules: list[nn.Module]) -> list[str]:
    return [type(module).__name__ for module in modules]


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (nn.Linear(1, 1), ["Linear"]),
        (nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ReLU(), nn.BatchNorm1d(1))), ["Linear", "ReLU", "BatchNorm1d"]),
        ([nn.Linear(1, 1), [nn.ReLU(), (nn.Sequential(nn.Tanh()),)]], ["Linear", "ReLU", "Tanh"]),
        ((each for each in (nn.ReLU(), nn.Tanh())), ["ReLU", "Tanh"]),
        (nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Sequential(nn.ReLU())}), ["Linear", "ReLU"]),
        (OwnsParameters(), ["OwnsParameters", "Linear"]),
        (nn.ModuleDict({"a": OwnsParameters()}), ["OwnsParameters", "Linear"]),
    ],
)  # fmt: skip
def test_flatten_modules_gives_leaves_and_inner_modules_that_own_parameters(modules, expected):
    assert kinds(BaseFinetuning.flatten_modules(modules)) == expected


def test_flatten_modules_gives_no_module_twice():
    layer = nn.Linear(1, 1)
    assert BaseFinetuning.flatten_modules([layer, nn.Sequential(layer)]) == [layer]


def test_filter_params_chooses_by_requires_grad_and_by_batch_norm():
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), OwnsParameters())
    net[0].requires_grad_(False)
    linear, norm, owner = (list(each.parameters()) for each in net)
    found = BaseFinetuning.filter_params(net)
    assert next(found) is norm[0]  # a generator
    assert [id(each) for each in found] == [id(each) for each in [norm[1], *owner]]
    assert list(map(id, BaseFinetuning.filter_params(net, train_bn=False))) == list(map(id, owner))
    assert list(map(id, BaseFinetuning.filter_params(net, requires_grad=False))) == list(map(id, linear))


def test_filter_params_gives_no_parameter_twice():
    tied = nn.Linear(2, 2, bias=False)
    other = nn.Linear(2, 2, bias=False)
    other.weight = tied.weight
    assert len(list(BaseFinetuning.filter_params([tied, other, nn.Sequential(tied)]))) == 1


@pytest.mark.parametrize("train_bn", [True, False])
def test_freeze_freezes_batch_norms_too_unless_they_train(train_bn):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    net[1].requires_grad_(not train_bn)  # with train_bn=True it makes them trainable
    BaseFinetuning.freeze(net, train_bn=train_bn)
    assert not net[0].weight.requires_grad
    assert net[1].weight.requires_grad is net[1].bias.requires_grad is net[1].track_running_stats is train_bn
    assert [child.training for child in net] == [False, train_bn, False]


def test_freeze_module_and_make_trainable_are_each_others_inverse():
    for module in (nn.Linear(2, 2), nn.BatchNorm1d(2)):
        BaseFinetuning.freeze_module(module)
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not module.training
        BaseFinetuning.make_trainable(module)
        assert all(parameter.requires_grad for parameter in module.parameters())
        assert module.training
    norm = nn.BatchNorm1d(2)
    BaseFinetuning.freeze_module(norm)
    assert not norm.track_running_stats
    BaseFinetuning.make_trainable([norm])
    assert norm.track_running_stats


def test_a_batch_norm_frozen_with_train_bn_off_uses_its_running_statistics_in_training():
    # F4: with track_running_stats cleared, the peer's uses the batch's, and a batch of one raises.
    norm = nn.BatchNorm1d(2)
    norm(torch.randn(32, 2) + 3)
    BaseFinetuning.freeze(norm, train_bn=False)
    x = torch.randn(4, 2)
    expected = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    before = norm.running_mean.clone()
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(
        norm(x[:1]), expected[:1]
    )  # an image's features do not depend on its neighbours
    assert torch.equal(norm.running_mean, before)


def test_parameters_are_compared_by_identity_not_by_value():
    # F7: zero biases and unit norm weights of a backbone equal the head's.
    head, backbone = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    assert BaseFinetuning.filter_on_optimizer(optimizer, backbone.parameters()) == list(backbone.parameters())


def test_what_an_optimizer_holds_already_is_skipped_with_one_warning():
    head, backbone = nn.Linear(1, 1), nn.Linear(1, 1)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    with pytest.warns(
        UserWarning, match="already exist within another group.*Did you init your optimizer in"
    ) as caught:
        fresh = BaseFinetuning.filter_on_optimizer(optimizer, [*head.parameters(), *backbone.parameters()])
    assert len(caught) == 1
    assert "The provided params to be frozen already exist within another group" in str(caught[0].message)
    assert [id(each) for each in fresh] == [id(each) for each in backbone.parameters()]


@pytest.mark.parametrize(
    ("arguments", "rate"),
    [({}, 0.01), ({"lr": 0.5}, 0.5), ({"initial_denom_lr": 4.0}, 0.025), ({"lr": 0.0}, 0.0)],
)
def test_a_thawed_group_has_the_given_rate_or_a_share_of_the_first_ones(arguments, rate):
    head, backbone = nn.Linear(1, 1), nn.Linear(1, 1)
    BaseFinetuning.freeze(backbone)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    BaseFinetuning.unfreeze_and_add_param_group(backbone, optimizer, **arguments)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(rate)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_a_thawed_group_leaves_batch_norms_out_and_is_not_added_where_nothing_is_left():
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    BaseFinetuning.freeze(net, train_bn=False)
    BaseFinetuning.unfreeze_and_add_param_group(net[1], optimizer, train_bn=False)
    assert len(optimizer.param_groups) == 1
    BaseFinetuning.unfreeze_and_add_param_group(net, optimizer, train_bn=False)
    assert [id(each) for each in optimizer.param_groups[1]["params"]] == [
        id(each) for each in net[0].parameters()
    ]


# ---- in a run


class ThawAtOne(BaseFinetuning):
    def __init__(self) -> None:  # without super().__init__()
        self.calls: list[tuple[int, int]] = []

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        assert not pl_module.trainer.optimizers
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Any) -> None:
        self.calls.append((epoch, pl_module.trainer.optimizers.index(optimizer)))
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)


class ThawAtOneInTheOldForm(ThawAtOne):
    def finetune_function(self, pl_module, epoch, optimizer, opt_idx) -> None:
        assert pl_module.trainer.optimizers[opt_idx] is optimizer
        super().finetune_function(pl_module, epoch, optimizer)


class ThawAtOneWithAnyArguments(ThawAtOne):
    def finetune_function(self, *args) -> None:
        assert args[3] == 0
        super().finetune_function(*args[:3])


class TwoOptimizers(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self(batch[0]).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([self.head.weight], lr=0.1), torch.optim.SGD([self.head.bias], lr=0.2)]


@pytest.mark.parametrize("kind", [ThawAtOne, ThawAtOneInTheOldForm, ThawAtOneWithAnyArguments])
def test_finetune_function_is_called_each_epoch_in_both_its_forms_without_super_init(kind):
    callback, net = kind(), Net()
    before = net.backbone[0].weight.clone()
    trainer = fit(net, callback, max_epochs=3)
    assert callback.calls == [(0, 0), (1, 0), (2, 0)]
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.1, 0.01])
    assert not torch.equal(net.backbone[0].weight, before)


@pytest.mark.parametrize("kind", [ThawAtOne, ThawAtOneInTheOldForm])
def test_finetune_function_is_called_for_each_optimizer(kind):
    callback = kind()
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=callback,
    )  # fmt: skip
    trainer.fit(TwoOptimizers(), loader())
    assert callback.calls == [(0, 0), (0, 1)]


def test_a_subclass_that_overrides_nothing_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="BaseFinetuning does not define freeze_before_training"):
        fit(Net(), BaseFinetuning())


def test_the_state_holds_each_group_with_names_and_exactly_the_optimizers_own_keys():
    callback = ThawAtOne()
    trainer = fit(Net(), callback, max_epochs=2)
    state = callback.state_dict()
    assert set(state) == {"internal_optimizer_metadata"}
    groups = state["internal_optimizer_metadata"][0]
    assert [set(group) for group in groups] == [set(group) for group in trainer.optimizers[0].param_groups]
    assert [group["params"] for group in groups] == [
        ["head.weight", "head.bias"],
        [f"backbone.{index}.{kind}" for index in (0, 1, 3) for kind in ("weight", "bias")],
    ]
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.01])
    assert not any(isinstance(value, torch.Tensor) for group in groups for value in group.values())


@pytest.mark.parametrize("train_bn", [True, False])
def test_frozen_means_no_gradient_no_dropout_and_statistics_at_rest(train_bn):
    # F3: in the peer a "frozen" backbone stays in train mode.
    class Looks(Callback):
        def __init__(self) -> None:
            self.modes: list[list[bool]] = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            self.modes.append([child.training for child in pl_module.backbone])

    looks, net = Looks(), Net()
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    fit(net, BackboneFinetuning(3, train_bn=train_bn), looks, max_epochs=-1, max_steps=6)
    assert looks.modes == [[False, train_bn, False, False]] * 6
    for name, value in net.backbone.state_dict().items():
        # Batch norms train, statistics included, where train_bn says so; nothing else moves.
        assert torch.equal(value, before[name]) is (not (train_bn and name.startswith("1."))), name


def test_thawing_restores_training_mode():
    # F5
    net = Net()
    net.backbone.eval()
    fit(net, BackboneFinetuning(1, train_bn=False), max_epochs=2)
    assert all(child.training for child in net.backbone.modules())


def test_batch_norms_that_train_alone_are_in_the_optimizer_from_the_first_step():
    class OnlyTheHead(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.head.parameters(), lr=0.1)

    rates, net = Rates(), OnlyTheHead()
    before = net.backbone[1].weight.clone()
    fit(net, BackboneFinetuning(10**6), rates, max_epochs=-1, max_steps=2)
    assert rates.groups[0] == [["head.weight", "head.bias"], ["backbone.1.weight", "backbone.1.bias"]]
    assert not torch.equal(net.backbone[1].weight, before)


def test_what_train_bn_costs_is_said_once_with_the_factor(capfd):
    fit(Net(), BackboneFinetuning(2), max_epochs=4)
    # A batch of 4 through layers of 4x4, 4x4 and 4x2 weights; the backward pass runs down to the batch norm: the
    # gradients of the head's weights, of the head's inputs, and of the last backbone layer's inputs.
    forward = 2 * 4 * (16 + 16 + 8)
    backward = 2 * 4 * (8 + 8 + 16)
    said = [line for line in capfd.readouterr().err.splitlines() if "train_bn=True" in line]
    assert len(said) == 1
    assert f"{(forward + backward) / forward:.1f} times the FLOPs of its forward pass" in said[0]
    fit(Net(), BackboneFinetuning(2, train_bn=False), max_epochs=4)
    assert "train_bn" not in capfd.readouterr().err


def test_the_cost_of_train_bn_is_not_said_where_nothing_trains_alone(capfd):
    fit(Net(), BackboneFinetuning(0), max_epochs=1)
    assert "train_bn" not in capfd.readouterr().err


def test_a_first_batch_that_fails_leaves_no_counter_behind():
    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        fit(Fails(), BackboneFinetuning(1), max_epochs=2)
    assert torch.utils._python_dispatch._len_torch_dispatch_stack() == 0


def test_batches_that_are_all_skipped_leave_no_counter_behind():
    class Skips(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int:
            return -1

    fit(Skips(), BackboneFinetuning(1), max_epochs=2)
    assert torch.utils._python_dispatch._len_torch_dispatch_stack() == 0


# ---- BackboneFinetuning


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.01, 0.02, 0.04, 0.08]),
        ({"backbone_initial_lr": 1e-3}, [0.001, 0.002, 0.004, 0.008]),
        ({"backbone_initial_ratio_lr": 1.0}, [0.1, 0.1, 0.1, 0.1]),
        ({"backbone_initial_ratio_lr": 0.4}, [0.04, 0.08, 0.1, 0.1]),
        ({"backbone_initial_ratio_lr": 0.4, "should_align": False}, [0.04, 0.08, 0.16, 0.32]),
        ({"lambda_func": lambda epoch: epoch}, [0.01, 0.03, 0.1, 0.1]),
    ],
)  # fmt: skip
def test_the_backbones_rate_grows_as_the_contract_says(options, expected):
    rates, callback = Rates(), BackboneFinetuning(unfreeze_backbone_at_epoch=1, train_bn=False, **options)
    fit(Net(), callback, rates)
    assert rates.by_epoch[0] == [[0.1]]
    assert [head for ((head, _),) in rates.by_epoch[1:]] == [0.1] * 4
    assert [backbone for ((_, backbone),) in rates.by_epoch[1:]] == pytest.approx(expected)
    assert callback.previous_backbone_lr == pytest.approx(expected[-1])
    assert callback.state_dict()["previous_backbone_lr"] == callback.previous_backbone_lr


def test_the_defaults_are_the_contracts():
    callback = BackboneFinetuning()
    assert (
        callback.unfreeze_backbone_at_epoch, callback.backbone_initial_ratio_lr, callback.backbone_initial_lr,
        callback.should_align, callback.initial_denom_lr, callback.train_bn, callback.verbose, callback.rounding,
        callback.lambda_func(3), callback.previous_backbone_lr,
    ) == (10, 0.1, None, True, 10.0, True, False, 12, 2.0, None)  # fmt: skip


def test_verbose_prints_both_rates(capsys):
    fit(Net(), BackboneFinetuning(1, train_bn=False, verbose=True, rounding=3), max_epochs=2)
    assert "Current lr: 0.1, backbone lr: 0.01" in capsys.readouterr().out


def test_frozen_then_thawed_is_the_plain_loop():
    seed_everything(1)
    net = Net()
    plain = Net()
    plain.load_state_dict(net.state_dict())
    seed_everything(2)
    fit(net, BackboneFinetuning(1, train_bn=False), max_epochs=3, num_sanity_val_steps=0, limit_val_batches=0)

    seed_everything(2)
    plain.backbone.requires_grad_(False)
    optimizer = torch.optim.SGD(plain.head.parameters(), lr=0.1)
    for epoch, rate in enumerate([None, 0.01, 0.02]):
        plain.backbone.train(epoch >= 1)
        if epoch == 1:
            plain.backbone.requires_grad_(True)
            optimizer.add_param_group({"params": plain.backbone.parameters()})
        if rate is not None:
            optimizer.param_groups[1]["lr"] = rate
        for (x,) in loader():
            optimizer.zero_grad()
            plain(x).square().mean().backward()
            optimizer.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=0, atol=0)


def test_an_optimizer_over_all_parameters_keeps_the_heads_rate():
    # F8
    rates = Rates()
    with pytest.warns(UserWarning, match="6 parameters of the backbone stood in one group with others"):
        fit(Net(everything=True), BackboneFinetuning(1, train_bn=False), rates)
    assert [group[0] for (group,) in rates.by_epoch] == [0.1] * 5
    assert [group[1] for (group,) in rates.by_epoch[1:]] == pytest.approx([0.01, 0.02, 0.04, 0.08])
    assert rates.groups[1][0] == ["head.weight", "head.bias"]


def test_with_two_optimizers_one_trains_the_backbone_and_its_rate_grows_once_an_epoch():
    # F9
    rates = Rates()
    trainer = fit(TwoOptimizers(), BackboneFinetuning(1, train_bn=False), rates)
    first = [rates_of_first for rates_of_first, _ in rates.by_epoch[1:]]
    assert [backbone for _, backbone in first] == pytest.approx([0.01, 0.02, 0.04, 0.08])
    assert [second for _, second in rates.by_epoch] == [[0.2]] * 5
    held = [
        p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]
    ]
    assert len(held) == len(set(held)) == 8


def test_a_module_without_a_backbone_is_answered():
    # F10
    class Misnamed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.back_bone = self.backbone
            del self.backbone

    with pytest.raises(
        MisconfigurationError,
        match=r"Misnamed.*'backbone'.*Did you mean 'back_bone'\? It has: head, back_bone",
    ):
        fit(Misnamed(), BackboneFinetuning(1))


def test_an_epoch_of_thawing_that_is_never_reached_warns():
    # F10
    with pytest.warns(UserWarning, match="thawed at epoch 2, and training ends after 2 epochs.*stays frozen"):
        fit(Net(), BackboneFinetuning(2, train_bn=False), max_epochs=2)


def test_a_backbone_that_configure_model_builds_is_frozen():
    # F18
    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = None

        def configure_model(self) -> None:
            if self.backbone is None:
                self.backbone = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    net, rates = Late(), Rates()
    fit(net, BackboneFinetuning(1), rates, max_epochs=2)
    assert rates.groups == [
        [["head.weight", "head.bias"]],
        [["head.weight", "head.bias"], ["backbone.0.weight", "backbone.0.bias"]],
    ]


def test_a_backbone_thawed_while_a_warm_up_stands_at_zero_trains():
    class WarmsUp(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 3))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up, "interval": "step"}}

    net = WarmsUp()
    before = net.backbone[0].weight.clone()
    trainer = fit(net, BackboneFinetuning(0, train_bn=False), max_epochs=1)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx(
        [0.1 * 2 / 3, 0.01 * 2 / 3]
    )
    assert not torch.equal(net.backbone[0].weight, before)


def test_the_same_callback_serves_a_second_module():
    callback, rates = BackboneFinetuning(1, train_bn=False), Rates()
    fit(Net(), callback, max_epochs=3)
    fit(Net(), callback, rates, max_epochs=3)
    assert [group[1] for (group,) in rates.by_epoch[1:]] == pytest.approx([0.01, 0.02])
