"""`--format onnx`: a file for ONNX Runtime and what else reads ONNX; class names and preprocessing in its metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headstart.errors import missing_dependency
from headstart.export import prepare
from headstart.export.compare import Logits
from headstart.export.network import OUTPUTS, trace
from headstart.export.samples import Sample, opened
from headstart.export.source import Source

FILE = "model.onnx"
# Protocol buffers end at 2 GB; larger weights stand in a file beside it.
_LARGEST_FILE = 1_900_000_000  # bytes


def write(folder: Path, source: Source) -> dict[str, Any]:
    """Write the file, and a tokenizer beside it; give what `export.json` says of inputs and outputs."""
    try:
        import onnx  # noqa: F401 (torch needs both)
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_dependency(error.name or "onnx", needed_for="--format onnx", extra="export") from None
    import torch

    program, inputs = trace(source)
    written = torch.onnx.export(program, (), output_names=list(OUTPUTS), dynamo=True, verbose=False)
    assert written is not None
    written.model.metadata_props.update({name: json.dumps(value) for name, value in source.facts.items()})
    num_bytes = sum(each.numel() * each.element_size() for each in source.model.state_dict().values())
    written.save(folder / FILE, external_data=num_bytes > _LARGEST_FILE)
    if source.model.kind == "text":
        facts = source.facts["preprocessing"]
        prepare.save_tokenizer(folder, source.tokenizer_files(), max_length=facts["max_length"])
    return {"inputs": inputs, "outputs": list(OUTPUTS)}


def predict(folder: Path, description: dict[str, Any], batches: Sequence[Sequence[Sample]]) -> list[Logits]:
    """Give the logits of batches of samples, by ONNX Runtime; torch has no part in it."""
    try:
        import onnxruntime
    except ImportError:
        raise missing_dependency("onnxruntime", needed_for="--format onnx", extra="export") from None
    session = onnxruntime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
    return [session.run(["logits"], arrays_of(folder, description, samples))[0] for samples in batches]


def arrays_of(folder: Path, description: dict[str, Any], samples: Sequence[Sample]) -> prepare.Arrays:
    """Give what the network takes, by what the folder says of it."""
    import numpy as np

    facts, names = description["preprocessing"], [each["name"] for each in description["inputs"]]
    if names == ["pixels"]:
        return {"pixels": np.stack([prepare.pixels_of(opened(each), facts) for each in samples])}
    return prepare.tokens_of(samples, folder / facts["tokenizer"], names)
