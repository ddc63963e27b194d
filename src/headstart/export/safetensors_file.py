"""`--format safetensors`: the weights alone, under the names of the library that the backbone comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart.export import prepare
from headstart.export.compare import Logits
from headstart.export.onnx_file import arrays_of
from headstart.export.samples import Sample
from headstart.export.source import Source
from headstart.export.whole import own_weights, whole_network

FILE = "model.safetensors"


def write(folder: Path, source: Source) -> dict[str, Any]:
    """Write the file, the facts in its header, and a tokenizer beside it; give what the network takes."""
    from safetensors.torch import save_file

    facts = {name: json.dumps(value) for name, value in source.facts.items()}
    save_file(own_weights(source), folder / FILE, metadata={"format": "pt", **facts})
    if source.model.kind == "images":
        return {"inputs": [{"name": "pixels", "dtype": "float32", "shape": ["batch", 3, "height", "width"]}]}
    facts_of_texts = source.facts["preprocessing"]
    prepare.save_tokenizer(folder, source.tokenizer_files(), max_length=facts_of_texts["max_length"])
    names = list(source.model.preprocessing(["a text"]))  # type: ignore[operator]  # of a text model
    return {"inputs": [{"name": name, "dtype": "int64", "shape": ["batch", "tokens"]} for name in names]}


def predict(folder: Path, description: dict[str, Any], batches: Sequence[Sequence[Sample]]) -> list[Logits]:
    """Give the logits of batches of samples, by the library's own network with the weights of the file."""
    from safetensors.torch import load_file

    network, _ = whole_network(description["architecture"], len(description["class_names"]))
    network.load_state_dict(load_file(folder / FILE))
    with torch.no_grad():
        return [_logits(network, arrays_of(folder, description, samples), description) for samples in batches]


def _logits(network: torch.nn.Module, arrays: prepare.Arrays, description: dict[str, Any]) -> Logits:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if "pixels" in tensors:
        facts = description["preprocessing"]
        mean, std = (torch.tensor(facts[name]).view(3, 1, 1) for name in ("mean", "std"))
        images = tensors["pixels"].permute(0, 3, 1, 2).float() / facts["divide_by"]
        logits = network((images - mean) / std)
    else:
        logits = network(**tensors)
    return np.asarray(logits.numpy(), dtype=np.float32)
