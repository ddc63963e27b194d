"""The options of `headstart fit`: one dataclass, from which the command line and the YAML files are made."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from headstart.durations import positive_seconds_of
from headstart.errors import MisconfigurationError, did_you_mean, missing_dependency

_DESCRIPTION = """\
Finetune a pretrained model on DATA: a folder with a folder of images per class, or a table (CSV, TSV, JSON lines,
Parquet) with a column of texts and one of labels. The head is fitted to its optimum on what the frozen backbone makes of
the data; fine-tuning begins from there; the best of head alone, fine-tuned and blends of both, by validation, is
tested on samples held back from training, and saved in RUN, from which `headstart predict` and `headstart evaluate`
work.
"""

Augment = Literal["flip", "crop", "none"]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What `headstart fit` is asked to do.

    Attributes:
        data: A folder with a folder of images per class, a table of texts and labels, tar files, a Hugging Face dataset on
            the disk, or package.module:function for datasets of your own.
        out: The folder of the run: model, checkpoints, curves and settings go here.
        backbone: efficientnet_lite0, minilm, timm:NAME, torchvision:NAME, hf:NAME, or a local file or folder. Without
            it, the packaged one for the kind of data.
        plan: auto fits the head to its optimum, fine-tunes from there, and keeps the best of both and of their blends. thaw
            trains the head, then all of it from an epoch on. linear_probe, full, lp_ft, gradual, layer_decay,
            last_blocks, surgical, bitfit, norms_only, lora and l2_sp are plans from the literature; FILE.yaml is one of
            your own.
        epochs: Passes over the training data. Without it, 3 of fine-tuning with auto (more where they make less than 100 steps), 33 with thaw (frozen ones
            cost next to nothing after the first), and a named plan's own number. FILE.yaml says it itself.
        time: With auto, how long fine-tuning may take, such as 90s, 10m or 1h.
        unfreeze_at_epoch: With thaw, the epoch, counted from 0, at which the backbone is unfrozen; 30 without it. At
            `epochs` or beyond, only the head learns. Given without a plan, the plan is thaw.
        lr: Learning rate of the head; the plan's own without it (1e-3 with thaw). FILE.yaml says it itself.
        backbone_lr: With thaw, learning rate of the backbone once it is unfrozen. Without it, a tenth of lr for images
            and 2e-5 for texts.
        weight_decay: Weight decay of AdamW.
        batch_size: Samples a step.
        class_weights: "balanced" lets every class count the same in the loss, however few its samples; "none" counts
            every sample the same.
        patience: With thaw, end after this many epochs without a better validation score, once the backbone is unfrozen.
        image_size: Height and width in pixels to which images are brought; the backbone's own without it.
        augment: How training sees an image anew each time: "flip" mirrors every second one; "crop" also shows a random part of it,
            of at least 0.7 of its area; "none" is for images in which left and right mean something.
        max_length: Tokens beyond which a text is cut off; the backbone's own without it.
        text_column: The column of the texts; looked for by its name without it.
        text_pair_column: The column of the second text, for pairs such as premise and hypothesis.
        label_column: The column of the labels; looked for by its name without it.
        val_fraction: Share of samples to choose the best epoch with, where DATA brings no val part.
        test_fraction: Share of samples to test with, where DATA brings no test part; 0 for no test.
        views: With thaw, while the backbone is frozen, show each image as it is (1), or in this many augmented views; what the
            backbone makes of them is computed once.
        reuse_frozen: auto computes what is frozen once, at the machine's best pace; exact, in the training batches; off,
            in every epoch.
        features: A folder in which the frozen backbone's outputs are kept, for other runs on the same data; without it they
            are kept in RUN, for --resume.
        forgetting: Other data of the same kind: how well a probe tells its classes apart on what the backbone makes of them,
            before training and after.
        logger: Where the curves go beside a CSV file, with commas between: tensorboard, mlflow, wandb. Without it,
            tensorboard where it is installed.
        from_scratch: Train the same network from random weights, too, for as many epochs, and report its scores beside the others.
        report: End with RUN/report.html: what was learned, from which data, and where it errs. It takes a pass over the data
            through the pretrained backbone where the plan does not make one anyway.
        seed: Of the split, the head's first weights and the order of samples.
        num_workers: Processes that read samples; 0 reads them in this one.
        accelerator: auto, cpu, gpu, cuda or mps.
        devices: How many devices.
        precision: Number format: 32-true, bf16-mixed, 16-mixed, ...
    """

    data: str
    out: str
    backbone: str | None = None
    plan: str = "auto"
    epochs: int | None = None
    time: str | None = None
    unfreeze_at_epoch: int | None = None
    lr: float | None = None
    backbone_lr: float | None = None
    weight_decay: float = 0.01
    batch_size: int = 32
    class_weights: Literal["balanced", "none"] = "balanced"
    patience: int = 5
    image_size: int | None = None
    augment: Augment = "flip"
    max_length: int | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    views: int = 1
    reuse_frozen: Literal["auto", "exact", "off"] = "auto"
    features: str | None = None
    forgetting: str | None = None
    logger: str | None = None
    from_scratch: bool = False
    report: bool = True
    seed: int = 0
    num_workers: int = 0
    accelerator: str = "auto"
    devices: int | str = "auto"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        if self.unfreeze_at_epoch is not None and self.plan == "auto":
            object.__setattr__(self, "plan", "thaw")
        self._refuse_options_of_other_plans()
        if self.plan == "thaw":
            for name, default in {"epochs": 33, "unfreeze_at_epoch": 30, "lr": 1e-3}.items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, default)
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise MisconfigurationError(f"--{name} is {value}; expected {lowest} or more.")
        for name in ("lr", "backbone_lr"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise MisconfigurationError(f"--{name} is {value}; expected a number above 0.")
        if self.views > 1 and self.augment == "none":
            raise MisconfigurationError(
                f"--views is {self.views} and --augment none, with which all views are the same: leave one of them out."
            )
        if self.logger is not None:
            from headstart.cli.curves import read_names

            read_names(self.logger)
        columns_of_texts(self)

    def _refuse_options_of_other_plans(self) -> None:
        """Refuse options that would have no effect with this plan, and plans that are none."""
        from headstart.plans import PLANS

        known = ["auto", "thaw", *PLANS]
        if self.plan not in known and not self.is_plan_a_file:
            raise MisconfigurationError(
                f"--plan is {self.plan!r}; expected {', '.join(known)}, or a FILE.yaml.{did_you_mean(self.plan, known)}"
            )
        defaults = {each.name: each.default for each in fields(self)}
        for name, plan in _OF_ONE_PLAN.items():
            if getattr(self, name) != defaults[name] and self.plan != plan:
                raise MisconfigurationError(
                    f"--{name} is for --plan {plan}, and the plan is {self.plan}. Leave one of them out."
                )
        for name in ("epochs", "lr"):
            if getattr(self, name) is not None and self.is_plan_a_file:
                raise MisconfigurationError(
                    f"--{name} is {getattr(self, name)}, and the plan is the file {self.plan}, whose phases say it themselves. Leave "
                    f"out --{name}, and write {name}: in the file."
                )
        if self.time is not None:
            positive_seconds_of(self.time, what="--time")

    def refuse_options_of_the_other_kind(
        self, kind: Literal["images", "text"], *, has_columns: bool | None = None
    ) -> None:
        """Refuse options that would have no effect on this kind of data.

        Args:
            kind: Of the data.
            has_columns: Whether it has columns that can be named; `None` is as is usual for the kind.

        Raises:
            MisconfigurationError: With the first such option.
        """
        if has_columns is False:
            refuse_columns(self, source=self.data)
        others = {
            "images": ("text_column", "text_pair_column", "label_column", "max_length"),
            "text": ("image_size", "augment", "views"),
        }
        defaults = {each.name: each.default for each in fields(self)}
        for name in others[kind]:
            if name == "label_column" and has_columns:
                continue
            if getattr(self, name) != defaults[name]:
                meant = "a table of texts" if kind == "images" else "a folder of images"
                found = "a folder of images" if kind == "images" else "a table of texts"
                raise MisconfigurationError(
                    f"--{name} is for {meant}, and {self.data} is {found}. Leave it out."
                )

    @property
    def is_plan_a_file(self) -> bool:
        """Whether the plan is one of the user's own, in a YAML file."""
        return self.plan.endswith((".yaml", ".yml"))

    @property
    def text_columns(self) -> list[str] | None:
        """The columns of texts that were named; `None` where they are to be found."""
        return columns_of_texts(self)


def columns_of_texts(options: Any) -> list[str] | None:
    """Give the columns of texts that were named; `None` where they are to be found.

    Args:
        options: Of a command, with the attributes `text_column` and `text_pair_column`.

    Raises:
        MisconfigurationError: If the second of two is named alone.
    """
    if options.text_pair_column is not None and options.text_column is None:
        raise MisconfigurationError(
            f"--text_pair_column is {options.text_pair_column!r} and --text_column is missing: name both columns."
        )
    named = [each for each in (options.text_column, options.text_pair_column) if each is not None]
    return named or None


def refuse_columns(options: Any, *, source: str) -> None:
    """Refuse the names of columns, for data that has none.

    Args:
        options: Of a command, with the attributes `text_column`, `text_pair_column` and `label_column`.
        source: The data.

    Raises:
        MisconfigurationError: With the first of them that was given.
    """
    for name in ("text_column", "text_pair_column", "label_column"):
        if (value := getattr(options, name)) is not None:
            raise MisconfigurationError(
                f"--{name} is {value!r}, and {source} has no columns, as a table or a Hugging Face dataset has. Leave it out."
            )


#: Options that have a meaning with one plan alone.
_OF_ONE_PLAN = {
    "time": "auto", "unfreeze_at_epoch": "thaw", "backbone_lr": "thaw", "patience": "thaw", "views": "thaw",
}  # fmt: skip


_LOWEST = {
    "epochs": 1, "unfreeze_at_epoch": 0, "weight_decay": 0, "batch_size": 1, "patience": 1, "image_size": 16,
    "max_length": 8, "views": 1, "num_workers": 0,
}  # fmt: skip

#: Options that may change when a run goes on: they do not touch what was learned so far. All others must be as they
#: were, or the run that goes on is another than the one that was begun; of `epochs` and `time`, see `_may_change`.
FREE_ON_RESUME = frozenset(
    {"data", "out", "patience", "num_workers", "features", "logger", "from_scratch", "report", "accelerator", "devices", "text_column", "text_pair_column",
     "label_column"}  # the columns and the data are compared by what is read from them
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """What stands on the command line: the options, and what to do with a RUN that exists."""

    options: FitOptions
    resume: bool
    overwrite: bool
    quiet: bool = False
    json: bool = False


def parse(arguments: list[str]) -> Request:
    """Give what a command line asks for.

    With `--resume`, options that are not given are those of the run; one that is given, and must not change, is an
    error.

    Args:
        arguments: What follows `headstart fit`.

    Raises:
        SystemExit: After `--help` and `--print_config` (code 0), and for a wrong use (code 2).
        MisconfigurationError: If a value makes no sense, or differs from the run that is to go on.

    Example:
        >>> request = parse(["photos", "--out", "run", "--epochs", "3"])
        >>> request.options.plan, request.options.epochs, request.resume
        ('auto', 3, False)
    """
    found = _parse(arguments, defaults={})
    if found["resume"]:
        before = read_options(found["out"])
        found = _parse(arguments, defaults={name: value for name, value in before.items() if name != "data"})
        _refuse_changes(before, found)
    if found["resume"] and found["overwrite"]:
        raise MisconfigurationError("--resume goes on with RUN and --overwrite deletes it: give one of them.")
    names = {each.name for each in fields(FitOptions)}
    options = FitOptions(**{name: value for name, value in found.items() if name in names})
    if found["quiet"] and found["json"]:
        raise MisconfigurationError(
            "--quiet prints where the run is, and --json one object that says so: give one of them."
        )
    switches = {name: found[name] for name in ("resume", "overwrite", "quiet", "json")}
    return Request(options, **switches)


def write_options(options: FitOptions, run: str | Path) -> None:
    """Write the options as `run.yaml`, which `--config` reads; whole, or not at all."""
    import yaml

    from headstart.files import write_together

    text = yaml.safe_dump(asdict(options), sort_keys=False)
    write_together({Path(run) / "run.yaml": lambda path: path.write_text(text, encoding="utf-8")})


def read_options(run: str | Path) -> dict[str, Any]:
    """Give the options of the run in a folder.

    Raises:
        MisconfigurationError: If no run was begun there.
    """
    return read_kept(Path(run) / "run.yaml", what="run", names={each.name for each in fields(FitOptions)})


def read_kept(path: Path, *, what: str, names: set[str]) -> dict[str, Any]:
    """Give the options that a command has written into its folder.

    Args:
        path: Their file.
        what: What lies in the folder: a run, a sweep.
        names: Of the options that there are today; others are left out.

    Raises:
        MisconfigurationError: If there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise MisconfigurationError(
            f"There is no {what} in {str(path.parent)!r} to go on with (no {path.name}). Begin one: leave out --resume."
        )
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise MisconfigurationError(f"{path} is damaged: {error} Begin anew in another folder.") from error
    if not isinstance(found, dict):
        raise MisconfigurationError(
            f"{path} is damaged: expected names with values. Begin anew in another folder."
        )
    return {name: value for name, value in found.items() if name in names}


def _refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    refuse_changes(
        [
            f"--{name} was {value} and is {now[name]}"
            for name, value in before.items()
            if now[name] != value and not _may_change(name, before, now)
        ],
        what="run",
        out=now["out"],
    )


def _may_change(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether an option may differ when a run goes on."""
    if name == "epochs":  # of other plans' phases, which cannot change once they have begun
        return bool(now["plan"] == "thaw")
    if name == "time":  # of a phase that has begun: another one, but not none
        return before["time"] is not None and now["time"] is not None
    return name in FREE_ON_RESUME


def refuse_changes(changed: list[str], *, what: str, out: str) -> None:
    """Refuse to go on with other settings than those with which something was begun.

    Args:
        changed: A phrase for each setting that is another one.
        what: What lies in the folder: a run, a sweep.
        out: The folder.

    Raises:
        MisconfigurationError: If there is any.
    """
    if changed:
        raise MisconfigurationError(
            f"The {what} in {out!r} cannot go on with other settings: {'; '.join(changed)}. Leave them out to go on as "
            "it was begun, or begin anew, in another folder (--out) or with --overwrite."
        )


def _parse(arguments: list[str], *, defaults: Mapping[str, Any]) -> dict[str, Any]:
    def add(parser: Any) -> None:
        parser.add_argument(
            "--resume",
            action="store_true",
            help="Go on with the run in RUN from its last checkpoint, with its own settings.",
        )
        parser.add_argument("--overwrite", action="store_true", help="Delete the run in RUN and begin anew.")
        parser.add_argument(
            "--quiet", action="store_true", help="Print nothing but errors and, at the end, where the run is."
        )
        parser.add_argument(
            "--json",
            action="store_true",
            help="Print one JSON object at the end: scores, what was kept, paths, seconds. All else goes to standard error.",
        )

    return parse_fit_options(
        arguments, command="fit", description=_DESCRIPTION, defaults=defaults, skip=frozenset(), add=add
    )


def parse_fit_options(
    arguments: list[str],
    *,
    command: str,
    description: str,
    skip: frozenset[str],
    add: Callable[[Any], None],
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Give the values of a command line that takes options of `headstart fit`, by name.

    Args:
        arguments: What follows the command.
        command: Its name.
        description: For the help.
        skip: Options of `fit` that it does not take.
        add: Adds those that are its own to the parser.
        defaults: Other defaults.

    Raises:
        SystemExit: After the help (code 0), and for a wrong use (code 2).
    """
    try:
        from jsonargparse import ArgumentError, ArgumentParser
    except ImportError:
        raise missing_dependency("jsonargparse", needed_for=f"headstart {command}", extra="cli") from None
    parser = ArgumentParser(prog=f"headstart {command}", description=description, exit_on_error=False)
    parser.add_argument(
        "--config",
        action="config",
        help="A YAML file with any of these options, such as the run.yaml of a RUN.",
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="A folder of images per class, a table of texts and labels, tar files, a saved Hugging Face dataset, or "
        "package.module:function.",
    )
    add(parser)
    parser.add_class_arguments(FitOptions, skip={"data", *skip})
    parser.set_defaults(dict(defaults or {}))
    try:
        found: dict[str, Any] = parser.parse_args(arguments).as_dict()
    except ArgumentError as error:
        known = [f"--{each}" for each in vars(parser.get_defaults())]
        unknown = re.search(r"unrecognized arguments: (--[^ =]+)", str(error), re.IGNORECASE)
        hint = did_you_mean(unknown.group(1), known) if unknown else ""
        print(
            f"headstart {command}: {error}.{hint} `headstart {command} --help` lists the options.",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    return found
