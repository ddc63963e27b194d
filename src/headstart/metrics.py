"""What `self.log` records: the last step's value, and what an epoch's value is made of."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from headstart.errors import MisconfigurationError

if TYPE_CHECKING:
    from headstart.strategy import Strategy

# Where a value can be logged: hook -> the defaults of (on_step, on_epoch), and whether each may be chosen.
_STEP_HOOKS = frozenset(
    {
        "training_step", "on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward",
        "on_after_backward", "on_before_optimizer_step", "optimizer_step", "configure_gradient_clipping",
        "lr_scheduler_step",
    }
)  # fmt: skip
_EVALUATION_STEP_HOOKS = frozenset(
    f"{kind}{tail}"
    for kind, tails in {
        "validation": ("_step",), "test": ("_step",),
        "on_validation": ("_batch_start", "_batch_end"), "on_test": ("_batch_start", "_batch_end"),
    }.items()
    for tail in tails
)  # fmt: skip
_EPOCH_HOOKS = frozenset(
    {
        "on_train_start", "on_train_epoch_start", "on_train_epoch_end",
        "on_validation_start", "on_validation_epoch_start", "on_validation_epoch_end",
        "on_test_start", "on_test_epoch_start", "on_test_epoch_end",
    }
)  # fmt: skip

_REDUCTIONS: dict[Any, str] = {
    "mean": "mean", "avg": "mean", torch.mean: "mean", "sum": "sum", torch.sum: "sum", sum: "sum",
    "min": "min", torch.min: "min", min: "min", "max": "max", torch.max: "max", max: "max",
}  # fmt: skip


def when_to_record(name: str, hook: str, on_step: bool | None, on_epoch: bool | None) -> tuple[bool, bool]:
    """Give (on_step, on_epoch) for a value logged in `hook`, the defaults filled in.

    Raises:
        MisconfigurationError: If nothing, or not this, can be logged there.

    Example:
        >>> when_to_record("loss", "training_step", None, None)
        (True, False)
        >>> when_to_record("loss", "validation_step", None, None)
        (False, True)
    """
    if hook in _STEP_HOOKS:
        defaults = (True, False)
    elif hook in _EVALUATION_STEP_HOOKS:
        defaults = (False, True)
    elif hook in _EPOCH_HOOKS:
        if on_step:
            raise MisconfigurationError(
                f"self.log({name!r}, on_step=True) in {hook}: there is no step there."
            )
        defaults = (False, True)
    else:
        raise MisconfigurationError(
            f"self.log({name!r}, ...) was called in {hook or 'no hook of a run'}, where nothing can be recorded. Log in a "
            "training, validation or test step, or in a hook at an epoch's start or end."
        )
    chosen = (defaults[0] if on_step is None else on_step, defaults[1] if on_epoch is None else on_epoch)
    if not any(chosen):
        raise MisconfigurationError(f"self.log({name!r}, on_step=False, on_epoch=False) records nothing.")
    return chosen


@dataclass(slots=True)
class Entry:
    """All that is known of one logged name."""

    name: str
    on_step: bool
    on_epoch: bool
    reduction: str
    prog_bar: bool
    logger: bool
    sync_dist: bool
    metric: Any = None  # the torchmetrics object, where one was logged
    value: Any = None  # the last step's
    total: Any = None  # the sum, minimum or maximum over the epoch
    weight: float = 0.0  # the number of samples (or values) in `total`
    fresh: bool = False  # logged since the last step was closed
    agreed: torch.Tensor | None = None  # the epoch's value over all processes, once they agreed
    is_of_epoch: bool = False  # logged at an epoch's start or end, and not in its steps

    def key(self, kind: str) -> str:
        """The name with `_step` or `_epoch`; a loader's number stays at the end."""
        base, separator, index = self.name.partition("/dataloader_idx_")
        return f"{base}_{kind}{separator}{index}"

    def epoch_value(self) -> torch.Tensor:
        """The epoch's value: over all processes once they agreed, before that this one's."""
        if self.agreed is not None:
            return self.agreed
        if self.metric is not None:
            return torch.as_tensor(self.metric.compute())  # torchmetrics reduces over processes itself
        return _value_of(self.reduction, [(self.total, self.weight)])


def _value_of(reduction: str, parts: list[tuple[torch.Tensor, float]]) -> torch.Tensor:
    """Give the epoch's value of what several processes have, each a total and its weight."""
    totals = torch.stack([total for total, _ in parts])
    if reduction == "mean":
        value = totals.sum() / sum(weight for _, weight in parts)
    elif reduction == "sum":
        value = totals.sum()
    else:
        value = totals.min() if reduction == "min" else totals.max()
    return value.to(torch.get_default_dtype()) if value.is_floating_point() else value


def _wide_enough(value: torch.Tensor) -> torch.Tensor:
    """Give a value in a format that holds a sum of many: integers and booleans as `torch.sum` does, in int64."""
    if not value.is_floating_point():
        return value.to(torch.int64)
    return value if value.dtype == torch.float64 else value.to(torch.float32)


class Results:
    """The values logged in one training epoch, validation or test.

    Example:
        >>> from headstart.strategy import SingleDevice
        >>> results = Results(SingleDevice(torch.device("cpu")))
        >>> results.record("loss", 1.0, hook="training_step", on_epoch=True, batch_size=3)
        >>> results.record("loss", 2.0, hook="training_step", on_epoch=True, batch_size=1)
        >>> {name: float(value) for name, value in results.callback_values().items()}
        {'loss': 1.25, 'loss_step': 2.0, 'loss_epoch': 1.25}
    """

    def __init__(self, strategy: Strategy) -> None:
        self.entries: dict[str, Entry] = {}
        self._strategy = strategy
        self._step_entries: list[Entry] = []

    def record(
        self,
        name: str,
        value: Any,
        *,
        hook: str,
        prog_bar: bool = False,
        logger: bool = True,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        sync_dist: bool = False,
        batch_size: int | Callable[[], int] = 1,
        counts: bool = True,
    ) -> None:
        """Record a value; arguments as in `LightningModule.log`, the moment given by `hook`.

        What does not count (a step on samples of another process) is part of no epoch's value.
        """
        entry = self.entries.get(name)
        if entry is not None and entry.metric is None and entry.is_of_epoch != (hook in _EPOCH_HOOKS):
            self.keep_only(each for each in self.entries.values() if each is not entry)
            entry = (
                None  # what was logged last under a name is its value, and no part of a mean with the steps'
            )
        if entry is None:
            entry = self._new_entry(
                name, value, hook=hook, prog_bar=prog_bar, logger=logger, on_step=on_step, on_epoch=on_epoch,
                reduce_fx=reduce_fx, sync_dist=sync_dist,
            )  # fmt: skip
        entry.fresh = True
        if entry.metric is not None:
            if value is not entry.metric:
                raise MisconfigurationError(
                    f"self.log({name!r}, ...) was given two different metrics in one epoch."
                )
            entry.value = getattr(value, "_forward_cache", None)
            return
        if isinstance(value, torch.Tensor):
            if value.numel() != 1:
                raise MisconfigurationError(
                    f"self.log({name!r}, ...) received a tensor of shape {tuple(value.shape)}; expected one number. "
                    "Reduce it first, for example with .mean()."
                )
            # A copy: the caller may go on changing the tensor in place.
            value = value.detach().clone().squeeze()
        else:
            if not isinstance(value, int | float | Real):  # NumPy's scalars are such too
                raise _not_loggable(name, value)
            value = torch.tensor(value, dtype=torch.get_default_dtype())
        weight = 1
        if entry.reduction == "mean" and (entry.on_epoch or entry.sync_dist):
            weight = batch_size if isinstance(batch_size, int) else batch_size()
        entry.value = value
        # Evaluation may have a batch more in one process than in another.
        is_training = hook not in _EVALUATION_STEP_HOOKS
        if is_training and entry.on_step and entry.sync_dist and self._strategy.world_size > 1:
            entry.value = self._over_all_processes(entry, value, weight if counts else 0)
        if entry.on_epoch and counts:
            self._accumulate(entry, value, weight)

    def _over_all_processes(self, entry: Entry, value: torch.Tensor, weight: int) -> torch.Tensor:
        """Give a step's value over all processes, which all log it."""
        own = torch.stack([value.double(), torch.tensor(float(weight), device=value.device)])
        is_mean = entry.reduction == "mean"
        parts = [
            (torch.tensor(each * count if is_mean else each), count)
            for each, count in self._strategy.all_gather(own).tolist()
            if count
        ]
        return _value_of(entry.reduction, parts)

    def _new_entry(
        self,
        name: str,
        value: Any,
        *,
        hook: str,
        prog_bar: bool,
        logger: bool,
        on_step: bool | None,
        on_epoch: bool | None,
        reduce_fx: str | Callable[..., Any],
        sync_dist: bool,
    ) -> Entry:
        on_step, on_epoch = when_to_record(name, hook, on_step, on_epoch)
        if isinstance(value, Mapping):
            raise MisconfigurationError(
                f"self.log({name!r}, ...) received a dict; give its values by self.log_dict(dictionary)."
            )
        try:
            reduction = _REDUCTIONS[reduce_fx]
        except (KeyError, TypeError):
            raise MisconfigurationError(
                f"self.log({name!r}, reduce_fx={reduce_fx!r}): expected 'mean', 'sum', 'min' or 'max'."
            ) from None
        entry = Entry(
            name,
            on_step,
            on_epoch,
            reduction,
            prog_bar,
            logger,
            sync_dist,
            metric=value if is_metric(value) else None,
            is_of_epoch=hook in _EPOCH_HOOKS,
        )
        self.entries[name] = entry
        if on_step:
            self._step_entries.append(entry)
        return entry

    def _accumulate(self, entry: Entry, value: torch.Tensor, weight: int) -> None:
        entry.agreed = None
        entry.weight += weight
        if entry.reduction == "mean":
            # float64, where the device has it: an epoch's mean does not depend on how many steps it is made of.
            value = (value.float() if value.device.type == "mps" else value.double()) * weight
        elif entry.reduction == "sum" and value.dtype != torch.float32:
            value = _wide_enough(value)
        if entry.total is None:
            entry.total = value
        elif entry.reduction in {"mean", "sum"}:
            entry.total = entry.total + value
        else:
            entry.total = (
                torch.minimum(entry.total, value)
                if entry.reduction == "min"
                else torch.maximum(entry.total, value)
            )

    # ---- several processes

    def agree(self) -> None:
        """Bring the epoch's values to those over all processes, every sample counted once; all call it at the same moment.

        Raises:
            MisconfigurationError: If a torchmetrics object was logged by some of them only.
        """
        if self._strategy.world_size == 1:
            return
        own = {entry.name: _without_objects(entry) for entry in self.entries.values() if entry.on_epoch}
        everyone = self._strategy.gather_objects(own)
        for name in dict.fromkeys(name for each in everyone for name in each):
            known = [each[name] for each in everyone if name in each]
            if any(each.metric for each in known):
                if len(known) < len(everyone):
                    raise MisconfigurationError(
                        f"self.log({name!r}, metric) was called in {len(known)} of {len(everyone)} processes; a metric is "
                        "computed by all together. Log it in all, and give each at least one sample."
                    )
                entry = self.entries[name]
                entry.agreed = torch.as_tensor(entry.metric.compute())
            elif parts := [(each.total, each.weight) for each in known if each.total is not None]:
                # Not here where only others have logged it: then nothing of it is this process's.
                entry = self.entries.setdefault(name, replace(known[0], total=None, weight=0.0))
                entry.agreed = _value_of(known[0].reduction, parts)

    # ---- reading

    def step_values(self, *, only_fresh: bool = True) -> Iterator[tuple[Entry, str, Any]]:
        """Each step's value: the entry, its key (`name_step` where the epoch's is kept too), the value."""
        for entry in self._step_entries:
            if entry.value is not None and (entry.fresh or not only_fresh):
                yield entry, entry.key("step") if entry.on_epoch else entry.name, entry.value

    def epoch_values(self) -> Iterator[tuple[Entry, str, Any]]:
        """Each epoch's value: the entry, its key (`name_epoch` where the step's is kept too), the value."""
        for entry in self.entries.values():
            if entry.on_epoch and any(each is not None for each in (entry.metric, entry.total, entry.agreed)):
                yield entry, entry.key("epoch") if entry.on_step else entry.name, entry.epoch_value()

    def callback_values(self) -> dict[str, Any]:
        """What callbacks see: the values, and under the plain name the epoch's where there is one."""
        values: dict[str, Any] = {}
        for entry, key, value in self.step_values(only_fresh=False):
            values[entry.name] = value
            values[key] = value
        for entry, key, value in self.epoch_values():
            values[entry.name] = value
            values[key] = value
        return values

    def close_step(self) -> None:
        """Say that the values logged so far belong to a step that is over."""
        for entry in self._step_entries:
            entry.fresh = False

    def keep_only(self, entries: Iterable[Entry]) -> None:
        """Forget all but these entries."""
        self.entries = {each.name: each for each in entries}
        self._step_entries = [each for each in self.entries.values() if each.on_step]

    def reset(self) -> None:
        """Forget everything, and reset the metrics: an epoch begins."""
        for entry in self.entries.values():
            if entry.metric is not None:
                entry.metric.reset()
        self.entries = {}
        self._step_entries = []

    # ---- saving in the middle of an epoch

    def state_dict(self, module: nn.Module) -> dict[str, Any]:
        """What a checkpoint in the middle of an epoch keeps; metrics keep their own state (`metric_states`).

        Args:
            module: The module that holds the logged metrics; the state names them by their place in it.
        """
        places = {id(child): name for name, child in module.named_modules()}
        return {
            entry.name: {
                "on_step": entry.on_step, "on_epoch": entry.on_epoch, "reduction": entry.reduction,
                "prog_bar": entry.prog_bar, "logger": entry.logger, "sync_dist": entry.sync_dist,
                "value": entry.value, "total": entry.total, "weight": entry.weight, "fresh": entry.fresh,
                "is_of_epoch": entry.is_of_epoch,
                "metric": places[id(entry.metric)] if entry.metric is not None else None,
            }
            for entry in self.entries.values()
            if entry.metric is None or id(entry.metric) in places
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any], module: nn.Module) -> None:
        """Take back what `state_dict` gave."""
        children = dict(module.named_modules())
        self.entries = {
            name: Entry(
                name=name,
                **{**fields, "metric": None if fields["metric"] is None else children[fields["metric"]]},
            )
            for name, fields in state.items()
            if fields["metric"] is None or is_metric(children.get(fields["metric"]))
        }
        self._step_entries = [entry for entry in self.entries.values() if entry.on_step]


def _without_objects(entry: Entry) -> Entry:
    """Give an entry that can be sent: on the CPU, and of a metric only that it is one."""
    total = None if entry.total is None else entry.total.cpu()
    return replace(entry, metric=entry.metric is not None or None, value=None, agreed=None, total=total)


def is_metric(value: Any) -> bool:
    """Whether `value` is a torchmetrics metric; torchmetrics is not imported to find out."""
    torchmetrics = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.Metric)


def metric_states(module: nn.Module, *, leave_out: Iterable[Any] = ()) -> dict[str, dict[str, Any]]:
    """The running state of each torchmetrics metric inside `module`, by name (a state dict does not hold it)."""
    left_out = {id(metric) for metric in leave_out}
    return {
        name: {
            "states": {key: getattr(metric, key) for key in metric._defaults},  # noqa: SLF001 (no public name)
            "update_count": metric._update_count,  # noqa: SLF001
        }
        for name, metric in module.named_modules()
        if is_metric(metric) and id(metric) not in left_out
    }


def load_metric_states(module: nn.Module, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Take back what `metric_states` gave."""
    metrics = dict(module.named_modules())
    for name, state in states.items():
        metric: Any = metrics.get(name)
        if metric is None or not is_metric(metric):
            continue  # a metric that the program no longer has
        for key, value in state["states"].items():
            setattr(metric, key, value)
        metric._update_count = state["update_count"]  # noqa: SLF001
        metric._computed = None  # noqa: SLF001


@contextmanager
def metrics_kept(module: nn.Module) -> Iterator[None]:
    """Let the torchmetrics objects inside `module` forget what they see while the block runs."""
    before = copy.deepcopy(metric_states(module))
    try:
        yield
    finally:
        load_metric_states(module, before)


def _not_loggable(name: str, value: Any) -> MisconfigurationError:
    return MisconfigurationError(
        f"self.log({name!r}, ...) received {type(value).__name__}: {value!r:.100}; expected a number, a tensor with one "
        "element, or a torchmetrics metric."
    )
