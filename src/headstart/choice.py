"""Which of several trained models to keep, judged on the same validation samples, with the doubt stated.

The rule: find the best candidate by the metric, then keep the *cheapest* one that is not shown to be worse than it; of
several that cost the same, the best by the metric. A cheaper candidate counts as worse if one of two one-sided paired tests says so:

1. by the metric itself, at the level 0.25;
2. by log loss, at the level 0.10, each candidate's probabilities calibrated first, so that to be surer is no merit. Log
   loss sees the samples that nearly went the other way, and so an improvement that accuracy is too coarse for: with 80
   samples an improvement of 4 points is taken in 0.77 of all runs instead of 0.64, and a loss of 1.6 points in 0.12
   instead of 0.11 (1500 runs).

Why so generous: the two errors cost alike. To keep the head where fine-tuning truly helps loses as much accuracy as to
take fine-tuning where it truly hurts; the usual 0.05, by accuracy alone, guards against the second only: with 333 samples
it keeps the head in half of the cases in which fine-tuning is truly 3 points better. How often fine-tuning is taken, in a
simulation (400 and 150 runs; a head of accuracy 0.88, about one sample in ten right by one of the two only;
`tests/test_choice.py` repeats it with fewer runs):

| fine-tuning truly is | 333 samples: best always | this rule | 1500 samples: best always | this rule |
| --- | --- | --- | --- | --- |
| 3 points better | 0.96 | 0.93 | 1.00 | 1.00 |
| 2 points better | 0.87 | 0.78 | 1.00 | 1.00 |
| as good | 0.50 | 0.25 | 0.49 | 0.28 |
| 1 point worse | 0.24 | 0.09 | 0.12 | 0.01 |
| 1 point worse, three of them | 0.48 | 0.10 | 0.16 | 0.02 |

A non-inferiority margin is left out: 333 samples cannot show that no more than a point is lost, so that the best would
always be taken.

The last row: of many candidates the best is partly the luckiest. So a cheap candidate is compared with the largest
of all the differences that chance would give (White 2000, "A Reality Check for Data Snooping",
https://doi.org/10.1111/1468-0262.00152).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from headstart.calibration import Floats, Integers, Values, check_predictions, fit_temperature, log_softmax
from headstart.errors import MisconfigurationError
from headstart.scores import Estimate, confusion_matrix, score

Metric = Literal["accuracy", "log_loss", "macro_f1"]

# As people call them.
METRIC_NAMES: dict[str, str] = {"accuracy": "accuracy", "log_loss": "log loss", "macro_f1": "macro-F1"}

_METRIC_LEVEL = 0.25  # both from the simulation in tests/test_choice.py
_LOG_LOSS_LEVEL = 0.10
_NUM_RESAMPLES = 2000
_DRAWS_AT_ONCE = 2_000_000  # 16 MB of indices

# How far ahead `is_hopeless` looks, in checks for each so far: the first steps out of a dip are small.
_HORIZON = 3

# From counts of how often each sample was drawn (B, N) to scores of the candidates (B, K), higher is better.
_Scorer = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A trained model, by what it says about the validation samples.

    `cost` is any number by which candidates are sorted, cheaper first: seconds of a prediction, parameters that train, a
    rank; several may have the same. `predictions` are log-probabilities (N, C); logits will do.
    """

    name: str
    cost: float
    predictions: Values


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate against the best one, on the same samples.

    `difference` is in accuracy, below 0 where the candidate is worse; `p_value` is two-sided (in a `Choice`, that of
    McNemar's exact test).
    """

    difference: Estimate
    p_value: float


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate's scores with their intervals, how it compares with the best, and whether it is shown to be worse."""

    name: str
    cost: float
    accuracy: Estimate
    macro_f1: Estimate
    log_loss: Estimate
    comparison: Comparison
    is_worse: bool

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "name": self.name,
            "cost": self.cost,
            "accuracy": self.accuracy.to_dict(),
            "macro_f1": self.macro_f1.to_dict(),
            "log_loss": self.log_loss.to_dict(),
            "difference_to_best": self.comparison.difference.to_dict(),
            "p_value": self.comparison.p_value,
            "is_worse": self.is_worse,
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and why: the candidates in order of cost, cheapest first."""

    candidates: list[Judged]
    best: str
    chosen: str
    metric: Metric
    confidence: float
    num_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "chosen": self.chosen,
            "best": self.best,
            "metric": self.metric,
            "confidence": self.confidence,
            "num_samples": self.num_samples,
            "candidates": [each.to_dict() for each in self.candidates],
        }

    def __str__(self) -> str:
        table = [("", "candidate", "accuracy", "macro-F1", "log loss", "accuracy to best", "p")]
        for each in self.candidates:
            difference = each.comparison.difference
            against = (
                ("", "")
                if each.name == self.best
                else (
                    f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})",
                    f"{each.comparison.p_value:.3f}",
                )
            )
            mark = "*" if each.name == self.chosen else ""
            table.append(
                (mark, each.name, str(each.accuracy), str(each.macro_f1), str(each.log_loss), *against)
            )
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]
        return "\n".join([*lines, self.reason])

    @property
    def reason(self) -> str:
        """Why the chosen one was chosen, in a sentence."""
        intervals = f"{self.num_samples} validation samples, {self.confidence * 100:g} % intervals"
        metric = METRIC_NAMES[self.metric]
        if self.chosen == self.best:
            costs = {each.name: each.cost for each in self.candidates}
            rest = "" if costs[self.chosen] == min(costs.values()) else ", and nothing cheaper is as good"
            return f"* {self.chosen}: the best by {metric}{rest} ({intervals})."
        return (
            f"* {self.chosen}: the cheapest that is not shown to be worse than {self.best}, "
            f"the best by {metric} ({intervals})."
        )


def choose(
    candidates: Sequence[Candidate],
    targets: Values,
    *,
    metric: Metric = "accuracy",
    confidence: float = 0.95,
    seed: int = 0,
) -> Choice:
    """Choose the cheapest candidate that is not shown to be worse than the best; the module's text has the rule.

    Args:
        candidates: 1 or more, with different names, in any order.
        targets: Class indices (N,) of the validation samples.
        metric: By which the best is found. Macro-F1 and accuracy: higher is better, log loss: lower.
        confidence: Of the intervals; the rule does not depend on it.
        seed: Of the bootstrap. The same seed gives the same choice.

    Returns:
        The choice; print it for a table.

    Raises:
        MisconfigurationError: If there is no candidate, two share a name, predictions and targets do not fit, or an
            argument is outside its range.

    Example:
        >>> targets = np.arange(200) % 2
        >>> sure = np.log([[0.8, 0.2], [0.2, 0.8]])
        >>> right, wrong, index = sure[targets], sure[1 - targets], np.arange(200)[:, None]
        >>> head = Candidate("head", 1.0, np.where(index < 160, right, wrong))
        >>> tuned = Candidate("fine-tuned", 60.0, np.where(index < 190, right, wrong))
        >>> choose([head, tuned], targets).chosen
        'fine-tuned'
    """
    if not 0 < confidence < 1:
        raise MisconfigurationError(
            f"confidence is {confidence}; expected a number between 0 and 1, such as 0.95."
        )
    ordered, logs, true = _checked(candidates, targets, metric)
    verdicts = judge(logs, true, costs=[each.cost for each in ordered], metric=metric, seed=seed)
    judged = _judged(ordered, logs, true, verdicts, confidence=confidence, seed=seed)
    return Choice(
        candidates=judged,
        best=ordered[verdicts.best].name,
        chosen=ordered[verdicts.chosen].name,
        metric=metric,
        confidence=confidence,
        num_samples=len(true),
    )


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The rule's answer, as indices into the candidates by cost."""

    best: int
    chosen: int
    is_worse: list[bool]


def judge(
    logs: Sequence[Floats],
    targets: Integers,
    *,
    costs: Sequence[float] | None = None,
    metric: Metric = "accuracy",
    num_resamples: int = _NUM_RESAMPLES,
    seed: int = 0,
) -> Verdicts:
    """Apply the rule alone, without intervals.

    Args:
        logs: Log-probabilities (N, C) of each candidate, cheapest first.
        targets: Class indices (N,).
        costs: Of each candidate; `None` where each costs more than the one before it.
        metric: By which the best is found.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Example:
        >>> right, wrong = np.log([[0.9, 0.1]] * 50), np.log([[0.1, 0.9]] * 50)
        >>> judge([wrong, right, right], np.zeros(50, dtype=np.int64))
        Verdicts(best=1, chosen=1, is_worse=[True, False, False])
    """
    # Where a candidate is right on every sample, nothing tells its temperature: without doubt, the sharpest would win.
    doubt = 1 / (len(targets) + 2)
    calibrated = [log_softmax(log / fit_temperature(log, targets, doubt=doubt)) for log in logs]
    scorers = [_scorer(logs, targets, metric), _scorer(calibrated, targets, "log_loss")]
    everything = np.ones((1, len(targets)))
    observed = [scorer(everything)[0] for scorer in scorers]  # (K,) each
    parts = [
        [scorer(counts) for scorer in scorers] for counts in _resamples(len(targets), num_resamples, seed)
    ]
    resampled = [np.concatenate(each) for each in zip(*parts, strict=True)]  # (B, K) each
    best = int(observed[0].argmax())  # the first of equals, which is the cheapest
    levels = (_METRIC_LEVEL, _LOG_LOSS_LEVEL)
    is_worse = [
        index != best
        and any(
            _p_not_worse(values, draws, index, best) < level
            for values, draws, level in zip(observed, resampled, levels, strict=True)
        )
        for index in range(len(logs))
    ]
    costs = range(len(logs)) if costs is None else costs
    good = [index for index in range(len(logs)) if not is_worse[index]]
    cheapest = [index for index in good if costs[index] == costs[good[0]]]
    chosen = max(cheapest, key=lambda index: observed[0][index])
    return Verdicts(best=best, chosen=chosen, is_worse=is_worse)


def p_values_to_best(
    candidates: Sequence[Candidate],
    targets: Values,
    *,
    metric: Metric = "accuracy",
    num_resamples: int = _NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """Give for each candidate the one-sided p value of "as good as the best": how often chance alone puts one so far ahead.

    The samples are drawn anew, the same for all. Of many candidates the best is partly the luckiest, so its lead over one
    is held against the largest of the leads that chance gives to any of them over that one.

    Args:
        candidates: 1 or more.
        targets: Class indices (N,).
        metric: By which the best is found.
        num_resamples: How often the samples are drawn anew.
        seed: Of the bootstrap.

    Returns:
        The p value under each name, in (0, 1]; 1 for the best, and 0 for one that the best beats by the same amount on
        every sample.

    Raises:
        MisconfigurationError: As `choose`.

    Source: White 2000, "A Reality Check for Data Snooping", https://doi.org/10.1111/1468-0262.00152

    Example:
        >>> right, wrong = np.log([[0.9, 0.1]] * 50), np.log([[0.1, 0.9]] * 50)
        >>> close = np.concatenate([right[:49], wrong[:1]])
        >>> found = p_values_to_best(
        ...     [Candidate("a", 0, right), Candidate("b", 1, close), Candidate("c", 2, wrong)], np.zeros(50, dtype=np.int64)
        ... )
        >>> found["a"], found["b"] > 0.1, found["c"]
        (1.0, True, 0.0)
    """
    ordered, logs, true = _checked(candidates, targets, metric)
    scorer = _scorer(logs, true, metric)
    observed = scorer(np.ones((1, len(true))))[0]
    resampled = np.concatenate([scorer(counts) for counts in _resamples(len(true), num_resamples, seed)])
    best = int(observed.argmax())
    return {
        each.name: 1.0 if index == best else _p_not_worse(observed, resampled, index, best)
        for index, each in enumerate(ordered)
    }


def paired_test(first_correct: npt.ArrayLike, second_correct: npt.ArrayLike) -> float:
    """Give the two-sided p value of McNemar's exact test: are two classifiers right equally often?

    Only samples count that one gets right and the other wrong; under the hypothesis each is a fair coin's throw.

    Args:
        first_correct: Whether the first is right, for each sample (N,).
        second_correct: The same of the second.

    Returns:
        The p value, in (0, 1]; 1 where they never disagree.

    Raises:
        MisconfigurationError: If the two differ in length.

    Source: McNemar 1947, Psychometrika 12:153-157; in its exact form, the sign test.

    Example:
        >>> paired_test([True] * 5 + [False], [False] * 5 + [True])  # 5 to 1: (1 + 6) / 2**6, doubled
        0.21875
    """
    first, second = np.asarray(first_correct, dtype=bool), np.asarray(second_correct, dtype=bool)
    _check_paired(first, second)
    for_first, for_second = int((first & ~second).sum()), int((second & ~first).sum())
    total, fewer = for_first + for_second, min(for_first, for_second)
    tail = sum(math.comb(total, count) for count in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**total))  # whole numbers until here: exact


def paired_bootstrap(
    values_a: npt.ArrayLike,
    values_b: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = _NUM_RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Give the mean of `values_a - values_b` with its interval, and the two-sided p value of "no difference".

    The pairs are drawn anew, with replacement. The interval is the percentile interval; the p value is how often a
    resample is as far from the observed difference as that is from 0.

    Args:
        values_a: A value for each sample (N,), such as its loss, or whether it is right.
        values_b: The same of the other one.
        confidence: Of the interval.
        num_resamples: How often the samples are drawn anew.
        seed: The same seed gives the same answer.

    Raises:
        MisconfigurationError: If the two differ in length or are empty.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", sections 13.3 and 16.4.

    Example:
        >>> found = paired_bootstrap([1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 3.0])
        >>> print(found.difference)
        1.000 (1.000 to 1.000)
    """
    first, second = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    _check_paired(first, second)
    differences = (first - second)[:, None]  # (N, 1)
    means = _resampled_means(differences, num_resamples, seed)
    (difference,) = _mean_estimates(differences, means, confidence)
    is_as_far = np.abs(means - difference.value) >= abs(difference.value) - 1e-12
    return Comparison(difference, p_value=float((1 + is_as_far.sum()) / (1 + num_resamples)))


def expected_optimism(
    candidates: Sequence[Candidate],
    targets: Values,
    *,
    metric: Metric = "accuracy",
    num_resamples: int = _NUM_RESAMPLES,
    seed: int = 0,
) -> float:
    r"""Give by how much the best candidate's score flatters it, having been chosen on the very samples of the score.

    The samples are drawn anew, the best is chosen on those drawn, and its score on them is compared with its score on
    those not drawn. The mean gap is divided by :math:`\sqrt{2}`: of equally good candidates, the resample holds the
    noise of the samples and as much again of its own, so the maximum is too high by that factor. The rule of `choose`
    prefers cheap to lucky, so for what it chooses this is an upper bound.

    Args:
        candidates: 1 or more.
        targets: Class indices (N,).
        metric: By which the best is chosen.
        num_resamples: How often the samples are drawn anew.
        seed: Of the bootstrap.

    Returns:
        The optimism in units of the metric, 0 or more: subtract it from the best score (add it to a log loss).

    Raises:
        MisconfigurationError: As `choose`.

    Source: the idea, Efron and Tibshirani 1993, section 17.6; that choosing needs it, Cawley and Talbot 2010,
    https://jmlr.org/papers/v11/cawley10a.html

    Example:
        >>> guesses = np.random.default_rng(0).normal(size=(5, 100, 2))
        >>> targets = np.arange(100) % 2
        >>> expected_optimism([Candidate(f"coin {i}", i, each) for i, each in enumerate(guesses)], targets) > 0.02
        True
        >>> expected_optimism([Candidate("coin", 0, guesses[0])], targets)
        0.0
    """
    _, logs, true = _checked(candidates, targets, metric)
    if len(logs) == 1:
        return 0.0  # nothing was chosen
    scorer = _scorer(logs, true, metric)
    gaps = []
    for counts in _resamples(len(true), num_resamples, seed):
        usable = counts[(counts == 0).any(axis=1)]
        drawn, left_out = scorer(usable), scorer((usable == 0).astype(np.float64))
        rows, best = np.arange(len(drawn)), drawn.argmax(axis=1)
        gaps.append(drawn[rows, best] - left_out[rows, best])
    gap = np.concatenate(gaps)
    return max(0.0, float(gap.mean()) / math.sqrt(2)) if len(gap) else 0.0


def is_hopeless(
    history: Sequence[float],
    reference: float,
    *,
    patience: int,
    mode: Literal["min", "max"],
    min_checks: int,
) -> bool:
    """Whether a fine-tuning run has stayed below the head alone and does not look like passing it.

    It is if no value so far reaches `reference`, and the trend of the last `patience + 1` values, carried on for three
    times as many checks as there have been, does not reach it either. The trend is the median of the slopes of
    all pairs (Theil and Sen), which one odd value does not turn. After a dip whose lowest point lies in that
    window, the trend is that of the climb since then, as long as the climb goes on. A dip must be shorter than
    `min_checks` or `patience` to be told from a decline.

    Args:
        history: The validation values so far, one for each check.
        reference: The head's value.
        patience: How many checks the trend looks back, 2 or more.
        mode: Whether lower or higher is better.
        min_checks: Say no before as many checks; the trend needs `patience + 1` in any case.

    Raises:
        MisconfigurationError: If `patience` is below 2 or `mode` is unknown.

    Source: Sen 1968, "Estimates of the regression coefficient based on Kendall's tau", JASA 63:1379-1389.

    Example:
        >>> is_hopeless([0.70, 0.69, 0.70, 0.69, 0.68], 0.80, patience=3, mode="max", min_checks=4)
        True
        >>> is_hopeless([0.75, 0.60, 0.65, 0.70, 0.74], 0.80, patience=3, mode="max", min_checks=4)
        False
    """
    if patience < 2:
        raise MisconfigurationError(f"patience is {patience}; expected 2 or more: a trend needs 3 values.")
    if mode not in {"min", "max"}:
        raise MisconfigurationError(f"mode is {mode!r}; expected 'min' or 'max'.")
    if len(history) < max(min_checks, patience + 1):
        return False
    # As distances to the reference, higher is better: reached at 0. NaN, of a run that diverged, is lower than all.
    sign = 1.0 if mode == "max" else -1.0
    gains = [-math.inf if math.isnan(value) else sign * (value - reference) for value in history]
    if max(gains) >= 0:
        return False
    window = np.array(gains[-patience - 1 :])
    if not math.isfinite(window[-1]):
        return True
    window = window[np.isfinite(window)]
    since_lowest = window[int(window.argmin()) :]
    if len(since_lowest) > 1 and since_lowest.argmax() == len(since_lowest) - 1:
        window = since_lowest
    slope = _median_slope(window)
    steps_to_come = np.arange(len(window))[::-1] + _HORIZON * len(gains)  # from each value on
    return bool(np.median(window + slope * steps_to_come) < 0)


# ---- scores of resamples


def _resamples(num_samples: int, num_resamples: int, seed: int) -> Iterator[Floats]:
    """How often each sample is drawn (B, N), a part of the resamples at a time."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // num_samples)
    for start in range(0, num_resamples, at_once):
        size = min(at_once, num_resamples - start)
        drawn = generator.integers(0, num_samples, (size, num_samples))
        drawn += np.arange(size)[:, None] * num_samples
        counts = np.bincount(drawn.ravel(), minlength=size * num_samples)
        yield counts.reshape(size, num_samples).astype(np.float64)


def _scorer(logs: Sequence[Floats], targets: Integers, metric: Metric) -> _Scorer:
    """Give a function from counts (B, N) to scores (B, K), higher is better."""
    if metric == "macro_f1":
        return lambda counts: np.stack(
            [_macro_f1(log.argmax(axis=1), targets, counts) for log in logs], axis=1
        )
    rows = np.arange(len(targets))
    per_sample = np.stack(
        [log.argmax(axis=1) == targets if metric == "accuracy" else log[rows, targets] for log in logs],
        axis=1,
    ).astype(np.float64)  # (N, K)
    return lambda counts: counts @ per_sample / counts.sum(axis=1, keepdims=True)


def _macro_f1(predictions: Integers, targets: Integers, counts: Floats) -> Floats:
    """Macro-F1 of each resample (B,), over the classes that occur in it, as `scores.macro_f1`."""
    num_classes = int(max(predictions.max(), targets.max())) + 1
    true, predicted = np.eye(num_classes)[targets], np.eye(num_classes)[predictions]  # (N, C)
    hits = counts @ (true * predicted)  # (B, C)
    occurring = counts @ (true + predicted)
    f1 = np.divide(2 * hits, occurring, out=np.zeros_like(hits), where=occurring > 0)
    return np.asarray(f1.sum(axis=1) / (occurring > 0).sum(axis=1), dtype=np.float64)


def _p_not_worse(observed: Floats, resampled: Floats, index: int, best: int) -> float:
    """One-sided p value of "candidate `index` is as good as all": how often chance alone puts one so far ahead.

    Each difference is measured in its own standard deviation; chance is the resamples' largest, around the observed.
    """
    differences = observed - observed[index]  # (K,)
    draws = resampled - resampled[:, [index]] - differences  # (B, K), around 0
    spread = draws.std(axis=0)
    varies = spread > 1e-12
    if differences[best] <= 1e-12:
        return 1.0
    if not varies[best]:
        return 0.0  # better by the same amount on every sample
    largest = (draws[:, varies] / spread[varies]).max(axis=1)
    return float((1 + (largest >= differences[best] / spread[best] - 1e-9).sum()) / (1 + len(draws)))


def _resampled_means(values: Floats, num_resamples: int, seed: int) -> Floats:
    """The means (B, M) of values (N, M), samples drawn anew."""
    parts = [counts @ values / len(values) for counts in _resamples(len(values), num_resamples, seed)]
    return np.concatenate(parts)


def _mean_estimates(values: Floats, resampled_means: Floats, confidence: float) -> list[Estimate]:
    """The mean of each column of values (N, M), with its percentile interval from means (B, M)."""
    tail = (1 - confidence) / 2
    lows, highs = np.quantile(resampled_means, [tail, 1 - tail], axis=0)
    return [Estimate(*map(float, each)) for each in zip(values.mean(axis=0), lows, highs, strict=True)]


def _median_slope(values: Floats) -> float:
    first, second = np.triu_indices(len(values), k=1)
    return float(np.median((values[second] - values[first]) / (second - first))) if len(first) else 0.0


# ---- candidates


def _checked(
    candidates: Sequence[Candidate], targets: Values, metric: str
) -> tuple[list[Candidate], list[Floats], Integers]:
    """The candidates, cheapest first, their log-probabilities, and the targets."""
    if metric not in get_args(Metric):
        raise MisconfigurationError(f"metric is {metric!r}; expected one of {', '.join(get_args(Metric))}.")
    if not candidates:
        raise MisconfigurationError("Received no candidate; expected one or more to choose from.")
    names = [each.name for each in candidates]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise MisconfigurationError(f"Two candidates are called {twice!r}; give each a name of its own.")
    without_cost = next((each for each in candidates if math.isnan(each.cost)), None)
    if without_cost is not None:
        raise MisconfigurationError(
            f"The cost of {without_cost.name!r} is NaN; expected a number to sort the candidates by, such as seconds."
        )
    ordered = sorted(candidates, key=lambda each: each.cost)
    logs = []
    for each in ordered:
        try:
            scores, true = check_predictions(each.predictions, targets)
        except MisconfigurationError as error:
            raise MisconfigurationError(f"Candidate {each.name!r}: {error}") from error
        logs.append(log_softmax(scores))
    widths = {each.name: log.shape[1] for each, log in zip(ordered, logs, strict=True)}
    if len(set(widths.values())) > 1:
        raise MisconfigurationError(
            f"The candidates have different numbers of classes: {widths}; expected one task for all."
        )
    return ordered, logs, true


def _judged(
    candidates: Sequence[Candidate],
    logs: Sequence[Floats],
    targets: Integers,
    verdicts: Verdicts,
    *,
    confidence: float,
    seed: int,
) -> list[Judged]:
    is_right = np.stack([log.argmax(axis=1) == targets for log in logs], axis=1)  # (N, K)
    best_is_right = is_right[:, verdicts.best]
    losses = np.stack([-log[np.arange(len(targets)), targets] for log in logs], axis=1)  # (N, K)
    leads = is_right.astype(np.float64) - best_is_right[:, None]
    values = np.concatenate([losses, leads], axis=1)  # (N, 2K), so that one set of resamples serves all
    estimates = _mean_estimates(values, _resampled_means(values, _NUM_RESAMPLES, seed), confidence)
    judged = []
    for index, (candidate, log) in enumerate(zip(candidates, logs, strict=True)):
        matrix = confusion_matrix(targets, log.argmax(axis=1), num_classes=log.shape[1])
        scores = score(matrix, confidence=confidence, seed=seed)
        p_value = paired_test(is_right[:, index], best_is_right)
        judged.append(
            Judged(
                name=candidate.name,
                cost=candidate.cost,
                accuracy=scores.accuracy,
                macro_f1=scores.macro_f1,
                log_loss=estimates[index],
                comparison=Comparison(estimates[len(logs) + index], p_value),
                is_worse=verdicts.is_worse[index],
            )
        )
    return judged


def _check_paired(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> None:
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise MisconfigurationError(
            f"Received values of shapes {first.shape} and {second.shape}; expected one for each sample, (N,), of both."
        )
