"""Logistic regression on the same features at any strengths, one after the other: what they have in common is computed once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headstart.probe.checks import check_counts, check_features, check_strengths, check_targets
from headstart.probe.logistic import Problems
from headstart.probe.objective import fold_back
from headstart.probe.result import Probe
from headstart.probe.scaling import standardized
from headstart.probe.solver import Basis, Memory, minimise

# How far above its minimum an objective may end, as a share of it: probabilities of other samples are then right to a hundredth,
# which is a small part of what a step to the next strength changes.
_TOLERANCE = 1e-6
# Below this power of ten, weights of 0 are as near as any.
_LOWEST = -4


class ProbeAnywhere:
    """Fits what `fit_probe` fits, without folds, at any strength.

    The standardised features and their principal axes are kept. A fit begins from that of the next power of ten below, which
    is made when it is first needed and begins from the one below it; so it does not depend on what was fitted before.

    Args:
        features: (N, D).
        targets: Class indices (N,).
        num_classes: C.
        class_weights: (C,); None: all 1.

    Raises:
        MisconfigurationError: If shapes or classes do not fit, or a value is not finite.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]])
        >>> probes = ProbeAnywhere(features, torch.tensor([0, 0, 0, 1, 1, 1]), num_classes=2)
        >>> probes.fit(1.0).linear()(features).argmax(dim=1).tolist()
        [0, 0, 0, 1, 1, 1]
    """

    def __init__(
        self, features: Tensor, targets: Tensor, *, num_classes: int, class_weights: Tensor | None = None
    ) -> None:
        check_features(features)
        check_targets(targets, len(features), num_classes)
        targets = targets.long()
        check_counts(torch.bincount(targets, minlength=num_classes), at_least=1)
        ones = torch.ones(len(features), dtype=torch.float64)
        scaled, self._mean, self._deviation = standardized(features.double(), ones, standardize=True)
        weights = ones if class_weights is None else class_weights.double()[targets]
        self._basis = Basis.of(scaled, weights)
        scales = torch.ones(1, features.shape[1], dtype=torch.float64)
        self._problems = Problems(scaled, targets, weights[None], scales, num_classes)
        self._at_powers: dict[int, Tensor] = {}

    @torch.no_grad()
    def fit(self, strength: float) -> Probe:
        """Give the fit at a strength (the `C` of `fit_probe`).

        Raises:
            MisconfigurationError: If the strength is not above 0.
        """
        (strength,) = check_strengths([strength])
        weights = self._minimise(strength, self._near(math.floor(math.log10(strength))))
        return Probe(*fold_back(weights[0], self._mean, self._deviation), strength=strength)

    def _near(self, power: int) -> Tensor:
        """Give the weights at a power of ten."""
        if power < _LOWEST:
            return self._problems.start()
        if power not in self._at_powers:
            self._at_powers[power] = self._minimise(10.0**power, self._near(power - 1))
        return self._at_powers[power]

    def _minimise(self, strength: float, start: Tensor) -> Tensor:
        return minimise(
            self._problems.evaluate,
            start,
            strengths=torch.tensor([strength], dtype=torch.float64),
            basis=self._basis,
            tolerance=_TOLERANCE,
            memory=Memory(),
        )
