"""A plan: what trains in each phase, and what a step of it costs, on a given backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.errors import MisconfigurationError

if TYPE_CHECKING:
    from headstart.cli.inspected import Inspected
    from headstart.tasks import Classifier


def inspect_plan(name: str, *, backbone: str | None) -> Inspected:
    """Give the table of a plan.

    Args:
        name: A plan's name, or a YAML file.
        backbone: The network that it is shown for; `None` is the packaged one for images.

    Raises:
        MisconfigurationError: If the file holds no plan, or a word of it chooses nothing in this network.
    """
    from headstart import freezing
    from headstart.adapters import put_adapters_in
    from headstart.backbones import default_backbone
    from headstart.callbacks.plan import table_of
    from headstart.cli.inspected import Inspected, step_of
    from headstart.groups import is_norm, layout_of
    from headstart.plan import Plan
    from headstart.plans import named_plan

    plan = Plan.from_yaml(name) if name.endswith((".yaml", ".yml")) else named_plan(name)
    if plan.backbone != "backbone":
        raise MisconfigurationError(
            f"The plan {plan.name!r} is for a module whose backbone is {plan.backbone!r}; the classifiers that it can be shown for have "
            "it in 'backbone'. `Trainer(plan=...)` prints the table for your module."
        )
    backbone = backbone or default_backbone("images")
    model = _classifier(backbone)
    if plan.lora is not None:
        put_adapters_in(model.backbone, plan)
    layout, step = layout_of(model), step_of(model)
    costs: list[tuple[int, int | None]] = []
    phases = []
    for index, phase in enumerate(plan.phases):
        state = plan.state_at(layout, index)
        freezing.set_trainable(model, state.trainable)
        for each in model.backbone.modules():
            if is_norm(each):
                mode = {"train": None, "adapt": "train", "frozen": "eval"}[phase.norms]
                freezing.pin_mode(each, mode)  # type: ignore[arg-type]
        freezing.establish_modes(model)
        audit = freezing.audit(model, step=step)
        costs.append((audit.num_trainable, audit.flops))
        phases.append(
            {
                "name": phase.name, "trains": list(phase.trains), "num_trainable": audit.num_trainable, "flops": audit.flops,
                "lr": phase.lr, "backbone_lr": phase.backbone_lr, "layer_decay": phase.layer_decay, "norms": phase.norms,
                "epochs": phase.epochs, "steps": phase.steps, "seconds": phase.time, "patience": phase.patience, "schedule": phase.schedule,
                "warmup_steps": phase.warmup_steps,
            }
        )  # fmt: skip
    found = Inspected()
    found.add_text(f"On {backbone}, {sum(each.numel() for each in model.parameters()):,} parameters:")
    found.add_text(table_of(plan, costs))
    found.values = {"plan": plan.name, "backbone": backbone, "phases": phases}
    return found


def _classifier(backbone: str) -> Classifier:
    from headstart.backbones import load_backbone
    from headstart.tasks import ImageClassifier, TextClassifier

    # The weights do not matter here, and those of a hub would have to be fetched.
    network = load_backbone(backbone, pretrained=False)
    cls = ImageClassifier if network.kind == "images" else TextClassifier
    return cls(network, class_names=["one", "other"])
