from __future__ import annotations

import csv

import pytest

from headstart.data.table import read_table
from headstart.errors import DataError


def test_quoted_texts_keep_their_commas_quotes_and_lines(write_table):
    table = read_table(write_table("a.csv", 'text,label\n"one, ""two""\nthree",x\nfour,y\n'))
    assert table.columns == ["text", "label"]
    assert table.rows == [("line 2", ['one, "two"\nthree', "x"]), ("line 4", ["four", "y"])]


@pytest.mark.parametrize(
    ("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_line_ends_of_all_systems(write_table, name, delimiter, end):
    text = end.join([f"text{delimiter}label", f"good{delimiter}1", "", f"bad{delimiter}0", ""])
    assert read_table(write_table(name, text)).rows == [("line 2", ["good", "1"]), ("line 4", ["bad", "0"])]


def test_in_a_tsv_a_single_quotation_mark_is_a_character(write_table):
    table = read_table(write_table("a.tsv", 'text\tlabel\n"Hello\t1\nsaid "bye" and\t0\n"x"y\t1\n'))
    assert [row for _, row in table.rows] == [['"Hello', "1"], ['said "bye" and', "0"], ['"x"y', "1"]]
    assert table.set_aside == []


def test_a_tsv_may_quote(write_table):
    assert read_table(write_table("a.tsv", 'text\tlabel\n"a\tb"\t1\n')).rows == [("line 2", ["a\tb", "1"])]


@pytest.mark.parametrize(
    "data",
    ["text,label\ncafé,1\n".encode("utf-8-sig"), "text,label\ncafé,1\n".encode("utf-16")],
    ids=["UTF-8 with a mark", "UTF-16"],
)
def test_byte_order_marks_are_understood(write_table, data):
    table = read_table(write_table("a.csv", data))
    assert table.columns == ["text", "label"]
    assert table.rows == [("line 2", ["café", "1"])]
    assert table.notes == []


def test_lines_in_windows_encoding_are_read_counted_and_named(write_table):
    lines = [
        b"text,label",
        "naïve é".encode() + b",1",
        "“café” 5 €".encode("cp1252") + b",0",
        b"plain,1",
    ]
    lines += [b"odd \x81\xe9,0"]  # 0x81 is undefined in cp1252
    table = read_table(write_table("a.csv", b"\n".join(lines)))
    assert [row[0] for _, row in table.rows] == ["naïve é", "“café” 5 €", "plain", "odd \x81é"]
    assert table.notes == ["2 lines are not UTF-8 and were read as Windows-1252: line 3, 5."]


def test_json_lines_may_be_in_windows_encoding_too(write_table):
    table = read_table(write_table("a.jsonl", '{"text": "café"}\n'.encode("cp1252")))
    assert table.rows == [("line 1", ["café"])]
    assert "1 line is not UTF-8 and was read as Windows-1252: line 1." in table.notes


def test_rows_with_too_many_or_too_few_fields_are_named(write_table):
    table = read_table(write_table("a.csv", "text,label\ngood,1\none, two,1\nbad\nfine,0\n"))
    assert [place for place, _ in table.rows] == ["line 2", "line 5"]
    assert [str(item) for item in table.set_aside] == [
        "line 3: 3 fields instead of 2 (a text with ',' in it must stand in quotation marks)",
        "line 4: 1 field instead of 2",
    ]


def test_a_broken_quotation_costs_its_lines_and_no_other(write_table):
    table = read_table(write_table("a.csv", 'text,label\n"x"y,1\nz,2\n'))
    assert table.rows == [("line 3", ["z", "2"])]
    [item] = table.set_aside
    assert item.place == "line 2"
    assert "broken quotation" in item.reason


def test_a_quotation_that_never_closes_is_counted_with_every_line_it_swallows(write_table):
    table = read_table(write_table("a.csv", 'text,label\nz,2\n"open,1\na,1\nb,1\n'))
    assert [place for place, _ in table.rows] == ["line 2"]
    assert [item.place for item in table.set_aside] == ["line 3", "line 4", "line 5"]
    assert table.set_aside[0].reason == "a quotation mark opens and never closes"


def test_a_long_text_is_read_and_the_csv_module_left_as_it_was(write_table):
    limit = csv.field_size_limit()
    table = read_table(write_table("a.csv", f"text,label\n{'word ' * 50_000},1\n"))
    assert len(table.rows[0][1][0]) == 250_000
    assert csv.field_size_limit() == limit


def test_json_lines_are_read_with_their_types_and_gaps(write_table):
    rows = [{"text": "a", "label": 1}, {"label": 2, "text": "b", "extra": [1]}]
    table = read_table(write_table("a.jsonl", rows))
    assert table.columns == ["text", "label", "extra"]
    assert table.rows == [("line 1", ["a", 1, None]), ("line 2", ["b", 2, [1]])]


def test_lines_that_are_no_json_object_are_named(write_table):
    table = read_table(write_table("a.jsonl", '{"text": "a"}\n\n{"text": \n[1]\n{"text": "b"}\n'))
    assert [place for place, _ in table.rows] == ["line 1", "line 5"]
    assert [item.place for item in table.set_aside] == ["line 3", "line 4"]
    assert "not JSON" in table.set_aside[0].reason
    assert "not a JSON object" in table.set_aside[1].reason


def test_a_json_file_that_is_no_json_lines_is_refused(write_table):
    with pytest.raises(
        DataError, match=r"a.jsonl: no line is a JSON object \(line 1: .*Expected one \{...\} a line"
    ):
        read_table(write_table("a.jsonl", '[\n"x"\n]\n'))


def test_parquet_rows_have_numbers_and_embeddings_are_left_out(write_table):
    rows = [{"text": "a", "label": 0, "vector": [1.0, 2.0]}, {"text": None, "label": 1, "vector": [1.0]}]
    table = read_table(write_table("a.parquet", rows))
    assert table.columns == ["text", "label"]
    assert table.rows == [("row 1", ["a", 0]), ("row 2", [None, 1])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "\n\n", "is empty"),
        ("a.jsonl", "", "is empty"),
        ("a.csv", "text,label\n", "columns 'text', 'label' and no rows"),
        ("a.csv", "text,label,text\na,b,c\n", "more than one column named 'text'"),
        ("a.csv", b"PK\x03\x04\x00\x00", "not a text file.*Save a spreadsheet as CSV first"),
        ("a.parquet", "text,label", "cannot be read as Parquet"),
        ("a.xlsx", "x", "not a table that can be read: expected .csv"),
    ],
)
def test_files_that_are_no_table_are_refused_by_name(write_table, name, content, message):
    with pytest.raises(DataError, match=rf"{name}.*{message}"):
        read_table(write_table(name, content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file '.*gone.csv'"):
        read_table(tmp_path / "gone.csv")


def test_an_unnamed_index_column_is_no_obstacle(write_table):
    assert read_table(write_table("a.csv", ",text,label,\n0,good,1,\n")).columns == ["", "text", "label", ""]
