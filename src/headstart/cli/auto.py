"""`headstart fit --plan auto`: the head at its optimum, fine-tuning from it, and the choice among them and what lies between."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import torch

from headstart import auto, freezing
from headstart.blending import has_batch_norms
from headstart.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from headstart.checkpoint import read_checkpoint
from headstart.choice import Choice, choose
from headstart.cli import output
from headstart.cli.interrupt import Interrupt
from headstart.cli.options import seconds_of
from headstart.cli.phases import PhaseRecord
from headstart.trainer import Trainer

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.calibration import Calibration
    from headstart.cli.options import FitOptions
    from headstart.cli.run_folder import RunFolder
    from headstart.data import ClassificationData
    from headstart.deferred import Reuse
    from headstart.probe import Probe
    from headstart.tasks import Classifier

# Epochs of fine-tuning where nobody says how many: so many, and on few samples as many as make so many steps.
_EPOCHS, _STEPS = 3, 100
# Moments of fine-tuning that are kept, for the soup.
_NUM_MOMENTS = 3


@dataclass(kw_only=True)
class Outcome:
    """What a run came to: the model has the weights that were kept.

    Attributes:
        record: Phases and epochs of fine-tuning.
        is_interrupted: Whether Ctrl-C ended it; nothing was chosen then.
        metrics: For the artefact.
        facts: For the result's table.
        candidates: What might have been kept; `None` after Ctrl-C.
    """

    record: PhaseRecord
    is_interrupted: bool
    metrics: dict[str, Any]
    facts: list[tuple[str, str]]
    candidates: auto.Candidates | None = None


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
    begun = monotonic()
    settings: dict[str, Any] = {
        "accelerator": options.accelerator,
        "devices": options.devices,
        "precision": options.precision,
    }
    backbone = auto.frozen_backbone(model)
    features, targets = auto.outputs_of(backbone, data.plain_train_dataloader(), reuse=reuse, **settings)
    val_features, val_targets = auto.outputs_of(backbone, data.val_dataloader(), reuse=reuse, **settings)
    read = monotonic()
    probe = auto.fit_head(model.cpu(), features, targets, seed=options.seed)
    with torch.no_grad():
        head_predictions = model.head(val_features).log_softmax(dim=1)
    head_f1 = auto.macro_f1(head_predictions, val_targets)
    print(_of_head(probe, len(features), reading=read - begun, fitting=monotonic() - read), flush=True)
    head = {name: value.clone() for name, value in model.state_dict().items()}

    record, interrupt, hopeless = (
        PhaseRecord(),
        Interrupt(folder.last_checkpoint),
        auto.StopWhenHopeless("val_f1", head_f1),
    )
    moments = ModelCheckpoint(
        folder.last_checkpoint.parent,
        filename="moment-{step}",
        monitor="val_f1",
        mode="max",
        save_top_k=_NUM_MOMENTS,
        save_last=True,
        enable_version_counter=False,
    )
    num_steps = len(data.train_dataloader())
    trainer = Trainer(
        plan=auto.tuning_plan(
            model.kind,
            epochs=options.epochs or max(_EPOCHS, -(-_STEPS // num_steps)),
            steps_per_epoch=num_steps,
            lr=options.lr,
            is_timed=options.time is not None,
        ),
        max_time=None if options.time is None else timedelta(seconds=seconds_of(options.time)),
        callbacks=[record, interrupt, hopeless, LearningRateMonitor(logging_interval="epoch"), RichProgressBar(), moments],
        val_check_interval=0.5 if num_steps > 1 else 1.0,
        logger=loggers,
        log_every_n_steps=10,
        enable_model_summary=False,
        reuse_frozen=reuse,
        **settings,
    )  # fmt: skip
    checkpoint = folder.last_checkpoint if resume and folder.last_checkpoint.is_file() else None
    if resume and checkpoint is None:
        print("The run had saved no checkpoint yet: it begins from its start.")
    is_interrupted = False
    with interrupt.listening():
        try:
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
        except KeyboardInterrupt:
            is_interrupted = True
    is_interrupted = is_interrupted or interrupt.is_requested
    model.cpu()
    freezing.unfreeze(model)
    moments_found = {path: float(value) for path, value in moments.best_k_models.items()}
    if is_interrupted:
        best = max(moments_found, key=lambda path: moments_found[path], default=None)
        is_better = best is not None and moments_found[best] > head_f1
        model.load_state_dict(read_checkpoint(best)["state_dict"] if best and is_better else head)
        return Outcome(
            record=record, is_interrupted=True, metrics={"best_epoch": None, "validation": {}}, facts=[]
        )

    def predict() -> Tensor:
        return auto.outputs_of(model, data.val_dataloader(), **settings)[0].log_softmax(dim=1)

    def renew_norms() -> None:
        auto.renew_batch_norms(model, data.plain_train_dataloader())

    tuned_norms = model.kind == "text" and has_batch_norms(model)  # those of images keep their statistics
    candidates = auto.Candidates(
        model, head=head, predictions=head_predictions, targets=val_targets, predict=predict,
        renew_norms=renew_norms if tuned_norms else None,
    )  # fmt: skip
    judging = monotonic()
    candidates.add_tuned(
        [read_checkpoint(path)["state_dict"] for path in moments_found], list(moments_found.values())
    )
    metric: Literal["macro_f1", "accuracy"] = (
        "macro_f1" if options.class_weights == "balanced" else "accuracy"
    )
    choice = choose(candidates.found, val_targets, metric=metric, seed=options.seed)
    candidates.keep(choice.chosen)
    calibration = auto.fold_in_temperature(model.head, candidates.predictions_of(choice.chosen), val_targets)
    print(f"\n{choice}\n")
    kept = next(each for each in choice.candidates if each.name == choice.chosen)
    return Outcome(
        record=record,
        is_interrupted=False,
        candidates=candidates,
        metrics={
            "best_epoch": None,
            "validation": {"acc": kept.accuracy.value, "f1": kept.macro_f1.value, "loss": kept.log_loss.value},
            "head": {"strength": probe.strength, "accuracy": probe.accuracy.to_dict() if probe.accuracy else None,
                     "num_folds": probe.num_folds},
            "choice": choice.to_dict(),
            "calibration": calibration.to_dict(),
        },
        facts=_facts(probe, record, hopeless, choice, calibration, head_seconds=read - begun, judged=monotonic() - judging),
    )  # fmt: skip


def _of_head(probe: Probe, count: int, *, reading: float, fitting: float) -> str:
    folds = "" if probe.accuracy is None else f", accuracy in {probe.num_folds} folds {probe.accuracy}"
    return (
        f"Head fitted to its optimum on {count:,} samples{folds}; {output.duration(reading)} for the features, "
        f"{output.duration(fitting)} for the fit."
    )


def _facts(
    probe: Probe,
    record: PhaseRecord,
    hopeless: auto.StopWhenHopeless,
    choice: Choice,
    calibration: Calibration,
    *,
    head_seconds: float,
    judged: float,
) -> list[tuple[str, str]]:
    """Give the rows of the result's table."""
    head = (
        f"fitted to its optimum, penalty strength C = {probe.strength:.3g}; {output.duration(head_seconds)}"
    )
    if probe.accuracy is not None:
        head += f"\naccuracy in {probe.num_folds} folds of the training part: {probe.accuracy}"
    facts = [("head", head)]
    if record.phases:
        phase = record.phases[-1]
        count = f"{phase.epochs} epoch{'s' if phase.epochs != 1 else ''}"
        line = f"{count}, {phase.num_trainable:,} parameters train; {output.duration(phase.seconds)}"
        if hopeless.is_stopped:
            line += "\nstopped: it stayed below the head alone"
        facts.append(("fine-tuning", line))
    others = len(choice.candidates) - 1
    best = (
        "the best by validation"
        if choice.chosen == choice.best
        else f"not shown to be worse than {choice.best}, the best by validation"
    )
    facts.append(("kept", f"{choice.chosen}: of {others + 1} candidates {best}; {output.duration(judged)}"))
    line = (
        f"temperature {calibration.temperature:.2f}: calibration error {calibration.ece_before:.3f} before, "
        f"{calibration.ece_after:.3f} after"
    )
    return [*facts, ("calibration", line)]
