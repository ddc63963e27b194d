"""`LightningDataModule`, and the data hooks that it shares with the module."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from headstart import LightningDataModule, LightningModule
from headstart.errors import MisconfigurationError, UnknownArgumentError


def loader(value, count=2):
    return DataLoader(torch.full((count, 1), float(value)))


class Sees(LightningModule):
    """Remembers the values of the batches that it gets."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = {"train": set(), "val": set(), "test": set(), "predict": set()}

    def training_step(self, batch, batch_idx):
        self.seen["train"].add(float(batch))
        return (self.weight * batch).mean()

    def validation_step(self, batch, batch_idx):
        self.seen["val"].add(float(batch))

    def test_step(self, batch, batch_idx):
        self.seen["test"].add(float(batch))

    def predict_step(self, batch, batch_idx):
        self.seen["predict"].add(float(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SeesItsOwn(Sees):
    def train_dataloader(self):
        return loader(1)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Data(LightningDataModule):
    def __init__(self, value: int = 2, size: int = 2):
        super().__init__()
        self.save_hyperparameters()
        self.calls = []

    def prepare_data(self):
        self.calls.append("prepare_data")

    def setup(self, stage):
        self.calls.append(f"setup {stage}")

    def teardown(self, stage):
        self.calls.append(f"teardown {stage}")

    def train_dataloader(self):
        return loader(self.hparams.value, self.hparams.size)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


RUNS = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}


def run(trainer, fn, module, *args, **kwargs):
    quiet = {"verbose": False} if fn in {"validate", "test"} else {}
    return getattr(trainer, fn)(module, *args, **kwargs, **quiet)


@pytest.mark.parametrize(("fn", "kind"), RUNS.items())
def test_given_data_come_first_then_the_data_module_s_then_the_module_s(quiet_trainer, fn, kind):
    for given, expected in (
        (lambda: ([loader(3)], {}), 3.0),
        (lambda: ([], {"datamodule": Data()}), 2.0),
        (lambda: ([Data()], {}), 2.0),
        (lambda: ([], {}), 1.0),
    ):
        module = SeesItsOwn()
        args, kwargs = given()
        run(quiet_trainer(), fn, module, *args, **kwargs)
        assert module.seen[kind] == {expected}


@pytest.mark.parametrize("fn", RUNS)
def test_a_data_module_is_prepared_set_up_and_torn_down_for_its_stage(quiet_trainer, fn):
    data, trainer = Data(), quiet_trainer()
    run(trainer, fn, Sees(), datamodule=data)
    assert data.calls == ["prepare_data", f"setup {fn}", f"teardown {fn}"]
    assert data.trainer is trainer
    assert trainer.datamodule is data


@pytest.mark.parametrize(("fn", "kind"), RUNS.items())
def test_no_data_is_answered(quiet_trainer, fn, kind):
    with pytest.raises(MisconfigurationError, match=f"no .*data: give .*dataloader.*'{kind}_dataloader'"):
        run(quiet_trainer(), fn, Sees())


def test_without_validation_data_fit_does_not_validate(quiet_trainer):
    module = Sees()
    quiet_trainer().fit(module, loader(3))
    assert module.seen == {"train": {3.0}, "val": set(), "test": set(), "predict": set()}


def test_a_training_loader_without_batches_is_answered(quiet_trainer):
    with pytest.raises(MisconfigurationError, match=r"training loader has no batches to take \(length 0"):
        quiet_trainer().fit(Sees(), DataLoader([]))
    with pytest.raises(MisconfigurationError, match=r"no batches to take \(length 2, limit_train_batches 0"):
        quiet_trainer(limit_train_batches=0).fit(Sees(), loader(1))


def test_several_training_loaders_are_answered(quiet_trainer):
    with pytest.raises(
        MisconfigurationError, match=r"train_dataloader gave 2 loaders; expected one.*ConcatDataset"
    ):
        quiet_trainer().fit(Sees(), [loader(1), loader(2)])


@pytest.mark.parametrize("limit", ["limit_train_batches", "limit_val_batches"])
def test_a_fraction_that_leaves_no_batch_names_the_setting(quiet_trainer, limit):
    with pytest.raises(MisconfigurationError, match=f"{limit} is 0.1, of 2 batches that is less than one"):
        quiet_trainer(**{limit: 0.1}).fit(Sees(), loader(1), loader(1))


# ---- state and hyper-parameters


def test_state_and_hyper_parameters_come_back_from_a_checkpoint(quiet_trainer, tmp_path):
    class Counting(Data):
        count = 0
        loaded = False

        def setup(self, stage):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state_dict):
            self.count = state_dict["count"]

        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = 7

        def on_load_checkpoint(self, checkpoint):
            self.loaded = checkpoint["mine"] == 7

    data, trainer = Counting(value=5), quiet_trainer()
    data.count = 10
    trainer.fit(Sees(), datamodule=data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")

    again = Counting()
    quiet_trainer(max_epochs=2).fit(Sees(), datamodule=again, ckpt_path=tmp_path / "x.ckpt")
    assert (again.count, again.loaded) == (11, True)

    assert dict(Counting.load_from_checkpoint(tmp_path / "x.ckpt").hparams) == {"value": 5, "size": 2}
    assert Counting.load_from_checkpoint(tmp_path / "x.ckpt", size=9).hparams.size == 9
    with pytest.raises(UnknownArgumentError, match=r"'sise'. Did you mean 'size'"):
        Counting.load_from_checkpoint(tmp_path / "x.ckpt", sise=9)


def test_a_data_module_hears_of_an_exception(quiet_trainer):
    class Hears(Data):
        heard = None

        def train_dataloader(self):
            raise FileNotFoundError("images.zip")

        def on_exception(self, exception):
            self.heard = exception

    data = Hears()
    with pytest.raises(FileNotFoundError):
        quiet_trainer().fit(Sees(), datamodule=data)
    assert str(data.heard) == "images.zip"
    assert data.calls[-1] == "teardown fit"


# ---- batch transfer


class Transfers:
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch + 10

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        assert device == torch.device("cpu")
        return super().transfer_batch_to_device(batch * 2, device, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch + 1


@pytest.mark.parametrize(("fn", "kind"), RUNS.items())
@pytest.mark.parametrize("owner", ["module", "data module"])
def test_transfer_hooks_change_the_batches_of_every_run(quiet_trainer, fn, kind, owner):
    module_class = type("Module", (Transfers, Sees), {}) if owner == "module" else Sees
    data_class = type("Own", (Transfers, Data), {}) if owner == "data module" else Data
    module = module_class()
    run(quiet_trainer(), fn, module, datamodule=data_class())
    assert module.seen[kind] == {(2.0 + 10) * 2 + 1}


def test_each_transfer_hook_is_the_module_s_where_the_data_module_has_none(quiet_trainer):
    class Data(LightningDataModule):
        def predict_dataloader(self):
            return DataLoader(torch.ones(2, 1))

        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch + 1

    class Module(LightningModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch * 10

        def predict_step(self, batch, batch_idx):
            return batch.item()

    assert quiet_trainer().predict(Module(), datamodule=Data()) == [20.0, 20.0]


def test_a_data_module_s_transfer_hooks_go_before_the_module_s(quiet_trainer):
    class Other(Sees):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch * 0

    module = Other()
    run(quiet_trainer(), "predict", module, datamodule=type("Own", (Transfers, Data), {})())
    assert module.seen["predict"] == {25.0}


def test_transfer_hooks_get_the_loader_s_number(quiet_trainer):
    class Module(Sees):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch + 100 * dataloader_idx

        def predict_step(self, batch, batch_idx, dataloader_idx):
            super().predict_step(batch, batch_idx)

    module = Module()
    run(quiet_trainer(), "predict", module, [loader(1), loader(2)])
    assert module.seen["predict"] == {1.0, 102.0}


Pair = namedtuple("Pair", "x name")


@dataclass
class Sample:
    x: torch.Tensor
    name: str


class Movable:
    device = None

    def to(self, device):
        self.device = device
        return self


def test_batches_of_every_shape_are_moved():
    meta = torch.device("meta")
    moved = LightningModule().transfer_batch_to_device(
        {"pair": Pair(torch.ones(1), "a"), "list": [torch.ones(1), None, 3], "sample": Sample(torch.ones(1), "b"),
         "own": Movable()},
        meta,
        0,
    )  # fmt: skip
    assert type(moved["pair"]) is Pair
    assert type(moved["sample"]) is Sample
    assert [
        moved["pair"].x.device,
        moved["list"][0].device,
        moved["sample"].x.device,
        moved["own"].device,
    ] == [meta] * 4
    assert (moved["pair"].name, moved["list"][1:], moved["sample"].name) == ("a", [None, 3], "b")
