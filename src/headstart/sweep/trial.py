"""One trial: what the settings give on the validation part.

What trains the head alone works on features that are computed once for each backbone, and kept for the whole sweep. What
trains more is a run of `Trainer`, which tells each validation, and may be ended there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headstart import auto, freezing
from headstart.callback import Callback
from headstart.callbacks.plan import PlanRunner
from headstart.choice import Metric
from headstart.deferred import Reuse
from headstart.errors import NonFiniteError
from headstart.plans import named_plan
from headstart.probe.anywhere import ProbeAnywhere
from headstart.scores import confusion_matrix, macro_f1
from headstart.seed import isolated_random_state, seed_everything
from headstart.sweep.space import FINE_TUNE, HEAD, LINEAR_PROBE

if TYPE_CHECKING:
    from headstart.data import ClassificationData
    from headstart.module import LightningModule
    from headstart.plan import Plan
    from headstart.sweep.space import Settings
    from headstart.tasks import Classifier
    from headstart.trainer import Trainer

#: Takes a validation's value, and says whether the trial is to end there.
Report = Callable[[float], bool]

# What a run logs in validation, by which it is pruned and its best moment kept.
_MONITORS: dict[Metric, tuple[str, Literal["min", "max"]]] = {
    "macro_f1": ("val_f1", "max"),
    "accuracy": ("val_acc", "max"),
    "log_loss": ("val_loss", "min"),
}
# Epochs of fine-tuning where nobody says how many, as with `--plan auto`: so many, and on few samples as many as make so
# many steps. Epochs of the head on stored features cost next to nothing.
_EPOCHS, _STEPS, _EPOCHS_ON_FEATURES = 3, 100, 30


class PrunedError(Exception):
    """The trial was ended early, as others were better at that point. No error of anybody's."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial came to.

    Attributes:
        model: With the trial's weights, on the CPU.
        predictions: Log-probabilities (N, C) of the validation samples.
        value: Its score on them.
    """

    model: Classifier
    predictions: Tensor
    value: float


@dataclass(frozen=True, slots=True)
class _Features:
    """What a frozen backbone makes of the data, and a model around that backbone in which only the head changes."""

    model: Classifier
    train: Tensor  # (N, width)
    train_targets: Tensor  # (N,)
    val: Tensor
    probes: ProbeAnywhere
    fitted_head: dict[str, Tensor]  # at its optimum, the penalty by cross-validation


class Trials:
    """Tries settings, one after the other, on the same data.

    Args:
        data: The data; its test part is not touched.
        make_model: Gives a new model with a backbone, weight decay, and the data what it wants done to samples.
        metric: By which trials are judged.
        seed: Of every trial: two differ by their settings alone.
        epochs: Of every plan that trains by gradient; `None` takes the plan's own.
        features: The folder in which features are kept, for a sweep that goes on.
        device: `accelerator`, `devices` and `precision` of the `Trainer`.

    Attributes:
        num_computed: For each backbone, how many samples went through it for features.
    """

    def __init__(
        self,
        data: ClassificationData,
        *,
        make_model: Callable[..., Classifier],
        metric: Metric,
        seed: int,
        epochs: int | None,
        features: Path,
        device: dict[str, Any],
    ) -> None:
        self.data = data
        self.metric: Metric = metric
        self.seed = seed
        self.epochs = epochs
        self.num_computed: dict[str, int] = {}
        self._make_model = make_model
        self._directory = features
        self._device = device
        self._known: dict[str, _Features] = {}

    @property
    def targets(self) -> Tensor:
        """The class indices (N,) of the validation samples."""
        return torch.tensor(self.data.val_set.targets)  # type: ignore[union-attr]

    def run(self, settings: Settings, report: Report) -> Outcome:
        """Try settings.

        Args:
            settings: What is tried.
            report: Asked at each validation of what trains by gradient.

        Raises:
            PrunedError: If `report` says so.
            NonFiniteError: If training diverges.
        """
        seed_everything(self.seed, verbose=False)
        if settings.plan == HEAD:
            outcome = self._fit_head(settings)
        elif settings.plan == LINEAR_PROBE:
            outcome = self._train_head(settings, report)
        else:
            outcome = self._train(settings, report)
        if not bool(outcome.predictions.isfinite().all()):
            raise NonFiniteError(
                "after training, predictions are NaN or infinite: the learning rate is too high for this backbone"
            )
        return outcome

    def score(self, predictions: Tensor) -> float:
        """Give the score of log-probabilities (N, C) of the validation samples."""
        targets = self.targets
        if self.metric == "log_loss":
            return float(cross_entropy(predictions.double(), targets))
        predicted = predictions.argmax(dim=1)
        if self.metric == "accuracy":
            return float((predicted == targets).double().mean())
        return macro_f1(confusion_matrix(targets, predicted, num_classes=predictions.shape[1]))

    # ---- the head alone

    def _fit_head(self, settings: Settings) -> Outcome:
        features = self._features_of(settings.backbone)
        model = features.model
        probe = features.probes.fit(settings.values["strength"])
        model.head.load_state_dict(probe.linear().state_dict())
        return self._head_outcome(features)

    def _train_head(self, settings: Settings, report: Report) -> Outcome:
        """Train the head with AdamW on the features, each batch drawn from them; its best epoch is kept."""
        features = self._features_of(settings.backbone)
        head = features.model.head
        head.reset_parameters()
        weights = _class_weights(features.model)
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=settings.values["lr"], weight_decay=settings.values["weight_decay"]
        )
        best, best_state = -float("inf"), _copy_of(head)
        sign = -1.0 if self.metric == "log_loss" else 1.0
        for _ in range(self.epochs or _EPOCHS_ON_FEATURES):
            for rows in torch.split(torch.randperm(len(features.train)), self.data.batch_size):
                loss = cross_entropy(head(features.train[rows]), features.train_targets[rows], weight=weights)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            value = self.score(_log_probabilities(head, features.val))
            if sign * value > best:
                best, best_state = sign * value, _copy_of(head)
            if report(value):
                raise PrunedError
        head.load_state_dict(best_state)
        return self._head_outcome(features)

    def _head_outcome(self, features: _Features) -> Outcome:
        predictions = _log_probabilities(features.model.head, features.val)
        return Outcome(features.model, predictions, self.score(predictions))

    def _features_of(self, backbone: str) -> _Features:
        """Give the features, computed at the first call for a backbone."""
        if backbone not in self._known:
            # A trial draws the same, whether it is the first of its backbone or not.
            with isolated_random_state():
                self._known[backbone] = self._compute_features(backbone)
        return self._known[backbone]

    def _compute_features(self, backbone: str) -> _Features:
        model = self._make_model(backbone)
        freezing.freeze(model.backbone)
        reuse = Reuse(directory=self._directory)
        train, targets = auto.outputs_of(
            model.backbone, self.data.plain_train_dataloader(), reuse=reuse, **self._device
        )
        val, _ = auto.outputs_of(model.backbone, self.data.val_dataloader(), reuse=reuse, **self._device)
        reuse.close()
        self.num_computed[backbone] = reuse.report().num_computed
        auto.fit_head(model.cpu(), train, targets, seed=self.seed)
        probes = ProbeAnywhere(
            train, targets, num_classes=len(model.class_names), class_weights=_class_weights(model)
        )
        return _Features(model, train, targets, val, probes, _copy_of(model.head))

    # ---- more than the head

    def _train(self, settings: Settings, report: Report) -> Outcome:
        fitted = self._features_of(settings.backbone).fitted_head if settings.plan == FINE_TUNE else None
        model = self._make_model(settings.backbone, weight_decay=settings.values.get("weight_decay"))
        if fitted is not None:
            model.head.load_state_dict(fitted)
        plan, watch = self._plan_of(settings, model), _Watch(self.metric, report)
        trainer = auto.quiet_trainer(
            max_epochs=plan.num_epochs or -1,
            callbacks=[PlanRunner(plan, say_table=False), watch],
            num_sanity_val_steps=0,
            on_nan="raise",
            # Photos are augmented anew in every epoch, and what is random is computed anew.
            reuse_frozen=Reuse(directory=self._directory) if model.kind == "text" else False,
            **self._device,
        )
        trainer.fit(model, datamodule=self.data)
        if watch.is_pruned:
            raise PrunedError
        model.cpu()
        freezing.unfreeze(model)
        logits, _ = auto.outputs_of(model, self.data.val_dataloader(), **self._device)
        predictions = logits.log_softmax(dim=1)
        return Outcome(model.cpu(), predictions, self.score(predictions))

    def _plan_of(self, settings: Settings, model: Classifier) -> Plan:
        """Give the plan with the trial's settings; each of its phases ends with its best weights by validation."""
        monitor, mode = _MONITORS[self.metric]
        values = dict(settings.values)
        weight_decay = values.pop("weight_decay", None)  # the optimizer's
        if settings.plan == FINE_TUNE:
            num_steps = len(self.data.train_dataloader())
            epochs = self.epochs or max(_EPOCHS, -(-_STEPS // num_steps))
            plan = auto.tuning_plan(model.kind, epochs=epochs, steps_per_epoch=num_steps, lr=values["lr"])
            phases = [replace(plan.phases[0], layer_decay=values["layer_decay"], weight_decay=weight_decay)]
            return replace(plan, phases=tuple(phases), monitor=monitor, mode=mode)
        epochs_given = {} if self.epochs is None else {"epochs": self.epochs}
        return named_plan(settings.plan, monitor=monitor, mode=mode, **values, **epochs_given)


class _Watch(Callback):
    """Tells the value of every validation, and ends the run where that is the answer."""

    def __init__(self, metric: Metric, report: Report) -> None:
        super().__init__()
        self._monitor, _ = _MONITORS[metric]
        self._report = report
        self.is_pruned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the value."""
        if trainer.state.fn == "fit" and not self.is_pruned:
            self.is_pruned = self._report(float(trainer.callback_metrics[self._monitor]))
            trainer.should_stop = trainer.should_stop or self.is_pruned


def _class_weights(model: Classifier) -> Tensor | None:
    return None if model.class_weights is None else model.class_weights.cpu()


def _copy_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def _log_probabilities(head: nn.Module, features: Tensor) -> Tensor:
    logits: Tensor = head(features)
    return logits.log_softmax(dim=1)
