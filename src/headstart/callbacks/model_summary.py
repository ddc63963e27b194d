"""`ModelSummary`: what the module is made of, and what of it trains, in one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.parameter import is_lazy

from headstart import freezing
from headstart.callback import Callback
from headstart.errors import MisconfigurationError

if TYPE_CHECKING:
    from headstart.module import LightningModule
    from headstart.trainer import Trainer

_HEADER = ("", "name", "type", "params", "trainable", "mode")


class ModelSummary(Callback):
    """Prints a table of the module when fit starts: names, types, parameters, and what of them trains.

    The modes are those in which training runs; the trainer establishes them when an epoch starts.

    Args:
        max_depth: How deep into the tree of modules the rows go: 1 is the module's own attributes, 0 only the totals,
            -1 everything.

    Raises:
        MisconfigurationError: If `max_depth` is below -1.
    """

    def __init__(self, max_depth: int = 1) -> None:
        _check_depth(max_depth)
        self._max_depth = max_depth

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table."""
        if not trainer.is_global_zero:
            return
        with _modes_of_training(pl_module):
            summary = summarize(pl_module, max_depth=self._max_depth)
        console = Console()
        if console.is_terminal:
            console.print(summary.table(), summary.totals(), sep="\n")
        else:
            print(summary)


#: The same table under its other name.
RichModelSummary = ModelSummary


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One module: its name in the tree, its class, and how many of its parameters train."""

    name: str
    type: str
    num_parameters: int
    num_trainable: int
    mode: str  # "train", "eval", or "" for parameters that belong to the root itself

    @property
    def is_frozen(self) -> bool:
        """Whether it has parameters, and none of them trains."""
        return self.num_parameters > 0 and self.num_trainable == 0

    def cells(self, index: int) -> tuple[str, ...]:
        """The row as text."""
        trainable = "frozen" if self.is_frozen else f"{self.num_trainable:,}"
        return (str(index), self.name, self.type, f"{self.num_parameters:,}", trainable, self.mode)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a module is made of: rows for its parts, and totals for the whole."""

    rows: list[SummaryRow]
    total_parameters: int
    trainable_parameters: int
    model_size: float  # of all parameters, in MB (10**6 bytes)
    num_train_modules: int
    num_eval_modules: int
    num_lazy: int  # parameters without a shape yet; they count as nothing above

    @property
    def non_trainable_parameters(self) -> int:
        """The number of frozen parameters."""
        return self.total_parameters - self.trainable_parameters

    def table(self) -> Table:
        """The rows for a terminal, frozen ones dimmed."""
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in _HEADER:
            table.add_column(
                name, justify="right" if name in {"params", "trainable"} else "left", overflow="fold"
            )
        for index, row in enumerate(self.rows):
            table.add_row(*row.cells(index), style="dim" if row.is_frozen else None)
        return table

    def totals(self) -> str:
        """The totals, two lines of text."""
        lazy = f", and {self.num_lazy} whose shapes the first batch decides" if self.num_lazy else ""
        return (
            f"{self.total_parameters:,} parameters ({self.model_size:,.1f} MB){lazy}: "
            f"{self.trainable_parameters:,} trainable, {self.non_trainable_parameters:,} frozen\n"
            f"{self.num_train_modules} modules in train mode, {self.num_eval_modules} in eval mode"
        )

    def __str__(self) -> str:
        lines = [_HEADER, *(row.cells(index) for index, row in enumerate(self.rows))]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(_aligned(line, widths)).rstrip() for line in lines] if self.rows else []
        return "\n".join([*text, self.totals()])


def summarize(module: nn.Module, max_depth: int = 1) -> Summary:
    """Give the parts of a module with their numbers of parameters, and the totals.

    Args:
        module: Any module; no trainer is needed.
        max_depth: How deep the rows go; 0 gives only totals, -1 everything.

    Raises:
        MisconfigurationError: If `max_depth` is below -1.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> freezing.freeze(net[0])
        >>> print(summarize(net))
           name  type    params  trainable  mode
        0  0     Linear      40     frozen  eval
        1  1     ReLU         0          0  train
        2  2     Linear      18         18  train
        58 parameters (0.0 MB): 18 trainable, 40 frozen
        3 modules in train mode, 1 in eval mode
    """
    _check_depth(max_depth)
    rows = [
        SummaryRow(
            name,
            type(child).__name__,
            *_count(child.parameters()),
            mode="train" if child.training else "eval",
        )
        for name, child in module.named_modules()
        if name and (max_depth == -1 or name.count(".") < max_depth)
    ]
    num_own, num_own_trainable = _count(module.parameters(recurse=False))
    if num_own and max_depth != 0:
        rows.append(SummaryRow("other params", "", num_own, num_own_trainable, mode=""))
    total, trainable = _count(module.parameters())
    modes = [child.training for child in module.modules()]
    shaped = [parameter for parameter in module.parameters() if not is_lazy(parameter)]
    return Summary(
        rows=rows,
        total_parameters=total,
        trainable_parameters=trainable,
        model_size=sum(parameter.numel() * parameter.element_size() for parameter in shaped) / 1e6,
        num_train_modules=sum(modes),
        num_eval_modules=len(modes) - sum(modes),
        num_lazy=len(list(module.parameters())) - len(shaped),
    )


def _count(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    """The numbers of elements: of all, and of those that train."""
    total = trainable = 0
    for parameter in parameters:
        if not is_lazy(parameter):
            total += parameter.numel()
            trainable += parameter.numel() if parameter.requires_grad else 0
    return total, trainable


def _aligned(line: tuple[str, ...], widths: list[int]) -> list[str]:
    """The cells of a line; numbers to the right."""
    return [
        cell.rjust(width) if name in {"params", "trainable"} else cell.ljust(width)
        for name, cell, width in zip(_HEADER, line, widths, strict=True)
    ]


def _check_depth(max_depth: int) -> None:
    if max_depth < -1:
        raise MisconfigurationError(
            f"max_depth is {max_depth}; expected -1 (everything), 0 (only totals) or more."
        )


@contextmanager
def _modes_of_training(module: nn.Module) -> Iterator[None]:
    """Put the modules into the modes in which an epoch runs, and back: the trainer must find them as they were."""
    before = {child: child.training for child in module.modules()}
    freezing.establish_modes(module)
    yield
    for child, training in before.items():
        child.training = training
