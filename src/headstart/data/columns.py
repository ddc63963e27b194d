"""Which column holds the texts, and which the labels."""

from __future__ import annotations

from collections.abc import Sequence

from headstart.errors import DataError, MisconfigurationError, did_you_mean

# Names by which tables of this field go. The first of a list wins; of the others, one alone must be there.
_TEXTS = ("text", "sentence", "review", "content", "message", "body", "comment", "tweet", "document", "utterance",
          "abstract", "description", "headline", "title", "question")  # fmt: skip
_PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("text1", "text2"),
          ("text_1", "text_2"), ("text_a", "text_b"), ("question1", "question2"), ("question", "sentence"),
          ("question", "passage"), ("query", "passage"))  # fmt: skip
_LABELS = ("label", "labels", "class", "category", "target", "sentiment", "topic", "intent", "gold_label", "rating",
           "stars", "y")  # fmt: skip


class UnclearColumnError(DataError):
    """No column was named, and none has a common name."""


def choose_text_columns(
    columns: Sequence[str],
    wanted: str | Sequence[str] | None,
    *,
    label_column: str | None = None,
    source: str,
) -> tuple[str, ...]:
    """Give the column of texts, or the two of pairs.

    Args:
        columns: The table's.
        wanted: What the user named; `None` looks for a common name, or takes the only column beside the label.
        label_column: The column of labels, which is not one of texts.
        source: The table, for the message.

    Raises:
        DataError: If a named column is missing; the message lists the columns.
        UnclearColumnError: If none is named, and none can be chosen; so does its message.
        MisconfigurationError: If more than two are named.

    Example:
        >>> choose_text_columns(["id", "premise", "hypothesis", "label"], None, source="nli.csv")
        ('premise', 'hypothesis')
    """
    if wanted is not None:
        names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        if len(names) not in {1, 2} or len(set(names)) != len(names):
            raise MisconfigurationError(
                f"text_columns={wanted!r}: expected one column, or two different ones."
            )
        for name in names:
            _require(name, columns, option="--text_column", source=source)
        return names
    free = {name.casefold(): name for name in columns if name and name != label_column}
    for one, two in _PAIRS:
        if one in free and two in free:
            return free[one], free[two]
    chosen = _by_name(free, _TEXTS) or (next(iter(free.values())) if len(free) == 1 else None)
    if chosen is None:
        raise UnclearColumnError(
            f"{source}: which column holds the texts? {_list(columns)} "
            "Name it with --text_column (twice for pairs; in Python: text_columns=[...])."
        )
    return (chosen,)


def choose_label_column(
    columns: Sequence[str],
    wanted: str | None,
    *,
    text_columns: str | Sequence[str] | None = None,
    source: str,
) -> str:
    """Give the column of labels.

    Args:
        columns: The table's.
        wanted: What the user named; `None` looks for a common name, or takes the only column beside the texts.
        text_columns: The columns of texts where the user named them.
        source: The table, for the message.

    Raises:
        DataError: If the named column is missing; the message lists the columns.
        UnclearColumnError: If none is named, and none can be chosen; so does its message.

    Example:
        >>> choose_label_column(["review", "sentiment"], None, source="reviews.csv")
        'sentiment'
    """
    texts = (text_columns,) if isinstance(text_columns, str) else tuple(text_columns or ())
    if wanted is not None:
        _require(wanted, columns, option="--label_column", source=source)
        if wanted in texts:
            raise MisconfigurationError(f"{wanted!r} cannot be both a text column and the label column.")
        return wanted
    free = {name.casefold(): name for name in columns if name and name not in texts}
    chosen = _by_name(free, _LABELS)
    if chosen is None:
        known_text = texts or ((text,) if (text := _by_name(free, _TEXTS)) else ())
        rest = [name for name in free.values() if name not in known_text]
        chosen = rest[0] if known_text and len(rest) == 1 else None
    if chosen is None:
        raise UnclearColumnError(
            f"{source}: which column holds the labels? {_list(columns)} "
            "Name it with --label_column (in Python: label_column=...)."
        )
    return chosen


def _by_name(free: dict[str, str], names: Sequence[str]) -> str | None:
    found = [free[name] for name in names if name in free]
    return found[0] if found and (len(found) == 1 or names[0] in free) else None


def _require(name: str, columns: Sequence[str], *, option: str, source: str) -> None:
    if name not in columns:
        raise DataError(
            f"{source} has no column {name!r} ({option}).{did_you_mean(name, columns)} {_list(columns)}"
        )


def _list(columns: Sequence[str]) -> str:
    return f"Columns: {', '.join(map(repr, columns))}."
