"""`export`: a folder that appears when all of it is written, loaded again, and found to compute what the run does.

OUT/
  (the files of the format)
  export.json    what they are, what goes in and comes out, class names, preprocessing, the comparison, digests
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart import __version__
from headstart.errors import MisconfigurationError, UnknownNameError, did_you_mean
from headstart.export.compare import TOLERANCE, Comparison, Logits, compare
from headstart.export.samples import Sample, opened, samples_for
from headstart.export.source import read_source
from headstart.files import explained, flush_folder, give_ordinary_permissions, remove, sha256_of
from headstart.tasks import Classifier, ImageClassifier, TextClassifier

DESCRIPTION_FILE = "export.json"
FORMAT_VERSION = 1

#: The file of this package that writes each format.
FORMATS = {
    "onnx": "onnx_file",
    "torch-export": "torch_export",
    "safetensors": "safetensors_file",
    "hf": "hub_folder",
    "adapters": "adapters",
}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where.
        files: Names in it, and their bytes.
        comparison: With the run.
    """

    folder: Path
    files: dict[str, int]
    comparison: Comparison


def export(
    run: str | Path,
    *,
    format: str,  # noqa: A002 (the option's name)
    out: str | Path | None = None,
    samples: Sequence[str] = (),
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
) -> Exported:
    """Write a run's model for other programs, load it there, and compare.

    Args:
        run: The folder that `headstart fit` wrote.
        format: `onnx`, `torch-export`, `safetensors`, `hf` or `adapters`.
        out: The folder that is made; `None` is `RUN/exports/FORMAT`.
        samples: What to compare on; without any, the run's data, and where that is gone, random inputs.
        tolerance: How far logits may differ, as a fraction of 1 + the largest of them.
        overwrite: Replace an export that is there.

    Returns:
        The folder, its files, and how large the difference is.

    Raises:
        ExportError: If the export computes something else: nothing is written then.
        MisconfigurationError: If the format cannot hold this model, or `out` is taken.
        MissingDependencyError: If a library is not installed.
        CheckpointError: If the run is damaged.
        WriteError: If the disk is full.
    """
    if format not in FORMATS:
        raise UnknownNameError(
            f"There is no format {format!r}.{did_you_mean(format, FORMATS)} Known: {', '.join(FORMATS)}."
        )
    if not tolerance > 0:
        raise MisconfigurationError(
            f"The tolerance is {tolerance:g}; expected a number above 0. No two libraries add in the same order."
        )
    folder = Path(run) / "exports" / format if out is None else Path(out)
    _refuse_taken(folder, overwrite=overwrite)
    source = read_source(run)
    found = samples_for(source, samples)
    expected = logits_of(source.model, found.values)
    writer = import_module(f"headstart.export.{FORMATS[format]}")
    with _appearing(folder) as temporary:
        description = {
            "format_version": FORMAT_VERSION,
            "format": format,
            "headstart": __version__,
            **source.facts,
            **writer.write(temporary, source),
        }
        answers = writer.predict(temporary, description, [found.values, found.values[:1]])
        comparison = compare(
            expected, answers, origin=found.origin, are_real=found.are_real, tolerance=tolerance
        )
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        description |= {
            "comparison": asdict(comparison),
            "files": {
                path.relative_to(temporary).as_posix(): {
                    "bytes": path.stat().st_size,
                    "sha256": sha256_of(path),
                }
                for path in files
            },
        }
        text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False)
        (temporary / DESCRIPTION_FILE).write_text(text, encoding="utf-8")
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return Exported(folder, sizes, comparison)


def logits_of(model: Classifier, samples: Sequence[Sample]) -> Logits:
    """Give the logits (N, C) of samples as headstart computes them."""
    inputs: Any
    if isinstance(model, ImageClassifier):
        transform = model.preprocessing.eval_transform()
        inputs = torch.stack([transform(opened(photo)) for photo in samples])
    else:
        assert isinstance(model, TextClassifier)
        inputs = model.preprocessing(list(samples))
    with torch.no_grad():
        return np.asarray(model.eval()(inputs).float().numpy(), dtype=np.float32)


def _refuse_taken(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    is_export = (folder / DESCRIPTION_FILE).is_file()
    if overwrite and is_export and not folder.is_symlink():
        return
    if overwrite:
        raise MisconfigurationError(
            f"{folder} is no export (it has no {DESCRIPTION_FILE}), so --overwrite does not replace it. Give another folder "
            "(--out)."
        )
    advice = "--overwrite to replace it, or " if is_export else ""
    raise MisconfigurationError(f"{folder} is there already. Give {advice}another folder (--out).")


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Give a folder of another name, which gets this one when the block is over, and vanishes where it failed."""
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        with explained(folder):
            yield temporary
            give_ordinary_permissions(temporary)
            earlier = temporary.with_suffix(".earlier")
            if folder.exists():
                folder.rename(earlier)
            temporary.rename(folder)
            remove(earlier)
            flush_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # not there where all went well
