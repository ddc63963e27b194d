"""Numbers in messages: with their noun in the right form."""

from __future__ import annotations


def counted(number: int, noun: str, *, plural: str | None = None) -> str:
    """Give a number with its noun, in the right form.

    Example:
        >>> counted(1, "sample"), counted(2500, "sample"), counted(2, "class", plural="classes")
        ('1 sample', '2,500 samples', '2 classes')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
