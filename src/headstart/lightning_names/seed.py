"""Random state set aside, as programs for PyTorch Lightning import it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from headstart.seed import capture_random_state, restore_random_state


@contextmanager
def isolate_rng(include_cuda: bool = True) -> Iterator[None]:  # noqa: ARG001 (the name that programs pass)
    """Put every global random generator back, at the end, to where it was at the start.

    Args:
        include_cuda: Accepted; CUDA's generators are among them where they exist.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(1)
        >>> with isolate_rng():
        ...     inside = torch.rand(1)
        >>> bool(torch.rand(1) == inside)
        True
    """
    state = capture_random_state()
    try:
        yield
    finally:
        restore_random_state(state)
