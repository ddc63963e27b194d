"""The parts of the plan `auto`: reading, the candidates, the end of what is not worth its time, calibration in the head."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from headstart import Callback, LightningModule, Trainer
from headstart.auto import (
    BLENDS,
    Candidates,
    FewValidations,
    StopEarly,
    fold_in_temperature,
    macro_f1,
    outputs_of,
    tuning_plan,
)
from headstart.callbacks import plan as plan_runner
from headstart.deferred import Reuse
from headstart.plan import Phase, Plan


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
    assert names[:5] == ["head alone", *(f"blend {share:.0%}" for share in BLENDS), "fine-tuned"]
    for name, share in [("head alone", 0), ("fine-tuned", 1), ("blend 25%", 0.25), ("blend 75%", 0.75)]:
        found.keep(name)
        assert torch.allclose(net.head.weight, head + 0.5 * share)
        with torch.no_grad():
            assert torch.equal(found.predictions_of(name), net(data().tensors[0]).log_softmax(1))
    costs = {each.name: each.cost for each in found.found}
    assert costs["head alone"] < costs["blend 25%"] == costs["blend 75%"] == costs["fine-tuned"]


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


def test_what_diverged_is_left_out_and_the_best_of_the_rest_is_what_was_fine_tuned():
    net = Net()
    found, _ = candidates_of(net)
    found.add_tuned([moved(net, math.nan), moved(net, 0.5), moved(net, math.inf)], [0.9, 0.8, 0.1])
    assert [each.name for each in found.found] == [
        "head alone",
        *(f"blend {s:.0%}" for s in BLENDS),
        "fine-tuned",
    ]
    assert found.num_lost == 1
    found.keep("fine-tuned")
    assert torch.equal(net.head.weight, found.weights["fine-tuned"]["head.weight"])
    found, _ = candidates_of(Net())
    found.add_tuned([moved(net, math.nan)] * 3, [0.9, 0.9, 0.9])
    assert [each.name for each in found.found] == ["head alone"]
    assert found.num_lost == 3


def test_the_soup_is_judged_by_the_score_that_is_asked_for():
    asked, net = [], Net()

    def score(predictions, targets):
        asked.append(len(predictions))
        return -float(len(asked))  # every further member makes it worse

    found, y = candidates_of(net, score=score)
    found.add_tuned([moved(net, 0.01), moved(net, 0.02)], [0.9, 0.8])
    assert asked == [len(y)] * 2
    assert not any(each.name.startswith("soup") for each in found.found)


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


# ---- what is not worth its time


class Scripted(LightningModule):
    """Its value and its loss at each validation are what it was given."""

    def __init__(self, values, losses):
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.values, self.losses = values, losses

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_f1", self.values[self.current_epoch])
        self.log("val_loss", self.losses[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


FALLING = [1 / (epoch + 1) for epoch in range(8)]
FLAT = [0.7, 0.69, 0.7, 0.68, 0.7, 0.69, 0.7, 0.69]


@pytest.mark.parametrize(
    ("values", "losses", "epochs", "reason"),
    [
        (FLAT, FALLING, 6, "has not come to the head's 0.850"),
        ([0.7, 0.74, 0.78, 0.82, 0.86, 0.9, 0.9, 0.9], FALLING, 8, ""),
        ([0.9] * 8, FALLING, 8, ""),  # the loss goes on falling
        ([0.86 + epoch / 100 for epoch in range(8)], [1.0] * 8, 8, ""),  # the value goes on rising
        ([0.9] * 8, [0.5, 0.4, *[0.4] * 6], 7, "neither val_f1 nor val_loss has been better since validation 2"),
        ([0.9] * 8, [0.5, 0.45, *[0.4] * 6], 8, ""),  # would have ended with the last epoch, and does so anyway
        ([0.9] * 8, [0.5, math.nan, *[0.5] * 6], 2, "it diverged, val_loss is nan"),
    ],
)  # fmt: skip
def test_fine_tuning_ends_where_it_is_not_worth_its_time(values, losses, epochs, reason, capsys):
    stop = StopEarly("val_f1", 0.85)
    trainer = Trainer(
        max_epochs=8, callbacks=stop, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = DataLoader(data(), batch_size=8)
    trainer.fit(Scripted(values, losses), loader, loader)
    assert trainer.current_epoch == epochs
    assert reason in stop.reason
    assert bool(stop.reason) == (epochs < 8)
    assert stop.reason in capsys.readouterr().err
    again = StopEarly("val_f1", 0.85)
    again.load_state_dict(stop.state_dict())
    assert again.state_dict().keys() == {"history", "losses", "reason"}
    assert (again.history, again.reason) == (stop.history, stop.reason)


def test_fine_tuning_that_ends_anyway_is_not_ended_early(capsys):
    class Clock(Callback):
        def on_validation_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 2

    stop = StopEarly("val_f1", 0.85)
    trainer = Trainer(
        max_epochs=8, callbacks=[Clock(), stop], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = DataLoader(data(), batch_size=8)
    trainer.fit(Scripted([0.9] * 8, [0.5, 0.5, math.nan, *[0.5] * 5]), loader, loader)
    assert trainer.current_epoch == 3
    assert len(stop.history) == 3
    assert (stop.reason, "diverged" in capsys.readouterr().err) == ("", False)


class Counted(Scripted):
    """Takes a second for a training batch and for one of validation; knows where it was validated."""

    now = 0.0

    def __init__(self):
        super().__init__([0.5] * 99, [0.5] * 99)
        self.validated = []

    def training_step(self, batch, batch_idx):
        type(self).now += 1.0
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        type(self).now += 1.0
        super().validation_step(batch, batch_idx)

    def on_validation_end(self):
        self.validated.append(self.trainer.global_step)


@pytest.mark.parametrize(
    ("epochs", "seconds", "validated"),
    [
        (3, None, [2, 4, 6, 8, 10, 12]),  # four steps an epoch
        (7, None, [8, 16, 24, 28]),
        (9, None, [8, 16, 24, 32, 36]),
        # The first epoch, of four steps and two validations, takes six seconds.
        (None, 15.0, [2, 4, 6, 8, 10]),
        (None, 24.0, [2, 4, 8, 12, 16, 19]),
        (None, 100.0, [2, 4, *range(12, 85, 12), 91]),
        (2, 100.0, [2, 4, 6, 8]),
        (9, 16.0, [8, 12, 14]),
        (99, 100.0, [20, 40, 60, 80, 96]),
    ],
)
def test_validations_are_few_and_even(epochs, seconds, validated, monkeypatch):
    monkeypatch.setattr(plan_runner, "monotonic", lambda: Counted.now)
    few, net = FewValidations(6, epochs=epochs, seconds=seconds), Counted()
    phase = Phase(name="all", trains="all", lr=0.01, epochs=epochs, time=seconds)
    trainer = Trainer(
        plan=Plan(phases=[phase]), callbacks=few, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(net, DataLoader(data(), batch_size=6), DataLoader(data(2), batch_size=2))
    assert net.validated == validated
    again = FewValidations(6, epochs=epochs, seconds=seconds)
    again.load_state_dict(few.state_dict())
    assert again.every == few.every


@pytest.mark.parametrize(
    ("num_batches", "validated"), [(1, [1, 2]), (2, [1, 2, 3, 4]), (3, [2, 3, 5, 6]), (5, [3, 5, 8, 10])]
)
@pytest.mark.parametrize("cut", [None, "on_train_batch_end", "on_validation_end"])
def test_an_epochs_last_weights_are_judged_where_it_has_no_half(num_batches, validated, cut, tmp_path):
    class Saves(Callback):
        """At every place a run may go on from."""

        def save(self, trainer, place):
            if place == cut:
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.save(trainer, "on_train_batch_end")

        def on_validation_end(self, trainer, pl_module):
            self.save(trainer, "on_validation_end")

    def run(path=None):
        net = Counted()
        trainer = Trainer(
            max_epochs=2, callbacks=[FewValidations(12, epochs=2), Saves()], accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0,
        )  # fmt: skip
        loader = DataLoader(data(), batch_size=-(-len(data()) // num_batches))
        trainer.fit(net, loader, DataLoader(data(2)), ckpt_path=path)
        return net.validated

    assert run() == validated
    for path in list(tmp_path.iterdir()):
        step = int(path.stem)
        rest = [each for each in validated if each > step or (each == step and cut == "on_train_batch_end")]
        assert run(path) == rest


def test_validations_stay_few_where_a_run_goes_on_with_more_time():
    again = FewValidations(12, seconds=6000.0)
    again.load_state_dict({"first_epoch": 50.0})
    assert again.every == 10


# ---- the plan, the scores, the temperature


def test_fine_tuning_keeps_the_norms_of_images_and_its_rate_comes_down():
    images = tuning_plan("images", epochs=2, steps_per_epoch=9).phases[0]
    timed = tuning_plan("images", seconds=60, steps_per_epoch=9).phases[0]
    assert (images.norms, images.schedule, images.length()) == ("frozen", "cosine", "2 epochs")
    assert (timed.norms, timed.schedule, timed.length()) == ("frozen", "cosine", "1 min")
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
