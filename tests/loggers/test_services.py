"""`MLFlowLogger` and `WandbLogger`, with the real libraries: a local database, and files that are sent later."""

import json
import math
import struct
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from headstart import LightningModule, Trainer, seed_everything
from headstart.callbacks import ModelCheckpoint
from headstart.cli import curves
from headstart.cli.options import parse
from headstart.cli.run_folder import RunFolder
from headstart.errors import MisconfigurationError, MissingDependencyError
from headstart.loggers import MLFlowLogger, WandbLogger

pytestmark = pytest.mark.slow


class Net(LightningModule):
    def __init__(self, lr=0.1, sizes=(2, 1), optimizer=None):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("train_loss", loss, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch[0]).pow(2).mean())

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.layer(batch[0]).pow(2).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


def loader():
    return DataLoader(TensorDataset(torch.arange(16.0).reshape(8, 2) / 16), batch_size=2)


def fit(directory, logger, *, ckpt_path=None, max_epochs=2, module=None):
    seed_everything(0)
    saver = ModelCheckpoint(directory / "checkpoints", monitor="val_loss", save_top_k=-1, filename="{epoch}")
    trainer = Trainer(
        default_root_dir=directory, max_epochs=max_epochs, logger=logger, log_every_n_steps=1, accelerator="cpu",
        callbacks=[saver], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module or Net(optimizer={"momentum": 0.5}), loader(), loader(), ckpt_path=ckpt_path)
    return trainer


# ---- MLflow


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A fit of two epochs, one that goes on from the first one's end in the same run, and a test: folder, logger, trainer."""
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    folder = tmp_path_factory.mktemp("mlflow")
    first = MLFlowLogger(
        "cells", run_name="first", tags={"who": "me"}, save_dir=folder / "ml", log_model=True
    )
    fit(folder, first)
    states = [first.experiment.get_run(first.run_id).info.status]  # asking for it lets it go on
    logger = MLFlowLogger("cells", save_dir=folder / "ml", run_id=first.version)
    trainer = fit(folder, logger, ckpt_path=folder / "checkpoints" / "epoch=0.ckpt", max_epochs=3)
    trainer.test(trainer.lightning_module, loader(), verbose=False)
    client = logger.experiment
    logger.finalize("success")
    return folder, logger, client, states


def test_mlflow_has_every_value_with_its_step_once_over_a_resume(tracked):
    _, logger, client, _ = tracked
    for name, steps in {"train_loss": range(12), "val_loss": (3, 7, 11)}.items():
        history = client.get_metric_history(logger.run_id, name)
        assert [each.step for each in history] == list(steps), name
    assert len(client.get_metric_history(logger.run_id, "test_loss")) == 1


def test_mlflow_has_hyper_parameters_tags_and_how_it_ended(tracked):
    folder, logger, client, states = tracked
    run = client.get_run(logger.run_id)
    assert run.info.run_name == "first"
    assert run.info.status == "FINISHED"
    assert states == ["RUNNING"]
    assert run.data.params == {"lr": "0.1", "sizes": "(2, 1)", "optimizer/momentum": "0.5"}
    assert run.data.tags["who"] == "me"
    best = min(each.value for each in client.get_metric_history(logger.run_id, "val_loss"))
    assert json.loads(run.data.tags["best/val_loss"]) == pytest.approx(best)
    assert run.data.tags["best_model_path"] == str(folder / "checkpoints" / "epoch=2.ckpt")
    assert {each.path for each in client.list_artifacts(logger.run_id, "checkpoints")} == {
        "checkpoints/epoch=0.ckpt",
        "checkpoints/epoch=1.ckpt",
    }
    assert client.get_experiment(logger.name).name == "cells"
    assert logger.save_dir == str(folder / "ml")


def test_mlflow_says_that_a_parameter_stays_what_it_was(tracked):
    _, logger, client, _ = tracked
    with pytest.warns(UserWarning, match="those of this run stay as they were: lr is 0.1, and was to be 0.2"):
        logger.log_hyperparams({"lr": 0.2, "new": 1})
    assert client.get_run(logger.run_id).data.params["new"] == "1"
    logger.log_metrics({"lr-SGD/backbone, no decay": 1.0})  # one step after the last; MLflow refuses commas
    assert client.get_metric_history(logger.run_id, "lr-SGD/backbone_ no decay")[0].step > 0
    logger.finalize("failed")
    assert client.get_run(logger.run_id).info.status == "FAILED"


def test_mlflow_takes_a_store_of_files_a_prefix_and_an_artifact_location(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri, files = (tmp_path / "store").as_uri(), (tmp_path / "files").as_uri()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MLflow's, about this kind of store
        logger = MLFlowLogger(
            tracking_uri=uri, prefix="fold1", artifact_location=files, log_model="all", synchronous=True
        )
        trainer = fit(tmp_path, logger)
        client = logger.experiment
    assert len(client.get_metric_history(logger.run_id, "fold1-val_loss")) == 2
    assert client.get_run(logger.run_id).info.artifact_uri.startswith(files)
    assert {each.path for each in client.list_artifacts(logger.run_id, "checkpoints")} == {
        "checkpoints/epoch=0.ckpt",
        "checkpoints/epoch=1.ckpt",
    }
    assert Path(trainer.checkpoint_callback.best_model_path).name == "epoch=1.ckpt"


# ---- Weights & Biases


def records_of(folder):
    """What wandb has written, in the order of the runs: it is a log of records in blocks, in the format of LevelDB."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in sorted(Path(folder).glob("wandb/offline-run-*/*.wandb")):
        data, place, parts = file.read_bytes(), 7, b""
        while place + 7 <= len(data):
            left = 32768 - place % 32768
            if left < 7:
                place += left
                continue
            length, kind = struct.unpack_from("<HB", data, place + 4)
            parts += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in {1, 4}:  # whole, or the last part of one
                record = wandb_internal_pb2.Record()
                record.ParseFromString(parts)
                found.append(record)
                parts = b""
    return found


def history_of(records):
    rows = [each.history for each in records if each.WhichOneof("record_type") == "history"]
    return [
        {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in row.item}
        for row in rows
    ]


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Two fits in one run, the second from the first one's checkpoint, offline: what was written, and the ids."""
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("wandb")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("WANDB_SILENT", "true")
    first = WandbLogger(
        "first", save_dir=folder, offline=True, project="cells", log_model=True, tags=["quick"]
    )
    fit(folder, first)
    run = first.experiment
    summary = {name: value for name, value in dict(run.summary).items() if not name.startswith("_")}
    run.finish()
    time.sleep(1.1)  # wandb names a folder by id and second
    second = WandbLogger("first", dir=folder, offline=True, project="cells", id=first.version)
    fit(folder, second, ckpt_path=folder / "checkpoints" / "epoch=0.ckpt", max_epochs=3)
    second.experiment.finish()
    monkeypatch.undo()
    return records_of(folder), (first.version, second.version), summary, folder


def test_wandb_has_every_value_over_the_global_step(offline):
    records, _, summary, _ = offline
    rows = history_of(records)
    steps = [row["trainer/global_step"] for row in rows if "train_loss" in row]
    assert steps == [*range(8), *range(4, 12)]  # what was logged after the checkpoint stands there twice
    assert [row["trainer/global_step"] for row in rows if "val_loss" in row] == [3, 7, 7, 11]
    axes = [each.metric for each in records if each.WhichOneof("record_type") == "metric"]
    assert any(each.glob_name == "*" and each.step_metric == "trainer/global_step" for each in axes)
    assert math.isfinite(summary["best/val_loss"])
    assert summary["best_model_path"].endswith("epoch=1.ckpt")


def test_wandb_goes_on_in_the_same_run_with_config_and_files(offline):
    records, ids, _, folder = offline
    runs = [each.run for each in records if each.WhichOneof("record_type") == "run"]
    assert {each.run_id for each in runs} == set(ids) == {ids[0]}
    assert {(each.project, each.display_name) for each in runs} == {("cells", "first")}
    assert "quick" in runs[0].tags
    config = {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for each in records
        if each.WhichOneof("record_type") == "config"
        for item in each.config.update
    }
    assert {name: config[name] for name in ("lr", "sizes", "optimizer")} == {
        "lr": 0.1, "sizes": [2, 1], "optimizer": {"momentum": 0.5},
    }  # fmt: skip
    requests = [
        each.request.log_artifact.artifact for each in records if each.WhichOneof("record_type") == "request"
    ]
    artifacts = [each.artifact for each in records if each.WhichOneof("record_type") == "artifact"]
    named = [each for each in [*artifacts, *requests] if each.name == f"model-{ids[0]}"]
    assert named
    assert {entry.path for each in named for entry in each.manifest.contents} == {
        "epoch=0.ckpt",
        "epoch=1.ckpt",
    }


def test_wandb_takes_a_run_that_was_begun_elsewhere(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="disabled", dir=tmp_path)
    logger = WandbLogger(experiment=run, prefix="fold1", save_dir=tmp_path)
    assert logger.experiment is run
    assert logger.version == run.id
    logger.log_metrics({"loss": 0.5})
    logger.log_metrics({"loss": 0.25})
    net = torch.nn.Linear(1, 1)
    logger.watch(net, log="all", log_freq=7)
    logger.unwatch(net)
    run.finish()


def test_two_names_for_one_thing_must_agree():
    with pytest.raises(MisconfigurationError, match="id is 'a' and version is 'b', which mean the same"):
        WandbLogger(id="a", version="b")
    assert WandbLogger(version="b").version == "b"
    assert WandbLogger().version != WandbLogger().version
    for kind in (WandbLogger, MLFlowLogger):
        with pytest.raises(MisconfigurationError, match="log_model is 'best'; expected True, False or 'all'"):
            kind(log_model="best")


@pytest.mark.parametrize(("kind", "library"), [(MLFlowLogger, "mlflow"), (WandbLogger, "wandb")])
def test_a_library_that_is_not_installed_is_named(monkeypatch, tmp_path, kind, library):
    import sys

    for name in [each for each in sys.modules if each.partition(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'headstart\[{library}\]'"):
        _ = kind(save_dir=tmp_path).experiment


# ---- of `headstart fit`


def test_fit_makes_the_loggers_that_are_named_and_goes_on_in_their_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    folder = RunFolder(tmp_path / "run")
    first = curves.loggers_of(folder, "csv,wandb")
    assert [type(each).__name__ for each in first] == ["CSVLogger", "WandbLogger"]
    assert "offline, as neither WANDB_API_KEY nor WANDB_MODE is set" in capsys.readouterr().out
    again = curves.loggers_of(folder, "csv,wandb")
    assert again[1].version == first[1].version
    assert (
        curves.places_of(folder, "csv,wandb")
        == f"{folder.metrics_file}\n{tmp_path / 'run' / 'logs' / 'wandb'}"
    )
    assert [type(each).__name__ for each in curves.loggers_of(folder, None)] == [
        "CSVLogger",
        "TensorBoardLogger",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tensorbord", "Did you mean 'tensorboard'"),
        (",", "expected one or more of csv, tensorboard, mlflow, wandb"),
    ],
)
def test_a_logger_that_is_none_is_an_error(given, message):
    with pytest.raises(MisconfigurationError, match=message):
        parse(["photos", "--out", "run", "--logger", given])


def test_a_logger_that_was_named_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="'mlflow' is needed for --logger mlflow"):
        curves.loggers_of(RunFolder(tmp_path), "mlflow")
