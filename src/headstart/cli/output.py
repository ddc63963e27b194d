"""What the commands print: tables for people, and lines for programs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headstart.scores import Estimate, Scores

if TYPE_CHECKING:
    from headstart.choice import Choice
    from headstart.cli.phases import Phase
    from headstart.deferred import Report


def show(renderable: Any, *, errors: bool = False) -> None:
    """Print a table on standard output (or standard error); wide names are folded, never cut."""
    Console(stderr=errors, highlight=False).print(renderable)


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


def classes_table(scores: Scores, class_names: Sequence[str], *, title: str = "Per class") -> Table:
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
    return table


def candidates_table(choice: Choice) -> Table:
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
    return table


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


def phase_facts(phases: Sequence[Phase], *, best_epoch: int | None) -> list[tuple[str, str]]:
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
        line = (
            f"{epochs}: {phase.trains}, {phase.num_trainable:,} parameters train; {duration(phase.seconds)}"
        )
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
        f"{duration(saved.seconds_saved)} and {saved.flops_saved / 1e12:,.3g} TFLOP saved"
    )
    return [("frozen work", line)]


def duration(seconds: float) -> str:
    """Give a time span for people.

    Example:
        >>> duration(3.21), duration(75), duration(7384)
        ('3.2 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def command_line(*words: str) -> str:
    """Give a command that can be pasted into a shell.

    Example:
        >>> command_line("headstart", "predict", "my run")
        "headstart predict 'my run'"
    """
    return shlex.join(words)
