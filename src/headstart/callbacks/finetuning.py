"""`BaseFinetuning` and `BackboneFinetuning`: thaw layers on a schedule, written as code.

**`train_bn`** means one thing everywhere: whether batch norms train while the rest is frozen. With `True` they do, from
the first step, in the optimizer. With `False` everything is frozen, running statistics included.

What a callback does here, the trainer sees: it keeps the trainable set and the parameter groups in its checkpoints and
puts them back on a resume, so that `finetune_function` need not be called again for epochs that are over.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.optim import Optimizer

from headstart import freezing
from headstart.callback import Callback
from headstart.errors import MisconfigurationError, did_you_mean
from headstart.optim import group_names, rebase, regroup

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

    from headstart.module import LightningModule
    from headstart.trainer import Trainer

Modules = nn.Module | Iterable[Any]

# Set on a batch norm that `freeze(..., train_bn=True)` left trainable in an otherwise frozen network.
_TRAINS_ALONE = "_headstart_trains_alone"


def _double(epoch: int) -> float:  # noqa: ARG001 (the signature of a `lambda_func`)
    return 2.0


class BaseFinetuning(Callback):
    """Freeze parts of a module before training, and thaw them at epochs of your choice.

    Override `freeze_before_training` and `finetune_function`.

    Example:
        >>> class ThawEncoder(BaseFinetuning):
        ...     def freeze_before_training(self, pl_module):
        ...         self.freeze(pl_module.encoder, train_bn=False)
        ...
        ...     def finetune_function(self, pl_module, epoch, optimizer):
        ...         if epoch == 5:
        ...             self.unfreeze_and_add_param_group(pl_module.encoder, optimizer, lr=1e-4)
    """

    # Class attributes, so that a subclass that does not call super().__init__() works.
    _metadata: dict[int, list[dict[str, Any]]] | None = None
    _restarting: bool = False
    _cost_is_due: bool = False
    _counter: FlopCounterMode | None = None  # while it counts
    _forward_flops: int = 0
    _cost_is_said: bool = False

    @property
    def _internal_optimizer_metadata(self) -> dict[int, list[dict[str, Any]]]:
        """For each optimizer, its groups as they were when each was added, with parameter names under `params`."""
        if self._metadata is None:
            self._metadata = {}
        return self._metadata

    def state_dict(self) -> dict[str, Any]:
        """The groups of each optimizer, without tensors."""
        return {"internal_optimizer_metadata": self._internal_optimizer_metadata}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the groups back; they are put into the optimizers at `on_fit_start`."""
        self._restarting = True
        self._metadata = dict(state_dict.get("internal_optimizer_metadata", state_dict))

    # ---- what a subclass overrides

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze what is to be frozen at first. The module is built, the optimizers are not."""
        raise NotImplementedError(f"{type(self).__name__} does not define freeze_before_training.")

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Thaw what is due at the start of `epoch`. Called once for each optimizer.

        A fourth argument `optimizer_idx` is given to an override that takes it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define finetune_function.")

    # ---- what it calls

    @staticmethod
    def flatten_modules(modules: Modules) -> list[nn.Module]:
        """Give the leaves of one or several trees of modules, and the inner modules that own parameters themselves.

        Args:
            modules: A module, or (nested) iterables of modules; a `ModuleDict` counts as its modules.

        Example:
            >>> net = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ReLU()))
            >>> [type(module).__name__ for module in BaseFinetuning.flatten_modules(net)]
            ['Linear', 'ReLU']
        """
        if isinstance(modules, nn.ModuleDict):
            modules = list(modules.values())
        if not isinstance(modules, nn.Module):
            found = [leaf for each in modules for leaf in BaseFinetuning.flatten_modules(each)]
        else:
            found = [
                module
                for module in modules.modules()
                if not any(True for _ in module.children())
                or any(True for _ in module.parameters(recurse=False))
            ]
        return list(dict.fromkeys(found))

    @staticmethod
    def filter_params(
        modules: Modules, train_bn: bool = True, requires_grad: bool = True
    ) -> Iterator[nn.Parameter]:
        """Give the parameters whose `requires_grad` is `requires_grad`, none twice; batch norms' only with `train_bn`."""
        seen: set[nn.Parameter] = set()
        for module in BaseFinetuning.flatten_modules(modules):
            if freezing.is_batch_norm(module) and not train_bn:
                continue
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad == requires_grad and parameter not in seen:
                    seen.add(parameter)
                    yield parameter

    @staticmethod
    def make_trainable(modules: Modules) -> None:
        """Thaw: every parameter trains, and every module is in training mode (pinned ones excepted)."""
        for module in BaseFinetuning.flatten_modules(modules):
            if freezing.is_batch_norm(module):
                # The field's scripts read this flag; statistics are kept by evaluation mode.
                module.track_running_stats = True  # type: ignore[assignment]
                setattr(module, _TRAINS_ALONE, False)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = True
        for root in _roots(modules):
            freezing.establish_modes(root)

    @staticmethod
    def freeze_module(module: nn.Module) -> None:
        """Freeze the parameters that `module` owns itself, and put it into evaluation mode."""
        if freezing.is_batch_norm(module):
            freezing.stop_tracking(module)
            setattr(module, _TRAINS_ALONE, False)
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = False
        module.training = False

    @staticmethod
    def freeze(modules: Modules, train_bn: bool = True) -> None:
        """Freeze modules: no gradient, evaluation mode.

        Args:
            modules: What to freeze.
            train_bn: `True` makes batch norms trainable: they train while the rest is frozen. `False` freezes them too.
        """
        for module in BaseFinetuning.flatten_modules(modules):
            if freezing.is_batch_norm(module) and train_bn:
                BaseFinetuning.make_trainable(module)
                setattr(module, _TRAINS_ALONE, True)
            else:
                BaseFinetuning.freeze_module(module)
        for root in _roots(modules):
            freezing.establish_modes(root)

    @staticmethod
    def filter_on_optimizer(optimizer: Optimizer, params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Give the parameters that no group of `optimizer` holds yet; warn, once, of those that one does."""
        # By identity: two parameters with equal values are two parameters.
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        params = list(params)
        fresh = [parameter for parameter in params if parameter not in held]
        if len(fresh) < len(params):
            warnings.warn(
                "The provided params to be frozen already exist within another group of this optimizer. "
                f"Those {len(params) - len(fresh)} parameters are skipped. Did you init your optimizer in "
                "`configure_optimizers` with all parameters? Give it only those that train: "
                "filter(lambda p: p.requires_grad, self.parameters()).",
                stacklevel=2,
            )
        return fresh

    @staticmethod
    def unfreeze_and_add_param_group(
        modules: Modules,
        optimizer: Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Thaw modules, and add one group with their parameters to `optimizer`.

        Args:
            modules: What to thaw.
            optimizer: The optimizer that will train them.
            lr: The group's rate; `None` takes the first group's, divided by `initial_denom_lr`.
            initial_denom_lr: See `lr`.
            train_bn: Whether batch norms thaw with the rest, and are in the group; with `False` they stay frozen.
        """
        BaseFinetuning.make_trainable(modules)
        if not train_bn:
            norms = [each for each in BaseFinetuning.flatten_modules(modules) if freezing.is_batch_norm(each)]
            BaseFinetuning.freeze(norms, train_bn=False)
        rate = _rate_of_first_group(optimizer) / initial_denom_lr if lr is None else float(lr)
        thawed = BaseFinetuning.filter_params(modules, train_bn=train_bn, requires_grad=True)
        params = BaseFinetuning.filter_on_optimizer(optimizer, thawed)
        if params:
            optimizer.add_param_group({"params": params, "lr": rate})

    # ---- the run

    def on_model_built(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze."""
        self._restarting = False
        if trainer.global_step == 0:
            self._metadata = {}
        self.freeze_before_training(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put batch norms that train alone into the optimizer; on a resume, put every group back."""
        resumed = self._restarting
        if resumed:
            for index, optimizer in enumerate(trainer.optimizers):
                if index in self._internal_optimizer_metadata:
                    regroup(
                        optimizer,
                        [group["params"] for group in self._internal_optimizer_metadata[index]],
                        pl_module,
                    )
            self._restarting = False
        alone = _parameters_that_train_alone(pl_module)
        held = {
            p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]
        }
        missing = [parameter for parameter in alone if parameter not in held]
        if missing and trainer.optimizers:
            optimizer = trainer.optimizers[0]
            optimizer.add_param_group({"params": missing, "lr": self._rate_of_batch_norms(optimizer)})
        self._cost_is_due = not self._cost_is_said and not resumed and trainer.global_step == 0
        for index, optimizer in enumerate(trainer.optimizers):
            self._store(pl_module, index, optimizer)

    def _rate_of_batch_norms(self, optimizer: Optimizer) -> float:
        return _rate_of_first_group(optimizer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call `finetune_function` for each optimizer, and keep what it did."""
        takes_index = _num_positional(self.finetune_function) >= 4
        for index, optimizer in enumerate(trainer.optimizers):
            before = [float(group["lr"]) for group in optimizer.param_groups]
            if takes_index:
                self.finetune_function(pl_module, trainer.current_epoch, optimizer, index)  # type: ignore[call-arg]
            else:
                self.finetune_function(pl_module, trainer.current_epoch, optimizer)
            self._store(pl_module, index, optimizer)
            changed = [
                place
                for place, rate in enumerate(before)
                if float(optimizer.param_groups[place]["lr"]) != rate
            ]
            for config in trainer.lr_scheduler_configs:
                if config.scheduler.optimizer is optimizer:
                    for place in changed:
                        # Schedulers that compute a rate from its base would undo at the next step what was set here.
                        rebase(config.scheduler, place, previous=before[place])

    def _store(self, pl_module: LightningModule, index: int, optimizer: Optimizer) -> None:
        known = self._internal_optimizer_metadata.setdefault(index, [])
        names = group_names(optimizer, pl_module)
        if [group["params"] for group in known] == names:
            return
        for place, (group, params) in enumerate(zip(optimizer.param_groups, names, strict=True)):
            plain = {key: value for key, value in group.items() if key != "params"}
            if place >= len(known):
                known.append({**plain, "params": params})
            elif known[place]["params"] != params:
                known[place] = {**plain, "params": params}
        del known[len(names) :]

    # ---- what train_bn=True costs, measured on the first batch and said once

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin to count, on the first batch of a run in which batch norms train alone."""
        if self._cost_is_due:
            self._cost_is_due = False
            if _parameters_that_train_alone(pl_module):
                from headstart.flops import flop_counter

                self._counter = flop_counter()
                self._counter.__enter__()  # type: ignore[no-untyped-call]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """The forward pass is over."""
        if self._counter is not None:
            self._forward_flops = self._counter.get_total_flops()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The backward pass is over: say what it cost."""
        if self._counter is None:
            return
        self._stop_counting()
        if self._forward_flops:
            total, forward = self._total_flops, self._forward_flops
            trainer.say(
                "train_bn=True: batch norms train in an otherwise frozen network, so gradients run through all of it: "
                f"a step costs {total / forward:.1f} times the FLOPs of its forward pass, which is nearly all that it costs "
                f"with train_bn=False ({_readable(total)} and {_readable(forward)}, measured on the first batch)."
            )
        self._cost_is_said = True

    _total_flops: int = 0

    def _stop_counting(self) -> None:
        counter, self._counter = self._counter, None
        if counter is not None:
            self._total_flops = counter.get_total_flops()
            counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop counting, where every batch was skipped."""
        self._stop_counting()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop counting."""
        self._stop_counting()


class BackboneFinetuning(BaseFinetuning):
    """Train the head on a frozen `backbone`, and thaw the backbone at an epoch, at a small rate that then grows.

    The module has an attribute `backbone`. The backbone's group starts at `backbone_initial_lr`, or at the first group's
    rate times `backbone_initial_ratio_lr`; in each later epoch its rate is `lambda_func(epoch + 1)` times the one before,
    and, while `should_align`, never above the first group's.

    Args:
        unfreeze_backbone_at_epoch: When the backbone begins to train, from 0.
        lambda_func: Gives the factor for an epoch; doubles by default.
        backbone_initial_ratio_lr: The backbone's first rate, as a share of the first group's.
        backbone_initial_lr: The backbone's first rate; it wins over the share.
        should_align: Whether the backbone's rate stops growing at the first group's.
        initial_denom_lr: Accepted for programs that pass it on; the rate is always given.
        train_bn: Whether batch norms train while the rest is frozen.
        verbose: Print both rates at each epoch.
        rounding: Digits of that print.

    Example:
        >>> callback = BackboneFinetuning(unfreeze_backbone_at_epoch=5, train_bn=False)
        >>> callback.previous_backbone_lr is None
        True
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = _double,
        backbone_initial_ratio_lr: float = 10e-2,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
    ) -> None:
        super().__init__()
        self.unfreeze_backbone_at_epoch = unfreeze_backbone_at_epoch
        self.lambda_func = lambda_func
        self.backbone_initial_ratio_lr = backbone_initial_ratio_lr
        self.backbone_initial_lr = backbone_initial_lr
        self.should_align = should_align
        self.initial_denom_lr = initial_denom_lr
        self.train_bn = train_bn
        self.verbose = verbose
        self.rounding = rounding
        self.previous_backbone_lr: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The groups, and the backbone's rate."""
        return {**super().state_dict(), "previous_backbone_lr": self.previous_backbone_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take both back."""
        self.previous_backbone_lr = state_dict["previous_backbone_lr"]
        super().load_state_dict(state_dict)

    def on_model_built(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a backbone, and that it will ever be thawed; freeze it.

        Raises:
            MisconfigurationError: If the module has no attribute `backbone` that is a module.
        """
        if not isinstance(getattr(pl_module, "backbone", None), nn.Module):
            parts = [name for name, _ in pl_module.named_children()]
            raise MisconfigurationError(
                f"BackboneFinetuning needs {type(pl_module).__name__} to have a module in the attribute 'backbone'."
                f"{did_you_mean('backbone', parts)} It has: {', '.join(parts) or 'none'}. Name it so, or subclass "
                "BaseFinetuning."
            )
        last = trainer.max_epochs
        if last != -1 and self.unfreeze_backbone_at_epoch >= last:
            trainer.warn(
                f"The backbone is to be thawed at epoch {self.unfreeze_backbone_at_epoch}, and training ends after "
                f"{last} epochs (numbered from 0): it stays frozen to the end. Lower unfreeze_backbone_at_epoch, or raise "
                "max_epochs."
            )
        if trainer.global_step == 0:
            self.previous_backbone_lr = None
        super().on_model_built(trainer, pl_module)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze the backbone."""
        self.freeze(pl_module.backbone, train_bn=self.train_bn)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Thaw the backbone at its epoch, and let its rate grow in the later ones."""
        if epoch < self.unfreeze_backbone_at_epoch:
            return
        module = cast("nn.Module", pl_module.backbone)
        backbone = set(module.parameters())
        if _another_holds(backbone, optimizer, pl_module):
            return  # with several optimizers, the first that is asked trains the backbone
        head_rate = float(optimizer.param_groups[0]["lr"])
        if self.previous_backbone_lr is None:
            rate = self._initial_rate(optimizer)
        elif epoch == self.unfreeze_backbone_at_epoch:
            rate = self.previous_backbone_lr
        else:
            rate = self.lambda_func(epoch + 1) * self.previous_backbone_lr
            if self.should_align:
                rate = min(rate, head_rate)
        _move_to_own_group(backbone, optimizer)
        self._thaw(module, optimizer, rate)
        for group in optimizer.param_groups:
            if group["params"] and backbone.issuperset(group["params"]):
                group["lr"] = rate
        self.previous_backbone_lr = rate
        if self.verbose:
            digits = self.rounding
            print(f"Current lr: {round(head_rate, digits)}, backbone lr: {round(rate, digits)}")

    def _thaw(self, backbone: nn.Module, optimizer: Optimizer, rate: float) -> None:
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        frozen = [parameter for parameter in backbone.parameters() if not parameter.requires_grad]
        if not frozen and all(parameter in held for parameter in backbone.parameters()):
            return
        self.make_trainable(backbone)
        # Batch norms that trained all along stand in a group of their own already.
        fresh = [parameter for parameter in self.filter_params(backbone) if parameter not in held]
        if fresh:
            optimizer.add_param_group({"params": fresh, "lr": rate})

    def _initial_rate(self, optimizer: Optimizer) -> float:
        if self.backbone_initial_lr is not None:
            return self.backbone_initial_lr
        return _rate_of_first_group(optimizer) * self.backbone_initial_ratio_lr

    def _rate_of_batch_norms(self, optimizer: Optimizer) -> float:
        return self._initial_rate(optimizer)


def _parameters_that_train_alone(pl_module: LightningModule) -> list[nn.Parameter]:
    """The parameters of batch norms that train in an otherwise frozen network."""
    norms = [module for module in pl_module.modules() if getattr(module, _TRAINS_ALONE, False)]
    return [parameter for norm in norms for parameter in norm.parameters(recurse=False)]


def _rate_of_first_group(optimizer: Optimizer) -> float:
    """The first group's rate; where a warm-up stands at zero, the rate that it warms up to.

    A share of zero would be zero for ever.
    """
    first = optimizer.param_groups[0]
    return float(first["lr"]) or float(first.get("initial_lr", 0.0))


def _roots(modules: Modules) -> list[nn.Module]:
    if isinstance(modules, nn.Module):
        return [modules]
    return [root for each in modules for root in _roots(each)]


def _num_positional(function: Callable[..., Any]) -> int:
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters):
        return 4
    return sum(each.kind in {each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD} for each in parameters)


def _another_holds(parameters: set[nn.Parameter], optimizer: Optimizer, pl_module: LightningModule) -> bool:
    """Whether another optimizer of the run holds some of `parameters` and this one holds none."""
    trainer = pl_module.__dict__.get("_trainer")
    if trainer is None:
        return False
    mine = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    others = [each for each in trainer.optimizers if each is not optimizer]
    theirs = {parameter for each in others for group in each.param_groups for parameter in group["params"]}
    return bool(parameters & theirs) and not parameters & mine


def _move_to_own_group(parameters: set[nn.Parameter], optimizer: Optimizer) -> None:
    """Take `parameters` out of groups that hold others too: the head's rate is not theirs, nor theirs the head's."""
    for group in list(optimizer.param_groups):
        mine = [parameter for parameter in group["params"] if parameter in parameters]
        if mine and len(mine) < len(group["params"]):
            group["params"] = [parameter for parameter in group["params"] if parameter not in parameters]
            optimizer.add_param_group({**group, "params": mine})
            # Batch norms that train alone may stand there.
            if not all(parameter.requires_grad for parameter in mine):
                warnings.warn(
                    f"{len(mine)} parameters of the backbone stood in one group with others; they have a group of their "
                    "own now, at the backbone's rate. To choose it yourself, give the optimizer only what trains: "
                    "filter(lambda p: p.requires_grad, self.parameters()).",
                    stacklevel=2,
                )


def _readable(flops: int) -> str:
    for size, unit in ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP")):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops} FLOP"
