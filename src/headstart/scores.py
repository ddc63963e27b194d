"""Test scores with their uncertainty: accuracy and macro-F1 with intervals, and the scores of each class.

All of them come from the confusion matrix: `matrix[t, p]` counts the samples of class `t` that were predicted as `p`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score and the interval that holds the true one with the stated confidence.

    Example:
        >>> print(Estimate(0.9, low=0.85, high=0.93))
        0.900 (0.850 to 0.930)
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def to_dict(self) -> dict[str, float]:
        """Give plain values for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class ClassScore:
    """How well one class is told from the others; a score is 0 where nothing was predicted or nothing was there."""

    precision: float
    recall: float
    f1: float
    num_samples: int


@dataclass(frozen=True, slots=True)
class Scores:
    """What a test says: the scores of the whole and of each class, in the order of the matrix."""

    accuracy: Estimate
    macro_f1: Estimate
    classes: list[ClassScore]
    matrix: list[list[int]]
    confidence: float

    @property
    def num_samples(self) -> int:
        """The number of samples that were tested."""
        return sum(each.num_samples for each in self.classes)

    def summary(self) -> dict[str, Any]:
        """Give accuracy and macro-F1 with their intervals, as plain values for JSON."""
        return {"accuracy": self.accuracy.to_dict(), "macro_f1": self.macro_f1.to_dict()}

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Give plain values for JSON, each class under its name."""
        return {
            "num_samples": self.num_samples,
            "confidence": self.confidence,
            **self.summary(),
            "classes": {
                name: {
                    "precision": each.precision,
                    "recall": each.recall,
                    "f1": each.f1,
                    "num_samples": each.num_samples,
                }
                for name, each in zip(class_names, self.classes, strict=True)
            },
            "confusion_matrix": self.matrix,
        }


def confusion_matrix(targets: npt.ArrayLike, predictions: npt.ArrayLike, *, num_classes: int) -> Matrix:
    """Count the samples by true and by predicted class.

    Args:
        targets: Class indices (N,).
        predictions: Class indices (N,).
        num_classes: Number of classes C.

    Returns:
        Counts (C, C), a row per true class.

    Raises:
        ValueError: If the two differ in length.

    Example:
        >>> confusion_matrix([0, 0, 1], [0, 1, 1], num_classes=2).tolist()
        [[1, 1], [0, 1]]
    """
    true, predicted = np.asarray(targets, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    if true.shape != predicted.shape:
        raise ValueError(
            f"Received {true.shape} targets and {predicted.shape} predictions; expected as many of each."
        )
    counts = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return counts.astype(np.int64).reshape(num_classes, num_classes)


def score(matrix: Matrix, *, confidence: float = 0.95, seed: int = 0) -> Scores:
    """Give all scores of a test.

    Args:
        matrix: Counts (C, C), a row per true class.
        confidence: Of the intervals.
        seed: Of the bootstrap of macro-F1.

    Raises:
        ValueError: If the matrix holds no sample.

    Example:
        >>> scores = score(np.array([[45, 5], [10, 40]]))
        >>> print(scores.accuracy)
        0.850 (0.767 to 0.907)
    """
    total = int(matrix.sum())
    if total == 0:
        raise ValueError("The confusion matrix holds no sample: there is nothing to score.")
    correct = int(np.trace(matrix))
    f1 = _f1_by_class(np.diagonal(matrix), matrix.sum(axis=0), matrix.sum(axis=1))
    return Scores(
        accuracy=Estimate(correct / total, *wilson_interval(correct, total, confidence=confidence)),
        macro_f1=Estimate(
            float(np.nanmean(f1)), *macro_f1_interval(matrix, confidence=confidence, seed=seed)
        ),
        classes=[
            ClassScore(
                precision=float(matrix[index, index] / max(1, matrix[:, index].sum())),
                recall=float(matrix[index, index] / max(1, matrix[index].sum())),
                f1=0.0 if np.isnan(f1[index]) else float(f1[index]),
                num_samples=int(matrix[index].sum()),
            )
            for index in range(len(matrix))
        ],
        matrix=matrix.tolist(),
        confidence=confidence,
    )


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    r"""Give Wilson's score interval of a proportion; it stays within [0, 1] and is of use for few trials, too.

    With :math:`p` the observed proportion of :math:`n` trials and :math:`z` the normal quantile:
    :math:`\frac{1}{1 + z^2/n} \left( p + \frac{z^2}{2n} \pm z \sqrt{\frac{p (1 - p)}{n} + \frac{z^2}{4 n^2}} \right)`

    Args:
        successes: Out of `trials`.
        trials: 1 or more.
        confidence: The share of repetitions whose interval would hold the true proportion.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22:209-212;
    recommended by Brown, Cai and DasGupta 2001, section 5, https://doi.org/10.1214/ss/1009213286

    Example:
        >>> low, high = wilson_interval(8, 10)
        >>> round(low, 3), round(high, 3)
        (0.49, 0.943)
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    proportion, weight = successes / trials, z**2 / trials
    centre = (proportion + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(proportion * (1 - proportion) / trials + weight / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def macro_f1(matrix: Matrix) -> float:
    """Give the mean F1 of the classes that occur, in the truth or in the predictions.

    Example:
        >>> round(macro_f1(np.array([[45, 5], [10, 40]])), 4)
        0.8496
    """
    return float(np.nanmean(_f1_by_class(np.diagonal(matrix), matrix.sum(axis=0), matrix.sum(axis=1))))


def macro_f1_interval(
    matrix: Matrix, *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Give the bootstrap's percentile interval of macro-F1: the test samples are drawn anew, with replacement.

    To draw N samples anew is to draw the cells of the matrix from a multinomial distribution, which is what is done.
    Where a class has few samples the interval is rather too narrow, and where no sample is wrong it has no width.

    Args:
        matrix: Counts (C, C), a row per true class.
        confidence: The share of resamples within the interval.
        num_resamples: How often the samples are drawn anew.
        seed: The same seed gives the same interval.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.

    Example:
        >>> low, high = macro_f1_interval(np.array([[45, 5], [10, 40]]))
        >>> 0.76 < low < 0.79 and 0.91 < high < 0.93
        True
    """
    true, predicted = np.nonzero(matrix)  # (K,) cells that hold samples
    counts = matrix[true, predicted]
    total, num_classes = int(counts.sum()), len(matrix)
    generator = np.random.default_rng(seed)
    is_hit = true == predicted
    values = np.empty(num_resamples)
    for index in range(num_resamples):
        drawn = generator.multinomial(total, counts / total)  # (K,)
        values[index] = np.nanmean(
            _f1_by_class(
                np.bincount(true[is_hit], weights=drawn[is_hit], minlength=num_classes),
                np.bincount(predicted, weights=drawn, minlength=num_classes),
                np.bincount(true, weights=drawn, minlength=num_classes),
            )
        )
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _f1_by_class(
    hits: npt.NDArray[Any], num_predicted: npt.NDArray[Any], num_true: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """F1 of each class (C,), NaN for a class that occurs neither in the truth nor in the predictions."""
    occurring = num_predicted + num_true
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * hits / occurring, dtype=np.float64)
