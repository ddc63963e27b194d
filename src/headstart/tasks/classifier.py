"""What image and text classification share: a backbone, a linear head, cross entropy, accuracy and macro-F1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from headstart.backbones import Backbone, TextPreprocessing, load_backbone, rebuild_backbone, wrap_module
from headstart.backbones.backbone import Kind
from headstart.errors import MisconfigurationError, missing_dependency
from headstart.module import LightningModule


def balanced_class_weights(class_counts: Sequence[int]) -> list[float]:
    """Give each class a weight so that all count the same in the loss, however many samples they have.

    A class with n of N samples in C classes gets N / (C n): the mean weight of a sample is 1.

    Args:
        class_counts: The number of training samples of each class.

    Raises:
        MisconfigurationError: If a class has no sample.

    Example:
        >>> balanced_class_weights([30, 10])
        [0.6666666666666666, 2.0]
    """
    if not class_counts or min(class_counts) < 1:
        raise MisconfigurationError(
            f"Class counts are {list(class_counts)}; every class needs a training sample."
        )
    total = sum(class_counts)
    return [total / (len(class_counts) * count) for count in class_counts]


class Classifier(LightningModule):
    """A backbone with a linear head: the base of `ImageClassifier` and `TextClassifier`.

    It logs `train_loss` of each step, its mean over the epoch as `train_loss_epoch`, and `val_loss`, `val_acc`, `val_f1`
    (macro), and the same three for `test_`. A batch is `(inputs, targets)`; to predict, the inputs alone.

    Attributes:
        backbone: Gives features (B, width).
        head: Gives logits (B, C).
        class_names: The name of each class, in the order of the logits.
        preprocessing: What is done to a photo or text before.
    """

    kind: ClassVar[Kind]

    def __init__(
        self,
        backbone: Backbone,
        *,
        class_names: Sequence[str],
        lr: float,
        weight_decay: float,
        class_weights: Sequence[float] | None,
    ) -> None:
        super().__init__()
        names = [str(name) for name in class_names]
        if len(names) < 2 or len(set(names)) < len(names):
            raise MisconfigurationError(f"class_names is {names}; expected two or more different names.")
        if backbone.kind != self.kind:
            other = "TextClassifier" if backbone.kind == "text" else "ImageClassifier"
            raise MisconfigurationError(
                f"The backbone {backbone.name!r} takes {backbone.kind}; {type(self).__name__} needs one that takes "
                f"{self.kind}. Use {other}."
            )
        if class_weights is not None and len(class_weights) != len(names):
            raise MisconfigurationError(
                f"class_weights has {len(class_weights)} values for {len(names)} classes; expected one for each."
            )
        self.backbone = backbone
        self.head = nn.Linear(backbone.width, len(names))
        self.class_names = names
        self.preprocessing = backbone.preprocessing
        self.lr = lr
        self.weight_decay = weight_decay
        self.class_weights: torch.Tensor | None
        # Not in the state dict: it is a hyper-parameter, and new data have other weights.
        self.register_buffer(
            "class_weights",
            None if class_weights is None else torch.tensor(list(class_weights)),
            persistent=False,
        )
        accuracy, macro_f1 = _metrics(len(names))
        self.val_acc, self.val_f1 = accuracy(), macro_f1()
        self.test_acc, self.test_f1 = accuracy(), macro_f1()

    # ---- the steps

    def forward(self, inputs: Any) -> torch.Tensor:
        """Give the logits (B, C)."""
        logits: torch.Tensor = self.head(self.backbone(inputs))
        return logits

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Give the cross entropy of a batch, with the class weights."""
        return cross_entropy(logits, targets, weight=self.class_weights)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Give the loss of a training batch."""
        inputs, targets = batch
        loss = self.loss(self(inputs), targets)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(targets))
        # Under a name of its own: on_epoch above would log each step as train_loss_step.
        self.log("train_loss_epoch", loss, on_step=False, on_epoch=True, batch_size=len(targets))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Record loss, accuracy and macro-F1 of a validation batch."""
        self._evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Record loss, accuracy and macro-F1 of a test batch."""
        self._evaluate("test", batch)

    def predict_step(self, batch: Any, batch_idx: int = 0) -> dict[str, torch.Tensor]:
        """Give `{"probabilities": (B, C)}` for inputs; targets that come with them are left out."""
        inputs = batch[0] if isinstance(batch, tuple | list) else batch
        return {"probabilities": self(inputs).softmax(dim=-1)}

    def _evaluate(self, stage: str, batch: Any) -> None:
        inputs, targets = batch
        logits = self(inputs)
        shown = stage == "val"
        self.log(
            f"{stage}_loss",
            self.loss(logits, targets),
            prog_bar=shown,
            batch_size=len(targets),
            sync_dist=True,
        )
        for name in ("acc", "f1"):
            metric = getattr(self, f"{stage}_{name}")
            metric.update(logits, targets)
            self.log(f"{stage}_{name}", metric, prog_bar=shown, batch_size=len(targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Give AdamW over what trains now; `BackboneFinetuning` adds the backbone when it thaws.

        Raises:
            MisconfigurationError: If nothing trains.
        """
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trainable:
            raise MisconfigurationError(
                f"Every parameter of this {type(self).__name__} is frozen. Let the head train: "
                "model.head.requires_grad_(True)."
            )
        return torch.optim.AdamW(trainable, lr=self.lr, weight_decay=self.weight_decay)

    # ---- a checkpoint holds what it takes to build the backbone again

    def rebuild_arguments(self) -> dict[str, Any]:
        """Give plain arguments that build this module again, weights aside, without a network or a package's data."""
        known = self.backbone.architecture is not None
        description: dict[str, Any] = (
            self.backbone.describe() if known else {"name": self.backbone.name, "architecture": None}
        )
        if isinstance(self.preprocessing, TextPreprocessing):
            description["tokenizer_files"] = self.preprocessing.files()
        return {**self.hparams, "pretrained": False, "description": description}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the description of the backbone, so that loading fetches nothing."""
        checkpoint["hyper_parameters"] = {
            **checkpoint.get("hyper_parameters", {}),
            **self.rebuild_arguments(),
        }


def resolve_backbone(
    backbone: str | nn.Module,
    *,
    pretrained: bool,
    description: Mapping[str, Any] | None,
    preprocessing: Any = None,
) -> Backbone:
    """Give the backbone that a classifier was asked for.

    Args:
        backbone: A name, or a network.
        pretrained: Whether a name's weights are loaded.
        description: What a checkpoint holds of it; the name is then rebuilt from this, and nothing is fetched.
        preprocessing: For a network: what it expects.

    Raises:
        MisconfigurationError: If the checkpoint's backbone was a module, and none is given now.
    """
    if isinstance(backbone, nn.Module):
        return wrap_module(backbone, preprocessing=preprocessing)
    if description is None:
        return load_backbone(backbone, pretrained=pretrained)
    if description["architecture"] is None:
        raise MisconfigurationError(
            f"This model's backbone was given as a module ({description['name']}), which a checkpoint does not hold. "
            "Build it and pass it: load_from_checkpoint(path, backbone=module)."
        )
    if description["name"] != backbone:
        return load_backbone(backbone, pretrained=pretrained)
    return rebuild_backbone(description, tokenizer_files=description.get("tokenizer_files"))


def _metrics(num_classes: int) -> tuple[Any, Any]:
    try:
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
    except ImportError:
        raise missing_dependency(
            "torchmetrics", needed_for="the classifiers' metrics", extra="images"
        ) from None
    return (
        lambda: MulticlassAccuracy(num_classes, average="micro"),
        lambda: MulticlassF1Score(num_classes, average="macro"),
    )
