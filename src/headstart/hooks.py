"""Calling hooks: who has overridden which, found out once a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from headstart.callback import Callback
from headstart.errors import MisconfigurationError, did_you_mean
from headstart.module import LightningModule

if TYPE_CHECKING:
    from headstart.trainer import Trainer


def is_overridden(name: str, owner: object, base: type) -> bool:
    """Whether `owner` defines `name` otherwise than `base` does.

    Example:
        >>> class Net(LightningModule):
        ...     def on_fit_start(self): ...
        >>> is_overridden("on_fit_start", Net(), LightningModule), is_overridden("on_fit_end", Net(), LightningModule)
        (True, False)
    """
    if name in getattr(owner, "__dict__", ()):
        return owner.__dict__[name] is not None  # `module.validation_step = None` takes a step away
    found = getattr(type(owner), name, None)
    return found is not None and found is not getattr(base, name, None)


class Hooks:
    """Calls the callbacks' hooks and the module's, in the contract's order, and only those that somebody overrode."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer = trainer
        self._module = module
        self._calls: dict[str, list[Callable[..., Any]]] = {}
        self.current = ""  # the hook or step that is running: decides what self.log may do

    def __call__(self, name: str, *args: Any) -> Any:
        """Call a hook with `args`; give -1 if anybody did, else the last value that is not None."""
        calls = self._calls.get(name)
        if calls is None:
            calls = self._calls[name] = self._find(name)
        if not calls:
            return None
        outer, self.current = self.current, name
        result = None
        for call in calls:
            given = call(*args)
            result = given if given is not None and result != -1 else result
        self.current = outer
        return result

    def overrides(self, name: str) -> bool:
        """Whether the module overrides `name`."""
        return is_overridden(name, self._module, LightningModule)

    def _find(self, name: str) -> list[Callable[..., Any]]:
        callbacks = [each for each in self._trainer.callbacks if is_overridden(name, each, Callback)]
        calls: list[Callable[..., Any]] = [
            partial(getattr(each, name), self._trainer, self._module)
            for each in callbacks
            if not each.runs_after_module
        ]
        if hasattr(self._module, name) and (self.overrides(name) or name.endswith("_model_eval")):
            calls.append(getattr(self._module, name))
        calls += [
            partial(getattr(each, name), self._trainer, self._module)
            for each in callbacks
            if each.runs_after_module
        ]
        return calls


# Hooks of earlier versions of the field's API, and slips seen in its own documentation, with what to write instead.
_RENAMED = {
    "configure_optimizer": "configure_optimizers",
    "train_step": "training_step",
    "training_steps": "training_step",
    "val_step": "validation_step",
    "training_epoch_end": "on_train_epoch_end",
    "validation_epoch_end": "on_validation_epoch_end",
    "test_epoch_end": "on_test_epoch_end",
    "train_dataloaders": "train_dataloader",
    "val_dataloaders": "val_dataloader",
    "validation_dataloader": "val_dataloader",
}


def check_names(owner: object, base: type, *, needed: Sequence[str]) -> None:
    """Raise where a class defines a method that looks like a hook and is none, or lacks one that the run needs.

    Args:
        owner: A module, data module or callback.
        base: Its class in headstart.
        needed: Methods that must be overridden.

    Raises:
        MisconfigurationError: With the name that was probably meant.

    Example:
        >>> class Net(LightningModule):
        ...     def configure_optimizer(self): ...
        >>> check_names(Net(), LightningModule, needed=[])
        Traceback (most recent call last):
        ...
        headstart.errors.MisconfigurationError: Net defines 'configure_optimizer'... Did you mean 'configure_optimizers'?
    """
    own = [
        name
        for cls in type(owner).__mro__
        if cls not in base.__mro__
        for name, value in vars(cls).items()
        if callable(value)
    ]
    hooks = [name for name in dir(base) if not name.startswith("_")]
    kind = type(owner).__name__
    for name in own:
        meant = _RENAMED.get(name)
        if meant and meant in hooks and meant not in own:
            raise MisconfigurationError(
                f"{kind} defines {name!r}, which is never called. Did you mean {meant!r}?"
            )
        if name.startswith("on_") and name not in hooks:
            hint = did_you_mean(name, [hook for hook in hooks if hook.startswith("on_")])
            if hint and not any(repr(known) in hint for known in own):
                raise MisconfigurationError(
                    f"{kind} defines {name!r}, which is no hook and is never called.{hint}"
                )
    for name in needed:
        if not is_overridden(name, owner, base):
            raise MisconfigurationError(
                f"{kind} does not define {name!r}, and this run needs it.{did_you_mean(name, own)}"
            )
