"""What the fits refuse, and what they say."""

import pytest
import torch

from headstart.errors import MisconfigurationError
from headstart.probe import fit_probe, fit_ridge
from tests.probe.problems import new_data

FEATURES, TARGETS = new_data(20, 3, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": FEATURES[0]}, r"features: received a float32 tensor \(3,\); expected .* \(N, D\)"),
        ({"features": FEATURES.long()}, r"features: received a int64 tensor"),
        ({"features": FEATURES.index_fill(0, torch.tensor([4]), float("nan"))}, "1 of 20 rows .* row 4"),
        (
            {"features": FEATURES.numpy()},
            r"features: received a ndarray; expected a tensor: torch.as_tensor\(features\)",
        ),
        ({"targets": TARGETS.tolist()}, "targets: received a list; expected a tensor"),
        ({"sample_weights": [1.0] * 20}, "sample_weights: received a list; expected a tensor"),
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
    ("changes", "message"),
    [
        ({"targets": [1.0] * 20}, "targets: received a list; expected a tensor"),
        ({"targets": TARGETS}, "expected floating-point values .* For classes use fit_probe"),
        ({"targets": torch.full((20,), torch.nan)}, "targets: 20 of 20 rows"),
        ({"sample_weights": torch.zeros(20)}, "Received 0 sample of weight above 0"),
    ],
)
def test_what_ridge_cannot_fit_is_refused_with_a_reason(changes, message):
    arguments = {"targets": FEATURES[:, 0], **changes}
    with pytest.raises(MisconfigurationError, match=message):
        fit_ridge(FEATURES, arguments.pop("targets"), **arguments)
