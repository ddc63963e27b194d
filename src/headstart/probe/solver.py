"""L-BFGS for many problems side by side, along the principal axes of the features."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from headstart.probe.objective import Value

_HISTORY = 20
_MAX_ITERATIONS = 5000
# Below any curvature or step that matters, above what float64 rounds to 0.
_SMALL = 1e-12


def minimise(
    evaluate: Callable[[Tensor, Tensor], Value],
    weights: Tensor,
    *,
    strengths: Tensor,
    basis: Basis,
    tolerance: float | Tensor,
    memory: Memory,
) -> Tensor:
    """Minimise P penalised objectives side by side with L-BFGS; those at their minimum are not evaluated again.

    With gradient g and the estimate H of the second derivative, the objective is about g H^-1 g / 2 above its minimum: that
    is what is held against the tolerance.
    """

    def penalised(problems: Tensor, at: Tensor) -> Value:
        value, pull = evaluate(problems, at), _pull(at, strengths[problems])
        return Value(value.loss + _dot(at, pull) / 2, value.gradient + pull, value.curvature)

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


@dataclass(frozen=True, slots=True)
class Basis:
    """The principal axes of the features: along them the penalised curvature is nearly diagonal.

    Attributes:
        axes: (D, r), orthonormal; r is D, or N where that is smaller.
        variances: (r,) of the features along the axes.
    """

    axes: Tensor
    variances: Tensor

    @classmethod
    def of(cls, features: Tensor, sample_weights: Tensor) -> Basis:
        """Take the axes of features (N, D) that are in memory."""
        rooted = features * (sample_weights / sample_weights.sum()).sqrt()[:, None]
        if len(features) >= features.shape[1]:
            return cls.of_covariance(rooted.T @ rooted)
        variances, left = torch.linalg.eigh(rooted @ rooted.T)
        variances, left = _positive(variances, left)
        return cls(rooted.T @ (left / variances.sqrt()), variances)

    @classmethod
    def of_covariance(cls, covariance: Tensor) -> Basis:
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


class Memory:
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


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Inner product of each problem (P,)."""
    return (first * second).flatten(1).sum(dim=1)


def _pull(weights: Tensor, strengths: Tensor) -> Tensor:
    """The gradient of the penalty (P, K, D + 1): W / C, and nothing for the intercept."""
    return nn.functional.pad(weights[..., :-1] / strengths[:, None, None], (0, 1))
