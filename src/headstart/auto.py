"""The plan `auto`: the head at its optimum, fine-tuning from there, and the best of the two and of what lies between.

Fine-tuning can end worse than the head alone. So the head is fitted first, on features that are computed once; fine-tuning begins
from it (LP-FT, Kumar et al. 2022); then the head alone, the fine-tuned model, blends of the two (WiSE-FT, Wortsman et
al. 2021) and an average of the best moments of fine-tuning (a soup, Wortsman et al. 2022) are judged on the same
validation samples: the best is kept, or the head alone where it is not shown to be worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from headstart import scores
from headstart.blending import greedy_soup, has_batch_norms, interpolate
from headstart.calibration import Calibration, calibrate
from headstart.callback import Callback
from headstart.callbacks.plan import runner_of
from headstart.choice import Candidate, is_hopeless
from headstart.module import LightningModule
from headstart.plan import Phase, Plan
from headstart.plans import TUNING_LAYER_DECAY, TUNING_LR
from headstart.probe import Probe, fit_probe
from headstart.trainer import Trainer
from headstart.words import counted

if TYPE_CHECKING:
    from headstart.deferred import Reuse
    from headstart.tasks import Classifier

Kind = Literal["images", "text"]
Weights = Mapping[str, Tensor]

# The share of the fine-tuned weights in each blend.
BLENDS = (0.25, 0.5, 0.75)

HEAD, TUNED, SOUP = "head alone", "fine-tuned", "soup"

# What a candidate costs: with the head alone, others share the backbone and what it makes of a sample.
_PRETRAINED_BACKBONE, _OWN_BACKBONE = 0.0, 1.0


# ---- reading a loader


class _Reader(LightningModule):
    """Reads a loader through a network, in order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def predict_step(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        return self.network(inputs), targets


def quiet_trainer(**settings: Any) -> Trainer:
    """Give a trainer that writes no files, and shows nothing but what `settings` ask for.

    Example:
        >>> quiet_trainer(accelerator="cpu").loggers
        []
    """
    settings = {"enable_progress_bar": False, **settings}
    return Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False, **settings)


def outputs_of(
    network: nn.Module, loader: Any, *, reuse: Reuse | Literal[False] = False, **settings: Any
) -> tuple[Tensor, Tensor]:
    """Give what a network makes of all samples of a loader, on the CPU, and their targets; of several processes all get all.

    Args:
        network: Takes the inputs; frozen, its work is done once where `reuse` is given.
        loader: Gives `(inputs, targets)`.
        reuse: What computes frozen work once.
        settings: `accelerator`, `devices` and `precision` of the `Trainer`.

    Returns:
        Outputs (N, ...) float32, and targets (N,).

    Example:
        >>> loader = torch.utils.data.DataLoader([(torch.ones(2), 1)] * 3, batch_size=2)
        >>> outputs, targets = outputs_of(nn.Flatten(), loader, accelerator="cpu")
        >>> outputs.shape, targets.tolist()
        (torch.Size([3, 2]), [1, 1, 1])
    """
    trainer = quiet_trainer(reuse_frozen=reuse, **settings)
    found = trainer.predict(_Reader(network), loader)
    outputs = trainer.strategy.in_order([output.float().cpu() for output, _ in found])
    return outputs, trainer.strategy.in_order([targets.cpu() for _, targets in found])


# ---- the head


def probe_for(model: Classifier, features: Tensor, targets: Tensor, *, seed: int = 0) -> Probe:
    """Give the head that is best for these features, with the model's classes and class weights; see `fit_probe`.

    Args:
        model: Stays as it is.
        features: Of its backbone, (N, width).
        targets: Class indices (N,).
        seed: Of the folds.
    """
    weights = None if model.class_weights is None else model.class_weights.cpu()
    return fit_probe(features, targets, num_classes=len(model.class_names), class_weights=weights, seed=seed)


def fit_head(model: Classifier, features: Tensor, targets: Tensor, *, seed: int = 0) -> Probe:
    """Give the head of a model the weights that `probe_for` finds."""
    probe = probe_for(model, features, targets, seed=seed)
    model.head.load_state_dict(probe.linear().state_dict())
    return probe


# ---- fine-tuning


def tuning_plan(
    kind: Kind,
    *,
    epochs: int | None = None,
    seconds: float | None = None,
    steps_per_epoch: int,
    lr: float | None = None,
) -> Plan:
    """Give the plan that fine-tunes from a fitted head.

    Everything trains at a low rate, lower from block to block towards the input, after a warm-up of half an epoch. Norms keep
    their statistics: the head was fitted on what those give.

    Args:
        kind: Of the data.
        epochs: Number of epochs, at most; `None` where the clock alone ends it.
        seconds: Of training and validation, at most; the rate comes down with whatever ends it.
        steps_per_epoch: Optimizer steps of one.
        lr: Of the head; `None` is 5e-4 for images and 5e-5 for texts.

    Example:
        >>> tuning_plan("images", epochs=3, steps_per_epoch=50).phases[0].warmup_steps
        25
    """
    phase = Phase(
        name="fine-tuning",
        trains="all",
        lr=lr or TUNING_LR[kind],
        layer_decay=TUNING_LAYER_DECAY[kind],
        norms="frozen" if kind == "images" else "train",
        epochs=epochs,
        time=seconds,
        warmup_steps=max(1, steps_per_epoch // 2),
        schedule="cosine",
    )
    return Plan(name="auto", phases=(phase,))


class FewValidations(Callback):
    """Spreads validations evenly over a run: every half epoch, or every so many epochs where that would be too many.

    The best of very many moments on few samples is the luckiest, and each validation costs time. The last epoch has one: its
    weights are the most settled. Where a clock may end the run, the first epoch tells how many there will be.

    Args:
        most: How many at most, about.
        epochs: How many epochs there are, at most; `None` where nobody has said.
        seconds: How long they may take; `None` where nobody has said.

    Example:
        >>> FewValidations(12, epochs=3).every, FewValidations(12, epochs=30).every
        (0.5, 3)
    """

    def __init__(self, most: int, *, epochs: int | None = None, seconds: float | None = None) -> None:
        super().__init__()
        self.most = most
        self.epochs = epochs
        self.seconds = seconds
        self.first_epoch: float | None = None  # its seconds, when they are known

    @property
    def every(self) -> float:
        """Half an epoch, or a whole number of them."""
        bounds = [] if self.epochs is None else [float(self.epochs)]
        if self.seconds is not None and self.first_epoch is not None:
            bounds.append(self.seconds / self.first_epoch)
        epochs = min(bounds, default=1.0)
        return 0.5 if 2 * epochs <= self.most else math.ceil(epochs / self.most)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say it to the trainer."""
        self._apply(trainer, trainer.progress.batch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the first epoch of a run that a clock may end, count how many there will be."""
        runner = runner_of(trainer)
        if trainer.current_epoch == 1 and runner is not None:
            self.first_epoch = trainer.strategy.broadcast(runner.seconds)
        self._apply(trainer, 0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """After the first half of an epoch, wait for its end."""
        self._apply(trainer, batch_idx + 1)

    def state_dict(self) -> dict[str, Any]:
        """What was found out."""
        return {"first_epoch": self.first_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it, for the time that there is now."""
        self.first_epoch = state_dict["first_epoch"]

    def _apply(self, trainer: Trainer, num_batches: int) -> None:
        """Say to the trainer what is due next, when so many batches of the epoch are over."""
        total, interval = trainer.num_training_batches, 1.0
        if self.every < 1 and 1 < total < math.inf:
            # A val_check_interval of 0.5 is after batches 2 and 4 of 5, and not after the last.
            half = math.ceil(total / 2)
            interval = half if num_batches <= half else 1.0
        trainer.val_check_interval = interval
        is_last = trainer.current_epoch + 1 == self.epochs
        trainer.check_val_every_n_epoch = 1 if is_last else max(1, int(self.every))


class StopEarly(Callback):
    """Ends fine-tuning that is not worth its time: it diverged, stays below the head alone, or has nothing more to gain.

    Nothing more to gain: neither the monitored value nor the loss has been better than ever for `patience + 1` validations.
    Both, for accuracy goes on rising where the loss no longer falls, and the loss goes on falling where all is right already.

    Args:
        monitor: The logged value that is watched, higher is better.
        reference: The head's.
        loss: The name of the logged loss.
        patience: How many validations the trend looks back.

    Attributes:
        history: The monitored value at each validation.
        losses: The loss at each validation.
        reason: Why it ended the run; empty where it did not.
    """

    def __init__(self, monitor: str, reference: float, *, loss: str = "val_loss", patience: int = 4) -> None:
        super().__init__()
        self.monitor = monitor
        self.reference = reference
        self.loss = loss
        self.patience = patience
        self.history: list[float] = []
        self.losses: list[float] = []
        self.reason = ""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the values."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.history.append(float(trainer.callback_metrics[self.monitor]))
        self.losses.append(float(trainer.callback_metrics[self.loss]))
        is_last = trainer.progress.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.should_stop or is_last:
            return  # it ends here anyway: its time is up, say
        self.reason = self._reason()
        if self.reason:
            trainer.should_stop = True
            trainer.say(f"Fine-tuning ends after {counted(len(self.history), 'validation')}: {self.reason}.")

    def _reason(self) -> str:
        history, losses = self.history, self.losses
        if not math.isfinite(losses[-1]):
            return f"it diverged, {self.loss} is {losses[-1]}"
        if is_hopeless(
            history, self.reference, patience=self.patience, mode="max", min_checks=self.patience + 1
        ):
            return (
                f"{self.monitor} has not come to the head's {self.reference:.3f} (last {history[-1]:.3f}), and is not on its "
                "way there"
            )
        last_gain = max(history.index(max(history)), losses.index(min(losses)))
        if len(history) - 1 - last_gain > self.patience:
            return f"neither {self.monitor} nor {self.loss} has been better since validation {last_gain + 1}"
        return ""

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {"history": list(self.history), "losses": list(self.losses), "reason": self.reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.history, self.losses = list(state_dict["history"]), list(state_dict["losses"])
        self.reason = str(state_dict["reason"])


# ---- the candidates


@dataclass(frozen=True, slots=True, eq=False)
class _Tried:
    """Weights, and the log-probabilities (N, C) of the validation samples with them."""

    weights: Weights
    predictions: Tensor

    @property
    def is_finite(self) -> bool:
        return bool(self.predictions.isfinite().all())


class Candidates:
    """What may be kept: each one's weights, and what it says of the validation samples.

    Args:
        model: Into which weights are loaded, one after the other.
        head: The weights with the fitted head, before fine-tuning.
        predictions: The head's log-probabilities (N, C) of the validation samples.
        targets: Their class indices (N,).
        predict: Gives the log-probabilities of the model as it is.
        renew_norms: Gives the model's batch norms statistics anew, where weights were blended; `None` where they are kept.
        score: By which a soup takes a moment in: of log-probabilities (N, C) and targets, higher is better.

    Attributes:
        weights: By the name of each.
        found: What may be kept.
        num_lost: How many sets of weights were left out, because what they say is not a finite number: fine-tuning diverged.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        head: Weights,
        predictions: Tensor,
        targets: Tensor,
        predict: Callable[[], Tensor],
        renew_norms: Callable[[], Any] | None = None,
        score: Callable[[Tensor, Tensor], float] | None = None,
    ) -> None:
        self._model = model
        self._targets = targets
        self._predict = predict
        self._renew_norms = renew_norms if has_batch_norms(model) else None
        self._score = score or accuracy
        self.num_lost = 0
        self._head = {name: value.clone() for name, value in head.items()}
        self.weights: dict[str, Weights] = {HEAD: self._head}
        self.found: list[Candidate] = [Candidate(HEAD, _PRETRAINED_BACKBONE, predictions)]

    def add_tuned(self, states: Sequence[Weights], scores: Sequence[float]) -> None:
        """Add the best moment of fine-tuning, blends of it with the head alone, and a soup of all moments.

        Args:
            states: The weights at the best moments.
            scores: Of each, higher is better.
        """
        ranked = sorted(zip(states, scores, strict=True), key=lambda moment: -moment[1])
        while ranked and not (best := self._try(ranked[0][0])).is_finite:
            ranked, self.num_lost = ranked[1:], self.num_lost + 1
        if not ranked:
            return
        moments = [state for state, _ in ranked]
        for share in BLENDS:
            blend = self._try_blend(interpolate(self._head, moments[0], share))
            self._add(f"blend {share:.0%}", blend)
        self._add(TUNED, best)
        if len(moments) == 1:
            return
        soups: list[_Tried] = []

        def score(weights: Weights) -> float:
            soups.append(self._try_blend(weights) if soups else best)  # the first is the best moment alone
            return self._score(soups[-1].predictions, self._targets) if soups[-1].is_finite else -math.inf

        _, members = greedy_soup(moments, [value for _, value in ranked], score)
        if len(members) > 1:
            # One soup was tried for each moment; the one with the last member is what was kept.
            self._add(f"{SOUP} of {len(members)}", soups[members[-1]])

    def keep(self, name: str) -> None:
        """Give the model the weights of a candidate."""
        self._model.load_state_dict(self.weights[name])

    def predictions_of(self, name: str) -> Any:
        """Give the log-probabilities (N, C) of a candidate."""
        return next(each.predictions for each in self.found if each.name == name)

    def _add(self, name: str, tried: _Tried) -> None:
        if not tried.is_finite:
            self.num_lost += 1
            return
        self.weights[name] = tried.weights
        self.found.append(Candidate(name, _OWN_BACKBONE, tried.predictions))

    def _try(self, weights: Weights) -> _Tried:
        self._model.load_state_dict(weights)
        return self._tried()

    def _try_blend(self, weights: Weights) -> _Tried:
        self._model.load_state_dict(weights)
        if self._renew_norms is not None:
            self._renew_norms()
        return self._tried()

    def _tried(self) -> _Tried:
        weights = {key: value.detach().clone() for key, value in self._model.state_dict().items()}
        return _Tried(weights, self._predict())


def accuracy(predictions: Tensor, targets: Tensor) -> float:
    """Give the accuracy of log-probabilities (N, C) or logits.

    Example:
        >>> accuracy(torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(), torch.tensor([0, 0]))
        0.5
    """
    return float((predictions.argmax(dim=1) == targets).double().mean())


def macro_f1(predictions: Tensor, targets: Tensor) -> float:
    """Give the macro-F1 of log-probabilities (N, C) or logits.

    Example:
        >>> macro_f1(torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(), torch.tensor([0, 1]))
        1.0
    """
    matrix = scores.confusion_matrix(targets, predictions.argmax(dim=1), num_classes=predictions.shape[1])
    return scores.macro_f1(matrix)


def fold_in_temperature(head: nn.Linear, predictions: Tensor, targets: Tensor) -> Calibration:
    """Calibrate a classifier by its head: weights and bias are divided by the temperature, so every use is calibrated.

    Args:
        head: Its last layer.
        predictions: Logits or log-probabilities (N, C) of validation samples.
        targets: Class indices (N,).

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".

    Example:
        >>> head = nn.Linear(2, 2)
        >>> logits = 9 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> targets = torch.randint(2, (100,), generator=torch.Generator().manual_seed(0))
        >>> fold_in_temperature(head, logits, targets).temperature > 2
        True
    """
    found = calibrate(predictions, targets)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.div_(found.temperature)
    return found
