"""What a backbone still knows of other data after it was fine-tuned: a probe on its features, before and after."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from headstart import auto
from headstart.choice import paired_test
from headstart.cli.arguments import device_settings
from headstart.probe import Probe, fit_probe

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.cli.options import FitOptions
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
        model: Its weights and modes stay as they are.
        options: `forgetting` names the data, of the same kind as what is trained on.

    Raises:
        DataError: If there is no such data.
        MisconfigurationError: If it is of the other kind.
    """
    from headstart.backbones import ImagePreprocessing, TextPreprocessing
    from headstart.cli.set_up import open_data
    from headstart.data import ImageFolderData, TextTableData, detect_kind
    from headstart.errors import MisconfigurationError

    assert options.forgetting is not None
    kind = detect_kind(options.forgetting)
    if kind != model.kind:
        raise MisconfigurationError(
            f"--forgetting {options.forgetting} holds {kind}, and the backbone {model.backbone.name!r} takes {model.kind}. "
            "Give data of the same kind."
        )
    columns: dict[str, Any] = {"text_column": None, "text_pair_column": None, "label_column": None}
    other = replace(options, data=options.forgetting, test_fraction=0.0, forgetting=None, **columns)
    data = open_data(other).prepare()
    if isinstance(data, ImageFolderData):
        assert isinstance(model.preprocessing, ImagePreprocessing)
        data.eval_transform = model.preprocessing.eval_transform()
        data.train_transform = data.eval_transform  # which is never asked for
    else:
        assert isinstance(data, TextTableData)
        assert isinstance(model.preprocessing, TextPreprocessing)
        data.tokenize = model.preprocessing
    features, targets = auto.outputs_of(
        model.backbone, data.plain_train_dataloader(), **device_settings(options)
    )
    model.cpu()
    probe = fit_probe(features, targets, num_classes=len(data.class_names), seed=options.seed)
    return Look(probe, probe.is_right_out_of_fold(targets))


def fact_of(before: Look, after: Look, options: FitOptions) -> tuple[str, str]:
    """Give the row of the result's table."""
    p = paired_test(after.is_right.numpy(), before.is_right.numpy())
    line = (
        f"a probe on {options.forgetting}, {len(before.is_right):,} samples: {before.probe.accuracy} with the backbone as it "
        f"was,\n{after.probe.accuracy} as it is now (p = {p:.3f})"
    )
    return "forgetting", line
