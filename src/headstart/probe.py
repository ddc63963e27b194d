"""The head, fitted to its optimum: linear models of stored features, with the penalty chosen by cross-validation.

`fit_probe` is multinomial logistic regression, `fit_ridge` is ridge regression, `fit_probe_in_batches` is the first of
them for features that do not fit in memory. What they give becomes one `nn.Linear` on raw features.

All strengths of the penalty and all folds are problems of one kind: the same features with other weights of the
samples. So a problem is a row of a batch, and one matrix product serves all of them (`_minimise`).
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from headstart.errors import MisconfigurationError
from headstart.scores import Estimate, wilson_interval

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]

# Of scikit-learn's `C`: from a head that gives the shares of the classes to one that is hardly penalised.
STRENGTHS = tuple(10.0 ** (exponent * 2 / 3) for exponent in range(-6, 7))
# Of scikit-learn's `alpha`, which penalises the more the larger it is.
RIDGE_STRENGTHS = tuple(10.0**exponent for exponent in range(-4, 9))
# Fewer rows make the matrix products slow, more rows make logits that leave the processor's cache.
_BLOCK = 1024
_HISTORY = 20
# A feature whose deviation is below this share of the largest one is dead.
_DEAD = 1e-5
_MAX_ITERATIONS = 5000
# Along the path a strength is fitted until its log loss is known to some four digits; the chosen one to the end.
_PATH_TOLERANCE = 1e-5
# The path ends at a log loss so many times the best, or at the second in a row that is worse than it: weaker penalties
# only overfit more, and take the longest.
_MUCH_WORSE = 1.05
_PATIENCE = 2
# The folds of the chosen strength: their probabilities are then right to three digits or more.
_FOLD_TOLERANCE = 1e-7
# A feature whose variance falls below this share when a fold is left out is a constant there.
_CONSTANT = 1e-12
# Below any curvature or step that matters, above what float64 rounds to 0.
_SMALL = 1e-12
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


@dataclass(frozen=True, slots=True)
class PathRow:
    """What one strength of the penalty gives on samples that the fit has not seen."""

    strength: float
    accuracy: Estimate
    log_loss: float


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A fitted classifier of features.

    Attributes:
        weight: (C, D) float64, for raw features: the standardisation is folded in.
        bias: (C,) float64; its mean is 0, for only differences between classes matter.
        strength: The chosen `C`.
        path: A row per strength that was tried, ascending; empty where nothing was held out.
        accuracy: On samples held out, at the chosen strength, with its 95 % interval; None where nothing was.
        out_of_fold: Probabilities (N, C) of every sample by the fit that has not seen it; None without folds.
        num_folds: Parts of the cross-validation, 0 without.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    path: tuple[PathRow, ...] = ()
    accuracy: Estimate | None = None
    out_of_fold: Tensor | None = None
    num_folds: int = 0

    def linear(self) -> nn.Linear:
        """Give the layer (float32) whose logits on raw features are the probe's."""
        return _linear(self.weight, self.bias)

    def __str__(self) -> str:
        if not self.path:
            return f"strength {self.strength:.3g}, nothing held out"
        rows = [
            f"{_mark(row.strength, self.strength)} {row.strength:>9.3g}  {row.accuracy!s:<24}  {row.log_loss:.4f}"
            for row in self.path
        ]
        return "\n".join([f"  {'strength':>9}  {'accuracy (95 % interval)':<24}  log loss", *rows])


@dataclass(frozen=True, slots=True)
class RidgePathRow:
    """What one strength of the ridge penalty gives on samples that the fit has not seen."""

    strength: float
    mean_squared_error: float
    r2: float


@dataclass(frozen=True, slots=True, eq=False)
class RidgeProbe:
    """A fitted linear regression on features.

    Attributes:
        weight: (K, D) float64, for raw features: the standardisation is folded in.
        bias: (K,) float64.
        strength: The chosen `alpha`.
        path: A row per strength, ascending.
        out_of_fold: Predictions (N, K) of every sample by the fit that has not seen it.
        num_folds: Parts of the cross-validation.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    path: tuple[RidgePathRow, ...]
    out_of_fold: Tensor
    num_folds: int

    def linear(self) -> nn.Linear:
        """Give the layer (float32) whose outputs on raw features are the probe's."""
        return _linear(self.weight, self.bias)

    def __str__(self) -> str:
        rows = [
            f"{_mark(row.strength, self.strength)} {row.strength:>9.3g}  {row.mean_squared_error:>18.4g}  {row.r2:.4f}"
            for row in self.path
        ]
        return "\n".join([f"  {'strength':>9}  mean squared error  R2", *rows])


# ---- classification, in memory


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
        standardize: Penalise the weights of features with mean 0 and deviation 1 (constant features get weight 0).
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
    _check_features(features)
    num_classes = _check_targets(targets, len(features), num_classes)
    targets = targets.long()
    path = _check_strengths(strengths)
    sample = _check_sample_weights(sample_weights, len(features))
    counts = torch.bincount(targets[sample > 0], minlength=num_classes)
    _check_counts(counts)
    num_folds = _check_folds(num_folds, len(features))

    # Problem 0 is the fit on all samples, problem 1 + f the one without fold f. P = 1 + F.
    fold_of = _deal(targets, sample > 0, num_folds, seed=seed)  # (N,)
    is_seen = torch.arange(-1, num_folds)[:, None] != fold_of  # (P, N); fold -1 is nobody's
    seen = sample * is_seen  # (P, N)
    class_weight = _class_weights(class_weights, seen, targets, num_classes)  # (P, C)
    scaled, mean, deviation = _standardize(features.double(), sample, standardize=standardize)
    scales = _scales_of_folds(scaled, seen, standardize=standardize)  # (P, D)
    problems = _Problems(scaled, targets, seen * class_weight[:, targets], scales, num_classes)

    roughly = _Problems(scaled.float(), targets, problems.sample_weights, scales, num_classes)
    minimise = partial(_minimise, basis=_Basis.of(scaled, problems.sample_weights[0]), memory=_Memory())
    held_out = class_weight[fold_of + 1, targets] * sample  # (N,)
    weights, rows = problems.start(), list[PathRow]()
    best, best_weights = 0, weights
    for strength in path:
        everywhere = torch.full((num_folds + 1,), strength, dtype=torch.float64)
        weights = minimise(
            roughly.evaluate, weights, strengths=everywhere, tolerance=max(tolerance, _PATH_TOLERANCE)
        )
        log_probabilities = roughly.log_probabilities_out_of_fold(weights, fold_of)  # (N, C)
        rows.append(_path_row(strength, log_probabilities, targets, held_out))
        if rows[-1].log_loss < rows[best].log_loss or len(rows) == 1:
            best, best_weights = len(rows) - 1, weights
        elif len(rows) - 1 - best == _PATIENCE or rows[-1].log_loss > _MUCH_WORSE * rows[best].log_loss:
            break
    # What is kept is fitted to the end.
    everywhere = torch.full((num_folds + 1,), path[best], dtype=torch.float64)
    tolerances = torch.full_like(everywhere, max(tolerance, _FOLD_TOLERANCE))
    tolerances[0] = tolerance
    weights = minimise(problems.evaluate, best_weights, strengths=everywhere, tolerance=tolerances)
    log_probabilities = problems.log_probabilities_out_of_fold(weights, fold_of)
    rows[best] = _path_row(path[best], log_probabilities, targets, held_out)
    weight, bias = _fold_back(weights[0], mean, deviation)
    return Probe(
        weight=weight,
        bias=bias,
        strength=path[best],
        path=tuple(rows),
        accuracy=rows[best].accuracy,
        out_of_fold=log_probabilities.exp(),
        num_folds=num_folds,
    )


def _deal(targets: Tensor, counts_in: Tensor, num_folds: int, *, seed: int) -> Tensor:
    """Give every sample its fold (N,): each class dealt out in random order, those that weigh something first."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(targets), generator=generator)
    order = order[torch.argsort((~counts_in[order]).int(), stable=True)]
    order = order[torch.argsort(targets[order], stable=True)]
    folds = torch.empty(len(targets), dtype=torch.int64)
    folds[order] = torch.arange(len(targets)) % num_folds
    return folds


def _class_weights(
    chosen: Tensor | Literal["balanced"] | None, seen: Tensor, targets: Tensor, num_classes: int
) -> Tensor:
    """The weight of each class in each problem (P, C); balance is that of the problem's own samples."""
    if chosen is None:
        return torch.ones(len(seen), num_classes, dtype=torch.float64)
    if isinstance(chosen, Tensor):
        if chosen.shape != (num_classes,) or not bool((chosen.isfinite() & (chosen > 0)).all()):
            raise MisconfigurationError(
                f"class_weights: received {_shape(chosen)} with values {chosen.tolist()}; expected {num_classes} finite "
                "values above 0, one per class. To leave a class out, leave its samples out."
            )
        return chosen.double().expand(len(seen), num_classes)
    if chosen != "balanced":
        raise MisconfigurationError(
            f"class_weights: received {chosen!r}; expected 'balanced', a tensor of one weight per class, or None."
        )
    totals = torch.zeros(len(seen), num_classes, dtype=torch.float64).index_add_(1, targets, seen)
    return seen.sum(dim=1, keepdim=True) / (num_classes * totals)


def _scales_of_folds(scaled: Tensor, seen: Tensor, *, standardize: bool) -> Tensor:
    """What turns a problem's own weights into those for features standardised by all samples (P, D).

    Another deviation is another factor of the weight; another mean is another intercept, which is free anyway.
    """
    if not standardize:
        return torch.ones(len(seen), scaled.shape[1], dtype=torch.float64)
    shares = seen / seen.sum(dim=1, keepdim=True)
    variance = shares @ scaled.square() - (shares @ scaled).square()
    return torch.where(variance > _CONSTANT, variance.clamp(min=_CONSTANT).rsqrt(), 0.0)


class _Problems:
    """Logistic regressions on the same features (N, D), each with weights of the samples of its own (P, N)."""

    def __init__(
        self, features: Tensor, targets: Tensor, sample_weights: Tensor, scales: Tensor, num_classes: int
    ) -> None:
        self.features = _with_ones(features)
        self.targets = targets
        self.sample_weights = sample_weights
        self.scales = _with_ones(scales)[:, None]  # (P, 1, D + 1)
        self.num_classes = num_classes

    def start(self) -> Tensor:
        """Weights of 0 and the intercepts that give the shares of the classes."""
        num_problems = len(self.sample_weights)
        totals = torch.zeros(num_problems, self.num_classes, dtype=torch.float64)
        totals.index_add_(1, self.targets, self.sample_weights)
        return _start(totals, self.features.shape[1])

    def evaluate(self, problems: Tensor, weights: Tensor) -> _Value:
        """Give loss, gradient and curvature of some of the problems."""
        scales, sample_weights = self.scales[problems], self.sample_weights[problems]
        scaled = weights * scales
        value = _Value.zero(weights)
        for rows in _blocks(len(self.features)):
            value.add(self.features[rows], self.targets[rows], sample_weights[:, rows], scaled)
        value.gradient *= scales
        return value

    def log_probabilities_out_of_fold(self, weights: Tensor, fold_of: Tensor) -> Tensor:
        """Give the log-probabilities (N, C) of every sample by the problem that has not seen it."""
        scaled = weights * self.scales
        parts = []
        for rows in _blocks(len(self.features)):
            logits = _logits(self.features[rows], scaled.to(self.features.dtype)).double()  # (P, C, n)
            parts.append(logits[fold_of[rows] + 1, :, torch.arange(logits.shape[2])])
        return torch.cat(parts).log_softmax(dim=1)


def _path_row(strength: float, log_probabilities: Tensor, targets: Tensor, weights: Tensor) -> PathRow:
    """Score held-out samples: their accuracy, each counted once; their log loss, weighted as in the fit."""
    losses = -log_probabilities[torch.arange(len(targets)), targets]
    correct = int((log_probabilities.argmax(dim=1) == targets).sum())
    return PathRow(
        strength, _accuracy(correct, len(targets)), float((losses * weights).sum() / weights.sum())
    )


# ---- classification, in batches


@torch.no_grad()
def fit_probe_in_batches(
    batches: Batches,
    *,
    num_features: int,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    validation: Batches | None = None,
    standardize: bool = True,
    tolerance: float = 1e-10,
) -> Probe:
    """Fit what `fit_probe` fits to features of which only a batch is in memory at a time.

    All strengths are fitted in the same passes over the batches: one pass for mean and deviation, one for their
    covariance (D, D), then one or more per step of L-BFGS: some tens where the penalty is strong, and up to thousands
    at the largest strengths, which are best left out. Beside a batch, memory holds the
    covariance and about 50 times the weights of all strengths.

    Args:
        batches: Gives the batches anew whenever it is called, always the same samples: features (B, D), targets (B,).
        num_features: D.
        num_classes: C; each needs a sample.
        strengths: Values of `C` as in `fit_probe`.
        validation: Batches of other samples, by whose log loss the strength is chosen. None needs a single strength.
        standardize: As in `fit_probe`.
        tolerance: As in `fit_probe`.

    Returns:
        The fit at the chosen strength; `accuracy` and `path` are those of the validation samples.

    Raises:
        MisconfigurationError: If batches and settings do not fit each other, or the batches change between passes.

    Example:
        >>> batch = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1])
        >>> probe = fit_probe_in_batches(lambda: [batch], num_features=1, num_classes=2, strengths=[1.0])
        >>> probe.linear()(batch[0]).argmax(dim=1).tolist()
        [0, 0, 1, 1]
    """
    path = _check_strengths(strengths)
    if validation is None and len(path) > 1:
        raise MisconfigurationError(
            f"Received {len(path)} strengths and no validation batches; expected validation batches to choose by, or a "
            "single strength. Pass validation=, or strengths=[1.0]."
        )
    stream = _Stream(batches, num_features=num_features, num_classes=num_classes)
    stream.measure(standardize=standardize)
    weights = _minimise(
        stream.evaluate,
        _start(stream.totals.expand(len(path), num_classes), num_features + 1),
        strengths=torch.tensor(path, dtype=torch.float64),
        basis=stream.basis(),
        tolerance=tolerance,
        memory=_Memory(),
    )
    fits = [_fold_back(each, stream.mean, stream.deviation) for each in weights]
    if validation is None:
        return Probe(*fits[0], strength=path[0])
    rows = _score_in_batches(
        _Stream(validation, num_features=num_features, num_classes=num_classes), fits, path
    )
    best = min(range(len(path)), key=lambda index: rows[index].log_loss)
    return Probe(*fits[best], strength=path[best], path=tuple(rows), accuracy=rows[best].accuracy)


class _Stream:
    """Passes over batches, each checked; and what the first passes say of the features."""

    def __init__(self, batches: Batches, *, num_features: int, num_classes: int) -> None:
        if num_features < 1 or num_classes < 2:
            raise MisconfigurationError(
                f"Received num_features={num_features} and num_classes={num_classes}; expected 1 or more features and "
                "2 or more classes."
            )
        self.batches = batches
        self.num_classes = num_classes
        self.totals = torch.zeros(num_classes, dtype=torch.float64)
        self.mean = torch.zeros(num_features, dtype=torch.float64)
        self.deviation = torch.ones(num_features, dtype=torch.float64)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for features, targets in self.batches():
            _check_features(features)
            if features.shape[1] != len(self.mean):
                raise MisconfigurationError(
                    f"A batch has {features.shape[1]} features; expected num_features={len(self.mean)}."
                )
            _check_targets(targets, len(features), self.num_classes)
            yield features.double(), targets.long()

    def measure(self, *, standardize: bool) -> None:
        """Count the classes, and take mean and deviation: merged batch by batch, exact for a mean far from 0."""
        squares, num_seen = torch.zeros_like(self.mean), 0
        for features, targets in self:
            self.totals += torch.bincount(targets, minlength=self.num_classes)
            count = len(features)
            mean = features.mean(dim=0)
            shift = mean - self.mean
            num_seen += count
            squares += (features - mean).square().sum(dim=0) + shift.square() * (
                count * (num_seen - count) / num_seen
            )
            self.mean += shift * (count / num_seen)
        if num_seen == 0:
            raise MisconfigurationError(
                "The batches hold no sample. Pass a function that gives all batches anew at every call, not one that "
                "gives an iterator already used up."
            )
        _check_counts(self.totals.long(), at_least=1)
        if standardize:
            self.deviation = _deviation(squares / num_seen, self.mean)

    def basis(self) -> _Basis:
        """Give the basis of the standardised features, from their covariance."""
        covariance = torch.zeros(len(self.mean), len(self.mean), dtype=torch.float64)
        for features, _ in self:
            scaled = (features - self.mean) / self.deviation
            covariance.addmm_(scaled.T, scaled)
        return _Basis.of_covariance(covariance / self.totals.sum())

    def evaluate(self, _: Tensor, weights: Tensor) -> _Value:
        """Give loss, gradient and curvature of some of the strengths, in one pass."""
        value, num_seen = _Value.zero(weights), 0
        for features, targets in self:
            scaled = _with_ones((features - self.mean) / self.deviation)
            ones = torch.ones(len(weights), len(targets), dtype=torch.float64)
            value.add(scaled, targets, ones, weights)
            num_seen += len(targets)
        if num_seen != int(self.totals.sum()):
            raise MisconfigurationError(
                f"A pass over the batches gave {num_seen} samples, the first one {int(self.totals.sum())}. Pass a "
                "function that gives the same samples at every call (a loader with drop_last=False)."
            )
        return value


def _score_in_batches(
    stream: _Stream, fits: Sequence[tuple[Tensor, Tensor]], path: Sequence[float]
) -> list[PathRow]:
    """Score every fit on all batches, in one pass."""
    weight, bias = torch.stack([each for each, _ in fits]), torch.stack([each for _, each in fits])
    losses, correct = torch.zeros(len(path), dtype=torch.float64), torch.zeros(len(path), dtype=torch.int64)
    num_seen = 0
    for features, targets in stream:
        log_probabilities = (features @ weight.mT + bias[:, None]).log_softmax(dim=2)  # (P, B, C)
        losses -= log_probabilities[:, torch.arange(len(targets)), targets].sum(dim=1)
        correct += (log_probabilities.argmax(dim=2) == targets).sum(dim=1)
        num_seen += len(targets)
    if num_seen == 0:
        raise MisconfigurationError("The validation batches hold no sample: there is nothing to choose by.")
    return [
        PathRow(strength, _accuracy(int(hits), num_seen), float(loss) / num_seen)
        for strength, hits, loss in zip(path, correct, losses, strict=True)
    ]


# ---- the solver


@dataclass(slots=True)
class _Value:
    """The unpenalised objective of P problems at some weights (P, K, D + 1); K is 1 for two classes, else C.

    `curvature` (P, K) is the weighted sum of p (1 - p): what the second derivative is about, along a class.
    """

    loss: Tensor
    gradient: Tensor
    curvature: Tensor

    @classmethod
    def zero(cls, weights: Tensor) -> _Value:
        """Give the value of no samples."""
        return cls(
            weights.new_zeros(len(weights)), torch.zeros_like(weights), weights.new_zeros(weights.shape[:2])
        )

    def add(self, features: Tensor, targets: Tensor, sample_weights: Tensor, weights: Tensor) -> None:
        """Add samples: features (n, D + 1) with ones, weights of the samples (P, n)."""
        sample_weights = sample_weights.to(features.dtype)
        log_probabilities = _logits(features, weights.to(features.dtype)).log_softmax(dim=1)  # (P, C, n)
        index = targets.expand(len(weights), 1, -1)
        self.loss -= (log_probabilities.gather(1, index)[:, 0] * sample_weights).sum(dim=1)
        residuals = log_probabilities.exp_()
        kept = residuals[:, -weights.shape[1] :]
        # Before the target is taken off: p (1 - p) = p - p^2.
        self.curvature += torch.einsum("pkn,pn->pk", kept - kept.square(), sample_weights)
        residuals.scatter_add_(1, index, torch.full_like(index, -1, dtype=features.dtype))
        self.gradient += ((kept * sample_weights[:, None]).flatten(0, 1) @ features).view_as(weights)

    def put(self, problems: Tensor, other: _Value, rows: Tensor) -> None:
        """Take over some of the problems from the rows of another value."""
        self.loss[problems] = other.loss[rows]
        self.gradient[problems] = other.gradient[rows]
        self.curvature[problems] = other.curvature[rows]


def _logits(features: Tensor, weights: Tensor) -> Tensor:
    """Logits (P, C, n) of features (n, D + 1); of two classes the first has 0."""
    logits = (weights.flatten(0, 1) @ features.T).view(*weights.shape[:2], len(features))
    return nn.functional.pad(logits, (0, 0, 1, 0)) if weights.shape[1] == 1 else logits


@dataclass(frozen=True, slots=True)
class _Basis:
    """The principal axes of the features: along them the penalised curvature is nearly diagonal.

    Attributes:
        axes: (D, r), orthonormal; r is D, or N where that is smaller.
        variances: (r,) of the features along the axes.
    """

    axes: Tensor
    variances: Tensor

    @classmethod
    def of(cls, features: Tensor, sample_weights: Tensor) -> _Basis:
        """Take the axes of features (N, D) that are in memory."""
        rooted = features * (sample_weights / sample_weights.sum()).sqrt()[:, None]
        if len(features) >= features.shape[1]:
            return cls.of_covariance(rooted.T @ rooted)
        variances, left = torch.linalg.eigh(rooted @ rooted.T)
        variances, left = _positive(variances, left)
        return cls(rooted.T @ (left / variances.sqrt()), variances)

    @classmethod
    def of_covariance(cls, covariance: Tensor) -> _Basis:
        """Take the axes of a covariance (D, D)."""
        variances, axes = torch.linalg.eigh(covariance)
        variances, axes = _positive(variances, axes)
        return cls(axes, variances)

    def solve(self, gradient: Tensor, curvature: Tensor, strengths: Tensor) -> Tensor:
        """Divide a gradient (P, K, D + 1) by the second derivative, as far as the axes and the curvature say."""
        free = strengths[:, None, None]
        coefficients = gradient[..., :-1] @ self.axes  # (P, K, r)
        divided = coefficients / (curvature[..., None] * self.variances + 1 / free)
        weights = gradient[..., :-1] * free + (divided - coefficients * free) @ self.axes.T
        return torch.cat([weights, gradient[..., -1:] / curvature[..., None]], dim=2)


def _positive(variances: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out axes along which nothing varies, as far as float64 can tell."""
    is_kept = variances > variances.max() * 1e-13
    return variances[is_kept], axes[:, is_kept]


class _Memory:
    """The last steps of L-BFGS (P, n) and how the gradient changed over each, kept from one strength to the next."""

    def __init__(self) -> None:
        self.pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_HISTORY)
        self.strengths: Tensor | None = None

    def add(self, step: Tensor, change: Tensor) -> None:
        """Remember a step (P, K, D + 1); a problem that stood still has zeros, which do nothing."""
        inner = _dot(step, change)
        self.pairs.append((step, change, torch.where(inner > 0, 1 / inner, 0.0)[:, None, None]))

    def move_to(self, strengths: Tensor) -> None:
        """Change the penalty. It is quadratic, so the changes of the gradient follow exactly."""
        if self.strengths is not None and self.pairs:
            pairs = list(self.pairs)
            self.pairs.clear()
            for step, change, _ in pairs:
                self.add(step, change + _pull(step, strengths) - _pull(step, self.strengths))
        self.strengths = strengths

    def solve(self, gradient: Tensor, divide: Callable[[Tensor], Tensor]) -> Tensor:
        """Divide a gradient by the second derivative: `divide` does so roughly, the pairs correct it."""
        shares = []
        for step, change, inverse in reversed(self.pairs):
            shares.append(_dot(step, gradient)[:, None, None] * inverse)
            gradient = gradient - shares[-1] * change
        result = divide(gradient)
        for (step, change, inverse), share in zip(self.pairs, reversed(shares), strict=True):
            result = result + (share - _dot(change, result)[:, None, None] * inverse) * step
        return result


def _minimise(
    evaluate: Callable[[Tensor, Tensor], _Value],
    weights: Tensor,
    *,
    strengths: Tensor,
    basis: _Basis,
    tolerance: float | Tensor,
    memory: _Memory,
) -> Tensor:
    """Minimise P penalised objectives side by side with L-BFGS; those at their minimum are not evaluated again.

    With gradient g and the estimate H of the second derivative, the objective is about g H^-1 g / 2 above its minimum: that
    is what is held against the tolerance.
    """

    def penalised(problems: Tensor, at: Tensor) -> _Value:
        value, pull = evaluate(problems, at), _pull(at, strengths[problems])
        return _Value(value.loss + _dot(at, pull) / 2, value.gradient + pull, value.curvature)

    memory.move_to(strengths)
    now = penalised(torch.arange(len(weights)), weights)
    is_stuck = torch.zeros(len(weights), dtype=torch.bool)
    for _ in range(_MAX_ITERATIONS):
        divide = partial(basis.solve, curvature=now.curvature.clamp(min=_SMALL), strengths=strengths)
        direction = -memory.solve(now.gradient, divide)
        slope = _dot(now.gradient, direction)  # (P,), negative
        pending = ((-slope / 2 > tolerance * now.loss) & ~is_stuck).nonzero()[:, 0]
        if len(pending) == 0:
            return weights
        before, old_gradient, old_loss = weights, now.gradient.clone(), now.loss.clone()
        weights, lengths = weights.clone(), torch.ones_like(slope)
        while len(pending):
            tried = before[pending] + lengths[pending, None, None] * direction[pending]
            value = penalised(pending, tried)
            above = value.loss - old_loss[pending] - lengths[pending] * slope[pending]
            is_low = above <= (1e-4 - 1) * lengths[pending] * slope[pending]
            taken = pending[is_low]
            weights[taken] = tried[is_low]
            now.put(taken, value, is_low)
            pending, above = pending[~is_low], above[~is_low]
            # The minimum of the parabola through the slope and both values.
            best = -slope[pending] * lengths[pending].square() / (2 * above)
            lengths[pending] = best.clamp(0.1 * lengths[pending], 0.5 * lengths[pending])
            is_stuck[pending] |= lengths[pending] < _SMALL  # at the limit of float64
            pending = pending[~is_stuck[pending]]
        memory.add(weights - before, now.gradient - old_gradient)
    warnings.warn(
        f"The fit was stopped after {_MAX_ITERATIONS} steps, above its tolerance. Raise tolerance=, or "
        "leave out the largest strengths.",
        stacklevel=3,
    )
    return weights


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Inner product of each problem (P,)."""
    return (first * second).flatten(1).sum(dim=1)


def _pull(weights: Tensor, strengths: Tensor) -> Tensor:
    """The gradient of the penalty (P, K, D + 1): W / C, and nothing for the intercept."""
    return nn.functional.pad(weights[..., :-1] / strengths[:, None, None], (0, 1))


def _start(totals: Tensor, width: int) -> Tensor:
    """Weights of 0 and the intercepts that give the classes their shares: (P, K, D + 1) from weights (P, C)."""
    logits = totals.log()
    intercepts = (
        logits[:, 1:] - logits[:, :1] if totals.shape[1] == 2 else logits - logits.mean(dim=1, keepdim=True)
    )
    return nn.functional.pad(intercepts[..., None], (width - 1, 0))


def _fold_back(weights: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """From (K, D + 1) for standardised features to weight (C, D) and bias (C,) for raw ones."""
    if len(weights) == 1:
        weights = torch.cat([-weights / 2, weights / 2])
    weight = weights[:, :-1] / deviation
    bias = weights[:, -1] - weight @ mean
    return weight, bias - bias.mean()


# ---- regression


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
        standardize: Penalise the weights of features with mean 0 and deviation 1 (constant features get weight 0).
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
    _check_features(features)
    _check_regression_targets(targets, len(features))
    path = _check_strengths(strengths)
    sample = _check_sample_weights(sample_weights, len(features))
    if int((sample > 0).sum()) < 2:
        raise MisconfigurationError(
            f"Received {int((sample > 0).sum())} sample of weight above 0; expected 2 or more to cross-validate with."
        )
    num_folds = _check_folds(num_folds, len(features))
    inputs, outputs = features.double(), targets.double().reshape(len(targets), -1)
    fold_of = _deal(torch.zeros(len(inputs), dtype=torch.int64), sample > 0, num_folds, seed=seed)

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
    scaled, mean, deviation = _standardize(features, sample_weights, standardize=standardize)
    target_mean = (sample_weights @ targets) / sample_weights.sum()
    roots = sample_weights.sqrt()[:, None]
    left, values, right = torch.linalg.svd(roots * scaled, full_matrices=False)
    projected = left.T @ (roots * (targets - target_mean))  # (r, K)
    alphas = torch.tensor(path, dtype=torch.float64)[:, None]
    shrunk = (values / (values.square() + alphas))[..., None] * projected  # (S, r, K)
    weight = (right.T @ shrunk).mT / deviation
    return weight, target_mean - weight @ mean


# ---- what is shared


def _standardize(
    features: Tensor, sample_weights: Tensor, *, standardize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Give features with mean 0 and deviation 1, the mean (D,) and the deviation (D,), of which none is 0.

    Without standardisation the mean is taken off all the same: the intercept is free, so only numerics improve.
    """
    mean = (sample_weights @ features) / sample_weights.sum()
    centred = features - mean
    if not standardize:
        return centred, mean, torch.ones_like(mean)
    variance = (sample_weights @ centred.square()) / sample_weights.sum()
    deviation = _deviation(variance, mean)
    return centred / deviation, mean, deviation


def _deviation(variance: Tensor, mean: Tensor) -> Tensor:
    """The standard deviation; infinite for a constant, which is so taken out: its weight is 0.

    Constant is also what hardly moves beside the others, such as a dead unit of a network that gives 1e-33 here and there: its
    weight on raw features would be huge, and the least change of the network would decide everything.
    """
    deviation = variance.sqrt()
    moves = (deviation > 1e-13 * mean.abs()) & (deviation > _DEAD * deviation.max())
    return torch.where(moves, deviation, math.inf)


def _with_ones(features: Tensor) -> Tensor:
    """Put a column of ones after the features, for the intercept."""
    return nn.functional.pad(features, (0, 1), value=1.0)


def _blocks(num_samples: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, num_samples, _BLOCK)]


def _accuracy(correct: int, total: int) -> Estimate:
    return Estimate(correct / total, *wilson_interval(correct, total))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # draws no random numbers
    layer.weight, layer.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
    return layer


def _mark(strength: float, chosen: float) -> str:
    return "*" if strength == chosen else " "


# ---- what is refused


def _shape(tensor: Tensor) -> str:
    return f"a {str(tensor.dtype).removeprefix('torch.')} tensor {tuple(tensor.shape)}"


def _check_features(features: Tensor) -> None:
    if features.ndim != 2 or not features.is_floating_point() or 0 in features.shape:
        raise MisconfigurationError(
            f"features: received {_shape(features)}; expected floating-point values (N, D), a row per sample. Flatten "
            "what a sample has: features.flatten(1)."
        )
    _refuse_non_finite("features", features)


def _refuse_non_finite(name: str, values: Tensor) -> None:
    if bool(values.isfinite().all()):
        return
    rows = (~values.isfinite()).reshape(len(values), -1).any(dim=1).nonzero()[:, 0]
    raise MisconfigurationError(
        f"{name}: {len(rows)} of {len(values)} rows hold NaN or infinity, the first is row {int(rows[0])}; expected "
        "finite values. Leave these samples out, or compute them anew in float32."
    )


def _check_targets(targets: Tensor, num_samples: int, num_classes: int | None) -> int:
    """Give the number of classes."""
    if targets.shape != (num_samples,) or targets.dtype not in _INTEGERS:
        raise MisconfigurationError(
            f"targets: received {_shape(targets)}; expected integers ({num_samples},), a class index for each row of "
            "the features."
        )
    lowest, highest = int(targets.min()), int(targets.max())
    expected = highest + 1 if num_classes is None else num_classes
    if lowest < 0 or highest >= expected:
        raise MisconfigurationError(
            f"targets: received class indices from {lowest} to {highest}; expected 0 to {expected - 1}. Number the "
            "classes from 0, or pass the right num_classes."
        )
    if expected < 2:
        raise MisconfigurationError(
            "Received one class only; expected samples of 2 or more: there is nothing to tell apart."
        )
    return expected


def _check_counts(counts: Tensor, *, at_least: int = 2) -> None:
    """Refuse a class that a fit would not see: its intercept has no optimum."""
    rare = (counts < at_least).nonzero()[:, 0].tolist()
    if rare:
        received = ", ".join(f"{int(counts[each])} of class {each}" for each in rare)
        raise MisconfigurationError(
            f"Received too few samples of weight above 0: {received}; expected {at_least} or more of every class"
            f"{', one to fit and one to hold out' if at_least > 1 else ''}. Add samples, or leave the class out."
        )


def _check_strengths(strengths: Sequence[float]) -> list[float]:
    """Give them ascending, each once."""
    path = sorted({float(each) for each in strengths})
    if not path or not all(0 < each < math.inf for each in path):
        raise MisconfigurationError(
            f"strengths: received {list(strengths)}; expected one or more finite values above 0, such as [0.01, 1.0, 100.0]."
        )
    return path


def _check_sample_weights(weights: Tensor | None, num_samples: int) -> Tensor:
    if weights is None:
        return torch.ones(num_samples, dtype=torch.float64)
    if weights.shape != (num_samples,):
        raise MisconfigurationError(
            f"sample_weights: received {_shape(weights)}; expected ({num_samples},), one for each row of the features."
        )
    _refuse_non_finite("sample_weights", weights)
    if bool((weights < 0).any()):
        raise MisconfigurationError(
            f"sample_weights: received values down to {float(weights.min())}; expected 0 or more. A sample of weight 0 is "
            "left out of the fit."
        )
    return weights.double()


def _check_folds(num_folds: int, num_samples: int) -> int:
    if num_folds < 2:
        raise MisconfigurationError(f"num_folds: received {num_folds}; expected 2 or more, such as 5.")
    return min(num_folds, num_samples)


def _check_regression_targets(targets: Tensor, num_samples: int) -> None:
    if targets.ndim not in {1, 2} or len(targets) != num_samples or not targets.is_floating_point():
        raise MisconfigurationError(
            f"targets: received {_shape(targets)}; expected floating-point values ({num_samples},) or ({num_samples}, K), "
            "a row for each row of the features. For classes use fit_probe; else targets.float()."
        )
    _refuse_non_finite("targets", targets)
