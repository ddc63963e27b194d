"""`headstart lr-find DATA`: a learning rate for a phase of a plan, by a range test."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.cli.options import FitOptions, parse_fit_options
from headstart.errors import MisconfigurationError, missing_dependency

if TYPE_CHECKING:
    from headstart.data import ClassificationData
    from headstart.lr_finder import LRCurve
    from headstart.plan import Plan
    from headstart.tasks import Classifier

_DESCRIPTION = """\
Find a learning rate for DATA: the rate grows from step to step while the training loss is watched (Smith 2017). The phases of the
plan before the one that is asked for are trained first; with --plan auto, the head is fitted to its optimum first. Nothing is
saved. The curve goes to standard output, everything else to standard error.
"""

# What fit does with them comes after the training, or is of its folder.
_OF_FIT_ALONE = frozenset(
    {"out", "time", "unfreeze_at_epoch", "backbone_lr", "patience", "views", "features", "forgetting", "logger", "test_fraction"}
)  # fmt: skip


def run(arguments: list[str]) -> int:
    """Find and print; give the exit code.

    Args:
        arguments: What follows `headstart lr-find`.

    Returns:
        0, or 1 where the curve suggests nothing.

    Raises:
        HeadstartError: If options or data cannot be used.
    """
    found = parse_fit_options(
        arguments, command="lr-find", description=_DESCRIPTION, skip=_OF_FIT_ALONE, add=_add
    )
    known = {each.name for each in fields(FitOptions)}
    options = FitOptions(
        **{name: value for name, value in found.items() if name in known and name not in _OF_FIT_ALONE},
        out="run",
    )
    if options.plan == "thaw":
        raise MisconfigurationError(
            "--plan thaw has no phases to test: its head trains as in --plan linear_probe, and all of it as in the phase 'all' of "
            "--plan lp_ft. Test those."
        )
    if found["plot"] is not None:
        _check_plot(Path(found["plot"]))

    from headstart.cli.speech import speaking

    with speaking(quiet=False, json=True):  # the curve alone goes to standard output
        curve, plan = _find(found, options)
    suggestions, problem = {}, None
    try:
        suggestions = {"valley": curve.suggestion("valley"), "steepest": curve.suggestion("steepest")}
    except MisconfigurationError as error:  # the curve says why
        problem = str(error)
    if found["plot"] is not None:
        curve.plot(suggest=problem is None).savefig(found["plot"])
    if found["json"]:
        _print_json(curve, suggestions)
    else:
        _print(curve, suggestions, plan, options, found["plot"])
    if problem is not None:
        print(f"headstart lr-find: {problem}", file=sys.stderr)
    return 0 if problem is None else 1


def _add(parser: Any) -> None:
    parser.add_argument(
        "--phase", type=str | None, default=None, help="The phase of the plan; its first without it."
    )
    parser.add_argument("--min_lr", type=float, default=1e-7, help="The rate of the first step.")
    parser.add_argument("--max_lr", type=float, default=1.0, help="That of the last one.")
    parser.add_argument("--num_training", type=int, default=100, help="Number of steps.")
    parser.add_argument(
        "--plot", type=str | None, default=None, help="Draw the curve in this file: .png, .svg, .pdf."
    )
    parser.add_argument("--json", action="store_true", help="Print the curve and the suggestions as JSON.")


def _check_plot(path: Path) -> None:
    """Refuse, before any work, what could not be drawn."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise missing_dependency("matplotlib", needed_for="--plot", extra="plots")
    if path.suffix not in {".png", ".svg", ".pdf"} or not path.absolute().parent.is_dir():
        raise MisconfigurationError(
            f"--plot is {str(path)!r}; expected a file in a folder that is there, ending in .png, .svg or .pdf."
        )


def _find(found: dict[str, Any], options: FitOptions) -> tuple[LRCurve, Plan]:
    from headstart.auto import quiet_trainer
    from headstart.cli import set_up
    from headstart.cli.arguments import device_settings
    from headstart.lr_finder import find_lr
    from headstart.seed import seed_everything

    data = set_up.open_data(options)
    for line in data.prepare().report.lines():
        print(line)
    seed_everything(options.seed, verbose=False)
    model = set_up.make_model(options, data)
    plan = _auto_plan(model, data, options) if options.plan == "auto" else set_up.named_plan_of(options)
    trainer = quiet_trainer(plan=plan, reuse_frozen=_reuse(options), **device_settings(options))
    curve = find_lr(
        trainer, model, datamodule=data, phase=found["phase"], min_lr=found["min_lr"], max_lr=found["max_lr"],
        num_training=found["num_training"],
    )  # fmt: skip
    return curve, plan


def _auto_plan(model: Classifier, data: ClassificationData, options: FitOptions) -> Plan:
    """Fit the head, and give the plan that fine-tunes from there."""
    from headstart import auto, freezing
    from headstart.callbacks import LiveView
    from headstart.cli.arguments import device_settings

    freezing.freeze(model.backbone)
    view = LiveView(title="head: features to train on")
    loader = data.plain_train_dataloader()
    features, targets = auto.outputs_of(model.backbone, loader, callbacks=[view], **device_settings(options))
    auto.fit_head(model.cpu(), features, targets, seed=options.seed)
    freezing.unfreeze(model)
    return auto.tuning_plan(
        model.kind, epochs=options.epochs or 3, steps_per_epoch=len(data.train_dataloader()), lr=options.lr
    )


def _reuse(options: FitOptions) -> Any:
    return False if options.reuse_frozen == "off" else options.reuse_frozen


def _print(
    curve: LRCurve, suggestions: dict[str, float], plan: Plan, options: FitOptions, plot: str | None
) -> None:
    from headstart.cli import output

    print(curve.table())
    end = "the loss diverged" if curve.is_diverged else "all steps were taken"
    facts = [
        ("phase", f"{curve.phase} of plan {plan.name}"),
        ("steps", f"{len(curve.lrs)}; {end}"),
        ("rate of the plan", f"{curve.configured_lr:.3g}"),
        ("suggested", ", ".join(f"{value:.3g} ({rule})" for rule, value in suggestions.items()) or "nothing"),
        *([("plot", plot)] if plot is not None else []),
    ]
    output.show(output.facts_table("Learning rate", facts))
    if not suggestions:
        return
    if not curve.is_clear:
        print(
            "The fall of the loss is no larger than its noise from batch to batch: more steps (--num_training) or larger batches "
            "(--batch_size) make the suggestion worth more."
        )
    rate = f"{suggestions['valley']:.2g}"
    if options.is_plan_a_file:
        print(f"Use it: lr: {rate} in phase {curve.phase!r} of {options.plan}")
    elif curve.phase == plan.phases[-1].name:
        print(f"Use it: {output.fit_command(replace(options, lr=float(rate)))}")


def _print_json(curve: LRCurve, suggestions: dict[str, float]) -> None:
    from headstart.cli.result import as_json

    print(
        as_json(
            {
                "phase": curve.phase,
                "suggestion": suggestions,
                "configured_lr": curve.configured_lr,
                "is_diverged": curve.is_diverged,
                "is_clear": curve.is_clear,
                **curve.results,
            }
        )
    )
