"""Labels that are probably wrong: confident learning, in its simple form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.errors import MisconfigurationError


@dataclass(frozen=True, slots=True)
class Suspect:
    """A sample whose label is in doubt.

    Attributes:
        index: Of the sample.
        given: The class that it is labelled as.
        suggested: The class that it looks like.
        given_probability: Of the label.
        suggested_probability: Of the other class.
    """

    index: int
    given: int
    suggested: int
    given_probability: float
    suggested_probability: float


def suspected_label_errors(probabilities: Tensor, targets: Tensor) -> list[Suspect]:
    r"""Give the samples that look like another class than their label, the most doubtful first.

    The threshold of class `j`, :math:`t_j`, is the mean probability of `j` over the samples labelled `j`: how sure the model
    usually is of that class. A sample looks like the likeliest of the classes that reach their threshold in it; where that is not
    its label, it is a suspect. A class of which the model is never sure, or too often, has a threshold that says so, so
    neither flood the list. Order: the probability of the label less that of the other class.

    Args:
        probabilities: (N, C), each sample's by a model that was not trained on it.
        targets: The labels, class indices (N,).

    Raises:
        MisconfigurationError: If the shapes do not fit.

    Source: Northcutt, Jiang and Chuang 2021, "Confident Learning", sections 3.1 and 3.2, https://arxiv.org/abs/1911.00068

    Example:
        >>> sure, unsure = [0.9, 0.1], [0.6, 0.4]
        >>> found = suspected_label_errors(torch.tensor([sure, unsure, sure, sure[::-1]]), torch.tensor([0, 0, 1, 1]))
        >>> [(each.index, each.suggested) for each in found]
        [(2, 0)]
    """
    if probabilities.ndim != 2 or targets.shape != probabilities.shape[:1]:
        raise MisconfigurationError(
            f"Received probabilities {tuple(probabilities.shape)} and targets {tuple(targets.shape)}; expected (N, C) and "
            "(N,): a probability of each class for each sample."
        )
    probabilities, targets = probabilities.double(), targets.long()
    rows, num_classes = torch.arange(len(targets)), probabilities.shape[1]
    own = probabilities[rows, targets]
    counts = torch.bincount(targets, minlength=num_classes)
    # A class without samples has no threshold that could be reached.
    thresholds = torch.full((num_classes,), float("inf"), dtype=torch.float64)
    thresholds[counts > 0] = (torch.zeros_like(thresholds).index_add_(0, targets, own) / counts)[counts > 0]
    reached = torch.where(probabilities >= thresholds, probabilities, -1.0)  # (N, C)
    highest, looks_like = reached.max(dim=1)
    is_suspect = (highest >= 0) & (looks_like != targets)
    margins = own - highest
    order = sorted(torch.nonzero(is_suspect).flatten().tolist(), key=lambda index: float(margins[index]))
    return [
        Suspect(index, int(targets[index]), int(looks_like[index]), float(own[index]), float(highest[index]))
        for index in order
    ]
