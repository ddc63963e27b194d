"""The fit in batches: the optimum of the fit in memory, and batches that are not what they were said to be."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from headstart.backbones import load_backbone
from headstart.deferred import Reuse
from headstart.errors import MisconfigurationError
from headstart.probe import fit_probe, fit_probe_in_batches, stored_features
from tests.probe.problems import OBJECTIVE, new_data, objective, standardized

FEATURES, TARGETS = new_data(20, 3, 2)


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


@pytest.mark.parametrize(
    ("batches", "changes", "message"),
    [
        ([(FEATURES, TARGETS)], {}, "batches of type list; expected a function that gives all batches anew"),
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


def test_features_come_from_the_store_and_each_sample_goes_through_the_network_once():
    """More samples than fit in memory: the frozen network's work lies in a file, and every pass reads it there."""
    torch.manual_seed(0)
    images, targets = torch.randn(48, 3, 32, 32), torch.arange(48) % 2
    images[targets == 1] += 0.5
    backbone = load_backbone("efficientnet_lite0").eval().requires_grad_(False)
    loader = DataLoader(TensorDataset(images, targets), batch_size=8)
    reuse = Reuse(backbone, setting="exact", memory_limit=0, min_gain=0, say=lambda line: None)
    batches = stored_features(backbone, loader, reuse=reuse)
    probe = fit_probe_in_batches(batches, num_features=backbone.width, num_classes=2, strengths=[0.1])
    assert reuse.report().num_computed == 48
    assert reuse.report().num_looked_up > 5 * 48
    with torch.no_grad():
        features = torch.cat([backbone(batch) for batch, _ in loader])
    ones = torch.ones(48, dtype=torch.float64)
    scaled, scale, mean = standardized(features)
    in_memory, in_batches = (
        objective(each.weight * scale, each.bias + each.weight @ mean, scaled, targets, 0.1, ones)
        for each in (fit_probe(features, targets, strengths=[0.1]), probe)
    )
    assert in_batches == pytest.approx(in_memory, rel=OBJECTIVE)
