"""Files that are written whole or not at all, and the error for those that cannot be written."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from headstart.errors import HeadstartError, WriteError

_ADVICE = {
    errno.ENOSPC: "Free space there, or give another folder",
    errno.EDQUOT: "Free space there, or give another folder",
    errno.EFBIG: "It is larger than this file system or this process may write: raise the limit (ulimit -f), or give "
    "another folder",
    errno.EROFS: "Give a folder that can be written",
    errno.EACCES: "Change the permissions, or give another folder",
    errno.EPERM: "Change the permissions, or give another folder",
}


def write_together(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write files under other names, and rename them when the last is on the disk.

    Args:
        writers: For each file, what writes it: called with an empty file beside it, in whose place it may put another.

    Raises:
        WriteError: If the disk is full or a folder cannot be written: then nothing has changed.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, write in writers.items():
            with explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                # A new file under a name that nobody can guess: no link that lies there is followed.
                descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
                os.close(descriptor)
                staged[path] = Path(name)
                write(staged[path])
                _flush(staged[path])
                give_ordinary_permissions(staged[path])
        for path, temporary in staged.items():
            with explained(path):
                temporary.replace(path)
    finally:
        for temporary in staged.values():
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    for folder in {path.parent for path in writers}:
        flush_folder(folder)


@contextmanager
def keeping(earlier: str | Path, *, as_: str | Path) -> Iterator[None]:
    """Keep a file or folder as `as_`, while the block replaces it by a newer one.

    Whenever the process ends, one of the two names holds a whole one: `earlier` is never without, and what `as_` held is
    replaced when the newer one is there.

    Args:
        earlier: The file or folder; where there is none, nothing is kept. Of a link, what it leads to.
        as_: The name under which it stays.

    Raises:
        WriteError: If there is no room. What `as_` held is untouched.
    """
    source, kept = Path(os.path.realpath(earlier)), Path(as_)
    if not source.exists():
        yield
        return
    held = kept.with_name(f".{kept.name}.held")
    with explained(kept):
        remove(held)
        if source.is_dir():
            shutil.copytree(source, held, copy_function=_link)
        else:
            _link(source, held)
    try:
        yield
        with explained(kept):
            if kept.is_dir():  # a folder does not take the place of one that is not empty
                remove(kept)
            held.replace(kept)
    finally:
        with suppress(OSError):
            remove(held)


def sha256_of(path: Path) -> str:
    """Give the SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the system says of a file that could not be written into a `WriteError` that names it."""
    try:
        yield
    except HeadstartError:
        raise
    except (OSError, RuntimeError) as error:
        reason = _system_error(error)
        if reason is None:
            raise
        free = ""
        if reason.errno == errno.ENOSPC:
            with suppress(OSError):
                free = f" ({shutil.disk_usage(path.parent).free:,} bytes are free)"
        advice = _ADVICE.get(reason.errno or 0, "Check the folder, or give another one")
        raise WriteError(
            f"{path} was not written: {reason.strerror or reason}{free}. {advice}. What was there under that "
            "name before is untouched.",
            number=reason.errno,
        ) from error


def _system_error(error: BaseException | None) -> OSError | None:
    """Give the `OSError` behind an error: torch's writer ends with a `RuntimeError` of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_ordinary_permissions(path: Path) -> None:
    """`mkstemp` and `mkdtemp` make what is private; give it the mode that an ordinary new file or folder would have had."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    if os.name == "nt":
        return  # a folder cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
