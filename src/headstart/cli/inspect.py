"""`headstart inspect RUN|CHECKPOINT|BACKBONE`: what is frozen, what trains, in which group, and what a step costs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import UnknownNameError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from headstart.backbones import Backbone
    from headstart.freezing import Audit
    from headstart.tasks import Classifier

_DESCRIPTION = """\
Print what of a model is frozen, what trains, in which mode and parameter group, at which learning rate, and the FLOPs of
one training step with one sample. RUN is a folder of `headstart fit`, of which the last checkpoint is shown (or, without
one, the model); CHECKPOINT a file of any trainer; BACKBONE a name as in `headstart fit --backbone`.
"""


def run(arguments: list[str]) -> int:
    """Print the audit; give the exit code.

    Args:
        arguments: What follows `headstart inspect`.

    Returns:
        0, or 1 where the audit found a problem.
    """
    parser = argparse.ArgumentParser(prog="headstart inspect", description=_DESCRIPTION)
    parser.add_argument("what", metavar="RUN|CHECKPOINT|BACKBONE")
    parser.add_argument(
        "--depth", type=int, help="how deep into the tree of modules (default: down to the blocks)"
    )
    options = parser.parse_args(arguments)
    path = Path(options.what)
    if path.is_file() and path.suffix not in {".pth", ".safetensors"}:
        return _inspect_checkpoint(path, depth=options.depth)
    if path.is_dir() and not (path / "config.json").is_file():
        return _inspect_run(path, depth=options.depth)
    return _inspect_backbone(options.what, depth=options.depth)


# ---- a run


def _inspect_run(folder: Path, *, depth: int | None) -> int:
    from headstart.artefact import load_artefact, read_metadata
    from headstart.cli.output import facts_table, show
    from headstart.cli.run_folder import RunFolder

    run_folder = RunFolder(folder)
    if not (folder / "headstart.json").is_file() and run_folder.last_checkpoint.is_file():
        return _inspect_checkpoint(run_folder.last_checkpoint, depth=depth)
    metadata = read_metadata(folder)
    facts = [
        ("task", metadata["task"]),
        ("backbone", metadata["backbone"]["name"]),
        ("classes", ", ".join(metadata["class_names"])),
        ("preprocessing", _phrase(metadata["preprocessing"])),
        ("versions", _phrase(metadata["versions"])),
        ("written", str(metadata.get("created", ""))),
    ]
    test = (metadata.get("metrics") or {}).get("test")
    if test:
        facts += [(name, f"{test[name]['value']:.3f}") for name in ("accuracy", "macro_f1")]
    show(facts_table(str(folder), facts))
    if run_folder.last_checkpoint.is_file():
        return _inspect_checkpoint(run_folder.last_checkpoint, depth=depth)
    model = load_artefact(folder)
    model.freeze()
    print("The model as it predicts: nothing trains.")
    return _print_audit(model, step=_step_of(model), depth=depth)


def _phrase(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


# ---- a checkpoint


def _inspect_checkpoint(path: Path, *, depth: int | None) -> int:
    from headstart import freezing
    from headstart.checkpoint import read_checkpoint
    from headstart.tasks import ImageClassifier, TextClassifier

    checkpoint = read_checkpoint(path)
    progress = [f"{name} {checkpoint[name]}" for name in ("epoch", "global_step") if name in checkpoint]
    print(f"{path}: {', '.join(progress) or 'weights'}")
    description = (checkpoint.get("hyper_parameters") or {}).get("description")
    if not isinstance(description, dict) or "kind" not in description:
        _print_tensors(checkpoint, depth=depth or 2)
        return 0
    kind = ImageClassifier if description["kind"] == "images" else TextClassifier
    model = kind.load_from_checkpoint(path)
    loops = checkpoint.get("loops") or {}
    if "trainable" in loops:
        freezing.set_trainable(model, loops["trainable"])
    freezing.establish_modes(model)
    return _print_audit(
        model, step=_step_of(model), depth=depth, optimizers=_optimizers(model, checkpoint, loops)
    )


def _optimizers(
    model: Classifier, checkpoint: dict[str, Any], loops: dict[str, Any]
) -> list[torch.optim.Optimizer]:
    """Give optimizers with the groups and rates of the checkpoint; they are for show and take no step."""
    import torch

    parameters = dict(model.named_parameters())
    return [
        torch.optim.SGD(
            [
                {"params": [parameters[name] for name in names], "lr": float(group["lr"])}
                for names, group in zip(groups, state["param_groups"], strict=True)
            ]
        )
        for groups, state in zip(
            loops.get("param_groups", []), checkpoint.get("optimizer_states", []), strict=True
        )
    ]


@dataclass(slots=True)
class _Part:
    num_tensors: int = 0
    num_values: int = 0


def _print_tensors(checkpoint: dict[str, Any], *, depth: int) -> None:
    """Show the weights of a module that cannot be built here: their names are all that is known of it."""
    import torch

    weights = checkpoint.get("state_dict", checkpoint)
    parts: dict[str, _Part] = {}
    for name, value in weights.items():
        if isinstance(value, torch.Tensor):
            prefix = ".".join(str(name).split(".")[:-1][:depth]) or str(name)
            part = parts.setdefault(prefix, _Part())
            part.num_tensors += 1
            part.num_values += value.numel()
    if not parts:
        raise UnknownNameError(
            f"There are no weights in the file. It holds: {', '.join(map(str, checkpoint)) or 'nothing'}."
        )
    width = max(map(len, parts))
    print(f"{'module':<{width}}  {'tensors':>7}  {'values':>13}")
    for prefix, part in parts.items():
        print(f"{prefix:<{width}}  {part.num_tensors:>7,}  {part.num_values:>13,}")
    for number, state in enumerate(checkpoint.get("optimizer_states", [])):
        for index, group in enumerate(state.get("param_groups", [])):
            print(
                f"optimizer {number}, group {index}: {len(group['params']):,} parameters, lr {group.get('lr')}"
            )


# ---- a backbone


def _inspect_backbone(name: str, *, depth: int | None) -> int:
    from headstart import freezing
    from headstart.backbones import load_backbone

    # The weights do not matter here, and those of a hub would have to be fetched.
    backbone = load_backbone(name, pretrained=False)
    inputs = _sample(backbone)
    print(f"{name}: {backbone.kind}, {backbone.width} features")
    freezing.freeze(backbone)
    frozen = freezing.audit(backbone, step=_in_evaluation(backbone, lambda: backbone(inputs)))
    freezing.unfreeze(backbone)
    code = _print_audit(backbone, step=_in_evaluation(backbone, lambda: backbone(inputs)), depth=depth)
    print(f"Frozen, a step costs {frozen.flops:,} FLOPs a sample: forward alone.")
    return code


# ---- the audit


def _print_audit(
    module: nn.Module,
    *,
    step: Callable[[], Any],
    depth: int | None,
    optimizers: list[torch.optim.Optimizer] | None = None,
) -> int:
    from headstart import freezing

    audit: Audit = freezing.audit(
        module, optimizers=optimizers or [], step=step, max_depth=depth or _depth_of_blocks(module)
    )
    print(audit)
    return 1 if audit.problems else 0


def _depth_of_blocks(module: nn.Module) -> int:
    from headstart.backbones import Backbone

    for prefix, child in module.named_modules():
        if isinstance(child, Backbone):
            names = [f"{prefix}.{name}" if prefix else name for name, _ in child.blocks()]
            return 1 + max(name.count(".") for name in names)
    return 2


def _step_of(model: Classifier) -> Callable[[], Any]:
    import torch

    inputs = _sample(model)
    return _in_evaluation(model, lambda: model.loss(model(inputs), torch.zeros(1, dtype=torch.int64)))


def _sample(model: Backbone | Classifier) -> Any:
    """Give inputs for one sample."""
    import torch

    from headstart.backbones import ImagePreprocessing

    preprocessing = model.preprocessing
    if isinstance(preprocessing, ImagePreprocessing):
        return torch.zeros(1, 3, preprocessing.size, preprocessing.size)
    # A text as long as the model takes: what a step can cost at most.
    return preprocessing(["word " * preprocessing.max_length])


def _in_evaluation(module: nn.Module, step: Callable[[], Any]) -> Callable[[], Any]:
    """Give a step that runs in evaluation mode: a batch of one is too small for batch norms, and nothing may move."""

    def run_step() -> Any:
        modes = {child: child.training for child in module.modules()}
        module.eval()
        try:
            return step()
        finally:
            for child, training in modes.items():
                child.training = training

    return run_step
