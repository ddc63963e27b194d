"""What a run leaves for TensorBoard."""

import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from headstart import LightningModule, Trainer, seed_everything
from headstart.errors import MissingDependencyError
from headstart.loggers import TensorBoardLogger


def curves(directory):
    """Each curve below a directory: the (step, value) points that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_metrics_become_curves(tmp_path):
    logger = TensorBoardLogger(tmp_path, prefix="p")
    logger.log_metrics({"loss": torch.tensor(0.5)}, step=0)
    logger.log_metrics({"loss": 0.25}, step=1)
    logger.finalize("success")
    assert Path(logger.log_dir) == tmp_path / "lightning_logs" / "version_0"
    assert curves(logger.log_dir) == {"p-loss": [(0, 0.5), (1, 0.25)]}


def test_logging_goes_on_after_finalize(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.finalize("success")
    logger.log_metrics({"test_loss": 0.5}, step=0)
    logger.finalize("success")
    assert curves(logger.log_dir).keys() == {"loss", "test_loss"}


def test_a_resumed_run_hides_what_came_after_its_checkpoint(tmp_path):
    first = TensorBoardLogger(tmp_path, version=0)
    for step in range(4):
        first.log_metrics({"loss": 1.0}, step=step)
    first.finalize("failed")
    time.sleep(
        1.1
    )  # TensorBoard reads files in the order of their names, which hold the second of their beginning
    second = TensorBoardLogger(tmp_path, version=0)
    second.log_hyperparams({"lr": 0.1})  # a run does so before it looks at the checkpoint
    second.resume_from(1)
    second.log_metrics({"loss": 0.5}, step=2)
    second.finalize("success")
    second.log_metrics({"test_loss": 0.25}, step=3)  # a second file, which must not hide the first
    second.finalize("success")
    assert curves(second.log_dir)["loss"] == [(0, 1.0), (1, 1.0), (2, 0.5)]
    assert curves(second.log_dir)["test_loss"] == [(3, 0.25)]


def test_hyper_parameters_are_in_the_yaml_file_and_in_the_table(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1, "layers": [1, 2]})
    logger.finalize("success")
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == {
        "lr": 0.1,
        "layers": [1, 2],
    }
    assert curves(logger.log_dir)["hp_metric"] == [(0, -1.0)]


def test_the_sub_directory_and_the_version_are_part_of_the_path(tmp_path):
    logger = TensorBoardLogger(tmp_path, name=None, version="mine", sub_dir="s")
    assert Path(logger.log_dir) == tmp_path / "mine" / "s"
    assert type(logger.experiment).__name__ == "SummaryWriter"
    logger.finalize("success")


# torch.utils.tensorboard traces, and tracing is deprecated in torch.
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_the_graph_is_recorded_only_when_asked_for(tmp_path):
    net = torch.nn.Linear(2, 1)
    quiet = TensorBoardLogger(tmp_path, version=0)
    quiet.log_graph(net, torch.zeros(1, 2))
    assert not Path(quiet.log_dir).exists()
    logger = TensorBoardLogger(tmp_path, version=1, log_graph=True)
    logger.log_graph(net, torch.zeros(1, 2))
    logger.finalize("success")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert events.Tags()["graph"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_a_fit_records_the_graph_and_is_the_one_without(tmp_path):
    class Net(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(
                torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5), torch.nn.Linear(3, 1)
            )
            self.example_input_array = torch.ones(4, 2)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return self(batch).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def run(logger):
        seed_everything(1)
        net = Net()
        Trainer(
            max_epochs=1, logger=logger, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(net, torch.utils.data.DataLoader(torch.randn(8, 2), batch_size=4))  # fmt: skip
        return net.state_dict()

    logger = TensorBoardLogger(tmp_path, log_graph=True)
    weights, plain = run(logger), run(False)
    assert all(torch.equal(value, plain[name]) for name, value in weights.items())
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert events.Tags()["graph"]
    assert "hp_metric" not in events.Tags()["scalars"]  # there are no hyper-parameters


def test_without_tensorboard_the_error_names_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'headstart\[tensorboard\]'"):
        TensorBoardLogger(tmp_path).log_metrics({"loss": 1.0}, step=0)
