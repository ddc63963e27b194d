"""Times as people write them, and as they read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta

from headstart.errors import MisconfigurationError

#: As people write one; a bare number is taken where its unit is said.
Duration = float | str | timedelta | Mapping[str, float]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(duration: Duration, *, what: str) -> float:
    """Give a duration in seconds.

    Args:
        duration: `"90s"`, `"10m"`, `"1.5h"`; `"DD:HH:MM:SS"`; a `timedelta`, or its keywords.
        what: Whose it is, for the error.

    Raises:
        MisconfigurationError: If it is something else.

    Example:
        >>> seconds_of("1.5m", what="--time"), seconds_of("01:00:00:01", what="--time")
        (90.0, 86401.0)
        >>> seconds_of({"minutes": 2}, what="--time")
        120.0
    """
    if isinstance(duration, timedelta):
        return duration.total_seconds()
    if isinstance(duration, Mapping):
        try:
            return timedelta(**duration).total_seconds()
        except (TypeError, ValueError, OverflowError) as error:
            raise MisconfigurationError(
                f"{what} is {dict(duration)!r}; expected the keywords of a timedelta (days, hours, minutes, seconds, ...) with "
                "numbers."
            ) from error
    text = duration.strip() if isinstance(duration, str) else ""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text):
        return float(match[1]) * _UNITS[match[2]]
    if match := re.fullmatch(r"(\d{1,8}):(\d{1,2}):(\d{1,2}):(\d{1,2})", text):
        days, hours, minutes, seconds = map(int, match.groups())
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
    raise MisconfigurationError(
        f"{what} is {duration!r}; expected a time such as 90s, 10m, 1h, or DD:HH:MM:SS (00:08:00:00 is eight hours)."
    )


def positive_seconds_of(duration: Duration, *, what: str) -> float:
    """Give a duration in seconds, as `seconds_of` or a number of them, that is not nothing.

    Raises:
        MisconfigurationError: If it is something else, 0 or less, or no finite number.

    Example:
        >>> positive_seconds_of("10m", what="--time")
        600.0
    """
    if isinstance(duration, int | float) and not isinstance(duration, bool):
        try:
            seconds = float(duration)
        except OverflowError:  # of a whole number
            seconds = float("inf")
    else:
        seconds = seconds_of(duration, what=what)
    if not 0 < seconds < float("inf"):
        raise MisconfigurationError(
            f"{what} is {duration!r}; expected a time above 0 such as 90s, 10m or 1h."
        )
    return seconds


def spelled(seconds: float) -> str:
    """Give a duration for people.

    Example:
        >>> spelled(3.21), spelled(75), spelled(600), spelled(7384)
        ('3.2 s', '1 min 15 s', '10 min', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (0 if hours else rest, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)
