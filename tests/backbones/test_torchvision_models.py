import pytest
import torch
from torchvision import models

from headstart.artefact import load_artefact, save_artefact
from headstart.backbones import load_backbone
from headstart.backbones.torchvision_models import remove_head
from headstart.export.whole import whole_network
from headstart.tasks import ImageClassifier

ONE_OF_EACH_FAMILY = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_32", "wide_resnet50_2",
]  # fmt: skip


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_every_family_gives_features_of_the_width_that_is_said(name):
    settings = {"init_weights": True} if name in {"googlenet", "inception_v3"} else {}
    # Shapes without the arithmetic; RegNet computes its widths from tensors while it is built.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = models.get_model(name, weights=None, **settings).eval()
        _, width = remove_head(model)
        size = {"inception_v3": 299}.get(name, 224)
        assert tuple(model(torch.zeros(2, 3, size, size)).shape) == (2, width)


def test_preprocessing_is_that_of_the_default_weights():
    preprocessing = load_backbone("torchvision:efficientnet_b0", pretrained=False).preprocessing
    assert (preprocessing.size, preprocessing.interpolation) == (224, "bicubic")
    assert preprocessing.crop_fraction == pytest.approx(224 / 256)


def test_blocks_come_in_order_and_hold_every_parameter():
    backbone = load_backbone("torchvision:resnet18", pretrained=False)
    names = [name for name, _ in backbone.blocks()]
    assert names[0] == "model.conv1"
    assert names[-1] == "model.layer4.1"
    held = sum(p.numel() for _, block in backbone.blocks() for p in block.parameters())
    assert held == sum(p.numel() for p in backbone.parameters())


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_what_was_built_with_the_default_weights_predicts_the_same_after_save_and_load(
    name, tmp_path, monkeypatch
):
    downloaded = models.get_model(name, weights=None, init_weights=True).state_dict()
    weights = models.get_model_weights(name)
    monkeypatch.setattr(weights, "get_state_dict", lambda *_, **__: downloaded)
    torch.manual_seed(0)
    model = ImageClassifier(f"torchvision:{name}", class_names=["cat", "dog"])
    photos = torch.rand(4, 3, 96, 96) * 4 - 2
    with torch.no_grad():
        for _ in range(20):
            model(
                photos
            )  # norms learn what comes in, without which random layers let next to nothing through
        model.eval()
        save_artefact(tmp_path / "run", model, metrics={}, data_report={}, history={})
        loaded = load_artefact(tmp_path / "run")
        assert torch.equal(loaded(photos), model(photos))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_an_exported_network_transforms_its_input_as_the_default_weights_ask(name):
    with torch.device("meta"):
        network, _ = whole_network({"library": "torchvision", "model": name}, 2)
    assert network.transform_input


def test_a_vision_transformer_has_the_image_size_of_its_default_weights():
    with torch.device("meta"):  # 2.5 GB otherwise
        backbone = load_backbone("torchvision:vit_h_14", pretrained=False)
        network, _ = whole_network(backbone.architecture, 2)
    assert backbone.model.image_size == network.image_size == backbone.preprocessing.size == 518
