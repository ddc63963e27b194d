"""From what a user names to the data module that reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from headstart.data.base import ClassificationData
from headstart.data.kind import detect_kind

Format = Literal["folder", "table", "huggingface", "webdataset", "own"]

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def format_of(source: str | Path) -> Format:
    """Give how data is kept, by names alone (of a Parquet file, by its columns).

    Args:
        source: A path, a range of tar files, or `package.module:function`.

    Raises:
        DataError: If it is missing, or none of what can be read.

    Example:
        >>> format_of("package.module:make_data"), format_of("shards-{000..009}.tar")
        ('own', 'webdataset')
    """
    from headstart.data.huggingface import holds_images, is_saved_dataset

    path = Path(source).expanduser()
    if _FUNCTION.fullmatch(str(source)) and not path.exists():
        return "own"
    if path.suffix == ".tar":
        return "webdataset"
    if path.is_dir():
        if is_saved_dataset(path):
            return "huggingface"
        suffixes = {
            child.suffix for child in path.iterdir() if child.is_file() and not child.name.startswith(".")
        }
        if ".tar" in suffixes:
            return "webdataset"
        if suffixes & {".arrow", ".parquet"} and not any(child.is_dir() for child in path.iterdir()):
            return "huggingface"
    elif path.is_file() and (path.suffix == ".arrow" or (path.suffix == ".parquet" and holds_images(path))):
        return "huggingface"
    return "folder" if detect_kind(path) == "images" else "table"


def open_data(
    source: str | Path,
    *,
    text_columns: str | Sequence[str] | None = None,
    label_column: str | None = None,
    **settings: Any,
) -> ClassificationData:
    """Give the data module for what a user names, not read yet.

    Args:
        source: See `format_of`.
        text_columns: Of tables and Hugging Face datasets: one column, or two for pairs; `None` looks for a common name.
        label_column: Of these, the column of labels.
        settings: `batch_size`, `val_fraction`, `test_fraction`, `seed`, `num_workers`.

    Raises:
        DataError: If there is no such data.
    """
    kept_as = format_of(source)
    columns: dict[str, Any] = {"text_columns": text_columns, "label_column": label_column}
    if kept_as == "folder":
        from headstart.data.folder import ImageFolderData

        return ImageFolderData(source, **settings)
    if kept_as == "table":
        from headstart.data.text import TextTableData

        return TextTableData(source, **columns, **settings)
    if kept_as == "huggingface":
        from headstart.data.huggingface import HuggingFaceData

        return HuggingFaceData(source, **columns, **settings)
    if kept_as == "webdataset":
        from headstart.data.shards import WebDatasetData

        return WebDatasetData(source, **settings)
    from headstart.data.own import data_of

    return data_of(str(source), **columns, **settings)
