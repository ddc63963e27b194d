"""`ImageData`: what data modules of images have in common, wherever the images come from: transforms, and fixed views."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from headstart.data.base import ClassificationData, Kind
from headstart.data.images import LabelledImages, Transform
from headstart.deferred import Views
from headstart.errors import MisconfigurationError


class ImageData(ClassificationData):
    """Images with one class each, as batches of float tensors (B, 3, H, W) and int64 targets (B,).

    Args:
        source: Where they come from.
        train_transform: From an RGB image to a float tensor (3, H, W), with augmentation; may be set later.
        eval_transform: The same for validation, test and prediction; may be set later.
        settings: What `ClassificationData` takes.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        train_transform: Transform | None = None,
        eval_transform: Transform | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(source, **settings)
        self._transforms = {"train": train_transform, "eval": eval_transform}
        self._views_until_epoch = 0
        self._num_views = 1
        self._fixed: Dataset[Any] | None = None

    @property
    def kind(self) -> Kind:
        """What the samples are."""
        return "images"

    def set_preprocessing(self, preprocessing: Any) -> None:
        """Do to images what a backbone's preprocessing says."""
        self.train_transform = preprocessing.train_transform()
        self.eval_transform = preprocessing.eval_transform()

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
        return LabelledImages(copy.copy(images.images), images.targets, transform=self.eval_transform)

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
                if use_of(part) == use:
                    assert isinstance(dataset, LabelledImages)
                    dataset.transform = transform

    def transform_of(self, part: str) -> Transform | None:
        """Give what is done to the images of a part."""
        return self._transforms[use_of(part)]

    def _collate(self, *, labelled: bool) -> Any:
        return None

    def _check_ready(self, part: str) -> None:
        use = use_of(part)
        if self._transforms[use] is None:
            raise MisconfigurationError(
                f"{use}_transform is not set. Set it to what the backbone wants: "
                f"data.{use}_transform = model.preprocessing.{use}_transform()"
            )


def use_of(part: str) -> str:
    """Give the name of the transform of a part."""
    return "train" if part == "train" else "eval"
