"""What is done to a photo or a text before the backbone sees it: part of the model, saved with it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headstart.backbones.custom_code import RUN_NO_CODE, refusing_code
from headstart.errors import MisconfigurationError, UnknownNameError, did_you_mean, missing_dependency

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePreprocessing:
    """The way from a photo to a backbone's input, for training and for everything else.

    Attributes:
        size: Height and width of the input, in pixels.
        mean: Subtracted from each channel, after the values were brought to [0, 1].
        std: Divided by, after that.
        interpolation: How photos are resized: `"nearest"`, `"bilinear"`, `"bicubic"` or `"lanczos"`.
        crop_fraction: The side of the central square that is seen, as a fraction of the photo's shorter side.
        min_scale: Training sees a random part of the photo, of at least this fraction of its area; 1.0 for no such
            crop. A part is enlarged, so that things look larger in training than later (Touvron et al. 2019, "Fixing the
            train-test resolution discrepancy"): a short training gets used to that at the cost of what it is for.
        horizontal_flip: Training mirrors every second photo; `False` where left and right mean something (text, say).

    Example:
        >>> preprocessing = ImagePreprocessing(size=32)
        >>> from PIL import Image
        >>> tuple(preprocessing.eval_transform()(Image.new("RGB", (40, 60))).shape)
        (3, 32, 32)
    """

    size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_fraction: float = 1.0
    min_scale: float = 1.0
    horizontal_flip: bool = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise MisconfigurationError(f"size is {self.size}; expected a number of pixels, 1 or more.")
        if self.interpolation not in INTERPOLATIONS:
            raise UnknownNameError(
                f"interpolation is {self.interpolation!r}."
                f"{did_you_mean(self.interpolation, INTERPOLATIONS)} Known: {', '.join(INTERPOLATIONS)}."
            )
        for name in ("crop_fraction", "min_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise MisconfigurationError(
                    f"{name} is {getattr(self, name)}; expected a fraction in (0, 1]."
                )

    def train_transform(self) -> Callable[[Any], torch.Tensor]:
        """Give the transform for training, with the augmentation: PIL image (RGB) to float tensor (3, H, W)."""
        transforms = _transforms()
        mode = transforms.InterpolationMode(self.interpolation)
        if self.min_scale < 1:
            steps = [
                transforms.RandomResizedCrop(
                    self.size,
                    scale=(self.min_scale, 1.0),
                    ratio=(0.9, 1 / 0.9),
                    interpolation=mode,
                    antialias=True,
                )
            ]
        else:
            steps = self._resize_and_crop(transforms)
        if self.horizontal_flip:
            steps.append(transforms.RandomHorizontalFlip())
        return self._then_normalise(transforms, steps)

    def eval_transform(self) -> Callable[[Any], torch.Tensor]:
        """Give the transform for validation, test and prediction: the same photo gives the same tensor."""
        transforms = _transforms()
        return self._then_normalise(transforms, self._resize_and_crop(transforms))

    def _resize_and_crop(self, transforms: Any) -> list[Any]:
        mode = transforms.InterpolationMode(self.interpolation)
        shorter_side = round(self.size / self.crop_fraction)
        return [
            transforms.Resize(shorter_side, interpolation=mode, antialias=True),
            transforms.CenterCrop(self.size),
        ]

    def _then_normalise(self, transforms: Any, steps: list[Any]) -> Callable[[Any], torch.Tensor]:
        transform: Callable[[Any], torch.Tensor] = transforms.Compose(
            [
                *steps,
                transforms.PILToTensor(),
                transforms.ToDtype(torch.float32, scale=True),  # [0, 255] to [0, 1]
                transforms.Normalize(mean=list(self.mean), std=list(self.std)),
            ]
        )
        return transform

    def with_changes(self, **changes: Any) -> ImagePreprocessing:
        """Give a copy with other values.

        Example:
            >>> ImagePreprocessing(size=224).with_changes(size=160).size
            160
        """
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, as JSON and a checkpoint hold them."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImagePreprocessing:
        """Take back what `to_dict` gave."""
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**plain)


def _transforms() -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError:
        raise missing_dependency("torchvision", needed_for="preparing images", extra="images") from None
    return v2


class TextPreprocessing:
    """The way from texts to a backbone's input: a tokenizer, with truncation and padding.

    Called with a list of texts, or of pairs of texts, it gives a dict of tensors (B, T), T being the longest text of
    the batch; `attention_mask` is 0 where a shorter one is padded.

    Args:
        tokenizer: A tokenizer of transformers.
        max_length: The number of tokens beyond which a text is cut off.
    """

    def __init__(self, tokenizer: Any, *, max_length: int = 256) -> None:
        if max_length < 1:
            raise MisconfigurationError(
                f"max_length is {max_length}; expected a number of tokens, 1 or more."
            )
        if tokenizer.pad_token is None:
            # Decoders have none; what stands in the padding is masked, so any token will do.
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer = tokenizer
        self.max_length = min(max_length, tokenizer.model_max_length)

    def __call__(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> dict[str, torch.Tensor]:
        """Give the tokens of texts, or of pairs of texts (the longer one of a pair is cut first).

        Raises:
            MisconfigurationError: If `texts` is one text and not a list.
        """
        if isinstance(texts, str):
            raise MisconfigurationError(f"Received one text, expected a list of texts: [{texts[:20]!r}].")
        settings = {
            "truncation": True, "padding": True, "max_length": self.max_length, "return_tensors": "pt",
        }  # fmt: skip
        if texts and not isinstance(texts[0], str):
            first, second = ([pair[index] for pair in texts] for index in (0, 1))
            return dict(self.tokenizer(first, second, **settings))
        return dict(self.tokenizer(list(texts), **settings))

    def to_dict(self) -> dict[str, Any]:
        """Give the plain values; the tokenizer is in `files`."""
        return {"max_length": self.max_length}

    def files(self) -> dict[str, bytes]:
        """Give the tokenizer as the files that `from_files` reads, by name."""
        with tempfile.TemporaryDirectory() as directory:
            self.tokenizer.save_pretrained(directory)
            return {path.name: path.read_bytes() for path in sorted(Path(directory).iterdir())}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], values: Mapping[str, Any]) -> TextPreprocessing:
        """Take back what `files` and `to_dict` gave. Nothing is downloaded, and no code in the files is run."""
        with tempfile.TemporaryDirectory() as directory:
            for name, content in files.items():
                (Path(directory) / Path(name).name).write_bytes(content)
            return cls.from_folder(directory, values)

    @classmethod
    def from_folder(cls, folder: str | Path, values: Mapping[str, Any]) -> TextPreprocessing:
        """Give the preprocessing for a folder with tokenizer files, and the values of `to_dict`.

        Raises:
            MisconfigurationError: If the tokenizer needs code of its own.
        """
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise missing_dependency("transformers", needed_for="preparing texts", extra="text") from None
        with refusing_code("The saved tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, **RUN_NO_CODE)
        return cls(tokenizer, **values)
