"""What kind of data a path holds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from headstart.data.images import is_image_name, visible_children
from headstart.data.table import TABLE_SUFFIXES
from headstart.errors import DataError, did_you_mean

_EXPECTED = (
    "Expected a folder with a folder of images per class, a table: "
    f"{', '.join(TABLE_SUFFIXES)} with a column of texts and a column of labels; tar files, or a saved Hugging Face dataset."
)


def detect_kind(path: str | Path) -> Literal["images", "text"]:
    """Give `"images"` for a folder of class folders and `"text"` for a table.

    Only names are looked at; the data modules read and check.

    Args:
        path: The folder or the file.

    Raises:
        DataError: If it is missing, or neither; the message says what it is.

    Example:
        >>> import tempfile
        >>> table = Path(tempfile.mkdtemp(), "reviews.csv")
        >>> _ = table.write_text("text,label")
        >>> detect_kind(table)
        'text'
    """
    path = Path(path).expanduser()
    if path.is_dir():
        children, _ = visible_children(path)
        if any(child.is_dir() for child in children):
            return "images"
        if any(child.suffix.casefold() in TABLE_SUFFIXES for child in children):
            tables = [str(child) for child in children if child.suffix.casefold() in TABLE_SUFFIXES]
            raise DataError(f"{path} is a folder of tables: name one of them, for example {tables[0]}.")
        if any(is_image_name(child) for child in children):
            raise DataError(
                f"{path} holds images without classes: put them into a folder per class. {_EXPECTED}"
            )
        raise DataError(f"{path} has no folders in it. {_EXPECTED}")
    if not path.exists():
        near = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"There is no file or folder {str(path)!r}.{did_you_mean(path.name, near)}")
    if path.suffix.casefold() in TABLE_SUFFIXES:
        return "text"
    hint = " Unpack it first." if path.suffix.casefold() in {".zip", ".gz", ".tgz", ".7z", ".rar"} else ""
    raise DataError(f"{path} is a {path.suffix or 'nameless kind of'} file.{hint} {_EXPECTED}")
