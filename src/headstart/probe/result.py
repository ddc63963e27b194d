"""What a fit gives: the layer, the path of penalties, and what samples held out say of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from headstart.errors import MisconfigurationError
from headstart.probe.checks import shape_of
from headstart.scores import Estimate, wilson_interval


@dataclass(frozen=True, slots=True)
class PathRow:
    """What one strength of the penalty gives on samples that the fit has not seen."""

    strength: float
    accuracy: Estimate
    log_loss: float

    @classmethod
    def of(cls, strength: float, *, correct: int, total: int, log_loss: float) -> PathRow:
        """Give the row from counts."""
        return cls(strength, Estimate(correct / total, *wilson_interval(correct, total)), log_loss)


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

    def is_right_out_of_fold(self, targets: Tensor) -> Tensor:
        """Give whether the fit that has not seen a sample classifies it rightly.

        Args:
            targets: Class indices (N,), those of the fit.

        Returns:
            (N,) bool.

        Raises:
            MisconfigurationError: If there were no folds, or the targets are not those of as many samples.
        """
        if self.out_of_fold is None:
            raise MisconfigurationError(
                "This probe was fitted without folds, so every sample took part in its fit. Fit it with fit_probe."
            )
        if targets.shape != self.out_of_fold.shape[:1]:
            raise MisconfigurationError(
                f"targets: received {shape_of(targets)}; expected ({len(self.out_of_fold)},), those of the fit."
            )
        return self.out_of_fold.argmax(dim=1) == targets

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


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # draws no random numbers
    layer.weight, layer.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
    return layer


def _mark(strength: float, chosen: float) -> str:
    return "*" if strength == chosen else " "
