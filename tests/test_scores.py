"""Scores against definitions, published values and independent libraries."""

from __future__ import annotations

import numpy as np
import pytest

from headstart.scores import confusion_matrix, macro_f1, macro_f1_interval, score, wilson_interval


def test_wilson_interval_equals_published_values():
    # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3 (score, no continuity correction).
    for successes, trials, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_stays_a_proportion_at_the_ends():
    low, high = wilson_interval(0, 3)
    assert low == 0.0
    assert 0 < high < 1
    low, high = wilson_interval(3, 3)
    assert 0 < low < 1
    assert high == 1.0


def test_wilson_interval_covers_the_true_proportion():
    generator = np.random.default_rng(1)
    covered = [
        low <= 0.9 <= high
        for low, high in (wilson_interval(int(k), 100) for k in generator.binomial(100, 0.9, 2000))
    ]
    # 0.95 nominal; the discreteness of 100 trials moves it by up to 0.02 (Brown, Cai and DasGupta 2001, figure 5).
    assert 0.92 < np.mean(covered) < 0.98


def test_scores_equal_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 5, 200)
    predictions = np.where(generator.random(200) < 0.7, targets, generator.integers(0, 5, 200))
    scores = score(confusion_matrix(targets, predictions, num_classes=5))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(targets, predictions)
    assert scores.accuracy.value == pytest.approx(metrics.accuracy_score(targets, predictions))
    assert scores.macro_f1.value == pytest.approx(metrics.f1_score(targets, predictions, average="macro"))
    assert [each.precision for each in scores.classes] == pytest.approx(precision)
    assert [each.recall for each in scores.classes] == pytest.approx(recall)
    assert [each.f1 for each in scores.classes] == pytest.approx(f1)
    assert [each.num_samples for each in scores.classes] == support.tolist()
    assert scores.matrix == metrics.confusion_matrix(targets, predictions).tolist()
    assert scores.num_samples == 200


def test_macro_f1_leaves_out_classes_that_do_not_occur():
    # Class 0: 2 of 3 right and one of class 1 taken for it, F1 = 4/6; class 1: F1 = 2/4; class 2 nowhere.
    matrix = np.array([[2, 1, 0], [1, 1, 0], [0, 0, 0]])
    assert macro_f1(matrix) == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert score(matrix).classes[2].f1 == 0.0


def test_bootstrap_of_cells_equals_a_bootstrap_of_samples():
    metrics = pytest.importorskip("sklearn.metrics")
    targets = np.repeat([0, 1], [80, 40])
    predictions = targets.copy()
    predictions[[*range(8), *range(80, 92)]] ^= 1
    generator = np.random.default_rng(3)
    values = []
    for _ in range(2000):
        drawn = generator.integers(0, 120, 120)
        values.append(metrics.f1_score(targets[drawn], predictions[drawn], average="macro"))
    expected = np.quantile(values, [0.025, 0.975])
    found = macro_f1_interval(confusion_matrix(targets, predictions, num_classes=2))
    # Two bootstraps of 2000 resamples: their 2.5 % quantiles differ by a few thousandths.
    assert found == pytest.approx(expected, abs=0.01)


def test_bootstrap_is_seeded():
    matrix = np.array([[30, 5], [7, 20]])
    assert macro_f1_interval(matrix, seed=1) == macro_f1_interval(matrix, seed=1)
    assert macro_f1_interval(matrix, seed=1) != macro_f1_interval(matrix, seed=2)


def test_bootstrap_survives_resamples_without_a_rare_class():
    matrix = np.zeros((4, 4), dtype=np.int64)
    matrix[0, 0], matrix[1, 1] = 10, 1
    low, high = macro_f1_interval(matrix)
    assert (low, high) == (1.0, 1.0)


def test_scores_name_each_class_in_json():
    found = score(np.array([[3, 1], [0, 4]])).to_dict(["cat", "dog"])
    assert found["classes"]["cat"] == {
        "precision": 1.0,
        "recall": 0.75,
        "f1": pytest.approx(6 / 7),
        "num_samples": 4,
    }
    assert found["accuracy"]["value"] == 7 / 8
    assert found["confusion_matrix"] == [[3, 1], [0, 4]]


def test_an_empty_test_has_no_score():
    with pytest.raises(ValueError, match="no sample"):
        score(np.zeros((2, 2), dtype=np.int64))


def test_targets_and_predictions_must_be_as_many():
    with pytest.raises(ValueError, match="as many of each"):
        confusion_matrix([0, 1], [0], num_classes=2)
