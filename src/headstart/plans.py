"""The plans that have a name: one function each, with its source; `named_plan` gives one by its word.

All of them begin from a pretrained backbone and a new head. Rates are those of AdamW.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from headstart.errors import MisconfigurationError, did_you_mean
from headstart.plan import BEST_BLOCK, LoRA, Phase, Plan

#: Of fine-tuning from a head at its optimum: the head's rate, and the factor from a block to the one before it. A language
#: model forgets what it knows at the rates at which an image model is fine-tuned.
TUNING_LR = {"images": 5e-4, "text": 5e-5}
TUNING_LAYER_DECAY = {"images": 0.8, "text": 0.9}


def linear_probe(*, epochs: int = 10, lr: float = 1e-3, **settings: Any) -> Plan:
    """Train the head alone, on features that do not change (Alain & Bengio 2016).

    Args:
        epochs: Number of epochs.
        lr: Of the head.
        settings: `monitor`, `mode`, `backbone`: see `Plan`.

    Example:
        >>> linear_probe(epochs=5).phases[0].trains
        ('head',)
    """
    return Plan(name="linear_probe", phases=(_head(epochs, lr),), **settings)


def full(*, epochs: int = 5, lr: float = 1e-4, warmup_steps: int = 0, **settings: Any) -> Plan:
    """Train everything from the first step, at one rate: what fine-tuning mostly means.

    Args:
        epochs: Number of epochs.
        lr: Of everything.
        warmup_steps: Steps over which the rate rises.
        settings: See `Plan`.
    """
    phase = Phase(name="all", trains="all", lr=lr, epochs=epochs, warmup_steps=warmup_steps)
    return Plan(name="full", phases=(phase,), **settings)


def lp_ft(
    *,
    head_epochs: int = 10,
    epochs: int = 3,
    head_lr: float = 1e-3,
    lr: float = 1e-4,
    layer_decay: float = 1.0,
    **settings: Any,
) -> Plan:
    """Train the head first, then everything from there (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features").

    A random head's first gradients would spoil the features; a fitted head's do not.

    Args:
        head_epochs: Epochs of the head alone.
        epochs: Epochs of everything.
        head_lr: Of the head alone.
        lr: Of everything.
        layer_decay: See `Phase`.
        settings: See `Plan`.
    """
    everything = Phase(name="all", trains="all", lr=lr, layer_decay=layer_decay, epochs=epochs)
    return Plan(name="lp_ft", phases=(_head(head_epochs, head_lr), everything), **settings)


def gradual(
    *, num_blocks: int = 4, epochs: int = 1, lr: float = 1e-3, layer_decay: float = 1 / 2.6, **settings: Any
) -> Plan:
    """Thaw one more block in each phase, from the last one on, each at a lower rate (Howard & Ruder 2018, "ULMFiT").

    Args:
        num_blocks: How many are thawed one by one, no more than the backbone has; then everything is.
        epochs: Epochs of each phase.
        lr: Of the head.
        layer_decay: From a block to the one before it; 1/2.6 in the paper.
        settings: See `Plan`.
    """
    phases = [_head(epochs, lr)]
    for count in range(1, num_blocks + 1):
        name = f"last {count} block{'s' if count > 1 else ''}"
        phases.append(Phase(name=name, trains=("head", name), lr=lr, layer_decay=layer_decay, epochs=epochs))
    phases.append(Phase(name="all", trains="all", lr=lr, layer_decay=layer_decay, epochs=epochs))
    return Plan(name="gradual", phases=tuple(phases), **settings)


def layer_decay(
    *, epochs: int = 5, lr: float = 5e-4, layer_decay: float = 0.75, warmup_steps: int = 0, **settings: Any
) -> Plan:
    """Train everything, each block at a lower rate than the one after it (Clark et al. 2020, "ELECTRA"; Bao et al. 2021).

    Args:
        epochs: Number of epochs.
        lr: Of the head.
        layer_decay: From a block to the one before it.
        warmup_steps: Steps over which the rate rises.
        settings: See `Plan`.
    """
    phase = Phase(
        name="all", trains="all", lr=lr, layer_decay=layer_decay, epochs=epochs, warmup_steps=warmup_steps,
        schedule="cosine",
    )  # fmt: skip
    return Plan(name="layer_decay", phases=(phase,), **settings)


def last_blocks(*, num_blocks: int = 2, epochs: int = 5, lr: float = 3e-4, **settings: Any) -> Plan:
    """Train the head and the last blocks (Yosinski et al. 2014: late features are the ones that are of their task).

    Args:
        num_blocks: How many, no more than the backbone has.
        epochs: Number of epochs.
        lr: Of all that trains.
        settings: See `Plan`.
    """
    trains = ("head", f"last {num_blocks} blocks")
    return Plan(
        name="last_blocks",
        phases=(Phase(name="last blocks", trains=trains, lr=lr, epochs=epochs),),
        **settings,
    )


def surgical(
    *, head_epochs: int = 5, epochs: int = 5, head_lr: float = 1e-3, lr: float = 3e-4, **settings: Any
) -> Plan:
    """Train the head, then with it the one block that asks for it most (Lee et al. 2022, "Surgical Fine-Tuning").

    That is the block whose gradient is largest beside its weights ("Auto-RGN"), measured on training batches when the
    head has learned.

    Args:
        head_epochs: Epochs of the head alone.
        epochs: Epochs of the head and the block.
        head_lr: Of the head alone.
        lr: Of both.
        settings: See `Plan`.
    """
    block = Phase(name="one block", trains=("head", BEST_BLOCK), lr=lr, epochs=epochs)
    return Plan(name="surgical", phases=(_head(head_epochs, head_lr), block), **settings)


def bitfit(*, epochs: int = 10, lr: float = 1e-3, **settings: Any) -> Plan:
    """Train the head and every bias (Ben Zaken, Ravfogel & Goldberg 2021, "BitFit").

    Args:
        epochs: Number of epochs.
        lr: Of all that trains.
        settings: See `Plan`.
    """
    return Plan(
        name="bitfit",
        phases=(Phase(name="biases", trains=("head", "biases"), lr=lr, epochs=epochs),),
        **settings,
    )


def norms_only(*, epochs: int = 10, lr: float = 1e-3, **settings: Any) -> Plan:
    """Train the head and the norms (Frankle, Schwab & Morcos 2020, "Training BatchNorm and Only BatchNorm").

    Args:
        epochs: Number of epochs.
        lr: Of all that trains.
        settings: See `Plan`.
    """
    return Plan(
        name="norms_only",
        phases=(Phase(name="norms", trains=("head", "norms"), lr=lr, epochs=epochs),),
        **settings,
    )


def lora(*, epochs: int = 5, lr: float = 5e-4, rank: int = 8, alpha: int = 16, **settings: Any) -> Plan:
    """Train the head and adapters of low rank in the backbone (Hu et al. 2021, "LoRA"), by the library peft.

    Args:
        epochs: Number of epochs.
        lr: Of all that trains.
        rank: Of each adapter.
        alpha: See `LoRA`.
        settings: See `Plan`.
    """
    phase = Phase(name="adapters", trains=("head", "*lora_*"), lr=lr, epochs=epochs)
    return Plan(name="lora", phases=(phase,), lora=LoRA(rank=rank, alpha=alpha), **settings)


def l2_sp(*, epochs: int = 5, lr: float = 1e-4, strength: float = 0.1, **settings: Any) -> Plan:
    """Train everything, and pull the backbone to where it began (Li, Grandvalet & Davoine 2018, "L2-SP").

    Args:
        epochs: Number of epochs.
        lr: Of everything.
        strength: Of the pull.
        settings: See `Plan`.
    """
    phase = Phase(name="all", trains="all", lr=lr, epochs=epochs, l2_sp=strength, weight_decay=0.0)
    return Plan(name="l2_sp", phases=(phase,), **settings)


def _head(epochs: int, lr: float) -> Phase:
    return Phase(name="head", trains="head", lr=lr, epochs=epochs)


PLANS: dict[str, Callable[..., Plan]] = {
    each.__name__: each
    for each in (
        linear_probe, full, lp_ft, gradual, layer_decay, last_blocks, surgical, bitfit, norms_only, lora, l2_sp,
    )
}  # fmt: skip


def named_plan(name: str, **settings: Any) -> Plan:
    """Give a plan by its name.

    Args:
        name: One of `PLANS`.
        settings: What its function takes.

    Raises:
        MisconfigurationError: If there is no plan of that name, or it does not take a setting.

    Example:
        >>> [phase.name for phase in named_plan("lp_ft", epochs=2).phases]
        ['head', 'all']
    """
    if name == "auto":
        raise MisconfigurationError(
            "'auto' is more than a plan: `headstart fit` fits the head to its optimum, fine-tunes from it, and keeps the better. The "
            "plan that comes nearest to its training is 'lp_ft'."
        )
    if name not in PLANS:
        raise MisconfigurationError(
            f"There is no plan {name!r}.{did_you_mean(name, PLANS)} There are: {', '.join(PLANS)}."
        )
    known = [
        *(each for each in inspect.signature(PLANS[name]).parameters if each != "settings"),
        "monitor", "mode", "backbone",
    ]  # fmt: skip
    unknown = next((each for each in settings if each not in known), None)
    if unknown is not None:
        raise MisconfigurationError(
            f"The plan {name!r} takes no {unknown!r}.{did_you_mean(unknown, known)} It takes: {', '.join(known)}."
        )
    return PLANS[name](**settings)
