"""`LightningModule`: optimizers in every form, hyper-parameters, freezing, late building, and what it says of its run."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from headstart import Callback, LightningModule
from headstart.callbacks import EarlyStopping
from headstart.errors import CheckpointError, MisconfigurationError, UnknownArgumentError, UnknownNameError
from headstart.loggers import CSVLogger


def ones(count=2):
    return DataLoader(torch.ones(count, 1))


class Slope(LightningModule):
    """Its gradient is the mean of the batch, whatever the weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        self.log("loss", 1.0)
        return (self.weight * batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


# ---- configure_optimizers


def configured(make):
    """A module whose `configure_optimizers` gives `make(optimizer, scheduler)`."""

    class Module(Slope):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            return make(optimizer, StepLR(optimizer, 1, 0.5))

    return Module()


FORMS = {
    "an optimizer": lambda o, s: o,
    "a list": lambda o, s: [o],
    "a tuple": lambda o, s: (o,),
    "two lists": lambda o, s: ([o], [s]),
    "a list of two lists": lambda o, s: [[o], [s]],
    "a list and a scheduler": lambda o, s: ([o], s),
    "two lists with a dict": lambda o, s: ([o], [{"scheduler": s, "interval": "step"}]),
    "two lists without schedulers": lambda o, s: ([o], []),
    "a dict": lambda o, s: {"optimizer": o},
    "a dict with a scheduler": lambda o, s: {"optimizer": o, "lr_scheduler": s},
    "a dict with a scheduler's dict": lambda o, s: {
        "optimizer": o,
        "lr_scheduler": {"scheduler": s, "interval": "step", "frequency": 2},
    },
    "a tuple of dicts": lambda o, s: ({"optimizer": o, "lr_scheduler": s},),
}
# The rate after one epoch of two batches: halved once an epoch, once a step, or every two steps.
RATES = {
    "two lists": 0.5, "a list of two lists": 0.5, "a list and a scheduler": 0.5, "two lists with a dict": 0.25,
    "a dict with a scheduler": 0.5, "a dict with a scheduler's dict": 0.5, "a tuple of dicts": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_optimizers_and_schedulers_are_taken_in_every_form(quiet_trainer, form):
    trainer = quiet_trainer()
    trainer.fit(configured(FORMS[form]), ones())
    (optimizer,) = trainer.optimizers
    assert optimizer.param_groups[0]["lr"] == RATES.get(form, 1.0)
    assert len(trainer.lr_scheduler_configs) == (form in RATES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o, s: "sgd", "configure_optimizers returned str: 'sgd'; expected an optimizer, a list of them"),
        (lambda o, s: [o, s], "returned list"),
        (lambda o, s: ([s], [o]), "returned tuple"),
        (lambda o, s: [], "returned list"),
        (lambda o, s: {"optimiser": o}, "unknown key 'optimiser'. Did you mean 'optimizer'"),
        (lambda o, s: {"lr_scheduler": s}, "lacks the key 'optimizer'"),
        (lambda o, s: {"optimizer": o, "lr_scheduler": {"sched": s}}, "unknown key 'sched'"),
        (lambda o, s: {"optimizer": o, "lr_scheduler": {"interval": "step"}}, "lacks the key 'scheduler'"),
        (
            lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "intervall": "step"}},
            "unknown key 'intervall'. Did you mean 'interval'",
        ),
        (
            lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "batch"}},
            "interval is 'batch'; expected 'epoch' or 'step'",
        ),
        (lambda o, s: {"optimizer": o, "lr_scheduler": 0.1}, "0.1 is no scheduler: it has no method `step`"),
        (
            lambda o, s: {"optimizer": o, "lr_scheduler": ReduceLROnPlateau(o)},
            "ReduceLROnPlateau without the name of the value to watch",
        ),
    ],
)  # fmt: skip
def test_another_form_is_answered_with_those_that_are_known(quiet_trainer, make, message):
    with pytest.raises(MisconfigurationError, match=message):
        quiet_trainer().fit(configured(make), ones())


@pytest.mark.parametrize("place", ["beside the optimizer", "beside the scheduler"])
def test_a_plateau_watches_the_value_that_it_was_given(quiet_trainer, place):
    def make(optimizer, _):
        scheduler = ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
        if place == "beside the optimizer":
            return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "loss"}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}

    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(configured(make), ones())
    # The loss never falls: the first epoch is the best, the second and third are too many.
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)


def test_a_watched_value_that_was_not_logged_is_named_with_those_that_were(quiet_trainer):
    def make(optimizer, _, strict=True):
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "los", "strict": strict},
        }

    with pytest.raises(UnknownNameError, match=r"watches 'los'.*Did you mean 'loss'\? Logged: loss"):
        quiet_trainer().fit(configured(make), ones())
    with pytest.warns(UserWarning, match="watches 'los'"):
        quiet_trainer().fit(configured(lambda o, s: make(o, s, strict=False)), ones())


# ---- hyper-parameters


class Net(LightningModule):
    def __init__(self, width: int = 4, lr: float = 0.1, *, names: tuple = ("a",)):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(1, width)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


def test_all_arguments_are_kept_by_default():
    net = Net(8, names=("b", "c"))
    assert dict(net.hparams) == {"width": 8, "lr": 0.1, "names": ("b", "c")}
    assert net.hparams.width == net.hparams["width"] == 8


def test_named_arguments_alone_or_all_but_some():
    class Named(LightningModule):
        def __init__(self, a=1, b=2, c=3):
            super().__init__()
            self.save_hyperparameters("a", "c")

    class Ignoring(LightningModule):
        def __init__(self, a=1, b=2, c=3):
            super().__init__()
            self.save_hyperparameters(ignore=["a", "c"])

    class IgnoringOne(LightningModule):
        def __init__(self, a=1, b=2):
            super().__init__()
            self.save_hyperparameters(ignore="a")

    assert dict(Named().hparams) == {"a": 1, "c": 3}
    assert dict(Ignoring().hparams) == dict(IgnoringOne().hparams) == {"b": 2}


def test_a_name_that_is_no_argument_is_answered():
    class Module(LightningModule):
        def __init__(self, width=1):
            super().__init__()
            self.save_hyperparameters("widht")

    with pytest.raises(UnknownNameError, match=r"'widht'.*Did you mean 'width'\? Arguments: width"):
        Module()


def test_a_subclass_s_arguments_and_free_keywords_are_kept_too():
    class Wider(Net):
        def __init__(self, depth: int, **kwargs):
            super().__init__(**kwargs)

    assert dict(Wider(3, width=5).hparams) == {"width": 5, "lr": 0.1, "names": ("a",), "depth": 3}


@pytest.mark.parametrize("whole", [False, True])
def test_a_mapping_s_values_are_kept_and_can_be_given_back_whole(quiet_trainer, tmp_path, whole):
    class Configured(Slope):
        def __init__(self, config):
            super().__init__()
            self.save_hyperparameters(*([config] if whole else []))
            self.config = config

    module = Configured({"lr": 0.5})
    assert dict(module.hparams) == ({"lr": 0.5} if whole else {"config": {"lr": 0.5}})
    trainer = quiet_trainer()
    trainer.fit(module, ones())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert Configured.load_from_checkpoint(tmp_path / "x.ckpt").config["lr"] == 0.5


def test_an_unknown_hyper_parameter_is_an_attribute_error_with_a_hint():
    with pytest.raises(AttributeError, match=r"no hyper-parameter 'widht'. Did you mean 'width'"):
        _ = Net().hparams.widht


def test_hyper_parameters_can_be_changed_and_the_copy_does_not_follow():
    net = Net()
    before = net.hparams_initial
    net.hparams.lr = 0.7
    assert (net.hparams["lr"], before["lr"], net.hparams_initial["lr"]) == (0.7, 0.1, 0.1)


@pytest.mark.parametrize("logged", [True, False])
def test_hyper_parameters_go_to_the_loggers_unless_it_is_forbidden(quiet_trainer, tmp_path, logged):
    class Module(Slope):
        def __init__(self, width=3):
            super().__init__()
            self.save_hyperparameters(logger=logged)

    class Kept(CSVLogger):
        seen = None

        def log_hyperparams(self, params=None, *args, **kwargs):
            self.seen = dict(params or {})

    logger = Kept(tmp_path)
    quiet_trainer(logger=logger).fit(Module(), ones())
    assert logger.seen == ({"width": 3} if logged else {})


# ---- load_from_checkpoint


@pytest.fixture
def checkpoint(quiet_trainer, tmp_path):
    trainer, net = quiet_trainer(), Net(3, 0.25)
    trainer.fit(net, ones())
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    return tmp_path / "net.ckpt", net


def test_a_module_is_built_as_it_was_and_gets_its_weights(checkpoint):
    path, net = checkpoint
    for found in (Net.load_from_checkpoint(path), Net.load_from_checkpoint(str(path), map_location="cpu")):
        assert dict(found.hparams) == {"width": 3, "lr": 0.25, "names": ("a",)}
        assert torch.equal(found.layer.weight, net.layer.weight)


def test_the_caller_s_arguments_win(checkpoint):
    assert Net.load_from_checkpoint(checkpoint[0], lr=0.5).hparams == {"width": 3, "lr": 0.5, "names": ("a",)}


def test_an_argument_that_init_does_not_take_is_answered(checkpoint):
    with pytest.raises(UnknownArgumentError, match=r"takes no argument 'widht'. Did you mean 'width'"):
        Net.load_from_checkpoint(checkpoint[0], widht=4)


def test_another_head_is_an_error_or_left_out_and_listed(checkpoint, capsys):
    with pytest.raises(
        CheckpointError, match=r'layer.weight \(there \(3, 1\), here \(7, 1\)\).*on_mismatch="skip"'
    ):
        Net.load_from_checkpoint(checkpoint[0], width=7)
    found = Net.load_from_checkpoint(checkpoint[0], width=7, on_mismatch="skip")
    assert found.layer.weight.shape == (7, 1)
    assert "without: layer.weight" in capsys.readouterr().out


def test_missing_weights_are_an_error_unless_it_is_not_strict(checkpoint):
    class Bigger(Net):
        def __init__(self, width=4, lr=0.1, *, names=("a",)):
            super().__init__(width, lr, names=names)
            self.more = nn.Linear(1, 1)

    class Lenient(Bigger):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.strict_loading = False

    with pytest.raises(CheckpointError, match=r"Missing there: more.weight, more.bias. Pass strict=False"):
        Bigger.load_from_checkpoint(checkpoint[0])
    assert Bigger.load_from_checkpoint(checkpoint[0], strict=False).layer.weight.shape == (3, 1)
    assert Lenient.load_from_checkpoint(checkpoint[0]).layer.weight.shape == (3, 1)


def test_hyper_parameters_may_come_from_a_file(checkpoint, tmp_path):
    file = tmp_path / "hparams.yaml"
    file.write_text("width: 3\nlr: 0.75\n")
    assert Net.load_from_checkpoint(checkpoint[0], hparams_file=file).hparams.lr == 0.75


# ---- freezing


def test_freeze_takes_gradients_and_training_mode_and_unfreeze_gives_them_back():
    net = Net()
    net.freeze()
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not any(module.training for module in net.modules())
    net.unfreeze()
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(module.training for module in net.modules())


def test_what_was_frozen_in_init_is_not_trained(quiet_trainer):
    class Module(Net):
        def __init__(self):
            super().__init__()
            self.extractor = Net()
            self.extractor.freeze()

        def training_step(self, batch, batch_idx):
            assert not self.extractor.training
            return self.layer(batch).sum() + self.extractor.layer(batch).sum()

    module = Module()
    before = module.extractor.layer.weight.clone()
    quiet_trainer().fit(module, ones())
    assert torch.equal(module.extractor.layer.weight, before)


# ---- configure_model, configure_callbacks


def test_what_configure_model_builds_is_trained_and_loaded(quiet_trainer, tmp_path):
    class Late(Net):
        def __init__(self, width=2, lr=0.1):
            LightningModule.__init__(self)
            self.save_hyperparameters()
            self.layer = None

        def configure_model(self):
            if self.layer is None:
                self.layer = nn.Linear(1, self.hparams.width)

    module, trainer = Late(width=3), quiet_trainer()
    trainer.fit(module, ones())
    trainer.save_checkpoint(tmp_path / "late.ckpt")
    found = Late.load_from_checkpoint(tmp_path / "late.ckpt")
    assert torch.equal(found.layer.weight, module.layer.weight)


def test_a_configured_callback_joins_and_takes_the_place_of_one_of_its_type(quiet_trainer):
    class Seen(Callback):
        epochs = 0

        def on_train_epoch_end(self, trainer, pl_module):
            self.epochs += 1

    configured, given, other = EarlyStopping("loss"), EarlyStopping("other"), Seen()

    class Module(Slope):
        def configure_callbacks(self):
            return [configured]

    trainer = quiet_trainer(callbacks=[given, other])
    trainer.fit(Module(), ones())
    assert trainer.callbacks == [other, configured]
    assert trainer.early_stopping_callback is configured
    assert other.epochs == 1


def test_one_configured_callback_needs_no_list(quiet_trainer):
    configured = Callback()

    class Module(Slope):
        def configure_callbacks(self):
            return configured

    trainer = quiet_trainer()
    trainer.fit(Module(), ones())
    assert trainer.callbacks == [configured]


# ---- what a module says of itself and its run


def test_device_and_dtype_are_those_of_the_first_parameter():
    assert Net().device == torch.device("cpu")
    assert Net().to("meta").device == torch.device("meta")
    assert Net().double().dtype is torch.float64
    assert LightningModule().device == torch.device("cpu")


def test_without_a_trainer_the_counts_are_zero_and_the_trainer_is_an_error():
    net = Net()
    assert (net.current_epoch, net.global_step, net.global_rank, net.logger, net.loggers) == (
        0,
        0,
        0,
        None,
        [],
    )
    with pytest.raises(RuntimeError, match="Net is not attached to a `Trainer`"):
        _ = net.trainer


def test_the_trainer_is_known_to_the_module_and_to_modules_inside_it(quiet_trainer):
    class Outer(Slope):
        def __init__(self):
            super().__init__()
            self.inner = Net()

    module, trainer = Outer(), quiet_trainer(max_epochs=2)
    trainer.fit(module, ones())
    assert module.trainer is module.inner.trainer is trainer
    assert (module.current_epoch, module.global_step) == (2, 4)


def test_the_trainer_is_no_part_of_the_module(quiet_trainer):
    module = Net()
    quiet_trainer().fit(module, ones())
    assert sorted(module.state_dict()) == ["layer.bias", "layer.weight"]
    with pytest.raises(RuntimeError, match="not attached"):
        _ = copy.deepcopy(module).trainer


def test_example_input_and_forward_are_torch_s():
    class Module(Net):
        def forward(self, x):
            return self.layer(x)

    assert Module(2)(torch.ones(3, 1)).shape == (3, 2)
    assert Module(2).predict_step(torch.ones(3, 1), 0).shape == (3, 2)
