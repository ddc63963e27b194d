"""`PlanRunner`: follows a plan during a run; `Trainer(plan=...)` makes one.

It keeps the place in the plan (which phase, since when, its best weights), and applies what the plan says of that place: at the
start, at every epoch, after every validation. The place goes into the checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import fields
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from headstart import freezing
from headstart.adapters import put_adapters_in, take_adapters_out
from headstart.callback import Callback
from headstart.callbacks.early_stopping import StoppingRule
from headstart.callbacks.monitored import never_logged
from headstart.durations import spelled
from headstart.errors import MisconfigurationError
from headstart.groups import Layout, is_norm, layout_of
from headstart.optim import group_names, rescale, split_groups, sync_scheduler
from headstart.plan import Norms, Plan, State
from headstart.seed import isolated_random_state
from headstart.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headstart.module import LightningModule
    from headstart.trainer import Trainer

# Batches from which the block that asks for training most is found.
_NUM_BATCHES = 8


class PlanRunner(Callback):
    """Lets a plan say what trains, and at which rate.

    Args:
        plan: The plan.
        say_table: Whether the plan is printed, with parameters and FLOPs of each phase, before training.

    Attributes:
        phase: The number of the phase that runs, from 0.
        history: For each phase that ended, and the one that runs: its name, its first whole epoch, its first step, how many
            steps it has before that epoch, and the best value of the monitored one.

    Example:
        >>> from headstart.plans import linear_probe
        >>> PlanRunner(linear_probe()).phase
        0
    """

    def __init__(self, plan: Plan, *, say_table: bool = True) -> None:
        super().__init__()
        self.plan = plan
        self.say_table = say_table
        # Weights by name, when they have been added to the network's own.
        self.adapters: dict[str, Tensor] = {}
        self._layout: Layout | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.phase = 0
        self.history: list[dict[str, Any]] = []
        self._is_over = self._is_late = False  # by its clock, which more time undoes, or otherwise
        self._best_block: int | None = None
        self._best_weights: dict[str, Tensor] = {}
        self._anchors: dict[str, Tensor] = {}
        # Of each group: rate and weight decay as it was made; its rate at the phase's start; the ratio of the rate that it
        # would have, had no phase set one, to the one that it has.
        self._configured: list[tuple[float, float]] = []
        self._rates: list[float] = []
        self._ratios: list[float] = []
        # Norms that this plan has pinned, and how they were before.
        self._pinned: list[tuple[nn.Module, freezing.Mode | None]] = []
        self._rule = self._new_rule()
        self._cost_is_said = False
        self._seconds_before = 0.0  # of the phase, in the runs that this one goes on from
        self._clock_began: float | None = None

    # ---- before training

    def on_model_built(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put adapters in, and let everything train, so that the optimizer is made with all of it."""
        from headstart.callbacks.finetuning import BaseFinetuning

        if trainer.progress.total_batches == 0:  # of this fit; what a checkpoint holds comes later
            self._begin_anew()
        rival = next((each for each in trainer.callbacks if isinstance(each, BaseFinetuning)), None)
        if rival is not None:
            raise MisconfigurationError(
                f"Trainer(plan=...) and {type(rival).__name__} both say what trains. Choose one: leave out the plan, or the "
                "callback."
            )
        if self.plan.lora is not None:
            if not trainer.strategy.computes_alone:
                raise MisconfigurationError(
                    "The plan puts LoRA adapters in, and the weights are cut into parts already (strategy='fsdp'). Adapters are "
                    "small: use strategy='ddp'."
                )
            put_adapters_in(pl_module.get_submodule(self.plan.backbone), self.plan)
        self._layout = layout_of(pl_module, backbone=self.plan.backbone)
        # Every word chooses something, in the phases to come, too.
        states = [self._state(index) for index in range(len(self.plan.phases))]
        freezing.set_trainable(pl_module, {name for state in states for name in state.trainable})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the optimizer its groups, all of them, with names; enter the first phase."""
        if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
            raise MisconfigurationError(
                f"A plan needs one optimizer and automatic optimization; {type(pl_module).__name__} has "
                f"{len(trainer.optimizers)} optimizers."
            )
        optimizer = trainer.optimizers[0]
        if any(phase.has_schedule for phase in self.plan.phases) and trainer.lr_scheduler_configs:
            raise MisconfigurationError(
                f"Plan {self.plan.name!r} has a warm-up or a schedule, and configure_optimizers gives a scheduler. Choose one."
            )
        split_groups(optimizer, pl_module, self._labels())
        self._configured = [
            (float(g.get("initial_lr", g["lr"])), float(g.get("weight_decay", 0.0)))
            for g in optimizer.param_groups
        ]
        self._ratios = self._ratios or [1.0] * len(optimizer.param_groups)  # else a checkpoint's
        for config in trainer.lr_scheduler_configs:
            sync_scheduler(config.scheduler)
        if any(phase.l2_sp for phase in self.plan.phases) and not self._anchors:
            backbone = {name for block in self.layout.blocks for name in block}
            self._anchors = {
                name: each.detach().clone() for name, each in pl_module.named_parameters() if name in backbone
            }
        if not self.history:
            self._enter(trainer, 0)
        self._apply(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the first phase's best block; print the plan; refuse a schedule whose end nobody knows."""
        endless = next(
            (p for p in self.plan.phases if p.schedule != "constant" and p.steps is None and p.time is None),
            None,
        )
        if endless is not None and math.isinf(trainer.num_training_batches):
            raise MisconfigurationError(
                f"Phase {endless.name!r}: its {endless.schedule} schedule falls until its last epoch, and the training data does not "
                "say how long one is: give steps= or time=, or limit_train_batches= to the trainer."
            )
        if self.plan.phases[self.phase].needs_best_block and self._best_block is None:
            self._best_block = self._find_best_block(trainer, pl_module)
            trainer.say(f"Phase {self._now['name']!r}: the best block is block {self._best_block}.")
        if self.say_table and not self._cost_is_said:
            self._cost_is_said = True
            costs = list(self._costs(trainer, pl_module))
            trainer.say(table_of(self.plan, costs, best_block=self._best_block))
        self._apply(pl_module)
        if self._has_ended and self._is_last:  # of a run that was cut after its last phase
            trainer.should_stop = True
        self._clock_began = monotonic()

    @property
    def layout(self) -> Layout:
        """The layout of the module that trains."""
        assert self._layout is not None, "no module was built yet"
        return self._layout

    # ---- at its boundaries

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the next phase, if this one is over."""
        if self._has_ended and not self._is_last:
            self._go_on(trainer, pl_module)
        self._apply(pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rates of this step, where the phase has a schedule; freeze again what others thawed as the epoch began."""
        if batch_idx == 0:
            self._apply(pl_module)
            trainer.observe_trainable_set()
        phase = self.plan.phases[self.phase]
        if phase.has_schedule:
            step = trainer.global_step - self._now["step"]
            seconds = 0.0 if phase.time is None else self._agreed_seconds(trainer)
            factor = phase.factor_at(step, total=self._num_steps(trainer), seconds=seconds)
            for group, rate in zip(trainer.optimizers[0].param_groups, self._rates, strict=True):
                group["lr"] = rate * factor

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradient of the pull to where the run began."""
        strength = self.plan.phases[self.phase].l2_sp
        if strength:
            for name, parameter in pl_module.named_parameters():
                if parameter.grad is not None and name in self._anchors:
                    anchor = trainer.strategy.part(self._anchors[name], parameter).to(parameter.device)
                    parameter.grad.add_(parameter.detach() - anchor, alpha=strength)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin the next phase within an epoch, where this one ends, and no validation that counts for it is to come."""
        if self._is_last or not trainer.is_validation_due():
            self._end_within_epoch(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the phase's best weights, and see whether it still improves; begin the next one, where this one ends."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._judge(trainer, pl_module)
            self._apply(pl_module)
            self._end_within_epoch(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run after the last phase."""
        if not trainer.enable_validation:
            self._judge(trainer, pl_module)
        epochs = self.plan.phases[self.phase].epochs
        self._is_over |= epochs is not None and trainer.current_epoch + 1 - self._now["epoch"] >= epochs
        if self._has_ended and self._is_last:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock; put the last phase's best weights back."""
        self._stop_clock()
        self._restore_best(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise where nothing was left to train; let go of the norms; add the adapters to the weights."""
        self.settle(trainer, pl_module)

    def settle(self, trainer: Trainer, module: LightningModule) -> None:
        """Leave the module as it is to be used; for a run that an exception has ended, whoever goes on with it calls this.

        The last phase's best weights are put back, norms let go of, and adapters added to the weights.

        Args:
            trainer: Of the run.
            module: That trained in it.
        """
        self._put_best_back(trainer, module)
        self._unpin()
        if self.plan.lora is not None:
            self.adapters = take_adapters_out(module.get_submodule(self.plan.backbone))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the clock; let go of the norms."""
        self._stop_clock()
        self._unpin()

    # ---- from phase to phase

    @property
    def _now(self) -> dict[str, Any]:
        return self.history[-1]

    @property
    def _is_last(self) -> bool:
        return self.phase == len(self.plan.phases) - 1

    @property
    def _has_ended(self) -> bool:
        return self._is_over or self._is_late

    def _end_within_epoch(self, trainer: Trainer, module: LightningModule) -> None:
        """End the phase, if its steps are done or its time is up."""
        if trainer.progress.accumulated:
            return
        phase = self.plan.phases[self.phase]
        are_done = phase.steps is not None and trainer.global_step - self._now["step"] >= phase.steps
        self._is_over |= are_done
        if are_done or self._is_late_by_now(trainer):
            if self._is_last:
                trainer.should_stop = True
            elif not trainer.progress.is_last_batch:  # else it ends with the epoch
                self._go_on(trainer, module)
                trainer.observe_trainable_set()

    def _go_on(self, trainer: Trainer, module: LightningModule) -> None:
        """Go from a phase's end to the next one's start."""
        self._restore_best(trainer, module)
        self.phase += 1
        if self.plan.phases[self.phase].needs_best_block:
            self._best_block = self._find_best_block(trainer, module)
        self._enter(trainer, self.phase)
        self._apply(module)

    def _enter(self, trainer: Trainer, index: int) -> None:
        phase, progress = self.plan.phases[index], trainer.progress
        done = math.ceil(progress.batch / trainer.accumulate_grad_batches)
        self.history.append(
            {
                "name": phase.name,
                "epoch": progress.epoch + progress.is_inside_epoch,
                "step": progress.global_step,
                "rest": _steps_per_epoch(trainer) - done if progress.is_inside_epoch else 0,
                "best": None,
            }
        )
        self._is_over = self._is_late = False
        self._seconds_before, self._clock_began = 0.0, monotonic()
        self._rule = self._new_rule()
        self._set_rates(trainer)
        if index:
            trains = set(self._state(index).trainable)
            groups = zip(
                self._rates, group_names(trainer.optimizers[0], trainer.lightning_module), strict=True
            )
            found = dict.fromkeys(rate for rate, names in groups if trains.intersection(names))
            rates = ", ".join(f"{rate:.3g}" for rate in found)
            block = f" (block {self._best_block})" if phase.needs_best_block else ""
            trainer.say(f"Phase {phase.name!r} begins{block}: learning rates {rates}.")

    def _set_rates(self, trainer: Trainer) -> None:
        """Set the rates and weight decays of the phase's start."""
        optimizer, state = trainer.optimizers[0], self._state(self.phase)
        groups = zip(optimizer.param_groups, group_names(optimizer, trainer.lightning_module), strict=True)
        sets_rates = any(phase.sets_rates for phase in self.plan.phases[: self.phase + 1])
        self._rates = []
        for index, (group, names) in enumerate(groups):
            name = next(filter(None, names), "")
            if sets_rates:
                self._set_rate(trainer, index, *state.lrs.get(name, (None, 1.0)))
            self._rates.append(float(group["lr"]))
            if "weight_decay" in group:
                wanted = state.weight_decays.get(name)
                group["weight_decay"] = self._configured[index][1] if wanted is None else wanted

    def _set_rate(self, trainer: Trainer, index: int, rate: float | None, factor: float) -> None:
        """Set a group's rate, and let the schedulers go on from it; `None` is where they would be had no phase set one."""
        optimizer = trainer.optimizers[0]
        schedulers = [each.scheduler for each in trainer.lr_scheduler_configs]
        group, floor = optimizer.param_groups[index], max(map(_floor_of, schedulers), default=0.0)
        before = float(group["lr"])
        # Before a warm-up, say: there is no proportion, so it is about base rates.
        stands_at_zero = before == floor
        if not schedulers or stands_at_zero:
            unset = self._configured[index][0]
        else:
            unset = floor + (before - floor) * self._ratios[index]
        wanted = (unset if rate is None else rate) * factor
        group["lr"] = wanted
        rescale(schedulers, optimizer, index, previous=before)
        if wanted != floor:
            self._ratios[index] = (unset - floor) / (wanted - floor)
        if schedulers and stands_at_zero and rate is None:
            group["lr"] = before

    def _num_steps(self, trainer: Trainer) -> float:
        """The number of steps of the phase, as far as it is known."""
        phase, bounds = self.plan.phases[self.phase], [math.inf]
        if phase.steps is not None:
            bounds.append(phase.steps)
        if phase.epochs is not None:
            bounds.append(self._now["rest"] + phase.epochs * _steps_per_epoch(trainer))
        return min(bounds)

    @property
    def seconds(self) -> float:
        """For how long the phase has trained and validated."""
        return self._seconds_before + (0.0 if self._clock_began is None else monotonic() - self._clock_began)

    @property
    def seconds_left(self) -> float:
        """How many the phase's `time` leaves; infinite without one."""
        return max(0.0, self.plan.phases[self.phase].seconds - self.seconds)

    def _stop_clock(self) -> None:
        self._seconds_before, self._clock_began = self.seconds, None

    def _is_late_by_now(self, trainer: Trainer) -> bool:
        """Whether the phase's time is up; say so, once."""
        phase = self.plan.phases[self.phase]
        if phase.time is None or self._agreed_seconds(trainer) < phase.seconds:
            return False
        if not self._has_ended:
            trainer.say(f"Phase {phase.name!r} ends: its {spelled(phase.seconds)} are over.")
        self._is_late = True
        return True

    def _agreed_seconds(self, trainer: Trainer) -> float:
        """The same number in all processes, whose clocks differ."""
        if trainer.world_size == 1:
            return self.seconds
        return float(trainer.strategy.reduce(torch.tensor(self.seconds, dtype=torch.float64)))

    def _apply(self, module: LightningModule) -> None:
        """Let train what the plan says; whoever changed it in between is overruled."""
        self._apply_phase(module, self.phase)

    def _apply_phase(self, module: LightningModule, index: int) -> None:
        freezing.set_trainable(module, self._state(index).trainable)
        norms = self.plan.phases[index].norms
        if norms == "train":
            self._unpin()
        elif not self._pinned:
            backbone = module.get_submodule(self.plan.backbone)
            self._pinned = [(each, freezing.pin_of(each)) for each in backbone.modules() if is_norm(each)]
        for each, _ in self._pinned:
            freezing.pin_mode(each, "train" if norms == "adapt" else "eval")

    def _unpin(self) -> None:
        for each, before in self._pinned:
            freezing.pin_mode(each, before)
        self._pinned = []

    def _state(self, phase: int) -> State:
        return self.plan.state_at(self.layout, phase, best_block=self._best_block)

    # ---- the best of a phase

    def _new_rule(self) -> StoppingRule:
        patience = self.plan.phases[self.phase].patience
        return StoppingRule(mode=self.plan.mode, patience=patience or 2**31, check_finite=False)

    def _judge(self, trainer: Trainer, module: LightningModule) -> None:
        monitor = self.plan.monitor
        if monitor is None:
            return
        if monitor not in trainer.callback_metrics:
            raise never_logged(monitor, trainer.callback_metrics, owner="Plan")
        value = float(trainer.callback_metrics[monitor])
        if self._rule.is_improvement(value) or not self._best_weights:
            self._now["best"] = value
            trained = set(self._state(self.phase).trainable)
            parameters = ((name, each) for name, each in module.named_parameters() if name in trained)
            self._best_weights = {
                name: each.detach().clone() for name, each in [*parameters, *module.named_buffers()]
            }
        reason = self._rule.reason_to_stop(value)
        if reason is not None and not self._has_ended:
            trainer.say(f"Phase {self._now['name']!r} ends with this epoch: {monitor}: {reason}.")
            self._is_over = True

    def _restore_best(self, trainer: Trainer, module: LightningModule) -> None:
        """Put the best weights back; moments of an optimizer belong to the weights that they were gathered at."""
        has_changed = self._put_best_back(trainer, module)
        if trainer.strategy.reduce_boolean_decision(has_changed, all=False):
            for optimizer in trainer.optimizers:
                optimizer.state.clear()

    @torch.no_grad()
    def _put_best_back(self, trainer: Trainer, module: LightningModule) -> bool:
        """Give whether a parameter has changed by it."""
        places: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        best = {
            name: trainer.strategy.part(value, places[name]).to(places[name].device)
            for name, value in self._best_weights.items()
        }
        others = [name for name, value in best.items() if not torch.equal(places[name], value)]
        for name in others:
            places[name].copy_(best[name])
        self._best_weights = {}
        return any(isinstance(places[name], nn.Parameter) for name in others)

    # ---- the groups

    def _labels(self) -> dict[str, str]:
        """Give for every parameter the name of its group: all of one have the same rate and weight decay in every phase."""
        is_by_block, some_are_spared = _grouping_of(self.plan)
        spared = self.layout.norms | self.layout.biases if some_are_spared else frozenset()
        depths, top = self.layout.depth_of(), len(self.layout.blocks)
        labels = {}
        for name in self.layout.names:
            depth = depths[name]
            label = "head" if depth == top else f"block {depth}" if is_by_block else "backbone"
            labels[name] = f"{label}, no decay" if name in spared else label
        return labels

    # ---- which block, and what it costs

    def _find_best_block(self, trainer: Trainer, module: LightningModule) -> int:
        """Give the block whose gradient is largest beside its weights, over some training batches."""
        found = torch.zeros(len(self.layout.blocks))
        wanted = {name: depth for depth, block in enumerate(self.layout.blocks) for name in block}
        trains = freezing.trainable_names(module)
        freezing.set_trainable(module, [*wanted, *self.layout.head])
        modes = [(each, each.training) for each in module.modules()]
        buffers = [(each, each.clone()) for each in module.buffers()]
        for batch in self._some_batches(trainer, _NUM_BATCHES):
            step = trainer.untraced_step(module, batch)
            assert step is not None, "a batch was given"
            output = step()
            loss = output["loss"] if isinstance(output, dict) else output
            module.zero_grad()
            loss.backward()
            for depth, block in enumerate(self.layout.blocks):
                pairs = [(module.get_parameter(name).grad, module.get_parameter(name)) for name in block]
                gradient = sum(float(g.square().sum()) for g, _ in pairs if g is not None) ** 0.5
                weight = sum(float(each.detach().square().sum()) for _, each in pairs) ** 0.5
                found[depth] += gradient / (weight or 1.0)
        module.zero_grad()
        for each, training in modes:
            each.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        freezing.set_trainable(module, trains)
        return int(trainer.strategy.reduce(found).argmax())  # each process has looked at its own batches

    def _some_batches(self, trainer: Trainer, count: int) -> Iterator[Any]:
        """Give the first training batches, on the device, and leave no trace in anybody's random state."""
        loader = trainer.train_dataloader
        before = trainer.train_batches.random_state()
        with isolated_random_state():
            for index, batch in enumerate(loader):
                if index == count:
                    break
                yield trainer.to_device(batch, 0)
        trainer.train_batches.restore(before, only_loader=True)

    def _costs(self, trainer: Trainer, module: LightningModule) -> Iterator[tuple[int, int | None]]:
        """Give for each phase how many parameters train, and the FLOPs of a step."""
        batch = next(iter(list(self._some_batches(trainer, 1))), None)
        seen: dict[tuple[tuple[str, ...], Norms], int | None] = {}
        for index, phase in enumerate(self.plan.phases):
            self._apply_phase(module, index)
            trains = tuple(freezing.trainable_names(module))
            if (trains, phase.norms) not in seen:
                seen[trains, phase.norms] = trainer.audit(batch=batch).flops
            yield sum(module.get_parameter(name).numel() for name in trains), seen[trains, phase.norms]
        self._apply(module)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """The place in the plan, and what is needed to go on from it."""
        return {
            "plan": self.plan.to_dict(),
            "phase": self.phase,
            "history": [dict(each) for each in self.history],
            "is_over": self._is_over,
            "is_late": self._is_late,
            "best_block": self._best_block,
            "best_weights": dict(self._best_weights),
            "anchors": dict(self._anchors),
            "rates": list(self._rates),
            "ratios": list(self._ratios),
            "best": self._rule.best_score,
            "wait_count": self._rule.wait_count,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a place.

        Raises:
            MisconfigurationError: If the checkpoint was made with another plan, as far as it had come, or with other groups.
        """
        theirs, ours = Plan.from_dict(state_dict["plan"]), self.plan
        change = _what_differs(theirs, ours, begun=state_dict["phase"] + 1)
        if change:
            raise MisconfigurationError(
                f"The checkpoint is in phase {theirs.phases[state_dict['phase']].name!r} of another plan ({theirs.name!r}; this one is "
                f"{ours.name!r}): {change}, and phases that have begun cannot change. Resume with the plan that it was made with."
            )
        if _grouping_of(theirs) != _grouping_of(ours):
            raise MisconfigurationError(
                f"The checkpoint's optimizer has other groups than the plan {ours.name!r} needs: in a phase to come, layer_decay or "
                "decay_norms_and_biases is there where no phase had it, or the other way round. Keep a phase that has it, or begin a "
                "new fit from the weights alone, by load_from_checkpoint."
            )
        self.phase = int(state_dict["phase"])
        self.history = [dict(each) for each in state_dict["history"]]
        self._is_over = bool(state_dict["is_over"])
        self._best_block = state_dict["best_block"]
        self._best_weights = dict(state_dict["best_weights"])
        self._anchors = dict(state_dict["anchors"])
        self._rates = list(state_dict["rates"])
        self._ratios = list(state_dict["ratios"])
        self._rule = self._new_rule()
        self._rule.best_score = float(state_dict["best"])
        self._rule.wait_count = int(state_dict["wait_count"])
        self._cost_is_said = True
        self._seconds_before, self._clock_began = float(state_dict["seconds"]), None
        self._is_late = state_dict["is_late"] and self._seconds_before >= ours.phases[self.phase].seconds


def runner_of(trainer: Trainer) -> PlanRunner | None:
    """Give what follows a trainer's plan; `None` where it has none."""
    return next((each for each in trainer.callbacks if isinstance(each, PlanRunner)), None)


def _grouping_of(plan: Plan) -> tuple[bool, bool]:
    """Whether a plan has a group for each block, and groups apart for norms and biases."""
    return (
        any(phase.is_by_block for phase in plan.phases),
        not all(phase.decay_norms_and_biases for phase in plan.phases),
    )


def _what_differs(theirs: Plan, ours: Plan, *, begun: int) -> str:
    """Say which settings of a checkpoint's plan are others now, as far as it has come; empty where none are."""
    pairs: list[tuple[str, Any, Any]] = [("the plan", theirs, ours)]
    for number, phase in enumerate(theirs.phases[:begun], 1):
        if number > len(ours.phases):
            return f"it has begun {counted(begun, 'phase')}, and this plan has {len(ours.phases)}"
        pairs.append((f"phase {phase.name!r}", phase, ours.phases[number - 1]))
    if theirs.lora is not None and ours.lora is not None:
        pairs.append(("LoRA", theirs.lora, ours.lora))
    changes = []
    for owner, before, now in pairs:
        names = [each.name for each in fields(before)]
        if before is theirs:
            names = ["monitor", "mode", "backbone", *([] if theirs.lora and ours.lora else ["lora"])]
        found = ((name, getattr(before, name), getattr(now, name)) for name in names)
        changes += [
            f"{name} of {owner} was {old!r} and is {new!r}"
            for name, old, new in found
            if old != new and (name != "time" or None in (old, new))  # more time may be given, or less
        ]
    return "; ".join(changes)


def _steps_per_epoch(trainer: Trainer) -> float:
    """The number of optimizer steps of an epoch; `math.inf` where nobody knows."""
    num_batches = trainer.num_training_batches
    return (
        num_batches if math.isinf(num_batches) else math.ceil(num_batches / trainer.accumulate_grad_batches)
    )


def _floor_of(scheduler: Any) -> float:
    """Give the rate that a scheduler never goes below, or one of those that it is made of."""
    inner = getattr(scheduler, "_schedulers", ())
    return max([float(getattr(scheduler, "eta_min", 0.0)), *map(_floor_of, inner)])


def table_of(plan: Plan, costs: list[tuple[int, int | None]], *, best_block: int | None = None) -> str:
    """Give a plan as a table.

    Args:
        plan: The plan.
        costs: For each phase the number of parameters that train, and the FLOPs of a step, `None` where unknown.
        best_block: The one that the run has found, where a phase trains it; `None` where that is to come.

    Example:
        >>> from headstart.plans import linear_probe
        >>> print(table_of(linear_probe(epochs=2), [(10, 1_200_000)]))
        Plan 'linear_probe':
        phase  trains  parameters  rate   norms  GFLOP a step  length
        head   head    10          0.001  train  0.0012        2 epochs
    """
    rows = [("phase", "trains", "parameters", "rate", "norms", "GFLOP a step", "length")]
    for phase, (count, flops) in zip(plan.phases, costs, strict=True):
        rates = [f"{rate:.3g}" for rate in (phase.lr, phase.backbone_lr) if rate is not None]
        rate = " / ".join(rates) or "as configured"
        rate += f", decay {phase.layer_decay:.3g} a block" if phase.is_by_block else ""
        rate += f", {phase.schedule}" if phase.schedule != "constant" else ""
        rate += f", {counted(phase.warmup_steps, 'step')} of warm-up" if phase.warmup_steps else ""
        cost = "" if flops is None else f"{flops / 1e9:.3g}"
        rows.append(
            (phase.name, ", ".join(phase.trains), f"{count:,}", rate, phase.norms, cost, phase.length())
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    if best_block is None and any(phase.needs_best_block for phase in plan.phases):
        lines.append("Which block is best is found in the run; the figures are for the first one.")
    return "\n".join([f"Plan {plan.name!r}:", *lines])
