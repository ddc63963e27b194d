"""What cannot be fitted is refused, with what was received, what was expected and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from headstart.errors import MisconfigurationError

_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def _check_tensor(name: str, value: object) -> None:
    """Refuse an array or a list."""
    if not isinstance(value, Tensor):
        raise MisconfigurationError(
            f"{name}: received a {type(value).__name__}; expected a tensor: torch.as_tensor({name})."
        )


def check_features(features: Tensor) -> None:
    """Refuse what is not finite values (N, D)."""
    _check_tensor("features", features)
    if features.ndim != 2 or not features.is_floating_point() or 0 in features.shape:
        raise MisconfigurationError(
            f"features: received {shape_of(features)}; expected floating-point values (N, D), a row per sample. Flatten "
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


def check_targets(targets: Tensor, num_samples: int, num_classes: int | None) -> int:
    """Give the number of classes."""
    _check_tensor("targets", targets)
    if targets.shape != (num_samples,) or targets.dtype not in _INTEGERS:
        raise MisconfigurationError(
            f"targets: received {shape_of(targets)}; expected integers ({num_samples},), a class index for each row of "
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


def check_counts(counts: Tensor, *, at_least: int = 2) -> None:
    """Refuse a class that a fit would not see: its intercept has no optimum."""
    rare = (counts < at_least).nonzero()[:, 0].tolist()
    if rare:
        received = ", ".join(f"{int(counts[each])} of class {each}" for each in rare)
        raise MisconfigurationError(
            f"Received too few samples of weight above 0: {received}; expected {at_least} or more of every class"
            f"{', one to fit and one to hold out' if at_least > 1 else ''}. Add samples, or leave the class out."
        )


def check_strengths(strengths: Sequence[float]) -> list[float]:
    """Give them ascending, each once."""
    path = sorted({float(each) for each in strengths})
    if not path or not all(0 < each < math.inf for each in path):
        raise MisconfigurationError(
            f"strengths: received {list(strengths)}; expected one or more finite values above 0, such as [0.01, 1.0, 100.0]."
        )
    return path


def check_sample_weights(weights: Tensor | None, num_samples: int) -> Tensor:
    """Give them in float64, ones where there are none."""
    if weights is None:
        return torch.ones(num_samples, dtype=torch.float64)
    _check_tensor("sample_weights", weights)
    if weights.shape != (num_samples,):
        raise MisconfigurationError(
            f"sample_weights: received {shape_of(weights)}; expected ({num_samples},), one for each row of the features."
        )
    _refuse_non_finite("sample_weights", weights)
    if bool((weights < 0).any()):
        raise MisconfigurationError(
            f"sample_weights: received values down to {float(weights.min())}; expected 0 or more. A sample of weight 0 is "
            "left out of the fit."
        )
    return weights.double()


def check_folds(num_folds: int, num_samples: int) -> int:
    """Give their number, no more than there are samples."""
    if num_folds < 2:
        raise MisconfigurationError(f"num_folds: received {num_folds}; expected 2 or more, such as 5.")
    return min(num_folds, num_samples)


def check_regression_targets(targets: Tensor, num_samples: int) -> None:
    """Refuse what is not finite values (N,) or (N, K)."""
    _check_tensor("targets", targets)
    if targets.ndim not in {1, 2} or len(targets) != num_samples or not targets.is_floating_point():
        raise MisconfigurationError(
            f"targets: received {shape_of(targets)}; expected floating-point values ({num_samples},) or ({num_samples}, K), "
            "a row for each row of the features. For classes use fit_probe; else targets.float()."
        )
    _refuse_non_finite("targets", targets)


def shape_of(tensor: Tensor) -> str:
    """Give dtype and shape in words, for a message."""
    return f"a {str(tensor.dtype).removeprefix('torch.')} tensor {tuple(tensor.shape)}"
