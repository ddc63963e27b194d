"""`DatasetData`: datasets of one's own."""

from __future__ import annotations

import shutil
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from headstart.data.record_data import Part, RecordData
from headstart.data.records import Records, name_or_number
from headstart.data.shards import Shards
from headstart.data.spool import write_shards
from headstart.errors import DataError, MisconfigurationError


class DatasetData(RecordData):
    """Datasets of one's own: `dataset[i]` is `(image, label)` or `(text, label)`, `len(dataset)` how many there are.

    What has no index, such as a torch `IterableDataset` or a function that gives a generator, is a stream: it is gone through
    once and written into tar files (`write_shards`), from which samples are read by number. Memory holds one sample at a
    time.

    An image is a PIL image or the content of an image file, and is turned upright (EXIF); a pair of texts is a tuple; a label
    is a name, or a whole number (into `class_names` where they are given; for a stream, which keeps labels as text, these names
    should be no numbers). Each sample is read once up front, in the thread that asks, as torch does; one that raises is set
    aside. Samples must not be augmented: the model's preprocessing does that.

    Args:
        train: The dataset to train on; without `val`, and without `test`, they are cut from it.
        val: The dataset to choose the best model with.
        test: The dataset to test with.
        spool: The folder in which streams are written; `None` takes a temporary one, which is removed with this object.
        settings: See `RecordData`; `class_names` among them.

    Example:
        >>> data = DatasetData([("good %d" % n, 1) for n in range(9)] + [("bad %d" % n, 0) for n in range(9)],
        ...                    class_names=["bad", "good"], test_fraction=0)
        >>> data.kind, data.class_names, data.report.part_sizes
        ('text', ['bad', 'good'], {'train': 16, 'val': 2})
    """

    def __init__(
        self,
        train: Any,
        val: Any = None,
        test: Any = None,
        *,
        source: str | None = None,
        spool: str | Path | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(source or f"a {type(train).__name__}", **settings)
        given = {"train": train, "val": val, "test": test}
        self._given = {name: dataset for name, dataset in given.items() if dataset is not None}
        self._spool = spool
        for name, dataset in self._given.items():
            if not (has_index(dataset) or callable(dataset) or hasattr(dataset, "__iter__")):
                raise MisconfigurationError(
                    f"{name} is a {type(dataset).__name__}; expected a dataset with an index and a length, or a stream of samples."
                )

    def _open(self) -> list[Part]:
        is_whole = set(self._given) == {"train"}
        found = []
        for name, dataset in self._given.items():
            if has_index(dataset):
                records: Records = _Items(dataset, name) if len(dataset) else Shards([], set_aside=[])
            else:
                records = self._spooled(dataset, name)
            found.append(Part("all" if is_whole else name, records))
        return found

    def _spooled(self, dataset: Any, name: str) -> Records:
        """Write a stream into tar files, and give its samples by number."""
        if self._spool is None:
            self._spool = tempfile.mkdtemp(prefix="headstart-")
            weakref.finalize(self, shutil.rmtree, self._spool, ignore_errors=True)
        stream = dataset() if callable(dataset) else dataset
        files, set_aside = write_shards(stream, self._spool, prefix=name)
        self._found_early += set_aside
        return Shards(files, set_aside=self._found_early)


def has_index(dataset: Any) -> bool:
    """Whether samples can be asked for by number: not those of a stream, which may have a method that raises."""
    from torch.utils.data import IterableDataset

    return (
        hasattr(dataset, "__getitem__")
        and hasattr(dataset, "__len__")
        and not isinstance(dataset, IterableDataset)
    )


class _Items(Records):
    """The samples of a dataset of one's own."""

    # torch reads a dataset in one thread, and so it may seek in a file that it holds open.
    may_be_read_by_threads = False

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset = dataset
        self._name = name
        first = self._sample(0)[0]
        self.kind = "text" if isinstance(first, str | tuple | list) else "images"

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, number: int) -> Any:
        """Give the image or the text."""
        found = self._sample(number)[0]
        return tuple(found) if isinstance(found, list) else found

    def place(self, number: int) -> str:
        """Say which sample it is."""
        return f"{self._name}, sample {number}"

    def key(self, number: int) -> str:
        """Give the number: samples have no other name."""
        return self.place(number)

    def label(self, number: int) -> str | int:
        """Give the class."""
        return name_or_number(self._sample(number)[1])

    def _sample(self, number: int) -> Any:
        sample = self._dataset[number]
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise DataError(
                f"{self.place(number)} is a {type(sample).__name__}; expected (image, label) or (text, label)."
            )
        return sample


def data_of(
    name: str,
    *,
    text_columns: str | Sequence[str] | None = None,
    label_column: str | None = None,
    **settings: Any,
) -> RecordData:
    """Give the data that a function gives: `package.module:function`.

    Args:
        name: The function; it is called without arguments, and gives a dataset, a dictionary of the arguments of `DatasetData`
            (`train`, `val`, `test`, `class_names`), or a dataset of the library `datasets`.
        text_columns: Of such a dataset; see `HuggingFaceData`.
        label_column: Of such a dataset.
        settings: See `RecordData`.

    Raises:
        DataError: If there is no such function, or what it gives is none of these.
    """
    module_name, _, function_name = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:  # as for a program that is started here
        sys.path.insert(0, folder)
    try:
        function = getattr(import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise DataError(f"{name!r} names no function: {error}. Expected package.module:function.") from error
    found = function()
    if type(found).__module__.partition(".")[0] == "datasets":
        from headstart.data.huggingface import HuggingFaceData

        return HuggingFaceData(found, text_columns=text_columns, label_column=label_column, **settings)
    if not isinstance(found, Mapping):
        found = {"train": found}
    known = {"train", "val", "test", "class_names"}
    if "train" not in found or set(found) - known:
        raise DataError(
            f"{name} gives the names {', '.join(map(str, found))}; expected train, and perhaps val, test and class_names."
        )
    return DatasetData(**found, source=name, **settings)
