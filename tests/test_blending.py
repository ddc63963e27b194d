"""Blends of state dicts against their formulas; batch norms against the statistics of the data."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from headstart.blending import average, greedy_soup, has_batch_norms, interpolate, reestimate_batch_norms
from headstart.errors import MisconfigurationError
from headstart.freezing import establish_modes, freeze, stop_tracking


def network(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2), nn.BatchNorm1d(2)
    )
    for _ in range(seed + 1):
        net(torch.randn(6, 3))  # statistics and counters that differ
    return net


def test_a_mask_of_infinities_stays_as_it_is():
    mask = torch.full((2, 2), -torch.inf).triu(1)
    assert torch.equal(interpolate({"mask": mask}, {"mask": mask.clone()}, 0.5)["mask"], mask)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- interpolate


def test_ends_are_exact():
    first, second = network(0).state_dict(), network(1).state_dict()
    assert equal(interpolate(first, second, 0), first)
    assert equal(interpolate(first, second, 1), second)


def test_weights_and_buffers_between_follow_the_formula():
    first, second = network(0).state_dict(), network(1).state_dict()
    blend = interpolate(first, second, 0.3)
    for name in first:
        if name.endswith("num_batches_tracked"):
            assert torch.equal(blend[name], second[name])
        else:
            expected = 0.7 * first[name].double() + 0.3 * second[name].double()
            torch.testing.assert_close(
                blend[name].double(), expected, rtol=1e-6, atol=1e-6
            )  # single precision
            assert blend[name].dtype == first[name].dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_both_share_stays_bit_for_bit(dtype):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    for weight in (0.1, 1 / 3, 0.7):
        assert torch.equal(interpolate({"w": values}, {"w": values.clone()}, weight)["w"], values)


def test_half_precision_is_rounded_once():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(1000, generator=generator).bfloat16() for _ in range(2))
    expected = (0.75 * first.double() + 0.25 * second.double()).bfloat16()  # exact in double precision
    assert torch.equal(interpolate({"w": first}, {"w": second}, 0.25)["w"], expected)


@pytest.mark.parametrize("weight", [0, 0.5, 1])
def test_blends_share_no_memory_with_their_sources(weight):
    first, second = network(0).state_dict(), network(1).state_dict()
    kept = copy.deepcopy((first, second))
    for tensor in interpolate(first, second, weight).values():
        tensor.zero_()
    for tensor in average([first]).values():
        tensor.zero_()
    assert equal(first, kept[0]) and equal(second, kept[1])


def test_blend_of_parameters_needs_no_gradient():
    first, second = dict(network(0).named_parameters()), dict(network(1).named_parameters())
    assert not any(tensor.requires_grad for tensor in interpolate(first, second, 0.5).values())
    assert not any(tensor.requires_grad for tensor in average([first, second]).values())


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": 1, "b": 1}, {"a": 1}, "second state dict has no 'b'"),
        ({"a": 1}, {"a": 1, "c": 1}, "first state dict has no 'c'"),
        ({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 2}, r"'b' is \(1,\) float32 .* \(2,\) float32"),
    ],
)
def test_first_difference_is_named(first, second, message):
    states = [{name: torch.zeros(size) for name, size in state.items()} for state in (first, second)]
    for blend in (lambda: interpolate(*states, 0.5), lambda: average(states)):
        with pytest.raises(MisconfigurationError, match=message):
            blend()


def test_dtypes_that_differ_are_named():
    with pytest.raises(MisconfigurationError, match=r"'a' is \(\) float32 in one .* \(\) int64"):
        interpolate({"a": torch.tensor(1.0)}, {"a": torch.tensor(1)}, 0.5)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_weight_outside_the_line_is_refused(weight):
    with pytest.raises(MisconfigurationError, match="expected 0"):
        interpolate({}, {}, weight)


# ---- soups


def test_average_is_the_mean_in_double_precision():
    states = [network(seed).state_dict() for seed in range(3)]
    mean = average(states)
    for name in mean:
        if name.endswith("num_batches_tracked"):
            assert torch.equal(mean[name], states[-1][name])
        else:
            expected = torch.stack([state[name].double() for state in states]).sum(dim=0) / 3
            assert torch.equal(mean[name], expected.to(mean[name].dtype))


def test_average_of_one_model_many_times_is_that_model():
    state = network().state_dict()
    assert equal(average([state] * 7), state)


def test_average_of_nothing_is_refused():
    with pytest.raises(MisconfigurationError, match="Received no state dict"):
        average([])


def test_greedy_soup_leaves_out_what_makes_it_worse():
    states = [{"w": torch.tensor([value])} for value in (0.0, 4.0, 1.0, 40.0)]
    tried = []

    def evaluate(state):
        tried.append(state["w"].item())
        return -abs(state["w"].item() - 2)

    soup, members = greedy_soup(states, [3, 2, 1, 4], evaluate)
    # 40; with 0: 20; with 4: 44/3; with 1: 45/4.
    assert members == [3, 0, 1, 2]
    assert tried == pytest.approx([40, 20, 44 / 3, 45 / 4])
    soup, members = greedy_soup(states, [4, 3, 2, 1], evaluate)
    assert members == [0, 1]  # 0; with 4: 2, exactly; with 1 or 40: worse
    assert soup["w"].item() == 2


def test_greedy_soup_takes_equals_in_order_and_is_never_worse_than_the_best():
    states = [{"w": torch.tensor([value])} for value in (1.0, 2.0)]
    assert greedy_soup(states, [1, 1], lambda state: 0.0)[1] == [0, 1]
    assert greedy_soup(states, [1, 1], lambda state: -state["w"].item())[1] == [0]
    soup, members = greedy_soup(states, [2, 1], lambda state: float("nan") if state["w"] > 1 else 0.0)
    assert members == [0] and soup["w"].item() == 1


def test_greedy_soup_refuses_scores_that_do_not_fit():
    state = {"w": torch.zeros(1)}
    with pytest.raises(MisconfigurationError, match="1 state dicts and 2 scores"):
        greedy_soup([state], [1, 2], lambda _: 0.0)
    with pytest.raises(MisconfigurationError, match="0 state dicts"):
        greedy_soup([], [], lambda _: 0.0)
    with pytest.raises(MisconfigurationError, match="Leave out the models whose score is NaN"):
        greedy_soup([state], [float("nan")], lambda _: 0.0)


# ---- batch norms


def test_norms_with_running_statistics_are_found():
    assert has_batch_norms(network())
    assert not has_batch_norms(nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2)))
    assert not has_batch_norms(nn.BatchNorm1d(2, track_running_stats=False))
    assert not has_batch_norms(nn.LazyBatchNorm1d())


def test_statistics_are_the_mean_over_the_batches_in_the_order_of_the_layers():
    net, batches = network(), torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(1))
    linear, norm, _, _, last, last_norm = net
    hidden = [linear(batch) for batch in batches]
    means = torch.stack([each.mean(dim=0) for each in hidden])
    variances = torch.stack([each.var(dim=0) for each in hidden])
    # What the second norm meets: the first's batch statistics, and no dropout.
    outputs = [
        last(
            torch.relu(
                nn.functional.batch_norm(
                    each, None, None, norm.weight, norm.bias, training=True, eps=norm.eps
                )
            )
        )
        for each in hidden
    ]
    assert reestimate_batch_norms(net, batches) == 2
    torch.testing.assert_close(norm.running_mean, means.mean(dim=0))
    torch.testing.assert_close(norm.running_var, variances.mean(dim=0))
    torch.testing.assert_close(
        last_norm.running_mean, torch.stack([each.mean(dim=0) for each in outputs]).mean(dim=0)
    )


def test_everything_else_is_as_it_was():
    net = network()
    net[0].eval()
    net[1].momentum = 0.3
    net[5].momentum = None
    net[4].weight.grad = torch.ones_like(net[4].weight)
    modes = [child.training for child in net.modules()]
    parameters = copy.deepcopy(dict(net.named_parameters()))
    loader = DataLoader(TensorDataset(torch.randn(20, 3)), batch_size=5, shuffle=True)
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    reestimate_batch_norms(net, loader)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]
    assert [child.training for child in net.modules()] == modes
    assert (net[1].momentum, net[5].momentum) == (0.3, None)
    assert equal(dict(net.named_parameters()), parameters)
    assert torch.equal(net[4].weight.grad, torch.ones(2, 5)) and net[0].weight.grad is None


def test_frozen_norms_get_new_statistics_and_stay_frozen():
    net = network()
    freeze(net)
    establish_modes(net)
    for norm in (net[1], net[5]):
        stop_tracking(norm)
    before = net[1].running_mean.clone()
    reestimate_batch_norms(net, [torch.randn(8, 3)])
    assert not torch.equal(net[1].running_mean, before)
    assert not net[1].training and not net[1].track_running_stats


def test_norms_without_running_statistics_are_left_alone():
    net = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3))
    assert reestimate_batch_norms(net, [torch.randn(4, 3)]) == 1
    assert net[0].running_mean is None


def test_no_batch_is_read_where_there_is_no_norm():
    def batches():
        raise AssertionError("read")
        yield

    assert reestimate_batch_norms(nn.Linear(2, 2), batches()) == 0


def test_batch_of_one_sample_is_left_out():
    batches = [torch.randn(4, 3), torch.randn(1, 3), torch.randn(4, 3)]
    net, other = network(), network()
    reestimate_batch_norms(net, batches)
    reestimate_batch_norms(other, [batches[0], batches[2]])
    assert equal(net.state_dict(), other.state_dict())


def test_only_max_batches_are_read():
    read = []

    def batches():
        for index in range(5):
            read.append(index)
            yield torch.randn(4, 3)

    net = network()
    reestimate_batch_norms(net, batches(), max_batches=2)
    assert net[1].num_batches_tracked == 2
    assert read == [0, 1]


def test_batches_of_loaders_and_keywords_are_understood():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, *, values):
            return self.norm(values)

    values = torch.randn(8, 3)
    for batch in ({"values": values}, ({"values": values}, torch.zeros(8))):
        net = Keywords()
        reestimate_batch_norms(net, [batch])
        torch.testing.assert_close(net.norm.running_mean, values.mean(dim=0))
    norm = nn.BatchNorm1d(3)
    reestimate_batch_norms(norm, [[values, torch.zeros(8)]])
    torch.testing.assert_close(norm.running_mean, values.mean(dim=0))


def test_statistics_survive_an_error():
    net = network()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(MisconfigurationError, match="no batch of 2 samples or more.*larger batch_size"):
        reestimate_batch_norms(net, [torch.randn(1, 3)])
    with pytest.raises(RuntimeError, match="shapes"):
        reestimate_batch_norms(net, [torch.randn(4, 3), torch.randn(4, 9)])
    assert equal(net.state_dict(), before)
    assert net.training and net[1].momentum == 0.1


def test_max_batches_below_1_is_refused():
    with pytest.raises(MisconfigurationError, match="max_batches is 0"):
        reestimate_batch_norms(network(), [], max_batches=0)


def test_blend_of_two_networks_predicts_well_only_with_new_statistics():
    inputs = torch.randn(256, 3, generator=torch.Generator().manual_seed(2))
    net = network()
    net.load_state_dict(interpolate(network(0).state_dict(), network(5).state_dict(), 0.5))
    reestimate_batch_norms(net, [inputs])
    outputs = net.eval()(inputs)
    expected = net[5].bias
    torch.testing.assert_close(
        outputs.mean(dim=0), expected, atol=0.05, rtol=0
    )  # running and batch variance differ
