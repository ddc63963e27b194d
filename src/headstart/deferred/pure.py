"""Which functions may be recorded: pure, deterministic, without parameters, with a shape that no value decides.

Data, and the two questions asked of it. A function that is not here is computed at once, on real values: a missing name
costs speed, a wrong one would cost truth. Whether a call keeps the samples of a batch apart (`x.mean(1)`) or mixes them
(`x.mean(0)`) is not decided here but measured, at the first batch.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

# Results that may share memory with their input.
_VIEWS = """
    __getitem__ adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d bfloat16 bool byte chunk contiguous detach
    double einsum expand expand_as flatten float half int long movedim moveaxis narrow permute pixel_shuffle
    pixel_unshuffle ravel reshape select split squeeze swapaxes swapdims to transpose type_as unbind unflatten unfold
    unsqueeze view view_as
"""
_OTHERS = """
    __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __div__ __rdiv__ __pow__ __rpow__ __neg__
    __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __and__ __rand__ __or__ __ror__ __xor__ __rxor__ __invert__ __matmul__
    __rmatmul__ __mod__ __floordiv__ __rfloordiv__ __abs__
    abs add amax amin argmax argmin avg_pool1d avg_pool2d avg_pool3d adaptive_max_pool2d bitwise_and bitwise_not
    bitwise_or bmm cat celu clamp clamp_max clamp_min clip clone concat constant_pad_nd cos cosine_similarity cumsum div
    divide elu eq erf exp flip floor floor_divide fmod gather ge gelu glu gt hardsigmoid hardswish hardtanh
    index_select interpolate layer_norm le leaky_relu log log1p log_softmax logical_and logical_not logical_or
    logsigmoid logsumexp lt masked_fill matmul max max_pool1d max_pool2d max_pool3d maximum mean min minimum mish mul
    multiply ne neg negative norm normalize pad pow reciprocal relu relu6 remainder repeat
    repeat_interleave roll round rsqrt selu sigmoid sign silu sin softmax softplus softsign
    sqrt square stack std sub subtract sum take_along_dim tanh tile tril triu true_divide var where
"""
_OWNERS = (torch, torch.Tensor, functional)


def _functions(names: str) -> frozenset[Callable[..., Any]]:
    found = (getattr(owner, name, None) for name in names.split() for owner in _OWNERS)
    return frozenset(each for each in found if callable(each))


# Nothing at all while the module around them evaluates; random, and then not recorded, while it trains.
DROPOUTS: frozenset[Callable[..., Any]] = frozenset(
    {
        functional.dropout,
        functional.dropout1d,
        functional.dropout2d,
        functional.dropout3d,
        functional.alpha_dropout,
    }
)
VIEWS = _functions(_VIEWS) | DROPOUTS
PURE = VIEWS | _functions(_OTHERS)
# Of these, the first argument need not be the tensor that is viewed.
OF_SEVERAL = _functions("einsum")

# In place, and the same out of place: recorded as the latter, with the tensor standing for the result from then on.
_IN_PLACE = """
    abs add clamp div elu celu exp hardtanh leaky_relu masked_fill mul neg pow relu selu sigmoid sqrt sub tanh
"""
IN_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {
    function: getattr(owner, name)
    for name in _IN_PLACE.split()
    for owner in _OWNERS
    if callable(function := getattr(owner, f"{name}_", None)) and hasattr(owner, name)
}

# Asked of a tensor's description, not of its values.
_METHODS = "dim ndimension size numel nelement element_size is_floating_point is_complex is_signed get_device __len__"
_PROPERTIES = """
    shape ndim dtype device layout requires_grad is_leaf grad grad_fn is_cuda is_cpu is_meta is_mps is_sparse is_quantized
    is_nested is_xpu is_mkldnn names itemsize nbytes
"""
METADATA = _functions(_METHODS) | {
    getattr(torch.Tensor, name).__get__
    for name in _PROPERTIES.split()
    if hasattr(getattr(torch.Tensor, name, None), "__get__")
}

# New tensors that take shape, dtype and device from one.
LIKE = _functions("zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty")

# From one device or number format to another.
MOVES = frozenset({torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda})

# Whose first size is often the batch's.
SIZED = _functions("view reshape expand")


@cache
def position_of(function: Callable[..., Any], name: str) -> int | None:
    """The place of a parameter (`"inplace"`, `"training"`) in a function's signature, or `None`."""
    try:
        return list(inspect.signature(function).parameters).index(name)
    except (ValueError, TypeError):  # built in: no signature, and none of these parameters
        return None


def flag(function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call sets the flag `name`, by keyword, by position or by its default.

    Example:
        >>> flag(functional.relu, "inplace", (torch.ones(1), True), {})
        True
    """
    place = position_of(function, name)
    if place is None:
        return bool(kwargs.get(name, False))
    if name in kwargs:
        return bool(kwargs[name])
    if place < len(args):
        return bool(args[place])
    return _is_on_by_default(function, name)


@cache
def _is_on_by_default(function: Callable[..., Any], name: str) -> bool:
    default = inspect.signature(function).parameters[name].default
    return default is not inspect.Parameter.empty and bool(default)


def without_flag(
    function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give the arguments with the flag `name` off."""
    place = position_of(function, name)
    if place is not None and place < len(args):
        return (*args[:place], False, *args[place + 1 :]), kwargs
    return args, {**kwargs, name: False}
