"""What a sweep tries: plans, backbones, and the ranges of each plan's settings, as data."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from headstart.errors import MisconfigurationError, did_you_mean
from headstart.plans import PLANS, TUNING_LAYER_DECAY, TUNING_LR

if TYPE_CHECKING:
    import optuna

Kind = Literal["images", "text"]

HEAD, FINE_TUNE, LINEAR_PROBE = "head", "fine_tune", "linear_probe"

#: Plans that train the head alone, on features that are computed once for the whole sweep.
ON_FEATURES = frozenset({HEAD, LINEAR_PROBE})

#: What a sweep tries where nobody says: the head at its optimum, and fine-tuning from there.
DEFAULT_PLANS = (HEAD, FINE_TUNE)

#: The settings that a range can be given for, and what each is.
SETTINGS = {
    "lr": "learning rate of the head",
    "layer_decay": "its factor from a block to the one before it",
    "weight_decay": "weight decay of AdamW",
    "strength": "strength C of the head's penalty: the larger, the weaker",
}

# Rates are tried from a tenth to ten times of what the plan takes.
_TIMES = 10.0


@dataclass(frozen=True, slots=True)
class Range:
    """Where a setting is looked for, and what it is in a plan's first trial.

    Attributes:
        low: The smallest value.
        high: The largest value; it may be the same.
        first: The value of the first trial.
        is_log: Whether the range is in decades, rather than in equal steps.
    """

    low: float
    high: float
    first: float
    is_log: bool = True

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:g}"
        return f"{self.low:g} to {self.high:g}, first {self.first:.3g}"

    def within(self, low: float, high: float) -> Range:
        """Give this range with other bounds; the first value moves inside of them."""
        first = min(max(self.first, low), high)
        if first in {low, high} and low < high:  # it was outside: begin in the middle
            first = math.sqrt(low * high) if self.is_log else (low + high) / 2
        return Range(low, high, first, self.is_log)


@dataclass(frozen=True, slots=True)
class Settings:
    """What one trial tries.

    Attributes:
        plan: `"head"`, `"fine_tune"`, or the name of one of `headstart.plans`.
        backbone: Its name.
        values: The plan's settings.
    """

    plan: str
    backbone: str
    values: Mapping[str, float]

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.3g}" for name, value in self.values.items())
        return f"{self.plan} {self.backbone}{f': {values}' if values else ''}"


@dataclass(frozen=True, slots=True)
class Space:
    """All that may be tried.

    Attributes:
        backbones: Names.
        plans: For each plan the range of each of its settings.
    """

    backbones: tuple[str, ...]
    plans: Mapping[str, Mapping[str, Range]]

    def first_trials(self) -> list[Settings]:
        """Give what is tried before anything is searched for: every plan's own settings, with every backbone.

        Example:
            >>> space = space_of("images", backbones=["efficientnet_lite0"], plans=["head"], ranges={})
            >>> print(*space.first_trials())
            head efficientnet_lite0: strength 0.01
        """
        return [
            Settings(plan, backbone, {name: each.first for name, each in ranges.items()})
            for plan, ranges in self.plans.items()
            for backbone in self.backbones
        ]

    def suggest(self, trial: optuna.trial.Trial) -> Settings:
        """Let the study choose."""
        plan = trial.suggest_categorical("plan", list(self.plans))
        backbone = trial.suggest_categorical("backbone", list(self.backbones))
        values = {
            # A rate of one plan says nothing of another's.
            name: trial.suggest_float(_name_in_study(plan, name), each.low, each.high, log=each.is_log)
            for name, each in self.plans[plan].items()
        }
        return Settings(plan, backbone, values)

    def lines(self) -> list[str]:
        """Give the space as lines for a terminal.

        Example:
            >>> print(*space_of("text", backbones=["minilm"], plans=["full"], ranges={"lr": (1e-5, 1e-3)}).lines())
            backbone: minilm plan full: lr 1e-05 to 0.001, first 0.0001; weight_decay 0.0001 to 0.1, first 0.01
        """
        lines = [f"backbone: {', '.join(self.backbones)}"]
        for plan, ranges in self.plans.items():
            lines.append(f"plan {plan}: " + "; ".join(f"{name} {each}" for name, each in ranges.items()))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "backbones": list(self.backbones),
            "plans": {
                plan: {name: asdict(each) for name, each in ranges.items()}
                for plan, ranges in self.plans.items()
            },
        }


def params_of(settings: Settings) -> dict[str, Any]:
    """Give the names and values under which the study knows the settings."""
    values = {_name_in_study(settings.plan, name): value for name, value in settings.values.items()}
    return {"plan": settings.plan, "backbone": settings.backbone, **values}


def settings_of(params: Mapping[str, Any]) -> Settings:
    """Give the settings that stand behind what the study knows.

    Example:
        >>> settings_of({"plan": "head", "backbone": "minilm", "head.strength": 2.0}).values
        {'strength': 2.0}
    """
    values = {name.partition(".")[2]: value for name, value in params.items() if "." in name}
    return Settings(params["plan"], params["backbone"], values)


def _name_in_study(plan: str, name: str) -> str:
    return f"{plan}.{name}"


def space_of(
    kind: Kind,
    *,
    backbones: Sequence[str],
    plans: Sequence[str],
    ranges: Mapping[str, tuple[float, float]],
) -> Space:
    """Give the space for data of a kind.

    Args:
        kind: Of the data; a language model forgets what it knows at the rates at which an image model is fine-tuned.
        backbones: 1 or more names.
        plans: 1 or more of `head` (the head at its optimum), `fine_tune` (everything, from the head at its optimum), and the
            names of `headstart.plans`.
        ranges: Bounds in place of the plans' own, for every plan that has the setting.

    Raises:
        MisconfigurationError: If a plan is none, one is named twice, or a range makes no sense or has no effect.

    Example:
        >>> space = space_of("images", backbones=["efficientnet_lite0"], plans=["fine_tune"], ranges={})
        >>> print(space.plans["fine_tune"]["lr"])
        5e-05 to 0.005, first 0.0005
    """
    known = [HEAD, FINE_TUNE, *PLANS]
    for option, names in {"--plan": plans, "--backbone": backbones}.items():
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise MisconfigurationError(f"{option} {twice} is given more than once; name each once.")
    for plan in plans:
        if plan not in known:
            raise MisconfigurationError(
                f"--plan is {plan!r}; expected {', '.join(known)}.{did_you_mean(plan, known)}"
            )
    for name, (low, high) in ranges.items():
        _check_range(name, low, high)
    found = {plan: _ranges_of(plan, kind) for plan in plans}
    for name, (low, high) in ranges.items():
        if not any(name in each for each in found.values()):
            having = [plan for plan in known if name in _ranges_of(plan, kind)]
            raise MisconfigurationError(
                f"--{name} has no effect: of the plans {', '.join(plans)} none has it. It is for {', '.join(having)}."
            )
        for each in found.values():
            if name in each:
                each[name] = each[name].within(low, high)
    return Space(tuple(backbones), found)


def _ranges_of(plan: str, kind: Kind) -> dict[str, Range]:
    if plan == HEAD:
        # From hardly more than the classes' shares to where standardised features of usual width are learned by heart; beyond,
        # a fit takes seconds.
        return {"strength": Range(1e-4, 1.0, 0.01)}
    weight_decay = Range(1e-4, 0.1, 0.01)
    if plan == FINE_TUNE:
        decay = Range(0.5, 1.0, TUNING_LAYER_DECAY[kind], is_log=False)
        return {"lr": _around(TUNING_LR[kind]), "layer_decay": decay, "weight_decay": weight_decay}
    takes = inspect.signature(PLANS[plan]).parameters
    found = {"lr": _around(takes["lr"].default)}
    if "layer_decay" in takes:
        found["layer_decay"] = Range(0.3, 1.0, takes["layer_decay"].default, is_log=False)
    if plan != "l2_sp":  # whose pull stands in its place
        found["weight_decay"] = weight_decay
    return found


def _around(value: float) -> Range:
    return Range(value / _TIMES, value * _TIMES, value)


def _check_range(name: str, low: float, high: float) -> None:
    highest = 1.0 if name == "layer_decay" else math.inf
    if not (0 < low <= high <= highest and math.isfinite(high)):
        most = " up to 1" if name == "layer_decay" else ""
        raise MisconfigurationError(
            f"--{name} is {low:g} {high:g}; expected two numbers above 0{most}, the smaller one first."
        )
