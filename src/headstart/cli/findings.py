"""What the pretrained features say of the data, before training: labels in doubt, and samples that are in two parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headstart import auto, freezing
from headstart.cli.arguments import device_settings
from headstart.cli.inference import scores_from
from headstart.report.duplicates import Twins, near_duplicates
from headstart.report.label_errors import suspected_label_errors
from headstart.seed import isolated_random_state

if TYPE_CHECKING:
    from headstart.cli.options import FitOptions
    from headstart.data import ClassificationData
    from headstart.deferred import Reuse
    from headstart.probe import Probe
    from headstart.report.label_errors import Suspect
    from headstart.scores import Scores
    from headstart.tasks import Classifier

#: For each part of the data, what the pretrained backbone makes of its samples (N, D), and their targets (N,).
Parts = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class DataFindings:
    """What the pretrained features say of the data.

    Attributes:
        suspects: Samples whose label is in doubt, each with its part and its index there.
        num_judged: Of how many.
        twins: Samples that are in two parts.
        head: For validation and test, the scores of the head alone, fitted to its optimum.
    """

    suspects: list[tuple[str, int, Suspect]]
    num_judged: int
    twins: Twins
    head: dict[str, Scores]


def read_parts(
    model: Classifier, data: ClassificationData, options: FitOptions, *, reuse: Reuse | Any, known: Parts
) -> Parts:
    """Give what the backbone, pretrained as it still is, makes of every part; draws no random number, and thaws what was.

    Args:
        model: Not trained yet.
        data: The data.
        options: Of the run.
        reuse: What computes frozen work once.
        known: Parts that are there already.
    """
    trainable = freezing.trainable_names(model)
    freezing.freeze(model.backbone)
    parts = dict(known)
    loaders = {
        "train": data.plain_train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader,
    }  # fmt: skip
    with isolated_random_state():
        for part in data.report.part_sizes:
            if part not in parts:
                parts[part] = auto.outputs_of(
                    model.backbone, loaders[part](), reuse=reuse, **device_settings(options)
                )
    model.cpu()
    freezing.set_trainable(model, trainable)
    return {part: parts[part] for part in ("train", "val", "test") if part in parts}


def judge_data(parts: Parts, probe: Probe) -> DataFindings:
    """Find labels in doubt and samples in two parts.

    Args:
        parts: Of `read_parts`.
        probe: Fitted on the training part, in folds.
    """
    assert probe.out_of_fold is not None, "fit_probe makes folds"
    head = probe.linear()
    # None of these was trained on the sample: the folds of the training part, and the head for the others.
    probabilities = {"train": probe.out_of_fold.float()}
    with torch.no_grad():
        for part in list(parts)[1:]:
            probabilities[part] = head(parts[part][0]).softmax(dim=1)
    places = [(part, index) for part in parts for index in range(len(parts[part][1]))]
    found = suspected_label_errors(
        torch.cat([probabilities[part] for part in parts]),
        torch.cat([targets for _, targets in parts.values()]),
    )
    return DataFindings(
        suspects=[(*places[suspect.index], suspect) for suspect in found],
        num_judged=len(places),
        twins=near_duplicates({part: features for part, (features, _) in parts.items()}),
        head={part: scores_from(probabilities[part], parts[part][1].numpy()) for part in list(parts)[1:]},
    )


def look_at_data(
    model: Classifier, data: ClassificationData, options: FitOptions, *, reuse: Reuse | Any
) -> DataFindings:
    """Give what the pretrained features say of the data; the model stays as it is."""
    parts = read_parts(model, data, options, reuse=reuse, known={})
    return judge_data(parts, auto.probe_for(model, *parts["train"], seed=options.seed))
