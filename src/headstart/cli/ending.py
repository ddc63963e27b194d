"""The end of `headstart fit`: the model is saved and tested, and what came of it is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from headstart.artefact import save_artefact
from headstart.auto import HEAD, TUNED
from headstart.choice import METRIC_NAMES
from headstart.cli import forgetting, output
from headstart.cli.arguments import device_settings
from headstart.cli.curves import places_of
from headstart.cli.inference import features_and_probabilities_of, scores_from, scores_of
from headstart.cli.story import Judgement
from headstart.data import HuggingFaceData, TextTableData
from headstart.durations import spelled
from headstart.words import counted

if TYPE_CHECKING:
    from headstart.auto import Candidates
    from headstart.cli.forgetting import Look
    from headstart.cli.options import FitOptions
    from headstart.cli.phases import PhaseRecord
    from headstart.cli.run_folder import RunFolder
    from headstart.cli.story import Story
    from headstart.data import ClassificationData
    from headstart.deferred import Reuse
    from headstart.scores import Scores
    from headstart.tasks import Classifier


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a fit works with.

    Attributes:
        options: As they were given.
        data: Prepared.
        model: The one that trains, and is saved.
        folder: Of the run.
        reuse: What computes frozen work once.
        before: What the backbone knew of other data; `None` where nobody asked.
        story: What is gathered for the report.
    """

    options: FitOptions
    data: ClassificationData
    model: Classifier
    folder: RunFolder
    reuse: Reuse | Literal[False]
    before: Look | None
    story: Story


def save(job: Job, record: PhaseRecord, metrics: dict[str, Any]) -> None:
    """Save the model as it is, with what is known of it so far."""
    if not job.folder.is_ours:
        return
    history = {"phases": [asdict(each) for each in record.phases], "epochs": record.epochs}
    save_artefact(
        job.folder.path, job.model, metrics=metrics, data_report=found_in(job.data), history=history
    )


def found_in(data: ClassificationData) -> dict[str, Any]:
    """Give what an artefact is to remember of the data it was made from."""
    found = data.report.to_dict()
    if data.kind == "text":
        first = data.samples("train")[0].value
        found["texts_per_sample"] = 1 if isinstance(first, str) else len(first)
    if isinstance(data, TextTableData | HuggingFaceData):
        found["label_column"] = data.label_column
        if data.text_columns:
            found["text_columns"] = list(data.text_columns)
    return found


def finish(
    job: Job,
    record: PhaseRecord,
    metrics: dict[str, Any],
    *,
    facts: list[tuple[str, str]],
    candidates: Candidates | None = None,
) -> None:
    """Test the model that was kept, save it with its scores, print the result and write the report.

    Args:
        job: Of the run; the model is saved already, so whatever fails here, it is not lost.
        record: Phases and epochs.
        metrics: What is known of the model.
        facts: Rows of the result's table: what was trained, and what was kept.
        candidates: What the plan `auto` might have kept; the metrics have its choice.
    """
    begun = monotonic()
    tested = _judge(job)
    seconds = monotonic() - begun
    if tested.part == "test":
        metrics = {**metrics, "test": tested.scores.to_dict(job.data.class_names)}
        if candidates is not None:
            others = _test_others(job, candidates, kept=metrics["choice"]["chosen"])
            metrics["choice"] = {**metrics["choice"], "tested": others}
            facts = [*facts, *_fact_of_choice(metrics["choice"], tested.scores)]
    if job.before is not None:
        after = forgetting.look(job.model, job.options)
        metrics = {**metrics, "forgetting": {"before": job.before.to_dict(), "after": after.to_dict()}}
        facts = [*facts, forgetting.fact_of(job.before, after, job.options)]
    save(job, record, metrics)
    _show(job, tested, facts, seconds=seconds)
    job.story.tell(job, record=record, metrics=metrics, tested=tested)
    if job.options.from_scratch:  # last, for it takes as long again
        metrics = {**metrics, "from_scratch": _from_scratch(job, record)}
        save(job, record, metrics)
        job.story.tell(job, record=record, metrics=metrics, tested=tested)


def _judge(job: Job) -> Judgement:
    """Predict the test part, or validation where there is none."""
    part = "val" if job.data.test_set is None else "test"
    loader: Any = job.data.val_dataloader() if part == "val" else job.data.test_dataloader()
    targets = loader.dataset.targets
    features, probabilities = features_and_probabilities_of(
        job.model, loader, title="test", **device_settings(job.options)
    )
    return Judgement(
        part=part,
        features=features,
        probabilities=probabilities,
        targets=targets,
        scores=scores_from(probabilities, targets),
    )


def _test_others(job: Job, candidates: Candidates, *, kept: str) -> dict[str, dict[str, Any]]:
    """Give test scores of the head alone and of fine-tuning where they were not kept: what the choice gained, or cost."""
    weights = {name: value.clone() for name, value in job.model.state_dict().items()}
    found = {}
    for name in (HEAD, TUNED):
        if name in candidates.weights and name != kept:
            candidates.keep(name)
            settings = {**device_settings(job.options), "reuse_frozen": False}  # a single pass each
            scores = scores_of(job.model, job.data.test_dataloader(), **settings)
            found[name] = scores.summary()
    job.model.cpu().load_state_dict(weights)
    return found


def _fact_of_choice(choice: Mapping[str, Any], kept: Scores) -> list[tuple[str, str]]:
    """Give the row of the result's table that says what the choice gained or cost, on the test part."""
    metric = choice["metric"]
    own: float = getattr(kept, metric).value
    others = {name: found[metric]["value"] for name, found in choice["tested"].items()}
    if not others:
        return []
    listed = ", ".join(f"{name} {value:.3f}" for name, value in others.items())
    line = f"{METRIC_NAMES[metric]} in the test: kept {own:.3f}, {listed}"
    cost = max(others.values()) - own
    return [("choice", f"{line}; the choice cost {cost:.3f}" if cost > 0 else line)]


def _show(job: Job, tested: Judgement, facts: list[tuple[str, str]], *, seconds: float) -> None:
    model, folder, scores = job.model, job.folder, tested.scores
    by_what = f"{counted(scores.num_samples, 'sample')} held back from training"
    if tested.part != "test":
        by_what = (
            f"{counted(scores.num_samples, 'sample')} of validation, by which the model was chosen: there is no test part, "
            "and these scores are too good"
        )
    num_backbone, num_head = num_parameters(model.backbone), num_parameters(model.head)
    rows = [
        ("trained", f"{model.backbone.name}, {num_backbone:,} parameters, and a head of {num_head:,}"),
        *facts,
        *output.reuse_facts(job.reuse.report() if job.reuse else None),
        ("tested on", f"{by_what}; {spelled(seconds)}"),
        *output.score_facts(scores),
        ("artefact", str(folder.path)),
        ("curves", places_of(folder, job.options.logger)),
    ]
    print()
    output.show(output.classes_table(scores, job.data.class_names))
    output.show(output.facts_table("Result", rows))
    what = "PHOTO ..." if model.kind == "images" else "TABLE ..."
    print(f"Use it: {output.command_line('headstart', 'predict', str(folder.path))} {what}", flush=True)


def _from_scratch(job: Job, record: PhaseRecord) -> dict[str, Any]:
    from headstart.cli.scratch import train_from_scratch

    epochs = max(1, sum(phase.epochs for phase in record.phases))
    scratch = train_from_scratch(job.model, job.data, job.options, epochs=epochs)
    judged = scratch.test or scratch.val
    print(f"From scratch: accuracy {judged.accuracy}, macro-F1 {judged.macro_f1}.", flush=True)
    return scratch.to_dict()


def num_parameters(module: Any) -> int:
    """Give how many numbers a module learns or has learned."""
    return sum(parameter.numel() for parameter in module.parameters())
