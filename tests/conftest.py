"""What the tests share: a quiet trainer, and small data that is the same everywhere."""

import pytest
import torch
from torch.utils.data import TensorDataset

from headstart import Trainer

# The models here are so small that a second thread costs more than it computes.
torch.set_num_threads(1)


@pytest.fixture
def quiet_trainer(tmp_path):
    """Make a `Trainer` on the CPU without logger, checkpoints, progress bar and summary, unless asked for."""

    def make(**settings):
        off = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        return Trainer(
            **{"accelerator": "cpu", "default_root_dir": tmp_path, "max_epochs": 1, **off, **settings}
        )

    return make


@pytest.fixture
def two_classes():
    """70 samples of 8 numbers in two classes, drawn from a generator of their own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 8, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())
