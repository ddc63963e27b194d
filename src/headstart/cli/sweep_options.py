"""The options of `headstart sweep`: on the command line, and in the folder of a sweep that goes on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from headstart.choice import Metric
from headstart.cli.arguments import add_device_arguments
from headstart.cli.options import Augment, FitOptions, read_kept, refuse_changes
from headstart.durations import positive_seconds_of
from headstart.errors import MisconfigurationError

OPTIONS_FILE = "sweep.yaml"

_DESCRIPTION = """\
Try many settings on DATA, and keep the best by validation. Each trial has a plan (head: the head at its optimum on what the
frozen backbone makes of the data; fine_tune: everything, from there; or a plan's name), a backbone, and values for the plan's
settings; every plan's own come first, then optuna proposes. What a frozen backbone makes of the data is computed once for all
trials. Trials are judged on the validation part; the test part is looked at once, for the best. DIR holds the best as a
RUN (DIR/best), all trials (trials.csv, trials.json), and what it takes to go on.
"""


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What `headstart sweep` is asked to do; what is not said here is as in `FitOptions`.

    Attributes:
        data: As for `headstart fit`.
        out: The folder of the sweep.
        trials: How many come to their end, those that are ended early or fail among them.
        time: Begin no trial after so long, such as 30m.
        metric: By which trials are judged.
        backbones: Which are tried; without one, the packaged one for the kind of data.
        plans: Which are tried; without one, `head` and `fine_tune`.
        lr: Lowest and highest.
        layer_decay: Lowest and highest.
        weight_decay: Lowest and highest.
        strength: Lowest and highest.
        epochs: Of plans that train by gradient; without it, each plan's own.
        prune: Whether trials that stay behind are ended early.
    """

    data: str
    out: str
    trials: int = 20
    time: str | None = None
    metric: Metric = "macro_f1"
    backbones: tuple[str, ...] = ()
    plans: tuple[str, ...] = ()
    lr: tuple[float, float] | None = None
    layer_decay: tuple[float, float] | None = None
    weight_decay: tuple[float, float] | None = None
    strength: tuple[float, float] | None = None
    epochs: int | None = None
    prune: bool = True
    features: str | None = None
    image_size: int | None = None
    augment: Augment = "flip"
    max_length: int | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    class_weights: str = "balanced"
    seed: int = 0
    batch_size: int = 32
    num_workers: int = 0
    accelerator: str = "auto"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise MisconfigurationError(f"--trials is {self.trials}; expected 1 or more.")
        if self.time is not None:
            positive_seconds_of(self.time, what="--time")
        self.fit_options()  # what they have in common is checked there

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The bounds that were given, by the name of the setting."""
        named = {name: getattr(self, name) for name in ("lr", "layer_decay", "weight_decay", "strength")}
        return {name: value for name, value in named.items() if value is not None}

    def fit_options(self) -> FitOptions:
        """Give the options of the `headstart fit` that reads the same data in the same way."""
        searched = {"lr", "weight_decay", "time", "out"}
        known = {each.name for each in fields(FitOptions)} - searched
        given = {name: value for name, value in asdict(self).items() if name in known}
        return FitOptions(**given, out=self.out, devices=1)


#: Options that may change when a sweep goes on.
_FREE_ON_RESUME = frozenset(
    {"data", "out", "trials", "time", "prune", "features", "num_workers", "accelerator", "text_column",
     "text_pair_column", "label_column"}  # the columns and the data are compared by what is read from them
)  # fmt: skip

# Options that are given once for each of their values.
_ON_THE_COMMAND_LINE = {"backbones": "backbone", "plans": "plan"}


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """What stands on the command line: the options, and what to do with a sweep that exists."""

    options: SweepOptions
    resume: bool
    overwrite: bool


def parse(arguments: list[str]) -> SweepRequest:
    """Give what a command line asks for.

    With `--resume`, options that are not given are those of the sweep; one that is given, and must not change, is an error.

    Args:
        arguments: What follows `headstart sweep`.

    Raises:
        SystemExit: After `--help` (code 0), and for a wrong use (code 2).
        MisconfigurationError: If a value makes no sense, or differs from the sweep that is to go on.

    Example:
        >>> parse(["photos", "--out", "sweep", "--lr", "1e-5", "1e-3"]).options.lr
        (1e-05, 0.001)
    """
    found = vars(_parser().parse_args(arguments))
    resume, overwrite = found.pop("resume"), found.pop("overwrite")
    if resume and overwrite:
        raise MisconfigurationError("--resume goes on with DIR and --overwrite deletes it: give one of them.")
    given = {name: _as_kept(value) for name, value in found.items() if value is not None}
    if resume:
        before = read_options(given["out"])
        _refuse_changes(before, given)
        given = {**before, **given}
    return SweepRequest(SweepOptions(**given), resume=resume, overwrite=overwrite)


def write_options(options: SweepOptions) -> None:
    """Write the options into the folder of the sweep."""
    import yaml

    plain = {
        name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items()
    }
    path = Path(options.out) / OPTIONS_FILE
    path.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")


def read_options(folder: str | Path) -> dict[str, Any]:
    """Give the options of the sweep in a folder.

    Raises:
        MisconfigurationError: If no sweep was begun there, or its file is damaged.
    """
    names = {each.name for each in fields(SweepOptions)}
    found = read_kept(Path(folder) / OPTIONS_FILE, what="sweep", names=names)
    return {name: _as_kept(value) for name, value in found.items()}


def _as_kept(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _refuse_changes(before: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    changed = [
        f"--{_ON_THE_COMMAND_LINE.get(name, name)} was {before.get(name)} and is {value}"
        for name, value in given.items()
        if name not in _FREE_ON_RESUME and before.get(name) != value
    ]
    refuse_changes(changed, what="sweep", out=given["out"])


def _parser() -> argparse.ArgumentParser:
    """Give the parser, without defaults: what was not given is known as such."""
    parser = argparse.ArgumentParser(prog="headstart sweep", description=_DESCRIPTION)
    add = parser.add_argument
    add("data", metavar="DATA", help="as for `headstart fit`")
    add("--out", metavar="DIR", required=True, help="the folder of the sweep")
    add("--trials", type=int, metavar="N", help="how many trials come to their end (default: 20)")
    add("--time", help="begin no trial after so long: 90s, 30m, 2h (default: no bound)")
    add("--resume", action="store_true", help="go on with the sweep in DIR; more --trials may be given")
    add("--overwrite", action="store_true", help="delete the sweep in DIR and begin anew")
    add("--metric", choices=["macro_f1", "accuracy", "log_loss"], help="what is best (default: macro_f1)")
    add("--backbone", dest="backbones", action="append", metavar="NAME",
        help="a backbone to try, named as for `headstart fit`; may be given more than once (default: the packaged one)")  # fmt: skip
    add("--plan", dest="plans", action="append", metavar="NAME",
        help="a plan to try: head, fine_tune, linear_probe, full, ...; may be given more than once (default: head and fine_tune)")  # fmt: skip
    for name, what in {
        "lr": "learning rate (default: a tenth to ten times the plan's own)",
        "layer_decay": "factor of the rate from a block to the one before it (default: 0.5 to 1, or 0.3 to 1)",
        "weight_decay": "weight decay (default: 1e-4 to 0.1)",
        "strength": "plan head: strength C of the penalty, the larger the weaker (default: 1e-4 to 1)",
    }.items():
        add(f"--{name}", type=float, nargs=2, metavar=("LOW", "HIGH"), help=what)
    add("--epochs", type=int, help="of plans that train by gradient (default: the plan's own)")
    add("--prune", action=argparse.BooleanOptionalAction,
        help="end a trial early that stays below the median of its plan's others (default: yes)")  # fmt: skip
    add(
        "--features",
        metavar="DIR",
        help="where the frozen backbones' outputs are kept (default: in the sweep's folder)",
    )
    add("--image_size", type=int, help="height and width in pixels (default: each backbone's own)")
    add(
        "--augment",
        choices=get_args(Augment),
        help="how training sees an image anew, in trials that train the backbone (default: flip)",
    )
    add("--max_length", type=int, help="tokens of a text (default: each backbone's own)")
    add("--text_column", help="the column of the texts (default: looked for by its name)")
    add("--text_pair_column", help="the column of the second texts, for pairs")
    add("--label_column", help="the column of the labels (default: looked for by its name)")
    add("--val_fraction", type=float, help="share of validation (default: 0.15)")
    add("--test_fraction", type=float, help="share of the test (default: 0.15)")
    add(
        "--class_weights",
        choices=["balanced", "none"],
        help="whether every class counts the same (default: balanced)",
    )
    add("--seed", type=int, help="of the split, of what is proposed, and of every trial (default: 0)")
    add_device_arguments(parser, may_be_several=False)
    parser.set_defaults(**{each.name: None for each in fields(SweepOptions) if each.default is not MISSING})
    return parser
