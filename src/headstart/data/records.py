"""Samples by number in files that hold many: only the one that is asked for is read."""

from __future__ import annotations

import io
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from headstart.data.base import Kind
from headstart.data.images import Transform, is_no_damage, read_image, to_rgb
from headstart.errors import DataError

#: What people call the three parts.
PARTS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def files_by_part(files: Sequence[Path], *, source: Path) -> dict[str, list[Path]]:
    """Give files by the part that their names begin with (`train-000.tar`); all under `"all"` where none is of train.

    Args:
        files: The files.
        source: What they were found by, for the message.

    Raises:
        DataError: If some are named for a part and some are not.

    Example:
        >>> found = files_by_part([Path("train-0.parquet"), Path("validation-0.parquet")], source=Path("saved"))
        >>> {part: [file.name for file in files] for part, files in found.items()}
        {'train': ['train-0.parquet'], 'val': ['validation-0.parquet']}
    """
    found: dict[str, list[Path]] = {}
    for file in files:
        name = re.split(r"[-_.]", file.name.casefold())[0]
        found.setdefault(PARTS.get(name, "all"), []).append(file)
    if "all" in found and len(found) > 1:
        raise DataError(
            f"{source}: some files are named for a part ({', '.join(sorted(set(found) - {'all'}))}) and some are not "
            f"({found['all'][0].name}). Name all of them train-..., val-... or test-..., or none."
        )
    if "train" not in found:
        return {"all": list(files)}
    return {part: found[part] for part in ("train", "val", "test") if part in found}


class Records(ABC):
    """Samples by number, from 0.

    Attributes:
        kind: What a sample is.
        may_be_read_by_threads: Whether several may call `read` at a time.
        labels_are_text: Whether labels are kept as text, of which `"1"` may be a name as well as a number.
    """

    kind: Kind
    may_be_read_by_threads = True
    labels_are_text = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, number: int) -> Any:
        """Give a sample: the content of an image file, an image, a text, or a pair of texts.

        Raises:
            Exception: Any, if it cannot be read.
        """

    @abstractmethod
    def place(self, number: int) -> str:
        """Say where a sample stands, for messages."""

    @abstractmethod
    def key(self, number: int) -> str:
        """Give what the split is drawn from."""

    @abstractmethod
    def label(self, number: int) -> str | int:
        """Give the class of a sample: its name, or its number.

        Raises:
            ValueError: If it has none, in words without its place.
        """


class RecordImages(Dataset[Any]):
    """Images by number as a dataset: `dataset[i]` is `transform(image)`, or the RGB image itself without a transform."""

    def __init__(self, records: Records, numbers: Sequence[int], transform: Transform | None = None) -> None:
        self.records = records
        self.numbers = np.asarray(numbers, dtype=np.int64)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Any:
        number = int(self.numbers[index])
        image = as_image(self.records.read(number), place=self.records.place(number))
        return image if self.transform is None else self.transform(image)

    def names(self) -> Iterator[str]:
        """Give the key of each image."""
        return (self.records.key(int(number)) for number in self.numbers)


class RecordTexts(Sequence[Any]):
    """Texts by number; each is read when it is asked for."""

    def __init__(self, records: Records, numbers: Sequence[int]) -> None:
        self.records = records
        self.numbers = np.asarray(numbers, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return self.records.read(int(self.numbers[index]))


def as_image(found: Any, *, place: str) -> Any:
    """Give what was read as an RGB image.

    Raises:
        DataError: If it is damaged or no image.
    """
    try:
        return read_image(io.BytesIO(found)) if isinstance(found, bytes) else to_rgb(found)
    except Exception as error:  # a damaged image can raise anything in a decoder
        if is_no_damage(error):
            raise
        raise DataError(f"{place}: {error}") from error


def label_as_text(label: Any) -> str:
    """Give a label as the name of a class: whole numbers as such.

    Raises:
        ValueError: If it is none.

    Example:
        >>> label_as_text(3), label_as_text(" cat ")
        ('3', 'cat')
    """
    return str(name_or_number(label))


def name_or_number(label: Any) -> str | int:
    """Give a label as the name of a class, or as its number where it is a whole number.

    Raises:
        ValueError: If it is none.

    Example:
        >>> name_or_number(3.0), name_or_number("3"), name_or_number(True)
        (3, '3', 'True')
    """
    if hasattr(label, "item"):
        if math.prod(shape := getattr(label, "shape", ())) != 1:
            raise ValueError(
                f"no label: a {type(label).__name__} of shape {tuple(shape)}; expected a name or a number. Of one-hot labels give "
                "the argmax."
            )
        label = label.item()
    if isinstance(label, bytes):
        label = label.decode("utf-8", errors="replace")
    if label is None or isinstance(label, Mapping | list | tuple) or label != label:  # noqa: PLR0124 (NaN)
        raise ValueError(f"no label: {label!r:.80}")
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    text = str(label).strip()
    if not text:
        raise ValueError("no label: an empty one")
    return text
