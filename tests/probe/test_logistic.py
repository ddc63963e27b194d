"""Logistic regression, fitted to its optimum: held against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from headstart.probe import STRENGTHS, fit_probe
from headstart.probe.folds import deal
from tests.probe.problems import OBJECTIVE, fit_peer, new_data, objective, standardized


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
    folds = deal(targets, torch.ones(90, dtype=torch.bool), 3, seed=0)
    for fold in range(3):
        is_out = folds == fold
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.05, class_weight=class_weights, tol=1e-10, max_iter=5000)
        )
        model.fit(features[~is_out].double().numpy(), targets[~is_out].numpy())
        expected = model.predict_proba(features[is_out].double().numpy())
        # An objective within 1e-7 of its minimum leaves probabilities within about its root.
        np.testing.assert_allclose(probe.out_of_fold[is_out].numpy(), expected, atol=1e-3)


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


def test_a_unit_that_hardly_moves_gets_no_weight():
    features, targets = new_data(60, 5, 2)
    dead = torch.cat(
        [features, 1e-30 * torch.randn(60, 1, generator=torch.Generator().manual_seed(1))], dim=1
    )
    probe, without = fit_probe(dead, targets), fit_probe(features, targets)
    assert bool((probe.weight[:, 5] == 0).all())
    torch.testing.assert_close(probe.weight[:, :5], without.weight, rtol=1e-4, atol=1e-6)
