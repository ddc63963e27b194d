"""What was found in the data: counts, what was set aside and why, and what the user should know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from headstart.errors import DataError
from headstart.words import counted, printable

#: The share of unreadable samples beyond which the data is refused.
MAX_UNREADABLE = 0.01

#: How many files or rows a message lists before it says "and N more".
MAX_LISTED = 8


class SetAside(NamedTuple):
    """A file or a row that is not used, and why."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


def listing(items: Sequence[object], *, limit: int = MAX_LISTED) -> list[str]:
    """Give the first `limit` items as text, and a last entry that counts the rest.

    Example:
        >>> listing(["a", "b", "c"], limit=2)
        ['a', 'b', '... and 1 more']
    """
    shown = [str(item) for item in items[:limit]]
    return [*shown, f"... and {len(items) - limit:,} more"] if len(items) > limit else shown


def refuse_too_many_unreadable(unreadable: Sequence[SetAside], *, num_samples: int, source: str) -> None:
    """Stop where more than 1 % of the samples are unreadable: then the data is damaged, not one file.

    Args:
        unreadable: The samples that could not be read.
        num_samples: All samples, the unreadable ones included.
        source: The folder or table, for the message.

    Raises:
        DataError: Beyond 1 %, with the first of them and their number.
    """
    if len(unreadable) <= MAX_UNREADABLE * num_samples:
        return
    lines = "\n  ".join(listing(unreadable))
    raise DataError(
        f"{source}: {len(unreadable):,} of {counted(num_samples, 'sample')} cannot be used "
        f"({len(unreadable) / num_samples:.1%}; up to {MAX_UNREADABLE:.0%} would be set aside):\n  {lines}\n"
        "Repair or remove them and start again. Nothing was changed."
    )


@dataclass(frozen=True)
class DataReport:
    r"""What a data module found: for the terminal (`lines`) and for a file (`to_dict`).

    Attributes:
        source: The folder or table.
        class_names: The classes, in the order of the model's outputs.
        part_sizes: Number of samples in `"train"`, `"val"`, `"test"`, for the parts that exist.
        part_class_counts: For each of these parts, the number of samples of each class.
        num_hidden: Hidden files and folders (`.ipynb_checkpoints`, `.DS_Store`, `Thumbs.db`), ignored.
        set_aside: Files or rows that are not used: `(place, reason)`.
        notes: What else the user should know, a sentence each.

    Example:
        >>> report = DataReport(
        ...     source="pets",
        ...     class_names=["cat", "dog"],
        ...     part_sizes={"train": 70, "val": 15, "test": 15},
        ...     part_class_counts={"train": [40, 30], "val": [9, 6], "test": [9, 6]},
        ...     num_hidden=1,
        ...     set_aside=[SetAside("cat/7.jpg", "image file is truncated")],
        ... )
        >>> print("\n".join(report.lines()))
        pets: 100 samples in 2 classes: 70 train, 15 val, 15 test
        train part: cat 40, dog 30
        1 hidden file or folder ignored
        1 set aside:
          cat/7.jpg: image file is truncated
    """

    source: str
    class_names: list[str]
    part_sizes: dict[str, int]
    part_class_counts: dict[str, list[int]]
    num_hidden: int = 0
    set_aside: list[SetAside] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make names of files printable: they stand in the artefact and on the terminal."""
        places = [SetAside(printable(place), printable(reason)) for place, reason in self.set_aside]
        words = {
            "source": printable(self.source),
            "set_aside": places,
            "notes": [*map(printable, self.notes)],
        }
        for name, value in words.items():
            object.__setattr__(self, name, value)  # frozen

    @property
    def num_samples(self) -> int:
        """Samples in use, all parts together."""
        return sum(self.part_sizes.values())

    def lines(self) -> list[str]:
        """Give the report as lines for a terminal; a long list is cut and says how much was left out."""
        sizes = ", ".join(f"{size:,} {part}" for part, size in self.part_sizes.items())
        samples = counted(self.num_samples, "sample")
        classes = counted(len(self.class_names), "class", plural="classes")
        lines = [f"{self.source}: {samples} in {classes}: {sizes}"]
        for part, counts in list(self.part_class_counts.items())[:1]:  # the part that is learnt from
            by_class = [
                f"{name} {count:,}" for name, count in zip(self.class_names, counts, strict=True) if count
            ]
            lines.append(f"{part} part: " + ", ".join(listing(by_class, limit=20)))
        if self.num_hidden:
            hidden = counted(self.num_hidden, "hidden file or folder", plural="hidden files or folders")
            lines.append(f"{hidden} ignored")
        if self.set_aside:
            lines.append(f"{len(self.set_aside):,} set aside:")
            lines += [f"  {line}" for line in listing(self.set_aside)]
        return [*lines, *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """Give everything, uncut, as plain types for JSON."""
        return {
            "source": self.source,
            "num_samples": self.num_samples,
            "class_names": list(self.class_names),
            "part_sizes": dict(self.part_sizes),
            "part_class_counts": {part: list(counts) for part, counts in self.part_class_counts.items()},
            "num_hidden": self.num_hidden,
            "set_aside": [{"place": place, "reason": reason} for place, reason in self.set_aside],
            "notes": list(self.notes),
        }
