"""Blends of weights: between the head alone and the fine-tuned model, and of several models.

All work on the state dicts of one module. Where it has batch norms, their blended statistics are those of neither
model: give them new ones with `reestimate_batch_norms`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from headstart.errors import MisconfigurationError
from headstart.freezing import is_batch_norm
from headstart.seed import isolated_random_state
from headstart.transfer import batch_size_of

State = Mapping[str, Tensor]


def interpolate(first: State, second: State, weight: float) -> dict[str, Tensor]:
    """Give the weights on the straight line between two models.

    Numbers with a fraction are `(1 - weight) * first + weight * second`, buffers too; others (counters) are the
    second's. The ends are exact: 0 gives the first and 1 the second, and what both share stays as it is.

    Args:
        first: State dict, for instance of the head alone.
        second: State dict of the same module, for instance after fine-tuning.
        weight: Of the second, in [0, 1].

    Returns:
        A state dict of new tensors, on the devices of the first.

    Raises:
        MisconfigurationError: If the two are not of one module, or `weight` is outside [0, 1].

    Source: Wortsman et al. 2021, "Robust fine-tuning of zero-shot models" (WiSE-FT), equation 1,
    https://arxiv.org/abs/2109.01903

    Example:
        >>> interpolate({"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([1.0, 4.0])}, 0.25)["w"]
        tensor([0.2500, 4.0000])
    """
    if not 0 <= weight <= 1:
        raise MisconfigurationError(f"weight is {weight}; expected 0 (the first) to 1 (the second).")
    _check_alike(first, second)
    return {name: _between(tensor, second[name].to(tensor.device), weight) for name, tensor in first.items()}


def average(states: Sequence[State]) -> dict[str, Tensor]:
    """Give the mean of several models' weights: a uniform soup.

    Numbers with a fraction are added in double precision; others (counters) are the last one's.

    Args:
        states: State dicts of one module, 1 or more.

    Returns:
        A state dict of new tensors, on the devices of the first.

    Raises:
        MisconfigurationError: If there is none, or they are not of one module.

    Source: Wortsman et al. 2022, "Model soups", section 2, https://arxiv.org/abs/2203.05482

    Example:
        >>> average([{"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}])["w"]
        tensor([1.5000])
    """
    if not states:
        raise MisconfigurationError("Received no state dict; expected one or more to average.")
    for other in states[1:]:
        _check_alike(states[0], other)
    return {name: _mean([state[name] for state in states]) for name in states[0]}


def greedy_soup(
    states: Sequence[State], scores: Sequence[float], evaluate: Callable[[dict[str, Tensor]], float]
) -> tuple[dict[str, Tensor], list[int]]:
    """Average those models that make the average no worse.

    The models are tried in order of their scores, best first. Each is kept if the average with it scores at least as
    high as without it. So the soup is never worse than the best model, on the samples that `evaluate` looks at.

    Args:
        states: State dicts of one module, 1 or more.
        scores: One for each, higher is better: they decide the order only.
        evaluate: Gives the score of a state dict, higher is better. Called once for each state.

    Returns:
        The soup, and the indices of its members in the order in which they were added.

    Raises:
        MisconfigurationError: If the lengths differ, there is no state, or a score is not a number.

    Source: Wortsman et al. 2022, "Model soups", algorithm 1, https://arxiv.org/abs/2203.05482

    Example:
        >>> states = [{"w": torch.tensor([value])} for value in (1.0, 5.0, 9.0)]
        >>> soup, members = greedy_soup(states, [0.1, 0.9, 0.5], lambda state: -abs(state["w"].item() - 3))
        >>> soup["w"].item(), members
        (3.0, [1, 0])
    """
    if len(states) != len(scores) or not states:
        raise MisconfigurationError(
            f"Received {len(states)} state dicts and {len(scores)} scores; expected as many of each, 1 or more."
        )
    if any(math.isnan(score) for score in scores):
        raise MisconfigurationError(
            f"The scores are {list(scores)}; expected numbers. Leave out the models whose score is NaN."
        )
    order = sorted(range(len(states)), key=lambda index: -scores[index])
    members = order[:1]
    soup = average([states[members[0]]])
    score = evaluate(soup)
    for index in order[1:]:
        trial = average([states[member] for member in [*members, index]])
        trial_score = evaluate(trial)
        if trial_score >= score:
            soup, score, members = trial, trial_score, [*members, index]
    return soup, members


def has_batch_norms(module: nn.Module) -> bool:
    """Whether `module` contains a batch norm with running statistics, which a blend of weights would leave wrong.

    Example:
        >>> has_batch_norms(nn.Sequential(nn.BatchNorm1d(2))), has_batch_norms(nn.LayerNorm(2))
        (True, False)
    """
    return bool(_tracking_norms(module))


def reestimate_batch_norms(
    module: nn.Module, batches: Iterable[Any], *, max_batches: int | None = None
) -> int:
    """Give the batch norms of `module` the running statistics that its present weights have on training inputs.

    Everything else is in evaluation mode meanwhile, so that the statistics are those that dropout-free inference
    meets. Modes, momenta, gradients and random state are afterwards as they were; so are the statistics if an
    error is raised.

    Args:
        module: Called with each batch; on the device of the batches.
        batches: Of training inputs: a tensor, a mapping of keyword arguments, or a tuple or list whose first entry is
            one of these, as data loaders give them. The mean over the batches counts each alike, so let them be
            shuffled: batches sorted by class have less variance than the data. A batch of a single sample has none and
            is left out.
        max_batches: How many to use at most; `None` uses all.

    Returns:
        How many batch norms have new statistics; 0 where there is none, and then no batch is read.

    Raises:
        MisconfigurationError: If no batch has 2 samples, or `max_batches` is below 1.

    Source: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima", section 3.2,
    https://arxiv.org/abs/1803.05407

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> reestimate_batch_norms(norm, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
        1
        >>> norm.running_mean, norm.running_var
        (tensor([4.]), tensor([2.]))
    """
    if max_batches is not None and max_batches < 1:
        raise MisconfigurationError(f"max_batches is {max_batches}; expected 1 or more, or None for all.")
    norms = _tracking_norms(module)
    if not norms:
        return 0
    num_used = 0
    with _only_norms_learning(module, norms), torch.no_grad(), isolated_random_state():
        usable = (inputs for inputs in map(_inputs, batches) if batch_size_of(inputs) > 1)
        for inputs in islice(usable, max_batches):
            if isinstance(inputs, Mapping):
                module(**inputs)
            else:
                module(inputs)
            num_used += 1
        if num_used == 0:
            raise MisconfigurationError(
                "Received no batch of 2 samples or more, which is what the statistics of batch norms are made of. "
                "Pass training batches with a larger batch_size."
            )
    return len(norms)


# ---- state dicts


def _check_alike(first: State, second: State) -> None:
    """Raise, naming the first tensor that differs."""
    for one, other, missing_in in ((first, second, "second"), (second, first, "first")):
        for name in one:
            if name not in other:
                raise MisconfigurationError(
                    f"The {missing_in} state dict has no {name!r}, another one has. "
                    "Expected state dicts of one module: blend models with the same layers and the same head."
                )
    for name, tensor in first.items():
        other_tensor = second[name]
        if tensor.shape != other_tensor.shape or tensor.dtype != other_tensor.dtype:
            raise MisconfigurationError(
                f"{name!r} is {_described(tensor)} in one state dict and {_described(other_tensor)} in another. "
                "Expected state dicts of one module: blend models with the same layers and the same head."
            )


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _between(first: Tensor, second: Tensor, weight: float) -> Tensor:
    if weight == 0:
        return first.detach().clone()
    if weight == 1 or not _has_fraction(first):
        return second.detach().clone()
    # torch.lerp moves by a share of the difference: what is equal in both stays so, bit for bit. Half precision is
    # rounded once, at the end.
    wide = torch.promote_types(first.dtype, torch.float32)
    blend = torch.lerp(first.detach().to(wide), second.detach().to(wide), weight).to(first.dtype)
    return torch.where(first == second, first.detach(), blend)  # infinities of a mask have no difference


def _mean(tensors: list[Tensor]) -> Tensor:
    first = tensors[0].detach()
    if len(tensors) == 1 or not _has_fraction(first):
        return tensors[-1].detach().to(first.device, copy=True)
    total = first.to(torch.promote_types(first.dtype, torch.float64), copy=True)
    for tensor in tensors[1:]:
        total += tensor.detach().to(total.device)
    return (total / len(tensors)).to(first.dtype)


def _has_fraction(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


# ---- batch norms


def _tracking_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch norms that hold running statistics; a lazy one that has met no batch holds none yet."""
    return [
        child
        for child in module.modules()
        if isinstance(child, _BatchNorm)
        and is_batch_norm(child)
        and child.running_mean is not None
        and not (isinstance(child, LazyModuleMixin) and child.has_uninitialized_params())
    ]


@contextmanager
def _only_norms_learning(module: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Evaluation mode but for `norms`, whose statistics start anew as cumulative means; all put back afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    settings = [(norm, norm.momentum, norm.track_running_stats) for norm in norms]
    statistics = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    try:
        for child, _ in modes:
            child.training = False
        for norm in norms:
            norm.training, norm.momentum = True, None
            norm.track_running_stats = True  # frozen ones have it cleared (`freezing.stop_tracking`)
            norm.reset_running_stats()
        yield
    except BaseException:
        with torch.no_grad():
            for buffer, value in statistics:
                buffer.copy_(value)
        raise
    finally:
        for norm, momentum, tracks in settings:
            norm.momentum, norm.track_running_stats = momentum, tracks
        for child, training in modes:
            child.training = training


def _inputs(batch: Any) -> Any:
    return batch[0] if isinstance(batch, (tuple, list)) else batch
