"""`RecordData`: the base of the data modules whose samples lie many in a file, or behind a dataset."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.pool import AsyncResult, ThreadPool
from pathlib import Path
from typing import Any, Self

from torch.utils.data import Dataset

from headstart.data.base import Kind, Reading, Sample
from headstart.data.image_data import ImageData
from headstart.data.images import LabelledImages, is_no_damage, truncated_is_an_error, why_unreadable
from headstart.data.records import RecordImages, Records, RecordTexts
from headstart.data.report import SetAside, refuse_too_many_unreadable
from headstart.data.text import LabelledTexts, TextCollate, TextRows, Tokenize
from headstart.errors import DataError, MisconfigurationError

# Longer texts are set aside, as those of tables are.
_LONGEST_TEXT = 10_000_000


@dataclass(frozen=True, slots=True)
class Part:
    """Records, and to which part of the data they belong; `"all"` are split."""

    name: str
    records: Records


class RecordData(ImageData):
    """Images or texts that lie many in a file, or behind a dataset; what they are shows when they are read.

    Everything is read and checked once up front, and afterwards sample by sample: memory holds about 200 bytes a sample.

    Args:
        source: Where they come from.
        class_names: The classes in their order, if labels are their numbers; `None` takes the labels that there are.
        batch_size: Samples a batch.
        val_fraction: Share of validation where it is cut here.
        test_fraction: Share of test where it is cut here; 0 for none.
        seed: Of the split.
        num_workers: Loader processes; 0 reads in this one.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        class_names: Sequence[str] | None = None,
        batch_size: int = 32,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            source,
            batch_size=batch_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            num_workers=num_workers,
        )
        self.tokenize: Tokenize | None = None
        self._given_names = None if class_names is None else [str(name) for name in class_names]
        self._opened: list[Part] | None = None
        self._found_early: list[SetAside] = []  # while the files were opened

    def evaluate_with(self, class_names: Sequence[str]) -> Self:
        """Give this data as one test part, with the classes of a trained model; where it is split, its test part alone.

        Without a test part, the last part that there is is taken, and the report says so.

        Args:
            class_names: The model's classes, in its order.
        """
        self._known_classes = list(class_names)
        return self

    @abstractmethod
    def _open(self) -> list[Part]:
        """Give the parts, unchecked; what cannot be used is put into `_found_early`."""

    @property
    def kind(self) -> Kind:
        """What the samples are."""
        return max(self._parts, key=lambda part: len(part.records)).records.kind  # an empty part has none

    def set_preprocessing(self, preprocessing: Any) -> None:
        """Do to samples what a backbone's preprocessing says."""
        if self.kind == "images":
            super().set_preprocessing(preprocessing)
        else:
            self.tokenize = preprocessing

    @property
    def _parts(self) -> list[Part]:
        if self._opened is None:
            self._opened = self._open()
            kinds = {part.records.kind for part in self._opened if len(part.records)}
            if not kinds:
                unusable = self._found_early
                refuse_too_many_unreadable(unusable, num_samples=len(unusable), source=str(self.source))
                raise DataError(f"{self.source}: no sample was found.")
            if len(kinds) > 1:
                raise DataError(f"{self.source}: some parts hold images and some texts.")
        return self._opened

    def _read(self, *, for_evaluation: bool) -> Reading:
        parts, reading = self._parts, Reading({})
        if for_evaluation:
            chosen = next((part for part in parts if part.name in {"test", "all"}), parts[-1])
            if chosen.name not in {"test", "all"}:
                reading.notes.append(f"There is no test part: the {chosen.name} part is evaluated.")
            parts = self._opened = [Part("all", chosen.records)]
        unusable = list(self._found_early)
        num_read = len(unusable)
        for part in parts:
            samples = reading.parts.setdefault(part.name, [])
            num_read += len(part.records)
            for number, reason in enumerate(_check(part.records)):
                place = part.records.place(number)
                try:
                    if reason is not None:
                        raise ValueError(reason)  # noqa: TRY301 (one way for both kinds of reason)
                    label = self._name_of(number, part.records)
                except ValueError as error:
                    unusable.append(SetAside(place, str(error)))
                    continue
                samples.append(Sample(number, label, place, part.records.key(number)))
        refuse_too_many_unreadable(unusable, num_samples=num_read, source=str(self.source))
        reading.set_aside += unusable
        return reading

    def _split(self, reading: Reading) -> dict[str, list[Sample]]:
        # Another one may be cut from train, whose records are then those of the test part.
        if reading.parts.get("test") == []:
            self._opened = [part for part in self._parts if part.name != "test"]
        return super()._split(reading)

    def _name_of(self, number: int, records: Records) -> str:
        """Give the class of a sample by its name."""
        label, names = records.label(number), self._given_names
        if names is None:
            return str(label)
        may_be_number = isinstance(label, int) or (records.labels_are_text and label.isdecimal())
        numbered = names[int(label)] if may_be_number and 0 <= int(label) < len(names) else None
        named = label if isinstance(label, str) and label in names else None
        if named and numbered and named != numbered:
            raise DataError(
                f"{records.place(number)}: the label {label!r} is kept as text, and is both the name of a class and the number of "
                f"the class {numbered!r}. If labels are names, leave class_names out; if they are numbers, give names that are none."
            )
        found = named or numbered
        if found is None:
            raise ValueError(
                f"a class that is none: {label!r}; there are {len(names)}: {', '.join(names[:5])}"
            )
        return found

    def _labelled_set(self, part: str, samples: list[Sample], targets: list[int]) -> Dataset[Any]:
        records, numbers = self._records_of(part), [sample.value for sample in samples]
        if self.kind == "text":
            return LabelledTexts(RecordTexts(records, numbers), targets)
        return LabelledImages(RecordImages(records, numbers), targets, transform=self.transform_of(part))

    def _inputs_set(self, samples: list[Sample]) -> Dataset[Any]:
        part = "test" if "test" in self._prepared.sets else "val"
        records, numbers = self._records_of(part), [sample.value for sample in samples]
        if self.kind == "text":
            places = [sample.place for sample in samples]
            return TextRows([records.read(number) for number in numbers], places)
        return RecordImages(records, numbers, self.eval_transform)

    def _plain_train_set(self) -> Dataset[Any]:
        return self._prepared.sets["train"] if self.kind == "text" else super()._plain_train_set()

    def _collate(self, *, labelled: bool) -> Any:
        if self.kind == "images":
            return super()._collate(labelled=labelled)
        assert self.tokenize is not None
        return TextCollate(self.tokenize, labelled=labelled)

    def _check_ready(self, part: str) -> None:
        if self.kind == "images":
            super()._check_ready(part)
        elif self.tokenize is None:
            raise MisconfigurationError(
                "tokenize is not set. Set it to what the backbone wants: data.tokenize = model.preprocessing"
            )

    def samples(self, part: str) -> Sequence[Sample]:
        """Give the samples of a part, each read when it is asked for."""
        return _ReadSamples(self._records_of(part), self._prepared.samples[part])

    def _records_of(self, part: str) -> Records:
        """Give the records that a part was cut from."""
        by_name = {each.name: each.records for each in self._parts}
        return by_name.get(part) or by_name.get("train") or next(iter(by_name.values()))


class _ReadSamples(Sequence[Sample]):
    """Samples with what they are in the place of their number."""

    def __init__(self, records: Records, samples: Sequence[Sample]) -> None:
        self._records = records
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        sample = self._samples[index]
        return replace(sample, value=self._records.read(sample.value))


def _check(records: Records) -> Iterator[str | None]:
    """Give for each sample the reason why it cannot be used, or `None`; each is read, images are decoded on several threads."""
    num_threads = min(8, (os.cpu_count() or 1) + 1)
    numbers = range(len(records))
    with truncated_is_an_error(), ThreadPool(num_threads) as pool:
        if records.may_be_read_by_threads:
            yield from pool.imap(lambda number: _read(records, number)(), numbers, chunksize=16)
            return
        # Not `imap`, which would read in a thread of its own, and all that there is.
        waiting: deque[AsyncResult[str | None]] = deque()
        for number in numbers:
            waiting.append(pool.apply_async(_read(records, number)))
            if len(waiting) > 2 * num_threads:
                yield waiting.popleft().get()
        yield from (each.get() for each in waiting)


def _read(records: Records, number: int) -> Callable[[], str | None]:
    """Read a sample; give what says why it cannot be used, or `None`, which is work of its own: an image is decoded."""
    try:
        found = records.read(number)
    except Exception as error:  # whatever the code behind a dataset raises
        if is_no_damage(error):
            raise
        reason = f"cannot be read: {type(error).__name__}: {error}"
        return lambda: reason
    return partial(_why_unusable, found, records.kind)


def _why_unusable(found: Any, kind: Kind) -> str | None:
    if kind == "images":
        if isinstance(found, bytes):
            return why_unreadable(io.BytesIO(found))
        return None if hasattr(found, "convert") else f"a {type(found).__name__} where an image was expected"
    texts = found if isinstance(found, tuple) else (found,)
    for text in texts:
        if not isinstance(text, str):
            return f"a {type(text).__name__} where a text was expected"
        if not text.strip():
            return "an empty text"
        if len(text) > _LONGEST_TEXT:
            return f"a text of more than {_LONGEST_TEXT:,} characters"
    return None
