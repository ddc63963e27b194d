"""Deferral changes when work is done, not what comes out: every run here is compared with the plain loop."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from headstart.deferred import Reuse

# Stored values were computed in other batches: sums in another order, rounded at 2**-24 a term. The loss of a small network
# moves by less than this.
TOLERANCE = 1e-5


def images(count=22, size=12):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, size, size, generator=generator)
    return TensorDataset(x, torch.randint(3, (count,), generator=generator))


def train(model, loader, reuse=None, *, epochs=3, lr=0.05, between=None):
    """A plain PyTorch loop; the losses, and the random state afterwards."""
    model = copy.deepcopy(model)
    if reuse is not None:
        reuse.watch(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    torch.manual_seed(7)
    losses = []
    for epoch in range(epochs):
        for x, y in loader if reuse is None else reuse.batches(loader):
            loss = functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if between is not None:
            between(model, epoch)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return losses, weights, torch.rand(3)


def assert_equal(model, dataset, *, shuffle=False, epochs=3, stored=True, between=None, **loading):
    """The same losses, bit for bit where nothing is computed in another batch, else within the tolerance."""

    def loader():
        return DataLoader(dataset, batch_size=8, shuffle=shuffle, **loading)

    plain = train(model, loader(), epochs=epochs, between=between)
    exact = Reuse(setting="exact", min_gain=0, say=lambda line: None)
    found = train(model, loader(), exact, epochs=epochs, between=between)
    if shuffle:
        torch.testing.assert_close(
            torch.tensor(found[0]), torch.tensor(plain[0]), rtol=TOLERANCE, atol=TOLERANCE
        )
    else:
        assert found[0] == plain[0]
        assert torch.equal(found[1], plain[1])
    assert torch.equal(found[2], plain[2]), "the random state afterwards"
    auto = Reuse(setting="auto", min_gain=0, say=lambda line: None)
    found = train(model, loader(), auto, epochs=epochs, between=between)
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(plain[0]), rtol=TOLERANCE, atol=TOLERANCE)
    assert torch.equal(found[2], plain[2]), "the random state afterwards"
    if stored:
        for reuse in (exact, auto):
            report = reuse.report()
            assert report.num_looked_up > 0, report.remarks
            assert report.num_computed < epochs * len(dataset), report.remarks
    return exact


def frozen(module):
    return module.requires_grad_(False).eval()


class Head(nn.Module):
    def __init__(self, backbone, width=4):
        super().__init__()
        self.backbone = frozen(backbone)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.backbone(x))


def convolutions(width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_frozen_backbone_and_a_head(shuffle):
    assert_equal(Head(convolutions()), images(), shuffle=shuffle)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_forward_that_calls_eval_and_no_grad_itself(shuffle):
    class Transfer(nn.Module):
        """As the field's own example is written: nothing is frozen by name, and all of it is in the optimizer."""

        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
            )
            self.classifier = nn.Linear(4, 3)

        def forward(self, x):
            self.features.eval()
            with torch.no_grad():
                representations = self.features(x).flatten(1)
            return self.classifier(representations)

    assert_equal(Transfer(), images(), shuffle=shuffle)


def test_the_cut_is_found_between_modules_through_activations_pooling_and_slices():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = frozen(nn.Conv2d(3, 6, 3))
            self.norm = frozen(nn.BatchNorm2d(6))
            self.second = frozen(nn.Conv2d(6, 6, 3))
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x = functional.relu(self.norm(self.stem(x * 2.0 - 1.0)), inplace=True)
            x = functional.max_pool2d(x, 2)
            x = self.second(x).relu_()
            x = functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)
            x = torch.cat([x[:, :2], x[:, -2:]], dim=1)
            x = functional.dropout(functional.normalize(x, dim=1), 0.5, training=False)
            return self.head(x)

    reuse = assert_equal(Net(), images())
    assert len(reuse.report().stored) == 1  # what the head meets, and nothing on the way


def test_several_frozen_branches_and_outputs_in_a_dict():
    @dataclass
    class Found:
        pooled: torch.Tensor
        maps: list

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x, *, scale):
            maps = self.conv(x) * scale
            return Found(pooled=maps.mean((2, 3)), maps=[maps, {"twice": maps * 2}])

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = frozen(Branch()), frozen(Branch())
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            one, other = self.one(x, scale=1.0), self.other(x, scale=0.5)
            return self.head(torch.cat([one.pooled, other.maps[1]["twice"].amax((2, 3))], 1))

    assert_equal(Net(), images())


def test_nothing_is_deferred_behind_what_trains():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1)
            self.backbone = frozen(convolutions())
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.backbone(self.first(x)))

    reuse = assert_equal(Net(), images(), stored=False)
    assert reuse.report().num_looked_up == 0


def test_everything_trains():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 3))
    assert_equal(model, images(), stored=False, shuffle=True)


def test_a_trainable_part_of_a_frozen_network_is_trained():
    model = Head(convolutions())
    model.backbone[1].requires_grad_(
        True
    ).train()  # a batch norm that trains alone: gradients through what follows
    assert_equal(model, images())


def test_a_forward_hook_of_the_top_module_sees_each_batch():
    seen = []
    model = Head(convolutions())
    model.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    assert_equal(model, images())
    assert len(seen) == 3 * 3 * 3


def test_a_change_in_place_of_a_stored_value_reaches_no_later_batch():
    class Net(Head):
        def forward(self, x):
            features = self.backbone(x)
            features.mul_(2.0)
            half = features[:, :2]
            half += 1.0
            features[:, 3] = 0.0
            return self.head(features)

    assert_equal(Net(convolutions()), images(), stored=False)


def test_a_view_and_its_base_share_changes_as_they_would_plainly():
    class Net(Head):
        def forward(self, x):
            features = self.backbone(x)
            view = features.unsqueeze(1)
            features.add_(1.0)
            return self.head(view.squeeze(1) * features)

    assert_equal(Net(convolutions()), images(), stored=False)


def test_a_view_of_an_unknown_kind_shares_changes_too():
    class Net(Head):
        def forward(self, x):
            features = self.backbone(x)
            features.as_strided((features.shape[0], 2), (4, 1)).zero_()
            return self.head(features)

    assert_equal(Net(convolutions()), images(), stored=False)


def test_the_batch_size_in_a_shape_is_no_constant():
    class Net(Head):
        def forward(self, x):
            maps = self.backbone[0](x)
            return self.head(maps.reshape(x.shape[0], 4, -1).mean(2).view(len(x), 4))

    assert_equal(Net(convolutions()), images(21))  # the last batch has another size


def test_an_operation_that_mixes_samples_is_computed_in_every_batch():
    class Net(Head):
        def forward(self, x):
            features = self.backbone(x)
            return self.head(features - features.mean(0) + features.roll(1, 0))

    assert_equal(Net(convolutions()), images(), shuffle=True)


class Squeezed(Head):
    def forward(self, x):
        return self.head(self.backbone(x).reshape(-1, 1, 4).squeeze()).reshape(-1, 3)


class Centred(Head):
    def forward(self, x):
        features = self.backbone(x)
        return self.head(features - features.mean(0, keepdim=True))


class Shared(Head):
    def forward(self, x):
        return self.head(self.backbone(x).softmax(0))


@pytest.mark.parametrize("network", [Squeezed, Centred, Shared])
def test_a_batch_of_one_sample_is_another_case_than_a_full_one(network):
    # The samples of an epoch are drawn anew, so that one is met in both cases.
    def loader():
        return DataLoader(data, batch_size=8, sampler=RandomSampler(data, num_samples=9))

    data, model = images(40), network(convolutions())
    plain = train(model, loader(), epochs=40)
    for setting in ("exact", "auto"):
        reuse = Reuse(setting=setting, min_gain=0, say=lambda line: None)
        found = train(model, loader(), reuse, epochs=40)
        torch.testing.assert_close(
            torch.tensor(found[0]), torch.tensor(plain[0]), rtol=TOLERANCE, atol=TOLERANCE
        )
        assert torch.equal(found[2], plain[2]), "the random state afterwards"
        assert reuse.report().num_looked_up > 0


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_may_end_with_a_batch_of_one_sample(shuffle):
    assert_equal(Squeezed(convolutions()), images(17), shuffle=shuffle)


@pytest.mark.parametrize("network", [Squeezed, Centred, Shared])
def test_a_data_set_may_be_read_in_batches_of_one_and_in_full_ones(network):
    data, model = images(), network(convolutions())
    reuse = Reuse(model, "auto", min_gain=0, say=lambda line: None)
    passes = [(4, range(8)), (1, range(8, 11)), (4, range(8, 22)), (1, range(22)), (4, range(22))]
    for size, samples in passes:
        loader = DataLoader(data, batch_size=size, sampler=samples)
        for (x, _), (plain, _) in zip(reuse.batches(loader), loader, strict=True):
            torch.testing.assert_close(model(x), model(plain), rtol=TOLERANCE, atol=TOLERANCE)


def test_ahead_of_a_batch_of_one_no_full_ones_are_computed_in_its_way():
    class Uneven(BatchSampler):
        is_foreseeable = True

        def __iter__(self):
            yield from [[0], [1], *([each, each + 1] for each in range(2, 22, 2))]

        def __len__(self):
            return 12

    data, model = images(), Squeezed(convolutions())
    loader = DataLoader(data, batch_sampler=Uneven(range(22), 2, drop_last=False))
    plain = train(model, loader)
    reuse = Reuse(setting="auto", min_gain=0, say=lambda line: None)
    found = train(model, loader, reuse)
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(plain[0]), rtol=TOLERANCE, atol=TOLERANCE)
    assert reuse.report().num_computed == len(data)


def test_a_frozen_module_that_mixes_samples_is_computed_in_every_batch():
    class Centre(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return (x - x.mean(0)) * self.scale

    class Net(Head):
        def __init__(self):
            super().__init__(convolutions())
            self.centre = frozen(Centre())

        def forward(self, x):
            return self.head(self.centre(self.backbone(x)))

    reuse = assert_equal(Net(), images(), shuffle=True)
    assert any("mixes the samples" in line for line in reuse.report().remarks)


def test_a_trainable_factor_beside_a_frozen_module_gets_its_gradient():
    class Net(Head):
        def __init__(self):
            super().__init__(convolutions())
            self.scale = nn.Parameter(torch.full((3, 1, 1), 0.5))

        def forward(self, x):
            return self.head(self.backbone(x * self.scale))

    assert_equal(Net(), images(), stored=False)


def test_a_label_that_is_computed_on():
    class Net(Head):
        def forward(self, x):
            return self.head(self.backbone(x))

    data = images()
    model, loader = Net(convolutions()), DataLoader(data, batch_size=8)
    reuse = Reuse(model, "exact", min_gain=0, say=lambda line: None)
    results = []
    for batches in (loader, reuse.batches(loader), reuse.batches(loader)):
        found = [
            functional.cross_entropy(model(x), functional.one_hot(y, 3).float() * 0.9 + 0.1 / 3).item()
            + float((y == 1).sum()) + int(y.max()) + y.tolist()[0] + len(y) + sum(int(each) for each in y)
            for x, y in batches
        ]  # fmt: skip
        results.append(found)
    assert results[0] == results[1] == results[2]


def test_half_precision_of_autocast_is_another_key():
    model = Head(convolutions())
    loader = DataLoader(images(), batch_size=8)
    reuse = Reuse(model, "exact", min_gain=0, say=lambda line: None)
    for dtype in (None, torch.bfloat16, None, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            plain = [model(x) for x, _ in loader]
            found = [model(x) for x, _ in reuse.batches(loader)]
        for one, other in zip(plain, found, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_16"])
@pytest.mark.slow
def test_a_network_of_torchvision_of_which_the_last_part_trains(name):
    import torchvision

    torch.manual_seed(0)
    is_vit = name.startswith("vit")
    model = torchvision.models.get_model(name, weights=None, **({"image_size": 32} if is_vit else {}))
    trains = {"resnet18": ("layer4", "fc"), "mobilenet_v3_small": ("classifier",), "vit_b_16": ("encoder.layers.encoder_layer_11", "heads")}  # fmt: skip
    frozen(model)
    for part in trains[name]:
        model.get_submodule(part).requires_grad_(True)
    assert_equal(model, images(10, 32), epochs=2)


@pytest.mark.slow
def test_an_efficientnet_of_timm_of_which_the_last_blocks_train():
    import timm

    torch.manual_seed(0)
    model = frozen(timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=3))
    for part in (model.blocks[-1], model.conv_head, model.bn2, model.classifier):
        part.requires_grad_(True)
    assert_equal(model, images(22, 64), epochs=2)
