"""The head, fitted to its optimum: held against scikit-learn, which solves the same problems one at a time."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from torch.nn.functional import cross_entropy

from headstart.errors import MisconfigurationError
from headstart.probe import STRENGTHS, fit_probe, fit_probe_in_batches, fit_ridge

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


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(
    ("num_classes", "shape", "is_weighted"),
    [
        (2, (120, 12), False),
        (4, (120, 12), True),
        (2, (30, 80), True),
        (4, (40, 90), False),
    ],
)
def test_the_objective_is_that_of_scikit_learn_at_every_strength(num_classes, shape, is_weighted, strength):
    features, targets = new_data(*shape, num_classes)
    sample = torch.rand(len(targets), generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    if not is_weighted:
        sample = torch.ones_like(sample)
    classes = torch.arange(1, num_classes + 1, dtype=torch.float64) if is_weighted else None
    total = sample * classes[targets] if is_weighted else sample
    probe = fit_probe(
        features,
        targets,
        strengths=[strength],
        num_folds=2,
        sample_weights=sample,
        class_weights=classes,
    )
    scaled, scale, mean = standardized(features, sample)
    weight, bias = probe.weight * scale, probe.bias + probe.weight @ mean
    ours = objective(weight, bias, scaled, targets, strength, total)
    theirs = objective(*fit_peer(scaled, targets, strength, total), scaled, targets, strength, total)
    assert ours == pytest.approx(theirs, rel=OBJECTIVE)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_without_standardisation_the_objective_is_that_of_raw_features(num_classes):
    features, targets = new_data(80, 6, num_classes)
    features = features / torch.logspace(-2, 2, 6)
    ones = torch.ones(80, dtype=torch.float64)
    probe = fit_probe(features, targets, strengths=[0.3], standardize=False)
    features = features.double()
    ours = objective(probe.weight, probe.bias, features, targets, 0.3, ones)
    theirs = objective(*fit_peer(features, targets, 0.3, ones), features, targets, 0.3, ones)
    assert ours == pytest.approx(theirs, rel=OBJECTIVE)


def test_balanced_class_weights_are_those_of_scikit_learn():
    features, targets = new_data(100, 8, 3)
    weights = torch.from_numpy(compute_sample_weight("balanced", targets.numpy()))
    probe = fit_probe(features, targets, strengths=[0.1], class_weights="balanced")
    scaled, scale, mean = standardized(features)
    ours = objective(probe.weight * scale, probe.bias + probe.weight @ mean, scaled, targets, 0.1, weights)
    theirs = objective(*fit_peer(scaled, targets, 0.1, weights), scaled, targets, 0.1, weights)
    assert ours == pytest.approx(theirs, rel=OBJECTIVE)


@pytest.mark.parametrize("class_weights", [None, "balanced"])
def test_out_of_fold_probabilities_are_those_of_a_pipeline_that_has_not_seen_the_fold(class_weights):
    features, targets = new_data(90, 10, 3)
    probe = fit_probe(features, targets, strengths=[0.05], class_weights=class_weights, num_folds=3)
    # Which samples were together in a fold: those that one pipeline predicts as the probe did.
    from headstart.probe import _deal

    folds = _deal(targets, torch.ones(90, dtype=torch.bool), 3, seed=0)
    for fold in range(3):
        is_out = folds == fold
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.05, class_weight=class_weights, tol=1e-10, max_iter=5000)
        )
        model.fit(features[~is_out].double().numpy(), targets[~is_out].numpy())
        expected = model.predict_proba(features[is_out].double().numpy())
        # An objective within 1e-7 of its minimum leaves probabilities within about its root.
        np.testing.assert_allclose(probe.out_of_fold[is_out].numpy(), expected, atol=1e-3)


def test_folds_are_stratified_and_each_sample_is_held_out_once():
    from headstart.probe import _deal

    targets = torch.tensor([0] * 40 + [1] * 10 + [2] * 2)
    folds = _deal(targets, torch.ones(52, dtype=torch.bool), 5, seed=3)
    assert folds.bincount(minlength=5).tolist() == [11, 11, 10, 10, 10]
    assert folds[targets == 0].bincount(minlength=5).tolist() == [8] * 5
    assert folds[targets == 1].bincount(minlength=5).tolist() == [2] * 5
    assert folds[-2] != folds[-1]


def test_two_samples_of_a_class_are_enough_for_five_folds():
    features, targets = new_data(60, 5, 2)
    targets = torch.cat([targets, torch.tensor([2, 2])])
    features = torch.cat([features, features[:2] + 30])
    probe = fit_probe(features, targets)
    assert probe.num_folds == 5
    assert probe.out_of_fold.shape == (62, 3)
    assert probe.weight.isfinite().all()


def test_more_folds_than_samples_are_as_many_as_samples():
    features = torch.tensor([[0.0], [1.0], [4.0], [5.0]])
    assert fit_probe(features, torch.tensor([0, 0, 1, 1]), strengths=[1.0], num_folds=10).num_folds == 4


def test_the_linear_layer_gives_the_logits_of_the_standardised_model_on_raw_features():
    features, targets = new_data(100, 8, 3)
    probe = fit_probe(features, targets)
    layer = probe.linear()
    assert layer.weight.dtype == torch.float32
    assert layer.weight.requires_grad
    scaled, scale, mean = standardized(features)
    expected = scaled @ (probe.weight * scale).T + (probe.bias + probe.weight @ mean)
    # float32 against float64
    torch.testing.assert_close(layer(features).double(), expected, rtol=1e-4, atol=1e-4)


def test_noise_gets_a_strong_penalty_and_clean_data_a_weak_one():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 20, generator=generator)
    noise = fit_probe(features, torch.randint(2, (200,), generator=generator))
    clean = fit_probe(features, (features[:, 0] + features[:, 1] > 0).long())
    assert noise.strength < 0.1
    assert clean.strength >= 1.0
    assert clean.accuracy.value > 0.9
    assert noise.accuracy.value < 0.7


def test_the_path_holds_the_choice_and_ends_where_the_log_loss_is_much_worse():
    features, targets = new_data(150, 20, 3, noise=4.0)
    probe = fit_probe(features, targets, strengths=[1e4, 1e-4, 1e-2, 1.0, 1e2])
    losses = [row.log_loss for row in probe.path]
    best = losses.index(min(losses))
    assert [row.strength for row in probe.path] == [1e-4, 1e-2, 1.0, 1e2, 1e4][: len(losses)]
    assert len(losses) < 5, "beyond, the fits are slow and no better"
    assert losses[-1] > 1.05 * losses[best] >= max(losses[best:-1])
    assert probe.strength == probe.path[best].strength
    assert probe.accuracy == probe.path[best].accuracy
    correct = (probe.out_of_fold.argmax(dim=1) == targets).double().mean()
    assert probe.accuracy.value == pytest.approx(float(correct))
    assert f"* {probe.strength:>9.3g}" in str(probe)
    torch.testing.assert_close(probe.out_of_fold.sum(dim=1), torch.ones(150, dtype=torch.float64))


def test_a_sample_of_weight_two_is_as_good_as_two_and_of_weight_zero_as_none():
    features, targets = new_data(60, 5, 3)
    weights = torch.ones(60)
    weights[:10], weights[50:] = 2, 0
    weighted = fit_probe(features, targets, strengths=[0.5], sample_weights=weights, tolerance=1e-12)
    rows = torch.cat([torch.arange(50), torch.arange(10)])
    repeated = fit_probe(features[rows], targets[rows], strengths=[0.5], tolerance=1e-12)
    # Both objectives are within 1e-12 of the minimum, so the weights within about its root.
    torch.testing.assert_close(weighted.weight, repeated.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weighted.bias, repeated.bias, rtol=1e-4, atol=1e-5)


def test_constant_and_repeated_features_do_no_harm():
    features, targets = new_data(80, 6, 2)
    plain = fit_probe(features, targets, strengths=[0.1], tolerance=1e-12)
    constant = torch.full((80, 2), 0.1)
    probe = fit_probe(torch.cat([features, constant], dim=1), targets, strengths=[0.1], tolerance=1e-12)
    assert (probe.weight[:, 6:] == 0).all()
    torch.testing.assert_close(probe.weight[:, :6], plain.weight, rtol=1e-4, atol=1e-6)
    twice = fit_probe(torch.cat([features, features], dim=1), targets, strengths=[0.1], tolerance=1e-12)
    torch.testing.assert_close(twice.weight[:, :6], twice.weight[:, 6:], rtol=1e-4, atol=1e-6)


def test_a_feature_that_varies_in_one_sample_only_does_no_harm():
    features, targets = new_data(60, 4, 2)
    rare = torch.zeros(60, 1)
    rare[7] = 1
    probe = fit_probe(torch.cat([features, rare], dim=1), targets)
    assert probe.weight.isfinite().all()
    assert probe.out_of_fold.isfinite().all()


def test_the_same_seed_gives_the_same_bits_and_global_randomness_is_left_alone():
    features, targets = new_data()
    before = torch.get_rng_state()
    first, second = fit_probe(features, targets, seed=4), fit_probe(features, targets, seed=4)
    first.linear()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.out_of_fold, second.out_of_fold)
    assert first.path == second.path
    assert not torch.equal(first.out_of_fold, fit_probe(features, targets, seed=5).out_of_fold)


# ---- in batches


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_the_fit_in_batches_has_the_optimum_of_the_fit_in_memory(num_classes, strength):
    features, targets = new_data(130, 10, num_classes)
    ones = torch.ones(130, dtype=torch.float64)
    probes = [
        fit_probe(features, targets, strengths=[strength]),
        fit_probe_in_batches(
            lambda: zip(features.split(32), targets.split(32), strict=True),
            num_features=10,
            num_classes=num_classes,
            strengths=[strength],
        ),
    ]
    scaled, scale, mean = standardized(features)
    in_memory, in_batches = (
        objective(each.weight * scale, each.bias + each.weight @ mean, scaled, targets, strength, ones)
        for each in probes
    )
    assert in_batches == pytest.approx(in_memory, rel=OBJECTIVE)
    assert str(probes[1]) == f"strength {strength:.3g}, nothing held out"


def test_validation_batches_choose_the_strength():
    features, targets = new_data(200, 10, 3, noise=3.0)
    probe = fit_probe_in_batches(
        lambda: [(features[:100], targets[:100])],
        num_features=10,
        num_classes=3,
        strengths=[1e-4, 1e-2, 1.0],
        validation=lambda: zip(features[100:].split(30), targets[100:].split(30), strict=True),
    )
    losses = [row.log_loss for row in probe.path]
    assert probe.strength == probe.path[losses.index(min(losses))].strength
    logits = probe.linear()(features[100:]).detach()
    assert min(losses) == pytest.approx(float(cross_entropy(logits, targets[100:])), rel=1e-4)
    assert probe.accuracy.value == pytest.approx(
        float((logits.argmax(dim=1) == targets[100:]).float().mean())
    )


# ---- ridge


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


# ---- what is refused


FEATURES, TARGETS = new_data(20, 3, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": FEATURES[0]}, r"features: received a float32 tensor \(3,\); expected .* \(N, D\)"),
        ({"features": FEATURES.long()}, r"features: received a int64 tensor"),
        ({"features": FEATURES.index_fill(0, torch.tensor([4]), float("nan"))}, "1 of 20 rows .* row 4"),
        ({"targets": TARGETS[:5]}, r"targets: received a int64 tensor \(5,\); expected integers \(20,\)"),
        ({"targets": TARGETS.float()}, "targets: received a float32 tensor"),
        ({"targets": TARGETS - 1}, "class indices from -1 to 0; expected 0 to 0"),
        ({"targets": TARGETS + 1, "num_classes": 2}, "class indices from 1 to 2; expected 0 to 1"),
        ({"targets": torch.zeros(20, dtype=torch.int64)}, "one class only"),
        ({"num_classes": 4}, "0 of class 2, 0 of class 3; expected 2 or more of every class"),
        ({"targets": TARGETS.index_fill(0, torch.tensor([4]), 2)}, "1 of class 2"),
        ({"strengths": []}, r"strengths: received \[\]"),
        ({"strengths": [1.0, -1.0]}, "expected one or more finite values above 0"),
        ({"num_folds": 1}, "num_folds: received 1; expected 2 or more"),
        ({"sample_weights": torch.ones(3)}, r"sample_weights: received a float32 tensor \(3,\)"),
        ({"sample_weights": -torch.ones(20)}, "received values down to -1.0"),
        ({"sample_weights": torch.full((20,), torch.inf)}, "sample_weights: 20 of 20 rows"),
        ({"class_weights": "even"}, "class_weights: received 'even'; expected 'balanced'"),
        ({"class_weights": torch.ones(3)}, "expected 2 finite values above 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_a_reason(changes, message):
    arguments = {"features": FEATURES, "targets": TARGETS, **changes}
    with pytest.raises(MisconfigurationError, match=message):
        fit_probe(arguments.pop("features"), arguments.pop("targets"), **arguments)


@pytest.mark.parametrize(
    ("batches", "changes", "message"),
    [
        (list, {}, "hold no sample"),
        (lambda: [(FEATURES, TARGETS)], {"strengths": [1.0, 2.0]}, "2 strengths and no validation batches"),
        (lambda: [(FEATURES[:, :2], TARGETS)], {}, "A batch has 2 features; expected num_features=3"),
        (lambda: [(FEATURES, TARGETS)], {"num_classes": 3}, "0 of class 2; expected 1 or more"),
        (lambda: [(FEATURES, TARGETS)], {"num_classes": 1}, "num_classes=1; expected"),
        (lambda: [(FEATURES, TARGETS)], {"validation": list}, "validation batches hold no sample"),
    ],
)
def test_batches_that_cannot_be_fitted_are_refused_with_a_reason(batches, changes, message):
    arguments = {"num_features": 3, "num_classes": 2, "strengths": [1.0], **changes}
    with pytest.raises(MisconfigurationError, match=message):
        fit_probe_in_batches(batches, **arguments)


def test_batches_that_change_between_passes_are_refused():
    passes = iter([20, 20, 19])
    with pytest.raises(MisconfigurationError, match="gave 19 samples, the first one 20"):
        fit_probe_in_batches(
            lambda: [(FEATURES[: (count := next(passes))], TARGETS[:count])],
            num_features=3,
            num_classes=2,
            strengths=[1.0],
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": TARGETS}, "expected floating-point values .* For classes use fit_probe"),
        ({"targets": torch.full((20,), torch.nan)}, "targets: 20 of 20 rows"),
        ({"sample_weights": torch.zeros(20)}, "Received 0 sample of weight above 0"),
    ],
)
def test_what_ridge_cannot_fit_is_refused_with_a_reason(changes, message):
    arguments = {"targets": FEATURES[:, 0], **changes}
    with pytest.raises(MisconfigurationError, match=message):
        fit_ridge(FEATURES, arguments.pop("targets"), **arguments)


def test_a_unit_that_hardly_moves_gets_no_weight():
    features, targets = new_data(60, 5, 2)
    dead = torch.cat(
        [features, 1e-30 * torch.randn(60, 1, generator=torch.Generator().manual_seed(1))], dim=1
    )
    probe, without = fit_probe(dead, targets), fit_probe(features, targets)
    assert bool((probe.weight[:, 5] == 0).all())
    torch.testing.assert_close(probe.weight[:, :5], without.weight, rtol=1e-4, atol=1e-6)
