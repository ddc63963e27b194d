"""`headstart inspect WHAT`: what is in a run, a checkpoint, a file of weights, a module, a plan or a backbone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import MisconfigurationError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from headstart.cli.inspected import Inspected

_DESCRIPTION = """\
Print what of a model is frozen, what trains, in which mode and parameter group, at which learning rate, and the FLOPs of
one training step with one sample. WHAT is one of: RUN, a folder of `headstart fit`, of which the last checkpoint is shown (or,
without one, the model); CHECKPOINT, a file of any trainer or a folder of parts, checked to the last byte; WEIGHTS.safetensors;
MODULE, as package.module:NAME or FILE.py:NAME, a class or a function without arguments, whose code is run; PLAN, a name or a YAML
file; BACKBONE, a name as in `headstart fit --backbone`.
"""
_LIBRARIES = ("timm", "torchvision", "hf")


def run(arguments: list[str]) -> int:
    """Print what was found; give the exit code.

    Args:
        arguments: What follows `headstart inspect`.

    Returns:
        0, or 1 where the audit found a problem.

    Raises:
        HeadstartError: If it is none of these, or is damaged.
    """
    parser = argparse.ArgumentParser(prog="headstart inspect", description=_DESCRIPTION)
    parser.add_argument("what", metavar="RUN|CHECKPOINT|WEIGHTS|MODULE|PLAN|BACKBONE")
    parser.add_argument(
        "--depth", type=int, help="how deep into the tree of modules (default: down to the blocks)"
    )
    parser.add_argument("--backbone", help="for a plan: the network whose parameters and FLOPs are counted")
    parser.add_argument(
        "--input", metavar="SHAPE", help="for a module: the shape of its input, such as 1,3,224,224"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)

    from headstart.cli.result import as_json
    from headstart.cli.speech import speaking

    with speaking(quiet=False, json=True):  # what a module prints when it is built is not the result
        kind, found = _inspect(options)
    if options.json:
        print(as_json({"what": options.what, "kind": kind, **found.values}))
    else:
        found.show()
    return found.code


def _inspect(options: argparse.Namespace) -> tuple[str, Inspected]:
    """Find out what it is, and look at it."""
    from headstart.cli import inspect_checkpoint, inspect_module, inspect_plan, inspect_weights
    from headstart.plans import PLANS

    what, depth = options.what, options.depth
    kind = _kind_of(what, plans=[*PLANS])
    for name, owner in {"backbone": "plan", "input": "module"}.items():
        if getattr(options, name) is not None and kind != owner:
            raise MisconfigurationError(f"--{name} is for a {owner}, and {what} is a {kind}. Leave it out.")
    if kind == "run":
        return kind, _inspect_run(Path(what), depth=depth)
    if kind == "checkpoint":
        return kind, inspect_checkpoint.inspect_checkpoint(Path(what), depth=depth)
    if kind == "weights":
        return kind, inspect_weights.inspect_weights(Path(what), depth=depth or 2)
    if kind == "module":
        return kind, inspect_module.inspect_module(what, depth=depth, shape=options.input)
    if kind == "plan":
        return kind, inspect_plan.inspect_plan(what, backbone=options.backbone)
    return kind, _inspect_backbone(what, depth=depth)


# ---- what it is


def _kind_of(what: str, *, plans: list[str]) -> str:
    """Give the kind of thing that a name means.

    Raises:
        MisconfigurationError: If it is a file or folder of another kind.
        UnknownNameError: If there is no such file.
    """
    from headstart.backbones.names import PACKAGED

    path = Path(what)
    if path.is_dir():
        return _kind_of_folder(path)
    if path.is_file():
        return _kind_of_file(path)
    place, separator, name = what.rpartition(":")
    if separator and "@" not in what and place not in _LIBRARIES and name.isidentifier():
        return "module"
    if what in plans:
        return "plan"
    if what in {"auto", "thaw"}:
        raise MisconfigurationError(
            f"The plan {what!r} depends on the data, so it cannot be shown without: `headstart fit` prints it. Plans with a table: "
            f"{', '.join(plans)}, or a YAML file."
        )
    if "@" not in what and (path.suffix in {".ckpt", ".pth", ".pt", ".safetensors", ".yaml", ".yml", ".py"}):
        raise UnknownNameError(f"There is no file {what!r} (looked in {Path.cwd()}).")
    if what not in PACKAGED and (near := did_you_mean(what, plans)):
        raise UnknownNameError(f"There is neither a file nor a backbone nor a plan {what!r}.{near}")
    return "backbone"


def _kind_of_folder(path: Path) -> str:
    for file, kind in {
        "config.json": "backbone",
        "checkpoint.ckpt": "checkpoint",  # in parts
        "headstart.json": "run",
        "run.yaml": "run",
    }.items():
        if (path / file).is_file():
            return kind
    held = sorted(each.name for each in path.iterdir())
    more = f" and {len(held) - 5} more" if len(held) > 5 else ""
    raise MisconfigurationError(
        f"{path} is a folder that holds {', '.join(held[:5]) or 'nothing'}{more}; expected a RUN (with run.yaml or headstart.json), a "
        "checkpoint in parts (with checkpoint.ckpt) or a backbone in the Hugging Face layout (with config.json)."
    )


def _kind_of_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return "weights"
    if suffix in {".yaml", ".yml"}:
        return "plan"
    if suffix == ".py":
        raise MisconfigurationError(
            f"{path} is a Python file: name the class or function in it, {path}:NAME."
        )
    with path.open("rb") as file:
        begin = file.read(16)
    other = next((name for magic, name in _MAGIC.items() if begin.startswith(magic)), None)
    if other is None and begin and not begin.startswith((b"PK\3\4", b"\x80")) and _is_text(path):
        other = "a text"
    if other is not None:
        raise MisconfigurationError(
            f"{path} is {other}; expected a checkpoint, a .safetensors file or a plan (.yaml)."
        )
    return "checkpoint"


#: How other files begin.
_MAGIC = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file, as Keras writes it",
    b"\x93NUMPY": "a NumPy array",
    b"PAR1": "a Parquet table",
    b"GGUF": "a GGUF file, as llama.cpp writes it",
}


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        begin = file.read(4096)
    try:
        begin.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(begin) - 4  # a letter that was cut in two
    return b"\0" not in begin


# ---- a run


def _inspect_run(folder: Path, *, depth: int | None) -> Inspected:
    from headstart.artefact import load_artefact, read_metadata
    from headstart.cli.inspect_checkpoint import inspect_checkpoint
    from headstart.cli.inspected import Inspected, phrase, step_of
    from headstart.cli.run_folder import RunFolder

    run_folder = RunFolder(folder)
    if not (folder / "headstart.json").is_file():
        if run_folder.last_checkpoint.is_file():
            return inspect_checkpoint(run_folder.last_checkpoint, depth=depth)
        raise MisconfigurationError(
            f"{folder} is a run that has saved nothing yet: neither a model (headstart.json) nor {run_folder.last_checkpoint}."
        )
    metadata = read_metadata(folder)
    metrics = metadata.get("metrics") or {}
    facts = [
        ("task", metadata["task"]),
        ("backbone", metadata["backbone"]["name"]),
        ("classes", ", ".join(metadata["class_names"])),
        ("preprocessing", phrase(metadata["preprocessing"])),
        ("versions", phrase(metadata["versions"])),
        ("written", str(metadata.get("created", ""))),
    ]
    test = metrics.get("test")
    if test:
        facts += [(name, f"{test[name]['value']:.3f}") for name in ("accuracy", "macro_f1")]
    about: dict[str, Any] = {
        name: metadata.get(name) for name in ("task", "class_names", "preprocessing", "versions", "created")
    }
    about |= {"backbone": metadata["backbone"]["name"], "metrics": metrics}
    found = Inspected()
    found.add_facts(str(folder), facts)
    if run_folder.last_checkpoint.is_file():
        found = inspect_checkpoint(run_folder.last_checkpoint, depth=depth, into=found)
    else:
        model = load_artefact(folder)
        model.freeze()
        found.add_text("The model as it predicts: nothing trains.")
        found.add_audit(model, step=step_of(model), depth=depth)
    found.values = {**about, **found.values}
    return found


# ---- a backbone


def _inspect_backbone(name: str, *, depth: int | None) -> Inspected:
    from headstart import freezing
    from headstart.backbones import load_backbone
    from headstart.cli.inspected import Inspected, in_evaluation, sample_of

    # The weights do not matter here, and those of a hub would have to be fetched.
    backbone = load_backbone(name, pretrained=False)
    inputs = sample_of(backbone)
    found = Inspected()
    found.add_text(f"{name}: {backbone.kind}, {backbone.width} features")
    freezing.freeze(backbone)
    frozen = freezing.audit(backbone, step=in_evaluation(backbone, lambda: backbone(inputs)))
    freezing.unfreeze(backbone)
    found.add_audit(backbone, step=in_evaluation(backbone, lambda: backbone(inputs)), depth=depth)
    found.add_text(f"Frozen, a step costs {frozen.flops:,} FLOPs a sample: forward alone.")
    found.values |= {"takes": backbone.kind, "width": backbone.width, "flops_frozen": frozen.flops}
    return found
