"""The protocol that a logger of one's own fulfils."""

import pytest

import headstart.loggers
from headstart.loggers import Logger


class Memory(Logger):
    name = "memory"
    version = 1

    def __init__(self):
        self.kept = []

    def log_metrics(self, metrics, step=None):
        self.kept.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        self.kept.append(params)


def test_four_members_make_a_logger():
    logger = Memory()
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_graph(None)
    logger.resume_from(3)
    logger.save()
    logger.finalize("success")
    assert logger.kept == [(0, {"loss": 1.0}), {"lr": 0.1}]
    assert (logger.save_dir, logger.root_dir, logger.log_dir, logger.experiment) == (None, None, None, None)


def test_a_logger_without_log_metrics_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Logger()


def test_public_names_are_loaded_when_they_are_used():
    assert {"CSVLogger", "Logger", "TensorBoardLogger"} <= set(dir(headstart.loggers))
    with pytest.raises(AttributeError, match="has no attribute 'CometLogger'"):
        _ = headstart.loggers.CometLogger
