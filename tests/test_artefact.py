import json

import pytest
import torch
from torch import nn

from headstart.artefact import load_artefact, read_metadata, save_artefact
from headstart.errors import CheckpointError, MisconfigurationError
from headstart.tasks import ImageClassifier, TextClassifier


@pytest.fixture
def artefact(tmp_path):
    model = ImageClassifier(
        "torchvision:squeezenet1_1", class_names=["a", "b"], pretrained=False, image_size=64
    )
    save_artefact(tmp_path / "run", model, metrics={"test_acc": torch.tensor(0.5), "odd": float("nan")})
    return tmp_path / "run", model.eval()


def change(directory, **values):
    file = directory / "headstart.json"
    kept = {name: value for name, value in json.loads(file.read_text()).items() if name != "checksum"}
    file.write_text(json.dumps({**kept, **values}))


def test_loaded_model_predicts_the_same_in_evaluation_mode(artefact):
    directory, model = artefact
    again = load_artefact(directory)
    images = torch.randn(2, 3, 64, 64)
    assert not again.training
    assert torch.equal(model(images), again(images))
    assert again.preprocessing == model.preprocessing
    assert read_metadata(directory)["metrics"] == {"test_acc": 0.5, "odd": None}


def test_text_model_needs_nothing_but_the_folder(tmp_path, monkeypatch):
    model = TextClassifier(class_names=["a", "b"], pretrained=False).eval()
    save_artefact(tmp_path, model)
    monkeypatch.setattr("headstart.backbones.huggingface.find_spec", lambda _: None)
    again = load_artefact(tmp_path)
    texts = ["one text", "and another one"]
    assert torch.equal(model(model.preprocessing(texts)), again(again.preprocessing(texts)))
    assert "site-packages" not in (tmp_path / "headstart.json").read_text()  # no path of this machine


def test_missing_file_is_named(artefact):
    directory, _ = artefact
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        load_artefact(directory)


def test_weights_of_another_run_are_recognised(artefact):
    directory, _ = artefact
    content = bytearray((directory / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged, or of another run"):
        load_artefact(directory)


def test_newer_format_says_to_upgrade(artefact):
    directory, _ = artefact
    change(directory, format_version=99)
    with pytest.raises(CheckpointError, match="pip install --upgrade headstart"):
        load_artefact(directory)


def test_name_outside_of_the_folder_is_refused(artefact):
    directory, _ = artefact
    files = read_metadata(directory)["files"]
    change(directory, files={**files, "../secret": {"bytes": 1, "sha256": ""}})
    with pytest.raises(CheckpointError, match="may lie outside of the folder"):
        load_artefact(directory)


def test_folder_without_an_artefact_says_what_was_expected(tmp_path):
    with pytest.raises(CheckpointError, match="is no artefact"):
        load_artefact(tmp_path)


def test_failure_in_the_middle_leaves_the_artefact_that_was_there(artefact, monkeypatch):
    directory, model = artefact
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    nn.init.zeros_(model.head.weight)
    with pytest.raises(OSError, match="No space left"):
        save_artefact(directory, model)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_backbone_that_cannot_be_rebuilt_is_refused_before_anything_is_written(tmp_path):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = ImageClassifier(network, class_names=["a", "b"], image_size=8)
    with pytest.raises(MisconfigurationError, match="given as a module"):
        save_artefact(tmp_path / "run", model)
    assert not (tmp_path / "run").exists()
