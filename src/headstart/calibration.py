"""Temperature scaling: probabilities that mean what they say, and how far they are from it.

One number, the temperature, divides all logits. It changes how sure a classifier is and never what it predicts.
Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch

from headstart.errors import MisconfigurationError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Values = torch.Tensor | npt.ArrayLike

# Logits as small as cosines need a temperature near 0.02; nothing sensible lies outside.
_LOWEST, _HIGHEST = 0.01, 100.0
_NUM_BISECTIONS = 40  # log T to 1e-11


@dataclass(frozen=True, slots=True)
class Calibration:
    """What temperature scaling does to a classifier.

    `temperature` is fitted on all samples. `ece_after` and `nll_after` are those of samples that took no part in the
    fit: each fold is judged with the temperature of the others. Where these are no likelier than before, the temperature
    is 1 and everything stays as it was.
    """

    temperature: float
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float
    num_samples: int

    def to_dict(self) -> dict[str, float]:
        """Give plain values for JSON."""
        return asdict(self)


def calibrate(logits: Values, targets: Values, *, num_folds: int = 5, num_bins: int = 15) -> Calibration:
    """Fit the temperature, and say honestly what it does; where it does no good, it is 1.

    Few samples say little of the temperature. So each counts as its next likely class to a share of 1 / (N + 2) (see
    `fit_temperature`), and the temperature is taken only if it makes the samples likelier that took no part in its fit. In
    a simulation with 12 samples of logits that were right as they were, this adds 0.01 to the negative log likelihood of
    other samples on average and 0.3 at worst; without the two, 0.07 and 2.6.

    Args:
        logits: Of held-out samples (N, C); log-probabilities will do. One alone says nothing of the temperature.
        targets: Class indices (N,).
        num_folds: 2 to 5; the folds are stratified and always the same.
        num_bins: Of the calibration error.

    Returns:
        The temperature, and calibration error and negative log likelihood before and after.

    Raises:
        MisconfigurationError: If shapes or values do not fit.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> logits = torch.randn(500, 3, generator=generator)
        >>> targets = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
        >>> report = calibrate(4 * logits, targets)  # four times too sure
        >>> 3.5 < report.temperature < 4.5, report.ece_after < report.ece_before / 2
        (True, True)
    """
    if not 2 <= num_folds <= 5:
        raise MisconfigurationError(f"num_folds is {num_folds}; expected 2 to 5.")
    scores, true = check_predictions(logits, targets)
    fold = np.empty(len(true), dtype=np.int64)
    # Every class spread over all folds.
    fold[np.argsort(true, kind="stable")] = np.arange(len(true)) % num_folds
    scaled = scores.copy()
    for index in np.unique(fold) if len(true) > 1 else []:
        inside = fold == index
        scaled[inside] /= _doubtful_temperature(scores[~inside], true[~inside])
    temperature = _doubtful_temperature(scores, true)
    nll_before, nll_after = _nll(scores, true), _nll(scaled, true)
    if nll_after >= nll_before:
        temperature, scaled, nll_after = 1.0, scores, nll_before
    return Calibration(
        temperature=temperature,
        ece_before=expected_calibration_error(np.exp(log_softmax(scores)), true, num_bins=num_bins),
        ece_after=expected_calibration_error(np.exp(log_softmax(scaled)), true, num_bins=num_bins),
        nll_before=nll_before,
        nll_after=nll_after,
        num_samples=len(true),
    )


def _doubtful_temperature(scores: Floats, true: Integers) -> float:
    return fit_temperature(scores, true, doubt=1 / (len(true) + 2))


def fit_temperature(logits: Values, targets: Values, *, doubt: float = 0.0) -> float:
    r"""Give the temperature :math:`T` that minimises the negative log likelihood of :math:`softmax(logits / T)`.

    The likelihood is convex in :math:`1/T`, so the sign of its slope tells on which side the optimum lies: a bisection
    of :math:`\log T` between 0.01 and 100 finds it. Where every sample is predicted right, sharper would always be
    likelier, whatever the data: then the samples say nothing about `T`, and without `doubt` it is 1.

    Args:
        logits: Of held-out samples (N, C); log-probabilities will do.
        targets: Class indices (N,).
        doubt: The share of every sample that counts as its next likely class. With 1 / (N + 2) there is an optimum even
            where every sample is predicted right, and it follows the scale of the logits.

    Returns:
        The temperature; above 1 where the classifier was too sure. Never one that is less likely than 1.

    Raises:
        MisconfigurationError: If shapes or values do not fit, or `doubt` is outside its range.

    Source: Guo et al. 2017, section 4.2, https://arxiv.org/abs/1706.04599; the doubt is that of Platt 1999,
    "Probabilistic outputs for support vector machines", section 2.2.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 4)  # 3 of 4 are right: 2 / T = log 3
        1.8205
    """
    if not 0 <= doubt < 0.5:
        raise MisconfigurationError(
            f"doubt is {doubt}; expected 0 or more and less than 0.5, such as 1 / (N + 2)."
        )
    scores, true = check_predictions(logits, targets)
    scores = scores - scores.max(axis=1, keepdims=True)  # (N, C)
    own = scores[np.arange(len(true)), true]  # (N,)
    # Right by itself alone: a tie with another class leaves a finite optimum or none that matters.
    is_right = (own == 0) & ((scores == 0).sum(axis=1) == 1)
    if scores.shape[1] == 1 or (doubt == 0 and bool(is_right.all())):
        return 1.0
    counted = np.eye(scores.shape[1])[true]  # (N, C): as what a sample counts
    if doubt > 0:
        next_likely = np.where(counted == 1, -np.inf, scores).argmax(axis=1)
        counted = (1 - doubt) * counted + doubt * np.eye(scores.shape[1])[next_likely]
    expected = (counted * scores).sum(axis=1)  # (N,)

    def loss(temperature: float) -> float:
        return float(-(counted * log_softmax(scores / temperature)).sum(axis=1).mean())

    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        probabilities = np.exp(log_softmax(scores / math.exp(middle)))
        # Slope in 1/T. Positive: the classifier is too sure at this temperature.
        slope = float(np.mean((probabilities * scores).sum(axis=1) - expected))
        low, high = (middle, high) if slope > 0 else (low, middle)
    temperature = math.exp((low + high) / 2)
    return temperature if loss(temperature) < loss(1.0) else 1.0


def expected_calibration_error(probabilities: Values, targets: Values, *, num_bins: int = 15) -> float:
    r"""Give the mean distance between how sure a classifier is and how often it is right.

    :math:`\sum_b \frac{n_b}{N} |accuracy_b - confidence_b|` over bins of the highest probability. The bins hold
    equally many samples: a trained classifier is almost always sure, so that of bins of equal width nearly all stay
    empty and the last one averages the error away. Equally sure samples share their mean, so that the order of
    the samples does not matter. Few samples in a bin make the error look larger than it is.

    Args:
        probabilities: Of each class (N, C).
        targets: Class indices (N,).
        num_bins: 1 or more.

    Returns:
        The error, in [0, 1].

    Raises:
        MisconfigurationError: If shapes or values do not fit.

    Source: Guo et al. 2017, section 2, https://arxiv.org/abs/1706.04599; bins of equal mass: Nixon et al. 2019,
    section 4.2, https://arxiv.org/abs/1904.01685

    Example:
        >>> round(expected_calibration_error([[0.9, 0.1], [0.9, 0.1]], [0, 1]), 3)  # sure to 0.9, right in 0.5
        0.4
    """
    if num_bins < 1:
        raise MisconfigurationError(f"num_bins is {num_bins}; expected 1 or more.")
    shares, true = check_predictions(probabilities, targets)
    # Half precision sums to 1 +- 1e-3.
    if shares.min() < 0 or not np.allclose(shares.sum(axis=1), 1, atol=1e-3):
        raise MisconfigurationError(
            "The probabilities of a sample are to be 0 or more and to sum to 1, and some do not. "
            "Received logits? Pass torch.softmax(logits, dim=1)."
        )
    confidence, group = np.unique(shares.max(axis=1), return_inverse=True)  # (G,) rising; (N,)
    counts = np.bincount(group)
    hit_rate = np.bincount(group, weights=shares.argmax(axis=1) == true) / counts
    gaps = np.repeat(hit_rate - confidence, counts)  # (N,) in order of confidence
    return float(sum(abs(each.sum()) for each in np.array_split(gaps, num_bins)) / len(true))


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities (N, C) of logits, in double precision.

    Example:
        >>> log_softmax(np.array([[0.0, 0.0]])).round(4).tolist()
        [[-0.6931, -0.6931]]
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)


def check_predictions(predictions: Values, targets: Values) -> tuple[Floats, Integers]:
    """Give predictions (N, C) and class indices (N,) as arrays, on the CPU and in double precision.

    Raises:
        MisconfigurationError: If shapes or values do not fit.

    Example:
        >>> check_predictions(torch.zeros(1, 2), [3])
        Traceback (most recent call last):
        ...
        headstart.errors.MisconfigurationError: The targets are 3 to 3; expected class indices 0 to 1, \
as the predictions have 2 classes.
    """
    scores, true = _as_array(predictions), _as_array(targets)
    if scores.ndim != 2 or true.ndim != 1 or len(scores) != len(true) or scores.size == 0:
        raise MisconfigurationError(
            f"Received predictions of shape {scores.shape} and targets of shape {true.shape}; "
            "expected (N, C) and (N,), with N of 1 or more. Pass a score for each class and class indices."
        )
    if not np.isfinite(scores).all():
        raise MisconfigurationError(
            "Some predictions are not finite numbers. Where log-probabilities are meant, use "
            "torch.log_softmax(logits, dim=1): the logarithm of a softmax can be minus infinity."
        )
    if not (true == np.floor(true)).all() or true.min() < 0 or true.max() >= scores.shape[1]:
        raise MisconfigurationError(
            f"The targets are {true.min():g} to {true.max():g}; expected class indices 0 to {scores.shape[1] - 1}, "
            f"as the predictions have {scores.shape[1]} classes."
        )
    return scores, true.astype(np.int64)


def _as_array(values: Values) -> Floats:
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    return np.asarray(values, dtype=np.float64)


def _nll(logits: Floats, targets: Integers) -> float:
    return float(-log_softmax(logits)[np.arange(len(targets)), targets].mean())
