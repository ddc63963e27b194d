"""`headstart predict`: standard output is for programs, standard error for people."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from headstart.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture
def photos(solar_cells):
    return [str(path) for path in sorted((solar_cells / "functional").iterdir())[:3]]


@pytest.fixture
def predict(capsys):
    """Run it in this process, and give the exit code, standard output and standard error."""

    def call(*arguments):
        code = main(["predict", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_json_holds_every_probability_and_nothing_else_is_printed(cell_run, photos, headstart):
    done = headstart("predict", cell_run, *photos, "--format", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [each["file"] for each in found] == photos
    for each in found:
        assert set(each["probabilities"]) == {"defective", "functional"}
        assert sum(each["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        assert each["probability"] == max(each["probabilities"].values())
        assert each["probabilities"][each["class"]] == each["probability"]


def test_csv_and_table_say_the_same_as_json(cell_run, photos, predict, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    found = json.loads(predict(cell_run, *photos, "--format", "json")[1])
    rows = list(csv.DictReader(io.StringIO(predict(cell_run, *photos, "--format", "csv")[1])))
    assert [(row["file"], row["class"], float(row["probability"])) for row in rows] == [
        (each["file"], each["class"], pytest.approx(each["probability"], abs=1e-6)) for each in found
    ]
    table = predict(cell_run, *photos)[1]
    for each in found:
        assert [each["file"], each["class"], f"{each['probability']:.3f}"] in [
            line.split() for line in table.splitlines()
        ]


def test_a_prediction_does_not_depend_on_the_others_in_its_batch(cell_run, photos, predict):
    together = json.loads(predict(cell_run, *photos, "--format", "json")[1])
    alone = json.loads(predict(cell_run, photos[1], "--format", "json")[1])
    # Float32 sums in another order for another batch size.
    assert alone[0]["probability"] == pytest.approx(together[1]["probability"], abs=1e-5)


def test_a_folder_is_searched_for_photos(cell_run, solar_cells, predict):
    code, out, _ = predict(cell_run, solar_cells / "defective", "--format", "csv")
    assert code == 0
    assert len(out.splitlines()) == 1 + 20


def test_in_a_folder_whatever_decodes_is_predicted_as_fit_trains_on_it(cell_run, photos, tmp_path, predict):
    (tmp_path / "photo").write_bytes(Path(photos[0]).read_bytes())
    (tmp_path / "labels.csv").write_text("file,label")
    code, out, err = predict(cell_run, tmp_path, "--format", "json")
    assert (code, err) == (0, "")
    assert [each["file"] for each in json.loads(out)] == [str(tmp_path / "photo")]
    (tmp_path / "broken.jpg").write_text("x")
    code, out, err = predict(cell_run, tmp_path, "--format", "json")
    assert (code, len(json.loads(out))) == (1, 1)
    assert "broken.jpg: not an image" in err


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_a_folder_without_photos_is_an_error_in_every_format(cell_run, tmp_path, predict, form):
    (tmp_path / "notes.txt").write_text("no photo")
    code, out, err = predict(cell_run, tmp_path, "--format", form)
    assert (code, out) == (1, "")
    assert "There is nothing to predict in" in err


def test_what_cannot_be_read_is_named_and_the_rest_predicted(cell_run, photos, tmp_path, predict):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    files = [tmp_path / "missing.png", photos[0], tmp_path / "broken.png", photos[1]]
    code, out, err = predict(cell_run, *files, "--format", "json")
    assert code == 1
    assert [each["file"] for each in json.loads(out)] == photos[:2]
    assert f"{tmp_path / 'missing.png'}: no such file" in err
    assert str(tmp_path / "broken.png") in err


def test_nothing_to_predict_is_valid_json_too(cell_run, tmp_path, predict):
    code, out, _ = predict(cell_run, tmp_path / "missing.png", "--format", "json")
    assert (code, json.loads(out)) == (1, [])


def test_a_text_file_has_a_text_a_line(text_run, tmp_path, predict):
    (tmp_path / "new.txt").write_text("I hate this boat\n\nI love this boat\n")
    code, out, err = predict(text_run, tmp_path / "new.txt", "--format", "json")
    found = json.loads(out)
    assert [(each["row"], set(each["probabilities"])) for each in found] == [
        ("line 1", {"bad", "good", "question"}),
        ("line 3", {"bad", "good", "question"}),
    ]
    assert [each["class"] for each in found] == ["bad", "good"]
    assert code == 1
    assert f"{tmp_path / 'new.txt'}, line 2: empty text" in err


def test_a_table_is_read_by_the_column_of_the_training_data(text_run, tmp_path, predict):
    (tmp_path / "new.csv").write_text("note,what was said\nx,I love this boat\ny,\n")
    code, out, err = predict(text_run, tmp_path / "new.csv", "--format", "csv")
    assert out.splitlines()[1].startswith(f"{tmp_path / 'new.csv'},line 2,good,")
    assert code == 1
    assert "line 3: empty text" in err


def test_a_column_of_another_name_can_be_given(text_run, tmp_path, predict):
    (tmp_path / "new.jsonl").write_text('{"message": "where can I buy a boat?"}\n')
    code, out, _ = predict(text_run, tmp_path / "new.jsonl", "--text_column", "message", "--format", "csv")
    assert code == 0
    assert ",question," in out


def test_a_table_without_the_column_is_named(text_run, tmp_path, predict):
    (tmp_path / "new.csv").write_text("title\nI love this\n")
    code, out, err = predict(text_run, tmp_path / "new.csv", "--format", "json")
    assert (code, json.loads(out)) == (1, [])
    assert "what was said" in err


def test_a_second_column_without_a_first_is_an_error(text_run, tmp_path, predict):
    (tmp_path / "new.csv").write_text("what was said,extra\nI love this boat,x\n")
    code, out, err = predict(text_run, tmp_path / "new.csv", "--text_pair_column", "extra")
    assert (code, out) == (1, "")
    assert "--text_pair_column is 'extra' and --text_column is missing: name both columns" in err


def test_as_many_columns_must_be_named_as_the_model_takes_texts(text_run, pair_run, tmp_path, predict):
    table = tmp_path / "new.csv"
    table.write_text("one,two\nI love this boat,I hate this boat\n")
    code, out, err = predict(pair_run, table, "--text_column", "one")
    assert (code, out) == (1, "")
    assert f"model in {pair_run} judges pairs of texts, and --text_column names one column" in " ".join(
        err.split()
    )
    both = ("--text_column", "one", "--text_pair_column", "two")
    code, out, err = predict(text_run, table, *both)
    assert (code, out) == (1, "")
    assert "judges single texts, and --text_column and --text_pair_column name two" in " ".join(err.split())
    code, out, _ = predict(pair_run, table, *both, "--format", "csv")
    assert (code, len(out.splitlines())) == (0, 2)


def test_columns_that_are_found_by_their_names_must_be_as_many_as_the_model_takes(
    pair_run, tmp_path, predict
):
    (tmp_path / "single.csv").write_text("text\nI love this boat\n")
    (tmp_path / "lines.txt").write_text("I love this boat\n")
    (tmp_path / "pairs.csv").write_text("premise,hypothesis\nI love this boat,I hate this boat\n")
    code, out, err = predict(pair_run, *sorted(tmp_path.iterdir()), "--format", "json")
    assert code == 1
    assert [each["file"] for each in json.loads(out)] == [str(tmp_path / "pairs.csv")]
    said = " ".join(err.split())
    assert "lines.txt: this model judges pairs of texts" in said
    assert "judges pairs of texts, and the samples of" in said


def test_a_folder_that_is_no_artefact_is_an_error(tmp_path, predict):
    code, out, err = predict(tmp_path, "a.png")
    assert (code, out) == (1, "")
    assert "is no artefact" in err


def test_a_reader_that_stops_early_is_no_error(cell_run, solar_cells, headstart):
    program = (
        "import subprocess, sys\n"
        "command = [sys.executable, '-m', 'headstart', 'predict', *sys.argv[1:]]\n"
        "process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "process.stdout.close()\n"
        "print(process.stderr.read().decode(), process.wait())\n"
    )
    done = headstart.python("-c", program, cell_run, solar_cells, "--format", "csv")
    assert done.stdout.split() == ["0"], done.stdout
