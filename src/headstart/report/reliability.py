"""How often a classifier is right, by how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headstart.scores import Estimate, wilson_interval

# An accuracy of fewer samples says next to nothing, and more points than ten cannot be told apart.
_FEWEST_IN_A_BIN, _MOST_BINS = 15, 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Some samples that are about equally sure: how sure on average, and how many of them are right."""

    confidence: float
    accuracy: Estimate
    num_samples: int


def reliability_bins(probabilities: npt.ArrayLike, targets: npt.ArrayLike) -> list[Bin]:
    """Give accuracy by confidence in bins of equally many samples, with 95 % intervals.

    Equal numbers and not equal widths, as in `calibration.expected_calibration_error`: a classifier is mostly sure, and bins of
    equal width would nearly all be empty.

    Args:
        probabilities: Of each class (N, C).
        targets: Class indices (N,).

    Example:
        >>> [found] = reliability_bins([[0.9, 0.1], [0.8, 0.2]], [0, 1])
        >>> round(found.confidence, 2), found.accuracy.value, found.num_samples
        (0.85, 0.5, 2)
    """
    shares, true = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    confidence, is_right = shares.max(axis=1), shares.argmax(axis=1) == true
    order = np.argsort(confidence, kind="stable")
    num_bins = min(_MOST_BINS, max(1, len(order) // _FEWEST_IN_A_BIN))
    bins = []
    for members in np.array_split(order, num_bins):
        hits, count = int(is_right[members].sum()), len(members)
        accuracy = Estimate(hits / count, *wilson_interval(hits, count))
        bins.append(Bin(float(confidence[members].mean()), accuracy, count))
    return bins
