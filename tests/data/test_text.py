from __future__ import annotations

import pickle
import random

import pytest
import torch

from headstart.data import TextRows, TextTableData, read_rows
from headstart.data.text import TextCollate
from headstart.errors import DataError, MisconfigurationError


def lengths(texts):
    """Tokenize in the simplest way: the number of characters of each text, or of both of a pair."""
    return {
        "length": torch.tensor([len(text) if isinstance(text, str) else len("".join(text)) for text in texts])
    }


def test_a_table_is_split_by_class_with_its_columns_found(write_table, reviews):
    data = TextTableData(write_table("reviews.csv", "\n".join(reviews(200))))
    assert data.class_names == ["bad", "good"]
    assert data.report.part_class_counts == {"train": [70, 70], "val": [15, 15], "test": [15, 15]}
    assert data.class_counts == [70, 70]
    assert (data.text_columns, data.label_column) == (("text",), "label")
    assert data.report.notes == ["Texts are taken from 'text', labels from 'label'."]
    texts = [text for part in (data.train_set, data.val_set, data.test_set) for text in part.texts]
    assert len(set(texts)) == 200
    for text, target in (data.train_set[index] for index in range(140)):
        assert data.class_names[target] in text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_are_tokenized_texts_and_int64_targets(write_table, reviews, num_workers):
    data = TextTableData(
        write_table("reviews.csv", "\n".join(reviews(40))),
        tokenize=lengths,
        batch_size=8,
        num_workers=num_workers,
    )
    inputs, targets = next(iter(data.val_dataloader()))
    assert inputs["length"].tolist() == [len(text) for text in data.val_set.texts]
    assert targets.dtype == torch.int64
    assert targets.tolist() == data.val_set.targets
    assert sum(len(targets) for _, targets in data.train_dataloader()) == 28
    assert next(iter(data.predict_dataloader()))["length"].tolist() == [
        len(text) for text in data.test_set.texts
    ]


def test_pairs_go_to_the_tokenizer_as_tuples(write_table):
    rows = [{"premise": f"p{n}", "hypothesis": f"h{n}", "label": n % 2} for n in range(20)]
    data = TextTableData(write_table("nli.jsonl", rows), tokenize=lengths)
    assert data.class_names == ["0", "1"]
    assert data.val_set.texts[0][0][0] == "p"
    assert data.val_set.texts[0][1][0] == "h"
    assert len(next(iter(data.val_dataloader()))[0]["length"]) == 4


def test_the_tokenizer_may_be_set_later_and_is_asked_for(write_table, reviews):
    data = TextTableData(write_table("reviews.csv", "\n".join(reviews(40))))
    with pytest.raises(MisconfigurationError, match=r"tokenize is not set.*model.preprocessing"):
        data.train_dataloader()
    data.tokenize = lengths
    assert len(list(data.train_dataloader())) == 1


def test_the_split_does_not_depend_on_the_order_of_rows_or_the_kind_of_table(write_table, reviews):
    lines = reviews(100)
    mixed = lines[1:]
    random.Random(0).shuffle(mixed)
    rows = [dict(zip(("text", "label"), line.split(","), strict=True)) for line in mixed]
    tables = [
        write_table("a.csv", "\n".join(lines)),
        write_table("b.tsv", "\n".join([lines[0], *mixed]).replace(",", "\t")),
        write_table("c.jsonl", rows),
        write_table("d.parquet", rows),
    ]
    vals = [set(TextTableData(table).val_set.texts) for table in tables]
    assert vals[0] == vals[1] == vals[2] == vals[3]
    assert set(TextTableData(tables[0], seed=1).val_set.texts) != vals[0]


def test_rows_without_text_or_label_are_set_aside_and_named(write_table, reviews):
    lines = reviews(400)
    lines[10], lines[20], lines[30] = ",good", "   ,bad", "fine,"
    report = TextTableData(write_table("reviews.csv", "\n".join(lines))).report
    assert report.num_samples == 397
    assert report.set_aside == [
        ("line 11", "empty text in 'text'"),
        ("line 21", "empty text in 'text'"),
        ("line 31", "no label in 'label'"),
    ]


def test_more_than_one_bad_row_in_a_hundred_stops(write_table, reviews):
    lines = reviews(200)
    lines[5], lines[6], lines[7] = ",good", "a, b, c,good", '"x"y,good'
    with pytest.raises(
        DataError, match=r"(?s)3 of 200 samples.*line 7: 4 fields.*line 6: empty text.*Nothing was"
    ):
        TextTableData(write_table("reviews.csv", "\n".join(lines))).prepare()


def test_lines_in_another_encoding_are_kept_and_noted(write_table, reviews):
    lines = [line.encode() for line in reviews(40)]
    lines[3] = "très bon,good".encode("cp1252")
    data = TextTableData(write_table("reviews.csv", b"\n".join(lines)))
    assert data.report.num_samples == 40
    assert "1 line is not UTF-8 and was read as Windows-1252: line 4." in data.report.notes


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty text"),
        (["a"], "a list in 'text'"),
        ({"a": 1}, "a JSON object"),
        ("\ud83d", "half a character"),
    ],
)
def test_cells_that_are_no_text_are_named(write_table, value, reason):
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(200)]
    rows[7]["text"] = value
    [(place, said)] = TextTableData(write_table("a.jsonl", rows)).report.set_aside
    assert place == "line 8"
    assert reason in said


def test_numbers_are_texts_and_whole_ones_look_so(write_table):
    rows = [{"text": 10 + n, "label": float(n % 2)} for n in range(20)] + [{"text": "x", "label": 1.0}]
    rows = [{**row, "text": str(row["text"])} for row in rows]
    assert TextTableData(write_table("a.parquet", rows)).class_names == ["0", "1"]


def test_numbered_classes_are_in_the_order_of_numbers(write_table):
    lines = ["text,label", *(f"text {n},{n % 12}" for n in range(60))]
    assert TextTableData(write_table("a.csv", "\n".join(lines))).class_names == [str(n) for n in range(12)]


def test_labels_are_taken_without_spaces_around_them(write_table):
    lines = ["text,label", *(f"text {n},{('spam', ' ham ', 'ham')[n % 3]}" for n in range(60))]
    assert TextTableData(write_table("a.csv", "\n".join(lines))).class_names == ["ham", "spam"]


def test_labels_that_differ_by_letter_case_are_named_with_their_first_row(write_table, reviews):
    lines = reviews(100)
    lines[8] = "a nice film,Good"
    with pytest.raises(
        DataError, match=r"(?s)letter case.*'Good' \(1 sample, first: line 9\) and 'good' \(50 samples"
    ):
        TextTableData(write_table("reviews.csv", "\n".join(lines))).prepare()


def test_labels_that_differ_by_how_an_accent_is_stored_are_named(write_table):
    labels = ("caf\u00e9", "cafe\u0301", "bar")
    lines = ["text,label", *(f"text {n},{labels[n % 3]}" for n in range(30))]
    with pytest.raises(DataError, match="differ only by letter case"):
        TextTableData(write_table("a.csv", "\n".join(lines))).prepare()


def test_a_label_with_one_row_is_trained_on_and_named(write_table, reviews):
    data = TextTableData(write_table("reviews.csv", "\n".join([*reviews(60), "a strange film,odd"])))
    assert "a strange film" in data.train_set.texts
    assert any("Class 'odd' has one sample (line 62)" in note for note in data.report.notes)


def test_a_column_of_ids_is_no_label(write_table, reviews):
    lines = [f"{line},{number}" for number, line in enumerate(reviews(60))]
    path = write_table("a.csv", "\n".join(["text,label,id", *lines[1:]]))
    with pytest.raises(DataError, match=r"'id' has 60 different values in 60 rows.*--label_column"):
        TextTableData(path, label_column="id").prepare()


def test_a_missing_column_lists_those_that_are_there(write_table, reviews):
    path = write_table("reviews.csv", "\n".join(reviews(20)))
    with pytest.raises(
        DataError, match=r"reviews.csv has no column 'body' \(--text_column\).*'text', 'label'"
    ):
        TextTableData(path, text_columns="body").prepare()


def test_for_evaluation_all_rows_are_one_test_part(write_table, reviews):
    path = write_table("reviews.csv", "\n".join(reviews(20)))
    data = TextTableData.for_evaluation(path, class_names=["good", "bad"], tokenize=lengths)
    assert data.train_set is None
    assert data.report.part_class_counts == {"test": [10, 10]}
    [(_, targets)] = list(data.test_dataloader())
    assert targets.tolist() == [0, 1] * 10


def test_for_evaluation_one_class_or_one_row_is_enough(write_table):
    path = write_table("a.csv", "text,label\nfine,good\n")
    assert TextTableData.for_evaluation(path, class_names=["bad", "good"]).test_set.targets == [1]


def test_for_evaluation_an_unknown_label_is_named_with_its_row(write_table):
    path = write_table("a.csv", "text,label\nfine,good\nbah,bed\n")
    with pytest.raises(
        DataError, match=r"(?s)model does not have.*'bed' \(1 sample, first: line 3\) Did you mean 'bad'"
    ):
        TextTableData.for_evaluation(path, class_names=["bad", "good"]).prepare()


def test_rows_to_predict_need_no_label_and_are_all_answered_for(write_table):
    rows, set_aside = read_rows(write_table("new.csv", "text,when\ngood,1\n,2\nbad,3\n"))
    assert list(zip(rows.places, rows.texts, strict=True)) == [("line 2", "good"), ("line 4", "bad")]
    assert set_aside == [("line 3", "empty text in 'text'")]


def test_rows_to_predict_may_be_pairs_or_the_only_column(write_table):
    path = write_table("new.csv", "a,b\nx,y\n")
    assert read_rows(path, text_columns=["a", "b"])[0].texts == [("x", "y")]
    assert read_rows(write_table("one.csv", "whatever\nx\n"))[0].texts == ["x"]


def test_text_rows_without_places_are_numbered_and_collated_without_targets():
    rows = TextRows(["a", "bcd"])
    assert rows.places == ["row 1", "row 2"]
    collate = pickle.loads(pickle.dumps(TextCollate(lengths, labelled=False)))
    assert collate([rows[0], rows[1]])["length"].tolist() == [1, 3]
