"""LogME and the H-score: held against their definitions, computed the slow way, and against what must not matter."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.covariance import LedoitWolf

from headstart.errors import MisconfigurationError
from headstart.transferability import h_score, log_me

SCORES = [log_me, h_score]
# More samples than features; fewer; as many; features of which some repeat others.
SHAPES = {"tall": (60, 5), "wide": (20, 40), "square": (20, 20), "repeating": (40, 12)}


def new_data(num_samples, width, *, num_classes=3, noise=1.0, seed=0):
    """Clusters of unequal size around centres of their own."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(num_samples) ** 2 % 7 % num_classes
    centres = torch.randn(num_classes, width, generator=generator, dtype=torch.float64)
    spread = torch.randn(num_samples, width, generator=generator, dtype=torch.float64)
    return centres[targets] + noise * spread + 0.5, targets


def data_of(shape):
    features, targets = new_data(*SHAPES[shape])
    return (torch.cat([features[:, :4]] * 3, dim=1) if shape == "repeating" else features), targets


def slow_log_me(features, targets):
    """The evidence is the density of a normal distribution; its maximum is searched over alpha and beta."""
    features, num_samples, found = features.numpy(), len(targets), []
    for each in np.unique(targets):
        y = (targets.numpy() == each).astype(float)

        def loss(logs):
            alpha, beta = np.exp(logs)
            covariance = features @ features.T / alpha + np.eye(num_samples) / beta
            log_determinant = np.linalg.slogdet(2 * np.pi * covariance).logabsdet
            return (log_determinant + y @ np.linalg.solve(covariance, y)) / 2 / num_samples

        starts = [(first, second) for first in (-4, 0, 4) for second in (-2, 2, 5)]
        results = [
            minimize(
                loss,
                start,
                method="Nelder-Mead",
                bounds=[(-20, 20)] * 2,
                options={"xatol": 1e-6, "fatol": 1e-10},
            )
            for start in starts
        ]
        found.append(-min(result.fun for result in results))
    return np.mean(found)


@pytest.mark.parametrize("shape", SHAPES)
def test_log_me_is_the_largest_evidence(shape):
    features, targets = data_of(shape)
    # The search ends at 1e-10, and the iteration where the ratio is known to 1e-6.
    assert log_me(features, targets) == pytest.approx(slow_log_me(features, targets), abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_h_score_is_the_trace_of_the_sources_formula(shape):
    features, targets = data_of(shape)
    fit = LedoitWolf().fit(features.numpy())
    means = features.numpy() * 0
    for each in targets.unique():
        means[targets == each] = features[targets == each].mean(dim=0).numpy()
    between = np.cov(means, rowvar=False, bias=True)
    expected = np.trace(np.linalg.inv(fit.covariance_) @ ((1 - fit.shrinkage_) * between))
    # Both in float64; the covariance's smallest eigenvalue is not far from its largest.
    assert h_score(features, targets) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_scale_and_names_of_classes_do_not_matter(score, shape):
    features, targets = data_of(shape)
    generator = torch.Generator().manual_seed(1)
    width = features.shape[1]
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    expected = pytest.approx(
        score(features, targets), abs=1e-9
    )  # float64, and some 1e-12 for a decomposition
    assert score(features @ rotation, targets) == expected
    assert score(features * 1e-3, targets) == expected
    assert score(features, 9 - 4 * targets) == expected
    assert score(features.flip(0), targets.flip(0)) == expected


def test_a_shift_does_not_matter_to_the_h_score():
    features, targets = data_of("tall")
    assert h_score(features + 7, targets) == pytest.approx(h_score(features, targets), abs=1e-9)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("shape", [(200, 8), (60, 100)])
def test_the_more_separable_the_higher(score, shape):
    found = [score(*new_data(*shape, noise=noise)) for noise in (0.3, 1.0, 3.0, 10.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


@pytest.mark.parametrize("score", SCORES)
def test_features_of_other_samples_are_worth_less(score):
    features, targets = new_data(60, 100)
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert score(features, targets) > score(features[shuffled], targets) + 0.05


@pytest.mark.parametrize("score", SCORES)
def test_half_precision_is_computed_in_float64(score):
    features, targets = data_of("tall")
    assert score(features.half(), targets) == score(features.half().double(), targets)


def test_a_feature_that_is_0_everywhere_does_not_matter_to_log_me():
    features, targets = data_of("tall")
    wider = torch.cat([features, torch.zeros(60, 1, dtype=torch.float64)], dim=1)
    assert log_me(wider, targets) == pytest.approx(log_me(features, targets), abs=1e-9)


def test_targets_that_are_linear_in_the_features_have_a_finite_log_me():
    targets = torch.arange(50) % 2
    exact = torch.stack([targets, 1 - targets], dim=1).double()
    nearly = exact + 1e-3 * new_data(50, 2)[0]
    assert np.isfinite(log_me(exact, targets))
    assert log_me(exact, targets) > log_me(nearly, targets)


def test_features_that_say_nothing_have_the_log_me_of_noise_alone():
    # Balanced targets at right angles to the only feature: no weight but 0, and noise of variance mean(y^2) = 1/2.
    features = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    expected = -(np.log(2 * np.pi * 0.5) + 1) / 2
    assert log_me(features, torch.tensor([0, 0, 1, 1])) == pytest.approx(expected, abs=1e-9)


def test_an_h_score_is_at_most_the_number_of_classes_less_one():
    targets = torch.arange(40) % 4
    features = torch.eye(4, dtype=torch.float64)[targets]
    assert 2 < h_score(features, targets) <= 3
    assert h_score(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), torch.tensor([0, 0, 1, 1])) == pytest.approx(
        0, abs=1e-12
    )


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        (torch.ones(4, 2, 2), torch.tensor([0, 1, 0, 1]), r"received a float32 tensor \(4, 2, 2\).*flatten\(1\)"),
        (torch.ones(4, 2).long(), torch.tensor([0, 1, 0, 1]), r"received a int64 tensor \(4, 2\)"),
        (torch.ones(0, 2), torch.zeros(0).long(), r"received a float32 tensor \(0, 2\)"),
        (torch.tensor([[1.0], [float("nan")]]), torch.tensor([0, 1]), "1 of 2 rows hold NaN or infinity, the first is row 1"),
        (torch.ones(4, 2), torch.tensor([0, 1, 0]), r"targets: received a int64 tensor \(3,\); expected integers \(4,\)"),
        (torch.ones(2, 2), torch.tensor([0.0, 1.0]), "targets: received a float32 tensor"),
        (torch.ones(2, 2), torch.tensor([3, 3]), "received class 3 only; expected samples of 2 or more"),
        (torch.zeros(2, 2), torch.tensor([0, 1]), "expected features that differ"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused(score, features, targets, message):
    with pytest.raises(MisconfigurationError, match=message):
        score(features, targets)


def test_the_same_features_for_all_samples_have_no_h_score():
    for value in (1.0, 0.1):  # 0.1 has no exact mean
        with pytest.raises(MisconfigurationError, match="the same for all samples"):
            h_score(torch.full((7, 3), value), torch.arange(7) % 2)
