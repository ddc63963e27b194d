"""Signatures within a run, digests from run to run: equal where nothing changed, different where anything did."""

import collections
import functools
import io
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from headstart.data.text import TextCollate
from headstart.deferred.fingerprint import (
    StateSum,
    content_digest,
    module_digest,
    signature,
    why_no_digest,
)

BOTH = pytest.mark.parametrize("fingerprint", [signature, content_digest])


def old_transform(p=0.5):
    return transforms.Compose(
        [transforms.Resize(8), transforms.RandomHorizontalFlip(p), transforms.ToTensor()]
    )


def new_transform(p=0.5):
    return v2.Compose([v2.Resize(8), v2.RandomHorizontalFlip(p), v2.ToImage(), v2.ToDtype(torch.float32)])


class Items(Dataset):
    def __init__(self, items, transform=None):
        self.items = items
        self.transform = transform

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.transform(self.items[index])


class Slotted:
    __slots__ = ("__hidden", "shown")

    def __init__(self, hidden):
        self.__hidden = hidden


class WithCache(Items):
    fingerprint_excludes = ("cache",)

    def __init__(self, items):
        super().__init__(items)
        self.cache = {}


class Named:
    def __init__(self, name, **others):
        self._fingerprint = name
        vars(self).update(others)


class PassesOn:
    def __init__(self, dataset, size):
        self.dataset = dataset
        self.size = size

    def __getattr__(self, name):
        return getattr(self.dataset, name)


@pytest.fixture
def folder(tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (9, 9), "red").save(tmp_path / name / f"{number}.png")
    return tmp_path


def tokenizer(max_length=8, words=("good", "bad")):
    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1} | {w: 2 + i for i, w in enumerate(words)}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", model_max_length=max_length
    )


def changes(fingerprint, value, change):
    """Whether the fingerprint of `value` is the same twice, and another one after `change(value)`."""
    before = fingerprint(value)
    assert before is not None
    assert fingerprint(value) == before
    change(value)
    return fingerprint(value) != before


# ---- datasets


@BOTH
@pytest.mark.parametrize("make", [old_transform, new_transform])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: setattr(data, "transform", old_transform(0.4)),
        lambda data: setattr(data.transform.transforms[1], "p", 0.4),
        lambda data: data.transform.transforms.reverse(),
        lambda data: data.samples.pop(),
        lambda data: data.targets.__setitem__(0, 1),
        lambda data: setattr(data, "target_transform", int),
    ],
    ids=["swapped", "probability", "order", "sample", "target", "target transform"],
)
def test_a_changed_image_folder_is_noticed(fingerprint, make, change, folder):
    assert changes(fingerprint, ImageFolder(folder, make()), change)


@BOTH
@pytest.mark.parametrize(
    "change",
    [
        lambda data: setattr(data.datasets[0], "indices", [0, 2]),
        lambda data: data.datasets[0].indices.append(2),
        lambda data: data.datasets[0].dataset.tensors[0].add_(1),
        lambda data: data.datasets[1].tensors[0].data.mul_(2),
        lambda data: data.datasets.reverse(),
        lambda data: setattr(data.datasets[1], "tensors", (torch.ones(2), torch.ones(2))),
    ],
    ids=["indices", "indices in place", "tensor in place", "tensor through data", "order", "tensors"],
)
def test_a_change_inside_combined_datasets_is_noticed(fingerprint, change):
    rows = TensorDataset(torch.arange(6.0).view(3, 2), torch.arange(3))
    assert changes(fingerprint, ConcatDataset([Subset(rows, [0, 1]), TensorDataset(torch.ones(2))]), change)


@BOTH
def test_a_dataset_of_numbers_that_are_none_is_the_same_twice(fingerprint):
    data = StackDataset(torch.full((2,), torch.nan), np.full(2, np.nan), [float("nan"), 1])
    assert fingerprint(data) == fingerprint(data)


@BOTH
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_another_long_list_in_the_place_of_one_is_noticed(fingerprint, kind):
    numbers = list(range(5000))
    numbers[77] = -1
    data = Items(kind(range(5000)))
    assert changes(fingerprint, data, lambda data: setattr(data, "items", kind(numbers)))


@BOTH
@pytest.mark.parametrize(
    "items",
    [
        list(range(5000)),
        dict.fromkeys(range(5000), 0),
        set(range(5000)),
        np.array([[1], "a"], object),
        np.ones(0),
    ],
    ids=["list", "dict", "set", "objects", "empty"],
)
def test_settings_beside_long_data_may_be_set_anew_to_what_they_were(fingerprint, items):
    data = Items(items, old_transform())
    assert not changes(fingerprint, data, lambda data: setattr(data, "transform", old_transform()))
    assert changes(fingerprint, data, lambda data: setattr(data, "transform", old_transform(0.4)))


def test_a_digest_sees_an_element_replaced_in_a_long_list():
    assert changes(content_digest, Items(list(range(5000))), lambda data: data.items.__setitem__(77, -1))


@BOTH
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (-1, -2),  # of one hash
        (0.0, -0.0),
        ("1", 1),
        ("a", b"a"),
        ([1], (1,)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([["a"], "b"], [["a", "b"]]),
        (torch.zeros(2), torch.zeros(2, 1)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (np.float32(1), np.float64(1)),
        (transforms.InterpolationMode.BILINEAR, transforms.InterpolationMode.NEAREST),
        (collections.defaultdict(int), collections.defaultdict(float)),
        (functools.partial(int, base=2), functools.partial(int, base=3)),
        (Slotted(1), Slotted(2)),
        (len, sum),
        (Path("a"), Path("b")),
    ],
)
def test_values_that_are_not_alike_have_other_fingerprints(fingerprint, one, other):
    assert fingerprint(one) != fingerprint(other)


@BOTH
def test_equal_sets_are_equal_whatever_their_history(fingerprint):
    again = set(range(8, 40))
    again.update(range(8))
    again -= set(range(8, 40))
    assert fingerprint(again) == fingerprint(set(range(8)))


@BOTH
def test_a_value_that_holds_itself_is_read_once(fingerprint):
    items = [1]
    items.append(items)
    assert fingerprint(items) == fingerprint(items)


@BOTH
def test_named_attributes_may_change(fingerprint):
    data = WithCache([1, 2])
    assert not changes(fingerprint, data, lambda data: data.cache.update({0: 1}))
    assert changes(fingerprint, data, lambda data: data.items.append(3))


@BOTH
def test_what_an_object_says_of_itself_is_believed(fingerprint):
    assert fingerprint(Named("one", file=1)) == fingerprint(Named("one", file=2)) != fingerprint(Named("two"))


@BOTH
def test_what_a_wrapped_dataset_says_of_itself_does_not_speak_for_the_wrapper(fingerprint):
    assert fingerprint(PassesOn(Named("one"), 1)) != fingerprint(PassesOn(Named("one"), 2))


# ---- functions


def scaled(factor):
    return lambda x: x * factor


SIZE = 3


def sized(x):
    return helper(x) * SIZE


def helper(x):
    return x


@BOTH
def test_another_value_in_a_closure_or_another_default_is_noticed(fingerprint):
    assert fingerprint(scaled(2)) == fingerprint(scaled(2)) != fingerprint(scaled(3))
    assert fingerprint(lambda x, y=1: x) != fingerprint(lambda x, y=2: x)


@BOTH
def test_another_body_is_noticed(fingerprint):
    assert fingerprint(lambda x: x + 1) != fingerprint(lambda x: x + 2)
    assert fingerprint(lambda x: [i + 1 for i in x]) != fingerprint(lambda x: [i + 2 for i in x])
    assert fingerprint(lambda x: x.real) != fingerprint(lambda x: x.imag)


@BOTH
@pytest.mark.parametrize(("name", "value"), [("SIZE", 4), ("helper", lambda x: -x)])
def test_another_value_of_a_global_that_a_function_uses_is_noticed(fingerprint, name, value, monkeypatch):
    assert changes(fingerprint, sized, lambda _: monkeypatch.setitem(globals(), name, value))


@BOTH
def test_another_method_of_the_class_is_noticed(fingerprint, monkeypatch):
    data = Items([1], abs)
    assert changes(
        fingerprint, data, lambda _: monkeypatch.setattr(Items, "__getitem__", lambda self, index: 1)
    )


@BOTH
def test_a_bound_method_is_known_with_its_owner(fingerprint):
    assert fingerprint(Items([1]).__getitem__) != fingerprint(Items([2]).__getitem__)


# ---- tokenizers


@BOTH
@pytest.mark.parametrize(
    "change",
    [
        lambda collate: setattr(collate.tokenize, "model_max_length", 9),
        lambda collate: setattr(collate.tokenize, "padding_side", "left"),
        lambda collate: setattr(collate.tokenize, "truncation_side", "left"),
        lambda collate: collate.tokenize.add_tokens(["fine"]),
        lambda collate: setattr(collate, "tokenize", tokenizer(words=("good", "poor"))),
    ],
    ids=["length", "padding side", "truncation side", "word", "vocabulary"],
)
def test_a_changed_tokenizer_is_noticed(fingerprint, change):
    assert changes(fingerprint, TextCollate(tokenizer(), labelled=False), change)


@BOTH
def test_a_used_tokenizer_is_the_same(fingerprint):
    def use(tokenize):
        assert len(tokenize(["good bad good"], truncation=True, max_length=2)["input_ids"][0]) == 2

    assert not changes(fingerprint, tokenizer(), use)


@BOTH
def test_truncation_set_on_a_bare_tokenizer_is_noticed(fingerprint):
    assert changes(fingerprint, tokenizer().backend_tokenizer, lambda bare: bare.enable_truncation(2))


# ---- files


def test_a_replaced_file_is_noticed(folder):
    path = folder / "cats" / "0.png"
    values = [ImageFolder(folder), Items([str(path)]), Items([path]), Items([], str(folder)), [str(path)]]
    before = [content_digest(value) for value in values]
    os.utime(path, ns=(1, 1))
    after = [content_digest(value) for value in values]
    assert None not in before
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_a_folder_whose_links_lead_in_a_circle_is_read_to_an_end(folder):
    (folder / "cats" / "again").symlink_to(folder)
    assert content_digest(Items([], folder)) is not None


# ---- doubt


def test_anything_unknown_gives_no_digest_and_the_reason(tmp_path):
    with (tmp_path / "open").open("w") as file:
        for value, name in [
            (file, "TextIOWrapper"),
            ((number for number in ()), "generator"),
            (threading.Lock(), "lock"),
            (torch.zeros(2).to_sparse(), "torch.sparse_coo"),
            (torch.empty(2, device="meta"), "on meta"),
            (io.BytesIO().getbuffer(), "memoryview"),
        ]:
            data = Items([1], Items([value]))
            assert content_digest(data) is None
            assert why_no_digest(data).startswith("transform.items: ")
            assert name in why_no_digest(data)
            assert content_digest(lambda: value) is None  # noqa: B023
            assert signature(data) == signature(data)


def test_nesting_without_end_gives_no_digest_and_a_signature_that_equals_none():
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert why_no_digest(deep) == "nested too deep"
    assert signature(deep) != signature(deep)


def test_a_broken_network_attribute_gives_no_digest_and_the_reason():
    network = nn.Linear(2, 2)
    network.lock = threading.Lock()
    assert module_digest(network) is None
    assert why_no_digest(network) == "lock: cannot be pickled: a _thread.lock"


# ---- networks


def networks():
    return {
        "timm": timm.create_model("tf_efficientnet_lite0", pretrained=False),
        "transformers": BertModel(
            BertConfig(
                hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9
            )
        ),
        "recurrent": nn.LSTM(2, 3),
        "functions": nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.BatchNorm1d(2)),
    }


def test_networks_have_digests():
    assert {name: why_no_digest(network) for name, network in networks().items()} == dict.fromkeys(networks())


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.scale = 1.0
        self.act = torch.relu
        self.register_buffer("shift", torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.act(self.norm(x)) * self.scale + self.shift


@pytest.mark.parametrize("fingerprint", [signature, module_digest])
@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.norm.weight.data[1].mul_(1 + 2**-23),
        lambda net: net.norm.running_mean[0].add_(1),
        lambda net: net.norm.num_batches_tracked.add_(1),
        lambda net: net.shift.add_(1),
        lambda net: setattr(net.norm, "eps", 1e-6),
        lambda net: setattr(net, "scale", 2.0),
        lambda net: setattr(net, "act", torch.sigmoid),
        lambda net: net.half(),
        lambda net: setattr(net, "norm", nn.Identity()),
        lambda net: setattr(net, "forward", lambda x: x),
    ],
    ids=["weight", "buffer", "counter", "unsaved", "eps", "scalar", "function", "dtype", "layer", "forward"],
)
def test_a_changed_network_is_noticed(fingerprint, change):
    assert changes(fingerprint, Scaled(), change)


def test_another_forward_of_the_class_is_noticed(monkeypatch):
    assert changes(
        module_digest, Scaled(), lambda _: monkeypatch.setattr(Scaled, "forward", lambda self, x: x)
    )
    relu = nn.Sequential(nn.ReLU())
    assert changes(module_digest, relu, lambda _: monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x))


def test_what_does_not_change_a_networks_function_does_not_change_its_digest():
    def use(net):
        net.eval()
        net.register_forward_hook(print)
        net.norm.weight.grad = torch.ones(2)
        net.norm.weight.requires_grad_(False)

    assert not changes(module_digest, Scaled(), use)


# ---- second processes


OWN = """
    import functools, json, sys
    import timm, torch, torchvision
    from PIL import Image
    from torchvision.transforms import v2
    from headstart.deferred.fingerprint import content_digest, module_digest

    @functools.cache
    def allowed():
        return {"red", "green", "blue"}

    class Own(torchvision.datasets.ImageFolder):
        colours = frozenset({"red", "green", "blue"})

        @functools.cached_property
        def size(self):
            return 8

        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            return image, target in {1, 2, "red"}, allowed()

    def digests(folder):
        transform = v2.Compose([v2.Resize(8), v2.ToImage(), v2.Lambda(lambda x: x / 255)])
        torch.manual_seed(0)
        net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        torch.manual_seed(0)
        return [content_digest(Own(str(folder), transform)), module_digest(net),
                module_digest(torchvision.models.mobilenet_v3_small())]

    if __name__ == "__main__":
        import own
        print(json.dumps(own.digests(sys.argv[1])))
"""


@pytest.mark.slow
def test_a_second_process_gives_the_same_digests(folder, tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("code")
    (place / "own.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(place)
    import own

    here = own.digests(folder)
    there = subprocess.run(
        [sys.executable, place / "own.py", folder],
        capture_output=True,
        check=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "3"},
    )
    assert json.loads(there.stdout) == here
    assert None not in here


# ---- weights


def state_sum(tensors):
    return StateSum(tensors).value()


@pytest.fixture(scope="module")
def weights():
    return list(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict().values())


def test_one_flipped_bit_anywhere_changes_the_sum(weights):
    before = state_sum(weights)
    generator = torch.Generator().manual_seed(0)
    for number in range(0, len(weights), 3):
        as_bytes = weights[number].view(-1).view(torch.uint8)
        place = int(torch.randint(len(as_bytes), (), generator=generator))
        for bit in (1, 128):  # the sign too
            as_bytes[place] ^= bit
            assert state_sum(weights) != before
            as_bytes[place] ^= bit
    assert state_sum(weights) == before


def test_swapped_elements_through_data_change_the_sum():
    weight = nn.Parameter(torch.randn(300, 600))
    small = nn.Parameter(torch.randn(5))
    before = state_sum([weight, small])
    for parameter, one, other in [(weight, 0, 1), (weight, 3, 3 + 1024), (weight, 0, 179_999), (small, 0, 4)]:
        flat = parameter.data.view(-1)
        flat[[one, other]] = flat[[other, one]]
        assert state_sum([weight, small]) != before
        assert parameter._version == 0
        flat[[one, other]] = flat[[other, one]]
    assert state_sum([weight, small]) == before


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (131, 257)])
def test_the_sum_takes_any_dtype_and_layout(dtype, shape):
    value = torch.ones(shape).to(dtype)
    assert state_sum([value]) == state_sum([value.clone()])
    if value.numel():
        before = state_sum([value.T if value.ndim == 2 else value])
        value.view(-1)[-1] = 0
        assert state_sum([value.T if value.ndim == 2 else value]) != before


def test_the_sum_takes_a_slice_that_starts_between_two_words():
    base = torch.randn(50_001)
    before = state_sum([base[1:]])
    base[0] += 1
    assert state_sum([base[1:]]) == before
    base[-1] += 1
    assert state_sum([base[1:]]) != before


def test_nothing_has_a_sum():
    assert state_sum([]) == state_sum([])


@pytest.mark.slow
def test_the_first_use_of_the_compiler_changes_no_digest():
    code = """
        import torch
        from torch import nn
        from headstart.deferred.fingerprint import module_digest
        before = module_digest(nn.ReLU())
        torch.compile(nn.ReLU(), backend="eager")(torch.ones(1))
        assert module_digest(nn.ReLU()) == before
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
