"""A checkpoint in parts: a folder to which every process writes what it has, by torch.distributed.checkpoint.

FOLDER/
  checkpoint.ckpt       everything but the parts, with the name of a part where one belongs, and the digest of each file
  parts/                the parts, and which of them are where
"""

from __future__ import annotations

import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.futures import Future

from headstart import archive
from headstart.errors import CheckpointError
from headstart.files import sha256_of
from headstart.strategy.fsdp import map_parts

if TYPE_CHECKING:
    from headstart.strategy.base import Strategy

_WHOLE, _PARTS = "checkpoint.ckpt", "parts"
_DESCRIPTION = ".metadata"
# What stands in the place of a part: its name follows.
_MARK = "\0part:"
# The key of the digests: SHA-256 by file of the parts.
_DIGESTS = "\0digests"

# What a description of parts is made of. It is a pickle, and one could name anything.
_HARMLESS = {
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
}  # fmt: skip


class _Description(pickle.Unpickler):
    """Reads a description of parts, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _HARMLESS.get(module, ()):
            return super().find_class(module, name)
        found = getattr(torch, name, None) if module == "torch" else None
        if found is torch.Size or isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is never run")


class _Reader(FileSystemReader):
    """Reads parts whose files are as they were written; their description in a way that runs nothing."""

    def __init__(self, path: Path, digests: Mapping[str, str]) -> None:
        super().__init__(path)
        self._digests = digests

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Give the description of the parts."""
        self._check(_DESCRIPTION)
        with (Path(self.path) / _DESCRIPTION).open("rb") as file:
            found: Metadata = _Description(file).load()
        for each in (found.storage_data or {}).values():
            path = PurePosixPath(each.relative_path)
            if path.is_absolute() or ".." in path.parts:
                raise pickle.UnpicklingError(f"it names {str(path)!r}, which lies elsewhere")
        found.storage_meta = found.storage_meta or StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what this process needs, from files that it has checked: those that it needs nothing of, others check."""
        for name in {self.storage_data[item.storage_index].relative_path for item in plan.items}:
            self._check(name)
        return super().read_data(plan, planner)

    def _check(self, name: str) -> None:
        problem = _problem_of(Path(self.path) / name, self._digests.get(name))
        if problem is not None:
            raise archive.Damage(problem)


def write_parts(checkpoint: dict[str, Any], folder: str | Path, strategy: Strategy) -> None:
    """Write a checkpoint in parts, whole or not at all; all processes call it.

    Args:
        checkpoint: With parts of tensors somewhere inside, the same in all processes.
        folder: Where to; it is replaced.
        strategy: By which processes agree.

    Raises:
        OSError: If it cannot be written.
    """
    from headstart.checkpoint import write_checkpoint

    folder = Path(folder)
    beside = folder.with_name(f".{folder.name}.unfinished")
    parts: dict[str, DTensor] = {}

    def named(part: DTensor) -> str:
        parts[f"{len(parts)}"] = part
        return f"{_MARK}{len(parts) - 1}"

    rest = map_parts(checkpoint, named)
    if strategy.is_global_zero and beside.exists():
        shutil.rmtree(beside)
    strategy.barrier("write_parts")
    save(parts, checkpoint_id=beside / _PARTS)
    digests = _digests_of_all(beside / _PARTS, strategy)

    def finish() -> None:
        write_checkpoint({**rest, _DIGESTS: digests}, beside / _WHOLE)
        previous = folder.with_name(f".{folder.name}.previous")
        shutil.rmtree(previous, ignore_errors=True)
        if folder.is_dir():
            folder.replace(previous)  # until the new one stands there
        beside.replace(folder)
        shutil.rmtree(previous, ignore_errors=True)

    strategy.by_first(finish)


def read_parts(
    folder: str | Path, *, new: Callable[..., Tensor] = torch.empty, **reading: Any
) -> dict[str, Any]:
    """Read a checkpoint in parts, in any number of processes.

    Args:
        folder: What `write_parts` wrote.
        new: Gives the room for a tensor, by shape and `dtype`: whole ones without it.
        reading: How the rest is read: `map_location`.

    Raises:
        CheckpointError: If something is missing in it or damaged.
    """
    from headstart.checkpoint import read_checkpoint

    folder = Path(folder)
    if not (folder / _WHOLE).is_file():
        raise CheckpointError(f"{folder} is a folder and no checkpoint in parts: it has no {_WHOLE}.")
    rest = read_checkpoint(folder / _WHOLE, **reading)
    reader = _Reader(folder / _PARTS, rest.pop(_DIGESTS, {}))
    try:
        described = reader.read_metadata().state_dict_metadata
        parts = {
            name: new(tuple(each.size), dtype=each.properties.dtype)
            for name, each in described.items()
            if isinstance(each, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one process reads alone
            load(parts, storage_reader=reader)
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        archive.Damage,
        pickle.UnpicklingError,
        CheckpointException,
    ) as error:
        raise CheckpointError(
            f"{folder / _PARTS} is damaged, unsafe, or not all of it is there: {error}"
        ) from error

    def filled(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(_MARK):
            return parts[value.removeprefix(_MARK)]
        if isinstance(value, dict):
            return type(value)((key, filled(each)) for key, each in value.items())
        if isinstance(value, list | tuple):
            return type(value)(map(filled, value))
        return value

    found: dict[str, Any] = filled(rest)
    return found


def check_parts(folder: Path) -> None:
    """Return if a checkpoint in parts is as it was written, to the last byte.

    Raises:
        Damage: If not.
        OSError: If it cannot be read.
    """
    from headstart.checkpoint import read_checkpoint

    archive.check(folder / _WHOLE)
    for name, digest in read_checkpoint(folder / _WHOLE).get(_DIGESTS, {_DESCRIPTION: None}).items():
        problem = _problem_of(folder / _PARTS / name, digest)
        if problem is not None:
            raise archive.Damage(problem)


def _digests_of_all(folder: Path, strategy: Strategy) -> dict[str, str]:
    """Give the digest of each file, each read by one process; all call it."""
    names = strategy.broadcast(sorted(path.name for path in folder.iterdir()))
    own = {name: sha256_of(folder / name) for name in names[strategy.global_rank :: strategy.world_size]}
    return {name: digest for each in strategy.gather_objects(own) for name, digest in each.items()}


def _problem_of(path: Path, digest: str | None) -> str | None:
    """Say what is wrong with a file; `None` where it is as it was written."""
    if not path.is_file():
        return f"{path.name} is missing"
    if digest is None:
        return f"no digest of {path.name} is kept"
    return None if sha256_of(path) == digest else f"{path.name} is not as it was written"
