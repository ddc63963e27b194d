"""The public names. A change here is a change for users: it belongs in CHANGELOG.md."""

import importlib
import inspect

import pytest

PUBLIC = {
    "headstart": [
        "Callback",
        "LightningDataModule",
        "LightningModule",
        "Phase",
        "Plan",
        "Trainer",
        "seed_everything",
    ],
    "headstart.callbacks": [
        "BackboneFinetuning",
        "BaseFinetuning",
        "Callback",
        "EarlyStopping",
        "LambdaCallback",
        "LearningRateMonitor",
        "LiveView",
        "ModelCheckpoint",
        "ModelSummary",
        "ProgressBar",
        "RichModelSummary",
        "RichProgressBar",
        "TQDMProgressBar",
        "Timer",
    ],
    "headstart.loggers": ["CSVLogger", "Logger", "MLFlowLogger", "TensorBoardLogger", "WandbLogger"],
}
SUBMODULES = ["backbones", "callbacks", "data", "freezing", "loggers", "tasks"]


@pytest.mark.parametrize("package", PUBLIC)
def test_a_package_offers_these_names_and_no_others(package):
    found = importlib.import_module(package)
    assert sorted(found.__all__) == PUBLIC[package]
    hidden = [name for name in dir(found) if name not in [*PUBLIC[package], *SUBMODULES, "__version__"]]
    assert hidden == []


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_can_be_imported_and_is_documented(package):
    found = importlib.import_module(package)
    for name in PUBLIC[package]:
        assert inspect.getdoc(getattr(found, name)), name


@pytest.mark.parametrize("package", PUBLIC)
def test_another_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="Trainr"):
        importlib.import_module(package).Trainr


@pytest.mark.parametrize("name", SUBMODULES)
def test_a_submodule_is_found_without_importing_it(name):
    import headstart

    assert inspect.ismodule(getattr(headstart, name))


def test_the_finetuning_callbacks_are_found_where_programs_look_for_them():
    from headstart import callbacks
    from headstart.callbacks import finetuning

    assert finetuning.BaseFinetuning is callbacks.BaseFinetuning
    assert finetuning.BackboneFinetuning is callbacks.BackboneFinetuning


def arguments_of(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_trainer_takes_these_arguments_and_methods():
    from headstart import Trainer

    assert arguments_of(Trainer) == [
        "accelerator", "strategy", "devices", "num_nodes", "precision", "logger", "callbacks", "fast_dev_run",
        "max_epochs", "min_epochs", "max_steps", "min_steps", "max_time",
        "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches",
        "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps", "log_every_n_steps",
        "enable_checkpointing", "enable_progress_bar", "enable_model_summary",
        "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "deterministic", "benchmark",
        "inference_mode", "use_distributed_sampler", "detect_anomaly", "on_nan",
        "on_out_of_memory", "reload_dataloaders_every_n_epochs",
        "reuse_frozen", "plan", "default_root_dir", "unknown",
    ]  # fmt: skip
    assert arguments_of(Trainer.fit)[:5] == [
        "model", "train_dataloaders", "val_dataloaders", "datamodule", "ckpt_path",
    ]  # fmt: skip
    for name in ("validate", "test"):
        assert arguments_of(getattr(Trainer, name))[:5] == [
            "model", "dataloaders", "ckpt_path", "verbose", "datamodule",
        ]  # fmt: skip
    assert arguments_of(Trainer.predict)[:5] == [
        "model", "dataloaders", "datamodule", "return_predictions", "ckpt_path",
    ]  # fmt: skip


def test_self_log_takes_these_arguments():
    from headstart import LightningModule

    assert arguments_of(LightningModule.log) == [
        "name", "value", "prog_bar", "logger", "on_step", "on_epoch", "reduce_fx", "enable_graph", "sync_dist",
        "sync_dist_group", "add_dataloader_idx", "batch_size", "metric_attribute", "rank_zero_only",
    ]  # fmt: skip
