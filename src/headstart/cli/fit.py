"""`headstart fit DATA --out RUN`: from data to a tested model, in one command."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Literal

from headstart.cli.options import FitOptions, Request, parse
from headstart.errors import HeadstartError, MisconfigurationError

if TYPE_CHECKING:
    from headstart.callback import Callback
    from headstart.cli.ending import Job
    from headstart.cli.phases import PhaseRecord
    from headstart.cli.run_folder import RunFolder
    from headstart.deferred import Reuse
    from headstart.plan import Plan
    from headstart.tasks import Classifier

_INTERRUPTED = 130


# A language model forgets what it knows at the rates at which an image model is finetuned.
_BACKBONE_LR_OF_TEXT = 2e-5
_BACKBONE_LR_RATIO_OF_IMAGES = 0.1


def run(arguments: list[str]) -> int:
    """Train, test and save; give the exit code.

    Args:
        arguments: What follows `headstart fit`.

    Returns:
        0, or 130 after Ctrl-C. After SIGTERM the process ends with 143.

    Raises:
        HeadstartError: If options or data cannot be used, or the disk is full.
    """
    from headstart.cli.output import command_line
    from headstart.cli.speech import speaking
    from headstart.signals import SIGTERMException

    request, begun = parse(arguments), monotonic()
    if request.quiet:
        os.environ.setdefault("WANDB_SILENT", "true")  # it has something to say when the process ends
    try:
        with speaking(quiet=request.quiet, json=request.json):
            code = _fit(request, command=command_line("headstart", "fit", *arguments))
        _say_where(request, code, seconds=monotonic() - begun)
    except SIGTERMException:
        if request.json:
            raise
        print(f"\nEnded by SIGTERM, its state saved. Go on: {_command_to_go_on(request.options)}", flush=True)
        raise
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise HeadstartError(
            f"The disk of {request.options.out} is full. The last checkpoint there is whole: make room and go on with "
            "the same command and --resume."
        ) from error
    return code


def _say_where(request: Request, code: int, *, seconds: float) -> None:
    """With `--json` or `--quiet`: print the one thing that was not said yet."""
    from headstart.cli.result import as_json, result_of
    from headstart.cli.run_folder import RunFolder
    from headstart.strategy.processes import from_environment

    processes = from_environment()
    if processes is not None and processes.rank != 0:
        return
    if request.json:
        status: Literal["finished", "interrupted"] = "interrupted" if code else "finished"
        print(as_json(result_of(RunFolder(request.options.out), status=status, seconds=seconds)))
    elif request.quiet:
        if code:
            print(f"Interrupted. Go on: {_command_to_go_on(request.options)}", file=sys.stderr)
        print(request.options.out)


def _fit(request: Request, *, command: str) -> int:
    from headstart.cli import forgetting
    from headstart.cli.arguments import meet
    from headstart.cli.compare import check_counts
    from headstart.cli.ending import Job, num_parameters
    from headstart.cli.run_folder import RunFolder, refuse_unequal_data
    from headstart.cli.set_up import check_plan, make_model, open_data
    from headstart.cli.story import Story
    from headstart.seed import seed_everything

    begun = monotonic()
    options = request.options
    strategy = meet(options)
    folder = RunFolder(options.out, is_ours=strategy.is_global_zero)
    folder.check(request)
    plan = _plan_of(request, folder)
    data = open_data(options)
    for line in data.prepare().report.lines():
        print(line)
    refuse_unequal_data(strategy, data)
    if options.plan == "auto":
        check_counts(data)
    elif options.report:  # which judges labels by a head, fitted in folds
        check_counts(data, or_else=", or do without the report: --report false")
    seed_everything(options.seed, verbose=False)
    model = make_model(options, data)
    if plan is not None:
        check_plan(plan, model)
    before = None if options.forgetting is None else forgetting.look(model, options)
    if request.resume:
        folder.go_on(options, data)
    else:
        folder.begin(options, data, plan)
    strategy.barrier("the folder is there")
    print(
        f"Backbone {model.backbone.name}: {num_parameters(model.backbone):,} parameters. RUN: {folder.path}",
        flush=True,
    )

    reuse = _reuse(options, folder)
    job = Job(
        options=options,
        data=data,
        model=model,
        folder=folder,
        reuse=reuse,
        before=before,
        story=Story(command=command, begun=begun, reuse=reuse),
    )
    try:
        return _by_auto(job, request) if options.plan == "auto" else _by_plan(job, plan, request)
    except KeyboardInterrupt:  # outside of training, which ends at the next place from which it can go on
        print(f"\nInterrupted. What is done is kept in {folder.path}.\nGo on: {_command_to_go_on(options)}")
        return _INTERRUPTED


def _plan_of(request: Request, folder: RunFolder) -> Plan | None:
    """Give the plan of a name or a file; `None` for `auto` and `thaw`. A run goes on with the plan it was begun with."""
    from headstart.cli.set_up import named_plan_of

    options = request.options
    if options.plan in {"auto", "thaw"}:
        return None
    if not (request.resume and options.is_plan_a_file and folder.plan_file.is_file()):
        return named_plan_of(options)
    plan = named_plan_of(options, kept=folder.plan_file)
    try:
        is_another = named_plan_of(options) != plan
    except MisconfigurationError:  # it is not needed any more
        is_another = Path(options.plan).is_file()
    if is_another:
        print(
            f"{options.plan} is not the plan with which the run was begun, and goes on: that is {folder.plan_file}. Change phases "
            "that have not begun there."
        )
    return plan


def _by_plan(job: Job, plan: Plan | None, request: Request) -> int:
    from headstart.cli import ending, output

    options, folder = job.options, job.folder
    if options.report:
        from headstart.cli.findings import look_at_data

        job.story.findings = look_at_data(job.model, job.data, options, reuse=job.reuse)
    record, was_interrupted = _train(job, plan, resume=request.resume)
    if plan is None:
        best_epoch = _restore_best(job.model, folder)
    else:  # a plan puts back the best weights of its last phase
        best_epoch = record.best_epoch(plan.monitor, plan.mode)
    if was_interrupted and not record.phases:
        print("Interrupted before anything was learned: nothing is saved.")
        return _INTERRUPTED
    metrics = {"best_epoch": best_epoch, "validation": _validation(record, best_epoch)}
    ending.save(job, record, metrics)
    if was_interrupted:
        _say_interrupted(folder, options, best_epoch)
        return _INTERRUPTED
    ending.finish(job, record, metrics, facts=output.phase_facts(record.phases, best_epoch=best_epoch))
    return 0


def _by_auto(job: Job, request: Request) -> int:
    from headstart.cli import auto, ending
    from headstart.cli.curves import loggers_of

    outcome = auto.train(
        job.model,
        job.data,
        job.options,
        job.folder,
        resume=request.resume,
        reuse=job.reuse,
        loggers=loggers_of(job.folder, job.options.logger),
    )
    ending.save(job, outcome.record, outcome.metrics)
    if outcome.is_interrupted:
        _say_interrupted(
            job.folder,
            job.options,
            None,
            what="The better of the head alone and the best moment of fine-tuning so far",
        )
        return _INTERRUPTED
    job.story.findings = outcome.findings
    ending.finish(job, outcome.record, outcome.metrics, facts=outcome.facts, candidates=outcome.candidates)
    return 0


# ---- training


def _train(job: Job, plan: Plan | None, *, resume: bool) -> tuple[PhaseRecord, bool]:
    """Train by a plan, or `thaw` without one, to the end or to Ctrl-C; give the record and whether it was Ctrl-C."""
    from headstart.callbacks import LearningRateMonitor, LiveView, ModelCheckpoint
    from headstart.callbacks.plan import runner_of
    from headstart.cli.arguments import device_settings
    from headstart.cli.curves import loggers_of
    from headstart.cli.interrupt import Interrupt, fit_until_ctrl_c
    from headstart.cli.phases import EarlyStoppingOnceUnfrozen, PhaseRecord
    from headstart.cli.set_up import MONITOR, num_epochs_of_the_head_alone
    from headstart.data import ImageData
    from headstart.export.adapters import keep_adapters
    from headstart.trainer import Trainer

    model, data, options, folder = job.model, job.data, job.options, job.folder
    record, interrupt = PhaseRecord(), Interrupt(folder.last_checkpoint)
    is_thaw = plan is None
    num_fixed = 0  # epochs in which images are not augmented anew: the backbone is frozen
    if data.kind == "images":
        assert isinstance(data, ImageData)
        num_fixed = (
            options.unfreeze_at_epoch or 0 if plan is None else num_epochs_of_the_head_alone(plan, model)
        )
        data.show_fixed_views(options.views, until_epoch=num_fixed)
    callbacks: list[Callback] = [
        *(_freezing(model, options) if is_thaw else []),
        record,
        interrupt,
        LearningRateMonitor(logging_interval="epoch"),
        *([EarlyStoppingOnceUnfrozen(MONITOR, mode="max", patience=options.patience)] if is_thaw else []),
        LiveView(monitor=MONITOR, mode="max"),
        ModelCheckpoint(
            folder.last_checkpoint.parent,
            filename="best",
            monitor=MONITOR,
            mode="max",
            save_last=True,
            enable_version_counter=False,
        ),
    ]
    trainer = Trainer(
        plan=plan,
        max_epochs=options.epochs if is_thaw else None,
        callbacks=callbacks,
        logger=loggers_of(folder, options.logger),
        log_every_n_steps=10,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=num_fixed,
        reuse_frozen=job.reuse,
        **device_settings(options),
    )
    was_interrupted = fit_until_ctrl_c(trainer, model, data, interrupt, resume=resume)
    runner = runner_of(trainer)
    if was_interrupted and runner is not None:
        runner.settle(trainer, model)
    if folder.is_ours:
        keep_adapters(trainer, model, folder.path)
    return record, was_interrupted


def _reuse(options: FitOptions, folder: RunFolder) -> Reuse | Literal[False]:
    """Give what computes frozen work once."""
    from headstart.deferred import Reuse

    if options.reuse_frozen == "off":
        return False
    return Reuse(setting=options.reuse_frozen, directory=options.features or folder.features)


def _freezing(model: Classifier, options: FitOptions) -> list[Callback]:
    """Freeze the backbone, and give the callback that thaws it in its epoch, if that comes."""
    from headstart import freezing
    from headstart.callbacks import BackboneFinetuning

    assert options.unfreeze_at_epoch is not None, "the plan is thaw"
    assert options.epochs is not None, "the plan is thaw"
    assert options.lr is not None, "the plan is thaw"
    if options.unfreeze_at_epoch >= options.epochs:
        freezing.freeze(model.backbone)
        return []
    for module in model.backbone.modules():
        if freezing.is_batch_norm(module):
            # Else the statistics move to the new photos' at once, and the head was fitted on what the old ones give.
            freezing.pin_mode(module, "eval")
    backbone_lr = options.backbone_lr
    if backbone_lr is None:
        is_text = model.kind == "text"
        backbone_lr = _BACKBONE_LR_OF_TEXT if is_text else options.lr * _BACKBONE_LR_RATIO_OF_IMAGES
    return [
        BackboneFinetuning(
            unfreeze_backbone_at_epoch=options.unfreeze_at_epoch,
            backbone_initial_lr=backbone_lr,
            lambda_func=lambda _: 1.0,  # constant: the rate that was named is the rate that is used
            train_bn=False,
        )
    ]


def _restore_best(model: Classifier, folder: RunFolder) -> int | None:
    """Give the model the weights of the best epoch, if one came to its end; give that epoch."""
    from headstart.checkpoint import load_weights, read_checkpoint

    model.to("cpu")
    if not folder.best_checkpoint.is_file():
        return None
    checkpoint = read_checkpoint(folder.best_checkpoint)
    load_weights(model, checkpoint["state_dict"], source=str(folder.best_checkpoint))
    return int(checkpoint["epoch"])


def _validation(record: PhaseRecord, epoch: int | None) -> dict[str, float]:
    """Give the validation's values of an epoch, without the part of their names that says so."""
    found = next((each for each in record.epochs if each["epoch"] == epoch), {})
    return {name.removeprefix("val_"): value for name, value in found.items() if name.startswith("val_")}


# ---- interrupted


def _say_interrupted(
    folder: RunFolder,
    options: FitOptions,
    best_epoch: int | None,
    *,
    what: str = "The model as far as it came in its first epoch",
) -> None:
    if best_epoch is not None:
        what = f"The model after epoch {best_epoch}, the best in validation so far,"
    print(f"\nInterrupted. {what} is saved in {folder.path}; it was not tested.")
    print(f"Go on: {_command_to_go_on(options)}")


def _command_to_go_on(options: FitOptions) -> str:
    from headstart.cli.output import command_line

    return command_line("headstart", "fit", options.data, "--out", str(options.out), "--resume")
