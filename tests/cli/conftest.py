from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Programs for `headstart run`: no part of this suite, and without it their imports find nothing.
collect_ignore_glob = ["programs/*"]


@pytest.fixture
def headstart(tmp_path):
    """Call the command line, or `.python`, as a second process in an empty folder."""

    def python(*arguments, **environment):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def call(*arguments, **environment):
        return python("-m", "headstart", *arguments, **environment)

    call.python = python
    return call


@pytest.fixture
def programs():
    return Path(__file__).with_name("programs")
