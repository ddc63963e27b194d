"""The room that per-sample values may take: in memory or in files, which may be kept for other runs or shared by processes.

Reads nothing of networks: a key names the values, and whoever makes the key sees to it that equal keys mean equal
values.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from headstart.deferred import saved
from headstart.deferred.columns import Column, Layout, Place, RaggedColumn, as_rows
from headstart.deferred.exchange import Group, exchange
from headstart.deferred.shared import SharedDirectory

DIRECTORY_LIMIT = 20_000_000_000  # bytes


class Store:
    """Gives columns their room, within limits, and keeps them across runs.

    A column whose key begins with `~`, and every ragged one, is never kept. It lies in memory while `memory_limit`
    lasts, then in a temporary file without a name, while `disk_limit` lasts. Where there is a `directory`, other
    columns are built in a file there, so that saving is a rename; where the disk has no room for one, it is treated as
    one that is not kept.

    A file that cannot be made or written (the disk is full) costs what was to be in it and nothing else: a note says
    so, and this store makes no further files. A column that was half filled by an earlier run is copied when it is
    added to; without room for the copy it `is_broken`: `put` gives False, and the rows that are there stay.

    After `share`, the columns that could be kept lie in files that all processes of a job on this machine map, whether there
    is a `directory` or not.

    Not for use from two threads at once. Two processes may share a directory: each fills its own files, and what was
    saved last is what later runs find.

    Args:
        memory_limit: Bytes of columns in memory; `None`: a quarter of the memory that is available now.
        disk_limit: Bytes of columns in files; `None`: half of the disk that is free now.
        directory: Where columns are kept across runs; `None`: nowhere.
        directory_limit: Bytes of all files in `directory`; `None`: 20 GB. The least recently used are removed, never
            those that this store has in use.
        on_note: Called with one line about whatever could not be used or kept; `None`: it is a warning.

    Attributes:
        refusal: Why the last column was refused, and what to do; empty before.

    Raises:
        OSError: If `directory` cannot be made.

    Example:
        >>> with Store(memory_limit=1000, disk_limit=0) as store:
        ...     column = store.column("backbone(x)", num_samples=10, shape=(4,), dtype=torch.float32)
        ...     store.nbytes_memory, column.place, column.num_filled
        ...     store.column("too much", num_samples=1000, shape=(4,), dtype=torch.float32) is None
        ...     print(store.refusal)
        (160, 'memory', 0)
        True
        1000 samples need 16.0 kB, but 840 bytes are left of the 1.0 kB of memory_limit and 0 bytes of the 0 bytes of \
disk_limit: raise memory_limit or disk_limit.
    """

    def __init__(
        self,
        *,
        memory_limit: int | None = None,
        disk_limit: int | None = None,
        directory: str | Path | None = None,
        directory_limit: int | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        self.refusal = ""
        self._columns: dict[str, Column] = {}
        self._num_users: dict[str, int] = {}  # equal data sets, or equal networks, ask for the same column
        self._ragged: dict[str, RaggedColumn] = {}
        self._work: dict[str, Path] = {}  # the files of columns that are not saved as they are now, by key
        self._note = _warn if on_note is None else on_note
        self._directory = None if directory is None else Path(directory)
        self._directory_limit = DIRECTORY_LIMIT if directory_limit is None else directory_limit
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            saved.remove_abandoned(self._directory)
            saved.make_room(self._directory, self._directory_limit, in_use=set())
        self._memory_limit = _available_memory() // 4 if memory_limit is None else memory_limit
        self._measures_disk = disk_limit is None
        if disk_limit is None:
            disk_limit = _free_disk(self._directory or tempfile.gettempdir()) // 2
        self._disk_limit = disk_limit
        self._shared: SharedDirectory | None = None
        self._num_processes = 1
        self._saves = True  # whether this process writes to `directory`
        self._num_saved: dict[str, int] = {}  # how many rows of each shared column this process has saved
        weakref.finalize(self, _remove, self._work, os.getpid())

    def share(self, directory: str | Path, *, is_first: bool, num_processes: int = 1) -> None:
        """Have columns in common with the other processes of a job on this machine; before there is a column.

        The limits are those of the machine from now on, the ones of whichever process calls this first: a column in
        common counts once, and one that each process has for itself `num_processes` times.

        Args:
            directory: See `SharedDirectory`.
            is_first: Whether this process saves for later runs: one of them does.
            num_processes: Of the job on this machine.

        Raises:
            OSError: If the directory cannot be made.
        """
        assert self._shared is None, "columns are shared once"
        assert not self._all(), "columns are shared from the start, or not at all"
        self._shared = SharedDirectory(Path(directory))
        self._saves = is_first
        self._num_processes = num_processes
        if self._measures_disk:
            self._disk_limit = _free_disk(directory) // 2
        limits = [self._memory_limit, self._disk_limit]
        self._memory_limit, self._disk_limit = self._shared.agree("limits", limits)

    @property
    def is_shared(self) -> bool:
        """Whether columns are in common with other processes."""
        return self._shared is not None

    def agree(self, column: Column | RaggedColumn, *, answer: bool) -> bool:
        """Give the answer of the first of the processes that have this column in common: all should do the same with it."""
        key = next((key for key, each in self._columns.items() if each is column), "~")
        if self._shared is not None and not key.startswith("~"):
            with suppress(OSError):
                return bool(self._shared.agree(saved.stem(key), answer))
        return answer

    def exchange(self, group: Group) -> int:
        """Give the first process of every machine the rows that any machine has; they all call this at the same time.

        Only columns whose key means the same everywhere take part, that is none without `share`.

        Args:
            group: The first processes.

        Returns:
            How many rows were received. The other processes of this machine find them too.
        """
        named = {key: each for key, each in self._columns.items() if not key.startswith("~")}
        return exchange(named if self.is_shared else {}, group)

    @property
    def nbytes_memory(self) -> int:
        """The bytes of all columns in memory."""
        return self._nbytes("memory")

    @property
    def nbytes_disk(self) -> int:
        """The bytes of all columns in files."""
        return self._nbytes("disk")

    def column(
        self,
        key: str,
        *,
        num_samples: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        channels_last: bool = False,
    ) -> Column | None:
        """Give the column of `key`: the one that is in use, or the saved one, or a new one without rows.

        Args:
            key: Names the values; with a leading `~` they are not kept across runs.
            num_samples: Number of rows.
            shape: Of one sample.
            dtype: Of the values.
            channels_last: For samples (C, H, W): rows are kept as (H, W, C), and given in that memory format.

        Returns:
            The column; `None` where there is no room for it, and then `refusal` says why.
        """
        layout = Layout(num_samples, tuple(shape), dtype, channels_last)
        column = self._columns.get(key)
        if column is not None:
            assert column.layout == layout, f"{key!r} is in use with another layout"
            self._num_users[key] += 1
            return column
        if not key.startswith("~") and layout.nbytes > 0:
            if self._shared is not None:
                column = self._open_shared(self._shared, key, layout)
            elif self._directory is not None:
                column = self._open_saved(key, layout) or self._begin_kept(key, layout)
        if column is None:
            found = self._allocate(layout.nbytes)
            if found is None:
                self._refuse(num_samples, layout.nbytes)
                return None
            column = Column(layout, as_rows(found[0], dtype, layout.rows), place=found[1])
        self._columns[key] = column
        self._num_users[key] = 1
        return column

    def ragged(
        self, key: str, *, num_samples: int, rest: tuple[int, ...], dtype: torch.dtype
    ) -> RaggedColumn | None:
        """Give the ragged column of `key`: the one that is in use, or a new one. It is never kept across runs.

        Its pool takes room as it grows, first in memory, then on disk. When both limits are reached, its `put` gives
        False and keeps nothing.

        Args:
            key: Names the values.
            num_samples: Number of samples.
            rest: The shape of one position: samples are (length, *rest).
            dtype: Of the values.

        Returns:
            The column; `None` where there is no room for its table, and then `refusal` says why.
        """
        column = self._ragged.get(key)
        if column is not None:
            assert (column.num_samples, column.rest, column.dtype) == (num_samples, tuple(rest), dtype), key
            return column
        table = 12 * num_samples  # bytes: an int64 and an int32 each
        if table * self._num_processes > self._room("memory"):
            self._refuse(num_samples, table)
            return None
        column = RaggedColumn(num_samples, tuple(rest), dtype=dtype, allocate=self._allocate)
        self._ragged[key] = column
        return column

    def drop(self, column: Column | RaggedColumn) -> None:
        """Give the room of a column back, unless it was asked for more often than it was dropped.

        It cannot be used afterwards. What was saved of it stays saved.
        """
        self._ragged = {key: each for key, each in self._ragged.items() if each is not column}
        for key in [key for key, each in self._columns.items() if each is column]:
            self._num_users[key] -= 1
            if self._num_users[key]:
                return
            del self._columns[key]
            self._discard(key)
            self._num_saved.pop(key, None)
            if isinstance(column, Column) and column.is_shared and self._shared is not None:
                self._shared.let_go(key, column.layout)
        column.release()

    def save(self) -> None:
        """Keep what was put since the last time, of the columns that are kept; which rows are there is kept with them.

        Afterwards it outlives any end of the process. (After a power cut, earlier values may be found, or none.)
        """
        for key, work in list(self._work.items()):
            column = self._columns[key]
            if column.num_filled == 0:
                continue
            column.is_saved = True  # before others can see the file: `put` writes a copy from now on
            self._commit(work, key, column.layout, column.filled)
        if self._directory is not None and self._saves:
            self._save_shared()
            saved.make_room(self._directory, self._directory_limit, self._in_use())

    def close(self) -> None:
        """Save, and give all room back. The columns cannot be used afterwards.

        Of processes that share columns, the first saves what is there at this moment.
        """
        self.save()
        self._num_users = dict.fromkeys(self._num_users, 1)
        for column in self._all():
            self.drop(column)
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- where a column lies

    def _open_shared(self, directory: SharedDirectory, key: str, layout: Layout) -> Column | None:
        """Give the column that the others have too; or one that is saved and complete, which all can read; or begin it."""
        try:
            found = directory.open(key, layout)
            if found is None:
                kept = self._read_saved(key, layout)
                if kept is not None and bool(kept[1].all()):
                    return Column(layout, kept[0], place="disk", filled=kept[1])
                if layout.nbytes > self._room("disk"):
                    self._note(
                        f"{directory.path}: {_size(layout.nbytes)} for {key!r} are not shared by the processes, "
                        f"{_size(self._room('disk'))} are left of disk_limit: raise it."
                    )
                    return None
                found = directory.make(key, layout, kept)
        except OSError as error:
            self._give_up_disk(layout.nbytes, error)
            return None
        return Column(layout, found[0], place="disk", filled=found[1], is_shared=True)

    def _save_shared(self) -> None:
        """Save copies of what was put since the last time: others go on with the rows themselves."""
        for key, column in self._columns.items():
            if not column.is_shared or column.num_filled == self._num_saved.get(key, 0):
                continue
            rows = self._work_file(key, column.layout, is_copy=key in self._num_saved)
            if rows is not None:
                filled = column.copy_to(rows)
                self._num_saved[key] = int(filled.count_nonzero())
                self._commit(self._work[key], key, column.layout, filled)

    def _commit(self, work: Path, key: str, layout: Layout, filled: Tensor) -> None:
        try:
            saved.commit(work, key, layout, filled)
            del self._work[key]
        except OSError as error:
            self._note(f"{work}: {key!r} could not be saved, it is computed again by the next run: {error}")
            self._discard(key)

    def _read_saved(self, key: str, layout: Layout) -> tuple[Tensor, Tensor] | None:
        if self._directory is None:
            return None
        try:
            return saved.read(self._directory, key, layout)
        except (ValueError, OSError) as error:
            path = self._directory / f"{saved.stem(key)}.json"
            self._note(f"{path} is not used, its values are computed again: {error}")
            return None

    def _open_saved(self, key: str, layout: Layout) -> Column | None:
        found = self._read_saved(key, layout)
        if found is None:
            return None
        renew = partial(self._work_file, key, layout, is_copy=True)
        return Column(layout, found[0], place="disk", filled=found[1], renew=renew)

    def _begin_kept(self, key: str, layout: Layout) -> Column | None:
        if layout.nbytes > self._room("disk"):
            self._note(
                f"{self._directory}: {_size(layout.nbytes)} for {key!r} are not kept, {_size(self._room('disk'))} are "
                "left of disk_limit: raise it."
            )
            return None
        rows = self._work_file(key, layout, is_copy=False)
        if rows is None:
            return None
        renew = partial(self._work_file, key, layout, is_copy=True)
        return Column(layout, rows, place="disk", renew=renew)

    def _work_file(self, key: str, layout: Layout, *, is_copy: bool) -> Tensor | None:
        """Give room for rows in `directory`; a copy will take the place of the saved file, which is counted."""
        assert self._directory is not None
        room = self._directory_limit - layout.nbytes
        if not is_copy and not saved.make_room(self._directory, room, self._in_use()):
            self._note(
                f"{self._directory}: {_size(layout.nbytes)} for {key!r} are not kept, they do not fit the "
                f"{_size(self._directory_limit)} of directory_limit: raise it."
            )
            return None
        try:
            self._work[key], rows = saved.create(self._directory, key, layout)
        except OSError as error:
            self._give_up_disk(layout.nbytes, error)
            return None
        return rows

    def _allocate(self, nbytes: int) -> tuple[Tensor, Place] | None:
        """Give so many bytes, (n,) uint8, in memory or in a temporary file; `None` where neither has room."""
        in_all = nbytes * self._num_processes
        if in_all <= self._room("memory"):
            with torch.inference_mode(mode=False):  # else it could not be written outside of inference mode
                return torch.empty(nbytes, dtype=torch.uint8), "memory"
        if in_all <= self._room("disk"):
            try:
                return saved.temporary(self._directory, nbytes), "disk"
            except OSError as error:
                self._give_up_disk(nbytes, error)
        return None

    def _give_up_disk(self, nbytes: int, error: OSError) -> None:
        place = self._directory or tempfile.gettempdir()
        self._note(
            f"{place}: no file of {_size(nbytes)} could be made, no further ones are tried: {error}. Nothing "
            "else is lost. To keep values for later runs, free space or give another directory."
        )
        self._disk_limit = 0

    def _refuse(self, num_samples: int, nbytes: int) -> None:
        each = f" in each of {self._num_processes} processes" if self._num_processes > 1 else ""
        self.refusal = (
            f"{num_samples} samples need {_size(nbytes)}{each}, but {_size(self._room('memory'))} are left of the "
            f"{_size(self._memory_limit)} of memory_limit and {_size(self._room('disk'))} of the "
            f"{_size(self._disk_limit)} of disk_limit: raise memory_limit or disk_limit."
        )

    def _room(self, place: Place) -> int:
        limit = self._memory_limit if place == "memory" else self._disk_limit
        in_common, own = 0, 0
        for column in self._all():
            is_common = isinstance(column, Column) and (column.is_shared or column.is_saved)
            in_common += column.nbytes_in(place) if is_common else 0
            own += 0 if is_common else column.nbytes_in(place)
        return max(0, limit - in_common - own * self._num_processes)

    def _nbytes(self, place: Place) -> int:
        return sum(column.nbytes_in(place) for column in self._all())

    def _all(self) -> list[Column | RaggedColumn]:
        return [*self._columns.values(), *self._ragged.values()]

    def _in_use(self) -> set[str]:
        return {saved.stem(key) for key in self._columns}

    def _discard(self, key: str) -> None:
        if key in self._work:
            with suppress(OSError):
                self._work.pop(key).unlink()


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def _remove(work: dict[str, Path], pid: int) -> None:
    """Remove the files that were never saved; in a forked process they are the parent's."""
    if os.getpid() == pid:
        for path in work.values():
            with suppress(OSError):
                path.unlink()


def _free_disk(place: str | Path) -> int:
    return shutil.disk_usage(place).free


def _available_memory() -> int:
    """Give the bytes that a process could take now: the smallest of what the system says."""
    found = []
    with suppress(AttributeError, OSError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").split("MemAvailable:")
        found.append(int(lines[1].split()[0]) * 1024)
    return min(found, default=4_000_000_000)


def _size(nbytes: int) -> str:
    """Give a size in words.

    Example:
        >>> _size(999), _size(1_250_000)
        ('999 bytes', '1.2 MB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.1f} {name}"
    return f"{nbytes} bytes"
