"""A job of several processes loses one, or is told to end: it goes on, and ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

JOB = Path(__file__).with_name("process_job.py")


def start(folder, *fault, restarts=0):
    folder.mkdir(exist_ok=True)
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        f"--max-restarts={restarts}",
    ]
    return subprocess.Popen(
        [sys.executable, *command, str(JOB), str(folder), *fault],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def end_of(process):
    printed = process.communicate(timeout=240)[0]
    return process.returncode, printed


def final(folder):
    return torch.load(folder / "final.pt", weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    code, printed = end_of(start(folder))
    assert code == 0, printed[-3000:]
    return final(folder)


def is_same(first, second):
    return first["loss"] == second["loss"] and all(
        torch.equal(value, second["state"][name]) for name, value in first["state"].items()
    )


def test_a_job_whose_process_is_killed_goes_on_from_the_last_checkpoint(undisturbed, tmp_path):
    code, printed = end_of(start(tmp_path / "job", "kill", restarts=1))
    assert code == 0, printed[-3000:]
    assert "there is no last checkpoint yet: training begins" in printed  # the first attempt
    assert is_same(final(tmp_path / "job"), undisturbed)


def test_without_restarts_the_same_command_goes_on(undisturbed, tmp_path):
    code, printed = end_of(start(tmp_path / "job", "kill"))
    assert code != 0
    assert "SIGKILL" in printed
    code, printed = end_of(start(tmp_path / "job"))
    assert code == 0, printed[-3000:]
    assert is_same(final(tmp_path / "job"), undisturbed)


def test_an_exception_in_one_process_ends_the_job_and_it_goes_on(undisturbed, tmp_path):
    code, printed = end_of(start(tmp_path / "job", "raise", restarts=1))
    assert "a fault of one process" in printed
    assert code == 0, printed[-3000:]
    assert is_same(final(tmp_path / "job"), undisturbed)


PROGRAM = """
import sys
from pathlib import Path
from headstart import Callback, Trainer
from headstart.callbacks import ModelCheckpoint
from headstart.demos.boring_classes import BoringModel

class Announces(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            Path(sys.argv[1], f"runs{trainer.global_rank}").touch()

if __name__ == "__main__":
    saves = ModelCheckpoint(sys.argv[1], save_last=True)
    trainer = Trainer(accelerator="cpu", devices=2, max_epochs=100000, callbacks=[saves, Announces()], logger=False,
                      enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(BoringModel())
"""


def test_sigterm_to_a_program_that_started_itself_anew_ends_all_of_it_with_the_state_saved(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with (tmp_path / "printed").open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, str(program), str(tmp_path)], stdout=printed, stderr=subprocess.STDOUT
        )
    while not all((tmp_path / f"runs{rank}").exists() for rank in (0, 1)):
        assert process.poll() is None, (tmp_path / "printed").read_text()[-3000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=90) != 0
    assert (tmp_path / "last.ckpt").is_file(), (tmp_path / "printed").read_text()[-3000:]
    left = [
        path
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.exists() and str(program).encode() in path.read_bytes()
    ]
    assert left == []


def test_sigterm_ends_all_processes_after_the_same_step_with_the_state_saved(undisturbed, tmp_path):
    folder = tmp_path / "job"
    process = start(folder, "wait")
    while not all((folder / f"waits{rank}").exists() for rank in (0, 1)):
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # torchrun hands it on to its processes
    code, printed = end_of(process)
    assert code != 0
    assert not (folder / "final.pt").exists()
    steps = [
        torch.load(path, weights_only=True)["global_step"]
        for path in (folder / "checkpoints").glob("last.ckpt")
    ]
    assert steps[0] in {6, 7}, printed[-3000:]  # not 4, which was saved before
    code, printed = end_of(start(folder))
    assert code == 0, printed[-3000:]
    assert is_same(final(folder), undisturbed)
