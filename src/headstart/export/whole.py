"""The whole network under the names of the library that it comes from: what that library can load by itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from headstart.backbones.torchvision_models import WITH_AUXILIARY_HEAD, remove_head, settings_of
from headstart.errors import MisconfigurationError
from headstart.export.source import Source


class MeanOfTokens(nn.Module):
    """A text network of transformers, the mean over the tokens that are not padding, and a linear head.

    Args:
        network: As `AutoModel` gives it, without a pooler.
        head: From the mean to logits.
    """

    def __init__(self, network: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, **tokens: Tensor) -> Tensor:
        """Give the logits (B, C) of a tokenizer's tensors (B, T)."""
        states = self.network(**tokens).last_hidden_state  # (B, T, D)
        mask = tokens["attention_mask"].unsqueeze(-1)  # (B, T, 1)
        logits: Tensor = self.head((states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1))
        return logits


def whole_network(architecture: Mapping[str, Any], num_classes: int) -> tuple[nn.Module, str]:
    """Give the library's own network with random weights, and the name of the layer that gives the classes.

    Args:
        architecture: What `Backbone.describe` has under that name.
        num_classes: Of the head.

    Raises:
        MisconfigurationError: If the library's own head is of another kind than a linear layer.

    Example:
        >>> network, head = whole_network({"library": "torchvision", "model": "resnet18"}, 3)
        >>> head, network.get_submodule(head).out_features
        ('fc', 3)
    """
    head = ""
    if architecture["library"] == "transformers":
        network = _of_transformers(architecture["config"], num_classes)
        head = "head" if network is not None else ""
    elif architecture["library"] == "timm":
        import timm

        network = timm.create_model(architecture["model"], pretrained=False, num_classes=num_classes)
        layer = network.get_classifier()
        head = next((name for name, each in network.named_modules() if each is layer), "")
    else:
        from torchvision import models

        settings = {"num_classes": num_classes, **settings_of(architecture["model"])}
        if architecture["model"] in WITH_AUXILIARY_HEAD:  # without a head that only training uses
            settings |= {"aux_logits": False, "init_weights": False}
        network = models.get_model(architecture["model"], weights=None, **settings)
        head = remove_head(copy.deepcopy(network))[0].removesuffix(".")
    if network is None or not head or not isinstance(network.get_submodule(head), nn.Linear):
        raise MisconfigurationError(
            f"In {architecture['library']}, {architecture.get('model') or architecture['config'].get('model_type')!r} has no "
            "head that is one linear layer on the features that this run has, so that library cannot hold the model. "
            "--format onnx and --format torch-export can."
        )
    return network.eval(), head


def own_weights(source: Source) -> dict[str, Tensor]:
    """Give the weights of a run under the names of the library that its backbone comes from, the head's too."""
    network, head = whole_network(source.facts["architecture"], len(source.model.class_names))
    prefix = "network." if isinstance(network, MeanOfTokens) else ""
    parts = {prefix: source.model.backbone.model, f"{head}.": source.model.head}
    weights = {
        before + name: value.detach().clone().contiguous()
        for before, part in parts.items()
        for name, value in part.state_dict().items()
    }
    network.load_state_dict(weights)  # every one, and no other
    return weights


def _of_transformers(config: Mapping[str, Any], num_classes: int) -> nn.Module | None:
    """Give a text network; `None` for images, whose features headstart pools in several ways."""
    from transformers import AutoConfig, AutoModel

    values = dict(config)
    built = AutoConfig.for_model(values.pop("model_type"), **values)
    network = AutoModel.from_config(built, trust_remote_code=False)
    if network.main_input_name == "pixel_values":
        return None
    if built.is_encoder_decoder:
        network = network.get_encoder()
    if getattr(network, "pooler", None) is not None:
        network.pooler = None  # a mean does not read it
    return MeanOfTokens(network.float(), nn.Linear(int(built.hidden_size), num_classes))
