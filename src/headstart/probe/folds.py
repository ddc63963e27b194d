"""The parts of the cross-validation: which samples are held out together."""

from __future__ import annotations

import torch
from torch import Tensor


def deal(targets: Tensor, counts_in: Tensor, num_folds: int, *, seed: int) -> Tensor:
    """Give every sample its fold (N,): each class dealt out in random order, those that weigh something first."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(targets), generator=generator)
    order = order[torch.argsort((~counts_in[order]).int(), stable=True)]
    order = order[torch.argsort(targets[order], stable=True)]
    folds = torch.empty(len(targets), dtype=torch.int64)
    folds[order] = torch.arange(len(targets)) % num_folds
    return folds
