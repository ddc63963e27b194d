"""Folders of images and tables of texts as data modules: read, checked and split for someone who writes no code."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.data.base import ClassificationData
    from headstart.data.folder import ImageFolderData
    from headstart.data.images import ImageFiles, LabelledImages, open_image, open_images
    from headstart.data.kind import detect_kind
    from headstart.data.report import DataReport, SetAside
    from headstart.data.splits import split_by_class
    from headstart.data.text import LabelledTexts, TextCollate, TextRows, TextTableData, read_rows

# Each public name, and the module in which it is defined.
_DEFINED_IN = {
    "ClassificationData": "headstart.data.base",
    "DataReport": "headstart.data.report",
    "ImageFiles": "headstart.data.images",
    "ImageFolderData": "headstart.data.folder",
    "LabelledImages": "headstart.data.images",
    "LabelledTexts": "headstart.data.text",
    "SetAside": "headstart.data.report",
    "TextCollate": "headstart.data.text",
    "TextRows": "headstart.data.text",
    "TextTableData": "headstart.data.text",
    "detect_kind": "headstart.data.kind",
    "open_image": "headstart.data.images",
    "open_images": "headstart.data.images",
    "read_rows": "headstart.data.text",
    "split_by_class": "headstart.data.splits",
}

__all__ = [
    "ClassificationData",
    "DataReport",
    "ImageFiles",
    "ImageFolderData",
    "LabelledImages",
    "LabelledTexts",
    "SetAside",
    "TextCollate",
    "TextRows",
    "TextTableData",
    "detect_kind",
    "open_image",
    "open_images",
    "read_rows",
    "split_by_class",
]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'headstart.data' has no attribute {name!r}")
    value = getattr(import_module(_DEFINED_IN[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
