"""`headstart fit --from_scratch true`: what the same network reaches from random weights, to see what pretraining is worth."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from headstart.auto import quiet_trainer
from headstart.callbacks import RichProgressBar
from headstart.cli.arguments import device_settings
from headstart.cli.inference import scores_of
from headstart.plan import Phase, Plan
from headstart.seed import seed_everything
from headstart.words import counted

if TYPE_CHECKING:
    from headstart.cli.options import FitOptions
    from headstart.data import ClassificationData
    from headstart.scores import Scores
    from headstart.tasks import Classifier

# Nothing is known that could be forgotten, so the rate is higher than in fine-tuning.
_LR = 1e-3


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """What came of it: scores in validation and, where there is such a part, test."""

    epochs: int
    seconds: float
    val: Scores
    test: Scores | None

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        found = {"epochs": self.epochs, "seconds": self.seconds, "val": self.val.summary()}
        return found if self.test is None else {**found, "test": self.test.summary()}


def train_from_scratch(
    model: Classifier, data: ClassificationData, options: FitOptions, *, epochs: int
) -> Scratch:
    """Train a network like a model's from random weights, and give its scores.

    All of it trains with AdamW, a warm-up of half an epoch and a cosine down to 0, on augmented samples; the epoch with the best
    macro-F1 in validation is judged, as in the plans that start from pretrained weights.

    Args:
        model: Stays as it is.
        data: The data.
        options: Of the run.
        epochs: Passes over the training part.
    """
    from headstart.data import ImageData

    begun = monotonic()
    seed_everything(options.seed, verbose=False)
    blank: Classifier = type(model)(**model.rebuild_arguments())
    if data.kind == "images" and isinstance(data, ImageData):
        data.show_fixed_views(1, until_epoch=0)
    phase = Phase(
        name="from scratch",
        trains="all",
        lr=_LR,
        norms="train",
        epochs=epochs,
        warmup_steps=max(1, len(data.train_dataloader()) // 2),
        schedule="cosine",
    )
    settings = device_settings(options)
    print(
        f"\nFrom scratch, for comparison: the same network with random weights, {counted(epochs, 'epoch')}.",
        flush=True,
    )
    trainer = quiet_trainer(
        plan=Plan(name="from scratch", phases=(phase,), monitor="val_f1", mode="max"),
        callbacks=[RichProgressBar()],
        enable_progress_bar=True,
        **settings,
    )
    trainer.fit(blank, datamodule=data)
    return Scratch(
        epochs=epochs,
        seconds=monotonic() - begun,
        val=scores_of(blank, data.val_dataloader(), **settings),
        test=None if data.test_set is None else scores_of(blank, data.test_dataloader(), **settings),
    )
