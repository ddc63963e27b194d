"""Names for annotations, as programs for PyTorch Lightning import them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

STEP_OUTPUT = Tensor | Mapping[str, Any] | None
OptimizerLRScheduler = Optimizer | Mapping[str, Any] | Sequence[Any] | None

# Any iterable of batches, or a collection of them.
TRAIN_DATALOADERS = Any
EVAL_DATALOADERS = Any

EVALUATE_OUTPUT = list[Mapping[str, float]]  # one for each loader
PREDICT_OUTPUT = list[Any]

LRSchedulerTypeUnion = LRScheduler | ReduceLROnPlateau
LRSchedulerType = type[LRScheduler] | type[ReduceLROnPlateau]
OptimizerConfig = Mapping[str, Any]
OptimizerLRSchedulerConfig = Mapping[str, Any]
LRSchedulerConfigType = Mapping[str, Any]


class TrainerFn(StrEnum):
    """The word that `setup` and `teardown` get, by name.

    Example:
        >>> TrainerFn.FITTING == "fit"
        True
    """

    FITTING = "fit"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"
