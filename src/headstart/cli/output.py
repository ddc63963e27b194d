"""What the commands print: tables for people, and lines for programs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from headstart.durations import spelled
from headstart.scores import Estimate, Scores

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType
    from rich.table import Column

    from headstart.choice import Choice
    from headstart.cli.options import FitOptions
    from headstart.cli.phases import TrainedPhase
    from headstart.deferred import Report


# Letters of a name that stand in one line, if it has as many, before the numbers beside it go below it.
_ROOM_FOR_A_NAME = 12
# Of numbers below a name.
_INDENT = 6


def show(renderable: Any, *, errors: bool = False) -> None:
    """Print a table on standard output (or standard error); wide names are folded, never cut."""
    Console(stderr=errors, highlight=False).print(renderable)


@dataclass(frozen=True)
class Scoreboard:
    """A table of names and their numbers; on a terminal too narrow for it, the numbers stand in lines below each name.

    Args:
        table: Columns that may not wrap have their full width.
        num_names: Of its columns, those that say what a row is about: the first ones.
    """

    table: Table
    num_names: int = 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Give the table, or the lines."""
        if self._width() <= options.max_width:
            yield self.table
            return
        yield Text(str(self.table.title), style="table.title")
        yield ""
        headings = [str(column.header) for column in self.table.columns[self.num_names :]]
        for row in zip(*(column.cells for column in self.table.columns), strict=True):
            cells = [str(cell) for cell in row]
            name = " ".join(cell or " " for cell in cells[: self.num_names])
            yield Padding(Text(name), (0, 0, 0, 2))
            lines: list[str] = []
            for phrase in _phrases(headings, cells[self.num_names :]):
                longer = f"{lines[-1]}  {phrase}" if lines else ""
                if lines and cell_len(longer) <= options.max_width - _INDENT:
                    lines[-1] = longer
                else:
                    lines.append(phrase)
            yield Padding(Text("\n".join(lines)), (0, 0, 0, _INDENT))
        yield ""

    def _width(self) -> int:
        """Give the width in which no number is cut, and every name has some room."""
        columns = self.table.columns
        _, right, _, left = self.table.padding
        return sum(map(_width_of, columns)) + len(columns) * (left + right) + len(columns) + 1


def _width_of(column: Column) -> int:
    lines = [line for cell in column.cells for line in str(cell).split("\n")]
    if column.no_wrap:
        return max(map(cell_len, [*lines, *str(column.header).split("\n")]))
    room = min(_ROOM_FOR_A_NAME, max(map(cell_len, lines), default=0))
    return max(room, *map(cell_len, str(column.header).split()))


def _phrases(headings: Sequence[str], cells: Sequence[str]) -> Iterator[str]:
    """Give each number with its name; of two lines below one heading, the second is an interval."""
    for heading, cell in zip(headings, cells, strict=True):
        names, values = heading.split("\n"), cell.split("\n")
        if len(values) > len(names):
            yield f"{heading} {values[0]} ({values[1]})"
        else:
            yield from (f"{name} {value}" for name, value in zip(names, values, strict=False) if value)


def facts_table(title: str, facts: Sequence[tuple[str, str]]) -> Table:
    """Give a table of two columns: what, and its value.

    Args:
        title: Above the table.
        facts: Rows; a value may have several lines.

    Example:
        >>> facts_table("Result", [("accuracy", "0.9")]).row_count
        1
    """
    table = Table(
        title=Text(title), box=box.SIMPLE_HEAD, show_header=False, title_justify="left", pad_edge=True
    )
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(name), Text(value))  # Text: a class called [b] is no markup
    return table


def classes_table(scores: Scores, class_names: Sequence[str], *, title: str = "Per class") -> Scoreboard:
    """Give the table of the scores of each class, the most frequent wrong prediction beside them."""
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("class", overflow="fold")
    for name in ("precision", "recall", "F1", "samples"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("most often mistaken for", overflow="fold")
    for index, (name, each) in enumerate(zip(class_names, scores.classes, strict=True)):
        numbers = [f"{value:.3f}" for value in (each.precision, each.recall, each.f1)]
        wrong = [0 if other == index else count for other, count in enumerate(scores.matrix[index])]
        mistaken = f"{class_names[wrong.index(max(wrong))]} ({max(wrong):,})" if any(wrong) else ""
        table.add_row(Text(name), *numbers, f"{each.num_samples:,}", Text(mistaken))
    return Scoreboard(table)


def candidates_table(choice: Choice) -> Scoreboard:
    """Give the table of what might have been kept, each score above its interval."""
    table = Table(title=Text("Candidates, on the validation part"), box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("", no_wrap=True)
    for name in ("accuracy", "macro-F1", "log loss", "accuracy to best"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in choice.candidates:
        difference = each.comparison.difference
        scores = [
            f"{score.value:.3f}\n{score.low:.3f}-{score.high:.3f}"
            for score in (each.accuracy, each.macro_f1, each.log_loss)
        ]
        to_best = f"{difference.value:+.3f}\n{difference.low:+.3f} to {difference.high:+.3f}"
        name = f"{'*' if each.name == choice.chosen else ' '} {each.name}"
        table.add_row(Text(name), *scores, "" if each.name == choice.best else to_best)
    return Scoreboard(table)


def with_interval(estimate: Estimate, *, confidence: float) -> str:
    """Give a score with its interval as a phrase.

    Example:
        >>> with_interval(Estimate(0.9, low=0.85, high=0.93), confidence=0.95)
        '0.900   95 % interval 0.850 to 0.930'
    """
    return f"{estimate.value:.3f}   {confidence:.0%} interval ".replace("%", " %") + (
        f"{estimate.low:.3f} to {estimate.high:.3f}"
    )


def score_facts(scores: Scores) -> list[tuple[str, str]]:
    """Give the rows of accuracy and macro-F1."""
    return [
        ("accuracy", with_interval(scores.accuracy, confidence=scores.confidence)),
        ("macro-F1", with_interval(scores.macro_f1, confidence=scores.confidence)),
    ]


def phase_facts(phases: Sequence[TrainedPhase], *, best_epoch: int | None) -> list[tuple[str, str]]:
    """Give a row for each phase: its epochs, what trained in it, and how long it took.

    Args:
        phases: In their order.
        best_epoch: The epoch, from 0, that was kept; `None` if it is not known.
    """
    facts, first = [], 0
    for phase in phases:
        last = first + phase.epochs - 1
        epochs = (
            "no whole epoch"
            if phase.epochs == 0
            else f"epoch {first}"
            if first == last
            else f"epochs {first} to {last}"
        )
        line = f"{epochs}: {phase.trains}, {phase.num_trainable:,} parameters train; {spelled(phase.seconds)}"
        if best_epoch is not None and first <= best_epoch <= last:
            line += f"\nkept: epoch {best_epoch}, the best in validation"
        facts.append((f"{phase.name} phase", line))
        first += phase.epochs
    return facts


def reuse_facts(saved: Report | None) -> list[tuple[str, str]]:
    r"""Give the row of what was not computed again; none where nothing was stored.

    Example:
        >>> from headstart.deferred import Report
        >>> reuse_facts(Report(num_computed=100, num_looked_up=900, seconds_saved=75, flops_saved=2_000_000_000_000))
        [('frozen work', 'done once: 100 passes through the backbone and 900 that were looked up;\n1 min 15 s and 2 TFLOP saved')]
    """
    if saved is None or not saved.num_looked_up:
        return []
    line = (
        f"done once: {saved.num_computed:,} passes through the backbone and {saved.num_looked_up:,} that were looked up;\n"
        f"{spelled(saved.seconds_saved)} and {saved.flops_saved / 1e12:,.3g} TFLOP saved"
    )
    return [("frozen work", line)]


def command_line(*words: str) -> str:
    """Give a command that can be pasted into a shell.

    Example:
        >>> command_line("headstart", "predict", "my run")
        "headstart predict 'my run'"
    """
    return shlex.join(words)


def fit_command(options: FitOptions) -> str:
    """Give the command for a fit with these options; those that are as they are without a word are left out.

    Example:
        >>> from headstart.cli.options import FitOptions
        >>> fit_command(FitOptions(data="my photos", out="run", plan="linear_probe", lr=0.01))
        "headstart fit 'my photos' --out run --plan linear_probe --lr 0.01"
    """
    changed = [
        (f"--{each.name}", str(getattr(options, each.name)))
        for each in fields(options)
        if each.name not in {"data", "out"} and getattr(options, each.name) != each.default
    ]
    words = [word for pair in changed for word in pair]
    return command_line("headstart", "fit", options.data, "--out", options.out, *words)
