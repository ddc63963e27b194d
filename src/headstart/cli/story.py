"""What `headstart fit` tells in its report: the facts that it gathers once the model is tested and saved."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from headstart.artefact import read_metadata
from headstart.auto import HEAD
from headstart.calibration import expected_calibration_error
from headstart.cli.arguments import device_settings
from headstart.cli.inference import scores_of
from headstart.errors import MissingDependencyError
from headstart.report.curves import read_curves
from headstart.report.duplicates import THRESHOLD, Twins
from headstart.report.facts import read_facts, write_facts
from headstart.report.feature_map import map_features
from headstart.report.page import write_report
from headstart.report.reliability import reliability_bins
from headstart.report.samples import is_same, shown
from headstart.strategy.processes import from_environment
from headstart.words import counted, printable

if TYPE_CHECKING:
    from headstart.cli.ending import Job
    from headstart.cli.findings import DataFindings
    from headstart.cli.phases import PhaseRecord
    from headstart.cli.run_folder import RunFolder
    from headstart.data import ClassificationData
    from headstart.deferred import Reuse
    from headstart.scores import Scores

# Samples of each list that the page shows: of predictions, and of the data.
_NUM_PREDICTIONS, _NUM_SHOWN = 12, 24


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the model that was kept says of the samples that it is judged by.

    Attributes:
        part: `"test"`, or `"val"` where there is no test part.
        features: Of its backbone (N, D).
        probabilities: (N, C).
        targets: Class indices, N.
        scores: Of these.
    """

    part: str
    features: Tensor
    probabilities: Tensor
    targets: list[int]
    scores: Scores


@dataclass(kw_only=True)
class Story:
    """What is gathered on the way through a run, and told at its end.

    Attributes:
        command: As it was typed.
        begun: When the run began, by `monotonic`.
        reuse: What computed frozen work once.
        findings: About the data; `None` where there is to be no report.
    """

    command: str
    begun: float
    reuse: Reuse | Literal[False]
    findings: DataFindings | None = None
    _validated: Scores | None = field(default=None, init=False)

    def tell(self, job: Job, *, record: PhaseRecord, metrics: Mapping[str, Any], tested: Judgement) -> None:
        """Write the facts, and the page that is made from them where plotly is there; nothing where there is to be none.

        Args:
            job: The model in it was kept, and saved: whatever fails here, it is not lost.
            record: Phases and epochs.
            metrics: As they are in the artefact.
            tested: What the model says of the samples that it is judged by.
        """
        if self.findings is None:
            return
        model, data, options, folder = job.model, job.data, job.options, job.folder
        if self._validated is None and tested.part == "test" and "choice" not in metrics:
            settings = {**device_settings(options), "reuse_frozen": False}  # a single pass
            self._validated = scores_of(model, data.val_dataloader(), **settings)
        if not folder.is_ours:
            return
        facts = {
            "kind": model.kind,
            "plan": options.plan,
            "class_names": list(model.class_names),
            "command": printable(self.command),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": read_metadata(folder.path)["versions"],
            "model": {
                "backbone": model.backbone.name,
                "num_parameters": sum(each.numel() for each in model.parameters()),
            },
            "data": data.report.to_dict(),
            **_scores(data, folder, metrics, tested),
            "candidates": _candidates(options.plan, metrics, self.findings, tested, self._validated),
            "has_from_scratch": "from_scratch" in metrics,
            "learning": {
                **read_curves(folder.metrics_file, record.epochs),
                "phases": [
                    {"name": each.name, "begins": each.begins, "epochs": each.epochs}
                    for each in record.phases
                ],
            },
            **_predictions(data, tested),
            "suspects": _suspects(data, self.findings),
            "twins": _twins(data, self.findings.twins),
            "map": _map(data, tested, seed=options.seed),
            "effort": self._effort(record, metrics),
        }
        write_facts(folder.path, facts)
        try:
            page = write_report(folder.path, read_facts(folder.path))
        except MissingDependencyError as error:
            print(f"No report.html: {error} Then `headstart report {folder.path}` makes it.")
            return
        print(f"Report: {page}", flush=True)

    def _effort(self, record: PhaseRecord, metrics: Mapping[str, Any]) -> dict[str, Any]:
        saved = self.reuse.report() if self.reuse else None
        processes = from_environment()
        parts = [
            (f"{phase.name} phase, {counted(phase.epochs, 'epoch')},", phase.seconds)
            for phase in record.phases
        ]
        if scratch := metrics.get("from_scratch"):
            parts.append(("from scratch", scratch["seconds"]))
        return {
            "seconds": monotonic() - self.begun,
            "parts": parts,
            "num_computed": saved.num_computed if saved else 0,
            "num_looked_up": saved.num_looked_up if saved else 0,
            "seconds_saved": saved.seconds_saved if saved else 0.0,
            "flops_saved": saved.flops_saved if saved else 0,
            "peak_memory": peak_memory(),
            "peak_gpu_memory": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            "num_processes": 1 if processes is None else processes.size,
        }


def peak_memory() -> int | None:
    """Give the most bytes of memory that this process had so far; `None` where the system does not say.

    Example:
        >>> found = peak_memory()
        >>> found is None or found > 1_000_000
        True
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def _scores(
    data: ClassificationData, folder: RunFolder, metrics: Mapping[str, Any], tested: Judgement
) -> dict[str, Any]:
    found = json.loads((folder.path / "data.json").read_text(encoding="utf-8", errors="surrogateescape"))
    return {
        "tested_part": tested.part,
        "tested_digest": found["digests"][tested.part],
        "expected_optimism": metrics.get("choice", {}).get("expected_optimism"),
        "scores": tested.scores.to_dict(data.class_names),
        "targets": tested.targets,
        "predicted": tested.probabilities.argmax(dim=1).tolist(),
        "reliability": {
            "bins": [asdict(each) for each in reliability_bins(tested.probabilities, tested.targets)],
            "error": expected_calibration_error(tested.probabilities, tested.targets),
        },
    }


def _candidates(
    plan: str,
    metrics: Mapping[str, Any],
    findings: DataFindings,
    tested: Judgement,
    validated: Scores | None,
) -> list[dict[str, Any]]:
    """Give what stands side by side: the head alone, fine-tuned, blended, from scratch; each by validation and test.

    `validated`: the scores on the validation part of a model that was not chosen by `auto`; `None` where `tested` are those.
    """

    def both(scores: Scores | None) -> dict[str, Any] | None:
        return None if scores is None else scores.summary()

    rows: list[dict[str, Any]] = []
    kept_test = both(tested.scores) if tested.part == "test" else None
    if "choice" in metrics:
        others = metrics["choice"].get("tested", {})
        for each in metrics["choice"]["candidates"]:
            is_kept = each["name"] == metrics["choice"]["chosen"]
            test = kept_test if is_kept else others.get(each["name"])
            rows.append({"name": each["name"], "val": each, "test": test, "is_kept": is_kept, "note": ""})
    else:
        head = findings.head
        note = "fitted to its optimum on the pretrained features"
        rows.append(
            {
                "name": HEAD,
                "val": both(head["val"]),
                "test": both(head.get("test")),
                "is_kept": False,
                "note": note,
            }
        )
        validation = both(tested.scores if tested.part == "val" else validated)
        rows.append(
            {"name": f"plan {plan}", "val": validation, "test": kept_test, "is_kept": True, "note": ""}
        )
    if scratch := metrics.get("from_scratch"):
        count = f"{counted(scratch['epochs'], 'epoch')} from random weights"
        rows.append(
            {
                "name": "from scratch",
                "val": scratch["val"],
                "test": scratch.get("test"),
                "is_kept": False,
                "note": count,
            }
        )
    return rows


def _predictions(data: ClassificationData, tested: Judgement) -> dict[str, Any]:
    samples = data.samples(tested.part)
    confidence, predicted = tested.probabilities.max(dim=1)
    top, classes = tested.probabilities.topk(2, dim=1)

    def described(index: int) -> dict[str, Any]:
        return {
            **shown(samples[index]),
            "predicted": data.class_names[int(predicted[index])],
            "confidence": float(confidence[index]),
            "next": data.class_names[int(classes[index, 1])],
            "next_confidence": float(top[index, 1]),
        }

    wrong = torch.nonzero(predicted != torch.tensor(tested.targets)).flatten()
    mistakes = wrong[confidence[wrong].argsort(descending=True, stable=True)][:_NUM_PREDICTIONS]
    # No more of them can be among the mistakes that are shown already.
    by_doubt = (top[:, 0] - top[:, 1]).argsort(stable=True)[: 2 * _NUM_PREDICTIONS].tolist()
    unsure = [index for index in by_doubt if index not in mistakes.tolist()][:_NUM_PREDICTIONS]
    return {
        "num_mistakes": len(wrong),
        "mistakes": [described(index) for index in mistakes.tolist()],
        "unsure": [described(index) for index in unsure],
    }


def _suspects(data: ClassificationData, findings: DataFindings) -> dict[str, Any]:
    names = data.class_names
    places = {part: data.places(part) for part in {part for part, _, _ in findings.suspects}}
    return {
        "num_judged": findings.num_judged,
        "num_found": len(findings.suspects),
        "shown": [
            {
                **shown(data.samples(part)[index]),
                "part": part,
                "suggested": names[suspect.suggested],
                "given_probability": suspect.given_probability,
                "suggested_probability": suspect.suggested_probability,
            }
            for part, index, suspect in findings.suspects[:_NUM_SHOWN]
        ],
        "all": [
            [part, printable(places[part][index]), names[suspect.given], names[suspect.suggested]]
            for part, index, suspect in findings.suspects
        ],
    }


def _twins(data: ClassificationData, twins: Twins) -> dict[str, Any]:
    def pair(twin: Any) -> dict[str, Any]:
        first, second = data.samples(twin.part)[twin.index], data.samples(twin.other_part)[twin.other_index]
        return {
            "first": shown(first),
            "first_part": twin.part,
            "second": shown(second),
            "second_part": twin.other_part,
            "similarity": twin.similarity,
            "is_same": is_same(first, second),
        }

    return {
        "threshold": THRESHOLD,
        "num_found": len(twins.found),
        "num_looked_at": twins.num_looked_at,
        "num_held_out": twins.num_held_out,
        "shown": [pair(twin) for twin in twins.found[:_NUM_SHOWN]],
    }


def _map(data: ClassificationData, tested: Judgement, *, seed: int) -> dict[str, Any]:
    found = map_features(tested.features, seed=seed)
    places = data.places(tested.part)
    confidence, predicted = tested.probabilities.max(dim=1)
    points = [
        {
            "x": round(x, 4),
            "y": round(y, 4),
            "place": printable(places[index]),
            "true": tested.targets[index],
            "predicted": int(predicted[index]),
            "confidence": round(float(confidence[index]), 4),
        }
        for (x, y), index in zip(found.places, found.indices, strict=True)
    ]
    return {"method": found.method, "share_of_variance": found.share_of_variance, "points": points}
