"""`Trainer.audit`: the table of what is frozen, what trains, and what a step costs."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from headstart import LightningModule, freezing
from headstart.callbacks import BackboneFinetuning
from headstart.errors import MisconfigurationError


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout())
        self.head = nn.Linear(16, 2)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(filter(lambda parameter: parameter.requires_grad, self.parameters()), lr=0.1)


def test_the_audit_counts_a_step_and_leaves_no_trace(quiet_trainer, two_classes):
    module, batch = Net(), next(iter(DataLoader(two_classes, 10)))
    module.backbone.requires_grad_(False)
    trainer = quiet_trainer(callbacks=[BackboneFinetuning(3, train_bn=False)], max_epochs=4)
    trainer.fit(module, DataLoader(two_classes, 10))
    before, logged = copy.deepcopy(module.state_dict()), dict(trainer.callback_metrics)
    expected = torch.random.get_rng_state()
    audit = trainer.audit(batch=batch)
    # Multiplications and additions of two linear layers: forward, and backward to weights, and to the first layer's output.
    first, second = 2 * 10 * 8 * 16, 2 * 10 * 16 * 2
    assert audit.flops == first + second + first + 2 * second
    assert audit.num_parameters == audit.num_trainable == 8 * 16 + 16 + 32 + 16 * 2 + 2
    assert [(row.name, row.group, row.lr) for row in audit.rows if row.name in {"backbone", "head"}] == [
        ("backbone", "1", "0.01"), ("head", "0", "0.1"),
    ]  # fmt: skip
    assert audit.problems == []
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    assert trainer.callback_metrics == logged
    assert torch.equal(torch.random.get_rng_state(), expected)


def test_a_real_freeze_costs_the_forward_pass_of_the_frozen_part(quiet_trainer, two_classes):
    module, batch = Net(), next(iter(DataLoader(two_classes, 10)))
    module.backbone.requires_grad_(False)
    audit = quiet_trainer().audit(module, batch)
    assert audit.flops == 2 * 10 * 8 * 16 + 2 * (2 * 10 * 16 * 2)  # the head's backward: to its weights alone
    assert {row.name: row.mode for row in audit.rows}["backbone.1"] == "eval"


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_a_grouped_convolution_is_counted_with_its_groups(kind, groups):
    module = kind(8, 8, 3, padding=1, groups=groups, bias=False)
    images = torch.randn(2, 8, 5, 5, requires_grad=True)
    flops = freezing.audit(module, step=lambda: module(images).sum()).flops
    forward = 2 * 2 * (8 * 8 // groups) * 9 * 25
    assert flops == 3 * forward  # and the gradients of the weights and of the input, a forward each


def test_the_audit_fails_loudly_where_a_trainable_parameter_is_in_no_group(quiet_trainer, two_classes):
    class Forgets(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), lr=0.1)

    module, trainer = Forgets(), quiet_trainer()
    trainer.fit(module, DataLoader(two_classes, 10))
    with pytest.raises(
        MisconfigurationError, match=r"backbone\.0\.weight is trainable and in no parameter group"
    ):
        trainer.audit().check()
