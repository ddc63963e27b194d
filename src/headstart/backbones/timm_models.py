"""Backbones of timm: any of its architectures, with its weights from the hub, from a file, or random ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headstart.backbones.backbone import Backbone, check_image_size, measure_width
from headstart.backbones.hub import huggingface_hub_access
from headstart.backbones.preprocessing import INTERPOLATIONS, ImagePreprocessing
from headstart.backbones.weights import load_file_into
from headstart.errors import MisconfigurationError, UnknownNameError, did_you_mean, missing_dependency


def load_timm(
    model_name: str,
    *,
    name: str,
    pretrained: bool,
    weights_file: Path | None = None,
    image_size: int | None = None,
) -> Backbone:
    """Give an architecture of timm without its classifier.

    Args:
        model_name: As in `timm.create_model`, with or without the tag of its weights (`"resnet18.a1_in1k"`).
        name: The backbone's name.
        pretrained: Whether to fetch its weights.
        weights_file: Weights to load in place of the hub's.
        image_size: Another size than its own.

    Raises:
        UnknownNameError: If timm has no such architecture or tag.
        HubError: If the weights cannot be fetched.
        CheckpointError: If the file does not fit.
    """
    timm = import_timm(name)
    _check_name(timm, model_name)
    settings = timm.get_pretrained_cfg(model_name)
    # An architecture with position embeddings has to be built for its size; any other takes every size.
    arguments = {"img_size": image_size} if image_size and settings and settings.fixed_input_size else {}
    if pretrained and weights_file is None:
        if not settings or not settings.has_weights:
            raise UnknownNameError(
                f"timm publishes no weights for {model_name!r}. Give a file ('timm:{model_name}@/path/to/file'), or "
                f"pretrained=False.{did_you_mean(model_name, timm.list_models(pretrained=True))}"
            )
        with huggingface_hub_access(name):
            model = timm.create_model(model_name, pretrained=True, num_classes=0, **arguments)
    else:
        model = timm.create_model(model_name, pretrained=False, num_classes=0, **arguments)
        if weights_file is not None:
            classifier = model.pretrained_cfg.get("classifier") or ()
            load_file_into(
                model, weights_file, head=(classifier,) if isinstance(classifier, str) else classifier
            )
    backbone = make_backbone(
        model, name=name, model_name=model_name, arguments=arguments, image_size=image_size
    )
    return check_image_size(backbone) if image_size else backbone


def make_backbone(
    model: Any,
    *,
    name: str,
    model_name: str,
    arguments: Mapping[str, Any],
    image_size: int | None = None,
    preprocessing: ImagePreprocessing | None = None,
) -> Backbone:
    """Give a model of timm, its classifier already taken away, as a `Backbone`.

    Args:
        model: The model.
        name: The backbone's name.
        model_name: Its name in timm.
        arguments: What it was created with.
        image_size: Another size than its own.
        preprocessing: In place of the one that timm names.
    """
    preprocessing = preprocessing or _preprocessing(model)
    if image_size:
        preprocessing = preprocessing.with_changes(size=image_size)
    return Backbone(
        model,
        name=name,
        kind="images",
        width=_width(model, preprocessing.size),
        preprocessing=preprocessing,
        architecture={"library": "timm", "model": model_name, "arguments": dict(arguments)},
    )


def build_timm(architecture: Mapping[str, Any], *, name: str) -> nn.Module:
    """Give the network of a description, with random weights."""
    model: nn.Module = import_timm(name).create_model(
        architecture["model"], pretrained=False, num_classes=0, **architecture["arguments"]
    )
    return model


def import_timm(name: str) -> Any:
    """Give the library, or the error that says how to install it."""
    try:
        import timm
    except ImportError:
        raise missing_dependency("timm", needed_for=f"the backbone {name!r}", extra="images") from None
    return timm


def _check_name(timm: Any, model_name: str) -> None:
    architecture, _, tag = model_name.partition(".")
    if not timm.is_model(architecture):
        raise UnknownNameError(
            f"timm has no architecture {architecture!r}.{did_you_mean(architecture, timm.list_models())} "
            "All of them: python -c 'import timm; print(timm.list_models())'"
        )
    tags = timm.list_pretrained(f"{architecture}.*") if tag else []
    if tag and model_name not in tags:
        raise UnknownNameError(
            f"timm has no weights {model_name!r}.{did_you_mean(model_name, tags)} Known: {', '.join(tags) or 'none'}."
        )


def _width(model: Any, size: int) -> int:
    width = getattr(model, "head_hidden_size", None)  # the width after pooling, where timm's head begins
    return int(width) if width else measure_width(model, torch.zeros(1, 3, size, size))


def _preprocessing(model: Any) -> ImagePreprocessing:
    from timm.data import resolve_model_data_config

    settings = resolve_model_data_config(model)
    channels, height, width = settings["input_size"]
    if channels != 3 or height != width:
        raise MisconfigurationError(
            f"{type(model).__name__} expects inputs of the shape {settings['input_size']}; headstart gives it square "
            "photos with three channels."
        )
    interpolation = settings["interpolation"]
    return ImagePreprocessing(
        size=height,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
        crop_fraction=min(1.0, settings["crop_pct"]),
    )
