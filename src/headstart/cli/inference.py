"""A trained model over a loader: the probabilities of every sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from headstart.auto import quiet_trainer
from headstart.callbacks import LiveView
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


def scores_of(model: Classifier, loader: Any, **settings: Any) -> Scores:
    """Give the scores of a model on a loader of inputs with targets, whose order is that of its dataset.

    Args:
        model: The model.
        loader: Its dataset has `targets`.
        **settings: As `probabilities_of` takes them.
    """
    predictions = probabilities_of(model, loader, **settings).argmax(dim=1).numpy()
    return score(confusion_matrix(loader.dataset.targets, predictions, num_classes=len(model.class_names)))
