"""What the tests of faults share: small files of each kind, and second processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from headstart.checkpoint import write_checkpoint


def flipped(path: Path, place: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    with path.open("rb+") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))


@pytest.fixture
def flip():
    return flipped


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint with tensors of several kinds, 2 to 3 kB."""
    path = tmp_path / "run" / "last.ckpt"
    state = {
        "weight": torch.arange(12.0).reshape(3, 4),
        "steps": torch.tensor(7),
        "half": torch.ones(3).half(),
    }
    write_checkpoint({"state_dict": state, "epoch": 3, "hyper_parameters": {"lr": 0.1, "name": "a b"}}, path)
    return path


@pytest.fixture
def program():
    """Run Python in a second process; give its output. Its errors are the test's."""

    def run(text: str, *arguments: object, prefix: tuple[str, ...] = ()) -> str:
        done = subprocess.run(
            [*prefix, sys.executable, "-W", "error", "-c", textwrap.dedent(text), *map(str, arguments)],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    return run


# ---- runs in processes of their own, without the seconds that importing torch takes in each

_CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="session")
def start():
    """Start a function in a new process, and give the process; its standard error goes to `folder/errors`.

    One process imports everything, once, and starts no thread; the others are forked from it.
    """
    _CONTEXT.set_forkserver_preload(["pytest", "torchmetrics", "tests.faults.jobs"])
    started = []

    def start(function, folder, **settings):
        Path(folder).mkdir(parents=True, exist_ok=True)
        process = _CONTEXT.Process(target=_call, args=(function, str(folder), settings))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def _call(function, folder, settings):
    descriptor = os.open(f"{folder}/errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 2)
    function(folder, **settings)


@pytest.fixture(scope="session")
def run_to_end(start):
    """Run a function in a second process; give the exit code (negative: the signal)."""

    def run(function, folder, *, timeout=60, **settings):
        process = start(function, folder, **settings)
        process.join(timeout)
        assert process.exitcode is not None, f"still running after {timeout} s"
        return process.exitcode

    return run


def digest(folder):
    """The final weights of a run, and what it logged last, as one word."""
    found = torch.load(Path(folder) / "final.pt", weights_only=True)
    text = hashlib.sha256(repr(found["epoch_loss"].item()).encode())
    for name, tensor in found["state"].items():
        text.update(name.encode() + tensor.numpy().tobytes())
    return text.hexdigest()


def errors(folder):
    path = Path(folder) / "errors"
    return path.read_text() if path.exists() else ""


@pytest.fixture(scope="session")
def undisturbed(run_to_end, tmp_path_factory):
    """The digest of the run that nobody disturbed, by its settings; made once for each."""
    known = {}

    def give(function, **settings):
        key = (function.__name__, repr(sorted(settings.items())))
        if key not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            assert run_to_end(function, folder, **settings) == 0, errors(folder)
            known[key] = digest(folder)
        return known[key]

    return give
