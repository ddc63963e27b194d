"""Adapters of low rank (LoRA, Hu et al. 2021), by the library peft: into a network, and out of it again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from headstart.errors import MisconfigurationError, missing_dependency

if TYPE_CHECKING:
    from headstart.plan import Plan


def put_adapters_in(network: nn.Module, plan: Plan) -> None:
    """Give the layers of a network adapters of low rank.

    Raises:
        MissingDependencyError: If peft is not installed.
        MisconfigurationError: If no layer fits.
    """
    if any("lora_" in name for name, _ in network.named_parameters()):
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise missing_dependency("peft", needed_for="the plan 'lora'", extra="lora") from None
    lora = plan.lora
    assert lora is not None
    targets: Any = list(lora.targets) if isinstance(lora.targets, tuple) else lora.targets
    if targets == "all-linear":
        layers = dict(network.named_modules())
        names = [name for name, each in layers.items() if isinstance(each, nn.Linear)]
        names = names or [name for name, each in layers.items() if _can_be_adapted(each)]
        # A pattern: of a list, peft takes all layers whose names end in one of its names.
        targets = "|".join(map(re.escape, names))
    if not targets:
        raise MisconfigurationError(
            f"{type(network).__name__} has no linear layer for an adapter, nor a plain convolution: name layers of it with "
            "LoRA(targets=...), or choose another plan."
        )
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    try:
        inject_adapter_in_model(config, network)
    except ValueError as error:
        raise MisconfigurationError(f"The adapters do not fit {type(network).__name__}: {error}") from error


def _can_be_adapted(layer: nn.Module) -> bool:
    """Whether a layer is a convolution whose adapter computes what is added to its weights in the end.

    Those of peft know kernel, stride and padding, and no dilation; with groups it cannot add them. Subclasses compute
    something else.
    """
    return (
        type(layer) is nn.Conv2d
        and layer.groups == 1
        and set(layer.dilation) == {1}
        and layer.padding_mode == "zeros"
    )


def take_adapters_out(network: nn.Module) -> dict[str, Tensor]:
    """Add the adapters of a network to its weights, put its own layers back, and give the adapters' weights by name."""
    from peft.tuners.lora import LoraLayer

    taken: dict[str, Tensor] = {}
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LoraLayer):
            assert isinstance(layer, nn.Module), "peft's layers are modules"
            taken |= {
                f"{name}.{key.replace('.default', '')}": value.detach().cpu().clone()
                for key, value in layer.state_dict().items()
                if key.startswith("lora_")
            }
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, layer.base_layer)
    return taken
