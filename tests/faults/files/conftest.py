"""What the tests of faults share: small files of each kind, and programs that run in a process of their own."""

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
