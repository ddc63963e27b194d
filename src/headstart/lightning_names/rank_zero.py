"""Things to do on the first process only, as programs for PyTorch Lightning import them."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

_log = logging.getLogger("headstart")


class PossibleUserWarning(UserWarning):
    """A warning that may be a false alarm; programs name it to silence it."""


class RankZeroDeprecationWarning(DeprecationWarning):
    """The category of `rank_zero_deprecation`."""


class _RankZeroOnly:
    """Decorates a function so that it runs on the first process only; elsewhere it gives `default`.

    Attributes:
        rank: The number of this process, as torchrun or Slurm set it; programs read it, and may set it.
    """

    def __init__(self) -> None:
        ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
        self.rank = int(next((rank for rank in ranks if rank), 0))

    def __call__(self, function: Callable[..., Any], default: Any = None) -> Callable[..., Any]:
        @functools.wraps(function)
        def on_first_process(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs) if self.rank == 0 else default

        return on_first_process


rank_zero_only = _RankZeroOnly()


@rank_zero_only
def rank_zero_debug(*args: Any, **kwargs: Any) -> None:
    """Log at level debug, on the first process only."""
    _log.debug(*args, **kwargs)


@rank_zero_only
def rank_zero_info(*args: Any, **kwargs: Any) -> None:
    """Log at level info, on the first process only."""
    _log.info(*args, **kwargs)


@rank_zero_only
def rank_zero_warn(
    message: Any, stacklevel: int = 4, category: type[Warning] = UserWarning, **kwargs: Any
) -> None:
    """Warn, on the first process only."""
    warnings.warn(message, category, stacklevel=stacklevel, **kwargs)


@rank_zero_only
def rank_zero_deprecation(message: Any, stacklevel: int = 5, **kwargs: Any) -> None:
    """Warn of something that will go, on the first process only."""
    warnings.warn(message, RankZeroDeprecationWarning, stacklevel=stacklevel, **kwargs)


def rank_zero_experiment(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a logger's `experiment`: on the other processes it gives an object that takes every call in silence.

    Example:
        >>> class Curves:
        ...     @property
        ...     @rank_zero_experiment
        ...     def experiment(self):
        ...         return "a writer"
        >>> Curves().experiment
        'a writer'
    """
    return rank_zero_only(function, default=_Silent())


class _Silent:
    """Takes every call, and gives itself for every attribute and item."""

    def __call__(self, *args: Any, **kwargs: Any) -> _Silent:
        return self

    def __getattr__(self, name: str) -> _Silent:
        return self

    def __getitem__(self, key: Any) -> _Silent:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keep nothing."""
