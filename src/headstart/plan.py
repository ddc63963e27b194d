"""`Phase` and `Plan`: what trains, when, and at which rate, as data that can be printed, saved and tested without training.

A plan says what holds at a place in it (`Plan.state_at`): the names of the parameters that train, and each one's rate and
weight decay. Nothing accumulates, so it can be applied at any time, any number of times; `headstart.callbacks.plan` does, and
keeps the place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from headstart.durations import positive_seconds_of, spelled
from headstart.errors import MisconfigurationError, did_you_mean
from headstart.groups import Layout
from headstart.words import counted

Norms = Literal["train", "adapt", "frozen"]
Schedule = Literal["constant", "linear", "cosine"]

# Stands for the block that asks for training most when its phase begins.
BEST_BLOCK = "best block"

# Of a phase's time: its steps may be so slow that a warm-up counted in them would fill it.
_LONGEST_WARMUP = 0.1


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run in which the same parameters train.

    It ends after `epochs`, or after `steps`, or after a `time`, or when the monitored value has not improved for `patience`
    validations: whichever comes first of those that are given.

    Args:
        name: For people.
        trains: What trains: words and shell patterns, see `headstart.groups.Layout.choose`; and `"best block"`, the one whose
            gradient is largest beside its weights when the phase begins.
        lr: Learning rate of the head at the phase's start; `None` is what the optimizer was made with, moved by its scheduler
            so far, whatever the phases before have set.
        backbone_lr: Learning rate of the backbone's last block; `None` is `lr`, or one `layer_decay` below it.
        layer_decay: What the rate of a block is multiplied with from each block to the one before it (Howard & Ruder 2018
            take 1/2.6; BEiT 0.65 to 0.75).
        weight_decay: `None` is what the optimizer was made with.
        decay_norms_and_biases: Whether weight decay is for norms and biases too.
        norms: Of the backbone's norms: `"train"` treats them like all else; `"frozen"` keeps their weights and running
            statistics; `"adapt"` keeps their weights and lets batch norms' running statistics follow the new data.
        epochs: Number of whole epochs; one that begins within an epoch trains the rest of that, too.
        steps: Number of optimizer steps.
        time: Seconds of training and validation, or `"90s"`, `"10m"`, `"1h"`; a run that is resumed counts on. What the clock
            decides is not the same bit for bit in every run.
        patience: Number of validations without an improvement of the plan's `monitor`.
        warmup_steps: Steps over which the rate rises linearly from 0; no longer than a tenth of the `time`.
        schedule: What the rate does afterwards, to the phase's end: stay, or fall to 0 in a line or half a cosine. Where a
            `time` may end it, the rate falls with the clock (Li, Yumer & Ramanan 2020, "Budgeted Training").
        l2_sp: Pulls backbone weights to where the run began: that times half their squared distance is added to the loss
            (Li, Grandvalet & Davoine 2018, "L2-SP").

    Raises:
        MisconfigurationError: If a value makes no sense, or nothing ends the phase.

    Example:
        >>> Phase(name="head", trains="head", lr=1e-3, epochs=5).trains
        ('head',)
    """

    name: str
    trains: str | Sequence[str]
    lr: float | None = None
    backbone_lr: float | None = None
    layer_decay: float = 1.0
    weight_decay: float | None = None
    decay_norms_and_biases: bool = False
    norms: Norms = "train"
    epochs: int | None = None
    steps: int | None = None
    time: float | str | timedelta | None = None
    patience: int | None = None
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    l2_sp: float = 0.0

    def __post_init__(self) -> None:
        where = f"Phase {self.name!r}"
        _check_text(where, "name", self.name)
        object.__setattr__(self, "trains", _texts(where, "trains", self.trains))
        if not self.trains:
            raise MisconfigurationError(
                f"{where}: trains is empty; expected words or patterns, such as 'head'."
            )
        for name, least in {"epochs": 1, "steps": 1, "patience": 1, "warmup_steps": 0}.items():
            _read_number(self, name, where=where, is_whole=True, least=least)
        for name in ("weight_decay", "l2_sp"):
            _read_number(self, name, where=where, least=0)
        for name in ("lr", "backbone_lr", "layer_decay"):
            _read_number(self, name, where=where)
        if self.time is not None:
            object.__setattr__(self, "time", positive_seconds_of(self.time, what=f"{where}: time"))
        if not isinstance(self.decay_norms_and_biases, bool):
            raise MisconfigurationError(
                f"{where}: decay_norms_and_biases is {self.decay_norms_and_biases!r}; expected true or false."
            )
        for name, known in {
            "norms": ("train", "adapt", "frozen"),
            "schedule": ("constant", "linear", "cosine"),
        }.items():
            if getattr(self, name) not in known:
                raise MisconfigurationError(
                    f"{where}: {name} is {getattr(self, name)!r}; expected one of {', '.join(known)}."
                    f"{did_you_mean(str(getattr(self, name)), known)}"
                )
        bounds = (self.epochs, self.steps, self.time)
        if bounds == (None, None, None) and self.patience is None:
            raise MisconfigurationError(f"{where} never ends: give epochs=, steps=, time= or patience=.")
        if self.schedule != "constant" and bounds == (None, None, None):
            raise MisconfigurationError(
                f"{where}: a {self.schedule} schedule needs to know its end: give epochs=, steps= or time=."
            )

    @property
    def seconds(self) -> float:
        """The `time` in seconds; infinite without one."""
        assert self.time is None or isinstance(self.time, float), "it was read when the phase was made"
        return math.inf if self.time is None else self.time

    @property
    def sets_rates(self) -> bool:
        """Whether it says anything about a rate."""
        return self.lr is not None or self.backbone_lr is not None or self.is_by_block or self.has_schedule

    @property
    def needs_best_block(self) -> bool:
        """Whether a block is to be measured before it begins."""
        return any(word.removeprefix("!") == BEST_BLOCK for word in self.trains)

    @property
    def has_schedule(self) -> bool:
        """Whether its rates differ from step to step."""
        return self.warmup_steps > 0 or self.schedule != "constant"

    @property
    def is_by_block(self) -> bool:
        """Whether its rates differ from block to block."""
        return self.layer_decay != 1.0

    def factor_at(self, step: int, *, total: float, seconds: float = 0.0) -> float:
        """Give what the rates are multiplied with at a step of the phase.

        Args:
            step: Counted from 0.
            total: Number of steps of the phase, as far as it is known; infinite where the clock alone ends it.
            seconds: For how long the phase has run.

        Example:
            >>> phase = Phase(name="all", trains="all", epochs=1, warmup_steps=2, schedule="linear")
            >>> [phase.factor_at(step, total=6) for step in range(6)]
            [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
            >>> phase = Phase(name="all", trains="all", time="100s", warmup_steps=2, schedule="linear")
            >>> [phase.factor_at(step, total=float("inf"), seconds=25.0 * step) for step in range(5)]
            [0.5, 0.75, 0.5, 0.25, 0.0]
        """
        by_clock = seconds / self.seconds
        if step < self.warmup_steps and by_clock < _LONGEST_WARMUP:
            return max((step + 1) / self.warmup_steps, by_clock / _LONGEST_WARMUP)
        by_steps = (step - self.warmup_steps) / max(1.0, total - self.warmup_steps)
        done = min(1.0, max(by_steps, by_clock))
        if self.schedule == "linear":
            return 1.0 - done
        return (1.0 + math.cos(math.pi * done)) / 2 if self.schedule == "cosine" else 1.0

    def length(self) -> str:
        """Say in words how long it is."""
        parts = [
            counted(number, noun) for number, noun in ((self.epochs, "epoch"), (self.steps, "step")) if number
        ]
        if self.time is not None:
            parts.append(spelled(self.seconds))
        if self.patience:
            parts.append(f"until {counted(self.patience, 'validation')} without improvement")
        return ", or ".join(parts)


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Adapters of low rank in place of the backbone's own weights (Hu et al. 2021), by the library peft.

    Their weights are added to the network's own when the run ends.

    Args:
        rank: Of each adapter.
        alpha: The adapter's output is multiplied with `alpha / rank`.
        dropout: Before the adapter.
        targets: Names of the layers that get one, as `target_modules` of peft; `"all-linear"` for every linear layer, or,
            in a network without one, every plain convolution.

    Raises:
        MisconfigurationError: If a value makes no sense.

    Example:
        >>> LoRA(rank=4, targets=["query", "value"]).targets
        ('query', 'value')
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: str | Sequence[str] = "all-linear"

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            _read_number(self, name, where="LoRA", is_whole=True, least=1)
        _read_number(self, "dropout", where="LoRA", least=0)
        if self.dropout >= 1:
            raise MisconfigurationError(f"LoRA: dropout is {self.dropout}; expected a number below 1.")
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", _texts("LoRA", "targets", self.targets))


@dataclass(frozen=True)
class State:
    """What holds at a place in a plan, by parameter name.

    Attributes:
        trainable: The parameters that train, in the module's order.
        lrs: Rates at the phase's start; `None` is what the optimizer was made with, times the number beside it.
        weight_decays: `None` is what the optimizer was made with.
    """

    trainable: list[str]
    lrs: dict[str, tuple[float | None, float]]
    weight_decays: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Phases, one after the other; at the end of each, its best weights are put back.

    `Trainer(plan=...)` follows it.

    Args:
        phases: In their order.
        name: For people.
        monitor: The logged value by which a phase's best weights are known, and by which `patience` counts; `None` keeps
            each phase's last weights.
        mode: `"min"` where less of it is better, `"max"` where more is.
        backbone: The part of the module that was pretrained; `""` where that is the module itself.
        lora: Put adapters into the backbone; their weights are named `lora_`.

    Raises:
        MisconfigurationError: If there is no phase, two have one name, one has a `patience` and nothing to watch, or a value
            makes no sense.

    Example:
        >>> plan = Plan(phases=[
        ...     Phase(name="head", trains="head", lr=1e-3, epochs=3),
        ...     Phase(name="all", trains="all", lr=1e-4, layer_decay=0.8, epochs=2),
        ... ])
        >>> Plan.from_dict(plan.to_dict()) == plan
        True
    """

    phases: Sequence[Phase]
    name: str = "plan"
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    backbone: str = "backbone"
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        where = f"Plan {self.name!r}"
        _check_text(where, "name", self.name)
        phases = tuple(self.phases) if isinstance(self.phases, Iterable) else (None,)
        if not all(isinstance(each, Phase) for each in phases):
            raise MisconfigurationError(
                f"{where}: its phases are {self.phases!r:.100}; expected a list of `Phase`s."
            )
        object.__setattr__(self, "phases", phases)
        if not phases:
            raise MisconfigurationError(f"{where} has no phases; expected one or more.")
        _check_text(where, "backbone", self.backbone)
        if self.monitor is not None:
            _check_text(where, "monitor", self.monitor)
        if self.lora is not None and not isinstance(self.lora, LoRA):
            raise MisconfigurationError(
                f"{where}: lora is {self.lora!r:.100}; expected the settings of the adapters, such as {{rank: 8}}, or none."
            )
        names = [phase.name for phase in self.phases]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise MisconfigurationError(f"Plan {self.name!r}: two phases are named {twice!r}.")
        if self.mode not in ("min", "max"):
            raise MisconfigurationError(
                f"Plan {self.name!r}: mode is {self.mode!r}; expected 'min' or 'max'."
            )
        impatient = next((phase.name for phase in self.phases if phase.patience), None)
        if self.monitor is None and impatient is not None:
            raise MisconfigurationError(
                f"Plan {self.name!r}: phase {impatient!r} has a patience, and the plan watches nothing: give it "
                "monitor='val_loss', say."
            )

    @property
    def num_epochs(self) -> int | None:
        """The largest number of epochs; `None` where a phase's is not said."""
        epochs = [phase.epochs for phase in self.phases]
        return None if None in epochs else sum(each for each in epochs if each is not None)

    def state_at(self, layout: Layout, phase: int, *, best_block: int | None = None) -> State:
        """Give what holds in a phase.

        Args:
            layout: Of the module.
            phase: Its number, from 0.
            best_block: What "best block" stands for.

        Raises:
            MisconfigurationError: If a word chooses nothing, or nothing is left to train.
        """
        now = self.phases[phase]
        words = [
            word.replace(BEST_BLOCK, f"block {best_block or 0}")
            if word.removeprefix("!") == BEST_BLOCK
            else word
            for word in now.trains
        ]
        try:
            chosen = set(layout.choose(words))
        except MisconfigurationError as error:
            raise MisconfigurationError(f"Phase {now.name!r}: {error}") from error
        if now.norms != "train":
            chosen -= layout.norms - set(layout.head)
        if not chosen:
            norms = "" if now.norms == "train" else f" with norms={now.norms!r}"
            raise MisconfigurationError(
                f"Phase {now.name!r} trains nothing: of {', '.join(now.trains)}, nothing is left{norms}. Let something train, such "
                "as trains='head', or leave the phase out."
            )
        depths, top = layout.depth_of(), len(layout.blocks)
        lrs: dict[str, tuple[float | None, float]] = {}
        weight_decays: dict[str, float | None] = {}
        for name in layout.names:
            below = top - depths[name]
            if below and now.backbone_lr is not None:
                lrs[name] = now.backbone_lr, now.layer_decay ** (below - 1)
            else:
                lrs[name] = now.lr, now.layer_decay**below
            is_spared = not now.decay_norms_and_biases and (name in layout.norms or name in layout.biases)
            weight_decays[name] = 0.0 if is_spared else now.weight_decay
        return State([name for name in layout.names if name in chosen], lrs, weight_decays)

    # ---- as text

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, without those that are the defaults."""
        found = _without_defaults(self)
        found["phases"] = [_without_defaults(phase) for phase in self.phases]
        if self.lora is not None:
            found["lora"] = _without_defaults(self.lora)
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Give the plan of plain values.

        Raises:
            MisconfigurationError: If a name is unknown or a value makes no sense.
        """
        values = dict(_checked(cls, values, what="A Plan"))
        phases = values.get("phases")
        if not isinstance(phases, list | tuple):
            raise MisconfigurationError(f"A plan's phases are {phases!r:.100}; expected a list of phases.")
        values["phases"] = tuple(
            each if isinstance(each, Phase) else Phase(**_checked(Phase, each, what=_name_of(each, number)))
            for number, each in enumerate(phases, 1)
        )
        if isinstance(values.get("lora"), Mapping):
            values["lora"] = LoRA(**_checked(LoRA, values["lora"], what="A LoRA"))
        return cls(**values)

    def to_yaml(self, path: str | Path) -> None:
        """Write the plan as a YAML file."""
        import yaml

        Path(path).write_text(
            yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )

    @classmethod
    def from_yaml(cls, path: str | Path) -> Plan:
        """Read a plan from a YAML file.

        Raises:
            MisconfigurationError: If there is no such file, or it holds no plan.
        """
        import yaml

        try:
            values = _load_yaml(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise MisconfigurationError(
                f"The plan {str(path)!r} cannot be read: {error.strerror}."
            ) from error
        # ValueError: of bytes that are no text, of a 13th month.
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            advice = (
                ""
                if "twice" in str(error)
                else '\nWords that begin with ! or * stand in quotes there: "!norms".'
            )
            raise MisconfigurationError(f"The plan {str(path)!r} is no YAML: {error}{advice}") from error
        if not isinstance(values, dict):
            raise MisconfigurationError(
                f"The plan {str(path)!r} holds {values!r:.100}; expected names with values."
            )
        try:
            return cls.from_dict(values)
        except MisconfigurationError as error:
            raise MisconfigurationError(f"The plan {str(path)!r}: {error}") from error


def _load_yaml(text: str) -> Any:
    """Give plain values, as `yaml.safe_load` does, which takes the last of two values of one name in silence."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc] # PyYAML has no types
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [str(key.value) for key, _ in node.value]
            for index, (key, _) in enumerate(node.value):
                if names[index] in names[:index]:
                    problem = f"{names[index]!r} stands twice in one place"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)  # noqa: S506 (it is a SafeLoader)


def _without_defaults(value: Any) -> dict[str, Any]:
    defaults = {each.name: each.default for each in fields(value)}
    found = {name: each for name, each in asdict(value).items() if each != defaults[name]}
    return {name: list(each) if isinstance(each, tuple) else each for name, each in found.items()}


def _name_of(phase: Any, number: int) -> str:
    name = phase.get("name") if isinstance(phase, Mapping) else None
    return f"Phase number {number}" if name is None else f"Phase {name!r:.100}"


def _checked(kind: type, values: Any, *, what: str) -> Mapping[str, Any]:
    """Refuse what is no mapping, and names that the class does not know or cannot do without."""
    if not isinstance(values, Mapping):
        raise MisconfigurationError(f"{what} is {values!r:.100}; expected names with values.")
    known = [each.name for each in fields(kind)]
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        raise MisconfigurationError(
            f"{what} has no {unknown!r}.{did_you_mean(str(unknown), known)} It has: {', '.join(known)}."
        )
    needed: Iterable[str] = {"Phase": ("name", "trains"), "Plan": ("phases",)}.get(kind.__name__, ())
    lacking = next((name for name in needed if name not in values), None)
    if lacking is not None:
        raise MisconfigurationError(f"{what} lacks {lacking!r}: {dict(values)!r:.100}.")
    return values


def _check_text(where: str, name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise MisconfigurationError(
            f"{where}: {name} is {value!r:.100}; expected text (in YAML, put quotes around it)."
        )


def _texts(where: str, name: str, value: Any) -> tuple[str, ...]:
    """Give one text, or several, as a tuple."""
    found = (value,) if isinstance(value, str) or not isinstance(value, Sequence) else tuple(value)
    other = next((each for each in found if not isinstance(each, str)), None)
    if other is not None or None in found:
        raise MisconfigurationError(f"{where}: {name} is {value!r:.100}; expected text, or a list of texts.")
    return found


def _read_number(
    owner: object, name: str, *, where: str, is_whole: bool = False, least: float | None = None
) -> None:
    """Check a number, and keep it as one where it is text: YAML takes 1e-3 for text.

    Args:
        owner: Whose it is; `None` stays where it is the default.
        name: Its attribute.
        where: What the owner is called in the message.
        is_whole: Whether fractions are refused.
        least: The lowest that it may be; `None` asks for more than 0.
    """
    value = getattr(owner, name)
    if value is None and getattr(type(owner), name) is None:
        return
    try:
        is_read = isinstance(value, str | Real) and not isinstance(value, bool)
        number = float(value) if is_read else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    is_enough = number > 0 if least is None else number >= least
    if not (is_enough and math.isfinite(number) and (number.is_integer() or not is_whole)):
        bound = "above 0" if least is None else f"of {least} or more"
        kind = "whole number" if is_whole else "number"
        raise MisconfigurationError(f"{where}: {name} is {value!r:.100}; expected a {kind} {bound}.")
    object.__setattr__(owner, name, int(number) if is_whole else number)
