"""Classification of images and texts as `LightningModule`s."""

from __future__ import annotations

from headstart.tasks.classifier import Classifier, balanced_class_weights
from headstart.tasks.image_classifier import ImageClassifier
from headstart.tasks.text_classifier import TextClassifier

__all__ = ["Classifier", "ImageClassifier", "TextClassifier", "balanced_class_weights"]
