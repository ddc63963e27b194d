"""The artefact of a run: a folder that predicts, with no network, no pickle, and nothing else.

    RUN/
      model.safetensors    the weights
      headstart.json       all else: class names, preprocessing, backbone, versions, metrics, and the digest of each file
      tokenizer/           for text

Every file is written under another name, flushed to the disk, and renamed when all of them are there; `headstart.json`
comes last. It holds the digests of the others and a checksum of itself, so a folder that is incomplete, mixed or damaged is
recognised when it is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from headstart import __version__
from headstart.backbones.hub import fetching_nothing
from headstart.errors import CheckpointError, HeadstartError, MisconfigurationError, missing_dependency
from headstart.files import sha256_of, write_together
from headstart.tasks import Classifier, ImageClassifier, TextClassifier

FORMAT_VERSION = 1
METADATA_FILE = "headstart.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FOLDER = "tokenizer"

_TOKENIZER_FILE = re.compile(
    rf"{TOKENIZER_FOLDER}/\w[\w.-]*\.(json|txt|model|jinja|bpe|codes|vocab|tiktoken)", re.ASCII
)
_KEYS = {
    "format_version", "task", "class_names", "backbone", "preprocessing", "arguments", "metrics", "data", "history",
    "versions", "created", "files",
}  # fmt: skip
_LARGEST_METADATA = 100_000_000  # bytes
_LARGEST_IMAGE_SIZE = 4096  # pixels; building the model may try it out

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
        WriteError: If the disk is full or the folder cannot be written; an artefact that was there before is untouched.
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
    if strange := [name for name in files if name != WEIGHTS_FILE and not _TOKENIZER_FILE.fullmatch(name)]:
        raise MisconfigurationError(
            f"The tokenizer of {model.backbone.name!r} has files that an artefact does not hold: {', '.join(strange)}."
        )
    writers = {directory / name: _writer(content) for name, content in files.items()}
    _refuse_links(directory, files)
    write_together({**writers, directory / METADATA_FILE: _writer(_encode(_plain(metadata)))})
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
        from safetensors.torch import load_file
    except ImportError:
        raise missing_dependency("safetensors", needed_for="artefacts", extra="images") from None
    directory = Path(directory)
    metadata = read_metadata(directory)
    for name, expected in metadata["files"].items():
        _check_file(directory, name, expected)
    tokenizer = {
        name.removeprefix(f"{TOKENIZER_FOLDER}/"): (directory / name).read_bytes()
        for name in metadata["files"]
        if name != WEIGHTS_FILE
    }
    model = _build(directory, metadata, tokenizer)
    try:
        weights = load_file(directory / WEIGHTS_FILE)
    except Exception as error:  # absurd headers get past the format's own checks
        if isinstance(error, ImportError):
            raise
        raise CheckpointError(
            f"{directory / WEIGHTS_FILE} is no safetensors file: {error}. Copy the whole folder again."
        ) from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights in {directory} do not fit the network that is built now. It was written with "
            f"{_sentence(metadata['versions'])}; here are {_sentence(_versions())}. {error}"
        ) from error
    return model.eval()


def _build(directory: Path, metadata: Mapping[str, Any], tokenizer: Mapping[str, bytes]) -> Classifier:
    """Give the model that an artefact describes, with random weights."""
    description = {**metadata["backbone"], "tokenizer_files": tokenizer}
    arguments = {**metadata["arguments"], "pretrained": False}
    task = _TASKS[metadata["task"]]
    model_name = str(description.get("architecture", {}).get("model", ""))
    attention = str(description.get("architecture", {}).get("config", {}).get("_attn_implementation", ""))
    # A name of another network, or one with a place in it, would be looked for on a hub.
    if arguments.get("backbone") != description.get("name") or re.search("[:/]", model_name + attention):
        raise CheckpointError(
            f"{directory / METADATA_FILE} names a backbone that would have to be fetched ({arguments.get('backbone')!r}, "
            f"{model_name or description.get('name')!r}), and an artefact is loaded from its folder alone. Was it written "
            "by headstart?"
        )
    size = arguments.get("image_size") or 0
    if not isinstance(size, int) or size > _LARGEST_IMAGE_SIZE:
        raise CheckpointError(
            f"{directory / METADATA_FILE} says image_size {size!r}; expected up to {_LARGEST_IMAGE_SIZE}."
        )
    try:
        with fetching_nothing():
            return task(class_names=metadata["class_names"], description=description, **arguments)
    except HeadstartError:
        raise
    except Exception as error:  # anything may stand in a description
        raise CheckpointError(
            f"{directory / METADATA_FILE} does not describe a model that can be built here: {type(error).__name__}: "
            f"{error}. It was written with {_sentence(metadata['versions'])}; here are {_sentence(_versions())}."
        ) from error


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
    if path.stat().st_size > _LARGEST_METADATA:
        raise CheckpointError(
            f"{path} has {path.stat().st_size:,} bytes; expected up to {_LARGEST_METADATA:,}. It is no file of headstart."
        )
    content = path.read_bytes()
    try:
        metadata = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Copy the whole folder again.") from error
    is_intact = isinstance(metadata, dict) and _is_intact(metadata, content)
    found = metadata.get("format_version") if isinstance(metadata, dict) else None
    if not isinstance(found, int):
        raise CheckpointError(
            f"{path} has no format_version: it is damaged, or was not written by headstart."
        )
    if found > FORMAT_VERSION:
        versions = metadata.get("versions")
        written_by = versions.get("headstart") if isinstance(versions, dict) else None
        raise CheckpointError(
            f"{path} has format version {found}, and this headstart ({__version__}) reads up to {FORMAT_VERSION}. It "
            f"was written by headstart {written_by or 'of a newer version'}: pip install --upgrade headstart."
        )
    if not is_intact:
        raise CheckpointError(
            f"{path} is damaged, or was changed after it was written: its checksum does not fit. Copy the whole folder "
            'again; if you changed it on purpose, delete its line "checksum".'
        )
    needed = ("task", "class_names", "backbone", "preprocessing", "arguments", "versions", "files")
    missing = [name for name in needed if name not in metadata]
    if not missing and not _is_well_formed(metadata):
        raise CheckpointError(
            f"{path} is damaged, or was not written by headstart: its entries are of other kinds."
        )
    if missing or WEIGHTS_FILE not in metadata["files"]:
        raise CheckpointError(f"{path} is incomplete: it lacks {', '.join(missing) or WEIGHTS_FILE}.")
    for name in metadata["files"]:
        if name != WEIGHTS_FILE and not _TOKENIZER_FILE.fullmatch(name):
            raise CheckpointError(
                f"{path} names {name!r}, which may lie outside of the folder, or is no file of a tokenizer. Expected "
                f"{WEIGHTS_FILE} and files directly in {TOKENIZER_FOLDER}/."
            )
    if metadata["task"] not in _TASKS:
        raise CheckpointError(f"{path} is for the task {metadata['task']!r}; known: {', '.join(_TASKS)}.")
    return dict(metadata)


def _is_intact(metadata: Mapping[str, Any], content: bytes) -> bool:
    """Whether the file is byte for byte what `_encode` writes. One without a checksum (edited by hand) has known keys."""
    if "checksum" not in metadata:
        return set(metadata) <= _KEYS
    try:
        return _encode({name: value for name, value in metadata.items() if name != "checksum"}) == content
    except (ValueError, RecursionError):  # NaN, lone surrogates
        return False


def _encode(metadata: Mapping[str, Any]) -> bytes:
    """Give the content of `headstart.json`: the metadata, and a checksum of it."""

    def as_text(value: Mapping[str, Any]) -> str:
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)

    checksum = hashlib.sha256(as_text(metadata).encode()).hexdigest()
    return as_text({**metadata, "checksum": checksum}).encode()


def _is_well_formed(metadata: Mapping[str, Any]) -> bool:
    """Whether what the reader relies on has the right types."""
    files, names = metadata["files"], metadata["class_names"]
    tables = [metadata[name] for name in ("backbone", "preprocessing", "arguments", "versions", "files")]
    return (
        all(isinstance(table, dict) for table in tables)
        and isinstance(metadata["task"], str)
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and isinstance(metadata["backbone"].get("architecture"), dict)
        and isinstance(metadata["backbone"]["architecture"].get("config", {}), dict)
        and not {"class_names", "description"} & set(metadata["arguments"])
        and all(
            isinstance(each, dict)
            and isinstance(each.get("bytes"), int)
            and isinstance(each.get("sha256"), str)
            for each in files.values()
        )
    )


def _check_file(directory: Path, name: str, expected: Mapping[str, Any]) -> None:
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise CheckpointError(
            f"{path} is a link to a place outside of the folder, and an artefact is loaded from its folder alone. Put the "
            "file itself there."
        )
    if not path.is_file():
        raise CheckpointError(f"{directory} is incomplete: {name} is missing. Copy the whole folder.")
    size = path.stat().st_size
    if size == expected["bytes"] and sha256_of(path) == expected["sha256"]:
        return
    raise CheckpointError(
        f"{path} is not the file that {METADATA_FILE} was written for ({size:,} bytes, expected "
        f"{expected['bytes']:,}): it is damaged, or of another run. Copy the whole folder again."
    )


def _refuse_links(directory: Path, names: Iterable[str]) -> None:
    """Do not write through a link in the folder; a link *to* the folder is the caller's own."""
    for folder in {(directory / name).parent for name in names}:
        if folder != directory and folder.is_symlink():
            raise MisconfigurationError(
                f"{folder} is a link, and nothing is written through links in an artefact. Delete it, or give another folder."
            )


def _writer(content: bytes) -> Callable[[Path], int]:
    return lambda path: path.write_bytes(content)


def _weights_as_bytes(model: Classifier) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError:
        raise missing_dependency("safetensors", needed_for="artefacts", extra="images") from None
    # A clone each: the format refuses tensors that share memory (tied embeddings do).
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    written: bytes = save(weights)
    return written


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
