"""`headstart compare DATA --backbone A --backbone B`: which backbone suits the data, by a linear probe of its features."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from headstart.cli.arguments import add_device_arguments, device_settings
from headstart.durations import spelled
from headstart.errors import DataError, HeadstartError, MisconfigurationError

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.cli.options import FitOptions
    from headstart.cli.output import Scoreboard
    from headstart.data import ClassificationData
    from headstart.probe import Probe
    from headstart.scores import Estimate
    from headstart.tasks import Classifier

_DESCRIPTION = """\
Rank backbones for DATA (a folder with a folder of images per class, or a table of texts and labels). Each one's features of
the training part are computed once, and a linear head is fitted to its optimum on them: the ranking is by its accuracy
in cross-validation. Validation and test part are not touched. The table goes to standard output, everything else to standard
error. A backbone that cannot be used is named at the end; the exit code is 1 only if none could be.
"""

# Two accuracies differ if chance alone would give such a difference less often than this.
_LEVEL = 0.05


@dataclass(kw_only=True)
class Compared:
    """What was measured of one backbone.

    Attributes:
        name: As it was asked for.
        num_parameters: Of the backbone, without a head.
        width: Number of features.
        features: (N, width); `None` once they are not needed any more.
        targets: (N,).
        class_weights: (C,), as in the loss of `headstart fit`.
        feature_seconds: For the features.
        log_me: See `log_me`.
        h_score: See `h_score`.
        probe: The head; `None` where LogME was too low for one.
        probe_seconds: For the head.
        p_value: Of "as accurate as the best", on the same samples; `None` for the best, and without a head.
    """

    name: str
    num_parameters: int
    width: int
    features: Tensor | None
    targets: Tensor
    class_weights: Tensor | None
    feature_seconds: float
    log_me: float
    h_score: float
    probe: Probe | None = None
    probe_seconds: float | None = None
    p_value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        accuracy = None if self.probe is None else self.probe.accuracy
        return {
            "backbone": self.name,
            "accuracy": None if accuracy is None else accuracy.to_dict(),
            "num_folds": None if self.probe is None else self.probe.num_folds,
            "p_value_to_best": self.p_value,
            "log_me": self.log_me,
            "h_score": self.h_score,
            "num_parameters": self.num_parameters,
            "width": self.width,
            "seconds": {"features": self.feature_seconds, "probe": self.probe_seconds},
        }


def run(arguments: list[str]) -> int:
    """Compare and print; give the exit code.

    Args:
        arguments: What follows `headstart compare`.

    Returns:
        0, or 1 if no backbone could be used.

    Raises:
        HeadstartError: If options or data cannot be used.
    """
    request = _parser().parse_args(arguments)
    _check(request)

    from headstart.cli import output, set_up

    options = _fit_options(request)
    data = set_up.open_data(options)
    for line in data.prepare().report.lines():
        print(line, file=sys.stderr)
    check_counts(data)

    failed: dict[str, str] = {}
    compared = _compare(request, options, data, failed)
    ranked = _ranked([each for each in compared if each.probe is not None])
    cut = [each for each in compared if each.probe is None]
    command = output.fit_command(replace(options, backbone=ranked[0].name)) if ranked else None
    is_json_shown = request.json == "-"
    if ranked:
        output.show(_table([*ranked, *cut]), errors=is_json_shown)
        for line in [*_notes(ranked, cut), f"Fit with it: {command}"]:
            print(line, file=sys.stderr if is_json_shown else sys.stdout)
    for name, reason in failed.items():
        print(f"Not compared: {name}: {reason}", file=sys.stderr)
    if request.json is not None:
        _write_json(request.json, _to_dict(data, ranked, cut, failed, command))
    return 0 if ranked else 1


# ---- options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headstart compare", description=_DESCRIPTION)
    parser.add_argument("data", metavar="DATA", help="as for `headstart fit`")
    parser.add_argument(
        "--backbone",
        action="append",
        default=[],
        metavar="NAME",
        help="a backbone, named as for `headstart fit`; give this option two or more times",
    )
    parser.add_argument(
        "--first", type=int, metavar="N", help="fit a head for the N best by LogME alone (default: all)"
    )
    parser.add_argument(
        "--features", metavar="DIR", help="keep the features here, for `headstart fit --features DIR`"
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write the result as JSON too; - or no FILE is standard output",
    )
    parser.add_argument(
        "--image_size", type=int, help="height and width in pixels (default: each backbone's own)"
    )
    parser.add_argument("--max_length", type=int, help="tokens of a text (default: each backbone's own)")
    parser.add_argument("--text_column", help="the column of the texts (default: looked for by its name)")
    parser.add_argument("--text_pair_column", help="the column of the second texts, for pairs")
    parser.add_argument("--label_column", help="the column of the labels (default: looked for by its name)")
    parser.add_argument(
        "--val_fraction", type=float, default=0.15, help="share that is left for validation (default: 0.15)"
    )
    parser.add_argument(
        "--test_fraction", type=float, default=0.15, help="share that is left for the test (default: 0.15)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the folds (default: 0)")
    parser.add_argument(
        "--class_weights",
        choices=["balanced", "none"],
        default="balanced",
        help="whether every class counts the same in the loss (default: balanced)",
    )
    add_device_arguments(parser)
    return parser


def _check(request: argparse.Namespace) -> None:
    names = request.backbone
    if len(names) < 2:
        received = f"--backbone {names[0]}" if names else "no --backbone"
        raise MisconfigurationError(
            f"Received {received}; expected two or more to compare: --backbone efficientnet_lite0 --backbone timm:resnet18."
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise MisconfigurationError(f"--backbone {twice} is given more than once; name each backbone once.")
    if request.first is not None and request.first < 1:
        raise MisconfigurationError(f"--first is {request.first}; expected 1 or more.")
    if request.json not in {None, "-"} and not Path(request.json).absolute().parent.is_dir():
        raise MisconfigurationError(
            f"--json {request.json}: there is no folder {Path(request.json).parent}. Make it, or give another file."
        )


def check_counts(data: ClassificationData, *, or_else: str = "") -> None:
    """Refuse, before any work, classes that no fold could be fitted on and judged by.

    Args:
        data: Prepared.
        or_else: What else can be done, as the end of "Add samples, or leave the class out".

    Raises:
        DataError: If there are any.
    """
    alone = [name for name, count in zip(data.class_names, data.class_counts, strict=True) if count < 2]
    if alone:
        raise DataError(
            f"{data.source}: one training sample only of class {', '.join(map(repr, alone))}; expected two or more, one to "
            f"fit on and one to judge by. Add samples, or leave the class out{or_else}."
        )


def _fit_options(request: argparse.Namespace) -> FitOptions:
    """Give the options of the `headstart fit` that reads the same data in the same way."""
    from headstart.cli.options import FitOptions

    known = {each.name for each in fields(FitOptions)}
    given = {name: value for name, value in vars(request).items() if name in known}
    return FitOptions(**{**given, "backbone": None, "out": "run"})


# ---- measuring


def _compare(
    request: argparse.Namespace, options: FitOptions, data: ClassificationData, failed: dict[str, str]
) -> list[Compared]:
    """Measure all backbones that can be, the best by LogME first; `--first` of them with a head."""
    found: list[Compared] = []
    for name in request.backbone:
        with _attempt(name, failed):
            each = _measure(replace(options, backbone=name), data)
            if request.first is None:
                _fit_head(each, options.seed)
            found.append(each)
            found.sort(key=lambda each: each.log_me, reverse=True)
            for beyond in found[request.first or len(found) :]:
                beyond.features = None
    for each in found[: request.first or 0]:
        with _attempt(each.name, failed):
            _fit_head(each, options.seed)
    return [each for each in found if each.name not in failed]


@contextmanager
def _attempt(name: str, failed: dict[str, str]) -> Iterator[None]:
    """Write an error of one backbone down, so that it does not cost what was computed for the others."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - any that a network of whatever library raises on these inputs
        kind = "" if isinstance(error, HeadstartError) else f"{type(error).__name__}: "
        failed[name] = f"{kind}{error}"
        print(f"{name}: cannot be compared; the reason stands at the end.", file=sys.stderr)


def _measure(options: FitOptions, data: ClassificationData) -> Compared:
    """Compute the features of the training part, and what they say without a head."""
    from headstart import auto, freezing
    from headstart.cli import set_up
    from headstart.deferred import Reuse
    from headstart.seed import seed_everything
    from headstart.transferability import h_score, log_me

    assert options.backbone is not None
    seed_everything(options.seed, verbose=False)
    model: Classifier = set_up.make_model(options, data)
    reuse = Reuse(directory=options.features)  # as in `headstart fit`, which then finds what is kept
    freezing.freeze(model.backbone)
    begun = monotonic()
    features, targets = auto.outputs_of(
        model.backbone, data.plain_train_dataloader(), reuse=reuse, **device_settings(options)
    )
    seconds = monotonic() - begun
    reuse.close()
    print(
        f"{options.backbone}: features of {len(features):,} samples; {spelled(seconds)}",
        file=sys.stderr,
    )
    return Compared(
        name=options.backbone,
        num_parameters=sum(each.numel() for each in model.backbone.parameters()),
        width=features.shape[1],
        features=features,
        targets=targets,
        class_weights=None if model.class_weights is None else model.class_weights.cpu(),
        feature_seconds=seconds,
        log_me=log_me(features, targets),
        h_score=h_score(features, targets),
    )


def _fit_head(compared: Compared, seed: int) -> None:
    """Fit the head, as `headstart fit` does, and let go of the features."""
    from headstart.probe import fit_probe

    assert compared.features is not None
    begun = monotonic()
    weights = compared.class_weights
    compared.probe = fit_probe(compared.features, compared.targets, class_weights=weights, seed=seed)
    compared.probe_seconds = monotonic() - begun
    compared.features = None


# ---- ranking


def _ranked(compared: Sequence[Compared]) -> list[Compared]:
    """Sort by accuracy in the folds, and of equals by log loss; compare each with the best, sample by sample."""
    from headstart.choice import paired_test

    ranked = sorted(compared, key=lambda each: (-_accuracy(each).value, _log_loss(each)))
    for each in ranked[1:]:
        # The same folds for all: they are dealt by targets and seed.
        each.p_value = paired_test(_is_right(each).numpy(), _is_right(ranked[0]).numpy())
    return ranked


def _accuracy(compared: Compared) -> Estimate:
    assert compared.probe is not None
    assert compared.probe.accuracy is not None
    return compared.probe.accuracy


def _log_loss(compared: Compared) -> float:
    probe = compared.probe
    assert probe is not None
    return next(row.log_loss for row in probe.path if row.strength == probe.strength)


def _is_right(compared: Compared) -> Tensor:
    assert compared.probe is not None
    return compared.probe.is_right_out_of_fold(compared.targets)


# ---- what is shown


def _table(compared: Sequence[Compared]) -> Scoreboard:
    """Give the table, in the order of `compared`; the first is marked as the best."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from headstart.cli.output import Scoreboard

    probe = compared[0].probe
    assert probe is not None
    num_samples = len(compared[0].targets)
    title = f"Linear probe in {probe.num_folds} folds of {num_samples:,} training samples"
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("backbone", overflow="fold")
    # Two lines a row, so that it fits a terminal of 80 columns.
    headings = ("accuracy\n95 % interval", "LogME", "H-score", "parameters\nwidth", "features\nprobe")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for index, each in enumerate(compared):
        table.add_row("*" if index == 0 else "", Text(each.name), *_cells(each))
    return Scoreboard(table, num_names=2)


def _cells(compared: Compared) -> list[str]:

    accuracy = None if compared.probe is None else _accuracy(compared)
    return [
        "" if accuracy is None else f"{accuracy.value:.3f}\n{accuracy.low:.3f} to {accuracy.high:.3f}",
        f"{compared.log_me:.3f}",
        f"{compared.h_score:.3f}",
        f"{compared.num_parameters / 1e6:.1f} M\n{compared.width}",
        spelled(compared.feature_seconds)
        + ("" if compared.probe_seconds is None else f"\n{spelled(compared.probe_seconds)}"),
    ]


def _notes(ranked: Sequence[Compared], cut: Sequence[Compared]) -> list[str]:
    """Say how sure the first place is, and what was left out."""
    best, others = ranked[0], ranked[1:]
    as_good = [f"{each.name} (p = {each.p_value:.2g})" for each in others if (each.p_value or 0) >= _LEVEL]
    how = f"McNemar's test on the same samples, level {_LEVEL}"
    if not others:
        line = f"* {best.name}: the only one that was probed."
    elif not as_good:
        line = f"* {best.name}: the best; all others are shown to be worse ({how})."
    else:
        line = f"* {best.name}: the best. Not shown to be worse ({how}): {', '.join(as_good)}."
    if not cut:
        return [line]
    return [line, f"Without a probe, as LogME is lower: {', '.join(each.name for each in cut)}."]


def _to_dict(
    data: ClassificationData,
    ranked: Sequence[Compared],
    cut: Sequence[Compared],
    failed: dict[str, str],
    command: str | None,
) -> dict[str, Any]:
    """Give plain values for JSON, backbones in the order of the table."""
    return {
        "data": str(data.source),
        "class_names": data.class_names,
        "num_samples": data.report.part_sizes["train"],
        "best": ranked[0].name if ranked else None,
        "fit": command,
        "backbones": [each.to_dict() for each in [*ranked, *cut]],
        "failed": [{"backbone": name, "reason": reason} for name, reason in failed.items()],
    }


def _write_json(where: str, found: dict[str, Any]) -> None:
    from headstart.files import explained

    text = json.dumps(found, indent=2, ensure_ascii=False)
    if where == "-":
        print(text)
    else:
        with explained(Path(where)):
            Path(where).write_text(text + "\n", encoding="utf-8")
