"""How well a frozen network's features suit a task, in one number and without training: LogME and the H-score.

They cost one decomposition of the features, and are for a first cut over many networks; what a network is worth says
`fit_probe`. Numbers of different tasks or samples cannot be compared, those of different networks on the same samples can.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headstart.errors import MisconfigurationError

_MAX_ITERATIONS = 1000
# Of the logarithm of the prior's strength: the evidence is flat at its maximum, and is known to many more digits.
_TOLERANCE = 1e-6
# How far from the features' own scale the strength of the prior may go: where targets are exactly linear in the features
# (or have nothing to do with them), the best strength is 0 (or infinite).
_FURTHEST = 1e12


@torch.no_grad()
def log_me(features: Tensor, targets: Tensor) -> float:
    r"""Give the logarithm of maximum evidence (LogME) of the targets, a sample's share: the higher, the better.

    Each class is a regression of its own, with targets :math:`y` of 0 and 1, on features :math:`F` as they are (not
    centred, no intercept): :math:`w \sim \mathcal{N}(0, \alpha^{-1} I)`,
    :math:`y \mid w \sim \mathcal{N}(F w, \beta^{-1} I)`. LogME is
    :math:`\max_{\alpha, \beta} \frac{1}{N} \log p(y \mid F, \alpha, \beta)`, averaged over the classes. The number does not
    change if features are rotated or all multiplied by one factor; it does if they are shifted.

    The maximum is found by the fixed-point iteration of the source, on the ratio :math:`\alpha / \beta` alone: the best
    :math:`\beta` for a ratio is known in closed form.

    Args:
        features: (N, D), of any floating-point type; computed in float64.
        targets: Class indices (N,). Classes that do not occur do not count.

    Returns:
        LogME; often below 0, and above where the noise is small.

    Raises:
        MisconfigurationError: If shapes or types do not fit, a value is not finite, there are fewer than two classes,
            or all features are 0.

    Source: You et al. 2021, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning",
    https://arxiv.org/abs/2102.11005

    Example:
        >>> features = torch.tensor([[1.0, 0.1], [0.9, -0.1], [-0.1, 1.0], [0.1, 0.9]])
        >>> clear, mixed = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
        >>> log_me(features, clear) > log_me(features, mixed)
        True
    """
    classes = _check(features, targets)
    left, singular = _decompose(features.double())
    if not len(singular):
        raise MisconfigurationError("features: received zeros only; expected features that differ.")
    one_hot = (targets[:, None] == classes).double()  # (N, C)
    energies = (
        (left.T @ one_hot).square().T
    )  # (C, K): of each class's targets along each axis of the features
    total = one_hot.sum(dim=0)  # (C,)
    rest = (total - energies.sum(dim=1)).clamp(min=0)  # (C,): what no weights can explain
    variances = singular.square()
    ratio = _best_ratio(energies, rest, variances, num_samples=len(features))
    return float(_evidence(ratio, energies, rest, variances, num_samples=len(features)).mean())


def _best_ratio(energies: Tensor, rest: Tensor, variances: Tensor, *, num_samples: int) -> Tensor:
    """The ratio alpha / beta (C,) at which the evidence of each class is largest.

    With `shrinkage` 1 - variance / (variance + ratio), one step is MacKay's: alpha is the number of weights that the
    data determine over their squared length, beta the samples that are left over the squared error.
    """
    scale = variances.mean()
    ratio = scale.expand(len(energies))
    for _ in range(_MAX_ITERATIONS):
        shrinkage = ratio[:, None] / (variances + ratio[:, None])  # (C, K)
        num_determined = (1 - shrinkage).sum(dim=1)
        num_left = num_samples - len(variances) + shrinkage.sum(dim=1)
        squared_length = (variances * energies / (variances + ratio[:, None]).square()).sum(dim=1)
        squared_error = (energies * shrinkage.square()).sum(dim=1) + rest
        alpha, beta = num_determined / squared_length, num_left / squared_error
        # Nothing over nothing only where the targets have nothing to do with the features: no weights.
        found = (alpha / beta).nan_to_num(nan=math.inf).clamp(scale / _FURTHEST, scale * _FURTHEST)
        change = (found.log() - ratio.log()).abs().max()
        ratio = found
        if change < _TOLERANCE:
            break
    return ratio


def _evidence(
    ratio: Tensor, energies: Tensor, rest: Tensor, variances: Tensor, *, num_samples: int
) -> Tensor:
    """The log evidence (C,) at this ratio and the best beta for it, over the number of samples."""
    # y is normal with covariance (I + F F^T / ratio) / beta; its axes are those of the features.
    stretch = 1 + variances / ratio[:, None]  # (C, K)
    beta = num_samples / ((energies / stretch).sum(dim=1) + rest)
    return (beta.log() - math.log(2 * math.pi) - 1 - stretch.log().sum(dim=1) / num_samples) / 2


@torch.no_grad()
def h_score(features: Tensor, targets: Tensor) -> float:
    r"""Give the H-score with shrinkage: how far apart the classes' means are, as the features' spread goes.

    It is :math:`\operatorname{tr}(\Sigma_\alpha^{-1} (1 - \alpha) \Sigma_z)`, with :math:`\Sigma_z` the covariance of
    the features' class means (each sample counts), and
    :math:`\Sigma_\alpha = (1 - \alpha) \Sigma + \alpha \frac{\operatorname{tr} \Sigma}{D} I` the covariance of the features,
    shrunk as Ledoit and Wolf do. Without shrinkage, few samples of many features would make any network look perfect.

    Args:
        features: (N, D), of any floating-point type; computed in float64.
        targets: Class indices (N,).

    Returns:
        From 0, where the classes have one mean, to C - 1 (or D, if that is less), where nothing but the class varies.

    Raises:
        MisconfigurationError: If shapes or types do not fit, a value is not finite, there are fewer than two classes,
            or all samples have the same features.

    Source: Bao et al. 2019, "An Information-Theoretic Approach to Transferability in Task Transfer Learning",
    https://arxiv.org/abs/2212.10082; with shrinkage, Ibrahim et al. 2021, "Newer is not always better: Rethinking
    transferability metrics, their peculiarities, stability and performance", https://arxiv.org/abs/2110.06893; Ledoit
    and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".

    Example:
        >>> features = torch.tensor([[1.0, 0.1], [0.9, -0.1], [-0.1, 1.0], [0.1, 0.9]])
        >>> clear, mixed = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
        >>> h_score(features, clear) > h_score(features, mixed)
        True
    """
    classes = _check(features, targets)
    num_samples, width = features.shape
    centred = features.double() - features.double().mean(dim=0)
    left, singular = _decompose(centred, scale=float(features.abs().max()))
    if not len(singular):
        raise MisconfigurationError(
            "features: received the same for all samples; expected features that differ."
        )
    variances = singular.square() / num_samples  # (K,), along the axes of the features
    coordinates = left * singular  # (N, K)
    shares = (targets[:, None] == classes).double().mean(dim=0)  # (C,)
    means = torch.stack([coordinates[targets == each].mean(dim=0) for each in classes])  # (C, K)
    between = (shares[:, None] * means.square()).sum(dim=0)  # (K,)
    shrinkage = _ledoit_wolf(coordinates, variances, width=width)
    shrunk = (1 - shrinkage) * variances + shrinkage * variances.sum() / width
    return float(((1 - shrinkage) * between / shrunk).sum())


def _ledoit_wolf(coordinates: Tensor, variances: Tensor, *, width: int) -> Tensor:
    """The share of the identity in the best mix of covariance and identity, in [0, 1].

    Args:
        coordinates: Centred features (N, K) along their own axes.
        variances: Along each axis (K,).
        width: Number of features, D.
    """
    num_samples = len(coordinates)
    squares = variances.square().sum()  # of all entries of the covariance
    from_identity = squares - variances.sum().square() / width
    noise = (coordinates.square().sum(dim=1).square().mean() - squares) / num_samples
    if noise <= 0 or from_identity <= 0:  # no doubt, or nothing to mix
        return torch.zeros((), dtype=torch.float64)
    return (noise / from_identity).clamp(max=1)


def _decompose(features: Tensor, *, scale: float = 0.0) -> tuple[Tensor, Tensor]:
    """The left singular vectors (N, K) and singular values (K,), without those that are rounding alone.

    Args:
        features: (N, D).
        scale: Of the values that these were computed from: what is smaller by all digits is rounding as well.
    """
    left, singular, _ = torch.linalg.svd(features, full_matrices=False)
    largest = max(float(singular[0]), scale * math.sqrt(len(features)))
    is_real = singular > max(features.shape) * torch.finfo(torch.float64).eps * largest
    return left[:, is_real], singular[is_real]


def _check(features: Tensor, targets: Tensor) -> Tensor:
    """Refuse what cannot be judged; give the classes that occur."""
    if features.ndim != 2 or not features.is_floating_point() or 0 in features.shape:
        raise MisconfigurationError(
            f"features: received {_shape(features)}; expected floating-point values (N, D), a row per sample. Flatten "
            "what a sample has: features.flatten(1)."
        )
    if not bool(features.isfinite().all()):
        rows = (~features.isfinite()).any(dim=1).nonzero()[:, 0]
        raise MisconfigurationError(
            f"features: {len(rows)} of {len(features)} rows hold NaN or infinity, the first is row {int(rows[0])}; expected "
            "finite values. Leave these samples out, or compute them anew in float32."
        )
    if targets.shape != (len(features),) or targets.is_floating_point() or targets.is_complex():
        raise MisconfigurationError(
            f"targets: received {_shape(targets)}; expected integers ({len(features)},), a class index for each row of "
            "the features."
        )
    classes = torch.tensor(sorted(set(targets.tolist())), device=targets.device)
    if len(classes) < 2:
        raise MisconfigurationError(
            f"targets: received class {int(classes[0])} only; expected samples of 2 or more: there is nothing to tell apart."
        )
    return classes


def _shape(tensor: Tensor) -> str:
    return f"a {str(tensor.dtype).removeprefix('torch.')} tensor {tuple(tensor.shape)}"
