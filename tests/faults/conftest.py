"""Real second processes for these tests, without the seconds that importing torch takes in each."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

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
    # It inherited "forkserver", and every loader worker would import torch.
    multiprocessing.set_start_method("fork", force=True)
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
