"""Backbones of torchvision: `torchvision:NAME`, with the classifier taken away."""

from __future__ import annotations

from typing import Any

from torch import nn

from headstart.backbones.backbone import Backbone
from headstart.backbones.hub import can_connect, fetch_error
from headstart.backbones.preprocessing import ImagePreprocessing
from headstart.backbones.weights import load_file_into
from headstart.errors import MisconfigurationError, UnknownNameError, did_you_mean, missing_dependency

# The attribute that ends in the classes, in one family or another: ResNet, VGG, ViT, Swin.
_HEADS = ("fc", "classifier", "heads", "head")
_SERVER = "https://download.pytorch.org"
#: Networks with a second head, for training; they also bring their input to another scale first, if told to.
WITH_AUXILIARY_HEAD = frozenset({"googlenet", "inception_v3"})


def load_torchvision(model_name: str, *, pretrained: bool = True, weights: str | None = None) -> Backbone:
    """Give a classification network of torchvision without its last layer.

    Args:
        model_name: A name of `torchvision.models.list_models(module=torchvision.models)`.
        pretrained: Fetch torchvision's default weights.
        weights: A local file with the weights instead.

    Raises:
        MissingDependencyError: If torchvision is not installed.
        UnknownNameError: If it has no such classification network.
        HubError: If the weights cannot be fetched.
        CheckpointError: If the file does not fit.
    """
    models = _import_models()
    known = models.list_models(module=models)
    if model_name not in known:
        raise UnknownNameError(
            f"torchvision has no classification network {model_name!r}.{did_you_mean(model_name, known)} "
            f"Known: {', '.join(known)}."
        )
    default = models.get_model_weights(model_name).DEFAULT
    settings = settings_of(model_name)
    if pretrained and weights is None:
        try:
            model = models.get_model(model_name, weights=default, **settings)
        except OSError as error:
            raise fetch_error(
                f"torchvision:{model_name}", tried=default.url, reachable=can_connect(_SERVER), error=error
            ) from error
    else:
        if model_name in WITH_AUXILIARY_HEAD:
            settings["init_weights"] = True  # silences a warning
        model = models.get_model(model_name, weights=None, **settings)
    head, width = remove_head(model)
    if weights is not None:
        load_file_into(model, weights, head=(head, "aux1.", "aux2.", "AuxLogits."))
    return Backbone(
        model,
        name=f"torchvision:{model_name}",
        kind="images",
        width=width,
        preprocessing=_preprocessing(default.transforms()),
        architecture={"library": "torchvision", "model": model_name},
    )


def settings_of(model_name: str) -> dict[str, Any]:
    """Give the arguments with which torchvision builds a network without weights as it does with the default ones.

    They change what the network computes, or its shapes, and are no part of its weights.

    Args:
        model_name: As for `load_torchvision`.

    Example:
        >>> settings_of("googlenet"), settings_of("vit_h_14"), settings_of("resnet18")
        ({'transform_input': True}, {'image_size': 518}, {})
    """
    if model_name in WITH_AUXILIARY_HEAD:
        return {"transform_input": True}
    if model_name.startswith("vit_"):
        default = _import_models().get_model_weights(model_name).DEFAULT
        return {"image_size": default.meta["min_size"][0]}
    return {}


def remove_head(model: nn.Module) -> tuple[str, int]:
    """Replace the layer that gives the classes by an identity, in place.

    What stands before it in the head (a norm, a hidden layer, dropout) stays: it belongs to the features.

    Args:
        model: A classification network of torchvision, of any family.

    Returns:
        The layer's name with a dot at its end, and the number of features that it took.

    Raises:
        MisconfigurationError: If there is no such layer.

    Example:
        >>> from torchvision.models import mobilenet_v2
        >>> remove_head(mobilenet_v2())
        ('classifier.1.', 1280)
    """
    for auxiliary in ("aux1", "aux2", "AuxLogits"):
        if getattr(model, auxiliary, None) is not None:
            setattr(model, auxiliary, None)
            model.aux_logits = False  # type: ignore[assignment]  # a plain bool of GoogLeNet and Inception
    for top, child in model.named_children():
        if top not in _HEADS:
            continue
        layers = [
            (f"{top}.{name}" if name else top, layer)
            for name, layer in child.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)  # SqueezeNet's classes come from a convolution
        ]
        if layers:
            name, layer = layers[-1]
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, nn.Identity())
            return f"{name}.", int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)
    raise MisconfigurationError(
        f"{type(model).__name__} has no classifier that could be taken away (looked for {', '.join(_HEADS)})."
    )


def _preprocessing(settings: Any) -> ImagePreprocessing:
    size = settings.crop_size[0]
    return ImagePreprocessing(
        size=size,
        mean=tuple(settings.mean),
        std=tuple(settings.std),
        interpolation=settings.interpolation.value,
        crop_fraction=min(size / settings.resize_size[0], 1.0),
    )


def _import_models() -> Any:
    try:
        from torchvision import models
    except ImportError:
        raise missing_dependency(
            "torchvision", needed_for="'torchvision:' backbones", extra="images"
        ) from None
    return models
