"""Tests of finetuning callbacks as a project on PyTorch Lightning has them: run with `headstart run -m pytest`.

They hold what the peer's own tests of `callbacks.finetuning` hold about `flatten_modules`, `filter_params`, `freeze`,
`make_trainable`, `unfreeze_and_add_param_group`, `BackboneFinetuning`, the saved optimizer metadata and resuming.
"""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from tests_pytorch.helpers.runif import RunIf
from torch import nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader


@pytest.fixture(autouse=True)
def _seeded():
    seed_everything(17)


def brief(directory, **settings):
    settings.setdefault("limit_train_batches", 1)
    return Trainer(default_root_dir=directory, accelerator="cpu", limit_val_batches=1, **settings)


class WithBackbone(BoringModel):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU())

    def forward(self, x):
        return self.layer(self.backbone(x))

    def configure_optimizers(self):
        optimizer = SGD(self.layer.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)]

    def train_dataloader(self):
        return DataLoader(RandomDataset(32, 64), batch_size=2)


class Watched(BackboneFinetuning):
    seen: list[tuple[int, float, float]]

    def on_train_epoch_start(self, trainer, pl_module):
        super().on_train_epoch_start(trainer, pl_module)
        if trainer.current_epoch >= self.unfreeze_backbone_at_epoch:
            self.seen.append(
                (
                    trainer.current_epoch,
                    self.previous_backbone_lr,
                    trainer.optimizers[0].param_groups[0]["lr"],
                )
            )


def test_the_backbone_catches_up_with_the_head_and_never_passes_it(tmp_path):
    callback = Watched(unfreeze_backbone_at_epoch=3)
    callback.seen = []
    brief(tmp_path, callbacks=[callback], max_epochs=8, limit_train_batches=4).fit(WithBackbone())
    assert [epoch for epoch, _, _ in callback.seen] == [3, 4, 5, 6, 7]
    assert all(backbone <= head for _, backbone, head in callback.seen)
    assert all(backbone == head for epoch, backbone, head in callback.seen if epoch >= 6)


class InOptimizerFromTheStart(BackboneFinetuning):
    def finetune_function(self, pl_module, epoch: int, optimizer):
        if epoch == 0:
            self.unfreeze_and_add_param_group(
                pl_module.backbone,
                optimizer,
                0.1,
                train_bn=self.train_bn,
                initial_denom_lr=self.initial_denom_lr,
            )


def test_a_warning_where_the_optimizer_holds_the_backbone_already(tmp_path):
    class Model(BoringModel):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Linear(32, 2, bias=False)
            self.layer = None

        def forward(self, x):
            return self.backbone(x)

        def configure_optimizers(self):
            return SGD(self.parameters(), lr=0.1)

    keeper = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    model = Model()
    model.validation_step = None
    with pytest.warns(UserWarning, match="Did you init your optimizer in"):
        brief(tmp_path, callbacks=[InOptimizerFromTheStart(3), keeper], max_epochs=2).fit(model)
    # Another trainer, without the callback, goes on.
    brief(tmp_path, max_epochs=3).fit(model, ckpt_path=keeper.last_model_path)


class Stack(LightningModule):
    def __init__(self, *layers):
        super().__init__()
        self.backbone = nn.Sequential(*layers)


def test_freeze_and_make_trainable_set_gradients_and_the_flag_of_batch_norms():
    model = Stack(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
    first, norm, _, last = model.backbone

    def flags():
        return [
            first.weight.requires_grad,
            norm.weight.requires_grad,
            norm.track_running_stats,
            last.weight.requires_grad,
        ]

    assert flags() == [True, True, True, True]
    BaseFinetuning.freeze(model, train_bn=True)
    assert flags() == [False, True, True, False]
    BaseFinetuning.freeze(model, train_bn=False)
    assert flags() == [False, False, False, False]
    BaseFinetuning.make_trainable(model)
    assert flags() == [True, True, True, True]
    BaseFinetuning.freeze(first, train_bn=False)
    assert flags() == [False, True, True, True]
    BaseFinetuning.freeze([norm, [last]], train_bn=True)
    assert flags() == [False, True, True, False]


def test_unfreezing_adds_one_group_with_what_no_group_holds():
    model = Stack(*(nn.Linear(32, 32, bias=False) for _ in range(5)), nn.BatchNorm1d(32))
    layers = model.backbone
    optimizer = SGD(layers[0].parameters(), lr=0.01)

    with pytest.warns(UserWarning, match="The provided params to be frozen already"):
        BaseFinetuning.unfreeze_and_add_param_group(layers[0], optimizer=optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01]

    layers[1].weight.requires_grad = False
    BaseFinetuning.unfreeze_and_add_param_group(layers[1], optimizer=optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.001]
    assert layers[1].weight.requires_grad

    with pytest.warns(UserWarning, match="The provided params to be frozen already"):
        BaseFinetuning.unfreeze_and_add_param_group(model, optimizer=optimizer, lr=100, train_bn=False)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.001, 100]
    held = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    assert held == [
        [id(layers[0].weight)],
        [id(layers[1].weight)],
        [id(layers[index].weight) for index in (2, 3, 4)],
    ]


class OneLayerAnEpoch(BaseFinetuning):
    def freeze_before_training(self, pl_module: LightningModule):
        self.freeze(pl_module.layer)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer):
        self.unfreeze_and_add_param_group(pl_module.layer[epoch + 1], optimizer)


class SixLayers(BoringModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(*(nn.Linear(32, 2 if i == 5 else 32, bias=bool(i % 2)) for i in range(6)))

    def configure_optimizers(self):
        return SGD(self.layer[0].parameters(), lr=0.1)


def test_the_saved_state_names_the_parameters_of_every_group(tmp_path):
    callback, keeper = OneLayerAnEpoch(), ModelCheckpoint(dirpath=tmp_path, save_last=True)
    brief(tmp_path, max_epochs=5, callbacks=[callback, keeper]).fit(SixLayers())
    named = [group["params"] for group in callback._internal_optimizer_metadata[0]]
    assert named == [
        [f"layer.{i}.weight", f"layer.{i}.bias"] if i % 2 else [f"layer.{i}.weight"] for i in range(6)
    ]  # fmt: skip

    # Resumed, the callback asks for the seventh layer.
    trainer = brief(tmp_path, max_epochs=10, callbacks=[OneLayerAnEpoch()])
    with pytest.raises(IndexError, match="index 6 is out of range"):
        trainer.fit(SixLayers(), ckpt_path=keeper.last_model_path)


class Block(nn.Module):
    def __init__(self, channels_in, channels_out, *, with_own_parameter=False):
        super().__init__()
        self.parts = nn.ModuleDict({"conv": nn.Conv2d(channels_in, channels_out, 3), "act": nn.ReLU()})
        if with_own_parameter:
            self.scale = nn.Parameter(torch.zeros(1))
        self.bn = nn.BatchNorm2d(channels_out)


def test_a_module_that_owns_parameters_beside_its_children_counts_as_a_leaf():
    encoder = nn.Sequential(Block(3, 6, with_own_parameter=True), Block(6, 12))
    model = nn.ModuleDict({"encoder": encoder, "decoder": Block(12, 10)})
    # three leaves in each of three blocks, and the block with a parameter of its own
    assert len(BaseFinetuning.flatten_modules(model)) == 10

    BaseFinetuning.freeze(model["encoder"], train_bn=True)
    assert not encoder[0].parts["conv"].weight.requires_grad
    assert not encoder[0].scale.requires_grad
    assert encoder[0].bn.weight.requires_grad

    BaseFinetuning.make_trainable(model)
    assert len(list(BaseFinetuning.filter_params(encoder, train_bn=True))) == 9
    assert len(list(BaseFinetuning.filter_params(encoder, train_bn=False))) == 5


class FirstThreeLater(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.layer[:3])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch >= 1:
            self.unfreeze_and_add_param_group(pl_module.layer[epoch - 1], optimizer)


class FourLayers(BoringModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 2))

    def configure_optimizers(self):
        return SGD(filter(lambda parameter: parameter.requires_grad, self.parameters()), lr=0.1)


def test_a_resumed_run_has_the_groups_back_with_the_optimizers_own_keys(tmp_path):
    callback, keeper = FirstThreeLater(), ModelCheckpoint(dirpath=tmp_path, save_last=True)
    model = FourLayers()
    brief(tmp_path, max_epochs=2, callbacks=[callback, keeper]).fit(model)

    own_keys = set(SGD(model.parameters(), lr=0.1).param_groups[0])
    assert list(callback._internal_optimizer_metadata) == [0]
    head, first = callback._internal_optimizer_metadata[0]
    assert set(head) == set(first) == own_keys
    assert (head["lr"], head["params"]) == (0.1, ["layer.3.weight", "layer.3.bias"])
    assert (first["lr"], first["params"]) == (0.01, ["layer.0.weight", "layer.0.bias"])

    trainer = brief(tmp_path, max_epochs=3, callbacks=[callback, keeper])
    trainer.fit(model, ckpt_path=keeper.last_model_path)
    assert len(trainer.optimizers[0].param_groups) == 3


def test_backbone_finetuning_resumes_in_a_new_module(tmp_path):
    class Model(BoringModel):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Linear(32, 32)

        def forward(self, x):
            return self.layer(self.backbone(x))

    keeper = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    brief(tmp_path, max_epochs=2, callbacks=[keeper, BackboneFinetuning(1)]).fit(Model())
    trainer = brief(tmp_path, max_epochs=3, callbacks=BackboneFinetuning(unfreeze_backbone_at_epoch=1))
    trainer.fit(Model(), ckpt_path=keeper.last_model_path)
    assert trainer.current_epoch == 3


@RunIf(deepspeed=True, standalone=True)
def test_what_needs_deepspeed_is_left_out():
    raise AssertionError
