"""Memory of tensors on the CPU: kept for the next one, not given back to the system in between.

The C library gives every block of more than 32 MB back when it is freed, and asks for it again; the system then hands it out
page by page, each filled with zeros. Networks for images make such blocks in every layer, and can spend half of their time
on that. Inside `memory_kept`, freed blocks stay with the process; afterwards they are given back at once.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

# malloc.h; the values are the defaults that glibc's thresholds grow to by themselves.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEEP = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: (1 << 31) - 1}
_DEFAULT = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}

_depth = 0


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed memory in the process while the block runs; on systems without glibc, do nothing.

    Example:
        >>> with memory_kept():
        ...     sum(range(3))
        3
    """
    global _depth  # noqa: PLW0603 (a process has one allocator)
    libc = _glibc()
    if libc is None:
        yield
        return
    _depth += 1
    if _depth == 1:
        _set(libc, _KEEP)
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _set(libc, _DEFAULT)
            libc.malloc_trim(0)


def _set(libc: Any, options: dict[int, int]) -> None:
    for option, value in options.items():
        libc.mallopt(option, value)


@cache
def _glibc() -> Any:
    if platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
