"""What "frozen" means: no gradient *and* evaluation mode. The trainer and every callback ask here.

The rule, which `establish_modes` applies to a whole tree of modules:

- a module whose parameters are all frozen is in evaluation mode: batch norms use (and keep) their running
  statistics, dropout is off;
- a module with a trainable parameter is in training mode;
- a module without parameters (dropout, a container) follows the module around it; a batch norm that trains in an
  otherwise frozen network does not switch the dropout beside it on;
- a module pinned by `pin_mode` is in the mode that it was pinned to, and so is all that it contains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.optim import Optimizer

from headstart.errors import MisconfigurationError

Mode = Literal["train", "eval"]

# Kept on the module itself, so that it follows the module into another tree and through a deep copy.
_PINNED = "_headstart_pinned_mode"

# Set on a batch norm that had `track_running_stats` when the flag was cleared to say that it is frozen.
_TRACKS_IN_TRAINING = "_headstart_tracks_in_training"


def freeze(module: nn.Module) -> None:
    """Freeze all of `module`: its parameters get no gradient, and it is in evaluation mode.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> freeze(net)
        >>> is_frozen(net), net.training
        (True, False)
    """
    module.requires_grad_(False)  # noqa: FBT003 (torch's own signature)
    module.eval()


def unfreeze(module: nn.Module) -> None:
    """Undo `freeze`: every parameter trains, and the module is in training mode (pinned modules excepted)."""
    module.requires_grad_(True)  # noqa: FBT003
    establish_modes(module)


def is_frozen(module: nn.Module) -> bool:
    """Whether `module` has parameters and none of them trains.

    Example:
        >>> is_frozen(nn.Linear(2, 2)), is_frozen(nn.ReLU())
        (False, False)
    """
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def trainable_names(module: nn.Module) -> list[str]:
    """The names of the parameters that train, in the module's order.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> freeze(net[0])
        >>> trainable_names(net)
        ['1.weight', '1.bias']
    """
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def set_trainable(module: nn.Module, names: Iterable[str]) -> None:
    """Make exactly the named parameters of `module` train.

    Raises:
        MisconfigurationError: If a name is no parameter of `module`.
    """
    wanted = set(names)
    unknown = wanted - {name for name, _ in module.named_parameters()}
    if unknown:
        raise MisconfigurationError(
            f"{min(unknown)!r} is to train, but {type(module).__name__} has no parameter of that name. "
            "Was the module built with other arguments than the one that was saved?"
        )
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in wanted)


def is_batch_norm(module: nn.Module) -> bool:
    """Whether `module` is a batch norm of any kind (lazy, synchronised and 1-d to 3-d included)."""
    return isinstance(module, _BatchNorm)


def pin_mode(module: nn.Module, mode: Mode | None) -> None:
    """Keep `module`, with all that it contains, in `mode`, whatever trains.

    Two uses: a *trainable* batch norm that must keep its running statistics (`"eval"`), and a *frozen* one whose
    statistics should adapt to the new data (`"train"`).

    Args:
        module: The module to pin.
        mode: `"train"`, `"eval"`, or `None` to take the pin away.

    Raises:
        ValueError: If `mode` is something else.

    Example:
        >>> norm = nn.BatchNorm1d(4)
        >>> pin_mode(norm, "eval")
        >>> _ = establish_modes(norm)
        >>> norm.training
        False
    """
    if mode not in {"train", "eval", None}:
        raise ValueError(f"mode is {mode!r}; expected 'train', 'eval' or None.")
    setattr(module, _PINNED, mode)


def pinned_modules(module: nn.Module) -> dict[str, Mode]:
    """The pinned modules by name, with the mode that each is pinned to."""
    return {name: mode for name, child in module.named_modules() if (mode := pin_of(child))}


def pin_of(module: nn.Module) -> Mode | None:
    """The mode that a module itself is pinned to; `None` where it is not."""
    return getattr(module, _PINNED, None)


def stop_tracking(norm: nn.Module) -> None:
    """Clear `track_running_stats` of a frozen batch norm; `establish_modes` sets it again when the norm trains.

    Scripts of the field read the flag. What keeps the statistics is evaluation mode.
    """
    # A lazy one makes its statistics at its first batch, and reads the flag to know whether to.
    is_unmade = isinstance(norm, LazyModuleMixin) and norm.has_uninitialized_params()
    if norm.track_running_stats and not is_unmade:
        setattr(norm, _TRACKS_IN_TRAINING, True)
        norm.track_running_stats = False  # type: ignore[assignment]


def establish_modes(module: nn.Module, *, only_frozen: bool = False) -> list[str]:
    """Put every module of a tree into the mode that the rule gives it. Idempotent.

    Args:
        module: The root.
        only_frozen: Leave modules alone that the rule would put into training mode.

    Returns:
        The names of the modules with trainable parameters that were found in evaluation mode, outermost only.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
        >>> net[0].requires_grad_(False).training
        True
        >>> establish_modes(net)
        []
        >>> net[0].training, net[1].training
        (False, True)
    """
    woken: list[str] = []
    # Whether each module trains, and whether something other than batch norms trains in it; decided leaves first.
    trains: dict[nn.Module, bool | None] = {}
    layers_train: dict[nn.Module, bool] = {}
    _decide(module, trains, layers_train)
    _apply(
        module,
        "",
        _Context(training=True, layers_train=True, asleep=False),
        trains,
        layers_train,
        woken,
        only_frozen,
    )
    return woken


class _Context(NamedTuple):
    """What a module inherits from the one around it."""

    training: bool
    layers_train: bool
    asleep: bool  # an ancestor was already reported as found in evaluation mode
    pinned: Mode | None = None


def _decide(
    module: nn.Module, trains: dict[nn.Module, bool | None], layers_train: dict[nn.Module, bool]
) -> tuple[bool | None, bool]:
    """Whether `module` trains (`None`: it has no parameters), and whether more than batch norms train in it."""
    if module in trains:
        return trains[module], layers_train[module]
    # Read from torch's own tables, here and below: the walk is made in every epoch, and its iterators cost more than it.
    own = [each.requires_grad for each in module._parameters.values() if each is not None]  # noqa: SLF001
    verdict: bool | None = any(own) if own else None
    layers = verdict is True and not is_batch_norm(module)
    for child in module._modules.values():  # noqa: SLF001
        if child is None:
            continue
        child_trains, child_layers = _decide(child, trains, layers_train)
        if child_trains is not None:
            verdict = bool(verdict) or child_trains
        layers = layers or child_layers
    trains[module], layers_train[module] = verdict, layers
    return verdict, layers


def _apply(
    module: nn.Module,
    name: str,
    around: _Context,
    trains: dict[nn.Module, bool | None],
    layers_train: dict[nn.Module, bool],
    woken: list[str],
    only_frozen: bool,
) -> None:
    pinned = module.__dict__.get(_PINNED) or around.pinned
    verdict = trains[module]
    if pinned:
        training = pinned == "train"
    elif verdict is None:
        training = around.training and around.layers_train
    else:
        training = verdict
    asleep = bool(verdict) and not module.training and training
    if asleep and not around.asleep:
        woken.append(name)
    if not (only_frozen and training and not pinned):
        if module.training != training:  # setting an attribute of a module costs more than reading it
            module.training = training
        if training and module.__dict__.get(_TRACKS_IN_TRAINING):
            module.track_running_stats = True  # type: ignore[assignment]
    inner = _Context(
        training=training,
        layers_train=around.layers_train if verdict is None else layers_train[module],
        asleep=asleep or around.asleep,
        pinned=pinned,
    )
    for child_name, child in module._modules.items():  # noqa: SLF001
        if child is not None:
            path = f"{name}.{child_name}" if name else child_name
            _apply(child, path, inner, trains, layers_train, woken, only_frozen)


# ---- the audit


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One module of an audit: what of it trains, in which mode it is, in which group, and what it costs."""

    name: str
    kind: str
    num_parameters: int
    num_trainable: int
    mode: str
    group: str
    lr: str
    flops: int | None


@dataclass(frozen=True, slots=True)
class Audit:
    """What is frozen, what trains, in which group, at which rate, and what a step costs.

    `problems` holds one sentence for each place where reality differs from the intention; `check` raises on them.
    """

    rows: list[AuditRow]
    num_parameters: int
    num_trainable: int
    flops: int | None  # of one step: forward, and backward where something trains
    pinned: dict[str, Mode] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise if reality differs from the intention.

        Raises:
            MisconfigurationError: With every problem, a line each.
        """
        if self.problems:
            raise MisconfigurationError(
                "The audit found:\n" + "\n".join(f"- {problem}" for problem in self.problems)
            )

    def __str__(self) -> str:
        header = ("module", "type", "parameters", "trainable", "mode", "group", "lr", "FLOPs a step")
        table = [header]
        table += [
            (
                row.name, row.kind, f"{row.num_parameters:,}", f"{row.num_trainable:,}", row.mode, row.group, row.lr,
                "" if row.flops is None else f"{row.flops:,}",
            )
            for row in self.rows
        ]  # fmt: skip
        flops = "" if self.flops is None else f"{self.flops:,}"
        table.append(("total", "", f"{self.num_parameters:,}", f"{self.num_trainable:,}", "", "", "", flops))
        widths = [max(len(line[column]) for line in table) for column in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        lines.insert(-1, lines[1])
        lines += [
            f"pinned: {name or 'the whole module'} stays in {mode}" for name, mode in self.pinned.items()
        ]
        lines += [f"PROBLEM: {problem}" for problem in self.problems]
        return "\n".join(lines)


def audit(
    module: nn.Module,
    *,
    optimizers: Iterable[Optimizer] = (),
    step: Callable[[], Any] | None = None,
    max_depth: int = 2,
    reference: dict[str, torch.Tensor] | None = None,
) -> Audit:
    """Give one table of what is frozen and what trains, and name what does not fit.

    Args:
        module: The module to look at; modes and gradients are as they were afterwards.
        optimizers: The optimizers that train it; without any, groups are not judged.
        step: Runs one training forward and gives the loss (or the output); its FLOPs, and those of its backward
            where something trains, are counted by `torch.utils.flop_counter`. `None` counts nothing.
        max_depth: How deep into the tree the rows go.
        reference: Frozen tensors by name as they were earlier (`frozen_snapshot`); one that changed is a problem.

    Returns:
        The audit; print it, or call its `check`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        >>> freeze(net[0])
        >>> optimizer = torch.optim.SGD(net[1].parameters(), lr=0.1)
        >>> report = audit(net, optimizers=[optimizer])
        >>> report.num_trainable, report.problems
        (18, [])
    """
    optimizers = list(optimizers)
    groups = _groups_by_parameter(optimizers)
    flops = _count_flops(module, step) if step is not None else {}
    rows = [
        AuditRow(
            name=name,
            kind=type(child).__name__,
            num_parameters=sum(parameter.numel() for parameter in child.parameters()),
            num_trainable=sum(
                parameter.numel() for parameter in child.parameters() if parameter.requires_grad
            ),
            mode="train" if child.training else "eval",
            group=_joined(groups[parameter][0] for parameter in child.parameters() if parameter in groups),
            lr=_joined(
                f"{groups[parameter][1]:.3g}" for parameter in child.parameters() if parameter in groups
            ),
            flops=flops.get(name, 0) if step is not None else None,
        )
        for name, child in module.named_modules()
        if name and name.count(".") < max_depth and next(child.parameters(), None) is not None
    ]
    return Audit(
        rows=rows,
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        num_trainable=sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad),
        flops=flops.get("Global", 0) if step is not None else None,
        pinned=pinned_modules(module),
        problems=list(_problems(module, groups if optimizers else None, reference)),
    )


def frozen_snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of every frozen parameter, and of the buffers of frozen modules, by name: for `audit(reference=…)`."""
    frozen = {
        name: parameter.detach().clone()
        for name, parameter in module.named_parameters()
        if not parameter.requires_grad
    }
    for name, child in module.named_modules():
        if is_frozen(child) and not child.training:
            prefix = f"{name}." if name else ""
            frozen |= {prefix + key: buffer.detach().clone() for key, buffer in child.named_buffers()}
    return frozen


def _groups_by_parameter(optimizers: list[Optimizer]) -> dict[nn.Parameter, tuple[str, float]]:
    several = len(optimizers) > 1
    return {
        parameter: (f"{number}/{index}" if several else str(index), float(group["lr"]))
        for number, optimizer in enumerate(optimizers)
        for index, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }


def _problems(
    module: nn.Module,
    groups: dict[nn.Parameter, tuple[str, float]] | None,
    reference: dict[str, torch.Tensor] | None,
) -> Iterator[str]:
    names = {parameter: name for name, parameter in module.named_parameters()}
    if groups is not None:
        for parameter, name in names.items():
            if parameter.requires_grad and parameter not in groups:
                yield f"{name} is trainable and in no parameter group: it gets gradients and never a step."
        for parameter, (group, _) in groups.items():
            if parameter not in names:
                yield f"group {group} holds a parameter of shape {tuple(parameter.shape)} that is not the module's."
    pinned = pinned_modules(module)
    for name, child in module.named_modules():
        if is_frozen(child) and child.training and not any(_inside(name, pin) for pin in pinned):
            yield f"{name or 'the whole module'} is frozen and in training mode: its statistics and dropout move."
    if reference is not None:
        now = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, before in reference.items():
            after = now.get(name)
            if (
                after is None
                or after.shape != before.shape
                or not torch.equal(after.detach(), before.to(after.device))
            ):
                yield f"{name} was frozen and has changed."


def _inside(name: str, outer: str) -> bool:
    return not outer or name == outer or name.startswith(f"{outer}.")


# Groups, and rates, that a row of an audit names each.
_MOST_JOINED = 4


def _joined(values: Iterable[str]) -> str:
    """Give different values, or the first and the last where they are many."""
    found = list(dict.fromkeys(values))
    return ", ".join(found) if len(found) <= _MOST_JOINED else f"{found[0]} to {found[-1]}"


def _count_flops(module: nn.Module, step: Callable[[], Any]) -> dict[str, int]:
    """FLOPs by module name, and `Global` for all."""
    from headstart.flops import flop_counter

    gradients = {parameter: parameter.grad for parameter in module.parameters()}
    # The running statistics that a step moves.
    buffers = {buffer: buffer.clone() for buffer in module.buffers()}
    counter = flop_counter()
    with counter:
        output = _Step(module, step)()
        loss = output["loss"] if isinstance(output, dict) else output
        if isinstance(loss, torch.Tensor) and loss.requires_grad:
            loss.sum().backward()  # type: ignore[no-untyped-call]
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
    with torch.no_grad():
        for buffer, value in buffers.items():
            buffer.copy_(value)
    prefix = f"{_Step.__name__}.module."
    return {name.removeprefix(prefix): sum(each.values()) for name, each in counter.get_flop_counts().items()}


class _Step(nn.Module):
    """Stands around the audited module.

    The counter names modules from the outermost that is called, and a `training_step` calls the parts of its module,
    not the module.
    """

    def __init__(self, module: nn.Module, step: Callable[[], Any]) -> None:
        super().__init__()
        self.module = module
        self.step = step

    def forward(self) -> Any:
        return self.step()
