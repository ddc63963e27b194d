"""Hyper-parameters: collected from the caller's `__init__`, and only such as a checkpoint can give back."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

import torch

from headstart.errors import MisconfigurationError, UnknownNameError, did_you_mean

# What torch.load(weights_only=True) gives back exactly as it was saved.
_PLAIN = (
    bool, int, float, complex, str, bytes, torch.Tensor, torch.dtype, torch.device, torch.Size,
)  # fmt: skip


class HyperParameters(dict[str, Any]):
    """A dictionary whose keys are also attributes.

    Example:
        >>> hparams = HyperParameters(lr=0.1)
        >>> hparams.lr
        0.1
        >>> hparams.lr = 0.2
        >>> hparams["lr"]
        0.2
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"There is no hyper-parameter {name!r}.{did_you_mean(name, self)} Saved: {', '.join(self) or 'none'}."
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]


def collect_hyper_parameters(
    owner: object, names: tuple[Any, ...], *, ignore: Iterable[str] | str | None, frame: FrameType | None
) -> HyperParameters:
    """Give the arguments of the `__init__` that is running for `owner`, subclasses' before their bases'.

    Args:
        owner: The module or data module that is being built.
        names: Argument names to keep, or one mapping to take as it is; empty keeps all.
        ignore: Argument names to leave out.
        frame: The frame of the `__init__`; `None` takes the caller's caller.

    Raises:
        MisconfigurationError: If a value could not be read back from a checkpoint.
        UnknownNameError: If `names` has one that is no argument.
    """
    if frame is None:
        current = inspect.currentframe()
        frame = current.f_back.f_back if current and current.f_back else None
    if len(names) == 1 and not isinstance(names[0], str):
        found = dict(names[0]) if isinstance(names[0], Mapping) else dict(vars(names[0]))
    else:
        found = _init_arguments(owner, frame)
        if names:
            unknown = [name for name in names if name not in found]
            if unknown:
                raise UnknownNameError(
                    f"save_hyperparameters() received {unknown[0]!r}, which is no argument of "
                    f"{type(owner).__name__}.__init__.{did_you_mean(unknown[0], found)} "
                    f"Arguments: {', '.join(found) or 'none'}."
                )
            found = {name: found[name] for name in names}
    left_out = {ignore} if isinstance(ignore, str) else set(ignore or ())
    found = {name: value for name, value in found.items() if name not in left_out}
    refuse_unreadable(found, owner=type(owner).__name__)
    return HyperParameters(found)


def refuse_unreadable(values: Mapping[str, Any], *, owner: str) -> None:
    """Raise where a value is not made of plain types.

    A checkpoint is read with `weights_only=True`, which never imports a class that a file names. A value that could
    not be read back is refused now, before any training, and not after it.

    Args:
        values: Hyper-parameters by name.
        owner: Class name for the message.

    Raises:
        MisconfigurationError: With the name and type of the first such value.

    Example:
        >>> from pathlib import Path
        >>> refuse_unreadable({"lr": 0.1, "layers": [1, 2]}, owner="Net")
        >>> refuse_unreadable({"root": Path("data")}, owner="Net")
        Traceback (most recent call last):
        ...
        headstart.errors.MisconfigurationError: Net: the hyper-parameter 'root' is of type ...
    """
    for name, value in values.items():
        culprit = _first_unreadable(value)
        if culprit is None:
            continue
        where = "is" if culprit is value else "holds a value"
        raise MisconfigurationError(
            f"{owner}: the hyper-parameter {name!r} {where} of type {_type_name(culprit)}, which a checkpoint could "
            "not give back: it holds None, bool, int, float, complex, str, bytes, tensors, torch dtypes and devices, "
            f"and lists, tuples, sets and dicts of those. Convert it before {_advice(culprit)}, or leave it out: "
            f"self.save_hyperparameters(ignore=[{name!r}])."
        )


def _first_unreadable(value: Any) -> Any:
    if value is None or type(value) in _PLAIN or isinstance(value, torch.Tensor):
        return None
    if type(value) is HyperParameters or type(value) is dict:
        parts = [*value.keys(), *value.values()]
    elif type(value) in (list, tuple, set):
        parts = list(value)
    else:
        return value
    return next((found for part in parts if (found := _first_unreadable(part)) is not None), None)


def _type_name(value: Any) -> str:
    kind = value if isinstance(value, type) else type(value)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    return f"class {name}" if isinstance(value, type) else name


def _advice(value: Any) -> str:
    conversions = {
        "Path": "(str(path))", "PosixPath": "(str(path))", "WindowsPath": "(str(path))",
        "Namespace": "(vars(namespace))", "OrderedDict": "(dict(value))",
    }  # fmt: skip
    if hasattr(value, "item") and hasattr(value, "dtype"):
        return "(value.item())"
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return "(dataclasses.asdict(value))"
    return conversions.get(type(value).__name__, "to plain types")


def _init_arguments(owner: object, frame: FrameType | None) -> dict[str, Any]:
    """Arguments of every `__init__` of `owner` on the stack, innermost last, so that a subclass's value wins."""
    found: dict[str, Any] = {}
    while frame is not None and frame.f_code.co_name == "__init__" and _first_argument(frame) is owner:
        arguments = inspect.getargvalues(frame)
        here: dict[str, Any] = {name: arguments.locals[name] for name in arguments.args[1:]}
        if arguments.keywords:
            here.update(arguments.locals[arguments.keywords])
        found = {**found, **here}
        frame = frame.f_back
    found.pop("__class__", None)
    return found


def _first_argument(frame: FrameType) -> object:
    arguments = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    return frame.f_locals.get(arguments[0]) if arguments else None
