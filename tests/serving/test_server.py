"""How a server ends; tests/cli/test_serve.py ends one with requests under way."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal
from fastapi import FastAPI
from headstart.serving.limits import Limits
from headstart.serving.server import serve
serve(FastAPI(), host="127.0.0.1", port=0, limits=Limits(), say=lambda _: os.kill(os.getpid(), signal.{}))
print("ended")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_as_soon_as_it_says_its_address_ends_it(name):
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "ended\n", "")
