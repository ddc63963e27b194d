"""Ridge regression over a path of penalties, by cross-validation, from one decomposition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from headstart.errors import MisconfigurationError
from headstart.probe.checks import (
    check_features,
    check_folds,
    check_regression_targets,
    check_sample_weights,
    check_strengths,
)
from headstart.probe.folds import deal
from headstart.probe.result import RidgePathRow, RidgeProbe
from headstart.probe.scaling import standardized

# Of scikit-learn's `alpha`, which penalises the more the larger it is.
RIDGE_STRENGTHS = tuple(10.0**exponent for exponent in range(-4, 9))


@torch.no_grad()
def fit_ridge(
    features: Tensor,
    targets: Tensor,
    *,
    strengths: Sequence[float] = RIDGE_STRENGTHS,
    num_folds: int = 5,
    sample_weights: Tensor | None = None,
    standardize: bool = True,
    seed: int = 0,
) -> RidgeProbe:
    r"""Fit ridge regression at every strength from one decomposition, and keep what does best on unseen samples.

    Minimises :math:`\sum_i u_i \lVert y_i - W x_i - b \rVert^2 + \alpha \lVert W \rVert^2`, the bias unpenalised: the objective of
    scikit-learn's `Ridge`. With the singular values :math:`s` of the weighted, centred features, every strength is a
    division by :math:`s^2 + \alpha`. The strength is chosen by the mean squared error of held-out samples.

    Args:
        features: (N, D).
        targets: (N,) or (N, K).
        strengths: Values of `alpha`: the larger, the stronger the penalty.
        num_folds: Parts of the cross-validation, reduced to the number of samples.
        sample_weights: (N,), 0 or more. None: all 1.
        standardize: Penalise the weights of features with mean 0 and deviation 1. Constant features get weight 0, and so do
            those whose deviation is below 1e-5 of the largest one: dead units of a network. Scale features of other units first.
        seed: Of the folds.

    Returns:
        The fit on all samples at the chosen strength, and what the folds said.

    Raises:
        MisconfigurationError: If shapes, weights or settings do not fit, or a value is not finite.

    Source: Hastie, Tibshirani and Friedman 2009, "The Elements of Statistical Learning", section 3.4.1.

    Example:
        >>> features = torch.arange(8.0)[:, None]
        >>> probe = fit_ridge(features, 2 * features[:, 0] + 1, strengths=[1e-6, 1.0, 100.0])
        >>> probe.strength, round(probe.weight.item(), 3), round(probe.bias.item(), 3)
        (1e-06, 2.0, 1.0)
    """
    check_features(features)
    check_regression_targets(targets, len(features))
    path = check_strengths(strengths)
    sample = check_sample_weights(sample_weights, len(features))
    if int((sample > 0).sum()) < 2:
        raise MisconfigurationError(
            f"Received {int((sample > 0).sum())} sample of weight above 0; expected 2 or more to cross-validate with."
        )
    num_folds = check_folds(num_folds, len(features))
    inputs, outputs = features.double(), targets.double().reshape(len(targets), -1)
    fold_of = deal(torch.zeros(len(inputs), dtype=torch.int64), sample > 0, num_folds, seed=seed)

    predictions = outputs.new_empty(len(path), *outputs.shape)  # (S, N, K)
    for fold in range(num_folds):
        is_out = fold_of == fold
        weight, bias = _ridge_path(
            inputs[~is_out], outputs[~is_out], sample[~is_out], path, standardize=standardize
        )
        predictions[:, is_out] = inputs[is_out] @ weight.mT + bias[:, None]
    mean = (sample @ outputs) / sample.sum()
    spread = float((sample @ (outputs - mean).square()).sum())
    errors = [float((sample @ (each - outputs).square()).sum()) for each in predictions]
    weight, bias = _ridge_path(inputs, outputs, sample, path, standardize=standardize)
    # The last of equal errors: on a tie the stronger penalty is kept.
    best = min(reversed(range(len(path))), key=lambda index: errors[index])
    return RidgeProbe(
        weight=weight[best],
        bias=bias[best],
        strength=path[best],
        path=tuple(
            RidgePathRow(
                strength,
                mean_squared_error=error / float(sample.sum()) / outputs.shape[1],
                r2=1 - error / spread if spread > 0 else math.nan,
            )
            for strength, error in zip(path, errors, strict=True)
        ),
        out_of_fold=predictions[best],
        num_folds=num_folds,
    )


def _ridge_path(
    features: Tensor, targets: Tensor, sample_weights: Tensor, path: Sequence[float], *, standardize: bool
) -> tuple[Tensor, Tensor]:
    """Fit every strength: weight (S, K, D) and bias (S, K) for raw features."""
    scaled, mean, deviation = standardized(features, sample_weights, standardize=standardize)
    target_mean = (sample_weights @ targets) / sample_weights.sum()
    roots = sample_weights.sqrt()[:, None]
    left, values, right = torch.linalg.svd(roots * scaled, full_matrices=False)
    projected = left.T @ (roots * (targets - target_mean))  # (r, K)
    alphas = torch.tensor(path, dtype=torch.float64)[:, None]
    shrunk = (values / (values.square() + alphas))[..., None] * projected  # (S, r, K)
    weight = (right.T @ shrunk).mT / deviation
    return weight, target_mean - weight @ mean
