"""Ridge regression: held against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from headstart.probe import fit_ridge
from tests.probe.problems import new_data, standardized


@pytest.mark.parametrize("shape", [(60, 8), (20, 50)])
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("num_outputs", [None, 3])
def test_ridge_is_that_of_scikit_learn(shape, alpha, num_outputs):
    features, _ = new_data(*shape, 2)
    generator = torch.Generator().manual_seed(2)
    size = (shape[0],) if num_outputs is None else (shape[0], num_outputs)
    targets = torch.randn(size, generator=generator) + features[:, 0].reshape(-1, *[1] * (len(size) - 1))
    weights = torch.rand(shape[0], generator=generator, dtype=torch.float64)
    probe = fit_ridge(features, targets, strengths=[alpha], sample_weights=weights)
    scaled, scale, mean = standardized(features, weights)
    model = Ridge(alpha=alpha, solver="svd").fit(
        scaled.numpy(), targets.double().numpy(), sample_weight=weights.numpy()
    )
    # Closed forms in float64 both; the small alpha is the worst conditioned.
    np.testing.assert_allclose((probe.weight * scale).numpy().squeeze(), model.coef_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        (probe.bias + probe.weight @ mean).numpy().squeeze(), model.intercept_, rtol=1e-6
    )


def test_ridge_gives_noise_a_strong_penalty_and_clean_data_a_weak_one():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(100, 10, generator=generator)
    noise = fit_ridge(features, torch.randn(100, generator=generator))
    clean = fit_ridge(features, features[:, 0] - 3)
    assert noise.strength >= 100
    assert clean.strength <= 1e-2
    assert max(row.r2 for row in clean.path) == pytest.approx(1.0)
    assert f"* {clean.strength:>9.3g}" in str(clean)
    assert clean.linear()(features)[:, 0].detach().numpy() == pytest.approx(
        (features[:, 0] - 3).numpy(), abs=1e-3
    )
    assert clean.out_of_fold.shape == (100, 1)


def test_ridge_gives_a_constant_feature_the_weight_zero():
    features, _ = new_data(40, 3, 2)
    probe = fit_ridge(torch.cat([features, torch.full((40, 1), 0.3)], dim=1), features[:, 0])
    assert probe.weight[0, 3] == 0
