"""Backbones of transformers: encoders of texts and of images, from the Hugging Face hub or from a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headstart.backbones.backbone import Backbone, Kind, check_image_size, measure_width
from headstart.backbones.hub import huggingface_hub_access
from headstart.backbones.preprocessing import INTERPOLATIONS, ImagePreprocessing, TextPreprocessing
from headstart.errors import CheckpointError, MisconfigurationError, missing_dependency

# The pillow codes that an image processor's "resample" holds.
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def load_from_hub(model_name: str, *, name: str, pretrained: bool, image_size: int | None = None) -> Backbone:
    """Give a model of the Hugging Face hub without a task's head.

    Args:
        model_name: Its name on the hub, such as `"distilbert-base-uncased"`.
        name: The backbone's name.
        pretrained: Whether to load its weights; its description and tokenizer come from the hub in any case.
        image_size: Another size than its own, for images.

    Raises:
        HubError: If it cannot be fetched and is not in the local cache.
    """
    with huggingface_hub_access(name):
        return _load(model_name, name=name, pretrained=pretrained, image_size=image_size)


def load_from_folder(folder: Path, *, name: str, pretrained: bool, image_size: int | None = None) -> Backbone:
    """Give a model from a folder in the layout of the hub: `config.json`, weights, tokenizer files.

    Raises:
        FileNotFoundError: If the folder has no `config.json`.
        MisconfigurationError: If its files cannot be loaded.
    """
    if not (folder / "config.json").is_file():
        artefact = " (It is an artefact of headstart: load_artefact gives its model.)"
        hint = artefact if (folder / "headstart.json").is_file() else ""
        raise FileNotFoundError(
            f"{folder} has no config.json; expected a folder in the layout of the Hugging Face hub, as "
            f"model.save_pretrained(folder) and tokenizer.save_pretrained(folder) write it.{hint}"
        )
    try:
        with _quiet(name):
            return _load(str(folder.resolve()), name=name, pretrained=pretrained, image_size=image_size)
    except OSError as error:
        raise MisconfigurationError(f"The backbone in {folder} could not be loaded: {error}") from error


def build_transformers(architecture: Mapping[str, Any], *, name: str) -> tuple[nn.Module, Kind]:
    """Give the network of a description, with random weights, and what it is for."""
    transformers = _import_transformers(name)
    config = dict(architecture["config"])
    try:
        config_class = transformers.CONFIG_MAPPING[config["model_type"]]
    except KeyError:
        raise MisconfigurationError(
            f"transformers {transformers.__version__} has no architecture {config['model_type']!r}, which the backbone "
            f"{name!r} has. Update it: pip install --upgrade transformers"
        ) from None
    config = config_class.from_dict(config)
    with _quiet(name):
        model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    return _encoder_of(model), _kind_of(config, name=name)


def pool_for(kind: Kind) -> Callable[[Any, Any], torch.Tensor]:
    """Give the function that makes features (B, width) of a model's outputs."""
    return mean_over_tokens if kind == "text" else image_features


def mean_over_tokens(inputs: Any, outputs: Any) -> torch.Tensor:
    """Give the mean of the tokens' features (B, T, D), padding left out, as (B, D).

    Example:
        >>> from types import SimpleNamespace
        >>> outputs = SimpleNamespace(last_hidden_state=torch.tensor([[[1.0], [3.0], [99.0]]]))
        >>> mean_over_tokens({"attention_mask": torch.tensor([[1, 1, 0]])}, outputs)
        tensor([[2.]])
    """
    tokens = outputs.last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).to(tokens.dtype)  # (B, T, 1)
    mean: torch.Tensor = (tokens * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
    return mean


def image_features(inputs: Any, outputs: Any) -> torch.Tensor:
    """Give what the model itself pools, or else its class token, as (B, D)."""
    pooled: torch.Tensor | None = getattr(outputs, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)
    features: torch.Tensor = outputs.last_hidden_state
    return features[:, 0] if features.ndim == 3 else features.mean(dim=(2, 3))  # (B, T, D) or (B, D, H, W)


def _load(source: str, *, name: str, pretrained: bool, image_size: int | None) -> Backbone:
    transformers = _import_transformers(name)
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    kind = _kind_of(config, name=name)
    if pretrained:
        model, report = transformers.AutoModel.from_pretrained(
            source, config=config, output_loading_info=True, trust_remote_code=False
        )
        missing = sorted(key for key in report["missing_keys"] if "pooler" not in key.split("."))
        if missing:
            raise CheckpointError(
                f"The weights of {name!r} lack {len(missing)} tensors, {missing[0]} the first; they would be random."
            )
    else:
        model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    model = _encoder_of(
        model
    ).float()  # some are published in half precision; a trainer's precision decides that
    preprocessing = (
        TextPreprocessing(transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False))
        if kind == "text"
        else _image_preprocessing(transformers.AutoImageProcessor.from_pretrained(source), image_size)
    )
    backbone = Backbone(
        model,
        name=name,
        kind=kind,
        width=0,
        preprocessing=preprocessing,
        pool=pool_for(kind),
        architecture={"library": "transformers", "config": json.loads(config.to_json_string(use_diff=False))},
    )
    if isinstance(preprocessing, TextPreprocessing):
        backbone.width = measure_width(backbone, _as_one_argument(preprocessing(["a text"])))
    else:
        backbone.width = measure_width(backbone, torch.zeros(1, 3, preprocessing.size, preprocessing.size))
    return check_image_size(backbone) if image_size and kind == "images" else backbone


def _kind_of(config: Any, *, name: str) -> Kind:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    if hasattr(config, "vision_config") or hasattr(config, "audio_config"):
        raise MisconfigurationError(
            f"{name!r} ({config.model_type}) takes several kinds of input. Use one of its parts: timm has the image "
            "parts of such models (timm:vit_base_patch16_clip_224.openai)."
        )
    if config.model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "images"
    if config.model_type in TOKENIZER_MAPPING_NAMES:
        return "text"
    raise MisconfigurationError(
        f"{name!r} is of the type {config.model_type!r}, which transformers lists neither among its image "
        "classifiers nor among the models with a tokenizer."
    )


def _encoder_of(model: Any) -> nn.Module:
    """Give what makes features: without a decoder, and without a pooler that only a task's head would train."""
    encoder: Any = model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
    pooler = getattr(encoder, "pooler", None)
    if isinstance(pooler, nn.Module) and any(isinstance(part, nn.Linear) for part in pooler.modules()):
        encoder.pooler = None
    module: nn.Module = encoder
    return module


def _image_preprocessing(processor: Any, image_size: int | None) -> ImagePreprocessing:
    size = dict(getattr(processor, "crop_size", None) or processor.size)
    resized = dict(processor.size)
    pixels = next(size[key] for key in ("height", "shortest_edge") if size.get(key))
    shorter_side = next(resized[key] for key in ("shortest_edge", "height") if resized.get(key))
    return ImagePreprocessing(
        size=image_size or pixels,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        interpolation=_RESAMPLING.get(int(processor.resample), INTERPOLATIONS[1]),
        crop_fraction=min(1.0, pixels / shorter_side),
    )


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep transformers from drawing a bar, and from listing a task's head that is left out on purpose."""
    log = _import_transformers(name).utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def _import_transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise missing_dependency("transformers", needed_for=f"the backbone {name!r}", extra="text") from None
    return transformers
