"""Streams: samples that come one after the other, without numbers, are written into tar files first, and read from there."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from headstart.data.images import is_no_damage, to_rgb, why_unreadable
from headstart.data.records import label_as_text
from headstart.data.report import SetAside
from headstart.errors import DataError
from headstart.files import write_together

_SAMPLES_PER_FILE = 1000
_BYTES_PER_FILE = 256_000_000


def write_shards(
    samples: Iterable[tuple[Any, Any]],
    folder: str | Path,
    *,
    prefix: str = "samples",
    samples_per_file: int = _SAMPLES_PER_FILE,
    bytes_per_file: int = _BYTES_PER_FILE,
) -> tuple[list[Path], list[SetAside]]:
    """Write samples into tar files as `WebDatasetData` reads them; memory holds one sample.

    Args:
        samples: `(image, label)` or `(text, label)`: an image as PIL image (it is written as PNG, in RGB and upright) or as the
            content of an image file; a pair of texts as a tuple.
        folder: Where the files go.
        prefix: Of their names; `train`, `val` and `test` are read as those parts.
        samples_per_file: How many samples a file has at most.
        bytes_per_file: A file that has as many bytes takes no more samples.

    Returns:
        The files, and what could not be written, with the reason.

    Raises:
        DataError: If the stream itself fails; the message says after how many samples.
        WriteError: If the disk is full.

    Example:
        >>> import tempfile
        >>> files, _ = write_shards([("a fine thing", "good"), ("a poor thing", "bad")], tempfile.mkdtemp())
        >>> [path.name for path in files]
        ['samples-000000.tar']
    """
    files: list[Path] = []
    set_aside: list[SetAside] = []
    numbered = _numbered(samples, prefix)
    while (first := next(numbered, None)) is not None:
        path = Path(folder) / f"{prefix}-{len(files):06d}.tar"
        chosen = chain([first], islice(numbered, samples_per_file - 1))
        write_together({path: partial(_write_tar, chosen, prefix, set_aside, bytes_per_file)})
        files.append(path)
    return files, set_aside


def _numbered(samples: Iterable[Any], prefix: str) -> Iterator[tuple[int, Any]]:
    number = 0
    iterator = iter(samples)
    while True:
        try:
            sample = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(
                f"The stream of {prefix} ended after {number:,} samples with {type(error).__name__}: {error}. A stream that fails "
                "gives nothing more: let it leave out what it cannot read."
            ) from error
        yield number, sample
        number += 1


def _write_tar(
    numbered: Iterable[tuple[int, Any]],
    prefix: str,
    set_aside: list[SetAside],
    most_bytes: int,
    path: Path,
) -> None:
    with tarfile.open(path, mode="w") as archive:
        for number, sample in numbered:
            try:
                extension, content, label = _encoded(sample)
            except Exception as error:  # a damaged image can raise anything in a decoder
                if is_no_damage(error):
                    raise
                set_aside.append(SetAside(f"{prefix}, sample {number}", str(error) or type(error).__name__))
                continue
            key = f"{number:09d}"
            _add(archive, f"{key}.{extension}", content)
            _add(archive, f"{key}.cls", label.encode())
            if archive.offset >= most_bytes:
                return


def _encoded(sample: Any) -> tuple[str, bytes, str]:
    """Give a sample as the end of a name, the content of the file, and the label.

    Raises:
        ValueError: If it cannot be used, in words without its place.
    """
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise ValueError(f"a {type(sample).__name__}; expected (image, label) or (text, label)")
    value, label = sample[0], label_as_text(sample[1])
    if isinstance(value, str):
        return "txt", value.encode("utf-8"), label
    if isinstance(value, bytes):
        if (reason := why_unreadable(io.BytesIO(value))) is not None:
            raise ValueError(reason)
        return "img.jpg", value, label  # the decoder goes by the content, not by the name
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(text, str) for text in value):
        return "pair.json", json.dumps(value, ensure_ascii=False).encode(), label
    if not hasattr(value, "convert"):
        raise ValueError(f"a {type(value).__name__} where an image, a text or a pair of texts was expected")
    file = io.BytesIO()
    to_rgb(value).save(file, format="PNG")
    return "png", file.getvalue(), label


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
