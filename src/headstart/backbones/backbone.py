"""`Backbone`: a network without its head, and all that has to be known to put another head on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from headstart.backbones.preprocessing import ImagePreprocessing, TextPreprocessing
from headstart.errors import MisconfigurationError
from headstart.groups import blocks_in

Kind = Literal["images", "text"]


class Backbone(nn.Module):
    """A network that turns inputs into pooled features.

    `forward` takes images (B, 3, H, W), or the dict of tensors (B, T) that a tokenizer gives, and gives features
    (B, width).

    Args:
        model: The network, its head already taken away.
        name: What it was asked for by.
        kind: `"images"` or `"text"`.
        width: The number of features.
        preprocessing: What is done to a photo or text before.
        pool: Makes features (B, width) of the inputs and of what `model` gives; `None` where `model` gives them.
        architecture: Plain values from which `rebuild_backbone` builds the same network again, with random weights;
            `None` if it cannot be built from a description (a network of the caller's own).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        kind: Kind,
        width: int,
        preprocessing: ImagePreprocessing | TextPreprocessing,
        pool: Callable[[Any, Any], torch.Tensor] | None = None,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.kind: Kind = kind
        self.width = width
        self.preprocessing = preprocessing
        self.architecture = None if architecture is None else dict(architecture)
        self._pool = pool

    def forward(self, inputs: Any) -> torch.Tensor:
        """Give the pooled features (B, width)."""
        outputs = self.model(**inputs) if isinstance(inputs, Mapping) else self.model(inputs)
        features: torch.Tensor = outputs if self._pool is None else self._pool(inputs, outputs)
        return features

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Give the parts in order, input first: each name is relative to the backbone.

        Lists of layers are taken apart, everything else stays whole. A parameter that belongs to no block (a class
        token, a position embedding that hangs on the model itself) belongs with the input.
        """
        return list(blocks_in(self.model, "model"))

    def describe(self) -> dict[str, Any]:
        """Give plain values from which `rebuild_backbone` builds this backbone again, without its weights.

        Raises:
            MisconfigurationError: If it is a network of the caller's own.
        """
        if self.architecture is None:
            raise MisconfigurationError(
                f"The backbone {self.name!r} was given as a module, so it cannot be rebuilt from a description. Give it "
                "by name (`timm:...`, `torchvision:...`, `hf:...`, a local folder), or build it yourself and load the "
                "weights into it: load_from_checkpoint(path, backbone=module)."
            )
        return {
            "name": self.name,
            "kind": self.kind,
            "architecture": self.architecture,
            "preprocessing": self.preprocessing.to_dict(),
        }


def wrap_module(
    module: nn.Module, *, preprocessing: ImagePreprocessing | TextPreprocessing | None = None
) -> Backbone:
    """Give a `Backbone` around a network of the caller's own, which must give features (B, D).

    Args:
        module: The network. A `Backbone` is given back as it is.
        preprocessing: What it expects; `None` is ImageNet's means at 224 pixels.

    Example:
        >>> backbone = wrap_module(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        >>> backbone.width
        3
    """
    if isinstance(module, Backbone):
        return module
    if preprocessing is None:
        preprocessing = ImagePreprocessing(size=224)
    if isinstance(preprocessing, ImagePreprocessing):
        kind: Kind = "images"
        inputs: Any = torch.zeros(1, 3, preprocessing.size, preprocessing.size)
    else:
        kind = "text"
        inputs = preprocessing(["a text"])
    return Backbone(
        module,
        name=type(module).__name__,
        kind=kind,
        width=measure_width(module, inputs),
        preprocessing=preprocessing,
    )


def measure_width(module: nn.Module, inputs: Any) -> int:
    """Give the number of features by a dry run; modes and weights stay as they were.

    Args:
        module: Takes `inputs`.
        inputs: A tensor, or a dict of tensors, for one sample.

    Raises:
        MisconfigurationError: If the output is not of the shape (1, D).

    Example:
        >>> measure_width(nn.Linear(4, 7), torch.zeros(1, 4))
        7
    """
    training = {child: child.training for child in module.modules()}
    module.eval()  # a batch of one, and no statistics may move
    try:
        with torch.no_grad():
            features = module(**inputs) if isinstance(inputs, Mapping) else module(inputs)
    finally:
        for child, mode in training.items():
            child.training = mode
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        found = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise MisconfigurationError(
            f"{type(module).__name__} gave {found} for one sample; expected features of the shape (1, D). Pool and "
            "flatten its output first: nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten())."
        )
    return int(features.shape[1])
