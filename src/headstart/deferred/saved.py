"""Files of columns that are kept from run to run: a `.npy` with the rows and a `.json` that vouches for it.

A file is filled under a work name, which only its own process knows. Saving gives both files their final names, the
`.json` last. It holds the checksum of every block of the `.npy`, and one of itself: whatever was cut off, mixed up or
damaged does not fit, and counts as absent. Under its final name a file is never written again, only replaced.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import platform
import re
import secrets
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from headstart.deferred.columns import Layout

VERSION = 1
BLOCK = 1 << 22  # bytes that share a checksum

# A work file that was not written for so long belongs to nobody, even where its process cannot be asked (another
# machine, or another process that got the number).
ABANDONED_AFTER = 24 * 3600.0  # seconds

_NODE = re.sub(r"\W", "", platform.node())
_WORK_NAME = re.compile(r"[0-9a-f]{32}\.(\w*)-(\d+)-[0-9a-f]{8}\.work")
_SAVED_NAME = re.compile(r"([0-9a-f]{32})\.(?:npy|json)")


def stem(key: str) -> str:
    """Give the name of the files of `key`, without suffix.

    Example:
        >>> stem("backbone(x)")
        'fce3498d954b461e9a09e2268d92ff61'
    """
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def create(directory: Path, key: str, layout: Layout) -> tuple[Path, Tensor]:
    """Make a work file for the rows of `key`.

    Returns:
        The file, and the rows in it.

    Raises:
        OSError: If the disk has no room for all of it, now or later.
    """
    path = _work_path(directory, key)
    try:
        with path.open("xb+") as file:
            header = {
                "shape": layout.rows,
                "fortran_order": False,
                "descr": np.lib.format.dtype_to_descr(_numpy_dtype(layout.dtype)),
            }
            np.lib.format.write_array_header_1_0(file, header)
            offset = file.tell()
            reserve(file, offset + layout.nbytes)
            return path, _map(file, layout, offset, "r+")
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def temporary(directory: Path | None, nbytes: int) -> Tensor:
    """Give bytes, (n,) uint8, in a file without a name: it is gone when the tensor is, however the process ends.

    Raises:
        OSError: If the disk has no room for all of it, now or later.
    """
    with tempfile.TemporaryFile(dir=directory) as file:
        reserve(file, nbytes)
        return _map(file, Layout(nbytes, (), torch.uint8), 0, "r+")


def commit(work: Path, key: str, layout: Layout, filled: Tensor) -> None:
    """Give a work file its final name, in place of an earlier one.

    Args:
        work: As `create` gave it.
        key: Names the values.
        layout: What the rows are like.
        filled: Which rows are there, (N,) bool.

    Raises:
        OSError: If the disk is full, or the work file is gone.
    """
    with work.open("rb+") as file:
        os.fsync(file.fileno())
        fields = {
            **_description(key, layout),
            "created": int(time.time()),
            "filled": base64.b64encode(np.packbits(filled.numpy()).tobytes()).decode(),
            "checksums": _checksums(file),
        }
    sidecar = _work_path(work.parent, key)
    try:
        with sidecar.open("xb") as file:
            file.write(_encode(fields))
            file.flush()
            os.fsync(file.fileno())
        with _locked(work.parent):
            work.replace(work.parent / f"{stem(key)}.npy")
            sidecar.replace(work.parent / f"{stem(key)}.json")
    finally:
        sidecar.unlink(missing_ok=True)


def read(directory: Path, key: str, layout: Layout) -> tuple[Tensor, Tensor] | None:
    """Give what is saved of `key`, after it was checked to the last byte.

    Returns:
        The rows, which must not be written, and which of them are there, (N,) bool; `None` where nothing is saved.

    Raises:
        ValueError: If the files are damaged, or hold something else. The message is the end of a sentence.
        OSError: If they cannot be read.
    """
    sidecar = directory / f"{stem(key)}.json"
    with _locked(directory):
        try:
            text = sidecar.read_bytes()
            file = sidecar.with_suffix(".npy").open("rb")
        except FileNotFoundError:
            return None
    with file:
        found = _decode(text)
        for name, expected in _description(key, layout).items():
            if found.get(name) != expected:
                raise ValueError(
                    f"its {name} is {str(found.get(name))[:60]!r}; expected {str(expected)[:60]!r}"
                )
        if found.get("checksums") != _checksums(file):
            raise ValueError("the .npy is damaged, or not the one that the .json was written for")
        offset = os.fstat(file.fileno()).st_size - layout.nbytes
        if offset <= 0:  # a table that was made up: its checksums fit a file without the rows
            raise ValueError("the .npy is too short for its rows")
        rows = _map(file, layout, offset, "r")
    with suppress(OSError):  # a directory that can only be read
        os.utime(sidecar)
    bits = np.frombuffer(base64.b64decode(str(found.get("filled"))), np.uint8)
    with torch.inference_mode(mode=False):
        return rows, torch.from_numpy(np.unpackbits(bits, count=layout.num_samples).astype(np.bool_))


def make_room(directory: Path, limit: int, in_use: set[str]) -> bool:
    """Remove what was used least recently, until all files of columns in `directory` fit `limit` bytes.

    Args:
        directory: Files in it that are no columns are neither counted nor removed.
        limit: May be smaller than what is in use.
        in_use: Stems of files that stay.

    Returns:
        Whether they fit. Nothing is removed where removing could not make them fit.
    """
    total = 0
    last_use: dict[str, int] = {}
    sizes: dict[str, int] = {}
    with _locked(directory):
        for path in directory.iterdir():
            saved = _SAVED_NAME.fullmatch(path.name)
            if saved is None and _WORK_NAME.fullmatch(path.name) is None:
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                total += status.st_size
                if saved is not None and saved[1] not in in_use:
                    last_use[saved[1]] = max(last_use.get(saved[1], 0), status.st_mtime_ns)
                    sizes[saved[1]] = sizes.get(saved[1], 0) + status.st_size
        if total - sum(sizes.values()) > limit:
            return False
        for name in sorted(last_use, key=last_use.__getitem__):
            if total <= limit:
                break
            total -= sizes[name]
            for suffix in (".json", ".npy"):
                (directory / f"{name}{suffix}").unlink(missing_ok=True)
    return True


def remove_abandoned(directory: Path) -> None:
    """Remove the work files of processes that are no more."""
    for path in directory.iterdir():
        name = _WORK_NAME.fullmatch(path.name)
        if name is None:
            continue
        with suppress(OSError):
            is_orphan = name[1] == _NODE and not _is_running(int(name[2]))
            if is_orphan or time.time() - path.stat().st_mtime > ABANDONED_AFTER:
                path.unlink()


def _is_running(pid: int) -> bool:
    if os.name == "nt":
        return True  # there, os.kill would end it
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def _work_path(directory: Path, key: str) -> Path:
    return directory / f"{stem(key)}.{_NODE}-{os.getpid()}-{secrets.token_hex(4)}.work"


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold other processes off the final names, so that nobody sees one new file beside one old file.

    Without a lock (on Windows, in a directory that can only be read) such a pair does not fit, and counts as absent.
    """
    try:
        import fcntl

        file = (directory / ".lock").open("ab")
    except (ImportError, OSError):
        yield
        return
    with file:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def reserve(file: IO[bytes], nbytes: int) -> None:
    """Make the file so large that a full disk shows here, and not as a crash when a mapped page is written."""
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, nbytes)
    else:
        file.truncate(nbytes)


def _map(file: IO[bytes], layout: Layout, offset: int, mode: Any) -> Tensor:
    assert math.prod(layout.rows) > 0, "an empty file cannot be mapped"
    array = np.memmap(file, _numpy_dtype(layout.dtype), mode, offset, layout.rows)
    # A tensor made in inference mode could not be written outside of it.
    with torch.inference_mode(mode=False), warnings.catch_warnings():
        # "r" is what is wanted, and nothing is written there. Mode "c" would silence it too, but then the kernel
        # counts the file as memory and refuses one that is larger than all of it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).view(layout.dtype)


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Give numpy's name of a dtype; for one that it does not know (bfloat16), integers of the same size."""
    try:
        return torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError:
        return np.dtype(f"i{dtype.itemsize}")


def _checksums(file: IO[bytes]) -> list[int]:
    """Give the CRC-32 of each block of a file. It is read and not mapped, so that memory does not grow."""
    file.seek(0)
    return [zlib.crc32(block) for block in iter(lambda: file.read(BLOCK), b"")]


def _description(key: str, layout: Layout) -> dict[str, Any]:
    return {
        "version": VERSION,
        "key": key,
        "dtype": str(layout.dtype),
        "num_samples": layout.num_samples,
        "shape": list(layout.shape),
        "channels_last": layout.channels_last,
    }


def _encode(fields: dict[str, Any]) -> bytes:
    own = zlib.crc32(json.dumps(fields, sort_keys=True).encode())
    return json.dumps({**fields, "own_checksum": own}, sort_keys=True).encode()


def _decode(text: bytes) -> dict[str, Any]:
    """Give the fields of a `.json`, if it is byte for byte what `_encode` would write for them."""
    try:
        found = json.loads(text)
        fields = {name: value for name, value in found.items() if name != "own_checksum"}
        is_intact = _encode(fields) == text
    except (ValueError, AttributeError, RecursionError):
        is_intact = False
    if not is_intact:
        raise ValueError("the .json is damaged")
    return fields
