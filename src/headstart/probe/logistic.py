"""Logistic regression over a path of penalties, by cross-validation, for features in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from headstart.errors import MisconfigurationError
from headstart.probe.checks import (
    check_counts,
    check_features,
    check_folds,
    check_sample_weights,
    check_strengths,
    check_targets,
    shape_of,
)
from headstart.probe.folds import deal
from headstart.probe.objective import Value, fold_back, logits_of, starting_weights
from headstart.probe.result import PathRow, Probe
from headstart.probe.scaling import scales_of_folds, standardized, with_ones
from headstart.probe.solver import Basis, Memory, minimise

# Of scikit-learn's `C`: from a head that gives the shares of the classes to one that is hardly penalised.
STRENGTHS = tuple(10.0 ** (exponent * 2 / 3) for exponent in range(-6, 7))
# Fewer rows make the matrix products slow, more rows make logits that leave the processor's cache.
_BLOCK = 1024
# Along the path a strength is fitted until its log loss is known to some four digits; the chosen one to the end.
_PATH_TOLERANCE = 1e-5
# The path ends at a log loss so many times the best, or at the second in a row that is worse than it: weaker penalties
# only overfit more, and take the longest.
_MUCH_WORSE = 1.05
_PATIENCE = 2
# The folds of the chosen strength: their probabilities are then right to three digits or more.
_FOLD_TOLERANCE = 1e-7


@torch.no_grad()
def fit_probe(
    features: Tensor,
    targets: Tensor,
    *,
    num_classes: int | None = None,
    strengths: Sequence[float] = STRENGTHS,
    num_folds: int = 5,
    sample_weights: Tensor | None = None,
    class_weights: Tensor | Literal["balanced"] | None = None,
    standardize: bool = True,
    seed: int = 0,
    tolerance: float = 1e-10,
) -> Probe:
    r"""Fit logistic regression to its optimum at every strength, and keep the one that does best on unseen samples.

    With :math:`u_i` the product of a sample's weight and its class's, the fit minimises
    :math:`C \sum_i u_i \, \mathrm{CE}_i + \frac{1}{2} \lVert W \rVert^2`, the bias unpenalised: the objective of
    scikit-learn's `LogisticRegression`. As there, two classes have one weight vector :math:`w` (the difference of
    their logits); it is given as the rows :math:`-w/2` and :math:`w/2`.

    The strength is chosen by the log loss of held-out samples, weighted as in the fit: it is what the fit minimises, it
    moves with every sample, and probabilities are used afterwards. Accuracy moves in steps of whole samples, so that
    several strengths tie, and the best of several noisy accuracies is too good; as it does not choose, the accuracy
    that is given here hardly suffers from that. On a tie the stronger penalty is kept. The path is walked from the
    strongest penalty on, and ends where the log loss is 5 % above the best, or above it for the second time in a row.

    Every fold is standardised by its own training part. Folds are stratified: the samples of a class are dealt out one by one,
    so two samples of a class are enough for every training part to have one. More folds than samples are
    reduced to the number of samples.

    Args:
        features: (N, D).
        targets: Class indices (N,).
        num_classes: C; None takes the largest target plus one.
        strengths: Values of `C`: the larger, the weaker the penalty.
        num_folds: Parts of the cross-validation.
        sample_weights: (N,), 0 or more; a sample of weight 2 counts as two, in mean and deviation, too. None: all 1.
        class_weights: (C,); or "balanced", which makes the classes weigh the same in all; None: all 1.
        standardize: Penalise the weights of features with mean 0 and deviation 1. Constant features get weight 0, and so do
            those whose deviation is below 1e-5 of the largest one: dead units of a network. Scale features of other units first.
        seed: Of the folds. Nothing else is random.
        tolerance: How far above its minimum the objective may end, as a share of it. It is held against an estimate that
            may be a few hundred times too small where the penalty is weak, hence the small default.

    Returns:
        The fit on all samples at the chosen strength, and what the folds said.

    Raises:
        MisconfigurationError: If shapes, classes, weights or settings do not fit, or a value is not finite.

    Source: Nocedal and Wright 2006, "Numerical Optimization", algorithms 7.4 and 7.5 (L-BFGS).

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]])
        >>> probe = fit_probe(features, torch.tensor([0, 0, 0, 1, 1, 1]), strengths=[0.1, 1.0], num_folds=3)
        >>> print(probe)
           strength  accuracy (95 % interval)  log loss
                0.1  1.000 (0.610 to 1.000)    0.6227
        *         1  1.000 (0.610 to 1.000)    0.4089
        >>> probe.linear()(features).argmax(dim=1).tolist()
        [0, 0, 0, 1, 1, 1]
    """
    check_features(features)
    num_classes = check_targets(targets, len(features), num_classes)
    targets = targets.long()
    path = check_strengths(strengths)
    sample = check_sample_weights(sample_weights, len(features))
    counts = torch.bincount(targets[sample > 0], minlength=num_classes)
    check_counts(counts)
    num_folds = check_folds(num_folds, len(features))

    # Problem 0 is the fit on all samples, problem 1 + f the one without fold f. P = 1 + F.
    fold_of = deal(targets, sample > 0, num_folds, seed=seed)  # (N,)
    is_seen = torch.arange(-1, num_folds)[:, None] != fold_of  # (P, N); fold -1 is nobody's
    seen = sample * is_seen  # (P, N)
    class_weight = _class_weights(class_weights, seen, targets, num_classes)  # (P, C)
    scaled, mean, deviation = standardized(features.double(), sample, standardize=standardize)
    scales = scales_of_folds(scaled, seen, standardize=standardize)  # (P, D)
    problems = Problems(scaled, targets, seen * class_weight[:, targets], scales, num_classes)

    roughly = Problems(scaled.float(), targets, problems.sample_weights, scales, num_classes)
    fit = partial(minimise, basis=Basis.of(scaled, problems.sample_weights[0]), memory=Memory())
    held_out = class_weight[fold_of + 1, targets] * sample  # (N,)

    def fit_roughly(strength: float, weights: Tensor) -> tuple[Tensor, PathRow]:
        everywhere = torch.full((num_folds + 1,), strength, dtype=torch.float64)
        weights = fit(
            roughly.evaluate, weights, strengths=everywhere, tolerance=max(tolerance, _PATH_TOLERANCE)
        )
        log_probabilities = roughly.log_probabilities_out_of_fold(weights, fold_of)  # (N, C)
        return weights, _path_row(strength, log_probabilities, targets, held_out)

    rows, best, weights = _walk(path, problems.start(), fit_roughly)
    # What is kept is fitted to the end.
    everywhere = torch.full((num_folds + 1,), path[best], dtype=torch.float64)
    tolerances = torch.full_like(everywhere, max(tolerance, _FOLD_TOLERANCE))
    tolerances[0] = tolerance
    weights = fit(problems.evaluate, weights, strengths=everywhere, tolerance=tolerances)
    log_probabilities = problems.log_probabilities_out_of_fold(weights, fold_of)
    rows[best] = _path_row(path[best], log_probabilities, targets, held_out)
    weight, bias = fold_back(weights[0], mean, deviation)
    return Probe(
        weight=weight,
        bias=bias,
        strength=path[best],
        path=tuple(rows),
        accuracy=rows[best].accuracy,
        out_of_fold=log_probabilities.exp(),
        num_folds=num_folds,
    )


def _walk(
    path: Sequence[float], start: Tensor, fit: Callable[[float, Tensor], tuple[Tensor, PathRow]]
) -> tuple[list[PathRow], int, Tensor]:
    """Fit at one strength after the other, each from the weights of the last, until the log loss has turned.

    Args:
        path: Strengths, the strongest penalty first.
        start: Weights to begin with.
        fit: Gives the weights at a strength, from those given, and what held-out samples say of them.

    Returns:
        A row for each strength that was tried, the index of the best, and its weights.
    """
    weights, rows = start, list[PathRow]()
    best, best_weights = 0, start
    for strength in path:
        weights, row = fit(strength, weights)
        rows.append(row)
        if row.log_loss < rows[best].log_loss or len(rows) == 1:
            best, best_weights = len(rows) - 1, weights
        elif len(rows) - 1 - best == _PATIENCE or row.log_loss > _MUCH_WORSE * rows[best].log_loss:
            break
    return rows, best, best_weights


def _class_weights(
    chosen: Tensor | Literal["balanced"] | None, seen: Tensor, targets: Tensor, num_classes: int
) -> Tensor:
    """The weight of each class in each problem (P, C); balance is that of the problem's own samples."""
    if chosen is None:
        return torch.ones(len(seen), num_classes, dtype=torch.float64)
    if isinstance(chosen, Tensor):
        if chosen.shape != (num_classes,) or not bool((chosen.isfinite() & (chosen > 0)).all()):
            raise MisconfigurationError(
                f"class_weights: received {shape_of(chosen)} with values {chosen.tolist()}; expected {num_classes} finite "
                "values above 0, one per class. To leave a class out, leave its samples out."
            )
        return chosen.double().expand(len(seen), num_classes)
    if chosen != "balanced":
        raise MisconfigurationError(
            f"class_weights: received {chosen!r}; expected 'balanced', a tensor of one weight per class, or None."
        )
    totals = torch.zeros(len(seen), num_classes, dtype=torch.float64).index_add_(1, targets, seen)
    return seen.sum(dim=1, keepdim=True) / (num_classes * totals)


class Problems:
    """Logistic regressions on the same features (N, D), each with weights of the samples of its own (P, N)."""

    def __init__(
        self, features: Tensor, targets: Tensor, sample_weights: Tensor, scales: Tensor, num_classes: int
    ) -> None:
        self.features = with_ones(features)
        self.targets = targets
        self.sample_weights = sample_weights
        self.scales = with_ones(scales)[:, None]  # (P, 1, D + 1)
        self.num_classes = num_classes

    def start(self) -> Tensor:
        """Weights of 0 and the intercepts that give the shares of the classes."""
        num_problems = len(self.sample_weights)
        totals = torch.zeros(num_problems, self.num_classes, dtype=torch.float64)
        totals.index_add_(1, self.targets, self.sample_weights)
        return starting_weights(totals, self.features.shape[1])

    def evaluate(self, problems: Tensor, weights: Tensor) -> Value:
        """Give loss, gradient and curvature of some of the problems."""
        scales, sample_weights = self.scales[problems], self.sample_weights[problems]
        scaled = weights * scales
        value = Value.zero(weights)
        for rows in _blocks(len(self.features)):
            value.add(self.features[rows], self.targets[rows], sample_weights[:, rows], scaled)
        value.gradient *= scales
        return value

    def log_probabilities_out_of_fold(self, weights: Tensor, fold_of: Tensor) -> Tensor:
        """Give the log-probabilities (N, C) of every sample by the problem that has not seen it."""
        scaled = weights * self.scales
        parts = []
        for rows in _blocks(len(self.features)):
            logits = logits_of(self.features[rows], scaled.to(self.features.dtype)).double()  # (P, C, n)
            parts.append(logits[fold_of[rows] + 1, :, torch.arange(logits.shape[2])])
        return torch.cat(parts).log_softmax(dim=1)


def _path_row(strength: float, log_probabilities: Tensor, targets: Tensor, weights: Tensor) -> PathRow:
    """Score held-out samples: their accuracy, each counted once; their log loss, weighted as in the fit."""
    losses = -log_probabilities[torch.arange(len(targets)), targets]
    correct = int((log_probabilities.argmax(dim=1) == targets).sum())
    log_loss = float((losses * weights).sum() / weights.sum())
    return PathRow.of(strength, correct=correct, total=len(targets), log_loss=log_loss)


def _blocks(num_samples: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, num_samples, _BLOCK)]
