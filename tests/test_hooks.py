"""The hooks: names, arguments and order, as programs of the field rely on."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from headstart import Callback, LightningDataModule, LightningModule, Trainer
from headstart.errors import MisconfigurationError, UnknownArgumentError

# Each hook of `fit` over one epoch of one batch, with the number of its arguments after trainer and module.
# C is a callback, M the module.
TRANSFER = ["M.on_before_batch_transfer 2", "M.transfer_batch_to_device 3", "M.on_after_batch_transfer 2"]
VALIDATION = [
    "M.on_validation_model_eval 0",
    "C.on_validation_start 0", "M.on_validation_start 0",
    "C.on_validation_epoch_start 0", "M.on_validation_epoch_start 0",
    *TRANSFER,
    "C.on_validation_batch_start 2", "M.on_validation_batch_start 2",
    "M.validation_step 2",
    "C.on_validation_batch_end 3", "M.on_validation_batch_end 3",
    "C.on_validation_epoch_end 0", "M.on_validation_epoch_end 0",
    "C.on_validation_end 0", "M.on_validation_end 0",
    "M.on_validation_model_train 0",
]  # fmt: skip
BEGIN = ["M.configure_callbacks 0", "M.prepare_data 0", "C.setup 1", "M.setup 1", "M.configure_model 0"]
FIT = [
    *BEGIN,
    "C.on_model_built 0",
    "M.configure_optimizers 0",
    "C.on_fit_start 0", "M.on_fit_start 0",
    "C.on_sanity_check_start 0",
    "M.val_dataloader 0",
    *VALIDATION,
    "C.on_sanity_check_end 0",
    "M.train_dataloader 0",
    "C.on_train_start 0", "M.on_train_start 0",
    "C.on_train_epoch_start 0", "M.on_train_epoch_start 0",
    *TRANSFER,
    "C.on_train_batch_start 2", "M.on_train_batch_start 2",
    "M.optimizer_step 4",
    "M.training_step 2",
    "C.on_before_zero_grad 1", "M.on_before_zero_grad 1",
    "M.optimizer_zero_grad 3",
    "C.on_before_backward 1", "M.on_before_backward 1",
    "M.backward 1",
    "C.on_after_backward 0", "M.on_after_backward 0",
    "C.on_before_optimizer_step 1", "M.on_before_optimizer_step 1",
    "M.configure_gradient_clipping 3",
    "optimizer.step",
    "M.lr_scheduler_step 2",  # the scheduler that steps with the optimizer
    "M.lr_scheduler_step 2",  # the scheduler that steps with the epoch
    "C.on_train_batch_end 3", "M.on_train_batch_end 3",
    *VALIDATION,
    "C.on_train_epoch_end 0", "M.on_train_epoch_end 0",
    "C.on_train_end 0", "M.on_train_end 0",
    "C.on_fit_end 0", "M.on_fit_end 0",
    "C.teardown 1", "M.teardown 1",
]  # fmt: skip


def evaluation(kind):
    """The hooks of a test or a prediction over one batch."""
    return [
        *BEGIN,
        f"M.{kind}_dataloader 0",
        f"M.on_{kind}_model_eval 0",
        f"C.on_{kind}_start 0", f"M.on_{kind}_start 0",
        f"C.on_{kind}_epoch_start 0", f"M.on_{kind}_epoch_start 0",
        *TRANSFER,
        f"C.on_{kind}_batch_start 2", f"M.on_{kind}_batch_start 2",
        f"M.{kind}_step 2",
        f"C.on_{kind}_batch_end 3", f"M.on_{kind}_batch_end 3",
        f"C.on_{kind}_epoch_end 0", f"M.on_{kind}_epoch_end 0",
        f"C.on_{kind}_end 0", f"M.on_{kind}_end 0",
        f"M.on_{kind}_model_train 0",
        "C.teardown 1", "M.teardown 1",
    ]  # fmt: skip


class Steps(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.layer(batch)

    def test_step(self, batch, batch_idx):
        self.layer(batch)

    def predict_step(self, batch, batch_idx):
        return self.layer(batch)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        by_step = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        by_epoch = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return [optimizer], [{"scheduler": by_step, "interval": "step"}, by_epoch]

    def train_dataloader(self):
        return DataLoader(torch.randn(2, 4), batch_size=2)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


@pytest.fixture
def recorded():
    """A module and a callback every hook of which writes its name, and the list that they write to."""
    calls = []

    def recording(owner, name, base, num_hidden):
        def hook(self, *arguments, **keywords):
            calls.append(f"{owner}.{name} {len(arguments) + len(keywords) - num_hidden}")
            if name == "optimizer_step":
                optimizer = arguments[2]
                result = base(self, *arguments, **keywords)
                calls.append("optimizer.step")
                assert optimizer.param_groups
                return result
            return base(self, *arguments, **keywords)

        return hook

    def subclass(base, owner, names, num_hidden):
        return type(
            base.__name__, (base,), {n: recording(owner, n, getattr(base, n), num_hidden) for n in names}
        )

    def hooks(base):
        return [n for n in dir(base) if n.startswith("on_") and callable(getattr(base, n))] + [
            "setup",
            "teardown",
        ]

    steps = ["training_step", "validation_step", "test_step", "predict_step", "configure_optimizers", "prepare_data",
             "train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader", "configure_model",
             "configure_callbacks", "transfer_batch_to_device", "optimizer_step", "optimizer_zero_grad", "backward",
             "configure_gradient_clipping", "lr_scheduler_step"]  # fmt: skip
    module = subclass(Steps, "M", hooks(LightningModule) + steps, 0)()
    return module, subclass(Callback, "C", hooks(Callback), 2)(), calls


def test_fit_calls_every_hook_in_the_contract_s_order(quiet_trainer, recorded):
    module, callback, calls = recorded
    quiet_trainer(callbacks=[callback], gradient_clip_val=1.0).fit(module)
    assert calls == FIT


def test_validate_calls_every_hook_in_order(quiet_trainer, recorded):
    module, callback, calls = recorded
    quiet_trainer(callbacks=[callback]).validate(module, verbose=False)
    assert calls == [*BEGIN, "M.val_dataloader 0", *VALIDATION, "C.teardown 1", "M.teardown 1"]


@pytest.mark.parametrize("kind", ["test", "predict"])
def test_test_and_predict_call_every_hook_in_order(quiet_trainer, recorded, kind):
    module, callback, calls = recorded
    trainer = quiet_trainer(callbacks=[callback])
    trainer.test(module, verbose=False) if kind == "test" else trainer.predict(module)
    assert calls == evaluation(kind)


def test_a_hook_that_raises_ends_in_on_exception_and_teardown(quiet_trainer, recorded):
    module, callback, calls = recorded
    module.on_train_start = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        quiet_trainer(callbacks=[callback]).fit(module)
    assert calls[-3:] == ["C.on_exception 1", "C.teardown 1", "M.teardown 1"]


def test_saving_and_loading_call_their_hooks(quiet_trainer, recorded, tmp_path):
    module, callback, calls = recorded
    trainer = quiet_trainer(callbacks=[callback])
    trainer.fit(module)
    calls.clear()
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert calls == ["C.on_save_checkpoint 1", "M.on_save_checkpoint 1"]
    calls.clear()
    quiet_trainer(callbacks=[callback], max_epochs=2).fit(module, ckpt_path=tmp_path / "x.ckpt")
    loading = [
        call
        for call in calls
        if "load_checkpoint" in call or "configure_optimizers" in call or "on_fit_start" in call
    ]
    assert loading == [
        "M.on_load_checkpoint 1", "C.on_load_checkpoint 1", "M.configure_optimizers 0",
        "C.on_fit_start 0", "M.on_fit_start 0",
    ]  # fmt: skip
    assert calls.index("C.on_sanity_check_start 0") > calls.index("M.on_fit_start 0")


def test_on_train_batch_start_may_skip_the_rest_of_the_epoch(quiet_trainer):
    class Skips(Steps):
        seen = 0

        def train_dataloader(self):
            return DataLoader(torch.randn(8, 4), batch_size=2)

        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 2 else None

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.seen += 1

    module = Skips()
    quiet_trainer(max_epochs=2).fit(module)
    assert module.seen == 4


# ---- misspelt names


class Misspelt(LightningModule):
    """The slip of a well-known page: `configure_optimizer`."""

    def training_step(self, batch, batch_idx): ...

    def configure_optimizer(self): ...


def test_configure_optimizer_is_answered_with_the_right_name(quiet_trainer):
    with pytest.raises(
        MisconfigurationError, match=r"'configure_optimizer'.*Did you mean 'configure_optimizers'\?"
    ):
        quiet_trainer().fit(Misspelt(), [torch.ones(1)])


def test_a_misspelt_hook_is_answered(quiet_trainer):
    class Module(Steps):
        def on_train_epoch_ends(self): ...

    with pytest.raises(MisconfigurationError, match=r"'on_train_epoch_ends'.*'on_train_epoch_end'"):
        quiet_trainer().fit(Module())

    class Spy(Callback):
        def on_trian_start(self, trainer, pl_module): ...

    with pytest.raises(MisconfigurationError, match=r"'on_trian_start'.*'on_train_start'"):
        quiet_trainer(callbacks=[Spy()]).fit(Steps())

    class Data(LightningDataModule):
        def val_dataloaders(self): ...

    with pytest.raises(MisconfigurationError, match=r"'val_dataloaders'.*'val_dataloader'"):
        quiet_trainer().fit(Steps(), datamodule=Data())


def test_a_missing_step_is_named(quiet_trainer):
    class NoStep(LightningModule):
        def configure_optimizers(self): ...

    with pytest.raises(MisconfigurationError, match="NoStep does not define 'training_step'"):
        quiet_trainer().fit(NoStep(), [torch.ones(1)])
    with pytest.raises(MisconfigurationError, match="does not define 'test_step'"):
        quiet_trainer().test(NoStep(), [torch.ones(1)])


def test_an_unknown_argument_of_the_trainer_is_answered():
    with pytest.raises(UnknownArgumentError, match=r"'max_epoch'. Did you mean 'max_epochs'\?"):
        Trainer(max_epoch=3)
