"""A directory in which the processes of a job on one machine share columns: a row that one of them puts, all find.

A column is one file that every process maps: first a byte a row, which says whether it is there, then the rows. It gets
its name when it has its full size, so whoever finds it can use it. A file stays while a process uses it, and the
directory while one has entered it. Locks of the operating system say so, and they end with their process, however it
ends.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.deferred import saved
from headstart.deferred.columns import Layout, as_rows

_JOB = ".job"  # locked by every process of the job
_PREFIX, _SUFFIX = "headstart-", ".shared"
_PAGE = 4096  # bytes; the rows begin at a multiple of it


def new_directory(parent: str | Path | None = None) -> Path:
    """Make a directory for the processes of one job on this machine, and remove those of jobs that are no more.

    One process calls it, and tells the others on its machine.

    Args:
        parent: A directory on a disk of this machine; `None` is the system's for temporary files.
    """
    parent = Path(parent or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    for directory in parent.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # somebody else's
            if _is_abandoned(directory):
                shutil.rmtree(directory, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=parent))


def _is_abandoned(directory: Path) -> bool:
    is_old = time.time() - directory.stat().st_mtime > saved.ABANDONED_AFTER
    try:
        job = os.open(directory / _JOB, os.O_RDWR)
    except FileNotFoundError:  # nobody has entered it yet
        return is_old
    try:
        # Windows has no such locks, but removes no file that is in use.
        return _lock(job, alone=True) or (os.name == "nt" and is_old)
    finally:
        os.close(job)


class SharedDirectory:
    """The columns that the processes of a machine have in common. The last process that leaves removes them.

    Args:
        directory: The same for all processes of one job on one machine, and for no others; it is made where it is
            missing. Not on a disk that several machines share.

    Raises:
        OSError: If it cannot be made.

    Example:
        >>> layout = Layout(4, (2,), torch.float32)
        >>> one, other = (SharedDirectory(path) for path in [new_directory()] * 2)
        >>> one.open("key", layout) is None
        True
        >>> rows, filled = one.make("key", layout)
        >>> rows[2], filled[2] = torch.tensor([1.0, 2.0]), True
        >>> other.open("key", layout)[0][2]
        tensor([1., 2.])
        >>> one.close(), one.path.exists(), other.close(), other.path.exists()
        (None, True, None, False)
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory
        # The descriptors of the columns that this process uses, which are locked.
        self._files: dict[Path, int] = {}
        job = os.open(directory / _JOB, os.O_RDWR | os.O_CREAT, 0o600)
        _lock(job, alone=False, wait=True)
        self._leave = weakref.finalize(self, _leave, directory, job, self._files, os.getpid())

    def agree(self, name: str, answer: Any) -> Any:
        """Give what the first process that asked this gave as its answer, which is plain data."""
        path = self.path / f"{name}.json"
        with self._alone():
            if not path.exists():
                work = self._work_path(path)
                work.write_text(json.dumps(answer), encoding="utf-8")
                work.replace(path)
        return json.loads(path.read_text(encoding="utf-8"))

    def open(self, key: str, layout: Layout) -> tuple[Tensor, Tensor] | None:
        """Give the rows of `key`, and which of them are there, (N,) bool; `None` where nobody has made them yet.

        Rows are written first, then it is said that they are there.
        """
        with self._alone():
            return self._open(self._path_of(key, layout), layout)

    def make(
        self, key: str, layout: Layout, kept: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Give the same, and make them if they are not there.

        Args:
            key: Names the values.
            layout: What the rows are like.
            kept: Rows, and which of them are there, to begin with.

        Raises:
            OSError: If the disk has no room for all of it, now or later.
        """
        path = self._path_of(key, layout)
        with self._alone():
            found = self._open(path, layout)
            if found is None:
                work = self._work_path(path)
                try:
                    with work.open("wb+") as file:
                        saved.reserve(file, _offset(layout) + layout.nbytes)
                    if kept is not None:
                        for into, values in zip(_map(work, layout), kept, strict=True):
                            into.copy_(values)
                    work.replace(path)
                finally:
                    work.unlink(missing_ok=True)
                found = self._open(path, layout)
        assert found is not None
        return found

    def let_go(self, key: str, layout: Layout) -> None:
        """Use the rows of `key` no longer. The last process that does so removes them."""
        path = self._path_of(key, layout)
        with suppress(OSError), self._alone():
            if _lock(self._files[path], alone=True):
                path.unlink()
        os.close(self._files.pop(path))

    def close(self) -> None:
        """Leave. The rows cannot be found afterwards."""
        self._leave()

    def _path_of(self, key: str, layout: Layout) -> Path:
        return self.path / f"{saved.stem(f'{key} {layout}')}.column"

    @staticmethod
    def _work_path(path: Path) -> Path:
        return path.with_suffix(f".{os.getpid()}.work")

    def _open(self, path: Path, layout: Layout) -> tuple[Tensor, Tensor] | None:
        assert path not in self._files, "the column is in use"
        try:
            file = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        self._files[path] = file
        _lock(file, alone=False)
        return _map(path, layout)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time look and make. Without locks two may make the same: then each uses its own."""
        with (self.path / ".lock").open("ab") as file:
            _lock(file.fileno(), alone=True, wait=True)
            yield


def _leave(directory: Path, job: int, files: dict[Path, int], pid: int) -> None:
    """Leave the directory, and remove it if nobody is in it; in a forked process it is the parent's."""
    if os.getpid() != pid:
        return
    while files:
        os.close(files.popitem()[1])
    if _lock(job, alone=True):
        shutil.rmtree(directory, ignore_errors=True)
    os.close(job)


def _lock(file: int, *, alone: bool, wait: bool = False) -> bool:
    """Lock a file for one process alone, or as one of several.

    Returns:
        False where others have it, or the system has no such locks.
    """
    try:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


def _offset(layout: Layout) -> int:
    """The first byte of the rows: after the flags, at the beginning of a page."""
    return -(-layout.num_samples // _PAGE) * _PAGE


def _map(path: Path, layout: Layout) -> tuple[Tensor, Tensor]:
    """Give the rows and the flags of a file."""
    array = np.memmap(path, np.uint8, "r+")
    with torch.inference_mode(mode=False):  # else they could not be written outside of inference mode
        raw = torch.from_numpy(array)
        rows = raw[_offset(layout) : _offset(layout) + layout.nbytes]
        return as_rows(rows, layout.dtype, layout.rows), raw[: layout.num_samples].view(torch.bool)
