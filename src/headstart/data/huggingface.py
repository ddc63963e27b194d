"""`HuggingFaceData`: a dataset of the library `datasets`, from a folder, from files, or as an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.data.columns import choose_label_column, choose_text_columns
from headstart.data.record_data import Part, RecordData
from headstart.data.records import PARTS, Records, files_by_part, name_or_number
from headstart.errors import DataError, MisconfigurationError, missing_dependency

_FILES = {".arrow": "arrow", ".parquet": "parquet"}


class HuggingFaceData(RecordData):
    """Images or texts of a dataset of the library `datasets`.

    Rows stay where they are, mapped into memory, and are read one at a time. The parts `train`, `validation` and `test` are
    taken as they are, those of files named `train-...`, `validation-...` and `test-...` too; a dataset without parts is split
    by class and row. Classes have the names that the column of labels knows.

    Args:
        source: A folder that `save_to_disk` made, an `.arrow` or `.parquet` file, a folder of those; or a `Dataset` or
            `DatasetDict`.
        text_columns: One column, or two for pairs; `None` takes the column of images, or looks for a common name.
        label_column: The column of labels; `None` looks for a common name.
        settings: See `RecordData`.
    """

    has_columns = True

    def __init__(
        self,
        source: Any,
        *,
        text_columns: str | Sequence[str] | None = None,
        label_column: str | None = None,
        **settings: Any,
    ) -> None:
        is_path = isinstance(source, str | Path)
        super().__init__(source if is_path else f"a {type(source).__name__}", **settings)
        self._given = None if is_path else source
        self._wanted = (text_columns, label_column)

    @property
    def column_names(self) -> list[str]:
        """The columns of the dataset, of its first part where it has parts."""
        found = self._load() if self._given is None else self._given
        return list((next(iter(found.values())) if isinstance(found, Mapping) else found).features)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The column of texts, or the two of pairs, as named or found; none where the samples are images."""
        rows = self._first_rows
        return rows.columns if rows.kind == "text" else ()

    @property
    def label_column(self) -> str:
        """The column of labels, as named or found."""
        return self._first_rows.label_column

    @property
    def _first_rows(self) -> Rows:
        rows = self._parts[0].records
        assert isinstance(rows, Rows)
        return rows

    def _open(self) -> list[Part]:
        found = self._load() if self._given is None else self._given
        parts = dict(found) if isinstance(found, Mapping) else {"all": found}
        name_of: dict[str, str] = {}
        for name in map(str, parts):
            part = PARTS.get(name.casefold(), name)
            if part in name_of:
                raise DataError(f"{self.source} holds both {name_of[part]!r} and {name!r}: keep one of them.")
            name_of[part] = name
        named = dict(zip(name_of, parts.values(), strict=True))
        if set(named) != {"all"} and ("train" not in named or set(named) - {"train", "val", "test"}):
            raise DataError(
                f"{self.source} has the parts {', '.join(map(repr, parts))}; expected train, and perhaps validation and test. Give "
                "one of them by itself, or rename them."
            )
        order = [name for name in ("all", "train", "val", "test") if name in named]
        return [Part(name, self._rows_of(named[name], name)) for name in order]

    def _load(self) -> Any:
        datasets = import_datasets()
        found = [self.source] if self.source.is_file() else sorted(self.source.glob("*"))
        files = [path for path in found if path.suffix in _FILES]
        is_saved = is_saved_dataset(self.source)
        kinds = {_FILES[path.suffix] for path in files}
        if not is_saved and len(kinds) != 1:
            raise DataError(
                f"{self.source} holds {'both' if kinds else 'no'} .arrow and .parquet files: expected those of one kind."
            )
        # To the library "all" is no name of a part: what has none is its train.
        by_part = {} if is_saved else files_by_part(files, source=self.source)
        is_whole = "all" in by_part
        data_files = {"train" if is_whole else part: list(map(str, each)) for part, each in by_part.items()}
        try:
            if is_saved:
                return datasets.load_from_disk(str(self.source))
            loaded = datasets.load_dataset(kinds.pop(), data_files=data_files)
            return loaded["train"] if is_whole else loaded
        except Exception as error:  # the library raises what the file formats below it do
            raise DataError(
                f"{self.source} cannot be read by the library datasets: {type(error).__name__}: {error}. Was it copied whole?"
            ) from error

    def _rows_of(self, dataset: Any, name: str) -> Rows:
        source = f"{self.source}, {name} part" if name != "all" else str(self.source)
        if not hasattr(dataset, "features") or not hasattr(dataset, "__len__"):
            raise MisconfigurationError(
                f"{source} is a {type(dataset).__name__}; expected a Dataset with an index. A stream (IterableDataset) is for "
                "DatasetData: DatasetData(((row['image'], row['label']) for row in stream))."
            )
        columns = list(dataset.features)
        texts, label = self._wanted
        images = [] if texts is not None else [each for each in columns if _is_image(dataset.features[each])]
        if len(images) > 1:
            images = [each for each in images if each == "image"]
        label_column = choose_label_column(
            [each for each in columns if each not in images],
            label,
            text_columns=texts if images == [] else images,
            source=source,
        )
        chosen = tuple(images) or choose_text_columns(
            columns, texts, label_column=label_column, source=source
        )
        return Rows(dataset, chosen, label_column, is_images=bool(images), name=name)


class Rows(Records):
    """The rows of a dataset.

    Args:
        dataset: Of the library `datasets`.
        columns: That of the images, or one or two of texts.
        label_column: That of the labels.
        is_images: Whether the column holds images.
        name: Of the part.
    """

    def __init__(
        self, dataset: Any, columns: tuple[str, ...], label_column: str, *, is_images: bool, name: str
    ) -> None:
        self.kind = "images" if is_images else "text"
        self.columns = columns
        self._name = name
        feature = dataset.features[label_column]
        self._names: list[str] | None = getattr(feature, "names", None)
        self.label_column = label_column
        if is_images:  # as the bytes of a file, which are decoded under our own guards
            dataset = dataset.cast_column(columns[0], import_datasets().Image(decode=False))
        self._dataset = dataset.select_columns([*columns, label_column])

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, number: int) -> Any:
        """Give the content of the image file, the text, or the pair."""
        row = self._dataset[number]
        if self.kind == "text":
            texts = tuple(row[name] for name in self.columns)
            return texts if len(texts) == 2 else texts[0]
        found = row[self.columns[0]]
        if not isinstance(found, Mapping):
            raise ValueError(f"no image: {found!r:.80}")  # noqa: TRY004 (one kind of error for a bad row)
        content = found.get("bytes")
        return content if content is not None else Path(found["path"]).read_bytes()

    def place(self, number: int) -> str:
        """Say where a sample stands."""
        return f"row {number}" if self._name == "all" else f"{self._name}, row {number}"

    def key(self, number: int) -> str:
        """Give the row: rows have no other name."""
        return self.place(number)

    def label(self, number: int) -> str | int:
        """Give the class, by its name where the column knows names."""
        label = self._dataset[number][self.label_column]
        if self._names is not None:
            if label is None or not 0 <= label < len(self._names):
                raise ValueError(f"no label: {label!r}")
            return str(self._names[label])
        return name_or_number(label)


def is_saved_dataset(path: Path) -> bool:
    """Whether `save_to_disk` made a folder."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    )


def holds_images(path: Path) -> bool:
    """Whether a Parquet file has a column of images, as the library `datasets` writes them.

    Raises:
        MissingDependencyError: If `pyarrow` is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise missing_dependency("pyarrow", needed_for="Parquet files", extra="tables") from None
    try:
        schema = parquet.read_schema(path)
    except (pa.ArrowException, OSError):
        return False  # who reads it will say what is wrong
    return any(
        pa.types.is_struct(field.type) and {each.name for each in field.type} == {"bytes", "path"}
        for field in schema
    )


def import_datasets() -> Any:
    """Give the library.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise missing_dependency("datasets", needed_for="Hugging Face datasets", extra="datasets") from None
    return datasets


def _is_image(feature: Any) -> bool:
    if type(feature).__name__ == "Image":
        return True
    return isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}
