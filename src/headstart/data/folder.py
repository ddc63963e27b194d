"""`ImageFolderData`: a folder with a folder of images per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from torch.utils.data import DataLoader, Dataset

from headstart.data.base import ClassificationData, Reading, Sample
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
from headstart.deferred import Views
from headstart.errors import DataError, MisconfigurationError

# What people call the folders of the three parts.
_PART_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class ImageFolderData(ClassificationData):
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
            batch_size=batch_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            num_workers=num_workers,
        )
        self._transforms = {"train": train_transform, "eval": eval_transform}
        self._views_until_epoch = 0
        self._num_views = 1
        self._fixed: Dataset[Any] | None = None

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

    def show_fixed_views(self, num_views: int, *, until_epoch: int) -> None:
        """Show training images without new augmentation until an epoch: what a frozen network makes of them can be stored.

        Let the trainer ask for the loader anew in that epoch: `Trainer(reload_dataloaders_every_n_epochs=until_epoch)`.

        Args:
            num_views: 1 shows each image as it is; more show as many augmented views of it, an epoch each in turn.
            until_epoch: The epoch from which on images are augmented anew each time.

        Raises:
            MisconfigurationError: If `num_views` is below 1.
        """
        if num_views < 1:
            raise MisconfigurationError(f"num_views is {num_views}; expected 1 or more.")
        self._num_views, self._views_until_epoch, self._fixed = num_views, until_epoch, None

    def train_dataloader(self) -> DataLoader[Any]:
        """Give the loader of the training part, shuffled from torch's global generator."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        if epoch >= self._views_until_epoch:
            return super().train_dataloader()
        self._check_ready("train")
        self._check_ready("val")
        if self._fixed is None:
            images = self.train_set
            assert isinstance(images, LabelledImages)
            self._fixed = (
                self._plain_train_set()
                if self._num_views == 1
                else Views(images, self._num_views, seed=self.seed)
            )
        return self._make_loader(self._fixed, labelled=True, shuffle=True)

    def _plain_train_set(self) -> Dataset[Any]:
        images = self.train_set
        assert isinstance(images, LabelledImages)
        self._check_ready("val")  # for its transform
        return LabelledImages(images.images.paths, images.targets, transform=self.eval_transform)

    @property
    def train_transform(self) -> Transform | None:
        """What is done to each training image; may be set at any time before the loader is made."""
        return self._transforms["train"]

    @train_transform.setter
    def train_transform(self, transform: Transform | None) -> None:
        self._set_transform("train", transform)

    @property
    def eval_transform(self) -> Transform | None:
        """What is done to each image outside training; may be set at any time before the loader is made."""
        return self._transforms["eval"]

    @eval_transform.setter
    def eval_transform(self, transform: Transform | None) -> None:
        self._set_transform("eval", transform)

    def _set_transform(self, use: str, transform: Transform | None) -> None:
        self._transforms[use] = transform
        if "_prepared" in self.__dict__:
            for part, dataset in self._prepared.sets.items():
                if _use_of(part) == use:
                    assert isinstance(dataset, LabelledImages)
                    dataset.transform = transform

    def _read(self, *, for_evaluation: bool) -> Reading:
        return read_folder(self.source, for_evaluation=for_evaluation)

    def _labelled_set(self, part: str, samples: list[Sample], targets: list[int]) -> Dataset[Any]:
        paths = [sample.value for sample in samples]
        return LabelledImages(paths, targets, transform=self._transforms[_use_of(part)])

    def _inputs_set(self, samples: list[Sample]) -> Dataset[Any]:
        return ImageFiles([sample.value for sample in samples], self.eval_transform)

    def _collate(self, *, labelled: bool) -> Any:
        return None

    def _check_ready(self, part: str) -> None:
        use = _use_of(part)
        if self._transforms[use] is None:
            raise MisconfigurationError(
                f"{use}_transform is not set. Set it to what the backbone wants: "
                f"data.{use}_transform = model.preprocessing.{use}_transform()"
            )


def _use_of(part: str) -> str:
    return "train" if part == "train" else "eval"


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
        label = class_folder.name.strip()
        places = [key_below(path, root) for path in files]
        samples += [Sample(path, label, place, place) for path, place in zip(files, places, strict=True)]
        if not files:
            samples.append(
                Sample(None, label, key_below(class_folder, root), "")
            )  # named as empty further down


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
