"""The exceptions of headstart.

Each is also a built-in exception (`ValueError`, `TypeError`, ...), so that code which catches those goes on working.
A message says what was received, what was expected, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class HeadstartError(Exception):
    """Base of every error that headstart raises on purpose."""


class MisconfigurationError(HeadstartError, ValueError):
    """A combination of settings, hooks or data that cannot work."""


class UnknownNameError(HeadstartError, ValueError):
    """A name (argument, monitored value, parameter pattern) that nothing answers to."""


class UnknownArgumentError(UnknownNameError, TypeError):
    """A keyword argument that the called function does not take."""


class CheckpointError(HeadstartError, RuntimeError):
    """A checkpoint that is damaged, unsafe or does not fit."""


class WriteError(HeadstartError, OSError):
    """A file could not be written: the disk is full, or the folder cannot be written. `errno` says which.

    Args:
        message: What could not be written, why, and what to do.
        number: The system's `errno`.
    """

    def __init__(self, message: str, *, number: int | None = None) -> None:
        super().__init__(message)
        self.errno = number


class ExportError(HeadstartError, RuntimeError):
    """An exported model that does not compute what its run does."""


class NonFiniteError(HeadstartError, ArithmeticError):
    """A loss or a gradient that is NaN or infinite: the message names the batch."""


class DataError(HeadstartError, ValueError):
    """Data that cannot be used as it is: the message names the file or the row."""


class MissingDependencyError(HeadstartError, ImportError):
    """An optional library is not installed: the message holds the install command."""


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Give a hint toward the nearest known name, or an empty string.

    Args:
        name: What was received.
        candidates: What is known.

    Returns:
        `" Did you mean 'x'?"` with a leading space, or `""` where nothing is near.

    Example:
        >>> did_you_mean("max_epoch", ["max_epochs", "min_epochs", "devices"])
        " Did you mean 'max_epochs'?"
        >>> did_you_mean("zzz", ["max_epochs"])
        ''
    """
    near = get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def missing_dependency(library: str, *, needed_for: str, extra: str) -> MissingDependencyError:
    """Give the error for an optional library that is not installed, with the command that installs it.

    Args:
        library: The import name that was not found.
        needed_for: What the library is needed for, as the end of "... is needed for".
        extra: The extra of headstart that brings it.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> print(missing_dependency("timm", needed_for="'timm:' backbones", extra="images"))
        'timm' is needed for 'timm:' backbones and is not installed. Install it: pip install 'headstart[images]'
    """
    return MissingDependencyError(
        f"{library!r} is needed for {needed_for} and is not installed. Install it: pip install 'headstart[{extra}]'"
    )
