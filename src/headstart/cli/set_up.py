"""From the options of a command to its data, its model and its plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.cli.options import Augment, FitOptions
    from headstart.data import ClassificationData
    from headstart.plan import Plan
    from headstart.tasks import Classifier

# Macro-F1, as the result is judged by it too; the loss may grow from overconfidence while predictions get better.
MONITOR: str = "val_f1"
# What a `Classifier` logs by the end of a validation, so that a plan may watch it, and which way is better.
_LOGGED = {"train_loss": "min", "val_loss": "min", "val_acc": "max", "val_f1": "max"}

# Of an optimizer whose plan says the rates.
_LR = 1e-3

# What the words of --augment are to an `ImageClassifier`.
_AUGMENTATIONS: dict[Augment, dict[str, Any]] = {
    "flip": {"horizontal_flip": True},
    "crop": {"horizontal_flip": True, "min_scale": 0.7},
    "none": {"horizontal_flip": False},
}


def open_data(options: FitOptions) -> ClassificationData:
    """Give the data module for the data that the options name, not read yet.

    Raises:
        DataError: If there is no such data.
        MisconfigurationError: If options are for the other kind of data.
    """
    from headstart.data.opening import open_data as open_source

    data = open_source(
        options.data,
        text_columns=options.text_columns,
        label_column=options.label_column,
        batch_size=options.batch_size,
        val_fraction=options.val_fraction,
        test_fraction=options.test_fraction,
        seed=options.seed,
        num_workers=options.num_workers,
    )
    options.refuse_options_of_the_other_kind(data.kind, has_columns=data.has_columns)
    return data


def make_model(options: FitOptions, data: ClassificationData) -> Classifier:
    """Give the model for the data, and the data what the model's preprocessing does to its samples."""
    import torch

    from headstart.backbones import default_backbone
    from headstart.data import ImageData
    from headstart.tasks import ImageClassifier, TextClassifier, balanced_class_weights

    is_balanced = options.class_weights == "balanced"
    settings: dict[str, Any] = {
        "class_names": data.class_names,
        "lr": options.lr or _LR,
        "weight_decay": options.weight_decay,
        "class_weights": balanced_class_weights(data.class_counts) if is_balanced else None,
    }
    if data.kind == "images":
        assert isinstance(data, ImageData)
        backbone = options.backbone or default_backbone("images")
        settings |= {"image_size": options.image_size, **_AUGMENTATIONS[options.augment]}
        images = ImageClassifier(backbone, **settings)
        data.set_preprocessing(images.preprocessing)
        # Convolutions run faster in this order of memory: 1.6 times unfrozen, 1.3 frozen (EfficientNet-Lite0 on a CPU).
        return images.to(memory_format=torch.channels_last)
    backbone = options.backbone or default_backbone("text")
    texts = TextClassifier(backbone, max_length=options.max_length, **settings)
    data.set_preprocessing(texts.preprocessing)
    return texts


def named_plan_of(options: FitOptions, *, kept: Path | None = None) -> Plan:
    """Give the plan of a name or a file; each phase ends with its best weights by validation.

    Args:
        options: Their plan is neither auto nor thaw.
        kept: Of a run, a copy of the file, which is read in its place.

    Raises:
        MisconfigurationError: If the file holds no plan.
    """
    from dataclasses import replace

    from headstart.plan import Plan
    from headstart.plans import named_plan

    if options.is_plan_a_file:
        plan = Plan.from_yaml(options.plan if kept is None else kept)
    else:
        given = {"epochs": options.epochs, "lr": options.lr}
        plan = named_plan(options.plan, **{name: value for name, value in given.items() if value is not None})
    return plan if plan.monitor is not None else replace(plan, monitor=MONITOR, mode="max")


def check_plan(plan: Plan, model: Classifier) -> None:
    """Refuse now, before any work, a plan that cannot be followed; the model stays as it is.

    Raises:
        MisconfigurationError: If a word of it chooses nothing in the model, no layer takes its adapters, or it watches what the
            model does not log, or the wrong way round.
        MissingDependencyError: If it has adapters, and peft is not installed.
    """
    from headstart.adapters import put_adapters_in
    from headstart.errors import MisconfigurationError, did_you_mean
    from headstart.groups import layout_of
    from headstart.seed import isolated_random_state

    if plan.monitor is not None and plan.monitor not in _LOGGED:
        raise MisconfigurationError(
            f"Plan {plan.name!r}: monitor is {plan.monitor!r}; expected one of {', '.join(_LOGGED)}."
            f"{did_you_mean(plan.monitor, _LOGGED)}"
        )
    if plan.monitor is not None and plan.mode != _LOGGED[plan.monitor]:
        raise MisconfigurationError(
            f"Plan {plan.name!r}: mode is {plan.mode!r}, with which the worst {plan.monitor} would be kept. Write mode: "
            f"{_LOGGED[plan.monitor]}."
        )
    layout = layout_of(model, backbone=plan.backbone)
    if plan.lora is not None:  # its words may be for the adapters
        model = _without_weights(model)
        with isolated_random_state():
            put_adapters_in(model.get_submodule(plan.backbone), plan)
        layout = layout_of(model, backbone=plan.backbone)
    for index in range(len(plan.phases)):
        plan.state_at(layout, index)


def _without_weights(model: Classifier) -> Classifier:
    """Give a copy whose tensors have shapes and no values, and take no memory."""
    from copy import deepcopy

    from torch import nn

    found: dict[int, Any] = {id(each): each.to("meta") for each in model.buffers()}
    found |= {
        id(each): nn.Parameter(each.detach().to("meta"), requires_grad=each.requires_grad)
        for each in model.parameters()
    }
    return deepcopy(model, found)


def num_epochs_of_the_head_alone(plan: Plan, model: Classifier) -> int:
    """Give how many epochs a plan begins with in which nothing of the backbone changes, as far as the plan itself says.

    Args:
        plan: The plan.
        model: What it trains.
    """
    from headstart.groups import layout_of

    if plan.lora is not None:  # adapters train from the first step
        return 0
    layout, count = layout_of(model, backbone=plan.backbone), 0
    for index, phase in enumerate(plan.phases):
        is_head_alone = set(plan.state_at(layout, index).trainable) <= set(layout.head)
        may_end_earlier = (phase.steps, phase.time, phase.patience) != (None, None, None)
        if not is_head_alone or phase.norms == "adapt" or phase.epochs is None:
            break
        if may_end_earlier and index + 1 < len(plan.phases):
            break
        count += phase.epochs
    return count
