"""What a backbone still knows of other data after it was fine-tuned: a probe on its features, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headstart import auto
from headstart.choice import paired_test
from headstart.cli.arguments import device_settings
from headstart.probe import Probe, fit_probe

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.cli.options import FitOptions
    from headstart.data import ClassificationData
    from headstart.data.base import Kind
    from headstart.tasks import Classifier


@dataclass(frozen=True, slots=True)
class Look:
    """What a probe reaches on other data, and which of its samples it gets right."""

    probe: Probe
    is_right: Tensor  # (N,) bool, each by the fit that has not seen it

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        assert self.probe.accuracy is not None, "there are folds"
        return {"num_samples": len(self.is_right), "accuracy": self.probe.accuracy.to_dict()}


def look(model: Classifier, options: FitOptions) -> Look:
    """Fit a probe to what the backbone of a model makes of the other data, in folds of its training part.

    Args:
        model: Its weights and modes stay as they are, and so does the random state: to ask changes nothing in what is trained.
        options: `forgetting` names the data, of the same kind as what is trained on.

    Raises:
        DataError: If there is no such data, its columns are unclear, or a class has one training sample only.
        MisconfigurationError: If it is of the other kind.
    """
    from headstart.cli.compare import check_counts
    from headstart.data.columns import UnclearColumnError
    from headstart.errors import DataError
    from headstart.seed import isolated_random_state

    try:
        data = _open(options, kind=model.kind, backbone=model.backbone.name)
    except UnclearColumnError as error:
        raise DataError(
            f"--forgetting: {error} The names of columns count for {options.data} and for {options.forgetting}: rename columns "
            "where the two differ."
        ) from error
    check_counts(data)
    data.set_preprocessing(model.preprocessing)
    with isolated_random_state():
        features, targets = auto.outputs_of(
            model.backbone, data.plain_train_dataloader(), **device_settings(options)
        )
    model.cpu()
    probe = fit_probe(features, targets, num_classes=len(data.class_names), seed=options.seed)
    return Look(probe, probe.is_right_out_of_fold(targets))


def _open(options: FitOptions, *, kind: Kind, backbone: str) -> ClassificationData:
    """Give the other data, prepared: read by the columns that were named where it has them, else by common names."""
    from headstart.data.opening import open_data
    from headstart.errors import MisconfigurationError

    def opened(**columns: Any) -> ClassificationData:
        assert options.forgetting is not None
        return open_data(
            options.forgetting,
            **columns,
            batch_size=options.batch_size,
            val_fraction=options.val_fraction,
            test_fraction=0.0,
            seed=options.seed,
            num_workers=options.num_workers,
        )

    data = opened()
    texts, label = options.text_columns, options.label_column
    if texts is not None or label is not None:
        there = set(data.column_names)
        data = opened(
            text_columns=texts if there.issuperset(texts or []) else None,
            label_column=label if label in there else None,
        )
    if data.kind != kind:
        raise MisconfigurationError(
            f"--forgetting {options.forgetting} holds {data.kind}, and the backbone {backbone!r} takes {kind}. "
            "Give data of the same kind."
        )
    return data.prepare()


def fact_of(before: Look, after: Look, options: FitOptions) -> tuple[str, str]:
    """Give the row of the result's table."""
    p = paired_test(after.is_right.numpy(), before.is_right.numpy())
    line = (
        f"a probe on {options.forgetting}, {len(before.is_right):,} samples: {before.probe.accuracy} with the backbone as it "
        f"was,\n{after.probe.accuracy} as it is now (p = {p:.3f})"
    )
    return "forgetting", line
