"""Out of memory in a training step: the batch in parts, with the gradient of the whole."""

import copy
import resource
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from headstart import LightningModule
from headstart.errors import MisconfigurationError
from headstart.transfer import split_batch
from tests.faults.conftest import errors


class Net(LightningModule):
    """Fails as torch does, for batches of more than `fits` samples."""

    def __init__(self, *norms, fits=5):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), *norms, nn.Tanh(), nn.Linear(4, 1))
        self.fits, self.sizes = fits, []

    def training_step(self, batch, batch_idx):
        self.sizes.append(len(batch["x"]))
        loss = nn.functional.mse_loss(self.layers(batch["x"])[:, 0], batch["y"])
        self.log("loss", loss, on_epoch=True, on_step=False)
        if len(batch["x"]) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(num_samples=37):
    generator = torch.Generator().manual_seed(1)
    data = [
        {"x": torch.randn(3, generator=generator), "y": torch.randn((), generator=generator)}
        for _ in range(num_samples)
    ]
    return DataLoader(data, 16)


def test_the_result_is_that_of_the_whole_batches(quiet_trainer, capsys):
    torch.manual_seed(0)
    net = Net()
    whole = copy.deepcopy(net)
    whole.fits = 99
    reference = quiet_trainer()
    reference.fit(whole, loader())
    trainer = quiet_trainer(on_out_of_memory="split")
    trainer.fit(net, loader())
    # 16 do not fit, nor do 8; 4 do, at once in the next batches, and the last batch is of 5.
    assert net.sizes == [16, 8, 4, 4, 4, 4, 4, 4, 4, 4, 3, 2]
    assert trainer.global_step == 3
    for ours, theirs in zip(net.parameters(), whole.parameters(), strict=True):
        # Sums in another order: a few units in the last place of float32, over three steps.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(trainer.callback_metrics["loss"], reference.callback_metrics["loss"])
    said = capsys.readouterr().err
    assert "Out of memory with 16 samples: from here on, batches are computed in parts of at most 8" in said
    assert said.count("Out of memory with") == 2


def test_without_it_the_error_says_what_to_do(quiet_trainer):
    with pytest.raises(torch.OutOfMemoryError) as caught:
        quiet_trainer().fit(Net(), loader())
    note = caught.value.__notes__[0]
    assert "epoch 0, batch 0" in note
    assert "double accumulate_grad_batches" in note
    assert "on_out_of_memory='split'" in note


@pytest.mark.parametrize(
    ("net", "settings", "reason"),
    [
        (Net(nn.BatchNorm1d(4)), {}, r"layers.1 is a batch norm in training mode"),
        (Net(fits=0), {}, "one sample alone does not fit"),
        (Net(), {"accumulate_grad_batches": 2}, ""),
    ],
)
def test_where_it_would_not_be_exact_the_error_says_why(net, settings, reason, quiet_trainer):
    trainer = quiet_trainer(on_out_of_memory="split", **settings)
    if not reason:  # the first batch of a window can be split, and the second is split before it fails
        trainer.fit(net, loader())
        return
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.fit(net, loader())
    assert any(reason in note and "smaller batch_size" in note for note in caught.value.__notes__)


def test_batches_are_cut_whatever_they_are_made_of():
    batch = ({"x": torch.arange(4), "names": ["a", "b", "c", "d"]}, [torch.ones(4, 2)], 0.5, None)
    first, second = split_batch(batch, [3, 1])
    assert first[0]["names"] == ["a", "b", "c"]
    assert second[0]["x"].tolist() == [3]
    assert [len(part[1][0]) for part in (first, second)] == [3, 1]
    assert second[2:] == (0.5, None)
    with pytest.raises(
        MisconfigurationError, match=r"has the shape \(2, 4\); expected its 4 samples in the first"
    ):
        split_batch([torch.ones(4), torch.ones(2, 4)], [2, 2])


class Large(LightningModule):
    """Takes 8 MB a sample."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        wide = self.layer(batch[0]).repeat(1, 1 << 19).tanh()  # (B, 2**20)
        return wide.square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit_large(folder, *, megabytes=None, **settings):
    from headstart import Trainer

    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Large()
    if megabytes is not None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20),) * 2)
    data = TensorDataset(torch.randn(32, 4, generator=torch.Generator().manual_seed(2)))
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    Trainer(max_epochs=2, enable_checkpointing=False, **quiet, **settings).fit(net, DataLoader(data, 16))
    torch.save(net.state_dict(), Path(folder) / "final.pt")


@pytest.mark.slow
def test_a_process_that_may_not_have_more_memory_trains_on(run_to_end, tmp_path):
    whole, cut, failed = tmp_path / "whole", tmp_path / "cut", tmp_path / "failed"
    assert run_to_end(fit_large, whole) == 0
    assert run_to_end(fit_large, failed, megabytes=200) == 1
    assert "allocate" in errors(failed)
    assert "double accumulate_grad_batches" in errors(failed)
    assert run_to_end(fit_large, cut, megabytes=200, on_out_of_memory="split") == 0, errors(cut)
    assert "Out of memory with 16 samples" in errors(cut)
    states = [torch.load(folder / "final.pt", weights_only=True) for folder in (whole, cut)]
    for name in states[0]:
        # Means over 2**20 values, summed in another order.
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-5, atol=1e-6)
