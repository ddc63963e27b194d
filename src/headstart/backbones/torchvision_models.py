"""Backbones of torchvision: its classification networks, their last layer taken away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from headstart.backbones.backbone import Backbone, check_image_size
from headstart.backbones.hub import can_connect, fetch_error
from headstart.backbones.preprocessing import ImagePreprocessing
from headstart.backbones.weights import load_file_into
from headstart.errors import UnknownNameError, did_you_mean, missing_dependency

# What the families call the part that ends in the classes.
_HEADS = ("fc", "classifier", "heads", "head")

# The two with auxiliary classifiers. Their weights expect another range than all others', which transform_input makes
# of the usual one; init_weights=False is torch's own initialisation in place of a slow one.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def load_torchvision(
    model_name: str,
    *,
    name: str,
    pretrained: bool,
    weights_file: Path | None = None,
    image_size: int | None = None,
) -> Backbone:
    """Give a classification network of torchvision without its last layer.

    Args:
        model_name: As in `torchvision.models.get_model`.
        name: The backbone's name.
        pretrained: Whether to fetch its best published weights.
        weights_file: Weights to load in place of those.
        image_size: Another size than that of its weights.

    Raises:
        UnknownNameError: If torchvision has no such classification network.
        HubError: If the weights cannot be fetched.
        CheckpointError: If the file does not fit.
    """
    models = _import_models(name)
    known = models.list_models(module=models)
    if model_name not in known:
        raise UnknownNameError(
            f"torchvision has no classification network {model_name!r}.{did_you_mean(model_name, known)} "
            f"Known: {', '.join(known)}."
        )
    published = models.get_model_weights(model_name).DEFAULT
    preset = published.transforms()
    preprocessing = ImagePreprocessing(
        size=image_size or preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        crop_fraction=min(1.0, preset.crop_size[0] / preset.resize_size[0]),
    )
    arguments: dict[str, Any] = {}
    if model_name in _WITH_AUXILIARY_HEADS:
        arguments = {"transform_input": True, "init_weights": False}
    fetch = pretrained and weights_file is None
    try:
        model = models.get_model(model_name, weights=published if fetch else None, **arguments)
    except OSError as error:  # of the download; without one, building touches no file
        raise fetch_error(
            name, tried=published.url, reachable=can_connect(published.url), error=error
        ) from error
    width, head = _take_head_away(model)
    if weights_file is not None:
        load_file_into(model, weights_file, head=head)
    backbone = Backbone(
        model,
        name=name,
        kind="images",
        width=width,
        preprocessing=preprocessing,
        architecture={"library": "torchvision", "model": model_name, "arguments": arguments},
    )
    return check_image_size(backbone) if image_size else backbone


def build_torchvision(architecture: Mapping[str, Any], *, name: str) -> nn.Module:
    """Give the network of a description, with random weights."""
    model: nn.Module = _import_models(name).get_model(
        architecture["model"], weights=None, **architecture["arguments"]
    )
    _take_head_away(model)
    return model


def _take_head_away(model: Any) -> tuple[int, tuple[str, ...]]:
    """Put an identity in the place of the last layer; give its input's width and the names that are gone."""
    gone: list[str] = []
    if hasattr(model, "aux_logits"):
        model.aux_logits = False
        for auxiliary in ("aux1", "aux2", "AuxLogits"):
            if hasattr(model, auxiliary):
                setattr(model, auxiliary, None)
                gone.append(f"{auxiliary}.")
    head = next(name for name in _HEADS if hasattr(model, name))
    last, layer = [
        (path, module) for path, module in model.named_modules()
        if (path == head or path.startswith(f"{head}.")) and isinstance(module, nn.Linear | nn.Conv2d)
    ][-1]  # fmt: skip
    model.set_submodule(last, nn.Identity())
    gone.append(f"{last}.")
    return (layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels), tuple(gone)


def _import_models(name: str) -> Any:
    try:
        from torchvision import models
    except ImportError:
        raise missing_dependency("torchvision", needed_for=f"the backbone {name!r}", extra="images") from None
    return models
