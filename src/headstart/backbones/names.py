"""From a name to a `Backbone`: packaged, from a hub, from a local file or folder, or from a description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from headstart.backbones.backbone import Backbone
from headstart.backbones.huggingface import MINILM, load_huggingface, load_minilm, rebuild_huggingface
from headstart.backbones.preprocessing import ImagePreprocessing, TextPreprocessing
from headstart.backbones.timm_models import LITE0, load_efficientnet_lite0, load_timm
from headstart.backbones.torchvision_models import load_torchvision
from headstart.errors import MisconfigurationError, UnknownNameError, did_you_mean

#: Those whose weights come as a package.
PACKAGED: dict[str, Callable[..., Backbone]] = {LITE0: load_efficientnet_lite0, MINILM: load_minilm}
_LIBRARIES: dict[str, Callable[..., Backbone]] = {
    "timm": load_timm,
    "torchvision": load_torchvision,
    "hf": load_huggingface,
}
_FORMS = (
    f"{LITE0}, {MINILM}, timm:NAME, torchvision:NAME, hf:NAME, each with @FILE for weights of your own, or a local "
    "folder in the Hugging Face layout"
)


def load_backbone(name: str, *, pretrained: bool = True) -> Backbone:
    """Give a backbone by its name.

    Args:
        name: `efficientnet_lite0` or `minilm` (packaged: no network is needed); `timm:NAME`, `torchvision:NAME` or
            `hf:NAME` (weights from a hub); any of these with `@FILE` behind it (weights from a `.safetensors` or
            `.pth` file); or a local folder in the Hugging Face layout (`./minilm` for one with a packaged name).
        pretrained: Load the weights; `False` gives random ones.

    Raises:
        UnknownNameError: If nothing answers to the name.
        MissingDependencyError: If a library or the backbone's package is not installed.
        HubError: If weights cannot be fetched.

    Example:
        >>> backbone = load_backbone("torchvision:resnet18", pretrained=False)
        >>> backbone.kind, backbone.width, backbone.preprocessing.size
        ('images', 512, 224)
    """
    network, _, file = name.partition("@")
    settings: dict[str, Any] = {"pretrained": pretrained}
    if file and pretrained:
        settings["weights"] = file
    # Before the folders: a run that was written to `./minilm` must not hide the packaged network.
    if network in PACKAGED:
        backbone = PACKAGED[network](**settings)
        backbone.name = name
        return backbone
    if Path(name).is_dir():
        return load_huggingface(name, pretrained=pretrained)
    if Path(name).is_file():
        raise MisconfigurationError(
            f"{name!r} is a file with weights, and does not say of which network. Name it: 'timm:ARCHITECTURE@{name}', "
            f"'torchvision:ARCHITECTURE@{name}', '{LITE0}@{name}'."
        )
    library, separator, model_name = network.partition(":")
    if not separator or library not in _LIBRARIES:
        raise UnknownNameError(f"There is no backbone {name!r}.{_nearest(network)} Known: {_FORMS}.")
    backbone = _LIBRARIES[library](model_name, **settings)
    backbone.name = name
    return backbone


def default_backbone(kind: Literal["images", "text"]) -> str:
    """Give the name of the packaged backbone for a kind of data.

    Raises:
        UnknownNameError: If `kind` is another word.

    Example:
        >>> default_backbone("text")
        'minilm'
    """
    defaults = {"images": LITE0, "text": MINILM}
    if kind not in defaults:
        raise UnknownNameError(f"kind is {kind!r}; expected 'images' or 'text'.")
    return defaults[kind]


def rebuild_backbone(
    description: Mapping[str, Any], *, tokenizer_files: Mapping[str, bytes] | None = None
) -> Backbone:
    """Give the backbone that `Backbone.describe` described, with random weights. Nothing is fetched.

    Args:
        description: What `describe` gave.
        tokenizer_files: For text, what `TextPreprocessing.files` gave.

    Raises:
        MisconfigurationError: If a text backbone comes without a tokenizer.
        MissingDependencyError: If its library is not installed.

    Example:
        >>> backbone = load_backbone("torchvision:resnet18", pretrained=False)
        >>> rebuild_backbone(backbone.describe()).name
        'torchvision:resnet18'
    """
    architecture, name = description["architecture"], description["name"]
    preprocessing: ImagePreprocessing | TextPreprocessing
    if description["kind"] == "images":
        preprocessing = ImagePreprocessing.from_dict(description["preprocessing"])
    elif tokenizer_files:
        preprocessing = TextPreprocessing.from_files(tokenizer_files, description["preprocessing"])
    else:
        raise MisconfigurationError(f"The description of {name!r} comes without the files of its tokenizer.")
    if architecture["library"] == "transformers":
        return rebuild_huggingface(name, architecture["config"], preprocessing)
    backbone = _LIBRARIES[architecture["library"]](architecture["model"], pretrained=False)
    backbone.name, backbone.preprocessing = name, preprocessing
    return backbone


def _nearest(network: str) -> str:
    library, separator, model_name = network.partition(":")
    if separator:
        near = did_you_mean(library, _LIBRARIES)
        return near and near.replace("'?", f":{model_name}'?")
    candidates = list(PACKAGED)
    # Someone who writes 'resnet18' most likely means one of these libraries'.
    if find_spec("torchvision"):
        from torchvision import models

        candidates += [f"torchvision:{each}" for each in models.list_models(module=models)]
        if f"torchvision:{network}" in candidates:
            return f" Did you mean 'torchvision:{network}'?"
    if find_spec("timm"):
        import timm

        if timm.is_model(network):
            return f" Did you mean 'timm:{network}'?"
    return did_you_mean(network, candidates)
