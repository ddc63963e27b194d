"""What a run leaves in `metrics.csv` and `hparams.yaml`."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

from headstart.loggers import CSVLogger


def rows(logger):
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_versions_count_up_from_the_directories_that_exist(tmp_path):
    for expected in range(3):
        logger = CSVLogger(tmp_path)
        assert logger.version == expected
        assert Path(logger.log_dir) == tmp_path / "lightning_logs" / f"version_{expected}"
        logger.log_metrics({"loss": 1.0}, step=0)
        logger.save()


def test_nothing_is_written_before_something_is_logged(tmp_path):
    logger = CSVLogger(tmp_path)
    _ = logger.log_dir
    logger.save()
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("runs", 7, "runs/version_7"),
        ("", "mine", "mine"),
        (None, 0, "version_0"),
        ("runs", "best", "runs/best"),
    ],
)
def test_the_directory_is_made_of_name_and_version(tmp_path, name, version, expected):
    assert Path(CSVLogger(tmp_path, name=name, version=version).log_dir) == tmp_path / expected


def test_a_column_that_appears_late_keeps_the_earlier_rows(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"lr-SGD": 0.1}, step=0)
    logger.save()
    logger.log_metrics({"lr-SGD/pg1": 0.1, "lr-SGD/pg2": 0.01}, step=1)
    logger.save()
    assert rows(logger) == [
        {"step": "0", "lr-SGD": "0.1", "lr-SGD/pg1": "", "lr-SGD/pg2": ""},
        {"step": "1", "lr-SGD": "", "lr-SGD/pg1": "0.1", "lr-SGD/pg2": "0.01"},
    ]


def test_a_flush_without_a_new_column_only_appends(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.save()
    file = Path(logger.log_dir) / "metrics.csv"
    inode = file.stat().st_ino  # a file that is written anew is another one
    logger.log_metrics({"loss": 0.5}, step=1)
    logger.save()
    assert file.stat().st_ino == inode
    assert [row["loss"] for row in rows(logger)] == ["1.0", "0.5"]


def test_rows_are_flushed_after_the_given_number_of_steps(tmp_path):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=10)
    for step in range(0, 10, 5):
        logger.log_metrics({"loss": 1.0}, step=step)
    assert not (Path(logger.log_dir) / "metrics.csv").exists()
    logger.log_metrics({"loss": 1.0}, step=10)
    assert len(rows(logger)) == 3


def test_a_run_in_the_same_version_goes_on(tmp_path):
    first = CSVLogger(tmp_path, version=0)
    first.log_metrics({"loss": 1.0}, step=0)
    first.save()
    second = CSVLogger(tmp_path, version=0)
    second.log_metrics({"loss": 0.5, "acc": 1.0}, step=1)
    second.save()
    assert [(row["step"], row["loss"], row["acc"]) for row in rows(second)] == [
        ("0", "1.0", ""),
        ("1", "0.5", "1.0"),
    ]


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    first = CSVLogger(tmp_path, version=0)
    for step in range(5):
        first.log_metrics({"loss": float(step)}, step=step)
    first.save()
    second = CSVLogger(tmp_path, version=0)
    second.resume_from(2)
    assert [row["step"] for row in rows(second)] == ["0", "1", "2"]
    second.log_metrics({"loss": 2.0}, step=2)  # the same once more
    second.log_metrics({"val_loss": 2.5}, step=2)  # not there yet
    second.log_metrics({"loss": 30.0}, step=3)
    second.save()
    assert [(row["step"], row["loss"], row["val_loss"]) for row in rows(second)] == [
        ("0", "0.0", ""), ("1", "1.0", ""), ("2", "2.0", ""), ("2", "", "2.5"), ("3", "30.0", "")
    ]  # fmt: skip


def test_resuming_without_an_earlier_file_is_no_error(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.resume_from(3)
    logger.log_metrics({"loss": 3.0}, step=3)
    logger.save()
    assert [row["step"] for row in rows(logger)] == ["3"]


def test_a_line_torn_by_a_kill_is_dropped(tmp_path):
    first = CSVLogger(tmp_path, version=0)
    first.log_metrics({"loss": 1.0}, step=0)
    first.save()
    with first.experiment.path.open("a") as file:
        file.write("1,0.")
    second = CSVLogger(tmp_path, version=0)
    second.log_metrics({"loss": 0.5}, step=1)
    second.save()
    assert [(row["step"], row["loss"]) for row in rows(second)] == [("0", "1.0"), ("1", "0.5")]


def test_values_without_a_step_go_on_counting(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=4)
    logger.log_metrics({"loss": 1.0})
    logger.save()
    assert [row["step"] for row in rows(logger)] == ["4", "5"]


def test_tensors_are_written_as_numbers_and_a_prefix_stands_before_names(tmp_path):
    logger = CSVLogger(tmp_path, prefix="cv1")
    logger.log_metrics({"loss": torch.tensor(0.5)}, step=0)
    logger.save()
    assert rows(logger) == [{"step": "0", "cv1-loss": "0.5"}]


def test_a_checkpoint_flushes_the_rows_before_it(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.after_save_checkpoint(None)
    assert len(rows(logger)) == 1


def test_hyper_parameters_read_back_from_yaml(tmp_path):
    params = {
        "lr": 1e-5, "epochs": 3, "name": "no", "none": None, "flag": True, "layers": [1, 2.5, "x"], "large": 1e22,
        "head": {"bias": False, "a b": "ä: #"}, "inf": float("-inf"), "text": 'two\nlines "quoted"', "yes": 1,
    }  # fmt: skip
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams(params)
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == params


def test_later_hyper_parameters_join_the_earlier_ones(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_hyperparams({"data": "flowers"})
    logger.log_hyperparams(None)
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == {
        "lr": 0.1,
        "data": "flowers",
    }
