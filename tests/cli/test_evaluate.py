"""`headstart evaluate`: a run on other labelled data."""

from __future__ import annotations

import json

import pytest

from headstart.artefact import read_metadata
from headstart.cli.main import main
from headstart.data import ImageFolderData, write_shards

pytestmark = pytest.mark.slow


@pytest.fixture
def evaluate(capsys):
    """Run it in this process, and give the exit code, standard output and standard error."""

    def call(*arguments):
        code = main(["evaluate", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_evaluate_on_the_test_part_gives_the_scores_of_fit(cell_run, solar_cells, tmp_path, evaluate):
    data = ImageFolderData(solar_cells).prepare()
    for path in data.test_set.images.paths:
        link = tmp_path / "cells" / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    code, out, err = evaluate(cell_run, tmp_path / "cells", "--format", "json")
    assert code == 0
    assert json.loads(out) == read_metadata(cell_run)["metrics"]["test"]
    assert "6 samples" in err
    assert "Careful" not in err


def test_the_table_shows_intervals_and_classes(cell_run, solar_cells, evaluate):
    code, out, _ = evaluate(cell_run, solar_cells)
    assert code == 0
    assert "95 % interval" in out
    assert {"accuracy", "macro-F1", "defective", "functional"} <= set(out.split())


def test_data_of_the_training_is_recognised(cell_run, solar_cells, evaluate):
    _, _, err = evaluate(cell_run, solar_cells, "--format", "json")
    assert "is what this model was trained on, so these scores are too good" in err


def test_texts_are_read_by_the_columns_of_the_training_data(text_run, tmp_path, evaluate):
    (tmp_path / "new.csv").write_text(
        "sentiment,what was said\ngood,I love this boat\nbad,I hate this boat\n"
    )
    code, out, err = evaluate(text_run, tmp_path / "new.csv", "--format", "json")
    assert code == 0
    assert json.loads(out)["accuracy"]["value"] == 1.0
    assert "No sample of class 'question'" in err


def test_a_second_column_without_a_first_is_an_error(pair_run, tmp_path, evaluate):
    (tmp_path / "pairs.csv").write_text("premise,hypothesis,label\nI love this,I hate this,bad\n")
    code, out, err = evaluate(pair_run, tmp_path / "pairs.csv", "--text_pair_column", "hypothesis")
    assert (code, out) == (1, "")
    assert "--text_pair_column is 'hypothesis' and --text_column is missing: name both columns" in err


def test_as_many_columns_must_be_named_as_the_model_takes_texts(text_run, pair_run, tmp_path, evaluate):
    table = tmp_path / "pairs.csv"
    table.write_text("one,two,label\nI love this,I hate this,bad\n")
    code, out, err = evaluate(pair_run, table, "--text_column", "one")
    assert (code, out) == (1, "")
    assert "judges pairs of texts, and --text_column names one column" in " ".join(err.split())
    both = ("--text_column", "one", "--text_pair_column", "two", "--label_column", "label")
    code, out, err = evaluate(text_run, table, *both)
    assert (code, out) == (1, "")
    assert "judges single texts, and --text_column and --text_pair_column name two" in " ".join(err.split())
    assert evaluate(pair_run, table, *both)[0] == 0


def test_columns_that_are_found_by_their_names_must_be_as_many_as_the_model_takes(
    pair_run, tmp_path, evaluate
):
    (tmp_path / "single.csv").write_text("text,label\nI love this,good\n")
    code, out, err = evaluate(pair_run, tmp_path / "single.csv")
    assert (code, out) == (1, "")
    assert "judges pairs of texts, and the samples of" in " ".join(err.split())


def test_columns_of_a_saved_hugging_face_dataset_are_read_by_the_names_that_are_given(
    pair_run, tmp_path, evaluate
):
    datasets = pytest.importorskip("datasets")
    rows = {"one": ["I love this", "no"], "two": ["I hate this", "yes"], "gold": ["bad", "good"]}
    datasets.DatasetDict(
        {"train": datasets.Dataset.from_dict(rows), "test": datasets.Dataset.from_dict(rows)}
    ).save_to_disk(tmp_path / "pairs")
    named = ("--text_column", "one", "--text_pair_column", "two", "--label_column", "gold")
    code, out, err = evaluate(pair_run, tmp_path / "pairs", *named)
    assert code == 0, err
    assert "accuracy" in out


def test_a_class_that_the_model_does_not_know_is_an_error(text_run, tmp_path, evaluate):
    (tmp_path / "new.csv").write_text("sentiment,what was said\nneutral,it is a boat\n")
    code, out, err = evaluate(text_run, tmp_path / "new.csv")
    assert (code, out) == (1, "")
    assert "neutral" in err


def test_the_other_kind_of_data_is_an_error(cell_run, reviews, evaluate):
    code, out, err = evaluate(cell_run, reviews)
    assert (code, out) == (1, "")
    assert "judges images" in err


@pytest.fixture
def saved_reviews(tmp_path):
    """A saved Hugging Face dataset whose columns with common names are not those that were trained on."""
    datasets = pytest.importorskip("datasets")
    rows = {
        "text": ["I hate this boat", "I love this boat"],
        "label": ["bad", "good"],
        "what was said": ["I love this boat", "I hate this boat"],
        "sentiment": ["good", "bad"],
        "wrong": ["bad", "good"],
    }
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    ("options", "accuracy"),
    [
        ((), 1.0),
        (("--label_column", "wrong"), 0.0),
        (("--text_column", "text"), 0.0),
        (("--text_column", "text", "--label_column", "wrong"), 1.0),
    ],
)
def test_columns_of_hugging_face_data_are_those_that_are_named_else_those_of_the_training_data(
    text_run, saved_reviews, evaluate, options, accuracy
):
    code, out, _ = evaluate(text_run, saved_reviews, "--json", *options)
    assert code == 0
    assert json.loads(out)["accuracy"]["value"] == accuracy


@pytest.mark.parametrize("option", ["--text_column", "--label_column"])
def test_a_column_of_data_without_columns_is_refused(text_run, tmp_path, evaluate, option):
    write_shards([("I love this boat", "good"), ("I hate this boat", "bad")], tmp_path / "shards")
    code, out, err = evaluate(text_run, tmp_path / "shards", option, "nonsense")
    assert (code, out) == (1, "")
    assert f"{option} is 'nonsense', and {tmp_path / 'shards'} has no columns" in " ".join(err.split())
