"""`WebDatasetData`: images or texts in tar files, as WebDataset lays them out."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from headstart.data.images import IMAGE_SUFFIXES, is_no_damage
from headstart.data.record_data import Part, RecordData
from headstart.data.records import Records, files_by_part, label_as_text
from headstart.data.report import SetAside
from headstart.errors import DataError

# A label or a description is small; what claims to be more is none.
_LARGEST_LABEL = 1_000_000  # bytes
# An image or a text: more is refused before it is read.
_LARGEST_SAMPLE = 500_000_000  # bytes
# Tar files that stay open, of each part: processes may often have no more than 1,024 files.
_MOST_OPEN = 64
_LABEL_KEYS = ("label", "cls", "class")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class WebDatasetData(RecordData):
    """Images or texts in tar files: members with the same name up to the first dot are a sample.

    ```
    shards/000000.tar:  000017.jpg  000017.cls     000018.jpg  000018.json ...
    ```

    A sample has an image (`jpg`, `png`, `webp`, ...), a text (`txt`) or a pair of texts (`pair.json`, a list of two), and its
    class in `cls` (a number or a name) or under `label`, `cls` or `class` in `json`. The headers of the tar files are read once, and where each sample lies is remembered:
    so a sample has a number and can be read by itself, as a file of a folder can. Shuffling is of all samples and not within a
    buffer, what a frozen network makes of a sample is computed once, and a run goes on in the midst of an epoch. Files named
    `train-...`, `val-...` and `test-...` are those parts; else samples are split by class and by a hash of their key.

    Args:
        source: A folder of tar files, a tar file, or several with a range: `shards-{000000..000009}.tar`.
        settings: See `RecordData`.
    """

    def __init__(self, source: str | Path, **settings: Any) -> None:
        super().__init__(source, **settings)

    def _open(self) -> list[Part]:
        by_part = files_by_part(find_shards(self.source), source=self.source)
        return [Part(name, Shards(files, set_aside=self._found_early)) for name, files in by_part.items()]


def _pair_of(content: bytes) -> tuple[str, str]:
    found = json.loads(content)
    if not isinstance(found, list) or len(found) != 2:
        raise ValueError(f"no pair of texts: {found!r:.80}")
    return found[0], found[1]


def _text_of(content: bytes) -> str:
    return content.decode("utf-8")


#: What the samples of shards can be, and from the bytes of a member to a sample.
_READ_AS: dict[str, Callable[[bytes], Any]] = {"images": bytes, "text": _text_of, "pairs": _pair_of}


def find_shards(source: Path) -> list[Path]:
    """Give the tar files that a name stands for, in their order.

    Raises:
        DataError: If one is missing, or there is none.
    """
    if source.is_dir():
        found = sorted(
            path for path in source.iterdir() if path.suffix == ".tar" and not path.name.startswith(".")
        )
        if not found:
            raise DataError(f"{source} holds no .tar files.")
        return found
    if (range_ := _RANGE.search(str(source))) is not None:
        first, last = range_.groups()
        names = [
            f"{str(source)[: range_.start()]}{number:0{len(first)}}{str(source)[range_.end() :]}"
            for number in range(int(first), int(last) + 1)
        ]
        return [path for name in names for path in find_shards(Path(name))]
    if not source.is_file():
        raise DataError(f"There is no file {str(source)!r}. Name tar files that are on this machine.")
    return [source]


class Shards(Records):
    """The samples of tar files.

    Args:
        files: The tar files.
        set_aside: Takes what is no sample.
    """

    # Which files are open says nothing of the samples.
    fingerprint_excludes = ("_descriptor_of",)
    labels_are_text = True

    def __init__(self, files: Sequence[Path], *, set_aside: list[SetAside]) -> None:
        self.files = list(files)
        rows: list[tuple[int, int, int]] = []
        self._keys: list[str] = []
        self._labels: list[str | None] = []
        kinds: list[str] = []
        for number, file in enumerate(self.files):
            for key, members in _samples_of(file, set_aside):
                chosen = _choose(members)
                if chosen is None:
                    set_aside.append(SetAside(f"{file.name}/{key}", _what_is_missing(members)))
                    continue
                kind, content = chosen
                kinds.append(kind)
                rows.append((number, content.offset_data, content.size))
                self._keys.append(key)
                self._labels.append(_label_of(file, members))
        self._held = most = max(_READ_AS, key=kinds.count)
        self.kind = "images" if most == "images" else "text"
        keep = [index for index, kind in enumerate(kinds) if kind == most]
        set_aside += [
            SetAside(f"{self.files[rows[i][0]].name}/{self._keys[i]}", f"{kinds[i]} among {most}")
            for i in range(len(kinds))
            if kinds[i] != most
        ]
        self._keys = [self._keys[index] for index in keep]
        self._labels = [self._labels[index] for index in keep]
        # (N, 3): file, offset, size
        self._rows = np.array(rows, dtype=np.int64).reshape(-1, 3)[keep]

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_descriptor_of"}

    @cached_property
    def _descriptor_of(self) -> Callable[[Path], _Descriptor]:
        return lru_cache(maxsize=_MOST_OPEN)(_Descriptor)

    def read(self, number: int) -> Any:
        """Give the content of the image file, the text, or the pair of texts."""
        file, offset, size = (int(value) for value in self._rows[number])
        opened = self._descriptor_of(self.files[file])
        # No seek: threads, and processes that are forked, share the descriptor.
        content = os.pread(opened.number, size, offset)
        if len(content) < size:
            raise OSError("the tar file ends within it")
        return _READ_AS[self._held](content)

    def place(self, number: int) -> str:
        """Say where a sample stands."""
        return f"{self.files[int(self._rows[number, 0])].name}/{self._keys[number]}"

    def key(self, number: int) -> str:
        """Give the key: the members' name up to the first dot."""
        return self._keys[number]

    def label(self, number: int) -> str:
        """Give the class."""
        label = self._labels[number]
        if label is None:
            raise ValueError("no class: neither cls, nor label in json")
        return label


class _Descriptor:
    """A file that is open for as long as somebody holds this: who reads it, or who keeps it for the next time."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if "number" in self.__dict__:  # else it could not be opened
            os.close(self.number)


def _samples_of(file: Path, set_aside: list[SetAside]) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Give the samples of a tar file: for each key the members by what stands behind the first dot.

    Members of a sample follow each other, so that only one sample's are held. Nothing is unpacked, so no name can lead
    anywhere; one that would if it were is refused all the same.
    """
    key, members = "", dict[str, tarfile.TarInfo]()
    try:
        with tarfile.open(file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps all of them
                found = _key_of(file, member)
                if found is None:
                    continue
                if found[0] != key:
                    if members:
                        yield key, members
                    key, members = found[0], {}
                place = f"{file.name}/{member.name}"
                if not member.isreg() or member.issparse():
                    set_aside.append(SetAside(place, "a link or a device, not a file"))
                elif member.size > _LARGEST_SAMPLE:
                    set_aside.append(SetAside(place, f"{member.size:,} bytes: more than is read"))
                else:
                    members[found[1]] = member
            _check_end(file, archive.offset)
    except (tarfile.TarError, OSError, EOFError, UnicodeError) as error:
        if is_no_damage(error):
            raise
        raise DataError(
            f"{file} cannot be read as a tar file: {error}. Get it anew; one that is compressed as a whole (.tar.gz) has to "
            "be unpacked first, as samples are read by themselves."
        ) from error
    if members:
        yield key, members


def _check_end(file: Path, offset: int) -> None:
    """Refuse a file that is cut off: what reads tar files takes that for the end, and this is only where zeros stand."""
    with file.open("rb") as opened:
        opened.seek(offset)
        if opened.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it is cut off")


def _key_of(file: Path, member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Give a member's key and what stands behind it; `None` for folders, hidden files, and what is said of the shard."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise DataError(
            f"{file} holds {member.name!r}, a name that leads out of where it is unpacked: it was made to do harm. Get it anew "
            "from a place that you trust."
        )
    base, dot, extension = name.name.partition(".")
    if member.isdir() or not base or not dot or name.parts[0].startswith("__"):
        return None
    return str(name.with_name(base)), extension.casefold()


def _choose(members: dict[str, tarfile.TarInfo]) -> tuple[str, tarfile.TarInfo] | None:
    """Give what a sample is: its image, or else its text, or its pair of texts."""
    for extension, member in members.items():
        if f".{extension.rpartition('.')[2]}" in IMAGE_SUFFIXES:
            return "images", member
    others = {"txt": "text", "pair.json": "pairs"}
    return next(((kind, members[name]) for name, kind in others.items() if name in members), None)


def _what_is_missing(members: dict[str, tarfile.TarInfo]) -> str:
    return f"neither an image nor a text: {', '.join(sorted(members))}"


def _label_of(file: Path, members: dict[str, tarfile.TarInfo]) -> str | None:
    member = members.get("cls") or members.get("json")
    if member is None or member.size > _LARGEST_LABEL:
        return None
    with file.open("rb") as opened:
        opened.seek(member.offset_data)
        content = opened.read(member.size)
    try:
        if "cls" in members:
            return label_as_text(content)
        described = json.loads(content)
        found = next((described[key] for key in _LABEL_KEYS if key in described), None)
        return label_as_text(found)
    except (ValueError, RecursionError, TypeError):
        return None
