"""Frozen: no gradient and evaluation mode, whoever froze it and whatever is called afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from headstart import Callback, LightningModule, Trainer, freezing, seed_everything
from headstart.callbacks import BackboneFinetuning, BaseFinetuning
from headstart.errors import MisconfigurationError
from headstart.freezing import establish_modes, pin_mode


def block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU())


class Extractor(LightningModule):
    """A backbone that is a LightningModule itself, and has `freeze`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Extractor()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.head(self.drop(self.backbone(batch[0]))).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class FreezeOnly(BaseFinetuning):
    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Any) -> None: ...


def loader(num_samples: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(num_samples, 4, generator=generator)), batch_size=4)


def new_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=list(callbacks), **{"max_steps": 6, "max_epochs": -1, **options},
    )  # fmt: skip


WAYS: dict[str, Callable[[Net], list[Callback]]] = {
    "requires_grad by hand": lambda net: net.backbone.requires_grad_(False) and [],
    "module.freeze()": lambda net: net.backbone.freeze() or [],
    "headstart.freezing.freeze": lambda net: freezing.freeze(net.backbone) or [],
    "BaseFinetuning": lambda net: [FreezeOnly()],
    "BackboneFinetuning": lambda net: [BackboneFinetuning(10**6, train_bn=False)],
}


def call(name: str, what: Callable[[Net], Any]) -> Callable[[], type[Net]]:
    """A module that calls `what` on itself in a hook."""
    return lambda: type("Disturbed", (Net,), {name: lambda self: what(self) and None})


DISTURBANCES = {
    "nothing": lambda: Net,
    "train() before fit": lambda: type("Disturbed", (Net,), {"setup": lambda self, stage: self.train() and None}),
    "eval() before fit": lambda: type("Disturbed", (Net,), {"setup": lambda self, stage: self.eval() and None}),
    "train() at the start": call("on_train_start", lambda net: net.train()),
    "train() in each epoch": call("on_train_epoch_start", lambda net: net.train()),
    "train() after validation": call("on_validation_end", lambda net: net.train()),
    "train() of the backbone after validation": call("on_validation_epoch_end", lambda net: net.backbone.train()),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_a_frozen_backbone_is_a_fixed_function_of_its_input_throughout_fit(way, disturbance):
    seed_everything(0)
    net = DISTURBANCES[disturbance]()()
    callbacks = WAYS[way](net)
    plain = copy.deepcopy(net)
    before = copy.deepcopy(net.backbone.state_dict())
    trainer = new_trainer(*callbacks, val_check_interval=1)
    seed_everything(1)
    trainer.fit(net, loader(), loader(4))
    for name, value in net.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(child.training for child in net.backbone.modules())

    # The head is what a plain loop makes of features that the backbone gives in evaluation mode.
    seed_everything(1)
    plain.backbone.eval()
    plain.drop.train()
    optimizer = torch.optim.SGD(plain.head.parameters(), lr=0.1)
    for _ in range(3):
        for (x,) in loader():
            optimizer.zero_grad()
            with torch.no_grad():
                features = plain.backbone(x)
            plain.head(plain.drop(features)).square().mean().backward()
            optimizer.step()
            iter(loader(4))  # each validation draws a seed for its workers
    assert torch.equal(net.head.weight, plain.head.weight)


@pytest.mark.parametrize("way", WAYS)
def test_frozen_stays_frozen_through_validate_a_second_fit_and_a_resume(way, tmp_path):
    seed_everything(0)
    net = Net()
    before = copy.deepcopy(net.backbone.state_dict())
    trainer = new_trainer(*WAYS[way](net), max_steps=2)
    trainer.fit(net, loader(), loader(4))
    trainer.validate(net, loader(4), verbose=False)
    trainer.max_steps = 4
    trainer.fit(net, loader(), loader(4))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    fresh = Net()
    trainer = new_trainer(*WAYS[way](fresh), max_steps=6)
    trainer.fit(fresh, loader(), loader(4), ckpt_path=tmp_path / "a.ckpt")
    assert trainer.global_step == 6
    for name, value in fresh.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


# ---- trainable, and found in evaluation mode


def test_a_trainable_module_found_in_evaluation_mode_trains_and_it_is_said_once(capfd):
    net = Net()
    net.backbone.eval()  # as every model of the transformers library arrives
    trainer = new_trainer(max_steps=4)
    trainer.fit(net, loader(), loader(4))
    assert net.backbone.layers[1].num_batches_tracked == 4
    error = capfd.readouterr().err
    assert error.count("found in evaluation mode") == 1
    assert "found in evaluation mode: 'backbone'. They train in training mode from here on" in error
    assert "headstart.freezing.pin_mode(module, 'eval')" in error


def test_a_module_that_was_in_training_mode_is_not_spoken_of(capfd):
    new_trainer(max_steps=2).fit(Net(), loader(), loader(4))
    assert capfd.readouterr().err == ""


def test_a_trainable_batch_norm_pinned_to_eval_keeps_its_statistics_and_trains(capfd):
    net = Net()
    norm = net.backbone.layers[1]
    pin_mode(norm, "eval")
    before = copy.deepcopy(norm.state_dict())
    new_trainer().fit(net, loader(), loader(4))
    assert torch.equal(norm.running_mean, before["running_mean"])
    assert not torch.equal(norm.weight, before["weight"])
    assert "Pinned: backbone.layers.1 stays in evaluation mode." in capfd.readouterr().err


@pytest.mark.parametrize("way", WAYS)
def test_a_frozen_batch_norm_pinned_to_train_adapts_its_statistics_only(way):
    net = Net()
    norm = net.backbone.layers[1]
    pin_mode(norm, "train")
    before = copy.deepcopy(norm.state_dict())
    new_trainer(*WAYS[way](net)).fit(net, loader(), loader(4))
    assert not torch.equal(norm.running_mean, before["running_mean"])
    assert torch.equal(norm.weight, before["weight"])


def test_a_batch_norm_thawed_by_hand_after_a_callback_froze_it_keeps_statistics_again():
    class ByHand(Net):
        def on_train_epoch_start(self) -> None:
            self.backbone.requires_grad_(self.current_epoch >= 1)

    net = ByHand()
    new_trainer(FreezeOnly()).fit(net, loader())
    assert net.backbone.layers[1].num_batches_tracked == 4  # two epochs of two batches


# ---- the rule


def modes(module: nn.Module) -> list[bool]:
    return [child.training for child in module.modules()][1:]


def test_a_container_with_a_trainable_part_is_in_training_and_its_frozen_part_is_not():
    net = nn.Sequential(block(), nn.Linear(4, 4))
    net[0].requires_grad_(False)
    assert establish_modes(net.eval()) == [""]
    assert net.training
    assert modes(net) == [False] * 5 + [True]


def test_dropout_beside_a_batch_norm_that_trains_alone_is_off():
    net = nn.Sequential(block(), nn.Linear(4, 4))
    net[0][0].requires_grad_(False)
    establish_modes(net)
    assert [child.training for child in net[0]] == [False, True, False, False]


def test_dropout_beside_a_layer_that_trains_is_on():
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 4))
    net[0].requires_grad_(False)
    establish_modes(net)
    assert modes(net) == [False, True, True]


def test_establishing_modes_twice_changes_nothing():
    net = nn.Sequential(block(), block())
    net[0].requires_grad_(False)
    establish_modes(net)
    once = modes(net)
    assert establish_modes(net) == []
    assert modes(net) == once


def test_only_what_is_frozen_is_put_into_evaluation_on_demand():
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)).train()
    net[0].requires_grad_(False)
    net[1].eval()
    establish_modes(net, only_frozen=True)
    assert modes(net) == [False, False]


def test_the_outermost_module_that_was_asleep_is_named():
    net = nn.Sequential(nn.Linear(1, 1), block())
    net[1].eval()
    assert establish_modes(net) == ["1"]


def test_a_pin_holds_for_all_inside_and_can_be_taken_away():
    net = nn.Sequential(block())
    pin_mode(net[0], "eval")
    establish_modes(net)
    assert modes(net) == [False] * 5
    assert freezing.pinned_modules(copy.deepcopy(net)) == {"0": "eval"}
    pin_mode(net[0], None)
    establish_modes(net)
    assert modes(net) == [True] * 5
    assert freezing.pinned_modules(net) == {}


def test_a_pin_takes_two_words():
    with pytest.raises(ValueError, match="mode is 'evaluation'; expected 'train', 'eval' or None"):
        pin_mode(nn.ReLU(), "evaluation")


def test_freeze_and_unfreeze_are_each_others_inverse():
    net = Net()
    net.freeze()
    assert freezing.is_frozen(net)
    assert not any([net.training, *modes(net)])
    net.unfreeze()
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all([net.training, *modes(net)])


def test_exactly_the_named_parameters_are_made_trainable():
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    freezing.set_trainable(net, ["1.bias"])
    assert freezing.trainable_names(net) == ["1.bias"]
    with pytest.raises(
        MisconfigurationError, match="'2.bias' is to train, but Sequential has no parameter of that name"
    ):
        freezing.set_trainable(net, ["2.bias"])


# ---- the audit


def test_an_audit_says_what_trains_in_which_group_and_what_a_step_costs():
    net = Net()
    net.backbone.freeze()
    trainer = new_trainer(max_steps=2)
    trainer.fit(net, loader())
    before = copy.deepcopy(net.state_dict())
    batch = next(iter(loader()))
    state = torch.get_rng_state()
    audit = trainer.audit(net, batch=batch)
    assert torch.equal(torch.get_rng_state(), state)
    rows = {row.name: row for row in audit.rows}
    assert (audit.num_parameters, audit.num_trainable) == (4 * 4 + 4 + 8 + 4 * 2 + 2, 4 * 2 + 2)
    assert (rows["head"].num_trainable, rows["head"].mode, rows["head"].group, rows["head"].lr) == (
        10,
        "train",
        "0",
        "0.1",
    )
    assert (rows["backbone"].num_trainable, rows["backbone"].mode, rows["backbone"].group) == (0, "eval", "")
    # A batch of 4: the backbone's forward; the head's forward and the gradient of its weights.
    assert (rows["backbone"].flops, rows["head"].flops) == (2 * 4 * 16, 2 * (2 * 4 * 8))
    assert audit.flops == 2 * 4 * 16 + 2 * (2 * 4 * 8)
    assert audit.problems == []
    audit.check()
    text = str(audit)
    assert "module" in text
    assert "FLOPs a step" in text
    assert "head" in text
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_audit_names_a_trainable_parameter_in_no_group():
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    audit = freezing.audit(net, optimizers=[torch.optim.SGD(net[0].parameters(), lr=0.1)])
    assert audit.problems == [
        f"1.{kind} is trainable and in no parameter group: it gets gradients and never a step."
        for kind in ("weight", "bias")
    ]
    with pytest.raises(MisconfigurationError, match="1.weight is trainable and in no parameter group"):
        audit.check()
    assert "PROBLEM: 1.weight" in str(audit)


def test_an_audit_names_a_parameter_that_is_not_the_modules():
    net, other = nn.Linear(1, 1), nn.Linear(3, 1)
    optimizer = torch.optim.SGD([*net.parameters(), other.weight], lr=0.1)
    assert freezing.audit(net, optimizers=[optimizer]).problems == [
        "group 0 holds a parameter of shape (1, 3) that is not the module's."
    ]


def test_an_audit_names_a_frozen_module_in_training_mode_unless_it_is_pinned():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    assert freezing.audit(net).problems == [
        "0 is frozen and in training mode: its statistics and dropout move."
    ]
    pin_mode(net[0], "train")
    audit = freezing.audit(net)
    assert audit.problems == []
    assert "pinned: 0 stays in train" in str(audit)


def test_an_audit_names_a_frozen_tensor_that_changed():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    freezing.freeze(net[0])
    reference = freezing.frozen_snapshot(net)
    assert set(reference) >= {"0.weight", "0.bias", "0.running_mean", "0.running_var"}
    assert freezing.audit(net, reference=reference).problems == []
    with torch.no_grad():
        net[0].running_mean += 1
        net[1].weight += 1
    assert freezing.audit(net, reference=reference).problems == ["0.running_mean was frozen and has changed."]


def test_an_audit_tells_several_optimizers_apart():
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    optimizers = [torch.optim.SGD(net[0].parameters(), lr=0.1), torch.optim.SGD(net[1].parameters(), lr=0.2)]
    assert [(row.group, row.lr) for row in freezing.audit(net, optimizers=optimizers).rows] == [
        ("0/0", "0.1"),
        ("1/0", "0.2"),
    ]
