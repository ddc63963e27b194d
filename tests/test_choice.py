"""The rule of choosing against simulations whose truth is known; its tests against independent computations."""

from __future__ import annotations

import json
from statistics import NormalDist

import numpy as np
import pytest
import torch

from headstart.calibration import log_softmax
from headstart.choice import (
    Candidate,
    choose,
    expected_optimism,
    is_hopeless,
    judge,
    paired_bootstrap,
    paired_test,
)
from headstart.errors import MisconfigurationError
from headstart.scores import macro_f1_interval, wilson_interval

HEAD = 0.88  # the head's true accuracy


def simulated(generator, num_samples, accuracies, *, scale=3.4):
    """Log-probabilities of two-class models of known accuracy, that find the same samples hard (correlation 0.8).

    With accuracy 0.88, one sample in ten is right by one model only, as of a head alone and a fine-tuned network.
    """
    shared = generator.standard_normal(num_samples)
    targets = generator.integers(0, 2, num_samples)
    logs = []
    for accuracy in accuracies:
        own = generator.standard_normal(num_samples)
        margin = NormalDist().inv_cdf(accuracy) + np.sqrt(0.8) * shared + np.sqrt(0.2) * own
        logits = np.zeros((num_samples, 2))
        logits[np.arange(num_samples), targets] = scale * margin
        logs.append(log_softmax(logits))
    return logs, targets


def share_not_first(num_samples, accuracies, *, num_runs=120, metric="accuracy", sharpness=1.0):
    """How often another candidate than the first, which is the cheapest, is chosen; `sharpness` multiplies their logits."""
    generator = np.random.default_rng(0)
    chosen = []
    for _ in range(num_runs):
        (head, *others), targets = simulated(generator, num_samples, accuracies)
        logs = [head, *(log_softmax(sharpness * log) for log in others)]
        chosen.append(judge(logs, targets, metric=metric, num_resamples=200).chosen)
    return np.mean(np.array(chosen) > 0)


def predictions(is_right, targets, *, sure=0.8):
    """Two-class log-probabilities (N, 2) that are right where told."""
    targets, is_right = np.asarray(targets), np.asarray(is_right)
    predicted = np.where(is_right, targets, 1 - targets)
    return np.log(np.where(np.eye(2)[predicted] == 1, sure, 1 - sure))


# ---- the rule


# Standard errors of the shares: 0.03 at 120 runs, 0.05 at 40. The bounds stand two to three of them off.
def test_improvement_of_3_points_is_rarely_thrown_away():
    assert share_not_first(333, [HEAD, HEAD + 0.03]) > 0.83
    assert share_not_first(1500, [HEAD, HEAD + 0.03], num_runs=40) > 0.97


def test_improvement_of_2_points_is_kept_more_often_than_not():
    assert share_not_first(333, [HEAD, HEAD + 0.02]) > 0.65


def test_model_that_is_1_point_worse_is_rarely_chosen():
    assert share_not_first(333, [HEAD, HEAD - 0.01]) < 0.18
    assert share_not_first(1500, [HEAD, HEAD - 0.01], num_runs=40) < 0.12


def test_equally_good_model_is_mostly_left():
    # The levels 0.25 and 0.10 add up to at most 0.35; the two tests agree mostly.
    assert share_not_first(333, [HEAD, HEAD]) < 0.35


def test_several_equally_good_models_do_not_win_by_their_number():
    # Without the allowance for the luckiest, one of three others would pass far more often than one of one.
    assert share_not_first(333, [HEAD] * 4) < 0.40
    assert share_not_first(333, [HEAD, *[HEAD - 0.01] * 3]) < 0.20


def test_rule_for_log_loss_and_macro_f1():
    for metric in ("log_loss", "macro_f1"):
        assert share_not_first(333, [HEAD, HEAD + 0.03], num_runs=40, metric=metric) > 0.75
        assert share_not_first(333, [HEAD, HEAD - 0.02], num_runs=40, metric=metric) < 0.15


def test_with_few_samples_log_loss_finds_what_accuracy_is_too_coarse_for(monkeypatch):
    gains, losses = [HEAD, HEAD + 0.04], [HEAD, HEAD - 0.016]
    found, fooled = share_not_first(80, gains), share_not_first(80, losses)
    monkeypatch.setattr("headstart.choice._LOG_LOSS_LEVEL", 0.0)
    # Of the same simulated samples, so the differences are surer than the shares: 0.02 at 120 runs.
    assert found > share_not_first(80, gains) + 0.06
    assert fooled < share_not_first(80, losses) + 0.05
    assert fooled < 0.22


@pytest.mark.parametrize("accuracies", [[0.97, 0.97], [0.97, 0.99]])
def test_sharper_logits_decide_nothing_even_where_every_sample_is_right(accuracies):
    # Of 20 samples, most of these models get every one right, and nothing tells how sure they ought to be.
    shares = {share_not_first(20, accuracies, num_runs=60, sharpness=each) for each in (0.3, 1.0, 4.0)}
    assert len(shares) == 1


def test_cheapest_of_equals_is_chosen_whatever_the_order():
    targets = np.arange(100) % 2
    log = predictions(np.arange(100) < 90, targets)
    choice = choose(
        [Candidate("dear", 9, log), Candidate("cheap", 1, log), Candidate("middle", 5, log)], targets
    )
    assert choice.chosen == choice.best == "cheap"
    assert [each.name for each in choice.candidates] == ["cheap", "middle", "dear"]
    assert not any(each.is_worse for each in choice.candidates)


def test_of_several_that_cost_the_same_the_best_is_chosen():
    targets = np.arange(400) % 2
    index = np.arange(400)
    wrong = {
        320: index >= 320,
        376: index < 24,
        378: (index >= 30) & (index < 52),
        380: (index >= 60) & (index < 80),
    }
    logs = {right: predictions(~each, targets) for right, each in wrong.items()}

    def chosen(*costs: float) -> str:
        candidates = [
            Candidate(str(right), cost, log) for cost, (right, log) in zip(costs, logs.items(), strict=True)
        ]
        choice = choose(candidates, targets)
        assert [each.is_worse for each in choice.candidates] == [True, False, False, False]
        assert choice.best == "380"
        return choice.chosen

    assert chosen(0, 1, 2, 3) == "376"
    assert chosen(0, 1, 1, 2) == "378"
    assert chosen(0, 1, 1, 1) == "380"
    assert chosen(0, 0, 1, 1) == "376"


def test_nothing_cheaper_is_as_good_only_where_something_is_cheaper():
    targets = np.arange(300) % 2
    logs = [predictions(np.arange(300) < right, targets) for right in (270, 271)]
    text = str(choose([Candidate("first", 1, logs[0]), Candidate("second", 1, logs[1])], targets))
    assert "* second: the best by accuracy (300 validation samples" in text


def test_cheap_candidate_that_is_clearly_worse_is_passed_over_for_the_cheapest_that_is_not():
    targets = np.arange(400) % 2
    index = np.arange(400)
    candidates = [
        Candidate("head", 1, predictions(index < 320, targets)),  # 0.80
        Candidate("partial", 2, predictions(index < 379, targets)),  # 0.9475
        Candidate("full", 3, predictions(index < 380, targets)),  # 0.95: one sample more
    ]
    choice = choose(candidates, targets)
    assert [each.is_worse for each in choice.candidates] == [True, False, False]
    assert (choice.best, choice.chosen) == ("full", "partial")


def test_one_sample_more_is_no_reason_for_the_dear_one():
    targets = np.arange(300) % 2
    index = np.arange(300)
    head = predictions(index < 270, targets)
    full = predictions(index < 271, targets)
    choice = choose([Candidate("head", 1, head), Candidate("full", 2, full)], targets)
    assert (choice.best, choice.chosen) == ("full", "head")


def test_better_calibration_alone_does_not_win():
    # The same answers on all samples but one, and twice as sure: a temperature would do that for nothing.
    generator = np.random.default_rng(0)
    (log,), targets = simulated(generator, 400, [0.9])
    flat = log_softmax(log / 5)
    wrong = int(np.flatnonzero(log.argmax(axis=1) != targets)[0])
    better = log.copy()
    better[wrong] = better[wrong, ::-1]
    choice = choose([Candidate("flat", 1, flat), Candidate("sharp", 2, better)], targets)
    assert (choice.best, choice.chosen) == ("sharp", "flat")


def test_choice_is_the_same_for_the_same_seed_and_for_logits():
    logs, targets = simulated(np.random.default_rng(1), 200, [0.8, 0.85])
    candidates = [Candidate(str(index), index, log) for index, log in enumerate(logs)]
    shifted = [Candidate(each.name, each.cost, torch.tensor(each.predictions) + 7) for each in candidates]
    first = choose(candidates, targets).to_dict()
    assert first == choose(candidates, targets).to_dict()
    second = choose(shifted, torch.tensor(targets)).to_dict()
    assert second["chosen"] == first["chosen"]
    assert second["candidates"][0]["log_loss"] == pytest.approx(first["candidates"][0]["log_loss"])


def test_scores_intervals_and_comparison_are_those_of_their_definitions():
    logs, targets = simulated(np.random.default_rng(2), 250, [0.8, 0.9])
    choice = choose([Candidate("head", 1, logs[0]), Candidate("full", 2, logs[1])], targets)
    head, full = choice.candidates
    is_right = [log.argmax(axis=1) == targets for log in logs]
    assert (head.accuracy.low, head.accuracy.high) == wilson_interval(int(is_right[0].sum()), 250)
    matrix = np.zeros((2, 2), dtype=np.int64)
    np.add.at(matrix, (targets, logs[0].argmax(axis=1)), 1)
    assert (head.macro_f1.low, head.macro_f1.high) == macro_f1_interval(matrix)
    losses = -logs[0][np.arange(250), targets]
    assert head.log_loss.value == pytest.approx(losses.mean())
    # Of 250 values, the bootstrap's interval and the normal one differ by a few hundredths of their width.
    half = 1.96 * losses.std() / np.sqrt(250)
    assert head.log_loss.low == pytest.approx(losses.mean() - half, abs=0.15 * half)
    assert head.log_loss.high == pytest.approx(losses.mean() + half, abs=0.15 * half)
    assert head.comparison.difference.value == pytest.approx(is_right[0].mean() - is_right[1].mean())
    assert head.comparison.p_value == paired_test(is_right[0], is_right[1])
    assert (full.comparison.difference.value, full.comparison.p_value) == (0, 1)


def test_table_and_plain_values():
    logs, targets = simulated(np.random.default_rng(3), 300, [0.7, 0.9])
    choice = choose([Candidate("head", 1, logs[0]), Candidate("fine-tuned", 2, logs[1])], targets)
    lines = str(choice).splitlines()
    assert lines[0].split() == "candidate accuracy macro-F1 log loss accuracy to best p".split()
    assert "head" in lines[1] and lines[2].startswith("*  fine-tuned")
    assert lines[3] == (
        "* fine-tuned: the best by accuracy, and nothing cheaper is as good (300 validation samples, 95 % intervals)."
    )
    plain = json.loads(json.dumps(choice.to_dict()))
    assert plain["chosen"] == plain["best"] == "fine-tuned"
    assert [each["is_worse"] for each in plain["candidates"]] == [True, False]


def test_table_says_why_the_best_was_not_taken():
    targets = np.arange(300) % 2
    logs = [predictions(np.arange(300) < right, targets) for right in (270, 271)]
    text = str(choose([Candidate("head", 1, logs[0]), Candidate("full", 2, logs[1])], targets))
    assert "* head: the cheapest that is not shown to be worse than full, the best by accuracy" in text


@pytest.mark.parametrize(
    ("candidates", "settings", "message"),
    [
        ([], {}, "Received no candidate"),
        ([("a", 1, 2), ("a", 2, 2)], {}, "Two candidates are called 'a'"),
        ([("a", float("nan"), 2)], {}, "cost of 'a' is NaN"),
        ([("a", 1, 2), ("b", 1, 3)], {}, r"different numbers of classes: \{'a': 2, 'b': 3\}"),
        ([("a", 1, 1)], {}, "Candidate 'a': The targets are 0 to 1; expected class indices 0 to 0"),
        ([("a", 1, 2)], {"metric": "f1"}, "metric is 'f1'; expected one of accuracy, log_loss, macro_f1"),
        ([("a", 1, 2)], {"confidence": 95}, "confidence is 95; expected a number between 0 and 1"),
    ],
)
def test_messages(candidates, settings, message):
    made = [Candidate(name, cost, np.zeros((2, width))) for name, cost, width in candidates]
    with pytest.raises(MisconfigurationError, match=message):
        choose(made, [0, 1], **settings)


# ---- the tests that it is made of


@pytest.mark.parametrize(("for_first", "for_second"), [(0, 0), (1, 0), (5, 5), (3, 12), (40, 22), (700, 640)])
def test_mcnemar_equals_the_binomial_test(for_first, for_second):
    stats = pytest.importorskip("scipy.stats")
    first = np.repeat([True, False, True, False], [for_first, for_second, 20, 10])
    second = np.repeat([False, True, True, False], [for_first, for_second, 20, 10])
    total = for_first + for_second
    expected = stats.binomtest(for_first, total).pvalue if total else 1.0
    assert paired_test(first, second) == pytest.approx(expected, rel=1e-9)


def test_bootstrap_of_pairs_agrees_with_the_paired_t_test():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    first = generator.standard_normal(400)
    second = first + 0.4 * generator.standard_normal(400) - 0.03
    found = paired_bootstrap(first, second, num_resamples=5000)
    expected = stats.ttest_rel(first, second)
    interval = expected.confidence_interval()
    assert found.difference.value == pytest.approx((first - second).mean())
    # 5000 resamples: a p value near 0.2 is known to 0.006, a quantile to 0.04 of a standard error, here 0.02.
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.02)
    assert found.difference.low == pytest.approx(interval.low, abs=0.003)
    assert found.difference.high == pytest.approx(interval.high, abs=0.003)
    assert found == paired_bootstrap(first, second, num_resamples=5000)


def test_bootstrap_of_equal_values_finds_no_difference():
    found = paired_bootstrap([1.0, 2.0], [1.0, 2.0])
    assert (found.difference.value, found.difference.low, found.difference.high, found.p_value) == (
        0,
        0,
        0,
        1,
    )


def test_pairs_must_be_pairs():
    for test in (paired_test, paired_bootstrap):
        with pytest.raises(MisconfigurationError, match=r"shapes \(2,\) and \(3,\)"):
            test([1, 0], [1, 0, 1])
        with pytest.raises(MisconfigurationError, match="expected one for each sample"):
            test([], [])


# ---- optimism


def optimism_and_its_estimate(accuracies, *, num_runs=60):
    generator = np.random.default_rng(0)
    true, estimated = [], []
    for _ in range(num_runs):
        logs, targets = simulated(generator, 300, accuracies)
        observed = [(log.argmax(axis=1) == targets).mean() for log in logs]
        best = int(np.argmax(observed))
        true.append(observed[best] - accuracies[best])
        candidates = [Candidate(str(index), index, log) for index, log in enumerate(logs)]
        estimated.append(expected_optimism(candidates, targets, num_resamples=200))
    return np.array(true), np.array(estimated)


def test_optimism_is_what_choosing_among_equals_gains():
    true, estimated = optimism_and_its_estimate([0.85] * 5, num_runs=200)
    error = true.std() / np.sqrt(len(true))
    assert true.mean() > 3 * error  # there is something to estimate
    assert estimated.mean() == pytest.approx(true.mean(), abs=3 * error)


def test_optimism_is_small_where_one_candidate_is_far_ahead():
    _, estimated = optimism_and_its_estimate([0.7, 0.7, 0.95], num_runs=10)
    assert estimated.max() < 0.002


@pytest.mark.parametrize("metric", ["accuracy", "log_loss", "macro_f1"])
def test_optimism_works_by_every_metric_and_is_the_same_for_the_same_seed(metric):
    logs, targets = simulated(np.random.default_rng(0), 100, [0.8] * 3)
    candidates = [Candidate(str(index), index, log) for index, log in enumerate(logs)]
    found = expected_optimism(candidates, targets, metric=metric)
    assert 0 < found < 0.1
    assert found == expected_optimism(candidates, targets, metric=metric)


def test_optimism_of_a_single_sample_is_0():
    assert expected_optimism([Candidate(name, 0, [[0.0, 1.0]]) for name in "ab"], [1]) == 0


# ---- hopeless runs


def hopeless(history, reference=0.80, *, patience=3, mode="max", min_checks=4):
    return is_hopeless(history, reference, patience=patience, mode=mode, min_checks=min_checks)


def first_stop(curve, **settings):
    """The number of checks after which the run is stopped, `None` if it never is."""
    return next((end for end in range(1, len(curve) + 1) if hopeless(curve[:end], **settings)), None)


def test_decline_and_plateau_below_the_reference_are_hopeless():
    assert first_stop([0.70, 0.65, 0.60, 0.55, 0.50]) == 4
    assert first_stop([0.70, 0.70, 0.70, 0.70, 0.70]) == 4
    assert first_stop([0.60, 0.70, 0.71, 0.70, 0.71, 0.70, 0.71, 0.70], patience=4) is not None


def test_rise_that_would_take_far_too_long_is_hopeless():
    assert first_stop([0.50 + 0.001 * check for check in range(10)]) is not None


def test_rise_that_arrives_is_left_to_go_on():
    assert first_stop([0.50 + 0.04 * check for check in range(12)]) is None
    saturating = [0.82 - 0.5 * 0.7**check for check in range(25)]
    assert first_stop(saturating) is None


def test_dip_and_recovery_are_left_to_go_on():
    assert first_stop([0.78, 0.70, 0.60, 0.66, 0.71, 0.75, 0.78, 0.81, 0.83]) is None
    assert first_stop([0.79, 0.55, 0.56, 0.60, 0.65, 0.70, 0.74, 0.77, 0.79, 0.80], min_checks=5) is None
    long_dip = [0.78, 0.7, 0.6, 0.5, 0.45, 0.47, 0.52, 0.58, 0.65, 0.72, 0.78, 0.82]
    assert first_stop(long_dip, patience=5, min_checks=6) is None


def test_noisy_rise_is_left_to_go_on():
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.005, 15)
        curve = (0.82 - 0.3 * 0.75 ** np.arange(15) + noise).tolist()
        assert first_stop(curve, patience=4, min_checks=5) is None, seed


def test_noisy_plateau_far_below_is_stopped():
    for seed in range(20):
        curve = (0.6 + np.random.default_rng(seed).normal(0, 0.005, 15)).tolist()
        assert first_stop(curve, patience=4, min_checks=5) is not None, seed


def test_run_that_has_reached_the_reference_is_never_hopeless():
    assert first_stop([0.70, 0.80, 0.60, 0.50, 0.40, 0.30]) is None


def test_nothing_is_hopeless_before_enough_checks():
    curve = [0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert first_stop(curve, min_checks=6) == 6
    assert first_stop(curve, min_checks=0, patience=4) == 5
    assert not hopeless([])


def test_losses_are_judged_the_other_way_round():
    assert hopeless([0.9, 1.0, 1.1, 1.2], 0.5, mode="min")
    assert not hopeless([0.9, 0.8, 0.7, 0.6], 0.5, mode="min")


@pytest.mark.parametrize("mode", ["min", "max"])
def test_diverged_run_is_hopeless(mode):
    nan, start = float("nan"), 0.9 if mode == "min" else 0.1
    assert hopeless([start, nan, nan, nan], 0.5, mode=mode)
    assert hopeless([nan, nan, nan, nan], 0.5, mode=mode)


def test_hopeless_refuses_settings_that_make_no_trend():
    with pytest.raises(MisconfigurationError, match="patience is 1; expected 2 or more"):
        hopeless([0.1], patience=1)
    with pytest.raises(MisconfigurationError, match="mode is 'best'; expected 'min' or 'max'"):
        hopeless([0.1], mode="best")
