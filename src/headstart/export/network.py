"""The network that is exported: from pixels or tokens to probabilities, with all that lies between inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from headstart.backbones import ImagePreprocessing, TextPreprocessing
from headstart.errors import MisconfigurationError
from headstart.export.source import Source

OUTPUTS = ("probabilities", "logits")
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class PhotoNetwork(nn.Module):
    """From uint8 pixels (B, H, W, 3), RGB, to probabilities and logits (B, C): a caller cannot scale them wrongly."""

    def __init__(self, backbone: nn.Module, head: nn.Module, preprocessing: ImagePreprocessing) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Give probabilities and logits."""
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std  # (B, 3, H, W)
        logits = self.head(self.backbone(images))
        return logits.softmax(dim=-1), logits


class TextNetwork(nn.Module):
    """From a tokenizer's int64 tensors (B, T) to probabilities and logits (B, C)."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Give probabilities and logits."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        logits = self.head(self.backbone(inputs))
        return logits.softmax(dim=-1), logits


def trace(source: Source) -> tuple[torch.export.ExportedProgram, list[dict[str, Any]]]:
    """Give the network as a program of `torch.export`, and a description of each input.

    Any number of samples may come at once, and any number of tokens up to what the network takes.

    Raises:
        MisconfigurationError: If the backbone does what `torch.export` cannot follow.
    """
    model, preprocessing = source.model, source.model.preprocessing
    network: nn.Module
    any_size = torch.export.Dim.DYNAMIC
    # Examples of two: a size of one would be taken for a constant.
    if isinstance(preprocessing, ImagePreprocessing):
        size = preprocessing.size
        network = PhotoNetwork(model.backbone, model.head, preprocessing)
        examples = {"pixels": torch.zeros(2, size, size, 3, dtype=torch.uint8)}
        shapes: dict[str, dict[int, Any]] = {"pixels": {0: any_size}}
        described = [{"name": "pixels", "dtype": "uint8", "shape": ["batch", size, size, 3]}]
    else:
        network = TextNetwork(model.backbone, model.head)
        examples = _text_examples(preprocessing)
        shapes = {name: {0: any_size, 1: any_size} for name in examples}
        described = [{"name": name, "dtype": "int64", "shape": ["batch", "tokens"]} for name in examples]
    try:
        with torch.no_grad():
            program = torch.export.export(network.eval(), (), examples, dynamic_shapes=shapes)
    except Exception as error:  # what an architecture does can go wrong in any way
        raise MisconfigurationError(
            f"torch.export cannot follow the backbone {model.backbone.name!r}: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}. --format safetensors writes its weights, for the library that it "
            "comes from."
        ) from error
    return program, described


def _text_examples(preprocessing: TextPreprocessing) -> dict[str, Tensor]:
    found = preprocessing(["a text", "another text, a longer one"])
    if unknown := sorted(set(found) - set(_TEXT_INPUTS)):
        raise MisconfigurationError(
            f"The tokenizer gives {', '.join(unknown)} too; an export takes {', '.join(_TEXT_INPUTS)}. --format safetensors "
            "writes the weights."
        )
    return {name: found[name] for name in _TEXT_INPUTS if name in found}
