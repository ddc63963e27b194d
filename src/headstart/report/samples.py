"""Samples as a page shows them: a small picture, or the beginning of a text, and where it comes from."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import DataError
from headstart.words import printable

if TYPE_CHECKING:
    from headstart.data.base import Sample

#: Pixels of a thumbnail's longer side, twice what is shown: screens have two pixels where a page has one.
THUMBNAIL = 192
#: Characters of a text.
SNIPPET = 320


def shown(sample: Sample) -> dict[str, Any]:
    """Give a sample as plain values: `place`, its class `label`, and `picture` (a data address) or `text`.

    Args:
        sample: Of a data module. An image that cannot be read any more has the reason under `missing`.

    Example:
        >>> from headstart.data.base import Sample
        >>> shown(Sample("a fine thing", "good", "row 7", ""))
        {'place': 'row 7', 'label': 'good', 'text': 'a fine thing'}
    """
    found: dict[str, Any] = {"place": printable(sample.place), "label": sample.label}
    if _is_picture(sample.value):
        try:
            return {**found, "picture": _thumbnail(sample.value)}
        except DataError as error:
            return {**found, "missing": printable(str(error))}
    texts = (sample.value,) if isinstance(sample.value, str) else sample.value
    return {**found, "text": " | ".join(_snippet(text) for text in texts)}


def is_same(first: Sample, second: Sample) -> bool:
    """Whether two samples are the same file, byte for byte, or the same text.

    Example:
        >>> from headstart.data.base import Sample
        >>> is_same(Sample("a  text ", "x", "row 1", ""), Sample("a text", "y", "row 2", ""))
        True
    """
    if isinstance(first.value, Path):
        try:
            return first.value.read_bytes() == Path(second.value).read_bytes()
        except OSError:
            return False
    if _is_picture(first.value):
        return bool(_content(first.value) == _content(second.value))
    return _words(first.value) == _words(second.value)


def _is_picture(value: Any) -> bool:
    """Whether a sample's value is an image: its file, the content of one, or the image itself."""
    return isinstance(value, Path | bytes) or hasattr(value, "convert")


def _content(value: Any) -> Any:
    return value if isinstance(value, bytes) else (value.size, value.mode, value.tobytes())


def _thumbnail(value: Any) -> str:
    from headstart.data.images import open_image, read_image, to_rgb

    if isinstance(value, Path):
        image = open_image(value)
    else:
        image = read_image(io.BytesIO(value)) if isinstance(value, bytes) else to_rgb(value.copy())
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=78, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _snippet(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SNIPPET else line[:SNIPPET].rsplit(" ", 1)[0] + " …"


def _words(text: Any) -> list[list[str]]:
    return [each.split() for each in ((text,) if isinstance(text, str) else text)]
