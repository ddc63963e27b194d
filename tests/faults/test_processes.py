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
