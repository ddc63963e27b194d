"""Labels in doubt: those that were swapped on purpose are found, in doubt's order; classes of other sureness do not flood the list."""

import pytest
import torch

from headstart.errors import MisconfigurationError
from headstart.probe import fit_probe
from headstart.report.label_errors import suspected_label_errors


def test_swapped_labels_of_digits_are_found():
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    features, true = torch.tensor(digits.data[:600]).float(), torch.tensor(digits.target[:600])
    generator = torch.Generator().manual_seed(0)
    swapped = torch.randperm(600, generator=generator)[:18]
    labels = true.clone()
    labels[swapped] = (labels[swapped] + 1 + torch.arange(18) % 8) % 10
    probe = fit_probe(features, labels)
    found = [each.index for each in suspected_label_errors(probe.out_of_fold, labels)]
    wrong = set(swapped.tolist())
    assert len(wrong & set(found[:18])) >= 14  # nearly all that is on top is wrong indeed
    assert len(wrong & set(found)) >= 14
    assert len(found) < 60


def test_a_threshold_is_the_mean_of_its_own_class():
    # Class 0 is told with 0.9, class 1 with 0.6 only: 0.55 for class 1 is not as sure as usual, 0.7 is.
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.45, 0.55], [0.3, 0.7], [0.4, 0.6], [0.4, 0.6]])
    found = suspected_label_errors(probabilities, torch.tensor([0, 0, 0, 0, 1, 1]))
    assert [(each.index, each.given, each.suggested) for each in found] == [(3, 0, 1)]
    assert found[0].suggested_probability == pytest.approx(0.7)


def test_a_class_without_samples_is_never_suggested():
    assert (
        suspected_label_errors(torch.tensor([[0.2, 0.1, 0.7], [0.1, 0.2, 0.7]]), torch.tensor([0, 1])) == []
    )


def test_other_shapes_are_refused():
    with pytest.raises(MisconfigurationError, match=r"probabilities \(2, 2\) and targets \(3,\); expected"):
        suspected_label_errors(torch.ones(2, 2) / 2, torch.tensor([0, 1, 0]))
