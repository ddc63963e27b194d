"""Features with mean 0 and deviation 1: of all samples, and of those that a fold sees."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# A feature whose deviation is below this share of the largest one is dead.
_DEAD = 1e-5
# A feature whose variance falls below this share when a fold is left out is a constant there.
_CONSTANT = 1e-12


def standardized(
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
    deviation = deviation_of(variance, mean)
    return centred / deviation, mean, deviation


def deviation_of(variance: Tensor, mean: Tensor) -> Tensor:
    """The standard deviation; infinite for a constant, which is so taken out: its weight is 0.

    Constant is also what hardly moves beside the others, such as a dead unit of a network that gives 1e-33 here and there: its
    weight on raw features would be huge, and the least change of the network would decide everything.
    """
    deviation = variance.sqrt()
    moves = (deviation > 1e-13 * mean.abs()) & (deviation > _DEAD * deviation.max())
    return torch.where(moves, deviation, math.inf)


def with_ones(features: Tensor) -> Tensor:
    """Put a column of ones after the features, for the intercept."""
    return nn.functional.pad(features, (0, 1), value=1.0)


def scales_of_folds(scaled: Tensor, seen: Tensor, *, standardize: bool) -> Tensor:
    """What turns a problem's own weights into those for features standardised by all samples (P, D).

    Another deviation is another factor of the weight; another mean is another intercept, which is free anyway.
    """
    if not standardize:
        return torch.ones(len(seen), scaled.shape[1], dtype=torch.float64)
    shares = seen / seen.sum(dim=1, keepdim=True)
    variance = shares @ scaled.square() - (shares @ scaled).square()
    return torch.where(variance > _CONSTANT, variance.clamp(min=_CONSTANT).rsqrt(), 0.0)
