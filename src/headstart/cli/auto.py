"""`headstart fit --plan auto`: the head at its optimum, fine-tuning from it, and the choice among them and what lies between."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import torch

from headstart import auto, freezing
from headstart.blending import reestimate_batch_norms
from headstart.callbacks import LearningRateMonitor, LiveView, ModelCheckpoint
from headstart.checkpoint import read_checkpoint
from headstart.choice import METRIC_NAMES, Choice, Metric, choose, expected_optimism
from headstart.cli import output
from headstart.cli.arguments import device_settings
from headstart.cli.interrupt import Interrupt, fit_until_ctrl_c
from headstart.cli.phases import PhaseRecord
from headstart.durations import positive_seconds_of, spelled
from headstart.strategy.processes import from_environment
from headstart.trainer import Trainer
from headstart.words import counted

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.calibration import Calibration
    from headstart.cli.findings import DataFindings
    from headstart.cli.options import FitOptions
    from headstart.cli.run_folder import RunFolder
    from headstart.data import ClassificationData
    from headstart.deferred import Reuse
    from headstart.probe import Probe
    from headstart.tasks import Classifier

# Epochs of fine-tuning where nobody says how many: so many, and on few samples as many as make so many steps.
_EPOCHS, _STEPS = 3, 100
# Validations of fine-tuning, at most: the best of very many moments on few samples is the luckiest, and each costs time.
_MOST_VALIDATIONS = 12
# Moments of fine-tuning that are kept, for the soup.
_NUM_MOMENTS = 3
# Training batches from which batch norms get their statistics anew.
_NUM_NORM_BATCHES = 16


@dataclass(kw_only=True)
class Outcome:
    """What a run came to: the model has the weights that were kept.

    Attributes:
        record: Phases and epochs of fine-tuning.
        is_interrupted: Whether Ctrl-C ended it; nothing was chosen then.
        metrics: For the artefact.
        facts: For the result's table.
        candidates: What might have been kept; `None` after Ctrl-C.
        findings: About the data, for the report; `None` where there is to be none.
    """

    record: PhaseRecord
    is_interrupted: bool
    metrics: dict[str, Any]
    facts: list[tuple[str, str]]
    candidates: auto.Candidates | None = None
    findings: DataFindings | None = None


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The fitted head: what it says of the validation samples, and all weights with it."""

    probe: Probe
    weights: dict[str, Tensor]
    predictions: Tensor
    targets: Tensor
    f1: float
    seconds: float
    findings: DataFindings | None


@dataclass(frozen=True, kw_only=True)
class _Tuning:
    """What fine-tuning came to: its best moments by validation, by their checkpoints."""

    record: PhaseRecord
    stop: auto.StopEarly
    moments: dict[str, float]
    is_interrupted: bool


def train(
    model: Classifier,
    data: ClassificationData,
    options: FitOptions,
    folder: RunFolder,
    *,
    resume: bool,
    reuse: Reuse | Literal[False],
    loggers: list[Any],
) -> Outcome:
    """Fit the head, fine-tune, choose, calibrate."""
    head = _fit_head(model, data, options, reuse=reuse)
    tuning = _finetune(model, data, options, folder, head=head, resume=resume, loggers=loggers)
    model.cpu()
    freezing.unfreeze(model)
    if not tuning.is_interrupted:
        return _choose(model, data, options, head=head, tuning=tuning)
    best = max(tuning.moments, key=lambda path: tuning.moments[path], default=None)
    is_better = best is not None and tuning.moments[best] > head.f1
    model.load_state_dict(read_checkpoint(best)["state_dict"] if best and is_better else head.weights)
    metrics: dict[str, Any] = {"best_epoch": None, "validation": {}}
    return Outcome(record=tuning.record, is_interrupted=True, metrics=metrics, facts=[])


def _fit_head(
    model: Classifier, data: ClassificationData, options: FitOptions, *, reuse: Reuse | Literal[False]
) -> _Head:
    begun = monotonic()
    settings = device_settings(options)
    freezing.freeze(model.backbone)
    features, targets = auto.outputs_of(
        model.backbone,
        data.plain_train_dataloader(),
        reuse=reuse,
        callbacks=[LiveView(title="head: features to train on")],
        **settings,
    )
    val_features, val_targets = auto.outputs_of(
        model.backbone,
        data.val_dataloader(),
        reuse=reuse,
        callbacks=[LiveView(title="head: features to validate on")],
        **settings,
    )
    read = monotonic()
    probe = auto.fit_head(model.cpu(), features, targets, seed=options.seed)
    with torch.no_grad():
        predictions = model.head(val_features).log_softmax(dim=1)
    fitted = monotonic()
    folds = "" if probe.accuracy is None else f", accuracy in {probe.num_folds} folds {probe.accuracy}"
    print(
        f"Head fitted to its optimum on {counted(len(features), 'sample')}{folds}; {spelled(read - begun)} for the "
        f"features, {spelled(fitted - read)} for the fit.",
        flush=True,
    )
    findings = None
    if options.report:
        from headstart.cli.findings import judge_data, read_parts

        known = {"train": (features, targets), "val": (val_features, val_targets)}
        findings = judge_data(read_parts(model, data, options, reuse=reuse, known=known), probe)
    return _Head(
        probe=probe,
        weights={name: value.clone() for name, value in model.state_dict().items()},
        predictions=predictions,
        targets=val_targets,
        f1=auto.macro_f1(predictions, val_targets),
        seconds=fitted - begun,
        findings=findings,
    )


def _finetune(
    model: Classifier,
    data: ClassificationData,
    options: FitOptions,
    folder: RunFolder,
    *,
    head: _Head,
    resume: bool,
    loggers: list[Any],
) -> _Tuning:
    """Train everything from the fitted head, to the end or to Ctrl-C."""
    record, interrupt = PhaseRecord(), Interrupt(folder.last_checkpoint)
    stop = auto.StopEarly("val_f1", head.f1)
    moments = ModelCheckpoint(
        folder.last_checkpoint.parent,
        filename="moment-{step}",
        monitor="val_f1",
        mode="max",
        save_top_k=_NUM_MOMENTS,
        save_last=True,
        enable_version_counter=False,
    )
    processes = from_environment()
    num_steps = -(-len(data.train_dataloader()) // (1 if processes is None else processes.size))
    rates = LearningRateMonitor(logging_interval="epoch")
    seconds = None if options.time is None else positive_seconds_of(options.time, what="--time")
    epochs = options.epochs
    if epochs is None and seconds is None:
        epochs = max(_EPOCHS, -(-_STEPS // num_steps))
    validations = auto.FewValidations(_MOST_VALIDATIONS, epochs=epochs, seconds=seconds)
    trainer = Trainer(
        plan=auto.tuning_plan(
            model.kind, epochs=epochs, seconds=seconds, steps_per_epoch=num_steps, lr=options.lr
        ),
        callbacks=[
            record,
            interrupt,
            stop,
            rates,
            validations,
            LiveView(monitor="val_f1", mode="max"),
            moments,
        ],
        logger=loggers,
        log_every_n_steps=10,
        enable_model_summary=False,
        reuse_frozen=False,  # everything trains
        **device_settings(options),
    )
    is_interrupted = fit_until_ctrl_c(trainer, model, data, interrupt, resume=resume)
    return _Tuning(
        record=record,
        stop=stop,
        moments={path: float(value) for path, value in moments.best_k_models.items()},
        is_interrupted=is_interrupted,
    )


def _choose(
    model: Classifier, data: ClassificationData, options: FitOptions, *, head: _Head, tuning: _Tuning
) -> Outcome:
    """Judge all candidates on the validation part, keep one, and calibrate it."""
    begun = monotonic()
    metric: Metric = "macro_f1" if options.class_weights == "balanced" else "accuracy"
    candidates = _candidates(model, data, options, head=head, tuning=tuning, metric=metric)
    choice = choose(candidates.found, head.targets, metric=metric, seed=options.seed)
    optimism = expected_optimism(candidates.found, head.targets, metric=metric, seed=options.seed)
    candidates.keep(choice.chosen)
    predictions = candidates.predictions_of(choice.chosen)
    calibration = auto.fold_in_temperature(model.head, predictions, head.targets)
    print()
    output.show(output.candidates_table(choice))
    print(choice.reason)
    facts = _facts(
        head,
        tuning,
        choice,
        calibration,
        seconds=monotonic() - begun,
        optimism=optimism if data.test_set is None else None,  # the scores of a test part are what they are
    )
    return Outcome(
        record=tuning.record,
        is_interrupted=False,
        metrics=_metrics(head, choice, calibration, optimism=optimism),
        facts=facts,
        candidates=candidates,
        findings=head.findings,
    )


def _candidates(
    model: Classifier,
    data: ClassificationData,
    options: FitOptions,
    *,
    head: _Head,
    tuning: _Tuning,
    metric: Metric,
) -> auto.Candidates:
    """Give what may be kept, each judged on the validation part; say what fine-tuning lost."""

    def predict() -> Tensor:
        view = LiveView(title="choice: validation")
        logits, _ = auto.outputs_of(
            model, data.val_dataloader(), callbacks=[view], **device_settings(options)
        )
        return logits.log_softmax(dim=1)

    def renew_norms() -> None:
        # Shuffled: batches of one class each would say nothing of how the classes differ.
        reestimate_batch_norms(model, data.train_dataloader(), max_batches=_NUM_NORM_BATCHES)

    candidates = auto.Candidates(
        model,
        head=head.weights,
        predictions=head.predictions,
        targets=head.targets,
        predict=predict,
        renew_norms=renew_norms if model.kind == "text" else None,  # those of images kept their statistics
        score=auto.macro_f1 if metric == "macro_f1" else auto.accuracy,
    )
    states = [read_checkpoint(path)["state_dict"] for path in tuning.moments]
    candidates.add_tuned(states, list(tuning.moments.values()))
    if candidates.num_lost:
        count = counted(candidates.num_lost, "set of weights", plural="sets of weights")
        print(
            f"Left out: {count} of fine-tuning, as what they predict is no finite number. A smaller --lr may help."
        )
    return candidates


def _metrics(head: _Head, choice: Choice, calibration: Calibration, *, optimism: float) -> dict[str, Any]:
    """Give what the artefact says of the choice."""
    kept = next(each for each in choice.candidates if each.name == choice.chosen)
    accuracy = head.probe.accuracy
    return {
        "best_epoch": None,
        "validation": {
            "acc": kept.accuracy.value,
            "f1": kept.macro_f1.value,
            "loss": kept.log_loss.value,
        },
        "head": {
            "strength": head.probe.strength,
            "accuracy": None if accuracy is None else accuracy.to_dict(),
            "num_folds": head.probe.num_folds,
        },
        "choice": {**choice.to_dict(), "expected_optimism": optimism},
        "calibration": calibration.to_dict(),
    }


def _facts(
    head: _Head,
    tuning: _Tuning,
    choice: Choice,
    calibration: Calibration,
    *,
    seconds: float,
    optimism: float | None,
) -> list[tuple[str, str]]:
    """Give the rows of the result's table; `optimism` is said where it is given."""
    probe = head.probe
    line = f"fitted to its optimum, penalty strength C = {probe.strength:.3g}; {spelled(head.seconds)}"
    if probe.accuracy is not None:
        line += f"\naccuracy in {probe.num_folds} folds of the training part: {probe.accuracy}"
    facts = [("head", line)]
    for phase in tuning.record.phases[-1:]:
        count = counted(phase.epochs, "epoch")
        line = f"{count}, {phase.num_trainable:,} parameters train; {spelled(phase.seconds)}"
        if tuning.stop.reason:
            line += f"\nended early: {tuning.stop.reason}"
        facts.append(("fine-tuning", line))
    best = "the best by validation"
    if choice.chosen != choice.best:
        best = f"not shown to be worse than {choice.best}, {best}"
    line = f"{choice.chosen}: of {len(choice.candidates)} candidates {best}; {spelled(seconds)}"
    if optimism is not None and len(choice.candidates) > 1:
        about = "about" if choice.chosen == choice.best else "no more than about"
        line += f"\nas these samples chose it, its {METRIC_NAMES[choice.metric]} on them is expected to be too good by {about} {optimism:.3f}"
    facts.append(("kept", line))
    line = (
        f"temperature {calibration.temperature:.2f}: calibration error {calibration.ece_before:.3f} before, "
        f"{calibration.ece_after:.3f} after"
    )
    return [*facts, ("calibration", line)]
