"""Whether an export computes what its run computes: the largest difference of the logits, against a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headstart.errors import ExportError

#: Of the logits, as a fraction of 1 + the largest of them. Both sides compute in float32, in different orders: a hundred
#: layers come to about 1e-6 that way. Photos resized otherwise, a class at another's place or a layer left out come to
#: 1e-2 and more.
TOLERANCE = 1e-4

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far an export is from its run.

    Attributes:
        num_samples: That were compared, all at once, and the first of them alone.
        origin: Where they are from.
        are_real: `False` for random inputs.
        difference: The largest of any logit.
        probability_difference: The largest of any probability.
        allowed: The difference of logits up to which it counts as the same.
    """

    num_samples: int
    origin: str
    are_real: bool
    difference: float
    probability_difference: float
    allowed: float


def compare(
    expected: Logits, found: Sequence[Logits], *, origin: str, are_real: bool, tolerance: float
) -> Comparison:
    """Compare the logits (N, C) of a run with those of an export.

    Args:
        expected: Of the run.
        found: Of the export: of all samples at once, and of the first alone (1, C).
        origin: Where the samples are from.
        are_real: Whether they are samples, or random.
        tolerance: A fraction of 1 + the largest logit.

    Raises:
        ExportError: If they differ by more.

    Example:
        >>> logits = np.array([[1.0, 3.0]], dtype=np.float32)
        >>> found = compare(logits, [logits + 1e-5, logits], origin="a test", are_real=True, tolerance=1e-4)
        >>> round(found.difference, 6), round(found.allowed, 6)
        (1e-05, 0.0004)
    """
    whole, alone = found
    if whole.shape != expected.shape or alone.shape != expected[:1].shape:
        raise ExportError(
            f"The export gave logits of the shapes {whole.shape} and {alone.shape}; expected {expected.shape} and "
            f"{expected[:1].shape}."
        )
    pairs = [(whole, expected), (alone, expected[:1])]
    difference = max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)
    allowed = tolerance * (1 + float(np.abs(expected).max()))
    if not difference <= allowed:  # NaN is no agreement
        raise ExportError(
            f"The export does not compute what the run does: on {origin}, its logits differ by up to {difference:.3g}, and "
            f"{allowed:.3g} is allowed (--tolerance {tolerance:g} of 1 + the largest logit). Nothing was written."
        )
    return Comparison(
        num_samples=len(expected),
        origin=origin,
        are_real=are_real,
        difference=difference,
        probability_difference=max(
            float(np.abs(_softmax(ours) - _softmax(theirs)).max()) for ours, theirs in pairs
        ),
        allowed=allowed,
    )


def _softmax(logits: Logits) -> Logits:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), dtype=np.float32)
