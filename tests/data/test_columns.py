from __future__ import annotations

import pytest

from headstart.data.columns import choose_label_column, choose_text_columns
from headstart.errors import DataError, MisconfigurationError


def choose(columns, text=None, label=None):
    label = choose_label_column(columns, label, text_columns=text, source="t.csv")
    return choose_text_columns(columns, text, label_column=label, source="t.csv"), label


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["text", "label"], (("text",), "label")),
        (["id", "Review", "Sentiment"], (("Review",), "Sentiment")),
        (["", "text", "title", "label", "category"], (("text",), "label")),
        (["idx", "sentence1", "sentence2", "label"], (("sentence1", "sentence2"), "label")),
        (["premise", "hypothesis", "gold_label"], (("premise", "hypothesis"), "gold_label")),
        (["question1", "question2", "label", "question"], (("question1", "question2"), "label")),
        (["utterances_raw", "label"], (("utterances_raw",), "label")),
        (["text", "gut_oder_schlecht"], (("text",), "gut_oder_schlecht")),
    ],
)
def test_common_names_and_the_one_column_left_are_found(columns, expected):
    assert choose(columns) == expected


@pytest.mark.parametrize("columns", [["a", "b", "label"], ["title", "description", "label"]])
def test_an_unclear_text_column_lists_the_columns_and_the_option(columns):
    with pytest.raises(DataError, match=rf"Columns: '{columns[0]}', '{columns[1]}', 'label'.*--text_column"):
        choose(columns)


@pytest.mark.parametrize("columns", [["text", "a", "b"], ["text", "class", "topic"], ["a", "b"]])
def test_an_unclear_label_column_lists_the_columns_and_the_option(columns):
    with pytest.raises(DataError, match=rf"Columns: '{columns[0]}', '{columns[1]}'.*--label_column"):
        choose(columns)


def test_a_missing_column_is_named_with_the_nearest_and_all_others():
    with pytest.raises(
        DataError,
        match=r"no column 'reviews' \(--text_column\). Did you mean 'review'\? Columns: 'review', 'stars'",
    ):
        choose(["review", "stars"], text="reviews")
    with pytest.raises(DataError, match=r"no column 'star' \(--label_column\). Did you mean 'stars'\?"):
        choose(["review", "stars"], label="star")


def test_named_columns_are_taken_as_named():
    assert choose(["text", "label", "x", "y"], text=["x", "text"], label="y") == (("x", "text"), "y")


@pytest.mark.parametrize("text", [[], ["a", "b", "c"], ["a", "a"]])
def test_one_or_two_different_text_columns_are_expected(text):
    with pytest.raises(MisconfigurationError, match="expected one column, or two"):
        choose_text_columns(["a", "b", "c"], text, source="t.csv")


def test_the_label_is_no_text():
    with pytest.raises(MisconfigurationError, match="'a' cannot be both"):
        choose(["a", "b"], text="a", label="a")
