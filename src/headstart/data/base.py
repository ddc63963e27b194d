"""What folders and tables have in common: classes, splits, the report, and the loaders."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self
from unicodedata import normalize

import torch
from torch.utils.data import DataLoader, Dataset

from headstart.data.report import DataReport, SetAside, listing
from headstart.data.splits import check_fractions, split_by_class
from headstart.datamodule import LightningDataModule
from headstart.errors import DataError, MisconfigurationError, did_you_mean
from headstart.words import counted

# A loader's process that gives no batch for so long hangs: on a network file, on a lock.
_LONGEST_WAIT = 600.0  # seconds


Kind = Literal["images", "text"]


@dataclass(frozen=True, slots=True)  # there may be a million of them
class Sample:
    """One readable sample.

    Attributes:
        value: The image's path, the text, the pair of texts, or the number of a record.
        label: The name of its class.
        place: Its file or row, for messages.
        key: What the split is drawn from: the same on every machine and in every order.
    """

    value: Any
    label: str
    place: str
    key: str


@dataclass
class Reading:
    """What a folder or a table held.

    Attributes:
        parts: Samples under `"train"`, `"val"`, `"test"` where the data is split, else all under `"all"`.
        set_aside: What was not used, and why.
        num_hidden: Number of hidden files and folders.
        notes: What else the user should know.
    """

    parts: dict[str, list[Sample]]
    set_aside: list[SetAside] = field(default_factory=list)
    num_hidden: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Prepared:
    class_names: list[str]
    samples: dict[str, list[Sample]]
    sets: dict[str, Dataset[Any]]
    report: DataReport


class ClassificationData(LightningDataModule):
    """Samples with one class each, checked, split, and given out in batches `(inputs, targets)`.

    `ImageFolderData` and `TextTableData` read folders and tables, `HuggingFaceData`, `WebDatasetData` and `DatasetData` what is
    kept in other ways. Everything is read at the first use of an attribute that
    needs it, or at `prepare()`; a second call does nothing.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        batch_size: int,
        val_fraction: float,
        test_fraction: float,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise MisconfigurationError(f"batch_size={batch_size}: expected 1 or more.")
        check_fractions(val_fraction=val_fraction, test_fraction=test_fraction)
        self.source = Path(source).expanduser()
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.num_workers = num_workers
        self._known_classes: list[str] | None = None

    #: Whether the source has columns, of which that of the labels can be named.
    has_columns = False

    @property
    def column_names(self) -> list[str]:
        """The columns of the source; none where it has none."""
        return []

    # ---- for each kind to say

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """What the samples are."""

    @abstractmethod
    def set_preprocessing(self, preprocessing: Any) -> None:
        """Do to samples what a backbone's preprocessing says: the attribute of a model of `headstart.tasks`."""

    @abstractmethod
    def _read(self, *, for_evaluation: bool) -> Reading:
        """Give what the source holds; for evaluation, only what is to be evaluated, under `"all"`."""

    @abstractmethod
    def _labelled_set(self, part: str, samples: list[Sample], targets: list[int]) -> Dataset[Any]:
        """Give the dataset of a part, with targets."""

    @abstractmethod
    def _inputs_set(self, samples: list[Sample]) -> Dataset[Any]:
        """Give the dataset of samples without targets."""

    @abstractmethod
    def _collate(self, *, labelled: bool) -> Any:
        """Give the function that makes a batch of samples; `None` is torch's own."""

    @abstractmethod
    def _check_ready(self, part: str) -> None:
        """Refuse to make a loader while the transform or the tokenizer is missing."""

    # ---- what was found

    def prepare(self) -> Self:
        """Read, check and split the data now; errors in it are raised here.

        Raises:
            DataError: If the data cannot be used as it is; the message names files or rows.
        """
        _ = self._prepared
        return self

    def setup(self, stage: str) -> None:
        """Prepare the data, once."""
        self.prepare()

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the targets."""
        return self._prepared.class_names

    @property
    def class_counts(self) -> list[int]:
        """Number of samples of each class in the training part (for evaluation: in what is evaluated)."""
        return next(iter(self.report.part_class_counts.values()))

    @property
    def report(self) -> DataReport:
        """What was found, set aside and worth knowing."""
        return self._prepared.report

    @property
    def train_set(self) -> Dataset[Any] | None:
        """The training part; `None` for evaluation."""
        return self._prepared.sets.get("train")

    @property
    def val_set(self) -> Dataset[Any] | None:
        """The validation part; `None` for evaluation."""
        return self._prepared.sets.get("val")

    @property
    def test_set(self) -> Dataset[Any] | None:
        """The test part; `None` where there is none."""
        return self._prepared.sets.get("test")

    def samples(self, part: str) -> Sequence[Sample]:
        """Give the samples of a part that exists (`"train"`, `"val"`, `"test"`), in the order of its dataset."""
        return self._prepared.samples[part]

    def places(self, part: str) -> list[str]:
        """Give the files or rows of a part's samples, in the order of its dataset; no sample is read."""
        return [sample.place for sample in self._prepared.samples[part]]

    @cached_property
    def _prepared(self) -> _Prepared:
        for_evaluation = self._known_classes is not None
        reading = self._read(for_evaluation=for_evaluation)
        _refuse_case_variants(str(self.source), [*_all_samples(reading)], self._known_classes or [])
        if self._known_classes is not None:
            if not reading.parts["all"]:
                raise DataError(f"{self.source} has no usable sample to evaluate. Name data that has some.")
            parts, class_names = {"test": reading.parts["all"]}, self._known_classes
            _refuse_unknown_classes(str(self.source), parts["test"], class_names, known_to="the model")
            if missing := [n for n in class_names if n not in {sample.label for sample in parts["test"]}]:
                reading.notes.append(f"No sample of class {', '.join(listing([repr(n) for n in missing]))}.")
        else:
            parts = self._split(reading)
            class_names = sort_class_names({sample.label for sample in parts["train"]})
            self._check_parts(parts, class_names, reading.notes)
        index = {name: position for position, name in enumerate(class_names)}
        targets = {part: [index[sample.label] for sample in samples] for part, samples in parts.items()}
        counts = {
            part: torch.bincount(
                torch.tensor(targets[part], dtype=torch.int64), minlength=len(class_names)
            ).tolist()
            for part in parts
        }
        report = DataReport(
            source=str(self.source),
            class_names=class_names,
            part_sizes={part: len(samples) for part, samples in parts.items()},
            part_class_counts=counts,
            num_hidden=reading.num_hidden,
            set_aside=reading.set_aside,
            notes=reading.notes,
        )
        sets = {part: self._labelled_set(part, samples, targets[part]) for part, samples in parts.items()}
        return _Prepared(class_names, parts, sets, report)

    def _split(self, reading: Reading) -> dict[str, list[Sample]]:
        """Give train, val and perhaps test: those that the data brings, the others cut from its train."""
        parts = dict(reading.parts)
        if parts.get("test") == []:
            reading.notes.append("The test part that is given has no usable sample: it counts as not given.")
            del parts["test"]
        if parts.get("val") == []:
            raise DataError(
                f"{self.source}: the validation part that is given has no usable sample, so that nothing is left to validate with. "
                "Add samples to it, or leave the part out: then it is cut from train."
            )
        given = "all" not in parts
        if given and "val" in parts:
            return {part: parts[part] for part in ("train", "val", "test") if part in parts}
        samples = parts["train"] if given else parts["all"]
        split = split_by_class(
            [sample.label for sample in samples],
            [sample.key for sample in samples],
            val_fraction=self.val_fraction,
            test_fraction=0 if "test" in parts else self.test_fraction,
            seed=self.seed,
        )
        cut = {part: [samples[i] for i in positions] for part, positions in split._asdict().items()}
        if "test" in parts:
            cut["test"] = parts["test"]
        return {part: samples for part, samples in cut.items() if samples or part != "test"}

    def _check_parts(self, parts: dict[str, list[Sample]], class_names: list[str], notes: list[str]) -> None:
        """Refuse parts that cannot be trained and judged with; note what cannot be judged."""
        if len(class_names) < 2:
            raise DataError(
                f"{self.source} has {'one class' if class_names else 'no class'} to train on"
                f"{f' ({class_names[0]!r})' if class_names else ''}: telling classes apart takes at least two."
            )
        for part in ("val", "test"):
            if part in parts:
                _refuse_unknown_classes(
                    f"{self.source}, {part} part", parts[part], class_names, known_to="train"
                )
        if not parts["val"]:
            raise DataError(
                f"{self.source}: no class has two samples, so that nothing is left to validate with. Add samples."
            )
        by_class: dict[str, list[Sample]] = defaultdict(list)
        for sample in parts["train"]:
            by_class[sample.label].append(sample)
        in_val = {sample.label for sample in parts["val"]}
        for name in class_names:
            if len(by_class[name]) == 1 and name not in in_val:
                place = by_class[name][0].place
                notes.append(f"Class {name!r} has one sample ({place}): it is trained on and never judged.")
            elif name not in in_val:
                notes.append(f"Class {name!r} has no sample in the validation part.")

    # ---- loaders

    def _loader(self, part: str) -> DataLoader[Any]:
        dataset = self._prepared.sets.get(part)
        if dataset is None:
            raise MisconfigurationError(
                f"{self.source} has no {part} part. It has: {', '.join(self._prepared.sets)}."
            )
        self._check_ready(part)
        # Plain `shuffle=True` draws from torch's global generator, so `seed_everything` makes the order repeatable.
        return self._make_loader(dataset, labelled=True, shuffle=part == "train")

    def _make_loader(
        self, dataset: Dataset[Any], *, labelled: bool, shuffle: bool = False
    ) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            timeout=_LONGEST_WAIT if self.num_workers else 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=self._collate(labelled=labelled),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Give the loader of the training part, shuffled from torch's global generator."""
        return self._loader("train")

    def plain_train_dataloader(self) -> DataLoader[Any]:
        """Give the loader of the training part, in order, each sample as it is: what a head is fitted on."""
        dataset = self._plain_train_set()
        self._check_ready("train")
        return self._make_loader(dataset, labelled=True)

    def _plain_train_set(self) -> Dataset[Any]:
        return self._prepared.sets["train"]

    def val_dataloader(self) -> DataLoader[Any]:
        """Give the loader of the validation part."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Give the loader of the test part.

        Raises:
            MisconfigurationError: If there is none.
        """
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Give the loader of the inputs alone, of the test part or, where there is none, the validation part."""
        part = "test" if "test" in self._prepared.sets else "val"
        self._check_ready(part)
        return self._make_loader(self._inputs_set(self._prepared.samples[part]), labelled=False)


# ---- classes


def sort_class_names(names: set[str]) -> list[str]:
    """Give class names in their order: by number where all are whole numbers, else by character.

    Example:
        >>> sort_class_names({"10", "9", "1"}), sort_class_names({"dog", "cat"})
        (['1', '9', '10'], ['cat', 'dog'])
    """
    if all(name.removeprefix("-").isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _all_samples(reading: Reading) -> list[Sample]:
    return [sample for samples in reading.parts.values() for sample in samples]


def _refuse_case_variants(source: str, samples: Sequence[Sample], known: Sequence[str]) -> None:
    """Stop where two classes differ only by letter case (or by how an accent is stored): nobody means that."""
    first: dict[str, str] = {}
    sizes: Counter[str] = Counter()
    for sample in samples:
        first.setdefault(sample.label, sample.place)
        sizes[sample.label] += 1
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted({*first, *known}):
        alike[normalize("NFC", name).casefold()].append(name)
    clashes = [names for names in alike.values() if len(names) > 1]
    if not clashes:
        return
    described = [
        " and ".join(
            f"{name!r} ({counted(sizes[name], 'sample')}, first: {first[name]})"
            if name in first
            else f"{name!r} (known to the model)"
            for name in names
        )
        for names in clashes
    ]
    raise DataError(
        f"{source}: classes that differ only by letter case:\n  " + "\n  ".join(listing(described)) + "\n"
        "Give them one name if they are one class, or names that differ by more than case."
    )


def _refuse_unknown_classes(
    source: str, samples: Sequence[Sample], known: Sequence[str], *, known_to: str
) -> None:
    unknown: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        if sample.label not in set(known):
            unknown[sample.label].append(sample.place)
    if not unknown:
        return
    described = [
        f"{name!r} ({counted(len(places), 'sample')}, first: {places[0]}){did_you_mean(name, known)}"
        for name, places in sorted(unknown.items())
    ]
    raise DataError(
        f"{source}: classes that {known_to} does not have:\n  " + "\n  ".join(listing(described)) + "\n"
        f"Classes of {known_to}: {', '.join(listing([repr(name) for name in known], limit=20))}."
    )
