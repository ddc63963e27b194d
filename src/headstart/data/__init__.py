"""Folders of images, tables of texts, shards and datasets as data modules: read, checked and split for someone who writes no code."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.data.base import ClassificationData
    from headstart.data.folder import ImageFolderData
    from headstart.data.huggingface import HuggingFaceData
    from headstart.data.image_data import ImageData
    from headstart.data.images import ImageFiles, LabelledImages, open_image, open_images
    from headstart.data.kind import detect_kind
    from headstart.data.opening import open_data
    from headstart.data.own import DatasetData
    from headstart.data.report import DataReport, SetAside
    from headstart.data.shards import WebDatasetData
    from headstart.data.splits import split_by_class
    from headstart.data.spool import write_shards
    from headstart.data.text import LabelledTexts, TextCollate, TextRows, TextTableData, read_rows

# Each public name, and the module in which it is defined.
_DEFINED_IN = {
    "ClassificationData": "headstart.data.base",
    "DataReport": "headstart.data.report",
    "DatasetData": "headstart.data.own",
    "detect_kind": "headstart.data.kind",
    "HuggingFaceData": "headstart.data.huggingface",
    "ImageData": "headstart.data.image_data",
    "ImageFiles": "headstart.data.images",
    "ImageFolderData": "headstart.data.folder",
    "LabelledImages": "headstart.data.images",
    "LabelledTexts": "headstart.data.text",
    "open_data": "headstart.data.opening",
    "open_image": "headstart.data.images",
    "open_images": "headstart.data.images",
    "read_rows": "headstart.data.text",
    "SetAside": "headstart.data.report",
    "split_by_class": "headstart.data.splits",
    "TextCollate": "headstart.data.text",
    "TextRows": "headstart.data.text",
    "TextTableData": "headstart.data.text",
    "WebDatasetData": "headstart.data.shards",
    "write_shards": "headstart.data.spool",
}

__all__ = [
    "ClassificationData",
    "DataReport",
    "DatasetData",
    "HuggingFaceData",
    "ImageData",
    "ImageFiles",
    "ImageFolderData",
    "LabelledImages",
    "LabelledTexts",
    "SetAside",
    "TextCollate",
    "TextRows",
    "TextTableData",
    "WebDatasetData",
    "detect_kind",
    "open_data",
    "open_image",
    "open_images",
    "read_rows",
    "split_by_class",
    "write_shards",
]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'headstart.data' has no attribute {name!r}")
    value = getattr(import_module(_DEFINED_IN[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
