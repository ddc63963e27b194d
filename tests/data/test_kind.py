from __future__ import annotations

import pytest

from headstart.data import detect_kind
from headstart.errors import DataError


def test_a_folder_of_folders_holds_images_and_a_table_texts(images, write_table):
    images.add("cat", 1)
    assert detect_kind(images.root) == "images"
    for name in ("a.csv", "a.TSV", "a.jsonl"):
        assert detect_kind(write_table(name, "x")) == "text"


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        ("reviews.csv", "review.csv", r"no file or folder '.*review.csv'. Did you mean 'reviews.csv'\?"),
        ("photos.zip", "photos.zip", "is a .zip file. Unpack it first. Expected a folder"),
        ("photo.jpg", "photo.jpg", "is a .jpg file. Expected a folder"),
        ("folder/1.jpg", "folder", "images without classes: put them into a folder per class"),
        ("folder/train.csv", "folder", "a folder of tables: name one of them, for example .*train.csv"),
        ("folder/.hidden/x", "folder", "has no folders in it"),
    ],
)
def test_anything_else_is_named_with_what_is_expected(tmp_path, made, asked, message):
    (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / made).touch()
    with pytest.raises(DataError, match=message):
        detect_kind(tmp_path / asked)
