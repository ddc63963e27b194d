"""Damage to a file of `torch.save` is found before it is read, and a file that would burst the memory is refused.

Such a file is a zip archive of uncompressed entries. Of each entry it holds a CRC-32, which torch writes and never
checks. A *seal* in the archive's end comment vouches for all else: the SHA-256 of every byte outside of the entries'
contents. Together they cover each byte of the file, and sealing costs next to nothing, since the contents are not read
again. Every reader of such files ignores the comment.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple

_SEAL = b"headstart seal 1 sha256 "
_SEAL_LENGTH = len(_SEAL) + 64
_LOCAL_SIGNATURE, _END_SIGNATURE = b"PK\3\4", b"PK\5\6"
_END_LENGTH, _LONGEST_COMMENT = 22, 0xFFFF
_PICKLE = b"\x80"  # how a file of torch before 1.6 begins
_BLOCK = 1 << 20  # bytes


class Damage(ValueError):  # noqa: N818 (what was found, for the caller to name the file)
    """What is wrong with an archive; the message ends the sentence "it is damaged: ...", or says what it is instead."""


class _Entry(NamedTuple):
    name: str
    begin: int  # of the contents, after the entry's own header
    end: int
    crc: int


def seal(path: Path) -> None:
    """Write the seal into a file that `torch.save` has just written."""
    with path.open("rb+") as file:
        size = file.seek(0, 2)
        assert _end_comment(file) == b"", "torch.save writes no comment"
        file.seek(size - 2)
        file.write(struct.pack("<H", _SEAL_LENGTH) + _SEAL + b"0" * 64)
        file.flush()
        digest = _digest_of_the_rest(file, _entries(file), size)
        file.seek(size + len(_SEAL))
        file.write(digest.encode())


def check(path: Path) -> None:
    """Return if a file is whole; it is read in blocks, so memory does not grow with it.

    A file without a seal (of another tool) is checked by the CRCs of its entries. A file of torch before 1.6 is no
    archive and holds nothing to check it by.

    Raises:
        Damage: If it is damaged, is something else, or would take more memory than its own size.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        begin = file.read(4)
        if not begin:
            raise Damage("it is empty")
        if begin != _LOCAL_SIGNATURE and begin[:1] == _PICKLE and not _has_end(file):
            return
        if begin != _LOCAL_SIGNATURE and not _has_end(file):
            raise Damage("it does not begin as a file of torch.save does")
        comment = _end_comment(file)
        is_sealed = len(comment) == _SEAL_LENGTH
        try:
            entries = _entries(file)
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            EOFError,
            struct.error,
            ValueError,
            LookupError,
        ) as error:
            raise (
                error
                if isinstance(error, Damage)
                else Damage(f"its table of contents makes no sense ({error})")
            ) from error
        for entry in entries:
            if _crc(file, entry) != entry.crc:
                hint = (
                    ""
                    if is_sealed
                    else " (or it was written without checksums, by torch.serialization.set_crc32_options(False))"
                )
                raise Damage(f"the checksum of its entry {entry.name!r} does not fit{hint}")
        if is_sealed and comment != _SEAL + _digest_of_the_rest(file, entries, size - len(comment)).encode():
            raise Damage("its checksum does not fit")


def vouched_by(path: Path) -> Literal["sealed", "checksums", "nothing"]:
    """Say what `check` has checked a whole file by: the seal and all checksums, these alone, or nothing at all."""
    with path.open("rb") as file:
        if file.read(4) != _LOCAL_SIGNATURE and not _has_end(file):
            return "nothing"
        return "sealed" if _end_comment(file).startswith(_SEAL) else "checksums"


def _has_end(file: IO[bytes]) -> bool:
    try:
        _end_comment(file)
    except Damage:
        return False
    return True


def _end_comment(file: IO[bytes]) -> bytes:
    """Give the comment in the end record, which must end with the file and be the last one in it."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _END_LENGTH - _LONGEST_COMMENT))
    tail = file.read()
    place = tail.rfind(_END_SIGNATURE)
    if place < 0 or len(tail) - place < _END_LENGTH:
        raise Damage("its end is missing")
    (length,) = struct.unpack_from("<H", tail, place + _END_LENGTH - 2)
    comment = tail[place + _END_LENGTH :]
    if length != len(comment):
        raise Damage("it does not end where it should")
    return comment


def _entries(file: IO[bytes]) -> list[_Entry]:
    """Give the entries in their order in the file: uncompressed, one after the other, each within the file."""
    with zipfile.ZipFile(file) as archive:
        listed = sorted(archive.infolist(), key=lambda each: each.header_offset)
        directory = archive.start_dir
    if not listed:
        raise Damage("it holds nothing")
    if listed[0].header_offset != 0:
        raise Damage("its first entry is missing")
    if len({each.filename for each in listed}) < len(listed):
        raise Damage("two of its entries have the same name")
    found = []
    for index, each in enumerate(listed):
        if each.compress_type != zipfile.ZIP_STORED or each.flag_bits & 1:
            raise Damage(
                f"its entry {each.filename!r} is compressed or encrypted, which torch.save never does: unpacked it would "
                f"take {each.file_size:,} bytes"
            )
        file.seek(each.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != _LOCAL_SIGNATURE:
            raise Damage(f"its entry {each.filename!r} does not begin where it should")
        begin = each.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
        end = begin + each.file_size
        limit = listed[index + 1].header_offset if index + 1 < len(listed) else directory
        if each.file_size != each.compress_size or end > limit:
            raise Damage(f"its entry {each.filename!r} overlaps what comes after it")
        found.append(_Entry(each.filename, begin, end, each.CRC))
    return found


def _digest_of_the_rest(file: IO[bytes], entries: list[_Entry], size: int) -> str:
    """Give the SHA-256 of the first `size` bytes without the entries' contents, and of where these lie."""
    digest = hashlib.sha256()
    begin = 0
    for end, skip_to in [*((entry.begin, entry.end) for entry in entries), (size, size)]:
        digest.update(struct.pack("<QQ", begin, end))
        for block in _blocks(file, begin, end):
            digest.update(block)
        begin = skip_to
    return digest.hexdigest()


def _crc(file: IO[bytes], entry: _Entry) -> int:
    crc = 0
    for block in _blocks(file, entry.begin, entry.end):
        crc = zlib.crc32(block, crc)
    return crc


def _blocks(file: IO[bytes], begin: int, end: int) -> Iterator[bytes]:
    file.seek(begin)
    while begin < end:
        block = file.read(min(_BLOCK, end - begin))
        if not block:
            raise Damage("it is cut short")
        begin += len(block)
        yield block
