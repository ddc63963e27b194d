"""Training is a plain PyTorch loop, bit for bit."""

import copy
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from headstart import Callback, LightningModule, seed_everything
from headstart.errors import HeadstartError, MisconfigurationError


class Net(LightningModule):
    def __init__(self, optimizer="adam"):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)
        )
        self.kind = optimizer
        self.losses = []

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.losses.append(loss.item())
        self.log("loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        if self.kind == "adam":
            optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        else:
            optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def plain_loop(module, train, val, *, epochs, accumulate=1, clip=None):
    """What everybody writes by hand; the oracle of this file."""
    (optimizer,), (scheduler,) = module.configure_optimizers()
    losses = []
    for _ in range(epochs):
        module.train()
        batches = len(train)
        for index, batch in enumerate(train):
            loss = module.loss(batch)
            losses.append(loss.item())
            start = index - index % accumulate
            window = min(accumulate, batches - start)
            if index == start:
                optimizer.zero_grad()
            (loss if window == 1 else loss / window).backward()
            if index == start + window - 1:
                if clip == "norm":
                    nn.utils.clip_grad_norm_(module.parameters(), 0.5)
                elif clip == "value":
                    nn.utils.clip_grad_value_(module.parameters(), 0.01)
                optimizer.step()
        scheduler.step()
        module.eval()
        with torch.no_grad():
            for batch in val:
                module.loss(batch)
    return losses


def assert_same_weights(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("accumulate", [1, 4])  # 9 batches: the last window of four holds one
@pytest.mark.parametrize("clip", [None, "norm", "value"])
def test_losses_and_weights_equal_a_plain_loop_s(quiet_trainer, two_classes, optimizer, accumulate, clip):
    seed_everything(3)
    ours = Net(optimizer)
    theirs = copy.deepcopy(ours)
    limits = {None: {}, "norm": {"gradient_clip_val": 0.5}, "value": {"gradient_clip_val": 0.01}}[clip]
    trainer = quiet_trainer(
        max_epochs=3, accumulate_grad_batches=accumulate, gradient_clip_algorithm=clip, **limits
    )
    seed_everything(4)
    trainer.fit(ours, DataLoader(two_classes, 8, shuffle=True), DataLoader(two_classes, 16))
    ends_alike = torch.rand(1)
    seed_everything(4)
    losses = plain_loop(
        theirs, DataLoader(two_classes, 8, shuffle=True), DataLoader(two_classes, 16), epochs=3,
        accumulate=accumulate, clip=clip,
    )  # fmt: skip
    assert ours.losses == losses
    assert_same_weights(ours, theirs)
    assert torch.equal(ends_alike, torch.rand(1)), "the random state afterwards is another"


class Stream(IterableDataset):
    def __iter__(self):
        yield from torch.ones(6, 1)


class Slope(LightningModule):
    """Its gradient is the mean of the batch, whatever the weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.parametrize("sized", [True, False])
def test_the_last_short_accumulation_window_is_divided_by_what_it_holds(quiet_trainer, sized):
    module = Slope()
    loader = DataLoader(torch.ones(6, 1)) if sized else DataLoader(Stream())
    trainer = quiet_trainer(accumulate_grad_batches=4)
    trainer.fit(module, loader)
    # Two windows, of four batches and of two: each step is the mean gradient, 1.0.
    assert trainer.global_step == 2
    assert module.weight.item() == pytest.approx(
        -2.0, abs=1e-6
    )  # 1/4 and 1/2 are exact; the unsized one rescales


def test_training_step_may_give_a_dict_or_none(quiet_trainer):
    class Module(Slope):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                return None
            return {"loss": super().training_step(batch, batch_idx), "extra": batch_idx}

    class Spy(Callback):
        outputs = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.outputs.append(outputs)

    module, spy = Module(), Spy()
    trainer = quiet_trainer(callbacks=[spy])
    trainer.fit(module, DataLoader(torch.ones(3, 1)))
    assert module.weight.item() == -2.0
    assert trainer.global_step == 2  # a batch without a loss takes no step
    assert [None if each is None else each["extra"] for each in spy.outputs] == [0, None, 2]
    assert spy.outputs[0]["loss"].requires_grad is False


class Without(Slope):
    """Gives no loss for the batches that it was told."""

    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def training_step(self, batch, batch_idx):
        return None if batch_idx in self.batches else super().training_step(batch, batch_idx)


@pytest.mark.parametrize("without", [0, 1])
def test_a_window_steps_alike_whichever_of_its_batches_gives_no_loss(quiet_trainer, without):
    class Hooks(Callback):
        steps = 0

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.steps += 1

    module, hooks = Without(without), Hooks()
    quiet_trainer(accumulate_grad_batches=2, gradient_clip_val=0.25, callbacks=[hooks]).fit(
        module, DataLoader(torch.ones(2, 1))
    )
    assert module.weight.item() == pytest.approx(-0.25, abs=1e-6)  # torch divides by the norm plus 1e-6
    assert hooks.steps == 1


@pytest.mark.parametrize("without", [0, 1])
def test_gradients_that_are_not_finite_are_left_out_whichever_batch_gives_no_loss(quiet_trainer, without):
    class Root(Without):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if loss is None else (0.0 * loss).sqrt()  # 0, and its gradient is NaN

    module = Root(without)
    trainer = quiet_trainer(accumulate_grad_batches=2, on_nan="skip")
    trainer.fit(module, DataLoader(torch.ones(2, 1)))
    assert module.weight.item() == 0.0
    assert trainer.global_step == 0


def test_a_batch_without_a_loss_moves_nothing_where_the_module_steps_itself(quiet_trainer):
    class Steps(Without):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            optimizer.step(closure=optimizer_closure)

    module = Steps(1, 3)
    trainer = quiet_trainer()
    trainer.fit(module, DataLoader(torch.ones(4, 1)))
    assert module.weight.item() == -2.0
    assert trainer.global_step == 2


def test_a_scaled_step_is_left_out_with_its_loss_where_the_module_steps_itself(quiet_trainer):
    class Steps(Without):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            optimizer.step(closure=optimizer_closure)

    module = Steps(0)
    trainer = quiet_trainer(precision="16-mixed")
    trainer.fit(module, DataLoader(torch.ones(3, 1)))
    assert module.weight.item() == -2.0
    assert trainer.global_step == 2


def test_the_schedule_of_epochs_goes_on_where_one_was_cut_short(quiet_trainer):
    class Skips(Slope):
        rates = []

        def on_train_epoch_start(self):
            self.rates.append(self.optimizers().param_groups[0]["lr"])

        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 1 else None

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    module = Skips()
    quiet_trainer(max_epochs=3).fit(module, DataLoader(torch.ones(4, 1)))
    assert module.rates == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("value", [None, 0, 0.0])
def test_no_gradient_is_clipped_without_a_bound(quiet_trainer, value):
    module = Slope()
    quiet_trainer(gradient_clip_val=value).fit(module, DataLoader(torch.ones(2, 1)))
    assert module.weight.item() == -2.0


def test_lbfgs_leaves_out_a_batch_without_a_loss(quiet_trainer):
    class Squares(Without):
        def training_step(self, batch, batch_idx):
            return None if batch_idx in self.batches else ((self.weight - batch) ** 2).mean()

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=2)

    module, reference = Squares(1), Squares()
    trainer = quiet_trainer()
    trainer.fit(module, DataLoader(torch.ones(3, 1)))
    quiet_trainer().fit(reference, DataLoader(torch.ones(2, 1)))
    assert trainer.global_step == 2
    assert torch.equal(module.weight, reference.weight)


def test_lbfgs_says_where_it_has_moved_to_no_loss(quiet_trainer):
    class Cliff(Slope):
        def training_step(self, batch, batch_idx):
            return None if self.weight.item() < 0 else super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.5)

    with pytest.raises(HeadstartError, match="LBFGS has moved the weights .* smaller lr"):
        quiet_trainer().fit(Cliff(), DataLoader(torch.ones(1, 1)))


@pytest.mark.parametrize("cut", ["skipped", "stopped"])
def test_gradients_of_a_window_that_was_cut_short_are_in_no_step(quiet_trainer, cut):
    class Cut(Slope):
        def on_train_batch_start(self, batch, batch_idx):
            if self.trainer.current_epoch == 0 and cut == "skipped" and batch_idx == 3:
                return -1
            if self.trainer.current_epoch == 0 and cut == "stopped" and batch_idx == 2:
                self.trainer.should_stop = True
            return None

    module = Cut()
    trainer = quiet_trainer(max_epochs=2 if cut == "skipped" else 1, accumulate_grad_batches=2)
    loader = DataLoader(torch.ones(4, 1))
    trainer.fit(module, loader)
    if cut == "stopped":
        trainer.max_epochs = 2
        trainer.fit(module, loader)
    assert module.weight.item() == -3.0  # a step of the first epoch, and two of the second


@pytest.mark.parametrize("given", [{"los": 1}, "text", 3.0])
def test_another_output_of_training_step_is_refused(quiet_trainer, given):
    class Module(Slope):
        def training_step(self, batch, batch_idx):
            return given

    with pytest.raises(MisconfigurationError, match="training_step returned"):
        quiet_trainer().fit(Module(), DataLoader(torch.ones(3, 1)))


def test_training_step_may_leave_out_the_batch_index(quiet_trainer):
    class Module(Slope):
        def training_step(self, batch):
            return (self.weight * batch).mean()

    module = Module()
    quiet_trainer().fit(module, DataLoader(torch.ones(3, 1)))
    assert module.weight.item() == -3.0


def test_few_frames_lie_between_fit_and_training_step(quiet_trainer):
    class Module(Slope):
        stack = None

        def training_step(self, batch, batch_idx):
            frame, self.stack = sys._getframe(1), []
            while frame.f_code.co_filename != __file__:
                self.stack.append((frame.f_code.co_filename, frame.f_code.co_name))
                frame = frame.f_back
            return super().training_step(batch, batch_idx)

    module = Module()
    quiet_trainer().fit(module, DataLoader(torch.ones(1, 1)))
    assert module.stack[-1][1] == "fit"
    assert len(module.stack) <= 6
    assert len({file for file, _ in module.stack}) <= 3


# ---- how long, and when validation runs


class Counting(Slope):
    def __init__(self):
        super().__init__()
        self.at = []
        self.count = 0

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.count += 1

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking and batch_idx == 0:
            self.at.append(self.count)


@pytest.mark.parametrize(
    ("settings", "batches", "validated_after"),
    [
        ({"max_epochs": 2}, 20, [10, 20]),
        ({"max_epochs": 4, "check_val_every_n_epoch": 2}, 40, [20, 40]),
        ({"max_epochs": 1, "val_check_interval": 0.25}, 10, [2, 4, 6, 8, 10]),
        ({"max_epochs": 2, "val_check_interval": 4}, 20, [4, 8, 14, 18]),
        ({"max_epochs": 2, "val_check_interval": 7, "check_val_every_n_epoch": None}, 20, [7, 14]),
        ({"max_epochs": 2, "limit_train_batches": 3}, 6, [3, 6]),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 10, [5, 10]),
        ({"max_epochs": 2, "limit_val_batches": 0}, 20, []),
        ({"max_epochs": -1, "max_steps": 13}, 13, [10]),
        ({"fast_dev_run": True}, 1, [1]),
        ({"fast_dev_run": 3}, 3, [3]),
        ({"max_epochs": 1, "overfit_batches": 2}, 2, [2]),
        ({"max_epochs": 0}, 0, []),
    ],
)
def test_the_number_of_batches_and_the_moments_of_validation(
    quiet_trainer, settings, batches, validated_after
):
    module = Counting()
    quiet_trainer(**settings).fit(module, DataLoader(torch.ones(10, 1)), DataLoader(torch.ones(3, 1)))
    assert module.count == batches
    assert module.at == validated_after


def test_should_stop_waits_for_the_least_number_of_epochs(quiet_trainer):
    class Stops(Counting):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            super().on_train_batch_end(outputs, batch, batch_idx)
            self.trainer.should_stop = True

    for settings, batches in (({}, 1), ({"min_epochs": 2}, 20), ({"min_steps": 4}, 4)):
        module = Stops()
        quiet_trainer(max_epochs=5, **settings).fit(module, DataLoader(torch.ones(10, 1)))
        assert module.count == batches


def test_a_run_that_is_stopped_within_an_epoch_is_validated_once_more(quiet_trainer):
    class Stops(Counting):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            super().on_train_batch_end(outputs, batch, batch_idx)
            self.trainer.should_stop = self.count == 4

    module = Stops()
    quiet_trainer(max_epochs=5).fit(module, DataLoader(torch.ones(10, 1)), DataLoader(torch.ones(3, 1)))
    assert (module.count, module.at) == (4, [4])


def test_steps_are_estimated_before_the_optimizers_exist(quiet_trainer):
    class Module(Slope):
        def configure_optimizers(self):
            self.estimated = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    module = Module()
    trainer = quiet_trainer(max_epochs=3, accumulate_grad_batches=4)
    trainer.fit(module, DataLoader(torch.ones(10, 1)))
    assert module.estimated == trainer.global_step == 9


def test_loaders_are_asked_for_again_every_n_epochs(quiet_trainer):
    class Module(Slope):
        asked = 0

        def train_dataloader(self):
            self.asked += 1
            return DataLoader(torch.ones(2, 1))

    for every, asked in ((0, 1), (1, 4), (2, 2)):
        module = Module()
        quiet_trainer(max_epochs=4, reload_dataloaders_every_n_epochs=every).fit(module)
        assert module.asked == asked


# ---- a loader that ends before its length


class Filtered(IterableDataset):
    """Says how many samples it has before it leaves some out."""

    def __len__(self):
        return 10

    def __iter__(self):
        return (torch.ones(1) for index in range(10) if index not in {3, 4})


@pytest.mark.parametrize(
    ("settings", "validated_after", "steps"),
    [
        ({}, [8, 16], 16),
        ({"check_val_every_n_epoch": 2}, [16], 16),
        ({"val_check_interval": 4}, [4, 8, 12, 16], 16),
        ({"accumulate_grad_batches": 3}, [8, 16], 6),  # windows of 3, 3 and 2
    ],
)
def test_a_stream_that_leaves_samples_out_has_a_last_batch(quiet_trainer, settings, validated_after, steps):
    class Counted(Slope):
        def __init__(self):
            super().__init__()
            self.count, self.at = 0, []

        def training_step(self, batch, batch_idx):
            self.count += 1
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.at.append(self.count)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    module = Counted()
    trainer = quiet_trainer(max_epochs=2, num_sanity_val_steps=0, **settings)
    trainer.fit(module, DataLoader(Filtered()), DataLoader(torch.ones(1, 1)))
    assert (module.count, module.at, trainer.global_step) == (16, validated_after, steps)
    # Every gradient is 1, and the rate halves after the first epoch.
    assert module.weight.item() == pytest.approx(-1.5 * steps / 2)


def test_a_loader_that_ends_before_its_length_is_said(quiet_trainer):
    class Overstated:
        def __len__(self):
            return 5

        def __iter__(self):
            return iter(torch.ones(3, 1))

    with pytest.warns(
        UserWarning, match="gave 3 batches; expected 5, by its length.*Correct the loader's __len__"
    ):
        quiet_trainer().fit(Slope(), Overstated())


# ---- manual optimization, and optimizers that want more


def test_a_step_by_hand_gives_what_its_closure_gave(quiet_trainer):
    class Manual(Slope):
        given = []

        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            def closure():
                loss = (self.weight * batch).mean() + 1
                self.optimizers().zero_grad()
                self.manual_backward(loss)
                return loss

            self.given.append(self.optimizers().step(closure=closure).item())

    module = Manual()
    quiet_trainer().fit(module, DataLoader(torch.ones(2, 1)))
    assert module.given == [1.0, 0.0]


def test_two_optimizers_are_stepped_by_hand(quiet_trainer):
    class Game(LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.one, self.two = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
            self.gradients = []

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            for optimizer, layer in ((first, self.one), (second, self.two)):
                self.toggle_optimizer(optimizer)
                self.gradients.append((self.one.weight.requires_grad, self.two.weight.requires_grad))
                optimizer.zero_grad()
                self.manual_backward(self.two(self.one(batch)).sum() * 0 + layer(batch).sum())
                optimizer.step()
                self.untoggle_optimizer(optimizer)
            for scheduler in self.lr_schedulers():
                scheduler.step()

        def configure_optimizers(self):
            optimizers = [torch.optim.SGD(layer.parameters(), lr=1.0) for layer in (self.one, self.two)]
            return optimizers, [torch.optim.lr_scheduler.StepLR(each, 1, 0.5) for each in optimizers]

    module = Game()
    before = module.one.weight.item()
    trainer = quiet_trainer()
    trainer.fit(module, DataLoader(torch.ones(2, 1)))
    assert trainer.global_step == 4
    assert module.one.weight.item() == pytest.approx(before - 1.5)  # rates 1.0 and 0.5
    assert module.gradients[:2] == [(True, False), (False, True)]
    assert module.one.weight.requires_grad
    assert module.two.weight.requires_grad


def test_two_optimizers_without_manual_optimization_are_refused(quiet_trainer):
    class Module(Slope):
        def configure_optimizers(self):
            return [super().configure_optimizers(), super().configure_optimizers()]

    with pytest.raises(MisconfigurationError, match="automatic_optimization = False"):
        quiet_trainer().fit(Module(), DataLoader(torch.ones(2, 1)))


def test_an_overridden_optimizer_step_decides_when_to_step(quiet_trainer):
    class Module(Slope):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            if batch_idx % 2:
                optimizer.step(closure=optimizer_closure)
            else:
                optimizer_closure()

    module = Module()
    quiet_trainer().fit(module, DataLoader(torch.ones(4, 1)))
    assert module.weight.item() == -2.0


def test_lbfgs_gets_the_closure_that_it_calls_itself(quiet_trainer):
    class Bowl(Slope):
        def training_step(self, batch, batch_idx):
            return ((self.weight - 3 * batch) ** 2).mean()

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), max_iter=20)

    module = Bowl()
    quiet_trainer().fit(module, DataLoader(torch.ones(1, 1)))
    assert module.weight.item() == pytest.approx(
        3.0, abs=1e-3
    )  # L-BFGS's own tolerance on the gradient is 1e-7


def test_without_an_optimizer_nothing_is_learned_and_that_is_said(quiet_trainer):
    class Module(Slope):
        def configure_optimizers(self):
            return None

    module = Module()
    with pytest.warns(UserWarning, match="configure_optimizers returned None"):
        quiet_trainer().fit(module, DataLoader(torch.ones(2, 1)))
    assert module.weight.item() == 0.0


# ---- evaluation and prediction


class Evaluates(Slope):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("value", batch.mean())

    def test_step(self, batch, batch_idx):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.log("value", batch.mean())

    def predict_step(self, batch, batch_idx):
        return batch * 2


def test_validate_and_test_give_what_was_logged_for_each_loader(quiet_trainer):
    module, trainer = Evaluates(), quiet_trainer()
    short, long = DataLoader(torch.tensor([1.0, 2.0, 6.0]), 2), DataLoader(torch.tensor([4.0]))
    # The mean over samples, not over batches: (1 + 2 + 6) / 3.
    assert trainer.test(module, short, verbose=False) == [{"value": 3.0}]
    assert trainer.validate(module, [short, long], verbose=False) == [
        {"value/dataloader_idx_0": 3.0}, {"value/dataloader_idx_1": 4.0},
    ]  # fmt: skip


def test_predict_gives_each_batch_s_prediction(quiet_trainer):
    loader = DataLoader(torch.tensor([1.0, 2.0, 6.0]), 2)
    trainer = quiet_trainer()
    assert [each.tolist() for each in trainer.predict(Evaluates(), loader)] == [[2.0, 4.0], [12.0]]
    assert [len(each) for each in trainer.predict(Evaluates(), [loader, loader])] == [2, 2]
    assert trainer.predict(Evaluates(), loader, return_predictions=False) is None


def test_validate_leaves_the_random_state_and_the_modes_as_they_were(quiet_trainer, two_classes):
    module = Net()
    module.net[0].eval()
    module.net[1].requires_grad_(False)
    modes = {name: child.training for name, child in module.named_modules()}
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    quiet_trainer().validate(module, DataLoader(two_classes, 8, shuffle=True), verbose=False)
    assert torch.equal(torch.rand(1), expected)
    after = {name: child.training for name, child in module.named_modules()}
    assert after == {**modes, "net.1": False}  # frozen, so in evaluation mode


@pytest.mark.parametrize("inference_mode", [True, False])
def test_inference_mode_is_the_caller_s_choice(quiet_trainer, inference_mode):
    class Module(Evaluates):
        def test_step(self, batch, batch_idx):
            self.seen = torch.is_inference_mode_enabled()

    module = Module()
    quiet_trainer(inference_mode=inference_mode).test(module, DataLoader(torch.ones(1)), verbose=False)
    assert module.seen is inference_mode


def test_ctrl_c_ends_with_the_hooks_and_fit_goes_on_from_there(quiet_trainer, two_classes):
    class Interrupted(Callback):
        seen = None
        armed = True

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if self.armed and trainer.current_epoch == 1 and batch_idx == 4:
                self.armed = False
                raise KeyboardInterrupt

        def on_exception(self, trainer, pl_module, exception):
            self.seen = exception

    seed_everything(0)
    cut = Net()
    uncut = copy.deepcopy(cut)
    seed_everything(1)
    quiet_trainer(max_epochs=3).fit(uncut, DataLoader(two_classes, 8, shuffle=True))
    seed_everything(1)
    callback = Interrupted()
    trainer = quiet_trainer(max_epochs=3, callbacks=[callback])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(cut, DataLoader(two_classes, 8, shuffle=True))
    assert isinstance(callback.seen, KeyboardInterrupt)
    assert trainer.interrupted
    trainer.fit(cut, DataLoader(two_classes, 8, shuffle=True))
    assert cut.losses == uncut.losses
    assert_same_weights(cut, uncut)
