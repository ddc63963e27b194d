"""Freed memory stays with the process while it is asked to, and goes back afterwards."""

import platform
import re
from pathlib import Path

import pytest
import torch

from headstart.allocator import memory_kept

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc gives blocks back at once"
)

SIZE = 100 << 20  # far above every threshold of glibc


def resident():
    """Bytes of memory that the process holds, files aside."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status).group(1)) * 1024


def make_and_free():
    block = torch.ones(SIZE, dtype=torch.uint8)
    del block


def test_freed_memory_is_kept_inside_and_given_back_at_the_end():
    make_and_free()
    before = resident()
    with memory_kept():
        make_and_free()
        assert resident() - before > SIZE // 2
        with memory_kept():
            make_and_free()
        assert resident() - before > SIZE // 2  # the inner end is not the last
    assert resident() - before < SIZE // 2
    make_and_free()
    assert resident() - before < SIZE // 2


def test_an_exception_ends_it_too():
    make_and_free()
    before = resident()
    with pytest.raises(ValueError, match="stop"), memory_kept():
        make_and_free()
        raise ValueError("stop")
    assert resident() - before < SIZE // 2
