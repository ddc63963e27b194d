"""A failure in a batch, a loader or a sample: it is said where, the state is saved, and the run goes on bit for bit."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from headstart import Callback, signals
from headstart.callbacks import ModelCheckpoint
from headstart.demos.boring_classes import BoringModel
from headstart.whereabouts import describe_samples, place_of, samples_of_batch
from tests.faults.conftest import digest, errors
from tests.faults.jobs import Net, Samples, train


class Broken(Exception):
    pass


class Once:
    """Says yes the first time that it is asked for this, in whichever process."""

    def __init__(self, folder):
        self.path = Path(folder) / "happened"

    def __bool__(self):
        is_first = not self.path.exists()
        self.path.touch()
        return is_first


class BreakingNet(Net):
    """Fails in `training_step`, after statistics, logged values and random numbers have moved."""

    folder = None

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        random.random()
        if self.trainer.progress.total_batches == 13 and Once(self.folder):
            raise Broken("no good")
        return loss


def break_in_training_step(folder, **settings):
    BreakingNet.folder = folder
    train(folder, net=BreakingNet, every=None, **settings)


def draw_as_much(folder, **settings):
    """The undisturbed run of `break_in_training_step`."""
    (Path(folder) / "happened").touch()
    break_in_training_step(folder, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_step_that_raises(accumulate, run_to_end, undisturbed, tmp_path):
    settings = {"augmented": True, "accumulate_grad_batches": accumulate}
    assert run_to_end(break_in_training_step, tmp_path, **settings) == 1
    said = errors(tmp_path)
    steps = {1: 13, 2: 5 + 2}[accumulate]
    assert f"It was raised in training_step: epoch 1, batch 4, after {steps} steps; samples " in said
    assert "ModelCheckpoint: the run ends with Broken; saved" in said
    assert run_to_end(break_in_training_step, tmp_path, **settings) == 0, errors(tmp_path)
    assert digest(tmp_path) == undisturbed(draw_as_much, **settings)


class Unreadable(Samples):
    """One sample cannot be read, hangs, or ends its process, in the second epoch; once."""

    def __init__(self, folder, how, *, at):
        super().__init__(augmented=True)
        self.folder, self.how, self.at, self.num_read = folder, how, at, 0

    def __getitem__(self, index):
        self.num_read += 1
        if self.num_read == self.at and Once(self.folder):
            if self.how == "raises":
                torch.rand(1)
                raise OSError(f"image {index} is damaged")
            if self.how == "hangs":
                time.sleep(12)
            if self.how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def read_what_fails(folder, *, how, num_workers=0, **settings):
    at = 14 if num_workers else 50
    train(folder, data=Unreadable(folder, how, at=at), num_workers=num_workers, every=None, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "num_workers", "expected"),
    [
        ("raises", 0, ["OSError: image ", "reading a batch: epoch 1, batch 3, after 12 steps; samples "]),
        ("raises", 1, ["OSError: image ", "reading a batch: epoch 0, batch 3, after 3 steps; samples "]),
        # The pipe may tell of the death before the signal does.
        (
            "dies",
            1,
            ["reading a batch: epoch 0, batch ", "; samples ", "A loader's process was ended from outside"],
        ),
        ("hangs", 1, ["timed out after 5", "reading a batch: epoch 0, batch ", "; samples ", "may hang"]),
    ],
)
def test_a_sample_that_cannot_be_read(how, num_workers, expected, run_to_end, undisturbed, tmp_path):
    settings = {"num_workers": num_workers}
    longest_wait = 5 if how == "hangs" else 0
    assert run_to_end(read_what_fails, tmp_path, how=how, longest_wait=longest_wait, **settings) == 1
    said = errors(tmp_path)
    for each in expected:
        assert each in said
    assert run_to_end(read_what_fails, tmp_path, how=how, **settings) == 0, errors(tmp_path)
    assert digest(tmp_path) == undisturbed(train, augmented=True, **settings)


class KillsAWorker(Callback):
    """From outside, in the midst of a step."""

    def __init__(self, folder):
        self.once = Once(folder)

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.progress.total_batches == 12 and self.once:
            worker = multiprocessing.active_children()[0]
            os.kill(worker.pid, signal.SIGKILL)
            time.sleep(0.5)


def kill_a_worker(folder, **settings):
    train(folder, callbacks=[KillsAWorker(folder)], **settings)


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_midst_of_a_step(run_to_end, undisturbed, tmp_path):
    settings = {"augmented": True, "num_workers": 1}
    assert run_to_end(kill_a_worker, tmp_path, every=None, **settings) == 1
    said = errors(tmp_path)
    assert "exited unexpectedly" in said or "is killed by signal" in said
    # The step was finished first: torch's own handler would have raised within it.
    assert "reading a batch: epoch 1, batch 4, after 13 steps; samples " in said
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 13
    assert run_to_end(kill_a_worker, tmp_path, every=None, **settings) == 0, errors(tmp_path)
    assert digest(tmp_path) == undisturbed(train, **settings)


# ---- in this process


def test_a_step_that_was_half_taken_is_not_saved(quiet_trainer, tmp_path, capsys):
    class HalfStep(torch.optim.SGD):
        def step(self, closure=None):
            if net.trainer.global_step == 2:
                next(net.parameters()).data.zero_()
                raise Broken
            return super().step(closure)

    class TestNet(BoringModel):
        def configure_optimizers(self):
            return HalfStep(self.parameters(), lr=0.1)

    net = TestNet()
    trainer = quiet_trainer(
        callbacks=[ModelCheckpoint(tmp_path, every_n_train_steps=1)], enable_checkpointing=True
    )
    with pytest.raises(Broken):
        trainer.fit(net)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["epoch=0-step=2.ckpt"]
    said = capsys.readouterr().err
    assert "nothing is saved now, for it was raised in the middle of a step" in said
    assert "epoch=0-step=2.ckpt" in said


def test_an_error_in_a_validation_says_so(quiet_trainer):
    class Fails(BoringModel):
        def validation_step(self, batch, batch_idx):
            raise Broken

    with pytest.raises(Broken) as caught:
        quiet_trainer(num_sanity_val_steps=0, limit_train_batches=3).fit(Fails())
    assert caught.value.__notes__ == ["It was raised in the validation of epoch 0, after 3 steps."]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_samples_of_a_batch_are_those_that_it_holds(quiet_trainer, shuffle, persistent):
    class Compares(Callback):
        num_compared = 0

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            before = torch.get_rng_state()
            assert samples_of_batch(trainer) == batch[0].flatten().tolist()
            assert torch.equal(torch.get_rng_state(), before)
            self.num_compared += 1

    class TestNet(BoringModel):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 2)

        def training_step(self, batch, batch_idx):
            return self.layer(batch[0]).square().mean()

    workers = {"num_workers": 1, "persistent_workers": True} if persistent else {}
    compares = Compares()
    loader = DataLoader(TensorDataset(torch.arange(10.0)[:, None]), 4, shuffle=shuffle, **workers)
    quiet_trainer(callbacks=[compares], max_epochs=3, reuse_frozen=False).fit(TestNet(), loader, [])
    assert compares.num_compared == 9


def test_a_long_wait_for_workers_is_said(quiet_trainer, monkeypatch, capfd):
    class Slow(Samples):
        def __getitem__(self, index):
            if index == 5:
                time.sleep(3)  # the process reads ahead: a part of it is over before the run waits
            return super().__getitem__(index)

    class Impatient(Net):
        def on_train_batch_end(self, *_):
            monkeypatch.setattr(signals, "LONG_WAIT", 0.3)

    quiet_trainer(num_sanity_val_steps=0, reuse_frozen=False).fit(
        Impatient(), DataLoader(Slow(8), 4, num_workers=1), []
    )
    assert (
        "1 loader process: epoch 0, batch 1, after 1 step; samples 4, 5, 6, 7. If one"
        in capfd.readouterr().err
    )
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_samples_are_named_by_file_or_row():
    from headstart.data.images import LabelledImages

    images = LabelledImages(["cat/1.jpg", "dog/2.jpg"], [0, 1])
    assert describe_samples(images, [1, 0]) == f"samples 1 ({Path('dog/2.jpg')}), 0 ({Path('cat/1.jpg')})"
    both = ConcatDataset([Subset(images, [1]), [3, 4]])
    assert [place_of(both, index) for index in range(3)] == [str(Path("dog/2.jpg")), "", ""]
    assert describe_samples([0] * 40, list(range(20))).endswith("15 and 4 more")


def test_the_loaders_of_headstart_data_do_not_wait_for_ever(tmp_path):
    from headstart.data import TextTableData

    table = tmp_path / "table.csv"
    table.write_text("text,label\n" + "".join(f"some words {n},{'ab'[n % 2]}\n" for n in range(20)))
    for num_workers, expected in [(0, 0), (2, 600)]:
        data = TextTableData(table, num_workers=num_workers)
        data.tokenize = lambda texts: {"length": torch.tensor([len(text) for text in texts])}
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a machine with few cores
            assert data.train_dataloader().timeout == expected
