"""A trained model over a loader: the probabilities of every sample."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

from headstart.callbacks import RichProgressBar
from headstart.scores import Scores, confusion_matrix, score
from headstart.trainer import Trainer

if TYPE_CHECKING:
    from headstart.tasks import Classifier


def probabilities_of(
    model: Classifier,
    loader: Any,
    *,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
) -> torch.Tensor:
    """Give the probabilities (N, C) of all samples of a loader, on the CPU.

    A bar is drawn on standard error if that is a terminal; standard output stays free for results.

    Args:
        model: The model.
        loader: Gives inputs, or inputs with targets, which are left out.
        accelerator: As `Trainer` takes it.
        devices: As `Trainer` takes it.
        precision: As `Trainer` takes it.
    """
    if model.kind == "images":
        model.to(memory_format=torch.channels_last)  # as in fit, so that the same scores come out
    bar = sys.stderr.isatty()
    trainer = Trainer(
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bar,
        callbacks=[RichProgressBar(console_kwargs={"stderr": True})] if bar else None,
    )
    outputs = trainer.predict(model, loader)
    return torch.cat([output["probabilities"].float().cpu() for output in outputs])


def scores_of(model: Classifier, loader: Any, **settings: Any) -> Scores:
    """Give the scores of a model on a loader of inputs with targets, whose order is that of its dataset.

    Args:
        model: The model.
        loader: Its dataset has `targets`.
        **settings: As `probabilities_of` takes them.
    """
    predictions = probabilities_of(model, loader, **settings).argmax(dim=1).numpy()
    return score(confusion_matrix(loader.dataset.targets, predictions, num_classes=len(model.class_names)))
