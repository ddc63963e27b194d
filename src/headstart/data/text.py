"""`TextTableData`: a table with a column of texts, or two, and a column of labels."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from headstart.data.base import ClassificationData, Kind, Reading, Sample
from headstart.data.columns import choose_label_column, choose_text_columns
from headstart.data.report import SetAside, refuse_too_many_unreadable
from headstart.data.table import read_table
from headstart.errors import DataError, MisconfigurationError

#: A text, or a pair of texts.
Text = str | tuple[str, str]

#: From texts (or pairs) to tensors whose first dimension is the batch.
Tokenize = Callable[[Any], dict[str, Tensor]]


# Half of a character outside the basic plane, as broken JSON escapes leave it: no tokenizer takes it.
_SURROGATE = re.compile("[\ud800-\udfff]")


class TextRows(Dataset[Any]):
    """Texts as a dataset: `dataset[i]` is a text or a pair of texts.

    Args:
        texts: The texts.
        places: Where each comes from (`"line 7"`); `None` numbers them from 1.
    """

    def __init__(self, texts: Sequence[Text], places: Sequence[str] | None = None) -> None:
        self.texts = list(texts)
        self.places = [f"row {n}" for n in range(1, len(self.texts) + 1)] if places is None else list(places)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Text:
        return self.texts[index]


class LabelledTexts(Dataset[Any]):
    """Texts and their classes as a dataset: `dataset[i]` is `(text or pair, class index)`."""

    def __init__(self, texts: Sequence[Text], targets: Sequence[int]) -> None:
        # Others may be read one at a time.
        self.texts = list(texts) if isinstance(texts, list | tuple) else texts
        self.targets = list(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Text, int]:
        return self.texts[index], self.targets[index]


class TextCollate:
    """From samples to a batch: the texts tokenized together, so that they are padded to the longest of the batch.

    Args:
        tokenize: From texts to tensors.
        labelled: Whether samples are `(text, class index)`; the batch is then `(inputs, targets)`.

    Example:
        >>> def lengths(texts):
        ...     return {"length": torch.tensor([len(text) for text in texts])}
        >>> TextCollate(lengths, labelled=True)([("good", 1), ("bad", 0)])
        ({'length': tensor([4, 3])}, tensor([1, 0]))
    """

    def __init__(self, tokenize: Tokenize, *, labelled: bool) -> None:
        self.tokenize = tokenize
        self.labelled = labelled

    def __call__(self, samples: Sequence[Any]) -> Any:
        """Give the batch of these samples."""
        if not self.labelled:
            return self.tokenize(list(samples))
        texts, targets = zip(*samples, strict=True)
        return self.tokenize(list(texts)), torch.tensor(targets, dtype=torch.int64)


class TextTableData(ClassificationData):
    r"""The texts of a table, as batches of `tokenize(texts)` and int64 targets (B,).

    The table is split here, stratified and seeded. Rows without a text or a label, and broken ones, are set aside and
    listed in `report`; beyond 1 % of them the data is refused.

    Args:
        path: CSV, TSV, JSON lines or Parquet, by the end of the name.
        tokenize: From `list[str]`, or `list[tuple[str, str]]` for pairs, to a dictionary of tensors; may be set later.
        text_columns: One column, or two for pairs such as premise and hypothesis; `None` looks for a common name.
        label_column: The column of labels; `None` looks for a common name.
        batch_size: Texts a batch.
        val_fraction: Share of validation.
        test_fraction: Share of test; 0 for none.
        seed: Of the split.
        num_workers: Loader processes; 0 reads in this one.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "reviews.csv")
        >>> rows = [f"{word} {n},{word}" for n in range(10) for word in ("good", "bad")]
        >>> _ = path.write_text("\n".join(["review,sentiment", *rows]))
        >>> data = TextTableData(path)
        >>> data.class_names, data.report.part_sizes, data.text_columns
        (['bad', 'good'], {'train': 12, 'val': 4, 'test': 4}, ('review',))
    """

    has_columns = True

    def __init__(
        self,
        path: str | Path,
        *,
        tokenize: Tokenize | None = None,
        text_columns: str | Sequence[str] | None = None,
        label_column: str | None = None,
        batch_size: int = 32,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            path,
            batch_size=batch_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            num_workers=num_workers,
        )
        self.tokenize = tokenize
        self._wanted = (text_columns, label_column)
        self._chosen: tuple[tuple[str, ...], str] | None = None

    @classmethod
    def for_evaluation(
        cls,
        path: str | Path,
        *,
        class_names: Sequence[str],
        tokenize: Tokenize | None = None,
        text_columns: str | Sequence[str] | None = None,
        label_column: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> Self:
        """Give all rows of a table as one test part, with the classes of a trained model.

        Args:
            path: The table.
            class_names: The model's classes, in its order.
            tokenize: From texts to tensors; may be set later.
            text_columns: The columns of the texts; `None` looks for a common name.
            label_column: The column of labels; `None` looks for a common name.
            batch_size: Texts a batch.
            num_workers: Loader processes.

        Raises:
            DataError: At `prepare`, if there is a class that the model does not have.
        """
        data = cls(
            path,
            tokenize=tokenize,
            text_columns=text_columns,
            label_column=label_column,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        data._known_classes = list(class_names)
        return data

    @property
    def kind(self) -> Kind:
        """What the samples are."""
        return "text"

    def set_preprocessing(self, preprocessing: Any) -> None:
        """Tokenize as a backbone's preprocessing says."""
        self.tokenize = preprocessing

    @property
    def column_names(self) -> list[str]:
        """The columns of the table, which is read for them."""
        return list(read_table(self.source).columns)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The column of texts, or the two of pairs, as named or found."""
        return self._columns[0]

    @property
    def label_column(self) -> str:
        """The column of labels, as named or found."""
        return self._columns[1]

    @property
    def _columns(self) -> tuple[tuple[str, ...], str]:
        self.prepare()
        assert self._chosen is not None
        return self._chosen

    def _read(self, *, for_evaluation: bool) -> Reading:
        source, (wanted_texts, wanted_label) = str(self.source), self._wanted
        table = read_table(self.source)
        label_column = choose_label_column(
            table.columns, wanted_label, text_columns=wanted_texts, source=source
        )
        text_columns = choose_text_columns(
            table.columns, wanted_texts, label_column=label_column, source=source
        )
        self._chosen = text_columns, label_column
        samples: list[Sample] = []
        unreadable = list(table.set_aside)
        for place, values in table.rows:
            row = dict(zip(table.columns, values, strict=True))
            try:
                text = _texts_of(row, text_columns)
                label = _label_of(row, label_column)
            except ValueError as error:
                unreadable.append(SetAside(place, str(error)))
                continue
            key = text if isinstance(text, str) else "\x1f".join(text)
            samples.append(Sample(text, label, place, key))
        num_rows = len(table.rows) + len(table.set_aside)
        refuse_too_many_unreadable(unreadable, num_samples=num_rows, source=source)
        if not for_evaluation:
            _refuse_labels_that_are_none(samples, label_column, table.columns, source)
        notes = list(table.notes)
        if wanted_texts is None or wanted_label is None:
            named = " and ".join(map(repr, text_columns))
            notes.append(f"Texts are taken from {named}, labels from {label_column!r}.")
        return Reading({"all": samples}, set_aside=unreadable, notes=notes)

    def _labelled_set(self, part: str, samples: list[Sample], targets: list[int]) -> Dataset[Any]:
        return LabelledTexts([sample.value for sample in samples], targets)

    def _inputs_set(self, samples: list[Sample]) -> Dataset[Any]:
        return TextRows([sample.value for sample in samples], [sample.place for sample in samples])

    def _collate(self, *, labelled: bool) -> Any:
        assert self.tokenize is not None
        return TextCollate(self.tokenize, labelled=labelled)

    def _check_ready(self, part: str) -> None:
        if self.tokenize is None:
            raise MisconfigurationError(
                "tokenize is not set. Set it to what the backbone wants: data.tokenize = model.preprocessing"
            )


def read_rows(
    path: str | Path, *, text_columns: str | Sequence[str] | None = None
) -> tuple[TextRows, list[SetAside]]:
    """Give the texts of a table to predict on, and the rows that have none, with the reason.

    Args:
        path: The table; it needs no labels.
        text_columns: One column, or two for pairs; `None` looks for a common name, or takes the only column.

    Returns:
        The texts with their places, and what was set aside. Every row is in one of the two.

    Raises:
        DataError: If the file is no table or has no such column.
    """
    table = read_table(path)
    names = choose_text_columns(table.columns, text_columns, source=str(path))
    texts: list[Text] = []
    places: list[str] = []
    set_aside = list(table.set_aside)
    for place, values in table.rows:
        try:
            texts.append(_texts_of(dict(zip(table.columns, values, strict=True)), names))
        except ValueError as error:
            set_aside.append(SetAside(place, str(error)))
        else:
            places.append(place)
    return TextRows(texts, places), set_aside


def _texts_of(row: dict[str, Any], columns: Sequence[str]) -> Text:
    texts = [_as_text(row[name], column=name) for name in columns]
    for name, text in zip(columns, texts, strict=True):
        if not text.strip():
            raise ValueError(f"empty text in {name!r}")
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


def _label_of(row: dict[str, Any], column: str) -> str:
    label = _as_text(row[column], column=column).strip()
    if not label:
        raise ValueError(f"no label in {column!r}")
    return label


def _as_text(value: Any, *, column: str) -> str:
    """Give a cell as text: whole numbers as such, and an empty cell as an empty text."""
    if isinstance(value, str):
        if _SURROGATE.search(value):
            raise ValueError(f"half a character (a lone surrogate) in {column!r}")
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of whole numbers with gaps is stored as floating point
    if isinstance(value, list | dict):
        what = "a list" if isinstance(value, list) else "a JSON object"
        raise ValueError(f"{what} in {column!r}, not a text")  # noqa: TRY004 - one kind of error for a bad row
    return str(value)


def _refuse_labels_that_are_none(
    samples: Sequence[Sample], label_column: str, columns: Sequence[str], source: str
) -> None:
    """Stop where the column holds nearly as many values as rows: an id or a measurement, not a class."""
    sizes = Counter(sample.label for sample in samples)
    if len(sizes) > 2 and len(sizes) > len(samples) / 2:
        raise DataError(
            f"{source}: column {label_column!r} has {len(sizes):,} different values in {len(samples):,} rows "
            f"(such as {', '.join(repr(name) for name in list(sizes)[:3])}): these are no classes. "
            f"Columns: {', '.join(map(repr, columns))}. Name the right one with --label_column."
        )
