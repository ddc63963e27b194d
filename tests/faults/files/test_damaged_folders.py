"""Damage to an artefact and to stored features is found before they are used."""

import json
import os

import pytest
import torch

from headstart.artefact import load_artefact, read_metadata, save_artefact
from headstart.deferred.store import Store
from headstart.errors import CheckpointError
from headstart.tasks import ImageClassifier, TextClassifier

# ---- an artefact


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    model = ImageClassifier(
        "torchvision:squeezenet1_1", class_names=["a", "b"], pretrained=False, image_size=64
    )
    return save_artefact(tmp_path_factory.mktemp("faults") / "run", model, metrics={"val_acc": 0.5})


def test_a_flipped_bit_at_any_place_of_the_metadata_is_found(artefact, flip):
    path = artefact / "headstart.json"
    for place in range(path.stat().st_size):
        flip(path, place, bit=place % 8)
        with pytest.raises(CheckpointError, match=r"headstart\.json"):
            read_metadata(artefact)
        flip(path, place, bit=place % 8)
    assert read_metadata(artefact)["metrics"] == {"val_acc": 0.5}


def test_metadata_cut_at_any_place_is_found(artefact):
    path = artefact / "headstart.json"
    content = path.read_bytes()
    for length in reversed(range(len(content))):
        os.truncate(path, length)
        with pytest.raises(CheckpointError, match=r"headstart\.json"):
            read_metadata(artefact)
    path.write_bytes(content)


def test_an_edited_name_of_a_class_is_found_and_may_be_meant(artefact, tmp_path):
    path = artefact / "headstart.json"
    content = path.read_text()
    try:
        path.write_text(content.replace('"a",', '"c",'))
        with pytest.raises(
            CheckpointError, match='was changed after it was written.*delete its line "checksum"'
        ):
            read_metadata(artefact)
        path.write_text(
            "".join(
                line for line in path.read_text().splitlines(keepends=True) if "checksum" not in line
            ).replace("},\n}", "}\n}")
        )
        assert read_metadata(artefact)["class_names"] == ["c", "b"]
    finally:
        path.write_text(content)


@pytest.mark.parametrize("place", [0, 7, 8, 500, 100_000, -1])
def test_a_flipped_bit_in_the_weights_is_found(artefact, flip, place):
    path = artefact / "model.safetensors"
    place %= path.stat().st_size
    flip(path, place)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is not the file .*damaged.*Copy the whole folder"
    ):
        load_artefact(artefact)
    flip(path, place)
    assert load_artefact(artefact).class_names == ["a", "b"]


def test_weights_cut_short_are_found(artefact):
    path = artefact / "model.safetensors"
    content = path.read_bytes()
    os.truncate(path, len(content) - 1)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is not the file .*expected [\d,]+\): it is damaged"
    ):
        load_artefact(artefact)
    path.write_bytes(content)


@pytest.mark.slow
def test_damage_to_a_tokenizer_is_found(tmp_path, flip):
    save_artefact(tmp_path / "run", TextClassifier(class_names=["a", "b"], pretrained=False))
    for path in sorted((tmp_path / "run" / "tokenizer").iterdir()):
        flip(path, path.stat().st_size // 2)
        with pytest.raises(CheckpointError, match=rf"{path.name} is not the file"):
            load_artefact(tmp_path / "run")
        flip(path, path.stat().st_size // 2)


# ---- stored features

LAYOUT = {"num_samples": 5, "shape": (3,), "dtype": torch.float32}


@pytest.fixture
def features(tmp_path):
    with Store(directory=tmp_path) as store:
        store.column("backbone(x)", **LAYOUT).put(torch.arange(5), torch.ones(5, 3))
    return tmp_path


def rows_found(folder):
    """How many rows a store finds, and what it says."""
    notes = []
    with Store(directory=folder, on_note=notes.append) as store:
        return store.column("backbone(x)", **LAYOUT).num_filled, " ".join(notes)


def test_whole_features_are_found(features):
    assert rows_found(features) == (5, "")


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_a_flipped_bit_at_any_place_of_stored_features_is_found_and_they_are_computed_again(
    features, flip, suffix
):
    (path,) = features.glob(f"*{suffix}")
    for place in range(path.stat().st_size):
        flip(path, place, bit=place % 8)
        num_rows, said = rows_found(features)
        assert num_rows == 0
        assert path.stem in said and "is not used, its values are computed again: " in said
        flip(path, place, bit=place % 8)
    assert rows_found(features) == (5, "")


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_stored_features_cut_at_any_place_are_computed_again(features, suffix):
    (path,) = features.glob(f"*{suffix}")
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        num_rows, said = rows_found(features)
        assert num_rows == 0
        assert "is not used, its values are computed again: " in said


def test_features_with_a_crafted_table_are_not_mapped_outside_of_the_file(features):
    from headstart.deferred import saved

    (path,) = features.glob("*.json")
    os.truncate(path.with_suffix(".npy"), 10)
    fields = json.loads(path.read_text())
    del fields["own_checksum"]
    with path.with_suffix(".npy").open("rb") as file:
        fields["checksums"] = saved._checksums(file)
    path.write_bytes(saved._encode(fields))
    assert rows_found(features)[0] == 0
