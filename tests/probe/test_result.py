"""What a probe says of the samples that it was fitted to."""

import pytest
import torch

from headstart.errors import MisconfigurationError
from headstart.probe import fit_probe, fit_probe_in_batches
from tests.probe.problems import new_data

FEATURES, TARGETS = new_data(60, 5, 3)


def test_who_is_right_out_of_fold_adds_up_to_the_accuracy():
    probe = fit_probe(FEATURES, TARGETS)
    is_right = probe.is_right_out_of_fold(TARGETS)
    assert (is_right.shape, is_right.dtype) == ((60,), torch.bool)
    assert float(is_right.double().mean()) == pytest.approx(probe.accuracy.value)
    others = probe.is_right_out_of_fold((TARGETS + 1) % 3)
    assert not (is_right & others).any()


def test_without_folds_nobody_knows_who_is_right_out_of_fold():
    probe = fit_probe_in_batches(
        lambda: [(FEATURES, TARGETS)], num_features=5, num_classes=3, strengths=[1.0]
    )
    with pytest.raises(MisconfigurationError, match="without folds.* Fit it with fit_probe"):
        probe.is_right_out_of_fold(TARGETS)


def test_targets_of_other_samples_are_refused():
    with pytest.raises(MisconfigurationError, match=r"received a int64 tensor \(5,\); expected \(60,\)"):
        fit_probe(FEATURES, TARGETS, strengths=[1.0]).is_right_out_of_fold(TARGETS[:5])
