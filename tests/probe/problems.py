"""Problems for the probes, and scikit-learn's answers, which solves the same ones one at a time."""

import warnings

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import cross_entropy

# Relative; the tolerance of the fit is smaller, and is an estimate.
OBJECTIVE = 1e-6


def new_data(num_samples=120, num_features=12, num_classes=4, *, noise=2.0, seed=0):
    """Clusters of unequal size, features of unequal scale and far from 0."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.arange(1.0, num_classes + 1)
    targets = torch.multinomial(shares, num_samples, replacement=True, generator=generator)
    targets[: 2 * num_classes] = torch.arange(num_classes).repeat(2)
    centres = torch.randn(num_classes, num_features, generator=generator)
    features = centres[targets] + noise * torch.randn(num_samples, num_features, generator=generator)
    return features * torch.logspace(-2, 2, num_features) + 5, targets


def objective(weight, bias, features, targets, strength, weights):
    """The objective in float64; two classes count by the difference of their weights, as in scikit-learn."""
    losses = cross_entropy(features @ weight.T + bias, targets, reduction="none")
    penalty = (weight[1] - weight[0]).square().sum() if len(weight) == 2 else weight.square().sum()
    return float(strength * (weights * losses).sum() + penalty / 2)


def fit_peer(features, targets, strength, weights):
    """scikit-learn's optimum: weight (C, D) and bias (C,)."""
    model = LogisticRegression(C=strength, tol=1e-10, solver="newton-cholesky", max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at the limit of float64 its line search gives up, and says so
        model.fit(features.numpy(), targets.numpy(), sample_weight=weights.numpy())
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    return (
        (torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2)
        if len(weight) == 1
        else (weight, bias)
    )


def standardized(features, weights=None):
    scaler = StandardScaler().fit(
        features.double().numpy(), sample_weight=None if weights is None else weights.numpy()
    )
    scaled = torch.from_numpy(scaler.transform(features.double().numpy()))
    return scaled, torch.from_numpy(scaler.scale_), torch.from_numpy(scaler.mean_)
