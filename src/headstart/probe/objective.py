"""The objective of logistic regression, of many problems side by side, and the form in which weights are held in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(slots=True)
class Value:
    """The unpenalised objective of P problems at some weights (P, K, D + 1); K is 1 for two classes, else C.

    `curvature` (P, K) is the weighted sum of p (1 - p): what the second derivative is about, along a class.
    """

    loss: Tensor
    gradient: Tensor
    curvature: Tensor

    @classmethod
    def zero(cls, weights: Tensor) -> Value:
        """Give the value of no samples."""
        return cls(
            weights.new_zeros(len(weights)), torch.zeros_like(weights), weights.new_zeros(weights.shape[:2])
        )

    def add(self, features: Tensor, targets: Tensor, sample_weights: Tensor, weights: Tensor) -> None:
        """Add samples: features (n, D + 1) with ones, weights of the samples (P, n)."""
        sample_weights = sample_weights.to(features.dtype)
        log_probabilities = logits_of(features, weights.to(features.dtype)).log_softmax(dim=1)  # (P, C, n)
        index = targets.expand(len(weights), 1, -1)
        self.loss -= (log_probabilities.gather(1, index)[:, 0] * sample_weights).sum(dim=1)
        residuals = log_probabilities.exp_()
        kept = residuals[:, -weights.shape[1] :]
        # Before the target is taken off: p (1 - p) = p - p^2.
        self.curvature += torch.einsum("pkn,pn->pk", kept - kept.square(), sample_weights)
        residuals.scatter_add_(1, index, torch.full_like(index, -1, dtype=features.dtype))
        self.gradient += ((kept * sample_weights[:, None]).flatten(0, 1) @ features).view_as(weights)

    def put(self, problems: Tensor, other: Value, rows: Tensor) -> None:
        """Take over some of the problems from the rows of another value."""
        self.loss[problems] = other.loss[rows]
        self.gradient[problems] = other.gradient[rows]
        self.curvature[problems] = other.curvature[rows]


def logits_of(features: Tensor, weights: Tensor) -> Tensor:
    """Logits (P, C, n) of features (n, D + 1); of two classes the first has 0."""
    logits = (weights.flatten(0, 1) @ features.T).view(*weights.shape[:2], len(features))
    return nn.functional.pad(logits, (0, 0, 1, 0)) if weights.shape[1] == 1 else logits


def starting_weights(totals: Tensor, width: int) -> Tensor:
    """Weights of 0 and the intercepts that give the classes their shares: (P, K, D + 1) from weights (P, C)."""
    logits = totals.log()
    intercepts = (
        logits[:, 1:] - logits[:, :1] if totals.shape[1] == 2 else logits - logits.mean(dim=1, keepdim=True)
    )
    return nn.functional.pad(intercepts[..., None], (width - 1, 0))


def fold_back(weights: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """From (K, D + 1) for standardised features to weight (C, D) and bias (C,) for raw ones."""
    if len(weights) == 1:
        weights = torch.cat([-weights / 2, weights / 2])
    weight = weights[:, :-1] / deviation
    bias = weights[:, -1] - weight @ mean
    return weight, bias - bias.mean()
