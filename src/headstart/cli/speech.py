"""What a command says, and where: tables and progress, or the one thing that a program wants to know."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path


@contextmanager
def speaking(*, quiet: bool, json: bool) -> Iterator[None]:
    """Let what is printed while the block runs go where it belongs.

    Args:
        quiet: Print nothing; an exception is still said by whoever catches it outside.
        json: Print all on standard error: standard output is for one JSON object.

    Example:
        >>> with speaking(quiet=True, json=False):
        ...     print("not seen")
    """
    with ExitStack() as stack:
        if quiet:
            nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        elif json:
            stack.enter_context(redirect_stdout(sys.stderr))
        yield
