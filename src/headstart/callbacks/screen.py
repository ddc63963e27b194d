"""`Screen`: some lines that stay at the bottom of a terminal, below all that is printed meanwhile.

The cursor is never hidden and the terminal's modes are never changed, so that there is nothing to put back: a process that is
killed leaves a terminal in order.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleRenderable, RenderHook
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.segment import ControlType
from rich.text import Text


def can_be_drawn_on(console: Console) -> bool:
    """Whether a console is a terminal on which lines can be drawn anew.

    Where output goes to a file or a pipe, on a terminal that knows no control codes (`TERM=dumb`), and where somebody wants
    none (`NO_COLOR`, https://no-color.org), it is not.

    Example:
        >>> import io
        >>> can_be_drawn_on(Console(file=io.StringIO()))
        False
    """
    is_terminal = getattr(console.file, "isatty", lambda: False)()
    return bool(
        is_terminal
        and os.environ.get("TERM", "").lower() not in {"dumb", "unknown"}
        and not os.environ.get("NO_COLOR")
    )


class Screen(RenderHook):
    """Lines at the bottom of a terminal; whatever is printed appears above them.

    Args:
        console: A terminal, see `can_be_drawn_on`.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._lines: list[Text] = []
        self._drawn: list[int] = []  # the cells of each line that stands there
        self._streams: dict[str, Any] = {}
        console.push_render_hook(self)
        # What is printed is broken where the terminal ends, and not between words: a table stays one.
        console.soft_wrap, self._soft_wrap = True, console.soft_wrap
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            # One that goes to a file stays as it is.
            if not isinstance(stream, FileProxy) and getattr(stream, "isatty", lambda: False)():
                self._streams[name] = stream
                setattr(sys, name, FileProxy(console, stream))

    def show(self, lines: Sequence[Text]) -> None:
        """Draw other lines in place of those that stand there."""
        self._lines = list(lines)
        with self.console:  # one write
            self.console.print(Control())

    def close(self, *, keep: bool) -> None:
        """Leave the lines where they are, or take them away; print as before."""
        for name, stream in self._streams.items():
            getattr(sys, name).flush()  # half a line that somebody printed
            setattr(sys, name, stream)
        self._streams = {}
        if not keep:
            self.show([])
        self.console.pop_render_hook()
        self.console.soft_wrap = self._soft_wrap
        if keep and self._drawn:
            self.console.print()
        self._drawn = []

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Put the lines below what is being printed: what rich calls for every print."""
        width, height = self.console.size
        # Rows, not lines: a terminal that was made narrower has broken them.
        rows = min(height, sum(max(1, -(-cells // max(1, width))) for cells in self._drawn))
        erase: list[Any] = [ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)] if rows else []
        erase += [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * (rows - 1)
        frame = Text(end="", no_wrap=True, overflow="crop")
        lines = [line.copy() for line in self._lines[: max(1, height - 1)]]
        for line in lines:
            line.truncate(max(1, width - 1), overflow="ellipsis")  # the last column would begin a new row
        frame.append_text(Text("\n").join(lines))
        self._drawn = [line.cell_len for line in lines]
        return [Control(*erase), *renderables, frame]
