"""Logistic regression on features of which only a batch is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headstart.deferred import Reuse, real_values
from headstart.errors import MisconfigurationError
from headstart.probe.checks import check_counts, check_features, check_strengths, check_targets
from headstart.probe.logistic import STRENGTHS
from headstart.probe.objective import Value, fold_back, starting_weights
from headstart.probe.result import PathRow, Probe
from headstart.probe.scaling import deviation_of, with_ones
from headstart.probe.solver import Basis, Memory, minimise

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@torch.no_grad()
def fit_probe_in_batches(
    batches: Batches,
    *,
    num_features: int,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    validation: Batches | None = None,
    standardize: bool = True,
    tolerance: float = 1e-10,
) -> Probe:
    """Fit what `fit_probe` fits to features of which only a batch is in memory at a time.

    All strengths are fitted in the same passes over the batches: one pass for mean and deviation, one for their
    covariance (D, D), then one or more per step of L-BFGS: some tens where the penalty is strong, and up to thousands
    at the largest strengths, which are best left out. Beside a batch, memory holds the
    covariance and about 50 times the weights of all strengths.

    Args:
        batches: Gives the batches anew whenever it is called, always the same samples: features (B, D), targets (B,);
            `stored_features` makes them of a frozen network and a loader.
        num_features: D.
        num_classes: C; each needs a sample.
        strengths: Values of `C` as in `fit_probe`.
        validation: Batches of other samples, by whose log loss the strength is chosen. None needs a single strength.
        standardize: As in `fit_probe`.
        tolerance: As in `fit_probe`.

    Returns:
        The fit at the chosen strength; `accuracy` and `path` are those of the validation samples.

    Raises:
        MisconfigurationError: If batches and settings do not fit each other, or the batches change between passes.

    Example:
        >>> batch = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1])
        >>> probe = fit_probe_in_batches(lambda: [batch], num_features=1, num_classes=2, strengths=[1.0])
        >>> probe.linear()(batch[0]).argmax(dim=1).tolist()
        [0, 0, 1, 1]
    """
    path = check_strengths(strengths)
    if validation is None and len(path) > 1:
        raise MisconfigurationError(
            f"Received {len(path)} strengths and no validation batches; expected validation batches to choose by, or a "
            "single strength. Pass validation=, or strengths=[1.0]."
        )
    stream = _Stream(batches, num_features=num_features, num_classes=num_classes)
    stream.measure(standardize=standardize)
    weights = minimise(
        stream.evaluate,
        starting_weights(stream.totals.expand(len(path), num_classes), num_features + 1),
        strengths=torch.tensor(path, dtype=torch.float64),
        basis=stream.basis(),
        tolerance=tolerance,
        memory=Memory(),
    )
    fits = [fold_back(each, stream.mean, stream.deviation) for each in weights]
    if validation is None:
        return Probe(*fits[0], strength=path[0])
    rows = _score_in_batches(
        _Stream(validation, num_features=num_features, num_classes=num_classes), fits, path
    )
    best = min(range(len(path)), key=lambda index: rows[index].log_loss)
    return Probe(*fits[best], strength=path[best], path=tuple(rows), accuracy=rows[best].accuracy)


def stored_features(network: nn.Module, loader: Any, *, reuse: Reuse) -> Batches:
    """Give what a frozen network makes of a loader's samples, batch by batch from the store: computed in the first pass alone.

    Args:
        network: Frozen and in evaluation mode; gives features (B, D).
        loader: A torch `DataLoader` without shuffling, of batches `(inputs, targets)`.
        reuse: Where the features are stored, in memory or on disk.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from headstart.deferred import Reuse
        >>> network = torch.nn.Flatten().eval()
        >>> loader = DataLoader([(torch.ones(2, 2), index % 2) for index in range(4)], batch_size=2)
        >>> batches = stored_features(network, loader, reuse=Reuse(network, say=lambda line: None))
        >>> [features.shape for features, targets in batches()]
        [torch.Size([2, 4]), torch.Size([2, 4])]
    """

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        with torch.no_grad():
            for inputs, targets in reuse.batches(loader):
                yield real_values((network(inputs), targets))

    return batches


class _Stream:
    """Passes over batches, each checked; and what the first passes say of the features."""

    def __init__(self, batches: Batches, *, num_features: int, num_classes: int) -> None:
        if num_features < 1 or num_classes < 2:
            raise MisconfigurationError(
                f"Received num_features={num_features} and num_classes={num_classes}; expected 1 or more features and "
                "2 or more classes."
            )
        if not callable(batches):
            raise MisconfigurationError(
                f"Received batches of type {type(batches).__name__}; expected a function that gives all batches anew at every "
                "call: stored_features(network, loader, reuse=...), or lambda: batches for a list of them."
            )
        self.batches = batches
        self.num_classes = num_classes
        self.totals = torch.zeros(num_classes, dtype=torch.float64)
        self.mean = torch.zeros(num_features, dtype=torch.float64)
        self.deviation = torch.ones(num_features, dtype=torch.float64)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for features, targets in self.batches():
            check_features(features)
            if features.shape[1] != len(self.mean):
                raise MisconfigurationError(
                    f"A batch has {features.shape[1]} features; expected num_features={len(self.mean)}."
                )
            check_targets(targets, len(features), self.num_classes)
            yield features.double(), targets.long()

    def measure(self, *, standardize: bool) -> None:
        """Count the classes, and take mean and deviation: merged batch by batch, exact for a mean far from 0."""
        squares, num_seen = torch.zeros_like(self.mean), 0
        for features, targets in self:
            self.totals += torch.bincount(targets, minlength=self.num_classes)
            count = len(features)
            mean = features.mean(dim=0)
            shift = mean - self.mean
            num_seen += count
            squares += (features - mean).square().sum(dim=0) + shift.square() * (
                count * (num_seen - count) / num_seen
            )
            self.mean += shift * (count / num_seen)
        if num_seen == 0:
            raise MisconfigurationError(
                "The batches hold no sample. Pass a function that gives all batches anew at every call, not one that "
                "gives an iterator already used up."
            )
        check_counts(self.totals.long(), at_least=1)
        if standardize:
            self.deviation = deviation_of(squares / num_seen, self.mean)

    def basis(self) -> Basis:
        """Give the basis of the standardised features, from their covariance."""
        covariance = torch.zeros(len(self.mean), len(self.mean), dtype=torch.float64)
        for features, _ in self:
            scaled = (features - self.mean) / self.deviation
            covariance.addmm_(scaled.T, scaled)
        return Basis.of_covariance(covariance / self.totals.sum())

    def evaluate(self, _: Tensor, weights: Tensor) -> Value:
        """Give loss, gradient and curvature of some of the strengths, in one pass."""
        value, num_seen = Value.zero(weights), 0
        for features, targets in self:
            scaled = with_ones((features - self.mean) / self.deviation)
            ones = torch.ones(len(weights), len(targets), dtype=torch.float64)
            value.add(scaled, targets, ones, weights)
            num_seen += len(targets)
        if num_seen != int(self.totals.sum()):
            raise MisconfigurationError(
                f"A pass over the batches gave {num_seen} samples, the first one {int(self.totals.sum())}. Pass a "
                "function that gives the same samples at every call (a loader with drop_last=False)."
            )
        return value


def _score_in_batches(
    stream: _Stream, fits: Sequence[tuple[Tensor, Tensor]], path: Sequence[float]
) -> list[PathRow]:
    """Score every fit on all batches, in one pass."""
    weight, bias = torch.stack([each for each, _ in fits]), torch.stack([each for _, each in fits])
    losses, correct = torch.zeros(len(path), dtype=torch.float64), torch.zeros(len(path), dtype=torch.int64)
    num_seen = 0
    for features, targets in stream:
        log_probabilities = (features @ weight.mT + bias[:, None]).log_softmax(dim=2)  # (P, B, C)
        losses -= log_probabilities[:, torch.arange(len(targets)), targets].sum(dim=1)
        correct += (log_probabilities.argmax(dim=2) == targets).sum(dim=1)
        num_seen += len(targets)
    if num_seen == 0:
        raise MisconfigurationError("The validation batches hold no sample: there is nothing to choose by.")
    return [
        PathRow.of(strength, correct=int(hits), total=num_seen, log_loss=float(loss) / num_seen)
        for strength, hits, loss in zip(path, correct, losses, strict=True)
    ]
