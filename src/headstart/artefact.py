"""The artefact of a run: a folder that predicts, with no network, no pickle, and nothing else.

    RUN/
      model.safetensors    the weights
      headstart.json       all else: class names, preprocessing, backbone, versions, metrics, and the digest of each file
      tokenizer/           for text

Every file is written under another name, flushed to the disk, and renamed when all of them are there; `headstart.json`
comes last. It holds the digests of the others, so a folder that is incomplete or mixed is recognised when it is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from headstart import __version__
from headstart.errors import CheckpointError, MisconfigurationError, missing_dependency
from headstart.tasks import Classifier, ImageClassifier, TextClassifier

FORMAT_VERSION = 1
METADATA_FILE = "headstart.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FOLDER = "tokenizer"

_TASKS: dict[str, type[ImageClassifier | TextClassifier]] = {
    "image-classification": ImageClassifier,
    "text-classification": TextClassifier,
}
_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "safetensors", "torchmetrics")


def save_artefact(
    directory: str | Path,
    model: Classifier,
    *,
    metrics: Mapping[str, Any] | None = None,
    data_report: Any = None,
    history: Any = None,
) -> Path:
    """Write a model as a folder that `load_artefact` reads, and give the folder.

    Args:
        directory: The folder; made if it is not there. Other files in it are left alone.
        model: An `ImageClassifier` or `TextClassifier`, its backbone given by name.
        metrics: Measured values by name; numbers, or one-element tensors.
        data_report: What is to be remembered of the data: a dict or dataclass of plain values.
        history: What is to be remembered of the training: the same.

    Raises:
        MisconfigurationError: If the model cannot be rebuilt from a description.
        OSError: If the disk is full or the folder cannot be written; an artefact that was there before is untouched.
    """
    directory = Path(directory)
    task = next((name for name, kind in _TASKS.items() if isinstance(model, kind)), None)
    if task is None:
        raise MisconfigurationError(
            f"An artefact holds an ImageClassifier or a TextClassifier; received {type(model).__name__}."
        )
    model.backbone.describe()  # refuses a backbone that cannot be rebuilt, before anything is written
    arguments = model.rebuild_arguments()
    description = dict(arguments.pop("description"))
    tokenizer_files = description.pop("tokenizer_files", {})
    files = {WEIGHTS_FILE: _weights_as_bytes(model)}
    files |= {f"{TOKENIZER_FOLDER}/{name}": content for name, content in tokenizer_files.items()}
    metadata = {
        "format_version": FORMAT_VERSION,
        "task": task,
        "class_names": model.class_names,
        "backbone": {**description, "width": model.backbone.width},
        "preprocessing": model.preprocessing.to_dict(),
        "arguments": {name: value for name, value in arguments.items() if name != "class_names"},
        "metrics": metrics or {},
        "data": data_report,
        "history": history,
        "versions": _versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        },
    }
    text = json.dumps(_plain(metadata), indent=2, ensure_ascii=False, allow_nan=False)
    _write_together(directory, {**files, METADATA_FILE: text.encode()})
    return directory


def load_artefact(directory: str | Path) -> Classifier:
    """Give the model of an artefact, in evaluation mode, ready to predict. Nothing is fetched or run.

    Args:
        directory: The folder that `save_artefact` wrote.

    Raises:
        CheckpointError: If it is no artefact, is incomplete or damaged, or of a newer format.
        MissingDependencyError: If a library that the backbone is made of is not installed.
    """
    try:
        from safetensors.torch import load
    except ImportError:
        raise missing_dependency("safetensors", needed_for="artefacts", extra="images") from None
    directory = Path(directory)
    metadata = read_metadata(directory)
    contents = {
        name: _read_checked(directory, name, expected) for name, expected in metadata["files"].items()
    }
    description = {
        **metadata["backbone"],
        "tokenizer_files": {
            name.removeprefix(f"{TOKENIZER_FOLDER}/"): content
            for name, content in contents.items()
            if name.startswith(f"{TOKENIZER_FOLDER}/")
        },
    }
    model = _TASKS[metadata["task"]](
        class_names=metadata["class_names"], description=description, **metadata["arguments"]
    )
    try:
        model.load_state_dict(load(contents[WEIGHTS_FILE]))
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights in {directory} do not fit the network that is built now. It was written with "
            f"{_sentence(metadata['versions'])}; here are {_sentence(_versions())}. {error}"
        ) from error
    return model.eval()


def read_metadata(directory: str | Path) -> dict[str, Any]:
    """Give what `headstart.json` says, its version and its required entries checked; no weights are read.

    Raises:
        CheckpointError: If it is missing, damaged, incomplete, or of a newer format.
    """
    path = Path(directory) / METADATA_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{str(directory)!r} is no artefact: it has no {METADATA_FILE}. Expected the folder that "
            "`headstart fit ... --out RUN` or save_artefact wrote to its end."
        )
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    found = metadata.get("format_version") if isinstance(metadata, dict) else None
    if not isinstance(found, int):
        raise CheckpointError(f"{path} has no format_version: it was not written by headstart.")
    if found > FORMAT_VERSION:
        written_by = metadata.get("versions", {}).get("headstart", "a newer one")
        raise CheckpointError(
            f"{path} has format version {found}, and this headstart ({__version__}) reads up to {FORMAT_VERSION}. It "
            f"was written by headstart {written_by}: pip install --upgrade headstart."
        )
    needed = ("task", "class_names", "backbone", "preprocessing", "arguments", "versions", "files")
    missing = [name for name in needed if name not in metadata]
    if missing or WEIGHTS_FILE not in metadata["files"]:
        raise CheckpointError(f"{path} is incomplete: it lacks {', '.join(missing) or WEIGHTS_FILE}.")
    if metadata["task"] not in _TASKS:
        raise CheckpointError(f"{path} is for the task {metadata['task']!r}; known: {', '.join(_TASKS)}.")
    return dict(metadata)


def _read_checked(directory: Path, name: str, expected: Mapping[str, Any]) -> bytes:
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise CheckpointError(
            f"{METADATA_FILE} in {directory} names {name!r}, which is outside of the folder."
        )
    if not path.is_file():
        raise CheckpointError(f"{directory} is incomplete: {name} is missing. Copy the whole folder.")
    content = path.read_bytes()
    if len(content) != expected["bytes"] or hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise CheckpointError(
            f"{path} is not the file that {METADATA_FILE} was written for ({len(content):,} bytes, expected "
            f"{expected['bytes']:,}): it is damaged, or of another run. Copy the whole folder again."
        )
    return content


def _weights_as_bytes(model: Classifier) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError:
        raise missing_dependency("safetensors", needed_for="artefacts", extra="images") from None
    # A clone each: the format refuses tensors that share memory (tied embeddings do).
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    written: bytes = save(weights)
    return written


def _write_together(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write all files under temporary names, and rename them when the last is on the disk."""
    staged: list[tuple[Path, Path]] = []
    try:
        for name, content in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            staged.append((temporary, path))
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for temporary, path in staged:
            temporary.replace(path)
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
    if os.name != "nt":  # a folder cannot be opened there
        for folder in {path.parent for _, path in staged}:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _versions() -> dict[str, str]:
    found = {"headstart": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue  # not every backbone needs every library
    return found


def _sentence(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _plain(value: Any) -> Any:
    """Give what JSON can hold; a number that is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, torch.Tensor) or (hasattr(value, "item") and hasattr(value, "dtype")):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value
