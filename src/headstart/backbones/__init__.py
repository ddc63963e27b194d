"""Pretrained networks without their heads, by name."""

from __future__ import annotations

from headstart.backbones.backbone import Backbone, wrap_module
from headstart.backbones.hub import HubError
from headstart.backbones.names import default_backbone, load_backbone, rebuild_backbone
from headstart.backbones.preprocessing import ImagePreprocessing, TextPreprocessing

__all__ = [
    "Backbone",
    "HubError",
    "ImagePreprocessing",
    "TextPreprocessing",
    "default_backbone",
    "load_backbone",
    "rebuild_backbone",
    "wrap_module",
]
