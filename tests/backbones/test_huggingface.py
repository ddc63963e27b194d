"""Folders in the Hugging Face layout, each with one thing that is wrong or odd."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from headstart.backbones import TextPreprocessing, load_backbone, rebuild_backbone
from headstart.errors import CheckpointError, MisconfigurationError

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def bert_folder(tmp_path):
    """A small BERT with random weights and MiniLM's tokenizer."""
    from transformers import BertConfig, BertModel

    folder = tmp_path / "bert"
    BertModel(BertConfig(**SMALL, vocab_size=30522)).save_pretrained(folder)
    load_backbone("minilm", pretrained=False).preprocessing.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def vit_classifier(tmp_path):
    """A small ViT as an image classifier, which has no pooler, and its folder."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    model = ViTForImageClassification(ViTConfig(**SMALL, image_size=32, patch_size=8, num_labels=3)).eval()
    model.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    return model, tmp_path / "vit"


def change(file, **values):
    found = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**found, **values}))


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Put a Python file into a folder, and give what tells whether it ran and what was asked meanwhile."""
    ran, questions = tmp_path / "ran", []

    def say_yes(question=""):
        questions.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", say_yes)

    def plant(folder):
        # Every name that an "auto_map" below asks for.
        (folder / "evil.py").write_text(
            f"from pathlib import Path\nPath({str(ran)!r}).touch()\nclass Evil:\n    pass\n"
        )
        return lambda: (ran.exists(), questions)

    return plant


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "own", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}},
        # A type that transformers has a configuration for, and no model.
        {"model_type": "siglip_text_model", "auto_map": {"AutoModel": "evil.Evil"}},
    ],
    ids=["configuration", "model"],
)
def test_code_in_a_folder_is_neither_run_nor_asked_about(bert_folder, planted, config, pretrained):
    observed = planted(bert_folder)
    change(bert_folder / "config.json", **config)
    with pytest.raises(MisconfigurationError, match="needs code of its own, and headstart runs none"):
        load_backbone(str(bert_folder), pretrained=pretrained)
    assert observed() == (False, [])


def test_code_of_a_tokenizer_is_neither_run_nor_asked_about(bert_folder, planted):
    observed = planted(bert_folder)
    change(bert_folder / "config.json", model_type="siglip_vision_model")
    change(
        bert_folder / "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
    )
    files = {path.name: path.read_bytes() for path in bert_folder.iterdir() if path.suffix != ".safetensors"}
    with pytest.raises(MisconfigurationError, match="needs code of its own, and headstart runs none"):
        TextPreprocessing.from_files(files, {"max_length": 8})  # as an artefact does
    assert observed() == (False, [])


def test_code_of_an_image_processor_is_neither_run_nor_asked_about(vit_classifier, planted):
    _, folder = vit_classifier
    observed = planted(folder)
    change(
        folder / "preprocessor_config.json",
        image_processor_type="Evil",
        auto_map={"AutoImageProcessor": "evil.Evil"},
    )
    with pytest.raises(MisconfigurationError, match="needs code of its own, and headstart runs none"):
        load_backbone(str(folder))
    assert observed() == (False, [])


def test_code_beside_a_known_model_is_left_alone(bert_folder, planted):
    observed = planted(bert_folder)
    change(bert_folder / "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    change(bert_folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    backbone = load_backbone(str(bert_folder))
    rebuild_backbone(backbone.describe(), tokenizer_files=backbone.preprocessing.files())
    assert observed() == (False, [])


def test_weights_that_lack_a_layer_are_refused_by_name(bert_folder):
    weights = load_file(bert_folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "encoder.layer.1." not in name}
    save_file(kept, bert_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack 16 .*encoder\.layer\.1\.attention.* and 12 more"):
        load_backbone(str(bert_folder))
    assert load_backbone(str(bert_folder), pretrained=False).width == 16


def test_image_weights_that_lack_a_layer_are_refused_by_name(vit_classifier):
    _, folder = vit_classifier
    weights = load_file(folder / "model.safetensors")
    removed = [name for name in weights if "layer" in name and ".1." in name]
    kept = {name: value for name, value in weights.items() if name not in removed}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"lack {len(removed)} .*\.1\."):
        load_backbone(str(folder))


def test_weights_of_another_shape_are_refused(bert_folder):
    weights = load_file(bert_folder / "model.safetensors")
    name = "embeddings.position_embeddings.weight"
    weights[name] = weights[name][:7].clone()
    save_file(weights, bert_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"do not fit the configuration in 1 .*{name}"):
        load_backbone(str(bert_folder))


def test_damaged_weights_are_named(bert_folder):
    file = bert_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"bert' are damaged"):
        load_backbone(str(bert_folder))


def test_weights_without_a_pooler_are_enough_for_text(bert_folder):
    weights = load_file(bert_folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    assert len(kept) == len(weights) - 2
    save_file(kept, bert_folder / "model.safetensors", metadata={"format": "pt"})
    assert load_backbone(str(bert_folder)).width == 16


def test_encoder_of_a_pair_needs_no_decoder(bert_folder):
    from transformers import T5Config, T5Model

    (bert_folder / "model.safetensors").unlink()
    config = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=30522)
    T5Model(config).save_pretrained(bert_folder)
    weights = load_file(bert_folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("decoder.")}
    assert len(kept) < len(weights)
    save_file(kept, bert_folder / "model.safetensors", metadata={"format": "pt"})
    backbone = load_backbone(str(bert_folder))
    assert torch.equal(backbone.model.state_dict()["embed_tokens.weight"], weights["shared.weight"])


def test_features_of_an_image_classifier_are_what_its_own_classifier_reads(vit_classifier):
    model, folder = vit_classifier
    backbone = load_backbone(str(folder)).eval()
    images = torch.randn(2, 3, 32, 32)
    # The same operations in the same order, so bit for bit; a random pooler would differ from load to load.
    assert torch.equal(model.classifier(backbone(images)), model(images).logits)
    assert not any("pooler" in name for name, _ in backbone.named_parameters())
    again = rebuild_backbone(backbone.describe()).eval()
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(backbone(images), again(images))


def test_pooling_without_weights_stays_with_the_network(tmp_path):
    from transformers import ResNetConfig, ResNetModel, ViTImageProcessor

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path)).eval()
    images = torch.randn(2, 3, 32, 32)
    maps = backbone.model(images).last_hidden_state  # (B, D, H, W)
    # Float32 rounding of another order.
    torch.testing.assert_close(backbone(images), maps.mean(dim=(2, 3)), rtol=0, atol=1e-6)
    assert backbone.width == 16
