"""`ImageFolderData`: a folder with a folder of images per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from torch.utils.data import Dataset

from headstart.data.base import Reading, Sample
from headstart.data.image_data import ImageData
from headstart.data.images import (
    ImageFiles,
    LabelledImages,
    Transform,
    check_images,
    files_below,
    is_image_name,
    key_below,
    visible_children,
)
from headstart.data.report import SetAside, listing, refuse_too_many_unreadable
from headstart.errors import DataError
from headstart.words import printable

# What people call the folders of the three parts.
_PART_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class ImageFolderData(ImageData):
    """Images in a folder per class, as batches of float tensors (B, 3, H, W) and int64 targets (B,).

    ```
    root/cat/1.jpg           or    root/train/cat/1.jpg
    root/dog/2.png                 root/val/cat/7.jpg     (optional; also valid, validation, dev)
                                   root/test/cat/9.jpg    (optional; also testing)
    ```

    Parts that the folder does not bring are cut from the rest, stratified and seeded; a folder with train and val and
    no test has no test part. Every image is decoded once up front; unreadable ones are set aside and listed in
    `report`, and beyond 1 % of them the data is refused. Folders within a class folder belong to the class.

    Args:
        root: The folder.
        train_transform: From an RGB image to a float tensor (3, H, W), with augmentation; may be set later.
        eval_transform: The same for validation, test and prediction; may be set later.
        batch_size: Images a batch.
        val_fraction: Share of validation where it is cut here.
        test_fraction: Share of test where it is cut here; 0 for none.
        seed: Of the split.
        num_workers: Loader processes; 0 reads in this one.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for number in range(20):
        ...     folder = root / ("dark" if number % 2 else "light")
        ...     folder.mkdir(exist_ok=True)
        ...     Image.new("L", (8, 8), number).save(folder / f"{number}.png")
        >>> data = ImageFolderData(root)
        >>> data.class_names, data.report.part_sizes
        (['dark', 'light'], {'train': 12, 'val': 4, 'test': 4})
    """

    def __init__(
        self,
        root: str | Path,
        *,
        train_transform: Transform | None = None,
        eval_transform: Transform | None = None,
        batch_size: int = 32,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            root,
            train_transform=train_transform,
            eval_transform=eval_transform,
            batch_size=batch_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            num_workers=num_workers,
        )

    @classmethod
    def for_evaluation(
        cls,
        root: str | Path,
        *,
        class_names: Sequence[str],
        eval_transform: Transform | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> Self:
        """Give the data of a folder as one test part, with the classes of a trained model.

        Args:
            root: A folder with a folder per class; where it holds train/val/test, its test is taken.
            class_names: The model's classes, in its order.
            eval_transform: From an RGB image to a float tensor (3, H, W); may be set later.
            batch_size: Images a batch.
            num_workers: Loader processes.

        Raises:
            DataError: At `prepare`, if there is a class that the model does not have.
        """
        data = cls(root, eval_transform=eval_transform, batch_size=batch_size, num_workers=num_workers)
        data._known_classes = list(class_names)
        return data

    def _read(self, *, for_evaluation: bool) -> Reading:
        return read_folder(self.source, for_evaluation=for_evaluation)

    def _labelled_set(self, part: str, samples: list[Sample], targets: list[int]) -> Dataset[Any]:
        paths = [sample.value for sample in samples]
        return LabelledImages(paths, targets, transform=self.transform_of(part))

    def _inputs_set(self, samples: list[Sample]) -> Dataset[Any]:
        return ImageFiles([sample.value for sample in samples], self.eval_transform)


# ---- reading a folder


def read_folder(root: Path, *, for_evaluation: bool = False) -> Reading:
    """Give the images of a folder with a folder per class, checked.

    Args:
        root: The folder; it may hold train/val/test.
        for_evaluation: Give only what is to be evaluated: all, or the test part of a split folder.

    Raises:
        DataError: If the folder has no class folders, an empty one, or too many unreadable images.
    """
    if not root.is_dir():
        raise DataError(
            f"{root} is {'a file' if root.exists() else 'missing'}: expected a folder with a folder per class."
        )
    children, num_hidden = visible_children(root)
    folders = [child for child in children if child.is_dir()]
    part_folders = _part_folders(root, folders)
    reading = Reading({}, num_hidden=num_hidden)
    reading.set_aside += [
        SetAside(child.name, "beside the folders, so of no class") for child in children if not child.is_dir()
    ]
    if for_evaluation and part_folders:
        if "test" not in part_folders:
            raise DataError(
                f"{root} holds {', '.join(folder.name for folder in folders)} and no test folder. "
                f"Name the folder to evaluate, for example {folders[-1]}."
            )
        part_folders = {"all": part_folders["test"]}
    for part, folder in (part_folders or {"all": root}).items():
        _read_part(root, folder, part, reading)
    _set_unreadable_aside(root, reading, for_evaluation=for_evaluation)
    return reading


def _part_folders(root: Path, folders: list[Path]) -> dict[str, Path]:
    """Give the folders of the parts by part, or nothing where the folders are classes."""
    named: dict[str, Path] = {}
    others: list[Path] = []
    for folder in folders:
        part = _PART_NAMES.get(folder.name.casefold())
        # A folder `test` that holds images and no folders is a class of that name.
        if part is None or not any(child.is_dir() for child in visible_children(folder)[0]):
            others.append(folder)
        elif part in named:
            raise DataError(f"{root} holds both {named[part].name!r} and {folder.name!r}: keep one of them.")
        else:
            named[part] = folder
    if "train" not in named:
        return {}
    if others:
        raise DataError(
            f"{root} holds {', '.join(repr(folder.name) for folder in named.values())}, and beside them "
            f"{', '.join(listing([repr(folder.name) for folder in others]))}. Beside train, val and test nothing is "
            "read: move the rest elsewhere, or all classes into one folder."
        )
    return named


def _read_part(root: Path, folder: Path, part: str, reading: Reading) -> None:
    """Add the files of a folder with a folder per class to `reading`, unchecked."""
    children, num_hidden = visible_children(folder)
    class_folders = [child for child in children if child.is_dir()]
    if folder != root:
        reading.num_hidden += num_hidden
        reading.set_aside += [
            SetAside(key_below(child, root), "beside the class folders, so of no class")
            for child in children
            if not child.is_dir()
        ]
    if not class_folders:
        raise DataError(
            f"{folder} has no class folders. Expected a folder per class: {folder / 'cat' / '1.jpg'}, "
            f"{folder / 'dog' / '2.jpg'}."
        )
    samples = reading.parts.setdefault(part, [])
    for class_folder in class_folders:
        files, num_hidden = files_below(class_folder)
        reading.num_hidden += num_hidden
        label = printable(class_folder.name.strip())
        places = [key_below(path, root) for path in files]
        samples += [Sample(path, label, place, place) for path, place in zip(files, places, strict=True)]
        if not files:
            # Named as empty further down.
            samples.append(Sample(None, label, key_below(class_folder, root), ""))


def _set_unreadable_aside(root: Path, reading: Reading, *, for_evaluation: bool) -> None:
    """Decode every file, keep the readable ones, and refuse empty classes and too many damaged files."""
    paths = [
        sample.value for samples in reading.parts.values() for sample in samples if sample.value is not None
    ]
    reason_of = dict(zip(paths, check_images(paths), strict=True))
    unreadable: list[SetAside] = []
    num_images = 0
    empty: list[str] = []
    for part, samples in reading.parts.items():
        kept = [sample for sample in samples if sample.value is not None and reason_of[sample.value] is None]
        reading.parts[part] = kept
        num_images += len(kept)
        for sample in samples:
            reason = reason_of.get(sample.value)
            if reason is None:
                continue
            if is_image_name(sample.value):
                unreadable.append(SetAside(sample.place, reason))
            else:  # a text beside the images is no damage
                reading.set_aside.append(SetAside(sample.place, "not an image"))
        has_images = {sample.label for sample in kept}
        without = [
            repr(name) for name in sorted({sample.label for sample in samples}) if name not in has_images
        ]
        if part in {"train", "all"} and not for_evaluation:
            empty += without
        elif without:
            reading.notes.append(
                f"Class folders without a readable image ({part}): {', '.join(listing(without))}."
            )
    refuse_too_many_unreadable(unreadable, num_samples=num_images + len(unreadable), source=str(root))
    if empty:
        raise DataError(
            f"{root}: class folders without a readable image: {', '.join(listing(empty))}. "
            "Put images into them, or delete the folders."
        )
    reading.set_aside += unreadable
