"""What the blocks of a page print: run them in their order, and write it below them.

    python docs/site/outputs.py docs/tutorial-images.md

A `text` block that follows a `python` or `sh` block is what that one prints. Lines that set up an environment are not run; a
`python` block whose first line is `# NAME.py` is written to that file, and run where a command says so.
"""

from __future__ import annotations

import io
import os
import re
import runpy
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

#: Commands that set up an environment.
SET_UP = ("python3 -m venv ", ". .venv/bin/activate", "pip install ", "make ")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page: its language, its text, and where the text stands."""

    language: str
    text: str
    start: int
    end: int


def blocks_of(page: str) -> list[Block]:
    """Give the fenced blocks of a page, in their order."""
    fences = re.finditer(r"^```(\w+)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    return [Block(each[1], each[2], each.start(2), each.end(2)) for each in fences]


def shown_below(page: str, blocks: list[Block]) -> Iterator[tuple[Block, Block | None]]:
    """Give each block that runs, with the `text` block that follows it at once and shows what it prints."""
    for block, following in zip_longest(blocks, blocks[1:]):
        if block.language in {"python", "sh"}:
            is_shown = following is not None and following.language == "text"
            follows = is_shown and re.fullmatch(r"```\s*```text\n", page[block.end : following.start])
            yield block, following if follows else None


def run_block(block: Block, namespace: dict[str, Any], run_line: Callable[[str], object]) -> str:
    """Run a block in the present folder and give what it prints, errors and output in one.

    Args:
        block: Python, or commands.
        namespace: Of the page's Python so far.
        run_line: Called with each line of commands.
    """
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                run_line(line)
        elif script := re.match(r"# (\w+\.py)\n", block.text):
            Path(script[1]).write_text(block.text, encoding="utf-8")
        else:
            exec(compile(block.text, "page", "exec"), namespace)
    return printed.getvalue()


def run_line(line: str) -> None:
    """Run one line of commands, as far as it is `headstart` or a program of the page.

    Raises:
        ValueError: If it is anything else; set-up lines alone are left out.
    """
    from headstart.cli.main import main as run_headstart

    words = shlex.split(line, comments=True)
    if not words or line.startswith(SET_UP):
        return
    if words[0] == "headstart":
        run_headstart(words[1:])
    elif words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
    else:
        raise ValueError(f"{line!r} is none of the commands that a page may have run")


def main() -> None:
    """Write what the blocks of the pages print into the pages."""
    for name in sys.argv[1:]:
        path = Path(name).resolve()
        page = path.read_text(encoding="utf-8")
        namespace: dict[str, Any] = {"__name__": "page"}
        printed: list[tuple[Block, str]] = []
        home = Path.cwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            for block, shown in shown_below(page, blocks_of(page)):
                output = run_block(block, namespace, run_line)
                if shown is not None:
                    printed.append((shown, output))
            os.chdir(home)
        for shown, output in reversed(printed):
            lines = [line.rstrip() for line in output.strip("\n").splitlines()]
            page = page[: shown.start] + "\n".join(lines) + "\n" + page[shown.end :]
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
