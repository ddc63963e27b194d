"""Optimizers and schedulers: read from `configure_optimizers`, and kept whole when parameter groups come late.

**A late group's rate.** A group that joins while schedulers run starts at the rate that it was added with, and from
then on its rate moves in proportion to the schedule: with `f` the schedule's factor and `t0` the moment of joining,
`lr(t) = lr(t0) * f(t) / f(t0)`. Its base rate is therefore `lr(t0) / f(t0)`: the base rate that a group would have had
whose schedule stands at `lr(t0)` now. Why this one: it is what torch's own recursive schedulers (`StepLR`,
`ExponentialLR`, ...) do when a group is added, so that all schedulers now agree; the rate does not jump at the next
step; and a backbone that was given a tenth of the head's rate keeps a tenth of it. Where the schedule stands at zero,
the rate given is taken as the base rate. Above a floor that a scheduler has for all groups (`eta_min`), the same holds
of what lies above the floor. A momentum that is cycled stands where the first group's does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR

from headstart.errors import CheckpointError, MisconfigurationError, did_you_mean

ParamNames = list[list[str]]  # of one optimizer: for each group, its parameters' names


@dataclass(slots=True)
class SchedulerConfig:
    """A scheduler, and when it steps."""

    scheduler: Any
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True
    name: str | None = None
    reduce_on_plateau: bool = False


_CONFIG_KEYS = ("scheduler", "interval", "frequency", "monitor", "strict", "name", "reduce_on_plateau")


def read_configuration(
    configured: Any, *, module_name: str, automatic: bool = True
) -> tuple[list[Optimizer], list[SchedulerConfig]]:
    """Give the optimizers and schedulers of any form that `configure_optimizers` may return.

    Args:
        configured: What `configure_optimizers` returned.
        module_name: The module's class, for messages.
        automatic: Whether the trainer steps: it then needs a `monitor` for `ReduceLROnPlateau`.

    Raises:
        MisconfigurationError: If the form is none of those documented there.

    Example:
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        >>> optimizers, schedulers = read_configuration([[optimizer], [scheduler]], module_name="Net")
        >>> schedulers[0].interval
        'epoch'
    """
    optimizers: list[Optimizer] = []
    schedulers: list[SchedulerConfig] = []
    monitor: str | None = None
    where = f"{module_name}.configure_optimizers"
    if configured is None:
        pass
    elif isinstance(configured, Optimizer):
        optimizers = [configured]
    elif isinstance(configured, Mapping):
        _read_mapping(configured, optimizers, schedulers, where)
        monitor = configured.get("monitor")
    elif isinstance(configured, list | tuple):
        entries = list(configured)
        if len(entries) == 2 and isinstance(entries[0], list | tuple):
            optimizers = list(entries[0])
            given = entries[1] if isinstance(entries[1], list | tuple) else [entries[1]]
            schedulers = [_read_scheduler(each, where) for each in given]
        elif entries and all(isinstance(each, Optimizer) for each in entries):
            optimizers = entries
        elif entries and all(isinstance(each, Mapping) for each in entries):
            for each in entries:
                _read_mapping(each, optimizers, schedulers, where)
        else:
            raise _unknown_form(configured, where)
    else:
        raise _unknown_form(configured, where)
    if not all(isinstance(optimizer, Optimizer) for optimizer in optimizers):
        raise _unknown_form(configured, where)
    for config in schedulers:
        config.monitor = config.monitor or monitor
        if config.reduce_on_plateau and config.monitor is None and automatic:
            raise MisconfigurationError(
                f"{where} gives a ReduceLROnPlateau without the name of the value to watch. Give a dict: "
                '{"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}.'
            )
    return optimizers, schedulers


def _unknown_form(configured: Any, where: str) -> MisconfigurationError:
    return MisconfigurationError(
        f"{where} returned {type(configured).__name__}: {configured!r:.200}; expected an optimizer, a list of them, "
        '([optimizers], [schedulers]), a dict {"optimizer": ..., "lr_scheduler": ...}, several such dicts, or None.'
    )


def _read_mapping(
    given: Mapping[str, Any], optimizers: list[Optimizer], schedulers: list[SchedulerConfig], where: str
) -> None:
    known = ("optimizer", "lr_scheduler", "monitor", "frequency")
    unknown = [key for key in given if key not in known]
    if unknown or "optimizer" not in given:
        key = unknown[0] if unknown else "optimizer"
        complaint = "has an unknown key" if unknown else "lacks the key"
        raise MisconfigurationError(
            f"{where} returned a dict that {complaint} {key!r}.{did_you_mean(key, known) if unknown else ''} "
            f"Expected keys: {', '.join(known)}."
        )
    optimizers.append(given["optimizer"])
    if given.get("lr_scheduler") is not None:
        config = _read_scheduler(given["lr_scheduler"], where)
        config.monitor = config.monitor or given.get("monitor")
        schedulers.append(config)


def _read_scheduler(given: Any, where: str) -> SchedulerConfig:
    if isinstance(given, SchedulerConfig):
        config = given
    elif isinstance(given, Mapping):
        unknown = [key for key in given if key not in _CONFIG_KEYS]
        if unknown or "scheduler" not in given:
            key = unknown[0] if unknown else "scheduler"
            raise MisconfigurationError(
                f"{where}: a scheduler's dict {'has an unknown key' if unknown else 'lacks the key'} {key!r}."
                f"{did_you_mean(key, _CONFIG_KEYS) if unknown else ''} Expected keys: {', '.join(_CONFIG_KEYS)}."
            )
        config = SchedulerConfig(**given)
    else:
        config = SchedulerConfig(scheduler=given)
    if config.interval not in {"epoch", "step"}:
        raise MisconfigurationError(
            f"{where}: a scheduler's interval is {config.interval!r}; expected 'epoch' or 'step'."
        )
    if not hasattr(config.scheduler, "step"):
        raise MisconfigurationError(
            f"{where}: {config.scheduler!r:.200} is no scheduler: it has no method `step`."
        )
    config.reduce_on_plateau = config.reduce_on_plateau or isinstance(
        config.scheduler, lr_scheduler.ReduceLROnPlateau
    )
    return config


# ---- groups, by name


def group_names(optimizer: Optimizer, module: nn.Module) -> ParamNames:
    """The names of the parameters in each group; `""` for one that is not the module's."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [[names.get(parameter, "") for parameter in group["params"]] for group in optimizer.param_groups]


def regroup(optimizer: Optimizer, names: ParamNames, module: nn.Module) -> None:
    """Give `optimizer` the groups that `names` says, whatever it held of `module` before.

    A group keeps the options of the group that stood at its place, or else of the first.

    Raises:
        CheckpointError: If a name is no parameter of `module`.
    """
    if group_names(optimizer, module) == names:
        return
    parameters = dict(module.named_parameters())
    missing = [name for group in names for name in group if name and name not in parameters]
    if missing:
        raise CheckpointError(
            f"The checkpoint's optimizer trains {missing[0]!r}, and {type(module).__name__} has no parameter of that "
            f"name.{did_you_mean(missing[0], parameters)} Was the module built with other arguments?"
        )
    foreign = {
        (index, place): parameter
        for index, (group, here) in enumerate(
            zip(optimizer.param_groups, group_names(optimizer, module), strict=True)
        )
        for place, (parameter, name) in enumerate(zip(group["params"], here, strict=True))
        if not name
    }
    templates = [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    optimizer.param_groups.clear()
    for index, group in enumerate(names):
        # A parameter that is not the module's stays where it was.
        found = [parameters[name] if name else foreign[index, place] for place, name in enumerate(group)]
        template = templates[index] if index < len(templates) else templates[0]
        # Not add_param_group: it refuses empty groups and would fill in defaults over the template.
        optimizer.param_groups.append({"params": found, **template})


def split_groups(optimizer: Optimizer, module: nn.Module, labels: Mapping[str, str]) -> None:
    """Split the groups of an optimizer so that all parameters of one have the same label, and name them by it.

    A group's first part keeps its place, the others come after all groups, so that a scheduler finds what it knows where it
    was. Parameters of the module that are in no group join the first one's parts. Options are those of the group that is
    split.

    Args:
        optimizer: The optimizer.
        module: Whose parameters it trains.
        labels: The names of the groups, by the parameter's name.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        >>> split_groups(optimizer, net, {"weight": "w", "bias": "b"})
        >>> [group["name"] for group in optimizer.param_groups]
        ['w', 'b']
    """
    groups = optimizer.param_groups
    source = {name: index for index, names in enumerate(group_names(optimizer, module)) for name in names}
    parts: dict[tuple[int, str], list[str]] = {}
    for name, _ in module.named_parameters():
        parts.setdefault((source.get(name, 0), labels[name]), []).append(name)
    own = {parameter: name for name, parameter in module.named_parameters()}
    foreign = [[each for each in group["params"] if each not in own] for group in groups]
    options = [
        {key: value for key, value in group.items() if key not in {"params", "param_names"}}
        for group in groups
    ]
    has_names = ["param_names" in group for group in groups]
    split: dict[int, dict[str, Any]] = {}
    late: list[dict[str, Any]] = []
    for (index, label), names in parts.items():
        name = label if len(groups) == 1 else f"{options[index].get('name', f'pg{index + 1}')}, {label}"
        group = {**options[index], "params": [module.get_parameter(each) for each in names], "name": name}
        if has_names[index]:
            group["param_names"] = names
        if index in split:
            late.append({**group, _SPLIT_FROM: index})
        else:
            split[index] = group
    for index, rest in enumerate(foreign):
        split.setdefault(index, {**options[index], "params": []})["params"] += rest
    # Not add_param_group: it would fill in defaults over the options.
    groups[:] = [*(split[index] for index in range(len(groups))), *late]


# ---- schedulers and late groups

# In a late group: the one whose schedule it follows, where that is not the first.
_SPLIT_FROM = "split_from"


def sync_scheduler(scheduler: Any) -> None:
    """Make a scheduler know every group of its optimizer. Idempotent; see the module's text for a late group's rate."""
    for inner in _inner_schedulers(scheduler):
        sync_scheduler(inner)
    optimizer = getattr(scheduler, "optimizer", None)
    if not isinstance(optimizer, Optimizer):
        return
    for index in range(_num_known_groups(scheduler, optimizer), len(optimizer.param_groups)):
        _introduce(scheduler, index)


def rescale(schedulers: Sequence[Any], optimizer: Optimizer, index: int, *, previous: float) -> None:
    """Let a group's schedules go on from a rate that it was just given in place of `previous`, in proportion to it.

    Unlike `rebase`, it compares with no other group. Where the schedule stands at zero, the rate given is the base rate.
    """
    group = optimizer.param_groups[index]
    rate = float(group["lr"])
    ratio = rate / previous if previous else 1.0
    for key in ("initial_lr", "max_lr", "min_lr", "swa_lr"):  # of OneCycleLR and SWALR
        if schedulers and key in group:
            group[key] *= ratio
    for each in schedulers:
        _rescale(each, index, rate=rate, previous=previous, ratio=ratio)


def _rescale(scheduler: Any, index: int, *, rate: float, previous: float, ratio: float) -> None:
    for inner in _inner_schedulers(scheduler):
        _rescale(inner, index, rate=rate, previous=previous, ratio=ratio)
    last = getattr(scheduler, "_last_lr", None)  # what `get_last_lr` gives
    if isinstance(last, list):
        last[index] = rate
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.min_lrs[index] *= ratio
    elif hasattr(scheduler, "base_lrs"):
        if isinstance(scheduler, lr_scheduler.CyclicLR):
            scheduler.max_lrs[index] *= ratio
        floor, base = float(getattr(scheduler, "eta_min", 0.0)), scheduler.base_lrs[index]
        above = (rate - floor) / (previous - floor) if previous != floor else 0.0
        scheduler.base_lrs[index] = floor + (base - floor) * above if above else rate


def rebase(scheduler: Any, index: int, *, previous: float) -> None:
    """Let a group's schedule go on from the rate that somebody has just given it, in place of the `previous` one."""
    for inner in _inner_schedulers(scheduler):
        rebase(inner, index, previous=previous)
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) and previous and index < len(scheduler.min_lrs):
        scheduler.min_lrs[index] *= float(scheduler.optimizer.param_groups[index]["lr"]) / previous
    if index < len(getattr(scheduler, "base_lrs", ())):
        _set_base(scheduler, index)


def _inner_schedulers(scheduler: Any) -> Sequence[Any]:
    if isinstance(scheduler, lr_scheduler.SequentialLR | lr_scheduler.ChainedScheduler):
        return cast("Sequence[Any]", scheduler._schedulers)  # noqa: SLF001 (no public name)
    return ()


def _num_known_groups(scheduler: Any, optimizer: Optimizer) -> int:
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        return len(scheduler.min_lrs)
    # SequentialLR and ChainedScheduler keep only the last rates; every other one its base rates.
    known = getattr(scheduler, "base_lrs", None)
    if known is None:
        known = getattr(scheduler, "_last_lr", optimizer.param_groups)
    return len(known)


def _introduce(scheduler: Any, index: int) -> None:
    """Tell `scheduler` of group `index` of its optimizer, the first that it does not know."""
    group = scheduler.optimizer.param_groups[index]
    followed = _followed(scheduler, index)
    reference = scheduler.optimizer.param_groups[followed]
    last = getattr(scheduler, "_last_lr", None)
    if isinstance(last, list) and len(last) <= index:
        last.append(group["lr"])
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        # A floor in proportion: the head's floor may lie above the late group's whole rate.
        scheduler.min_lrs.append(scheduler.min_lrs[_followed(scheduler, index)] * _share(scheduler, index))
        return
    if hasattr(scheduler, "lr_lambdas"):  # of LambdaLR and MultiplicativeLR
        scheduler.lr_lambdas.append(scheduler.lr_lambdas[followed])
    if not hasattr(scheduler, "base_lrs"):
        return
    scheduler.base_lrs.append(group["lr"])
    if isinstance(scheduler, lr_scheduler.CyclicLR):
        scheduler.max_lrs.append(group["lr"])
    for name in ("base_momentums", "max_momentums"):
        if hasattr(scheduler, name):
            getattr(scheduler, name).append(getattr(scheduler, name)[followed])
    for key in ("base_momentum", "max_momentum"):
        if key in reference:
            group.setdefault(key, reference[key])
    if getattr(scheduler, "cycle_momentum", False):
        group.update({key: reference[key] for key in ("momentum", "betas") if key in reference})
    _set_base(scheduler, index)


def _followed(scheduler: Any, index: int) -> int:
    """The group whose schedule a late one follows."""
    return int(scheduler.optimizer.param_groups[index].get(_SPLIT_FROM, 0))


def _share(scheduler: Any, index: int, *, floor: float = 0.0) -> float:
    """What of the late group's rate lies above the floor, as a multiple of that of the group whose schedule it follows."""
    followed = _followed(scheduler, index)
    rate = float(scheduler.optimizer.param_groups[index]["lr"]) - floor
    first = float(scheduler.optimizer.param_groups[followed]["lr"]) - floor
    if not first and getattr(scheduler, "base_lrs", None):
        # The schedule stands at zero: the rate given is the base rate.
        first = float(scheduler.base_lrs[followed]) - floor
    return rate / first if first else 1.0


def _set_base(scheduler: Any, index: int) -> None:
    """Set what the scheduler starts from for one group, so that it stands at the group's present rate now."""
    group = scheduler.optimizer.param_groups[index]
    followed = _followed(scheduler, index)
    reference = scheduler.optimizer.param_groups[followed]
    share = _share(scheduler, index)
    if isinstance(scheduler, lr_scheduler.OneCycleLR):  # keeps its bounds in the groups
        for key in ("max_lr", "min_lr"):
            group[key] = reference[key] * share
    if isinstance(scheduler, SWALR):  # keeps its aim in the groups
        group["swa_lr"] = reference["swa_lr"] * share
    if isinstance(scheduler, lr_scheduler.CyclicLR):
        scheduler.max_lrs[index] = scheduler.max_lrs[followed] * share
    floor = float(getattr(scheduler, "eta_min", 0.0))
    above = (scheduler.base_lrs[followed] - floor) * _share(scheduler, index, floor=floor)
    scheduler.base_lrs[index] = floor + above
    # OneCycleLR reads this key of the group; its own `base_lrs` holds the rates of before the cycle.
    group["initial_lr"] = reference.get("initial_lr", scheduler.base_lrs[followed]) * share


# ---- manual optimization


class ManagedOptimizer:
    """An optimizer whose `step` the trainer takes: with the hooks, the precision and the count. The rest is torch's.

    Args:
        optimizer: The torch optimizer.
        take_step: Called with the optimizer and the closure (or `None`); takes the step.
        toggle: Gives a context in which only this optimizer's parameters get gradients; `None` where there is one
            optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        take_step: Callable[..., Any],
        *,
        toggle: Callable[[Optimizer], AbstractContextManager[None]] | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._take_step = take_step
        self._toggle = toggle

    @property
    def optimizer(self) -> Optimizer:
        """The torch optimizer."""
        return self._optimizer

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Take a step; `closure` computes the loss and the gradients, for optimizers that call it."""
        return self._take_step(self._optimizer, closure, **kwargs)

    def toggle_model(self, sync_grad: bool = True) -> AbstractContextManager[None]:
        """Within it, only this optimizer's parameters get gradients."""
        return nullcontext() if self._toggle is None else self._toggle(self._optimizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def __repr__(self) -> str:
        return f"ManagedOptimizer({self._optimizer!r})"


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether `optimizer.step` cannot do without a closure (L-BFGS re-evaluates the loss within a step)."""
    import inspect

    if isinstance(optimizer, torch.optim.LBFGS):
        return True
    parameters = inspect.signature(type(optimizer).step).parameters
    closure = parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
