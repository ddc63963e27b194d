"""Words in messages: numbers with their noun, and names that any program can write."""

from __future__ import annotations


def counted(number: int, noun: str, *, plural: str | None = None) -> str:
    """Give a number with its noun, in the right form.

    Example:
        >>> counted(1, "sample"), counted(2500, "sample"), counted(2, "class", plural="classes")
        ('1 sample', '2,500 samples', '2 classes')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def printable(text: str) -> str:
    r"""Give a name as every program can write it: bytes of a file's name that are no text become escapes.

    Example:
        >>> printable("cat\udce9.jpg")
        'cat\\udce9.jpg'
    """
    return text.encode("utf-8", "backslashreplace").decode()
