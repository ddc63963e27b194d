"""`--format torch-export`: a program of `torch.export`, which runs wherever torch is, and needs no code of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import ExportError
from headstart.export import prepare
from headstart.export.compare import Logits
from headstart.export.network import OUTPUTS, trace
from headstart.export.onnx_file import arrays_of
from headstart.export.samples import Sample
from headstart.export.source import Source

FILE = "model.pt2"

# What someone does who has torch alone. An import of headstart fails here, wherever it is installed.
_PROGRAM = """
import sys
sys.modules["headstart"] = None
import numpy, torch
model, *files = sys.argv[1:]
network = torch.export.load(model).module()
for file in files:
    arrays = numpy.load(file)
    with torch.no_grad():
        _, logits = network(**{name: torch.from_numpy(arrays[name]) for name in arrays.files})
    numpy.save(file + ".out.npy", logits.numpy())
"""


def write(folder: Path, source: Source) -> dict[str, Any]:
    """Write the program, the facts inside it, and a tokenizer beside it; give its inputs and outputs."""
    import torch

    program, inputs = trace(source)
    torch.export.save(program, folder / FILE, extra_files={"export.json": json.dumps(source.facts)})
    if source.model.kind == "text":
        facts = source.facts["preprocessing"]
        prepare.save_tokenizer(folder, source.tokenizer_files(), max_length=facts["max_length"])
    return {"inputs": inputs, "outputs": list(OUTPUTS)}


def predict(folder: Path, description: dict[str, Any], batches: Sequence[Sequence[Sample]]) -> list[Logits]:
    """Give the logits of batches of samples, by a second process that has torch and not headstart."""
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / f"{index}.npz" for index in range(len(batches))]
        for file, samples in zip(files, batches, strict=True):
            np.savez(file, allow_pickle=False, **arrays_of(folder, description, samples))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        process = subprocess.run(  # noqa: S603 (this Python, our program)
            [sys.executable, "-I", "-c", _PROGRAM, str(folder / FILE), *map(str, files)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode != 0:
            raise ExportError(
                f"The program cannot be loaded by torch alone, and nothing was written:\n{process.stderr.strip()}"
            )
        return [np.load(f"{file}.out.npy") for file in files]
