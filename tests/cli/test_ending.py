"""What an artefact remembers of the data it was made from."""

import pytest
from PIL import Image

from headstart.cli.ending import found_in
from headstart.data import DatasetData, HuggingFaceData


@pytest.mark.parametrize(("make", "count"), [(lambda text: text, 1), (lambda text: (text, "so it is"), 2)])
def test_it_knows_how_many_texts_a_sample_has_wherever_they_come_from(make, count):
    rows = [(make(f"{name} {number}"), name) for name in ("good", "bad") for number in range(9)]
    assert found_in(DatasetData(rows).prepare())["texts_per_sample"] == count


def test_it_knows_the_columns_of_hugging_face_data(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"words": [f"a text, number {n}" for n in range(20)], "gold": ["a", "b"] * 10, "label": [0] * 20}
    data = HuggingFaceData(
        datasets.Dataset.from_dict(rows), text_columns="words", label_column="gold"
    ).prepare()
    found = found_in(data)
    assert (found["text_columns"], found["label_column"]) == (["words"], "gold")
    photo = tmp_path / "photo.png"
    Image.new("L", (8, 8)).save(photo)
    rows = {"image": [str(photo)] * 20, "gold": ["a", "b"] * 10, "text": ["a"] * 20}
    pictures = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    found = found_in(HuggingFaceData(pictures, label_column="gold").prepare())
    assert (found.get("text_columns"), found["label_column"]) == (None, "gold")
