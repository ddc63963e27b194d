"""A trained model over a loader: the probabilities of every sample."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

from headstart.auto import quiet_trainer
from headstart.callbacks import RichProgressBar
from headstart.scores import Scores, confusion_matrix, score

if TYPE_CHECKING:
    from headstart.tasks import Classifier


def probabilities_of(model: Classifier, loader: Any, **settings: Any) -> torch.Tensor:
    """Give the probabilities (N, C) of all samples of a loader, on the CPU.

    A bar is drawn on standard error if that is a terminal; standard output stays free for results.

    Args:
        model: The model.
        loader: Gives inputs, or inputs with targets, which are left out.
        **settings: `accelerator`, `devices` and `precision` of the `Trainer`.
    """
    if model.kind == "images":
        model.to(memory_format=torch.channels_last)  # as in fit, so that the same scores come out
    bar = [RichProgressBar(console_kwargs={"stderr": True})] if sys.stderr.isatty() else []
    trainer = quiet_trainer(callbacks=bar, enable_progress_bar=bool(bar), **settings)
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
