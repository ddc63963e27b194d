"""Weights from a local file, checked by name and shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from headstart.checkpoint import read_torch_file
from headstart.errors import CheckpointError, missing_dependency

# Where a training script wraps its state dict, and what wrappers put before each name.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "ema", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Give the tensors of a `.safetensors` file, or of a file of `torch.save`, by name.

    A file of `torch.save` is read with `weights_only=True`: nothing in it is run.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is none.
        CheckpointError: If it is damaged, needs code to be run, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file with weights at {str(path)!r}.")
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise missing_dependency(
                "safetensors", needed_for="'.safetensors' files", extra="images"
            ) from None
        try:
            return dict(load_file(path))
        except Exception as error:  # absurd headers get past the format's own checks
            if isinstance(error, ImportError):
                raise
            raise CheckpointError(
                f"{path} is damaged, or no safetensors file: {error}. Download or copy it again."
            ) from error
    found = read_torch_file(path, name=str(path), advice="Save its state_dict() alone, or as .safetensors.")
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not any(isinstance(value, torch.Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds {type(found).__name__}; expected a state dict: tensors by name.")
    return {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}


def load_file_into(model: nn.Module, path: str | Path, *, head: tuple[str, ...] = ()) -> None:
    """Load a file's weights into a network, every one of them.

    Args:
        model: The network without its head.
        path: The file.
        head: Beginnings of the names that belong to the head that was taken away; such weights are left out.

    Raises:
        CheckpointError: If a weight is missing, unknown, or of another shape.
    """
    weights = read_weights(path)
    own = model.state_dict()
    weights = _without_prefix(weights, own)
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unknown = [name for name in weights if name not in own and not name.startswith(head)]
    misshapen = [
        f"{name} (there {tuple(weights[name].shape)}, here {tuple(value.shape)})"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    problems = [
        f"{what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}. {'; '.join(problems)}. Is it the right architecture?"
        )
    model.load_state_dict({name: value for name, value in weights.items() if name in own}, strict=False)


def load_by_order(model: nn.Module, weights: Mapping[str, torch.Tensor], *, source: str) -> None:
    """Load weights that have other names and the same order and shapes; all of them, each checked.

    Args:
        model: The network.
        weights: As many as the network has.
        source: Where they come from, for the message.

    Raises:
        CheckpointError: If their number or a shape differs.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> load_by_order(layer, {"w": torch.ones(1, 1), "b": torch.zeros(1)}, source="a test")
        >>> layer(torch.tensor([[2.0]])).item()
        2.0
    """
    own = model.state_dict()
    if len(own) != len(weights):
        raise CheckpointError(
            f"{source} holds {len(weights)} tensors; {type(model).__name__} has {len(own)}."
        )
    for (here, value), (there, other) in zip(own.items(), weights.items(), strict=True):
        if value.shape != other.shape:
            raise CheckpointError(
                f"{source}: {there} has the shape {tuple(other.shape)}; {here}, at the same place, has "
                f"{tuple(value.shape)}."
            )
    model.load_state_dict(dict(zip(own, weights.values(), strict=True)))


def _without_prefix(weights: dict[str, torch.Tensor], own: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Take off what a wrapper put before every name, as long as that makes more names fit."""

    def fitting(candidate: Mapping[str, object]) -> int:
        return sum(name in own for name in candidate)

    while True:
        shorter = [
            {name.removeprefix(prefix): value for name, value in weights.items()}
            for prefix in _PREFIXES
            if any(name.startswith(prefix) for name in weights)
        ]
        best = max(shorter, key=fitting, default=weights)
        if fitting(best) <= fitting(weights):
            return weights
        weights = best
