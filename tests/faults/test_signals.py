"""SIGTERM and SIGINT end a fit after its step, saved; the same command again gives the bits of the undisturbed run."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from headstart import Callback, seed_everything
from headstart.demos.boring_classes import BoringModel
from headstart.signals import SIGTERMException
from tests.faults.conftest import digest, errors
from tests.faults.jobs import Net, Samples, SignalsItself, make_trainer, train


class Announces(Callback):
    """Writes to a file what was called."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def _note(self, what):
        with (self.folder / "called").open("a") as file:
            file.write(f"{what}\n")

    def on_exception(self, trainer, pl_module, exception):
        self._note(
            f"on_exception {type(exception).__name__} {trainer.interrupted} {trainer.received_sigterm} {trainer.stage}"
        )

    def teardown(self, trainer, pl_module, stage):
        self._note(f"teardown {stage} {trainer.global_step}")


def train_and_get_signal(folder, *, number, batch, hook="on_before_backward", times=1, **settings):
    callbacks = [Announces(folder), SignalsItself(number, batch=batch, hook=hook, times=times)]
    train(folder, callbacks=callbacks, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "hook"),
    [
        (0, "on_before_backward"),
        (8, "on_before_backward"),  # the epoch's last
        (13, "on_before_backward"),
        (18, "on_validation_batch_start"),
        (26, "on_before_backward"),  # the run's last
    ],
)
def test_sigterm_ends_the_run_after_its_step_and_it_goes_on_bit_for_bit(
    batch, hook, run_to_end, undisturbed, tmp_path
):
    settings = {"augmented": True}
    code = run_to_end(
        train_and_get_signal, tmp_path, number=signal.SIGTERM, batch=batch, hook=hook, every=None, **settings
    )
    assert code == 143, errors(tmp_path)
    steps = batch if hook == "on_validation_batch_start" else batch + 1
    assert (tmp_path / "called").read_text().splitlines() == [
        # Within the validation, not after it: a scheduler does not wait long.
        f"on_exception SIGTERMException True True {'validate' if 'validation' in hook else 'train'}",
        f"teardown fit {steps}",
    ]
    assert "SIGTERM: the run ends after this step. The state goes to" in errors(tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == steps
    assert not (tmp_path / "final.pt").exists()
    assert run_to_end(train, tmp_path, every=None, **settings) == 0, errors(tmp_path)
    assert digest(tmp_path) == undisturbed(train, **settings)


@pytest.mark.slow
def test_sigint_too(run_to_end, undisturbed, tmp_path):
    settings = {"augmented": True}
    code = run_to_end(train_and_get_signal, tmp_path, number=signal.SIGINT, batch=13, every=None, **settings)
    assert code not in {0, None}
    assert "on_exception KeyboardInterrupt True False" in (tmp_path / "called").read_text()
    assert run_to_end(train, tmp_path, every=None, **settings) == 0, errors(tmp_path)
    assert digest(tmp_path) == undisturbed(train, **settings)


def wait_while_reading(folder, **settings):
    # A worker counts anew in every epoch.
    train(folder, data=Waits(folder, at=14 if settings["num_workers"] else 46), every=None, **settings)


class Waits:
    """Samples of which the one that is read as number `at` takes 20 seconds; once."""

    def __init__(self, folder, *, at):
        from tests.faults.jobs import Samples

        self.samples, self.folder, self.num_read = Samples(augmented=True), Path(folder), 0
        self.at = at

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.num_read += 1
        if self.num_read == self.at and not (self.folder / "waited").exists():
            self.samples[index]  # draws random numbers
            (self.folder / "waited").touch()
            time.sleep(20)
        return self.samples[index]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_preempted_job_that_waits_for_data_saves_within_the_grace_period(
    num_workers, start, run_to_end, undisturbed, tmp_path
):
    settings = {"augmented": True, "num_workers": num_workers}
    process = start(wait_while_reading, tmp_path, num_workers=num_workers)
    while not (tmp_path / "waited").exists():
        assert process.exitcode is None, errors(tmp_path)
        time.sleep(0.01)
    process.terminate()  # as a scheduler does
    deadline = time.monotonic() + 4
    while not (tmp_path / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    if num_workers:
        process.kill()  # as it does then; torch waits 5 seconds for a worker that hangs
    process.join(4)
    assert process.exitcode == (-9 if num_workers else 143), errors(tmp_path)
    assert run_to_end(wait_while_reading, tmp_path, num_workers=num_workers) == 0, errors(tmp_path)
    assert digest(tmp_path) == undisturbed(train, **settings)


@pytest.mark.slow
def test_a_second_signal_ends_at_once_and_saves_nothing(run_to_end, tmp_path):
    code = run_to_end(
        train_and_get_signal, tmp_path, number=signal.SIGINT, batch=3, times=2, every=None, augmented=True
    )
    assert code not in {0, None}
    assert "nothing is saved now, for it was to end at once" in errors(tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*.ckpt"))
    assert "teardown fit 3" in (tmp_path / "called").read_text()


def terminate_twice(folder):
    class Twice(SignalsItself):
        def _send(self, trainer, hook):
            if trainer.progress.total_batches == self.batch and hook == "on_before_backward":
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)  # a scheduler's, handed on by a launcher: the same wish
                if self.times == 2:
                    time.sleep(1.1)
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(60)

    train(
        folder,
        callbacks=[Twice(signal.SIGTERM, batch=3, times=2 if "twice" in str(folder) else 1)],
        every=None,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("once", 143), ("twice", -signal.SIGTERM)])
def test_sigterm_again_is_the_same_wish_within_a_second_and_then_the_end(name, code, run_to_end, tmp_path):
    assert run_to_end(terminate_twice, tmp_path / name) == code
    assert (tmp_path / name / "checkpoints" / "last.ckpt").exists() == (name == "once")


SCRIPT = """
import sys, torch
from tests.faults.jobs import Net, Samples, SignalsItself, make_trainer, train
train({folder!r}, callbacks=[SignalsItself({number}, batch=5)], saving={saving}, every=None)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "saving", "code"), [(signal.SIGTERM, True, 143), (signal.SIGINT, False, 130)]
)
def test_a_script_ends_with_the_code_that_shells_know(number, saving, code, tmp_path):
    program = SCRIPT.format(folder=str(tmp_path), number=int(number), saving=saving)
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    # Python ends on Ctrl-C by the signal itself, which a shell shows as 130.
    seen_by_a_shell = found.returncode if found.returncode >= 0 else 128 - found.returncode
    assert seen_by_a_shell == code, found.stderr
    assert (tmp_path / "checkpoints" / "last.ckpt").exists() == saving
    assert ("Nothing is saved: there is no ModelCheckpoint that does it." in found.stderr) != saving


class Reads(Net):
    def predict_step(self, batch, batch_idx):
        return self.backbone(batch[0])


_read = []  # apart from the dataset: one with other attributes would be other data


class Counted(Samples):
    def __getitem__(self, index):
        _read.append(index)
        if len(_read) == int(os.environ.get("SIGTERM_AT", "0")):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)


def compute_features(folder, *, signal_at=None):
    if signal_at is not None:
        os.environ["SIGTERM_AT"] = str(signal_at)
    seed_everything(3)
    make_trainer(folder, saving=False, features=True).predict(Reads(), DataLoader(Counted(400), 4))
    (Path(folder) / "num_read").write_text(str(len(_read)))


def test_what_was_computed_before_sigterm_is_looked_up_in_the_next_run(run_to_end, tmp_path):
    assert run_to_end(compute_features, tmp_path, signal_at=300) == 143, errors(tmp_path)
    assert run_to_end(compute_features, tmp_path) == 0, errors(tmp_path)
    # What was not computed yet, and what was read together with the sample at which it was cut.
    assert int((tmp_path / "num_read").read_text()) <= 400 - 300 + 32


# ---- in this process


class Sends(Callback):
    def __init__(self, number):
        self.number = number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            os.kill(os.getpid(), self.number)


def test_the_handlers_are_given_back(quiet_trainer):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    with pytest.raises(SIGTERMException):
        quiet_trainer(callbacks=[Sends(signal.SIGTERM)]).fit(BoringModel())
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)] == before


def test_a_programs_own_handler_stays(quiet_trainer):
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        trainer = quiet_trainer(callbacks=[Sends(signal.SIGTERM)], limit_train_batches=5)
        trainer.fit(BoringModel())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]
    assert trainer.global_step == 5
    assert not trainer.received_sigterm


def test_in_another_thread_fit_leaves_signals_alone(quiet_trainer):
    trainer = quiet_trainer(limit_train_batches=3)
    thread = threading.Thread(target=trainer.fit, args=[BoringModel()])
    thread.start()
    thread.join()
    assert trainer.global_step == 3


def test_a_signal_before_the_first_batch_ends_at_once(quiet_trainer):
    class InSetup(Callback):
        def setup(self, trainer, pl_module, stage):
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("went on")

    with pytest.raises(SIGTERMException):
        quiet_trainer(callbacks=[InSetup()]).fit(BoringModel())


def test_a_signal_after_the_last_batch_is_not_lost(quiet_trainer):
    class AtTheEnd(Callback):
        def on_fit_end(self, trainer, pl_module):
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = quiet_trainer(callbacks=[AtTheEnd()], limit_train_batches=2)
    with pytest.raises(SIGTERMException):
        trainer.fit(BoringModel())
    assert trainer.state.finished


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("entry", ["validate", "test", "predict"])
def test_a_signal_ends_an_evaluation_at_once_and_in_order(entry, number, quiet_trainer):
    class Watches(Callback):
        def __init__(self):
            self.called = []

        def on_exception(self, trainer, pl_module, exception):
            self.called.append(type(exception))

        def teardown(self, trainer, pl_module, stage):
            self.called.append(stage)

    class Signalled(BoringModel):
        num_calls = 0

        def _step(self, batch, batch_idx):
            self.num_calls += 1
            if batch_idx == 2:
                os.kill(os.getpid(), number)
                raise AssertionError("went on")

        validation_step = test_step = predict_step = _step

    watch, model = Watches(), Signalled()
    trainer = quiet_trainer(callbacks=[watch])
    expected = KeyboardInterrupt if number == signal.SIGINT else SIGTERMException
    with pytest.raises(expected):
        getattr(trainer, entry)(model)
    assert watch.called == [expected, entry]
    assert model.num_calls == 3
    assert trainer.interrupted
    assert trainer.received_sigterm == (number == signal.SIGTERM)


def test_what_is_imported_from_the_fields_own_place():
    from headstart.lightning_names.table import NAMES

    assert NAMES["pytorch_lightning.utilities.exceptions"]["SIGTERMException"] == "headstart.signals"
    assert SIGTERMException().code == 143
