"""Fits at one strength after the other, beside fits from nothing."""

import pytest
import torch

from headstart.errors import MisconfigurationError
from headstart.probe import fit_probe
from headstart.probe.anywhere import ProbeAnywhere


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(80, 12, generator=generator) * torch.arange(1, 13)
    targets = (features[:, 0] + torch.randn(80, generator=generator) > 0).long() + (features[:, 1] > 2).long()
    return features, targets


def probabilities(probe, features):
    return probe.linear()(features).softmax(dim=1).detach()


@pytest.mark.parametrize("strength", [1e-6, 1e-4, 0.03, 1.0, 7.0])
def test_a_fit_is_that_of_fit_probe_at_its_strength(problem, strength):
    features, targets = problem
    weights = torch.tensor([1.0, 0.5, 2.0])
    found = ProbeAnywhere(features, targets, num_classes=3, class_weights=weights).fit(strength)
    expected = fit_probe(features, targets, num_classes=3, class_weights=weights, strengths=[strength])
    # The objective is known to a millionth; probabilities to its root, about.
    assert found.strength == strength
    assert torch.allclose(probabilities(found, features), probabilities(expected, features), atol=1e-2)


def test_what_was_fitted_before_changes_nothing(problem):
    features, targets = problem
    alone = ProbeAnywhere(features, targets, num_classes=3).fit(0.5)
    last = ProbeAnywhere(features, targets, num_classes=3)
    for strength in (5.0, 0.01, 0.4):
        last.fit(strength)
    assert torch.equal(last.fit(0.5).weight, alone.weight)


def test_what_cannot_be_fitted_is_refused(problem):
    features, targets = problem
    with pytest.raises(MisconfigurationError, match="0 of class 3; expected 1 or more of every class"):
        ProbeAnywhere(features, targets, num_classes=4)
    with pytest.raises(MisconfigurationError, match="strengths"):
        ProbeAnywhere(features, targets, num_classes=3).fit(0.0)
