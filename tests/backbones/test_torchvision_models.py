import pytest
import torch
from torchvision import models

from headstart.backbones import load_backbone
from headstart.backbones.torchvision_models import remove_head

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
