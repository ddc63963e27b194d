"""Temperature and calibration error against definitions and an independent optimizer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from headstart.calibration import Calibration, calibrate, expected_calibration_error, fit_temperature
from headstart.errors import MisconfigurationError


def sampled(num_samples, *, scale=1.0, seed=0):
    """Logits (N, 4), `scale` times as sure as the targets that are drawn from them allow."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_samples, 4, generator=generator)
    targets = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    return scale * logits, targets


def nll(logits, targets, temperature):
    return float(torch.nn.functional.cross_entropy(logits.double() / temperature, targets))


@pytest.mark.parametrize("scale", [0.05, 0.5, 1.0, 3.0, 20.0])
def test_temperature_equals_that_of_an_independent_optimizer(scale):
    optimize = pytest.importorskip("scipy.optimize")
    logits, targets = sampled(400, scale=scale)
    found = optimize.minimize_scalar(
        lambda log_t: nll(logits, targets, math.exp(log_t)),
        bounds=(-5, 5),
        method="bounded",
        options={"xatol": 1e-10},
    )
    # Near a minimum of a double-precision function its place is known to about the root of 1e-16.
    assert fit_temperature(logits, targets) == pytest.approx(math.exp(found.x), rel=1e-5)


def test_temperature_undoes_the_scale_of_the_logits():
    logits, targets = sampled(300)
    base = fit_temperature(logits, targets)
    assert fit_temperature(5 * logits.double(), targets) == pytest.approx(5 * base, rel=1e-9)


def test_log_probabilities_have_the_temperature_of_their_logits():
    logits, targets = sampled(300, scale=3)
    logits = logits.double()
    log_probabilities = torch.log_softmax(logits, dim=1)
    assert fit_temperature(log_probabilities, targets) == pytest.approx(fit_temperature(logits, targets))


@pytest.mark.parametrize("seed", range(10))
def test_temperature_never_makes_the_fitting_split_less_likely(seed):
    logits, targets = sampled(12, scale=[0.2, 1.0, 8.0][seed % 3], seed=seed)
    assert nll(logits, targets, fit_temperature(logits, targets)) <= nll(logits, targets, 1.0)


def test_samples_that_are_all_right_leave_the_temperature_at_1():
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 0.5]])
    assert fit_temperature(logits, torch.tensor([0, 1, 0])) == 1.0


@pytest.mark.parametrize("num_samples", [4, 30])
def test_with_doubt_even_samples_that_are_all_right_tell_a_temperature(num_samples):
    # All margins are 2, so the optimum gives the share that counts as right: Platt's (N + 1) / (N + 2).
    logits = torch.tensor([[2.0, 0.0]]).repeat(num_samples, 1)
    found = fit_temperature(logits, torch.zeros(num_samples, dtype=torch.int64), doubt=1 / (num_samples + 2))
    assert torch.sigmoid(torch.tensor(2 / found)) == pytest.approx((num_samples + 1) / (num_samples + 2))


def test_with_doubt_the_temperature_is_that_of_an_independent_optimizer_and_follows_the_scale():
    optimize = pytest.importorskip("scipy.optimize")
    logits, targets = sampled(40)
    logits = logits.double()
    others = logits.scatter(1, targets[:, None], -math.inf).argmax(dim=1)

    def expected(log_t):
        return 0.9 * nll(logits, targets, math.exp(log_t)) + 0.1 * nll(logits, others, math.exp(log_t))

    found = optimize.minimize_scalar(expected, bounds=(-5, 5), method="bounded", options={"xatol": 1e-10})
    temperature = fit_temperature(logits, targets, doubt=0.1)
    assert temperature == pytest.approx(math.exp(found.x), rel=1e-5)
    assert fit_temperature(7 * logits, targets, doubt=0.1) == pytest.approx(7 * temperature, rel=1e-9)


def test_doubt_is_nothing_where_there_is_one_class_or_nothing_is_said():
    assert fit_temperature(torch.zeros(3, 1), [0, 0, 0], doubt=0.2) == 1.0
    assert fit_temperature(torch.zeros(4, 3), [0, 1, 2, 0], doubt=0.2) == 1.0


def test_temperature_is_bounded_where_every_sample_is_wrong():
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert fit_temperature(logits, torch.tensor([1, 0])) == pytest.approx(100)


def test_temperature_of_logits_that_say_nothing_is_1():
    assert fit_temperature(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])) == 1.0


def test_huge_logits_do_not_overflow():
    logits = torch.tensor([[1e4, 0.0], [1e4, 0.0], [0.0, 1e4]])
    assert fit_temperature(logits, torch.tensor([0, 1, 1])) == pytest.approx(100)


def test_temperature_takes_half_precision_with_a_gradient():
    logits, targets = sampled(200)
    half = logits.bfloat16().requires_grad_()
    assert fit_temperature(half, targets) == fit_temperature(half.detach().double().numpy(), targets.numpy())


def test_calibration_error_by_hand():
    # Two bins of two: confidences 0.6 and 0.7, one of them right; 0.8 and 0.9, both right.
    probabilities = [[0.6, 0.4], [0.3, 0.7], [0.8, 0.2], [0.1, 0.9]]
    expected = (2 / 4) * abs(0.5 - 0.65) + (2 / 4) * abs(1.0 - 0.85)
    assert expected_calibration_error(probabilities, [0, 0, 0, 1], num_bins=2) == pytest.approx(expected)


def test_calibration_error_of_one_bin_is_the_gap_of_the_means():
    logits, targets = sampled(200, scale=2)
    probabilities = logits.softmax(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    gap = abs(float(confidence.double().mean()) - float((predicted == targets).double().mean()))
    assert expected_calibration_error(probabilities, targets, num_bins=1) == pytest.approx(gap, abs=1e-9)


def test_calibration_error_does_not_depend_on_the_order_of_the_samples():
    probabilities = np.repeat([[0.9, 0.1], [0.6, 0.4]], 30, axis=0)  # ties all over
    targets = np.arange(60) % 4 == 0
    order = np.random.default_rng(0).permutation(60)
    assert expected_calibration_error(probabilities, targets) == pytest.approx(
        expected_calibration_error(probabilities[order], targets[order]), abs=1e-12
    )


def test_calibration_error_with_fewer_samples_than_bins():
    assert expected_calibration_error([[0.7, 0.3]], [0], num_bins=15) == pytest.approx(0.3)


def test_report_of_a_classifier_that_is_too_sure():
    logits, targets = sampled(1000, scale=3)
    report = calibrate(logits, targets)
    assert (
        report.temperature == fit_temperature(logits, targets, doubt=1 / 1002) == pytest.approx(3, rel=0.15)
    )
    assert report.ece_before > 0.1 > 0.06 > report.ece_after
    assert report.nll_before == pytest.approx(nll(logits, targets, 1.0))
    assert report.nll_after < report.nll_before
    assert report == calibrate(logits, targets)  # the folds are always the same
    assert Calibration(**report.to_dict()) == report


def test_after_is_judged_on_samples_that_took_no_part_in_the_fit():
    logits, targets = sampled(60, scale=2)
    report = calibrate(logits, targets, num_folds=2)
    # Every other sample of each class, in the order of the classes.
    order = np.argsort(targets.numpy(), kind="stable")
    folds = [torch.as_tensor(order[0::2].copy()), torch.as_tensor(order[1::2].copy())]
    total = sum(
        len(inside)
        * nll(
            logits[inside],
            targets[inside],
            fit_temperature(logits[outside], targets[outside], doubt=1 / (len(outside) + 2)),
        )
        for inside, outside in [folds, folds[::-1]]
    )
    assert report.nll_after == pytest.approx(total / 60)
    assert report.nll_after > nll(logits, targets, report.temperature)


def test_a_temperature_that_does_not_hold_up_is_not_taken():
    """12 samples of logits that are right as they are: what they say of the temperature is noise."""
    held_out, held_out_targets = sampled(4000, scale=1)
    added, num_kept = [], 0
    for seed in range(40):
        torch.manual_seed(seed)
        chosen = torch.randperm(4000)[:12]
        report = calibrate(held_out[chosen], held_out_targets[chosen])
        if report.temperature == 1:
            num_kept += 1
            assert (report.ece_after, report.nll_after) == (report.ece_before, report.nll_before)
        else:
            assert report.nll_after < report.nll_before
        added.append(
            nll(held_out, held_out_targets, report.temperature) - nll(held_out, held_out_targets, 1.0)
        )
    assert num_kept >= 20
    assert max(added) < 0.5  # without the two precautions, 1.1
    assert np.mean(added) < 0.05


def test_one_sample_says_nothing_of_the_temperature():
    report = calibrate([[3.0, 0.0]], [1])
    assert report.temperature == 1
    assert (
        report.nll_after
        == report.nll_before
        == pytest.approx(nll(torch.tensor([[3.0, 0.0]]), torch.tensor([1]), 1.0))
    )


def test_report_of_fewer_samples_than_folds():
    report = calibrate([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]], [0, 1, 1])
    assert report.num_samples == 3
    assert math.isfinite(report.ece_after) and math.isfinite(report.nll_after)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_temperature(torch.zeros(3), [0]), r"shape \(3,\).*expected \(N, C\) and \(N,\)"),
        (lambda: fit_temperature(torch.zeros(3, 2), [0]), r"shape \(3, 2\) and targets of shape \(1,\)"),
        (lambda: fit_temperature(torch.zeros(0, 2), []), "N of 1 or more"),
        (lambda: fit_temperature([[0.0, -math.inf]], [0]), r"not finite numbers.*torch.log_softmax"),
        (lambda: fit_temperature([[0.0, 1.0]], [2]), "2 to 2; expected class indices 0 to 1"),
        (lambda: fit_temperature([[0.0, 1.0]], [0.5]), "expected class indices"),
        (lambda: fit_temperature([[0.0, 1.0]], [1], doubt=0.5), "doubt is 0.5; expected 0 or more and less"),
        (lambda: expected_calibration_error([[2.0, 1.0]], [0]), r"Received logits\? Pass torch.softmax"),
        (lambda: expected_calibration_error([[1.0, 0.0]], [0], num_bins=0), "num_bins is 0"),
        (lambda: calibrate([[1.0, 0.0]] * 4, [0] * 4, num_folds=6), "num_folds is 6; expected 2 to 5"),
    ],
)
def test_messages(call, message):
    with pytest.raises(MisconfigurationError, match=message):
        call()
