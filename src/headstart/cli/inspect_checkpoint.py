"""A checkpoint: how far it is, what trains, in which groups, what the callbacks know, and whether it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import CheckpointError, UnknownNameError
from headstart.words import counted

if TYPE_CHECKING:
    import torch

    from headstart.cli.inspected import Inspected
    from headstart.tasks import Classifier

# Groups of an optimizer that are shown each by itself.
_MOST_GROUPS = 4
# Of a callback's state, what says where it is.
_TELLING = (
    "best_model_score", "best_model_path", "best_score", "wait_count", "stopped_epoch", "phase", "best",
)  # fmt: skip


def inspect_checkpoint(path: Path, *, depth: int | None, into: Inspected | None = None) -> Inspected:
    """Give what a checkpoint holds.

    Args:
        path: A file, or a folder of parts.
        depth: Of the rows.
        into: What was found before.

    Raises:
        CheckpointError: If it is damaged.
        UnknownNameError: If it holds no weights.
    """
    from headstart.checkpoint import read_checkpoint
    from headstart.cli.inspected import Inspected

    found = Inspected() if into is None else into
    seal = _seal_of(path)
    checkpoint = read_checkpoint(path)
    weights = checkpoint.get("state_dict", checkpoint)
    if not any(hasattr(value, "numel") for value in weights.values()):
        raise UnknownNameError(
            f"There are no weights in {path}. It holds: {', '.join(map(str, checkpoint)) or 'nothing'}."
        )
    facts, values = _facts(path, checkpoint, seal)
    found.add_facts(str(path), facts)
    found.values |= values
    description = (checkpoint.get("hyper_parameters") or {}).get("description")
    if isinstance(description, dict) and "kind" in description:
        _add_audit(found, path, checkpoint, kind=description["kind"], depth=depth)
    else:
        _add_tensors(found, weights, trainable=values.get("trainable"), depth=depth or 2)
    return found


def _seal_of(path: Path) -> str:
    """Check a checkpoint, and say what vouches for it."""
    from headstart import archive
    from headstart.checkpoint import refuse_damaged

    if path.is_dir():
        from headstart.strategy.parts import check_parts

        try:
            check_parts(path)
        except (archive.Damage, OSError) as error:
            raise CheckpointError(
                f"{path} is damaged: {error}. Nothing of it was loaded. Copy it again from where it came from, or use an earlier "
                "one."
            ) from error
        count = sum(1 for each in (path / "parts").iterdir() if each.is_file())
        return f"checked: the digests of {count} files fit"
    refuse_damaged(path, name=str(path))
    return {
        "sealed": "sealed and checked: every byte is as it was written",
        "checksums": "no seal (of another program); the checksums of its entries fit",
        "nothing": "not checked: a file of torch before 1.6 holds nothing to check it by",
    }[archive.vouched_by(path)]


# ---- facts


def _facts(
    path: Path, checkpoint: Mapping[str, Any], seal: str
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    from headstart.cli.inspected import phrase, size_of

    loops = checkpoint.get("loops") or {}
    weights = checkpoint.get("state_dict", checkpoint)
    size = _size_on_disk(path)
    progress = {name: checkpoint[name] for name in ("epoch", "global_step") if name in checkpoint}
    within = loops.get("progress") or {}
    versions = {
        name.removesuffix("_version"): checkpoint[name]
        for name in ("headstart_version", "pytorch-lightning_version")
        if name in checkpoint
    }
    values: dict[str, Any] = {
        **progress,
        "progress": within or None,
        "versions": versions,
        "seal": seal,
        "size": size,
        "sizes": {name: _num_bytes(value) for name, value in checkpoint.items() if _num_bytes(value)},
    }
    facts = [("progress", phrase(progress) or "weights alone")]
    if within:
        batches = f"{within['batch']} batches of it are done" if within["batch"] else "at its boundary"
        facts[0] = ("progress", f"{facts[0][1]}; {batches}")
    facts += [("versions", phrase(versions))] if versions else []
    facts += [("file", f"{size_of(size)}; {seal}")]
    if "num_processes" in loops:
        facts.append(("written by", f"{loops['num_processes']} processes"))
        values["num_processes"] = loops["num_processes"]
    facts.append(("holds", ", ".join(f"{name} {size_of(each)}" for name, each in values["sizes"].items())))
    if "trainable" in loops:
        trainable = list(loops["trainable"])
        count = sum(weights[name].numel() for name in trainable if name in weights)
        facts.append(("trains", f"{count:,} values in {len(trainable)} tensors"))
        values |= {"trainable": trainable, "num_trainable": count}
    for number, state in enumerate(checkpoint.get("optimizer_states", [])):
        groups = _groups(state, loops.get("param_groups", []), number, weights)
        facts += _group_facts(number, groups)
        values.setdefault("optimizers", []).append(groups)
    schedulers = [
        {name: each for name, each in state.items() if name in {"last_epoch", "_last_lr", "base_lrs"}}
        for state in checkpoint.get("lr_schedulers", [])
    ]
    if schedulers:
        facts.append(("schedulers", "; ".join(map(phrase, schedulers))))
        values["schedulers"] = schedulers
    states = checkpoint.get("callbacks") or {}
    callbacks = {str(key): _telling(state) for key, state in states.items()}
    for key, state in states.items():
        kept = f"keeps {', '.join(map(str, state))}" if isinstance(state, Mapping) else "has a state"
        facts.append((f"callback {str(key).partition('{')[0]}", phrase(callbacks[str(key)]) or kept))
    if callbacks:
        values["callbacks"] = callbacks
    hparams = {
        name: each
        for name, each in (checkpoint.get("hyper_parameters") or {}).items()
        if isinstance(each, int | float | str | bool | None)
    }
    if hparams:
        facts.append(("hyper-parameters", phrase(hparams)))
        values["hyper_parameters"] = hparams
    return facts, values


def _groups(
    state: Mapping[str, Any], all_names: list[Any], number: int, weights: Mapping[str, Any]
) -> list[dict[str, Any]]:
    names = all_names[number] if number < len(all_names) else None
    groups = []
    for index, group in enumerate(state.get("param_groups", [])):
        found: dict[str, Any] = {
            "name": group.get("name"),
            "lr": _plain(group.get("lr")),
            "weight_decay": _plain(group.get("weight_decay")),
            "num_tensors": len(group["params"]),
        }
        if names is not None and index < len(names):
            found["num_values"] = sum(weights[each].numel() for each in names[index] if each in weights)
        groups.append(found)
    return groups


def _group_line(group: Mapping[str, Any]) -> str:
    name = f"{group['name']!r}: " if group["name"] else ""
    values = f"{group['num_values']:,} values in " if "num_values" in group else ""
    decay = "" if group["weight_decay"] is None else f", weight decay {group['weight_decay']:g}"
    return f"{name}{values}{counted(group['num_tensors'], 'tensor')}, lr {group['lr']:.3g}{decay}"


def _group_facts(number: int, groups: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Give a row for each group, or one for all where there are many, as with a rate for each block."""
    if len(groups) <= _MOST_GROUPS:
        return [
            (f"optimizer {number}, group {index}", _group_line(group)) for index, group in enumerate(groups)
        ]
    rates = [float(group["lr"]) for group in groups]
    line = (
        f"{len(groups)} groups with {counted(sum(group['num_tensors'] for group in groups), 'tensor')}, "
        f"lr {min(rates):.3g} to {max(rates):.3g}; --json lists them"
    )
    return [(f"optimizer {number}", line)]


def _telling(state: Any) -> dict[str, Any]:
    if not isinstance(state, Mapping):
        return {}
    found = {name: _plain(state[name]) for name in _TELLING if name in state}
    if isinstance(state.get("plan"), Mapping):
        found = {"plan": state["plan"].get("name"), **found}
    return {name: each for name, each in found.items() if each is not None and each != ""}


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") and getattr(value, "numel", lambda: 1)() == 1 else value


def _num_bytes(value: Any) -> int:
    """Count the bytes of the tensors somewhere inside."""
    if hasattr(value, "untyped_storage"):
        return int(value.numel() * value.element_size())
    if isinstance(value, Mapping):
        return sum(map(_num_bytes, value.values()))
    return sum(map(_num_bytes, value)) if isinstance(value, list | tuple) else 0


def _size_on_disk(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


# ---- one of ours: the module can be built


def _add_audit(
    found: Inspected, path: Path, checkpoint: dict[str, Any], *, kind: str, depth: int | None
) -> None:
    from headstart import freezing
    from headstart.cli.inspected import step_of
    from headstart.tasks import ImageClassifier, TextClassifier

    cls = ImageClassifier if kind == "images" else TextClassifier
    model = cls.load_from_checkpoint(path)
    loops = checkpoint.get("loops") or {}
    if "trainable" in loops:
        freezing.set_trainable(model, loops["trainable"])
    freezing.establish_modes(model)
    found.add_audit(model, step=step_of(model), depth=depth, optimizers=_optimizers(model, checkpoint, loops))


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


# ---- of another program: its tensors' names are all that is known of it


@dataclass(slots=True)
class _Part:
    num_tensors: int = 0
    num_values: int = 0
    num_trainable: int = 0


def _add_tensors(
    found: Inspected, weights: Mapping[str, Any], *, trainable: list[str] | None, depth: int
) -> None:
    parts: dict[str, _Part] = {}
    trains = set(trainable or ())
    for name, value in weights.items():
        if hasattr(value, "numel"):
            prefix = ".".join(str(name).split(".")[:-1][:depth]) or str(name)
            part = parts.setdefault(prefix, _Part())
            part.num_tensors += 1
            part.num_values += value.numel()
            part.num_trainable += value.numel() if name in trains else 0
    width = max(map(len, [*parts, "module"]))
    last = "" if trainable is None else f"  {'trainable':>13}"
    lines = [f"{'module':<{width}}  {'tensors':>7}  {'values':>13}{last}"]
    for prefix, part in parts.items():
        last = "" if trainable is None else f"  {part.num_trainable:>13,}"
        lines.append(f"{prefix:<{width}}  {part.num_tensors:>7,}  {part.num_values:>13,}{last}")
    found.add_text("\n".join(lines))
    found.values["modules"] = [
        {"name": prefix, "num_tensors": part.num_tensors, "num_parameters": part.num_values}
        | ({} if trainable is None else {"num_trainable": part.num_trainable})
        for prefix, part in parts.items()
    ]
