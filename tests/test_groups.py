"""Which parameter belongs to which block, and the words that choose among them."""

import pytest
import timm
import torchvision
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from headstart.backbones import load_backbone
from headstart.errors import MisconfigurationError
from headstart.groups import layout_of


class Net(nn.Module):
    def __init__(self, backbone, width=8):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, 2)


def toy():
    return Net(
        nn.Sequential(
            nn.Linear(4, 8), nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        )
    )


def test_the_blocks_of_a_network_are_in_order_and_take_a_lone_norm_along():
    layout = layout_of(toy())
    assert layout.blocks == (
        ("backbone.0.weight", "backbone.0.bias", "backbone.1.weight", "backbone.1.bias"),
        ("backbone.2.0.weight", "backbone.2.0.bias"),
        ("backbone.2.2.weight", "backbone.2.2.bias"),
    )
    assert layout.head == ("head.weight", "head.bias")
    assert layout.norms == {"backbone.1.weight", "backbone.1.bias"}


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ("head", ["head.weight", "head.bias"]),
        ("last block", ["backbone.2.2.weight", "backbone.2.2.bias"]),
        ("last 2 blocks", ["backbone.2.0.weight", "backbone.2.0.bias", "backbone.2.2.weight", "backbone.2.2.bias"]),
        ("first block", ["backbone.0.weight", "backbone.0.bias", "backbone.1.weight", "backbone.1.bias"]),
        ("block 1", ["backbone.2.0.weight", "backbone.2.0.bias"]),
        ("norms", ["backbone.1.weight", "backbone.1.bias"]),
        (["backbone", "!biases", "!norms"], ["backbone.0.weight", "backbone.2.0.weight", "backbone.2.2.weight"]),
        ("*.2.?.weight", ["backbone.2.0.weight", "backbone.2.2.weight"]),
        (["all", "!backbone.*"], ["head.weight", "head.bias"]),
    ],
)  # fmt: skip
def test_words_choose(words, chosen):
    assert layout_of(toy()).choose(words) == chosen


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("haed", "Did you mean 'head'"),
        ("backbone.2.weight", "Did you mean 'backbone.2"),
        ("backbone.3.*", "Did you mean 'backbone.2.*'"),
        ("backbone.2", "Did you mean 'backbone.2.*'"),
        ("block 3", "has 3 blocks: expected 'block 0' to 'block 2'."),
        (
            "last 4 blocks",
            "has 3 blocks: expected 'last block' to 'last 3 blocks'; of a plan with a name, num_blocks=3 at most.",
        ),
        ("first 99 blocks", "has 3 blocks: expected 'first block' to 'first 3 blocks'"),
        ("last 0 blocks", "has 3 blocks: expected 'last block' to 'last 3 blocks'"),
    ],
)
def test_a_word_that_chooses_nothing_is_an_error_with_the_nearest(word, hint):
    with pytest.raises(MisconfigurationError, match="chooses no parameter") as raised:
        layout_of(toy()).choose(word)
    assert hint in str(raised.value)


def test_all_blocks_may_be_asked_for():
    layout = layout_of(toy())
    assert layout.choose("last 3 blocks") == layout.choose("first 3 blocks") == layout.choose("backbone")


def test_a_pattern_that_is_nearly_right_is_answered_with_a_pattern():
    layout = layout_of(Net(torchvision.models.resnet18(), 1000))
    with pytest.raises(MisconfigurationError, match=r"Did you mean 'backbone.layer4.\*'\?"):
        layout.choose("backbone.layr4.*")


def test_a_head_that_is_not_there_is_answered_with_the_backbone_that_leaves_one():
    net = nn.Module()
    net.net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(
        MisconfigurationError, match="all of this network is in its backbone. Say backbone=''"
    ):
        layout_of(net, backbone="net").choose("head")
    assert layout_of(net, backbone="").choose("head") == ["net.1.weight", "net.1.bias"]
    with pytest.raises(
        MisconfigurationError, match="'norms' chooses no parameter: this network has none of them"
    ):
        layout_of(net, backbone="net").choose("norms")
    lone = layout_of(nn.Sequential(nn.Linear(2, 2)), backbone="")
    with pytest.raises(
        MisconfigurationError, match="'last block' .*: this network has 0 blocks beside its head"
    ):
        lone.choose("last block")


def test_a_backbone_that_has_two_names_is_no_head():
    net = nn.Module()
    net.model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), nn.Linear(2, 1))
    net.backbone = net.model[0]
    layout = layout_of(net)
    assert layout.head == ("model.1.weight", "model.1.bias")
    assert layout == layout_of(net, backbone="model.0")


def test_a_weight_that_head_and_backbone_share_is_the_backbone_s():
    net = nn.Module()
    net.head = nn.Linear(2, 2)
    net.backbone = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net.backbone[0].weight = net.head.weight
    layout = layout_of(net)
    assert layout.head == ("head.bias",)
    assert layout.blocks[0] == ("head.weight", "backbone.0.bias")


def test_a_part_that_is_not_there_is_an_error_with_those_that_are():
    with pytest.raises(MisconfigurationError, match=r"no part 'backbon'. Did you mean 'backbone'"):
        layout_of(toy(), backbone="backbon")


def test_of_a_network_as_a_whole_the_last_block_is_the_head():
    layout = layout_of(torchvision.models.resnet18(), backbone="")
    assert layout.head == ("fc.weight", "fc.bias")
    assert [block[0] for block in layout.blocks] == [
        "conv1.weight",
        *(f"layer{stage}.{block}.conv1.weight" for stage in (1, 2, 3, 4) for block in (0, 1)),
    ]
    assert layout.blocks[0] == ("conv1.weight", "bn1.weight", "bn1.bias")


def test_timm_says_itself_what_its_blocks_are():
    backbone = load_backbone("efficientnet_lite0", pretrained=False)
    layout = layout_of(Net(backbone, backbone.width))
    assert layout.blocks[0] == (
        "backbone.model.conv_stem.weight", "backbone.model.bn1.weight", "backbone.model.bn1.bias",
    )  # fmt: skip
    assert "backbone.model.conv_head.weight" in layout.blocks[-1]
    assert len(layout.blocks) == 17  # the stem, and 16 blocks, the last one with the convolution behind it
    vit = layout_of(Net(timm.create_model("vit_tiny_patch16_224", num_classes=0)))
    assert "backbone.cls_token" in vit.blocks[0]
    assert len(vit.blocks) >= 13


def test_the_layers_of_a_transformer_are_its_blocks():
    config = BertConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, vocab_size=9
    )
    layout = layout_of(Net(BertModel(config, add_pooling_layer=False)))
    assert [block[0].split(".")[1:4] for block in layout.blocks] == [
        ["embeddings", "word_embeddings", "weight"], *(["encoder", "layer", str(layer)] for layer in range(3)),
    ]  # fmt: skip


def test_a_transformer_has_its_layers_as_blocks_however_deep_it_stands():
    minilm = load_backbone("minilm")
    layout = layout_of(Net(minilm, minilm.width))
    assert [len(block) for block in layout.blocks] == [5, *[16] * 6]
    config = BertConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, vocab_size=9
    )
    whole = layout_of(BertForSequenceClassification(config), backbone="")
    assert whole.head == ("classifier.weight", "classifier.bias")
    assert [block[0].partition("layer.")[2][:1] for block in whole.blocks] == ["", "0", "1", "2", ""]


def test_what_stages_of_blocks_are_made_of_is_no_block():
    def block():
        return nn.Sequential(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU()))

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Module()
            self.first.conv = block()
            self.second = nn.Module()
            self.second.conv = block()

    class Stages(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = Stage(), Stage()

    assert [len(each) for each in layout_of(Net(Stages(), 1)).blocks] == [8, 8]


def test_a_timm_model_within_a_wrapper_has_the_same_blocks_and_a_lone_norm_goes_with_what_is_before():
    model = timm.create_model("convnext_atto", num_classes=0)
    wrapper = nn.Module()
    wrapper.body = model
    bare, wrapped = layout_of(Net(model)).blocks, layout_of(Net(wrapper)).blocks
    assert [len(block) for block in wrapped] == [len(block) for block in bare]
    assert bare[-1][-2:] == ("backbone.head.norm.weight", "backbone.head.norm.bias")
    assert len(bare[-1]) == 11


@pytest.mark.parametrize("make", [toy, lambda: Net(torchvision.models.resnet50(), 1000), lambda: Net(load_backbone("efficientnet_lite0", pretrained=False))])  # fmt: skip
def test_every_parameter_has_one_place(make):
    net = make()
    assert sorted(layout_of(net).names) == sorted(name for name, _ in net.named_parameters())
