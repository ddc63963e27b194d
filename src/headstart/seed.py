"""Random state: seed it, record it, put it back."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_MAX_SEED = 2**32 - 1  # numpy's bound


def seed_everything(seed: int | None = None, *, workers: bool = False, verbose: bool = False) -> int:  # noqa: ARG001
    """Seed Python's, NumPy's and torch's random generators, and give the seed.

    Args:
        seed: From 0 to 2**32 - 1. `None` takes the environment variable `PL_GLOBAL_SEED`, or else 0.
        workers: Accepted for programs written for PyTorch Lightning. torch seeds Python, NumPy and torch
            in every loader worker from the main process's generator, so there is nothing more to do.
        verbose: Print the seed.

    Returns:
        The seed that was used.

    Raises:
        ValueError: If the seed is out of range.

    Example:
        >>> seed_everything(7)
        7
        >>> first = torch.rand(1)
        >>> _ = seed_everything(7)
        >>> bool(torch.rand(1) == first)
        True
    """
    if seed is None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
    if not 0 <= int(seed) <= _MAX_SEED:
        raise ValueError(f"seed is {seed}; expected a whole number from 0 to {_MAX_SEED}.")
    seed = int(seed)
    if verbose:
        print(f"Seed set to {seed}")
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (datasets and transforms of the field use this generator)
    torch.manual_seed(seed)
    return seed


def capture_random_state() -> dict[str, Any]:
    """Give the state of every global random generator, in types that a safe checkpoint can hold.

    Returns:
        `{"python": ..., "numpy": ..., "torch": ByteTensor}`, and `"cuda"` where there is one.

    Example:
        >>> state = capture_random_state()
        >>> first = torch.rand(1)
        >>> restore_random_state(state)
        >>> bool(torch.rand(1) == first)
        True
    """
    version, internal, gauss_next = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss_next],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `capture_random_state` gave."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss_next))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


@contextmanager
def isolated_random_state() -> Iterator[None]:
    """Leave every global random generator as it was, whatever the block draws."""
    state = capture_random_state()
    try:
        yield
    finally:
        restore_random_state(state)
