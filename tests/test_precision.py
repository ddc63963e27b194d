"""Number formats: what a step computes in, and what the weights are kept in."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from headstart import LightningModule
from headstart.errors import MisconfigurationError
from headstart.precision import Precision


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)
        self.seen = {}

    def step(self, name, batch):
        x, y = batch
        logits = self.layer(x)
        self.seen[name] = (x.dtype, logits.dtype, y.dtype)
        return nn.functional.cross_entropy(logits, y)

    def training_step(self, batch, batch_idx):
        loss = self.step("train", batch)
        self.log("loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.step("val", batch)

    def predict_step(self, batch, batch_idx):
        return self.step("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


FLOAT, DOUBLE, BFLOAT = torch.float32, torch.float64, torch.bfloat16


@pytest.mark.parametrize(
    ("precision", "inputs", "logits", "weights"),
    [
        (None, FLOAT, FLOAT, FLOAT),
        (32, FLOAT, FLOAT, FLOAT),
        ("32-true", FLOAT, FLOAT, FLOAT),
        ("bf16-mixed", FLOAT, BFLOAT, FLOAT),
        ("bf16", FLOAT, BFLOAT, FLOAT),
        ("64-true", DOUBLE, DOUBLE, DOUBLE),
        (64, DOUBLE, DOUBLE, DOUBLE),
        ("bf16-true", BFLOAT, BFLOAT, BFLOAT),
    ],
)
def test_a_format_sets_the_dtypes_of_inputs_outputs_and_weights(
    quiet_trainer, two_classes, precision, inputs, logits, weights
):
    module, loader = Net(), DataLoader(two_classes, 16)
    trainer = quiet_trainer(precision=precision)
    trainer.fit(module, loader, loader)
    trainer.predict(module, loader)
    # Whole numbers, such as the targets, stay what they are.
    assert module.seen == dict.fromkeys(("train", "val", "predict"), (inputs, logits, torch.int64))
    assert module.layer.weight.dtype is weights
    assert module.layer.weight.grad.dtype is weights
    assert module.dtype is weights


@dataclass
class Pair:
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize("kind", [namedtuple("Named", "x y"), Pair])
def test_batches_of_any_kind_have_the_weights_format(quiet_trainer, kind):
    class Sees(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def predict_step(self, batch, batch_idx):
            return self.layer(batch.x), batch.y

    def collate(samples):
        return kind(torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples]))

    loader = DataLoader([(torch.ones(2), 1)] * 3, batch_size=3, collate_fn=collate)
    ((output, targets),) = quiet_trainer(precision="64-true").predict(Sees(), loader)
    assert (output.dtype, targets.dtype) == (DOUBLE, torch.int64)


def test_bf16_mixed_is_torch_s_autocast(quiet_trainer, two_classes):
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    theirs.log = lambda *args, **kwargs: None
    loader = DataLoader(two_classes, 16)
    quiet_trainer(precision="bf16-mixed").fit(ours, loader)
    optimizer = theirs.configure_optimizers()
    for batch in loader:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = theirs.training_step(batch, 0)
        loss.backward()
        optimizer.step()
    assert torch.equal(ours.layer.weight, theirs.layer.weight)


def test_64_true_trains_as_a_double_model(quiet_trainer, two_classes):
    module = Net()
    theirs = nn.Linear(8, 2).double()
    theirs.load_state_dict(module.layer.state_dict())
    loader = DataLoader(two_classes, 70)
    quiet_trainer(precision="64-true").fit(module, loader)
    x, y = next(iter(loader))
    nn.functional.cross_entropy(theirs(x.double()), y).backward()
    expected = theirs.weight - 0.1 * theirs.weight.grad
    assert torch.allclose(module.layer.weight, expected, rtol=0, atol=1e-15)  # a step of doubles


def test_batches_of_every_shape_are_converted():
    converted = Precision("64-true", device=torch.device("cpu")).convert_batch(
        {"x": [torch.ones(1)], "y": (torch.ones(1, dtype=torch.int64), "text")}
    )
    assert converted["x"][0].dtype is torch.float64
    assert converted["y"][0].dtype is torch.int64
    assert converted["y"][1] == "text"


@pytest.mark.parametrize("word", ["bf61-mixed", "fp8", 8])
def test_another_word_is_refused_with_those_that_are_known(word):
    with pytest.raises(MisconfigurationError, match=f"precision is {word!r}; expected one of 32-true, "):
        Precision(word, device=torch.device("cpu"))


def test_the_trainer_says_its_precision(quiet_trainer):
    assert quiet_trainer().precision == "32-true"
    assert quiet_trainer(precision="bf16-mixed").precision == "bf16-mixed"
