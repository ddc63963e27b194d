"""Batches: moving one to a device, and counting its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from headstart.errors import MisconfigurationError


def move_to_device(batch: Any, device: torch.device) -> Any:
    """Give `batch` with everything in it that has `.to(device)` on `device`.

    Args:
        batch: A tensor, or lists, tuples, named tuples, mappings and dataclasses of them, nested at will; other
            values are handed through.
        device: Where to.

    Example:
        >>> move_to_device({"x": torch.ones(2), "name": "a"}, torch.device("cpu"))
        {'x': tensor([1., 1.]), 'name': 'a'}
    """
    if isinstance(batch, torch.Tensor):
        # A copy from pinned memory may overlap with computing.
        return batch if batch.device == device else batch.to(device, non_blocking=device.type == "cuda")
    if isinstance(batch, str | bytes | int | float) or batch is None:
        return batch
    if hasattr(batch, "to") and callable(batch.to):  # transformers' BatchEncoding, packed sequences, ...
        return batch.to(device)
    if isinstance(batch, Mapping):
        moved = {key: move_to_device(value, device) for key, value in batch.items()}
        return moved if type(batch) is dict else type(batch)(moved)  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move_to_device(value, device) for value in batch))
    if type(batch) in {list, tuple}:
        return type(batch)(move_to_device(value, device) for value in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(
            batch, **{each.name: move_to_device(getattr(batch, each.name), device) for each in fields(batch)}
        )
    return batch


def split_batch(batch: Any, sizes: list[int]) -> list[Any]:
    """Give the parts of a batch: its first `sizes[0]` samples, and so on.

    Args:
        batch: As for `move_to_device`. Tensors and lists with an entry a sample are cut; single values are in each part.
        sizes: How many samples each part has.

    Raises:
        MisconfigurationError: If a tensor does not have the samples in its first dimension.

    Example:
        >>> split_batch({"x": torch.arange(3), "names": ["a", "b", "c"], "scale": 2.0}, [2, 1])[1]
        {'x': tensor([2]), 'names': ['c'], 'scale': 2.0}
    """
    total = sum(sizes)
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [_cut(batch, start, start + size, total) for start, size in zip(starts, sizes, strict=True)]


def _cut(batch: Any, start: int, stop: int, total: int) -> Any:
    if isinstance(batch, torch.Tensor):
        if batch.ndim == 0:
            return batch
        if batch.shape[0] != total:
            raise MisconfigurationError(
                f"a tensor of the batch has the shape {tuple(batch.shape)}; expected its {total} samples in the first "
                "dimension"
            )
        return batch[start:stop]
    if isinstance(batch, Mapping):
        cut = {key: _cut(value, start, stop, total) for key, value in batch.items()}
        return cut if type(batch) is dict else type(batch)(cut)  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_cut(value, start, stop, total) for value in batch))
    if type(batch) in {list, tuple}:
        if len(batch) == total and batch and isinstance(batch[0], str | bytes | int | float):
            return batch[start:stop]
        return type(batch)(_cut(value, start, stop, total) for value in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(
            batch,
            **{each.name: _cut(getattr(batch, each.name), start, stop, total) for each in fields(batch)},
        )
    if batch is None or isinstance(batch, str | bytes | int | float):
        return batch
    raise MisconfigurationError(f"the batch holds a {type(batch).__name__}, and nothing says how to cut it")


def batch_size_of(batch: Any) -> int:
    """The number of samples in `batch`: the length of the first tensor found in it, 1 where there is none.

    Example:
        >>> batch_size_of([torch.zeros(3, 2), torch.zeros(3)])
        3
    """
    found = _first_length(batch)
    return 1 if found is None else found


def _first_length(batch: Any) -> int | None:
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.ndim else 1
    if isinstance(batch, list | tuple) and batch and isinstance(batch[0], str):
        return len(batch)  # texts, not tokenized yet
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    elif is_dataclass(batch) and not isinstance(batch, type):
        batch = [getattr(batch, each.name) for each in fields(batch)]
    elif not isinstance(batch, list | tuple):
        return None
    return next((found for value in batch if (found := _first_length(value)) is not None), None)
