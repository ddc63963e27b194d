"""Freed memory stays with the process while it is asked to, and goes back afterwards.

Each case runs in a process of its own: one that has run other tests holds free blocks, which serve the next request unseen.
"""

import platform
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc gives blocks back at once"
)

PRELUDE = """
import re
from pathlib import Path

import torch

from headstart.allocator import memory_kept

SIZE = 100 << 20  # far above every threshold of glibc


def resident():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", status).group(1)) * 1024


def make_and_free():
    block = torch.ones(SIZE, dtype=torch.uint8)
    del block


def holds_it():
    return resident() - before > SIZE // 2


make_and_free()
before = resident()
"""


def run(program):
    """Run the program in a fresh process, behind the prelude; an assertion that fails in it fails the test."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_freed_memory_is_kept_inside_and_given_back_at_the_end():
    run("""
        with memory_kept():
            make_and_free()
            assert holds_it()
            with memory_kept():
                make_and_free()
            assert holds_it(), "the inner end is not the last"
        assert not holds_it()
        make_and_free()
        assert not holds_it()
    """)


def test_an_exception_ends_it_too():
    run("""
        try:
            with memory_kept():
                make_and_free()
                assert holds_it()
                raise ValueError
        except ValueError:
            pass
        assert not holds_it()
        make_and_free()
        assert not holds_it()
    """)
