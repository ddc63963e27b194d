"""`ImageClassifier`: a pretrained image backbone with a new head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from headstart.backbones import ImagePreprocessing
from headstart.backbones.backbone import Kind, measure_width
from headstart.errors import MisconfigurationError
from headstart.tasks.classifier import Classifier, resolve_backbone


class ImageClassifier(Classifier):
    """A classifier of images, ready to train: `backbone` and `head`, with the backbone's own preprocessing.

    Args:
        backbone: A name, as `load_backbone` takes it, or a network that gives features (B, D).
        class_names: The name of each class, in the order of the targets.
        lr: The learning rate of AdamW.
        weight_decay: The weight decay of AdamW.
        class_weights: The weight of each class in the loss (`balanced_class_weights`); `None` weighs all the same.
        image_size: Height and width in pixels; `None` takes the backbone's own.
        min_scale: Training sees a random part of a photo of at least this fraction of its area; 1.0 the whole.
        horizontal_flip: Training mirrors every second photo.
        pretrained: Load the backbone's weights; `False` starts from random ones.
        description: Set by checkpoints, not by you.

    Raises:
        MisconfigurationError: If these do not go together: a backbone for text, a size that it cannot take.

    Example:
        >>> model = ImageClassifier("torchvision:resnet18", class_names=["sound", "defective"], pretrained=False)
        >>> model.head
        Linear(in_features=512, out_features=2, bias=True)
        >>> from PIL import Image
        >>> tuple(model.preprocessing.eval_transform()(Image.new("RGB", (300, 300))).shape)
        (3, 224, 224)
    """

    kind: ClassVar[Kind] = "images"
    preprocessing: ImagePreprocessing

    def __init__(
        self,
        backbone: str | nn.Module = "efficientnet_lite0",
        *,
        class_names: Sequence[str],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        class_weights: Sequence[float] | None = None,
        image_size: int | None = None,
        min_scale: float = 1.0,
        horizontal_flip: bool = True,
        pretrained: bool = True,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        preprocessing = None if image_size is None else ImagePreprocessing(size=image_size)
        built = resolve_backbone(
            backbone, pretrained=pretrained, description=description, preprocessing=preprocessing
        )
        super().__init__(
            built, class_names=class_names, lr=lr, weight_decay=weight_decay, class_weights=class_weights
        )
        size = self.preprocessing.size if image_size is None else image_size
        if size != self.preprocessing.size:
            _check_size(built, size)
        self.preprocessing = self.preprocessing.with_changes(
            size=size, min_scale=min_scale, horizontal_flip=horizontal_flip
        )
        values: dict[str, Any] = {
            "class_names": self.class_names,
            "lr": lr,
            "weight_decay": weight_decay,
            "class_weights": None if class_weights is None else [float(weight) for weight in class_weights],
            "image_size": image_size,
            "min_scale": min_scale,
            "horizontal_flip": horizontal_flip,
            "pretrained": pretrained,
        }
        if isinstance(backbone, str):
            values["backbone"] = backbone
        self.save_hyperparameters(values)


def _check_size(backbone: nn.Module, size: int) -> None:
    try:
        measure_width(backbone, torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise MisconfigurationError(
            f"The backbone cannot take images of {size} x {size} pixels: {error} Leave image_size out to take its own."
        ) from error
