"""Counting floating-point operations: torch's counter, with the backward of grouped convolutions put right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


def flop_counter() -> FlopCounterMode:
    """Give a counter that counts while its `with` block runs; a multiplication and an addition are two operations.

    torch (2.14) counts the weights' gradient of a grouped convolution as if it had one group: for a depthwise one of 672
    channels 672 times too many.

    Example:
        >>> convolution = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        >>> with flop_counter() as counter:
        ...     convolution(torch.ones(1, 8, 4, 4)).sum().backward()
        >>> counter.get_total_flops() == 2 * (2 * 8 * 9 * 16)  # forward, and the weights' gradient
        True
    """
    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    )


def _convolution_backward(
    grad_out_shape: Sequence[int],
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """Each of the two gradients, of the input and of the weights, costs what the forward pass costs."""
    forward: int = conv_flop_count(list(x_shape), list(w_shape), list(grad_out_shape), transposed)
    return forward * sum(output_mask[:2])
