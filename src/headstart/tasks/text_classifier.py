"""`TextClassifier`: a pretrained language model with a new head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from headstart.backbones import TextPreprocessing
from headstart.backbones.backbone import Kind
from headstart.tasks.classifier import Classifier, resolve_backbone


class TextClassifier(Classifier):
    """A classifier of texts, or of pairs of texts: `backbone` and `head`, with the backbone's own tokenizer.

    Args:
        backbone: A name, as `load_backbone` takes it, or a `Backbone`.
        class_names: The name of each class, in the order of the targets.
        lr: The learning rate of AdamW.
        weight_decay: The weight decay of AdamW.
        class_weights: The weight of each class in the loss (`balanced_class_weights`); `None` weighs all the same.
        max_length: The number of tokens beyond which a text is cut off; `None` takes the backbone's own.
        pretrained: Load the backbone's weights; `False` starts from random ones.
        description: Set by checkpoints, not by you.

    Raises:
        MisconfigurationError: If the backbone is one for images.
    """

    kind: ClassVar[Kind] = "text"
    preprocessing: TextPreprocessing

    def __init__(
        self,
        backbone: str | nn.Module = "minilm",
        *,
        class_names: Sequence[str],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        class_weights: Sequence[float] | None = None,
        max_length: int | None = None,
        pretrained: bool = True,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        built = resolve_backbone(backbone, pretrained=pretrained, description=description)
        super().__init__(
            built, class_names=class_names, lr=lr, weight_decay=weight_decay, class_weights=class_weights
        )
        if max_length is not None:
            self.preprocessing = TextPreprocessing(self.preprocessing.tokenizer, max_length=max_length)
        values: dict[str, Any] = {
            "class_names": self.class_names,
            "lr": lr,
            "weight_decay": weight_decay,
            "class_weights": None if class_weights is None else [float(weight) for weight in class_weights],
            "max_length": max_length,
            "pretrained": pretrained,
        }
        if isinstance(backbone, str):
            values["backbone"] = backbone
        self.save_hyperparameters(values)
