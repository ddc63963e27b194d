"""`LambdaCallback`: a callback made of functions, without a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headstart.callback import Callback
from headstart.errors import UnknownArgumentError, did_you_mean

# Every public method of `Callback`, but those that keep its state.
HOOKS = tuple(
    name
    for name, value in vars(Callback).items()
    if callable(value) and not name.startswith("_") and name not in {"state_dict", "load_state_dict"}
)


class LambdaCallback(Callback):
    """Calls the functions that it is given, each as the hook of its name.

    Args:
        **hooks: Functions by the name of a hook of `Callback`, with that hook's arguments; `None` is left out.

    Raises:
        UnknownArgumentError: If a name is no hook.

    Example:
        >>> callback = LambdaCallback(on_train_start=lambda trainer, pl_module: print("off we go"))
        >>> callback.on_train_start(None, None)
        off we go
    """

    def __init__(self, **hooks: Callable[..., Any] | None) -> None:
        for name, function in hooks.items():
            if name not in HOOKS:
                raise UnknownArgumentError(
                    f"LambdaCallback({name}=...): there is no such hook.{did_you_mean(name, HOOKS)} "
                    f"Hooks: {', '.join(HOOKS)}."
                )
            if function is not None:
                setattr(self, name, function)
