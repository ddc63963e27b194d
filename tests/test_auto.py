"""The parts of the plan `auto`: reading, the candidates, the end of what is hopeless, calibration in the head."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from headstart import LightningModule, Trainer
from headstart.auto import (
    BLENDS,
    Candidates,
    StopWhenHopeless,
    fold_in_temperature,
    macro_f1,
    outputs_of,
    tuning_plan,
)
from headstart.deferred import Reuse


def data(count=24):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator)
    return TensorDataset(x, (x.sum(1) > 0).long())


class Net(nn.Module):
    def __init__(self, *, norm=False):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4) if norm else nn.Identity())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.backbone(x))


def test_a_loader_is_read_in_order_and_frozen_work_is_done_once():
    net, loader = Net(), DataLoader(data(), batch_size=7)
    net.backbone.requires_grad_(False).eval()
    reuse = Reuse(min_gain=0, say=lambda line: None)
    first, targets = outputs_of(net.backbone, loader, reuse=reuse, accelerator="cpu")
    again, _ = outputs_of(net.backbone, loader, reuse=reuse, accelerator="cpu")
    x, y = data().tensors
    assert torch.equal(targets, y)
    assert torch.allclose(first, net.backbone(x), atol=1e-6)
    assert torch.equal(first, again)
    assert reuse.report().num_computed == 24
    assert reuse.report().num_looked_up >= 24


def candidates_of(net, *, watch=None, **settings):
    """The candidates, and the targets; `watch` is a list of the head's weights at each prediction."""
    x, y = data().tensors

    def predict():
        net.eval()
        if watch is not None:
            watch.append(net.head.weight.detach().clone())
        with torch.no_grad():
            return net(x).log_softmax(1)

    head = {name: value.clone() for name, value in net.state_dict().items()}
    return Candidates(net, head=head, predictions=predict(), targets=y, predict=predict, **settings), y


def moved(net, by):
    return {
        name: value + by if value.is_floating_point() else value for name, value in net.state_dict().items()
    }


def test_blends_lie_between_the_head_alone_and_the_best_moment():
    net = Net()
    head = net.head.weight.detach().clone()
    found, _ = candidates_of(net)
    found.add_tuned([moved(net, 1.0), moved(net, 0.5)], [0.1, 0.9])
    names = [each.name for each in found.found]
    assert names[:5] == ["head alone", "fine-tuned", *(f"blend {share:.0%}" for share in BLENDS)]
    for name, share in [("head alone", 0), ("fine-tuned", 1), ("blend 25%", 0.25), ("blend 75%", 0.75)]:
        found.keep(name)
        assert torch.allclose(net.head.weight, head + 0.5 * share)
        with torch.no_grad():
            assert torch.equal(found.predictions_of(name), net(data().tensors[0]).log_softmax(1))
    costs = {each.name: each.cost for each in found.found}
    assert costs["head alone"] < costs["blend 25%"] < costs["blend 75%"] < costs["fine-tuned"]


def test_a_soup_is_offered_where_it_is_no_worse_than_its_best_member():
    net = Net()
    found, y = candidates_of(net)
    found.add_tuned([moved(net, 0.01), moved(net, 0.02), moved(net, -50.0)], [0.9, 0.8, 0.1])
    soups = [each for each in found.found if each.name.startswith("soup")]
    tuned = next(each for each in found.found if each.name == "fine-tuned")
    for each in soups:
        assert (each.predictions.argmax(1) == y).sum() >= (tuned.predictions.argmax(1) == y).sum()


@pytest.mark.parametrize("scores", [(0.9, 0.8, 0.7), (0.7, 0.9, 0.8), (0.8, 0.8, 0.8)])
def test_each_set_of_weights_is_predicted_once(scores):
    net, seen = Net(), []
    start = net.head.weight.detach().clone()
    found, _ = candidates_of(net, watch=seen)
    seen.clear()  # of the head alone
    states = [moved(net, by) for by in (0.001, 0.002, 0.004)]
    found.add_tuned(states, scores)
    # The best moment, which is the first soup too; three blends; a soup more for each other moment.
    assert len(seen) == 1 + len(BLENDS) + 2
    assert len({each.numpy().tobytes() for each in seen}) == len(seen)
    for each in found.found:
        found.keep(each.name)
        with torch.no_grad():
            assert torch.equal(each.predictions, net(data().tensors[0]).log_softmax(1))
    assert found.found[-1].name == "soup of 3"
    assert torch.allclose(net.head.weight, start + 0.007 / 3)


def test_without_fine_tuning_the_head_alone_is_the_only_candidate():
    found, _ = candidates_of(Net())
    found.add_tuned([], [])
    assert [each.name for each in found.found] == ["head alone"]


def test_norms_get_their_statistics_anew_where_weights_are_blended_and_only_there():
    net, renewed = Net(norm=True), []
    found, _ = candidates_of(net, renew_norms=lambda: renewed.append(net.head.weight[0, 0].item()))
    start = net.head.weight[0, 0].item()
    found.add_tuned([moved(net, 1.0)], [0.5])
    assert renewed == pytest.approx([start + share for share in BLENDS])
    net = Net()
    found, _ = candidates_of(net, renew_norms=lambda: pytest.fail("there is no batch norm"))
    found.add_tuned([moved(net, 1.0)], [0.5])


# ---- what is hopeless


class Falling(LightningModule):
    """Its value at each validation is what it was given."""

    def __init__(self, values):
        super().__init__()
        self.backbone, self.head, self.values = nn.Linear(4, 4), nn.Linear(4, 2), values

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_f1", self.values[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("values", "epochs"),
    [
        ([0.7, 0.69, 0.7, 0.68, 0.7, 0.69, 0.7, 0.69], 6),
        ([0.7, 0.74, 0.78, 0.82, 0.86, 0.9, 0.9, 0.9], 8),
        ([0.9] * 8, 8),
    ],
)
def test_fine_tuning_ends_when_it_stays_below_the_head_without_a_trend(values, epochs, capsys):
    stop = StopWhenHopeless("val_f1", 0.85)
    trainer = Trainer(
        max_epochs=8, callbacks=stop, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(data(), batch_size=8)
    trainer.fit(Falling(values), loader, loader)
    assert trainer.current_epoch == epochs
    assert stop.is_stopped == (epochs < 8)
    assert ("has not come to the head's 0.850" in capsys.readouterr().err) == stop.is_stopped
    again = StopWhenHopeless("val_f1", 0.85)
    again.load_state_dict(stop.state_dict())
    assert again.history == stop.history


# ---- the plan, the scores, the temperature


def test_fine_tuning_keeps_the_norms_of_images_and_comes_down_unless_a_clock_ends_it():
    images, timed = (
        tuning_plan("images", epochs=2, steps_per_epoch=9, is_timed=each).phases[0] for each in (False, True)
    )
    assert (images.norms, images.schedule, timed.schedule) == ("frozen", "cosine", "constant")
    assert tuning_plan("text", epochs=2, steps_per_epoch=1).phases[0].norms == "train"


def test_macro_f1_counts_every_class_alike():
    predictions = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    assert macro_f1(predictions, torch.tensor([0, 0, 1, 1])) == pytest.approx((0.8 + 2 / 3) / 2)


def test_the_temperature_is_in_the_head():
    head = nn.Linear(4, 2)
    x, y = data(200).tensors
    with torch.no_grad():
        logits = 8 * head(x)
        head.weight.mul_(8)
        head.bias.mul_(8)
    found = fold_in_temperature(head, logits, y)
    assert found.temperature > 1
    assert torch.allclose(head(x), logits / found.temperature, atol=1e-4)
    assert cross_entropy(head(x), y) < cross_entropy(logits, y)
