"""A trained model over a loader: the probabilities of every sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from headstart.auto import quiet_trainer
from headstart.callbacks import LiveView
from headstart.module import LightningModule
from headstart.scores import Scores, confusion_matrix, score

if TYPE_CHECKING:
    from headstart.tasks import Classifier


def probabilities_of(
    model: Classifier, loader: Any, *, title: str = "prediction", **settings: Any
) -> torch.Tensor:
    """Give the probabilities (N, C) of all samples of a loader, on the CPU.

    How far it is stands on standard error; standard output stays free for results.

    Args:
        model: The model.
        loader: Gives inputs, or inputs with targets, which are left out.
        title: What is shown of it.
        **settings: `accelerator`, `devices` and `precision` of the `Trainer`.
    """
    if model.kind == "images":
        model.to(memory_format=torch.channels_last)  # as in fit, so that the same scores come out
    trainer = quiet_trainer(callbacks=[LiveView(title=title, console=Console(stderr=True))], **settings)
    outputs = trainer.predict(model, loader)
    return trainer.strategy.in_order([output["probabilities"].float().cpu() for output in outputs])


class _Both(LightningModule):
    """Gives what a model's backbone makes of inputs, and what its head makes of that."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def predict_step(self, batch: Any, batch_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.model.backbone(batch[0])
        return features, self.model.head(features).softmax(dim=-1)


def features_and_probabilities_of(
    model: Classifier, loader: Any, *, title: str = "prediction", **settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give features (N, width) and probabilities (N, C) of all samples of a loader of inputs with targets, on the CPU.

    Args:
        model: The model.
        loader: Gives inputs with targets.
        title: What is shown of it.
        **settings: As `probabilities_of` takes them.
    """
    if model.kind == "images":
        model.to(memory_format=torch.channels_last)
    view = LiveView(title=title, console=Console(stderr=True))
    trainer = quiet_trainer(reuse_frozen=False, callbacks=[view], **settings)  # a single pass
    found = trainer.predict(_Both(model), loader)
    features = trainer.strategy.in_order([each.float().cpu() for each, _ in found])
    return features, trainer.strategy.in_order([each.float().cpu() for _, each in found])


def scores_of(model: Classifier, loader: Any, **settings: Any) -> Scores:
    """Give the scores of a model on a loader of inputs with targets, whose order is that of its dataset.

    Args:
        model: The model.
        loader: Its dataset has `targets`.
        **settings: As `probabilities_of` takes them.
    """
    return scores_from(probabilities_of(model, loader, **settings), loader.dataset.targets)


def scores_from(probabilities: torch.Tensor, targets: Any) -> Scores:
    """Give the scores of probabilities (N, C), or logits, for targets (N,).

    Example:
        >>> scores_from(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), [0, 1]).accuracy.value
        1.0
    """
    predictions = probabilities.argmax(dim=1).numpy()
    return score(confusion_matrix(targets, predictions, num_classes=probabilities.shape[1]))
