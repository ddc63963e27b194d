"""`Trainer`: gathers the arguments, sets a run up, and calls the loop (`headstart.loop`)."""

from __future__ import annotations

import inspect
import math
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from headstart import freezing, loaders, loop, resume, settings
from headstart.allocator import memory_kept
from headstart.boundary import Boundary
from headstart.callback import Callback
from headstart.checkpoint import read_checkpoint, write_checkpoint, write_weights
from headstart.datamodule import DataHooks, LightningDataModule
from headstart.deferred import Reuse
from headstart.errors import HeadstartError, MisconfigurationError
from headstart.hooks import Hooks, check_names, is_overridden
from headstart.logbook import Logbook
from headstart.metrics import metrics_kept
from headstart.module import LightningModule
from headstart.nonfinite import NonFiniteGuard, OnNaN
from headstart.optim import (
    ManagedOptimizer,
    SchedulerConfig,
    needs_closure,
    read_configuration,
    sync_scheduler,
)
from headstart.out_of_memory import BatchSplitter
from headstart.plan import Plan
from headstart.precision import Precision
from headstart.seed import isolated_random_state
from headstart.signals import Signals, SIGTERMException
from headstart.strategy import Share, Strategy
from headstart.whereabouts import advice_for, describe_failure

Limit = int | float | None
RunStage = Literal["fit", "validate", "test", "predict"]


class Trainer:
    """Trains, validates, tests and predicts with a `LightningModule`.

    Args:
        accelerator: `"auto"` (a GPU where there is one), `"cpu"`, `"gpu"`, `"cuda"` or `"mps"`.
        strategy: `"auto"` (one process, or `"ddp"` where torchrun started several or `devices` is above 1),
            `"single_device"`, `"ddp"`, `"ddp_find_unused_parameters_true"`, `"fsdp"`, or a `Strategy`.
        devices: How many on a machine, a process each; -1 for all GPUs, or a list with the number of one. Where torchrun
            has not started the processes, the first run starts the program anew in so many.
        num_nodes: How many machines; more than one are started by torchrun.
        precision: The number format, see `headstart.precision.Precision`.
        logger: `True` for the default (TensorBoard where it is installed, else CSV), `False` for none, a logger, or
            several.
        callbacks: One, or a list.
        fast_dev_run: Run one batch (or this many) of everything, without logging or saving, to see whether it runs.
        max_epochs: Stop after this many; `-1` for no bound; `None` is 1000 where nothing else bounds the run.
        min_epochs: Do not stop early before this many.
        max_steps: Stop after this many optimizer steps; `-1` for no bound.
        min_steps: Do not stop early before this many.
        max_time: Stop after this long: `"DD:HH:MM:SS"`, a `timedelta`, or its keywords as a dict.
        limit_train_batches: Take this many (int) or this fraction (float) of the batches; likewise `limit_val_batches`,
            `limit_test_batches`, `limit_predict_batches`.
        overfit_batches: Train and validate on this many (or this fraction) of the batches, the same in every epoch; those of a
            `batch_sampler` of your own are as it gives them.
        val_check_interval: Validate every so many batches (int) or this fraction of an epoch (float).
        check_val_every_n_epoch: Validate every so many epochs; `None` counts `val_check_interval` across epochs.
        num_sanity_val_steps: Validation batches to try before training; `-1` for all.
        log_every_n_steps: Give step values to the loggers every so many steps.
        enable_checkpointing: Add a `ModelCheckpoint` where none is given.
        enable_progress_bar: Show progress.
        enable_model_summary: Print a table of the module before training.
        accumulate_grad_batches: Batches whose gradients make one step.
        gradient_clip_val: The largest gradient norm (or value); `None` and 0 clip nothing.
        gradient_clip_algorithm: `"norm"` or `"value"`.
        deterministic: Use deterministic algorithms only; `"warn"` warns where there is none.
        benchmark: Let cuDNN choose its algorithms by timing them.
        inference_mode: Use `torch.inference_mode` in validate, test and predict; else `torch.no_grad`.
        use_distributed_sampler: With several processes, give each its share of the samples.
        detect_anomaly: Find the operation that made a NaN gradient; slow.
        on_nan: What to do about a loss or gradient that is NaN or infinite: `"warn"` says it, up to `log_every_n_steps`
            later; `"raise"` stops before the weights see it, and names the samples; `"skip"` leaves the batch out, and
            counts it. The last two wait for the device in every step.
        on_out_of_memory: `"split"` computes a batch that does not fit in parts, for losses that are means over samples;
            `"raise"` says what to do.
        reload_dataloaders_every_n_epochs: Ask for the loaders anew every so many epochs; 0 for once.
        reuse_frozen: Compute the output of what is frozen once for each sample: `"auto"`; `"exact"`, in the loader's own
            batches only; a `headstart.deferred.Reuse`, for its settings; `False` computes it in every epoch.
        plan: What trains when: a `headstart.plan.Plan`, the name of one (`"lp_ft"`), a YAML file, or plain values. Where
            `max_epochs` is not given, the plan says when the run ends.
        default_root_dir: Where logs and checkpoints go when nothing else is said; the working directory.
        **unknown: Anything else is an error, with the name that was probably meant.

    Raises:
        UnknownArgumentError: If an argument has no such name.
        MisconfigurationError: If arguments make no sense, alone or together.

    Example:
        >>> trainer = Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
        >>> trainer.current_epoch, trainer.global_step
        (0, 0)
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        strategy: str | Strategy = "auto",
        devices: int | str | list[int] = "auto",
        num_nodes: int = 1,
        precision: str | int | None = None,
        logger: Any = None,
        callbacks: Callback | list[Callback] | None = None,
        fast_dev_run: int | bool = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: str | timedelta | dict[str, int] | None = None,
        limit_train_batches: Limit = None,
        limit_val_batches: Limit = None,
        limit_test_batches: Limit = None,
        limit_predict_batches: Limit = None,
        overfit_batches: float = 0.0,
        val_check_interval: float | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
        deterministic: bool | Literal["warn"] | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        detect_anomaly: bool = False,
        on_nan: OnNaN = "warn",
        on_out_of_memory: Literal["raise", "split"] = "raise",
        reload_dataloaders_every_n_epochs: int = 0,
        reuse_frozen: Literal["auto", "exact", False] | Reuse = "auto",
        plan: Plan | str | Mapping[str, Any] | None = None,
        default_root_dir: str | Path | None = None,
        **unknown: Any,
    ) -> None:
        known = [name for name in inspect.signature(Trainer).parameters if name != "unknown"]
        settings.refuse_unknown(unknown, known)
        settings.check_settings(locals())
        self.plan = settings.choose_plan(plan)
        if self.plan is not None and max_epochs is None:
            max_epochs = self.plan.num_epochs or -1
        is_bounded = max_epochs is not None or max_steps != -1 or max_time is not None or bool(fast_dev_run)
        self._epochs_are_a_guess = not is_bounded
        self.max_epochs: int = (-1 if is_bounded else 1000) if max_epochs is None else max_epochs
        self.min_epochs = min_epochs
        self.max_steps = max_steps
        self.min_steps = min_steps
        self.limit_train_batches = limit_train_batches
        self.limit_val_batches = limit_val_batches
        self.limit_test_batches = limit_test_batches
        self.limit_predict_batches = limit_predict_batches
        self.overfit_batches = overfit_batches
        self.val_check_interval: int | float = 1.0 if val_check_interval is None else val_check_interval
        self.check_val_every_n_epoch = check_val_every_n_epoch
        self.num_sanity_val_steps: float = 2 if num_sanity_val_steps is None else num_sanity_val_steps
        if self.num_sanity_val_steps == -1:
            self.num_sanity_val_steps = math.inf
        self.log_every_n_steps = 50 if log_every_n_steps is None else log_every_n_steps
        self.accumulate_grad_batches = accumulate_grad_batches
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.inference_mode = inference_mode
        self.use_distributed_sampler = use_distributed_sampler
        self.detect_anomaly = detect_anomaly
        self.reload_dataloaders_every_n_epochs = reload_dataloaders_every_n_epochs
        self.reuse = settings.choose_reuse(reuse_frozen, say=self.say)
        self.default_root_dir = str(Path.cwd() if default_root_dir is None else default_root_dir)
        self.fast_dev_run = fast_dev_run
        if fast_dev_run:
            self._make_it_a_trial(int(fast_dev_run))
        if deterministic is not None:
            torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
        if benchmark is not None:
            torch.backends.cudnn.benchmark = benchmark

        self.strategy: Strategy = settings.choose_strategy(
            strategy,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            shares_loaders=use_distributed_sampler,
        )
        self.num_nodes = num_nodes
        if not self.strategy.computes_alone:
            self.reuse = None  # what a process lacks it computes by itself
        self.precision_plugin = Precision(precision, device=self.strategy.device)
        self.loggers: list[Any] = settings.gather_loggers(
            False if fast_dev_run else logger, default_root_dir=self.default_root_dir
        )
        self.callbacks: list[Callback] = settings.gather_callbacks(
            callbacks,
            plan=self.plan,
            is_trial=bool(fast_dev_run),
            checkpointing=enable_checkpointing is not False,
            progress_bar=enable_progress_bar is not False,
            model_summary=enable_model_summary is not False,
            max_time=max_time,
        )

        # The state of the run.
        self.progress = loop.Progress()
        self._are_averaged = False  # the gradients of manual optimization, over the processes
        self.state = SimpleNamespace(fn=None, status="initializing", stage=None, finished=False)
        self.stage: str | None = None  # "train", "validate", "test" or "predict": which part is running
        self.should_stop = False
        self.sanity_checking = False
        self.interrupted = False
        self.ckpt_path: str | None = None
        self.datamodule: LightningDataModule | None = None
        self._module: LightningModule | None = None
        self._fitted: LightningModule | None = None  # the module that `progress` is about
        self.hooks: Hooks = None  # type: ignore[assignment] # made for each run by _attach
        self.optimizers: list[Optimizer] = []
        self.lr_scheduler_configs: list[SchedulerConfig] = []
        self._trainable: list[str] | None = None
        self._memory: dict[str, Any] | None = None  # what a run to be continued left behind

        # Loaders, as the current run sees them.
        self._sources: dict[str, Any] = {}
        self.train_dataloader: Any = None
        self.train_batches: loaders.EpochOfBatches = loaders.EpochOfBatches([], count=0)
        self.num_training_batches: int | float = math.inf
        self.validation_loaders: list[Any] = []
        self.num_val_batches: list[int | None] = []
        self.num_test_batches: list[int | None] = []
        self.num_predict_batches: list[int | None] = []
        self.num_sanity_val_batches: list[Any] = []
        self.current_batch: Any = None
        self.share: Share | None = (
            None  # of the training batch that runs; `None` where all processes have alike
        )
        self._has_others_stop = False
        self._loaded_in_epoch = 0
        # The random state, for a validation that is begun anew.
        self.state_before_validation: dict[str, Any] = {}

        # Of what runs, or ran last. An evaluation has one of its own: a fit goes on with what its own holds.
        self.logbook = self.fit_logbook = Logbook(self)

        # What becomes of a run that is ended from outside, or fails.
        self.signals = Signals()
        self.boundary = Boundary(self)
        self.nan_guard = NonFiniteGuard(self, on_nan)
        self.batch_splitter = BatchSplitter(self) if on_out_of_memory == "split" else None

    # ---- the four runs

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train `model`.

        A second `fit` of the same module goes on where the first stopped: raise `trainer.max_epochs` first.

        Args:
            model: The module.
            train_dataloaders: The training loader; `None` asks the data module or the module.
            val_dataloaders: The validation loader, or a list of them; likewise.
            datamodule: The data.
            ckpt_path: A checkpoint to go on from: a file, `"best"`, `"last"` (which begins where there is none yet),
                or `None` to begin.
            weights_only: Accepted; files are always read without running anything in them.
        """
        if isinstance(train_dataloaders, LightningDataModule):
            datamodule, train_dataloaders = train_dataloaders, None
        sources = {"train": train_dataloaders, "val": val_dataloaders}
        with self.signals.listening(), self._run("fit", model, datamodule, **sources):
            self._set_up_fit(ckpt_path)
            loop.fit(self)
            self.hooks("on_fit_end")

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Run the validation loop alone, and give what was logged: a dict for each loader.

        Random state is as it was afterwards, and so is what trains: looking does not change a run.
        """
        return self._evaluate("validate", "validation", model, dataloaders, ckpt_path, verbose, datamodule)

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Run the test loop, and give what was logged: a dict for each loader."""
        return self._evaluate("test", "test", model, dataloaders, ckpt_path, verbose, datamodule)

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Give what `predict_step` gives for each batch; a list for each loader where there are several."""
        if isinstance(dataloaders, LightningDataModule):
            datamodule, dataloaders = dataloaders, None
        with (
            self.signals.listening(),
            self._run("predict", self._model_or_last(model), datamodule, predict=dataloaders),
        ):
            self._set_up_evaluation(ckpt_path, has_model=model is not None)
            self.stage = "predict"
            all_loaders, self.num_predict_batches = self._evaluation_loaders(
                "predict", self.limit_predict_batches
            )
            return loop.predict(
                self, all_loaders, self.num_predict_batches, keep=return_predictions is not False
            )

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool = False, storage_options: Any = None
    ) -> None:
        """Write a checkpoint, whole or not at all.

        Args:
            filepath: Where to; a name that ends in `.safetensors` gets the weights alone, whole, in that format.
            weights_only: Leave out what only a resume needs.
            storage_options: Accepted.

        Raises:
            MisconfigurationError: If no module was ever attached.
        """
        if self._module is None:
            raise MisconfigurationError(
                "save_checkpoint: there is nothing to save before fit, validate, test or predict."
            )
        are_weights = str(filepath).endswith(".safetensors")
        checkpoint = resume.dump(self, weights_only=weights_only or are_weights)
        self.strategy.write(checkpoint, filepath, write_weights if are_weights else write_checkpoint)

    # ---- what a run is

    @contextmanager
    def _run(
        self, fn: RunStage, model: LightningModule, datamodule: LightningDataModule | None, **sources: Any
    ) -> Iterator[None]:
        """Attach everything, and let go of it again, whatever happens in between."""
        self.strategy.connect()
        self._attach(fn, model, datamodule, sources)
        self.state.fn, self.state.status, self.state.finished = fn, "running", False
        try:
            with (
                torch.autograd.set_detect_anomaly(self.detect_anomaly)
                if self.detect_anomaly
                else nullcontext(),
                self.reuse.active() if self.reuse is not None else nullcontext(),
                memory_kept() if self.strategy.device.type == "cpu" else nullcontext(),
            ):
                yield
            self.state.status, self.state.finished = "finished", True
        except BaseException as exception:
            self.interrupted = isinstance(exception, KeyboardInterrupt | SIGTERMException)
            self.state.status = "interrupted"
            # A signal says enough by itself.
            if self.boundary.is_running and isinstance(exception, Exception):
                exception.add_note(f"{describe_failure(self)} {advice_for(self, exception)}".rstrip())
            self.boundary.put_back()
            self.hooks("on_exception", exception)
            if self.datamodule is not None:
                self.datamodule.on_exception(exception)
            raise
        finally:
            status = {"finished": "success", "interrupted": "interrupted"}.get(self.state.status, "failed")
            self.sanity_checking = False
            self.stage = None
            self.boundary.end()
            self.logbook.end_evaluation()  # one that was cut short would take what the next fit logs
            self._each_data_hook("teardown", fn)
            for each in self.loggers:
                each.finalize(status if self.interrupted or status == "success" else "failed")
            self.strategy.teardown()
            self.hooks.current = ""

    def _attach(
        self,
        fn: RunStage,
        model: LightningModule,
        datamodule: LightningDataModule | None,
        sources: dict[str, Any],
    ) -> None:
        if not isinstance(model, LightningModule):
            raise TypeError(f"{fn} received {type(model).__name__} as the model; expected a LightningModule.")
        self._module, self.datamodule = model, datamodule
        model.trainer = self
        if datamodule is not None:
            datamodule.trainer = self
        self._sources = sources
        self._check_definitions(fn)
        self.hooks = Hooks(self, model)
        self.validation_loaders = []
        if fn == "fit":
            self.train_dataloader = None
        self.ckpt_path = None
        self.interrupted = self.should_stop = self._has_others_stop = False
        self._add_configured_callbacks()
        self.hooks.current = "prepare_data"
        for owner in (datamodule, model):
            if owner is not None and is_overridden("prepare_data", owner, DataHooks) and self.local_rank == 0:
                owner.prepare_data()
        self.strategy.barrier("prepare_data")
        # The data module's, where it overrides one, else the module's.
        self._transfer_hooks = [
            getattr(
                datamodule
                if datamodule is not None and is_overridden(each, datamodule, DataHooks)
                else model,
                each,
            )
            for each in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
        ]
        for callback in self.callbacks:
            callback.log, callback.log_dict = model.log, model.log_dict  # type: ignore[attr-defined]
        self._each_data_hook("setup", fn)
        self.hooks.current = "configure_model"
        model.configure_model()
        self.precision_plugin.convert(model)
        self.strategy.setup(model)
        self.strategy.agree(model)
        if self.reuse is not None:
            self.strategy.share_frozen_work(self.reuse)
            self.reuse.watch(model)

    def _each_data_hook(self, name: str, stage: str) -> None:
        """`setup` and `teardown`: the data module's, the callbacks', the module's."""
        if self.datamodule is not None:
            getattr(self.datamodule, name)(stage)
        self.hooks.current = name
        for callback in self.callbacks:
            getattr(callback, name)(self, self.lightning_module, stage)
        getattr(self.lightning_module, name)(stage)

    def _check_definitions(self, fn: RunStage) -> None:
        needed = {
            "fit": ["training_step", "configure_optimizers"],
            "test": ["test_step"],
            "validate": ["validation_step"],
        }
        check_names(self.lightning_module, LightningModule, needed=needed.get(fn, []))
        if self.datamodule is not None:
            check_names(self.datamodule, LightningDataModule, needed=[])
        for callback in self.callbacks:
            check_names(callback, Callback, needed=[])

    def _add_configured_callbacks(self) -> None:
        self.hooks.current = "configure_callbacks"
        configured = self.lightning_module.configure_callbacks()
        configured = [configured] if isinstance(configured, Callback) else list(configured or [])
        if configured:
            kinds = {type(each) for each in configured}
            self.callbacks = settings.in_order(
                [each for each in self.callbacks if type(each) not in kinds] + configured
            )

    # ---- setting up fit

    def _set_up_fit(self, ckpt_path: str | Path | None) -> None:
        """From the built module to the first epoch: the order is the contract's, see docs/design.md."""
        module = self.lightning_module
        self.logbook = self.fit_logbook
        continuing = ckpt_path is None and self._fitted is module and self.progress.global_step > 0
        if (
            ckpt_path == "last"
            and self.checkpoint_callback
            and not resume.last_checkpoint(self.checkpoint_callback)
        ):
            # So that a job that may be killed and started again is one and the same command.
            self.warn("ckpt_path='last', and there is no last checkpoint yet: training begins.")
            ckpt_path = None
        checkpoint = self._read(ckpt_path) if ckpt_path is not None else None
        if continuing:
            state = resume.own_state(self, resume.training_state(self), source="The last fit")
            self._memory = {**state, **resume.optimizer_state(self)}
        else:
            self._memory = None
        if checkpoint is not None:
            self._memory = resume.own_state(self, checkpoint.get("loops") or {}, source=str(self.ckpt_path))
        if not continuing:
            self.progress = loop.Progress()
            self.logbook.forget()
        self.nan_guard.begin((self._memory or {}).get("left_out", ()))
        self._fitted = module
        self.hooks("on_model_built")
        if checkpoint is not None:
            resume.restore_weights(self, checkpoint, source=str(self.ckpt_path))
            resume.restore_callbacks(self, checkpoint)
        self.strategy.agree(module)  # also on what was added just now
        self.strategy.wrap(module)
        self._configure_optimizers()
        self._trainable = freezing.trainable_names(module)
        self.training_step, self.training_step_arity = self.step_function("training_step")
        self.hooks("on_fit_start")
        if self._memory is not None:
            resume.restore_training(
                self, self._memory, checkpoint or self._memory, source=self.ckpt_path or "The last fit"
            )
            for each in self.loggers if checkpoint is not None and self.is_global_zero else []:
                # What was logged after the checkpoint is logged again.
                each.resume_from(self.progress.logged_steps)
        self.logbook.log_hyper_parameters()
        self.observe_trainable_set()
        if self._epochs_are_a_guess:
            self.warn(f"max_epochs was not set: it is {self.max_epochs}. Set max_epochs=-1 for no bound.")
        for line in freezing_report(module):
            self.say(line)
        if self.num_sanity_val_steps > 0 and self._has_validation():
            with isolated_random_state():
                loop.sanity_check(self)
        self.stage = "train"
        saver = next((each for each in self.checkpoint_callbacks if each.saves_on_exception(self)), None)
        undoes_steps = self.nan_guard.setting != "warn" or self.batch_splitter is not None
        self.boundary.is_kept = saver is not None or undoes_steps
        self.signals.consequence = (
            "Nothing is saved: there is no ModelCheckpoint that does it. "
            if saver is None
            else f"The state goes to {saver.dirpath}. "
        )

    def _configure_optimizers(self) -> None:
        self.hooks.current = "configure_optimizers"
        configured = self.lightning_module.configure_optimizers()
        if configured is None:
            self.warn(
                "configure_optimizers returned None: this fit runs without an optimizer, and nothing is learned."
            )
        automatic = self.lightning_module.automatic_optimization
        self.optimizers, self.lr_scheduler_configs = read_configuration(
            configured, module_name=type(self.lightning_module).__name__, automatic=automatic
        )
        if automatic and len(self.optimizers) > 1:
            raise MisconfigurationError(
                f"{len(self.optimizers)} optimizers need manual optimization: set self.automatic_optimization = False in "
                "__init__, and step them in training_step with self.optimizers()."
            )
        self.optimizer_needs_closure = any(map(needs_closure, self.optimizers))
        settings.check_faults(
            on_nan=self.nan_guard.setting,
            splits=self.batch_splitter is not None,
            automatic=automatic,
            closure=self.optimizer_needs_closure,
            alone=self.world_size == 1,
        )
        self.manual_optimizers = [
            ManagedOptimizer(each, self.manual_step, toggle=_toggling(self.lightning_module))
            for each in self.optimizers
        ]

    def step_function(
        self, name: str, module: LightningModule | None = None
    ) -> tuple[Callable[..., Any], int]:
        """Give a step of the module, and how many of (batch, batch_idx, dataloader_idx) it takes."""
        module = module or self.lightning_module
        parameters = inspect.signature(getattr(module, name)).parameters.values()
        if any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters):
            arity = 3
        else:
            kinds = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
            arity = sum(each.kind in kinds for each in parameters)
        return self.strategy.step_function(module, name), arity

    def _read(self, ckpt_path: str | Path) -> dict[str, Any]:
        self.ckpt_path = resume.resolve(self, ckpt_path)
        if hasattr(self.strategy, "new_part") and Path(self.ckpt_path).is_dir():
            from headstart.strategy.parts import read_parts

            return read_parts(self.ckpt_path, new=self.strategy.new_part)
        return read_checkpoint(self.ckpt_path, map_location=self.strategy.device)

    def stand_again(self) -> None:
        """On a resume: the loader at the batch, and the random generators in the state, in which the run was cut."""
        memory, self._memory = self._memory, None
        if memory is None or "progress" not in memory:
            return
        progress = self.progress
        if "data" in memory and self.train_dataloader is not None:
            resume.check_data(self, memory["data"])
        if progress.batch and not progress.is_last_batch and progress.stage != "epoch_end":
            self.train_batches.resume(memory["order"], batch=progress.batch)
        # A run that goes on in the same process has its global random state; so has a process that was not there before.
        is_own = self.ckpt_path is not None and self.global_rank < memory.get("num_processes", 1)
        self.train_batches.restore(memory["random_state"], only_loader=not is_own)

    # ---- validate, test, predict

    def _evaluate(
        self,
        fn: RunStage,
        kind: Literal["validation", "test"],
        model: LightningModule | None,
        dataloaders: Any,
        ckpt_path: str | Path | None,
        verbose: bool,
        datamodule: LightningDataModule | None,
    ) -> list[dict[str, float]]:
        if isinstance(dataloaders, LightningDataModule):
            datamodule, dataloaders = dataloaders, None
        source = "val" if fn == "validate" else "test"
        with (
            self.signals.listening(),
            self._run(fn, self._model_or_last(model), datamodule, **{source: dataloaders}),
        ):
            self._set_up_evaluation(ckpt_path, has_model=model is not None)
            self.stage = fn
            limit = self.limit_val_batches if fn == "validate" else self.limit_test_batches
            all_loaders, limits = self._evaluation_loaders(source, limit)
            if fn == "validate":
                self.num_val_batches = limits
            else:
                self.num_test_batches = limits
            self.logbook = Logbook(self)
            with isolated_random_state():
                summary = loop.evaluate(self, kind, all_loaders, limits)
        if verbose and self.is_global_zero:
            _print_summary(fn, summary)
        return summary

    def _set_up_evaluation(self, ckpt_path: str | Path | None, *, has_model: bool) -> None:
        if ckpt_path is None and not has_model and self.checkpoint_callback is not None:
            # As in the field's API: without a model, the best weights of the last fit.
            ckpt_path = "best" if getattr(self.checkpoint_callback, "best_model_path", "") else None
        if ckpt_path is not None:
            resume.restore_weights(self, self._read(ckpt_path), source=str(self.ckpt_path))

    def _model_or_last(self, model: LightningModule | None) -> LightningModule:
        if model is None and self._module is None:
            raise MisconfigurationError("No model was given, and this trainer has none from an earlier run.")
        return model if model is not None else self.lightning_module

    def _evaluation_loaders(self, source: str, limit: Limit) -> tuple[list[Any], list[int | None]]:
        given = self._ask_for_loader(source)
        if given is None:
            name = f"{source}_dataloader"
            raise MisconfigurationError(
                f"There is no data: give dataloaders=..., a datamodule, or define {name!r}."
            )
        found = [self.strategy.prepare_loader(each, shuffle=False) for each in loaders.as_list(given)]
        return found, [loaders.num_batches(each, limit, name=f"limit_{source}_batches") for each in found]

    def _ask_for_loader(self, source: str) -> Any:
        """The loader that was given, or else the data module's, or else the module's."""
        if self._sources.get(source) is not None:
            return self._sources[source]
        name = f"{source}_dataloader"
        for owner in (self.datamodule, self._module):
            if owner is not None and is_overridden(name, owner, DataHooks):
                if self.hooks is not None:
                    self.hooks.current = name
                return getattr(owner, name)()
        return None

    # ---- loaders of a fit

    def load_train_batches(self) -> None:
        """Ask for the training loader, and see how many batches it has."""
        loader = self._ask_for_loader("train")
        if loader is None:
            raise MisconfigurationError(
                "There is no training data: give train_dataloaders=..., a datamodule, or define 'train_dataloader'."
            )
        if (
            isinstance(loader, Mapping | list | tuple)
            and loader
            and all(
                isinstance(each, torch.utils.data.DataLoader)
                for each in (loader.values() if isinstance(loader, Mapping) else loader)
            )
        ):
            raise MisconfigurationError(
                f"train_dataloader gave {len(loader)} loaders; expected one. Join their datasets "
                "(torch.utils.data.ConcatDataset, StackDataset) in one loader."
            )
        limit = self.limit_train_batches
        if self.overfit_batches:
            loader, limit = loaders.without_shuffling(loader), self.overfit_batches
        self.train_dataloader = self.strategy.prepare_loader(loader, shuffle=True)
        count = loaders.num_batches(self.train_dataloader, limit, name="limit_train_batches")
        if count == 0:
            raise MisconfigurationError(
                f"The training loader has no batches to take (length {loaders.length_of(loader)}, limit_train_batches {limit})."
            )
        self.num_training_batches = math.inf if count is None else count
        if loaders.length_of(self.train_dataloader) is None:
            self.num_training_batches = math.inf  # a limit on a stream bounds it, and it may end before
        self.train_batches = loaders.EpochOfBatches(
            self.train_dataloader, count=count, read=iter if self.reuse is None else self.reuse.batches
        )
        self._loaded_in_epoch = self.progress.epoch
        if (
            isinstance(self.val_check_interval, int)
            and self.check_val_every_n_epoch is not None
            and (self.val_check_interval > self.num_training_batches)
        ):
            raise MisconfigurationError(
                f"val_check_interval is {self.val_check_interval} batches, and an epoch has {self.num_training_batches}. "
                "Give at most that, or set check_val_every_n_epoch=None to count across epochs."
            )

    def reload_train_batches_if_due(self) -> None:
        """Ask for the loaders anew, every `reload_dataloaders_every_n_epochs`."""
        every = self.reload_dataloaders_every_n_epochs
        if every and self.progress.epoch != self._loaded_in_epoch and self.progress.epoch % every == 0:
            self.load_train_batches()
            self.validation_loaders = []

    def load_validation_batches(self) -> None:
        """Ask for the validation loaders, where they are not there yet."""
        if not self.validation_loaders:
            limit = self.overfit_batches or self.limit_val_batches
            self.validation_loaders, self.num_val_batches = self._evaluation_loaders("val", limit)

    def _has_validation(self) -> bool:
        """Whether there is a validation step, and a loader for it."""
        if self.limit_val_batches is not None and self.limit_val_batches == 0:
            return False
        defined = any(
            owner is not None and is_overridden("val_dataloader", owner, DataHooks)
            for owner in (self.datamodule, self._module)
        )
        return is_overridden("validation_step", self.lightning_module, LightningModule) and (
            defined or self._sources.get("val") is not None
        )

    def is_validation_due(self) -> bool:
        """Whether validation follows the batch that is just over."""
        if not self._has_validation():
            return False
        if self.should_stop and self.may_stop_within_epoch():
            return True  # a run that is stopped within an epoch still knows how good it was
        progress, every = self.progress, self.check_val_every_n_epoch
        if every is not None and (progress.epoch + 1) % every:
            return False
        interval = self.val_check_interval
        if isinstance(interval, float):
            if interval == 1.0 or math.isinf(self.num_training_batches):
                return progress.is_last_batch
            interval = max(1, int(self.num_training_batches * interval))
        passed = progress.total_batches if every is None else progress.batch
        return passed % interval == 0

    # ---- when it ends

    def is_done(self) -> bool:
        """Whether training is over before another epoch begins."""
        if self.max_epochs != -1 and self.progress.epoch >= self.max_epochs:
            return True
        return self.may_stop_within_epoch()

    def may_stop_within_epoch(self) -> bool:
        """Whether training ends here: the last step is taken, or somebody said stop and the minimum is done."""
        if self.max_steps != -1 and self.progress.global_step >= self.max_steps:
            return True
        if not (self.should_stop if self.world_size == 1 else self._has_others_stop):
            return False
        epochs_done = self.progress.epoch + (
            self.progress.stage == "epoch_end" or self.progress.is_last_batch
        )
        if not self.progress.is_inside_epoch:
            epochs_done = self.progress.epoch
        return epochs_done >= (self.min_epochs or 0) and self.progress.global_step >= (self.min_steps or 0)

    def agree_between_batches(self) -> None:
        """End the run, if a signal asked for that; take up that another process has decided to stop.

        Of several processes nobody waits for the others: what one knows now, all do after the next batch.
        """
        if self.world_size == 1:
            self.signals.check(self.strategy)
            return
        is_signalled, stops = self.strategy.any_by_now([self.signals.received is not None, self.should_stop])
        if is_signalled:
            self.signals.end()
        self._take_up(stops)

    def agree_to_stop(self) -> None:
        """Take up whether any process has decided to stop: all then stop at the same place."""
        if self.world_size > 1:
            self._take_up(self.strategy.reduce_boolean_decision(self.should_stop, all=False))

    def _take_up(self, stops: bool) -> None:
        self._has_others_stop |= stops
        self.should_stop |= stops

    @property
    def estimated_stepping_batches(self) -> int | float:
        """The number of optimizer steps of the whole run; `math.inf` where nothing bounds it."""
        if self.train_dataloader is None:
            self.load_train_batches()
        return loop.total_steps(
            self.num_training_batches,
            accumulate=self.accumulate_grad_batches,
            max_epochs=self.max_epochs,
            max_steps=self.max_steps,
        )

    # ---- frozen and trainable

    def establish_modes(self) -> None:
        """Give every module its mode; say once which trainable ones were found in evaluation mode."""
        module = self.lightning_module
        woken = freezing.establish_modes(module)
        if woken and not self.__dict__.get("_said_woken"):
            self._said_woken = True
            names = ", ".join(repr(name or type(module).__name__) for name in woken[:5])
            more = f" and {len(woken) - 5} more" if len(woken) > 5 else ""
            self.say(
                f"Trainable, and found in evaluation mode: {names}{more}. They train in training mode from here on; to keep "
                "one in evaluation mode, call headstart.freezing.pin_mode(module, 'eval')."
            )

    def observe_trainable_set(self) -> None:
        """React to a change of what trains, whoever made it: modes, the distributed wrapper, the schedulers."""
        module = self.lightning_module
        trainable = freezing.trainable_names(module)
        if trainable != self._trainable:
            for parameter in module.parameters():
                if not parameter.requires_grad:
                    parameter.grad = None  # an optimizer steps wherever there is one, of zeros, too
            self._trainable = trainable
            # A distributed wrapper averages the gradients of what trained when it was built.
            self.strategy.wrap(module)
            self.training_step, self.training_step_arity = self.step_function("training_step")
            freezing.establish_modes(module)  # without a word: what thaws was in evaluation mode by the rule
        else:
            freezing.establish_modes(module, only_frozen=True)
        for config in self.lr_scheduler_configs:
            sync_scheduler(config.scheduler)

    def exchange_frozen_work(self) -> None:
        """Between two passes over a loader: bring what each machine has computed to the others."""
        if self.reuse is not None:
            self.strategy.exchange_frozen_work(self.reuse)

    def compare_processes(self) -> None:
        """Where the strategy `checks`: see at an epoch's end that all processes hold the same.

        Raises:
            HeadstartError: If they do not.
        """
        if not getattr(self.strategy, "checks", False):
            return
        difference = self.strategy.largest_difference(self.lightning_module)
        if difference:
            raise HeadstartError(
                f"After epoch {self.current_epoch} two processes differ by {difference:.3g} in a weight or buffer. Something "
                "changes them in one process alone: look for code that depends on the rank, or on its own random numbers."
            )

    def audit(self, model: LightningModule | None = None, batch: Any = None) -> freezing.Audit:
        """Give one table of what is frozen, what trains, in which group, at which rate, and what a step costs.

        Args:
            model: The module; `None` takes the one of the last run.
            batch: A training batch, for the FLOPs of a step; `None` counts those of `model.example_input_array`
                through `forward`, or nothing.

        Returns:
            The audit: print it, or call its `check`.
        """
        module = self._model_or_last(model)
        optimizers = self.optimizers if module is self._module else []
        self.strategy.setup(module)
        freezing.establish_modes(module)
        with isolated_random_state():
            return freezing.audit(module, optimizers=optimizers, step=self.untraced_step(module, batch))

    def untraced_step(self, module: LightningModule, batch: Any) -> Callable[[], Any] | None:
        """Give what computes one training step, without a trace in the run's records.

        Args:
            module: The module.
            batch: The batch; `None` takes `example_input_array` through `forward`, and is `None` where there is none.
        """
        example = module.example_input_array
        if batch is None and example is None:
            return None

        def step() -> Any:
            if batch is None:
                return module(*example) if isinstance(example, tuple) else module(example)
            function, arity = self.step_function("training_step", module)
            if self.strategy.computes_alone:
                function = module.training_step  # no gradients are reduced for it
            with self._without_a_trace(module, batch), self.precision_plugin.forward_context():
                return function(*(batch, 0)[:arity])

        return step

    @contextmanager
    def _without_a_trace(self, module: LightningModule, batch: Any) -> Iterator[None]:
        """Let what the module logs, and what its metrics see, be forgotten."""
        is_running = module.__dict__.get("_trainer") is self and self.hooks is not None
        before = self.logbook, self.current_batch, self.hooks.current if is_running else ""
        with metrics_kept(module):
            try:
                if is_running:
                    self.logbook, self.current_batch, self.hooks.current = (
                        Logbook(self),
                        batch,
                        "training_step",
                    )
                    yield
                else:
                    trainer, module.trainer = module.__dict__.get("_trainer"), None
                    try:
                        yield
                    finally:
                        module.trainer = trainer
            finally:
                self.logbook, self.current_batch = before[:2]
                if is_running:
                    self.hooks.current = before[2]

    # ---- manual optimization

    def manual_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """What `LightningModule.manual_backward` calls."""
        if self.share is not None:
            loss = loss * self.share.weight
        self.hooks("on_before_backward", loss)
        self.lightning_module.backward(self.precision_plugin.scale(loss), *args, **kwargs)
        # At once: a program may clip them, or step by the optimizer itself. The mean of means is what it was.
        self.strategy.average_gradients(list(self.lightning_module.parameters()))
        self._are_averaged = True
        self.hooks("on_after_backward")

    def manual_step(
        self, optimizer: Optimizer, closure: Callable[[], Any] | None = None, **kwargs: Any
    ) -> Any:
        """What `optimizer.step()` does in manual optimization."""
        loss = None
        if closure is not None and not needs_closure(optimizer):
            with torch.enable_grad():
                loss = closure()
            closure = None
        if not self._are_averaged:  # by `manual_backward`
            self.strategy.average_gradients(
                [each for group in optimizer.param_groups for each in group["params"]]
            )
        self.precision_plugin.unscale(optimizer)
        self.hooks("on_before_optimizer_step", optimizer)
        self.boundary.is_torn = True  # until the batch is done
        if closure is None:
            taken = self.precision_plugin.step(optimizer, lambda: optimizer.step(**kwargs))
        else:
            taken = optimizer.step(closure, **kwargs)
        self._are_averaged = False  # the next ones may come without `manual_backward`
        self.progress.global_step += 1
        self.hooks.current = "training_step"
        return loss if taken is None else taken

    # ---- what a program asks of its trainer

    @property
    def lightning_module(self) -> LightningModule:
        """The module of the current or last run."""
        assert self._module is not None
        return self._module

    @property
    def model(self) -> LightningModule | None:
        """The module of the current or last run, or `None`."""
        return self._module

    @property
    def callback_metrics(self) -> dict[str, Any]:
        """Every value logged so far, the latest under each name: scalars, detached."""
        return self.logbook.callback_metrics

    @property
    def logged_metrics(self) -> dict[str, Any]:
        """The values that the loggers got, the latest under each name."""
        return self.logbook.logged_metrics

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The latest values logged with `prog_bar=True`."""
        return self.logbook.progress_bar_metrics

    @property
    def current_epoch(self) -> int:
        """The epoch that is running, from 0; after fit, the number of epochs done."""
        return self.progress.epoch

    @property
    def global_step(self) -> int:
        """The number of optimizer steps taken, over all epochs."""
        return self.progress.global_step

    @property
    def logger(self) -> Any:
        """The first logger, or `None`."""
        return self.loggers[0] if self.loggers else None

    @logger.setter
    def logger(self, logger: Any) -> None:
        self.loggers = [] if logger is None else [logger]

    @property
    def log_dir(self) -> str:
        """The first logger's folder, or `default_root_dir`."""
        found = getattr(self.logger, "log_dir", None) if self.loggers else None
        return str(found or self.default_root_dir)

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that prints, logs and saves."""
        return self.strategy.is_global_zero

    @property
    def global_rank(self) -> int:
        """The number of this process among all."""
        return self.strategy.global_rank

    @property
    def local_rank(self) -> int:
        """The number of this process on its machine."""
        return self.strategy.local_rank

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return self.strategy.world_size

    @property
    def num_devices(self) -> int:
        """The number of devices on this machine."""
        return self.strategy.world_size // self.num_nodes

    @property
    def precision(self) -> str:
        """The number format's name."""
        return self.precision_plugin.name

    @property
    def skipped_batches(self) -> list[str]:
        """What `on_nan="skip"` has left out: where, which samples, and why."""
        return self.nan_guard.skipped

    @property
    def received_sigterm(self) -> bool:
        """Whether SIGTERM has asked the run that is under way, or the last one, to end."""
        return self.signals.received == signal.SIGTERM

    @property
    def is_fitting(self) -> bool:
        """Whether `fit` is running, its validation included."""
        return bool(self.state.fn == "fit" and self.state.status == "running")

    @property
    def training(self) -> bool:
        """Whether training batches are running."""
        return self.stage == "train"

    @property
    def validating(self) -> bool:
        """Whether validation is running (the sanity check is not meant)."""
        return self.stage == "validate" and not self.sanity_checking

    @property
    def testing(self) -> bool:
        """Whether the test is running."""
        return self.stage == "test"

    @property
    def predicting(self) -> bool:
        """Whether prediction is running."""
        return self.stage == "predict"

    @property
    def evaluating(self) -> bool:
        """Whether validation or the test is running."""
        return self.stage in {"validate", "test"}

    @property
    def val_dataloaders(self) -> Any:
        """The validation loaders: one, or a list."""
        return (
            self.validation_loaders[0]
            if len(self.validation_loaders) == 1
            else self.validation_loaders or None
        )

    @property
    def enable_validation(self) -> bool:
        """Whether fit validates."""
        return self._has_validation()

    @property
    def is_last_batch(self) -> bool:
        """Whether the training batch that is running is the epoch's last."""
        return self.progress.is_last_batch

    @property
    def fit_loop(self) -> Trainer:
        """The trainer itself: programs read and set `trainer.fit_loop.max_epochs`."""
        return self

    def _callbacks_of(self, name: str) -> list[Callback]:
        return [each for each in self.callbacks if any(cls.__name__ == name for cls in type(each).__mro__)]

    @property
    def checkpoint_callbacks(self) -> list[Any]:
        """The `ModelCheckpoint` callbacks."""
        return self._callbacks_of("ModelCheckpoint")

    @property
    def checkpoint_callback(self) -> Any:
        """The first `ModelCheckpoint`, or `None`."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[Any]:
        """The `EarlyStopping` callbacks."""
        return self._callbacks_of("EarlyStopping")

    @property
    def early_stopping_callback(self) -> Any:
        """The first `EarlyStopping`, or `None`."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> Any:
        """The progress bar, or `None`."""
        return next(iter(self._callbacks_of("ProgressBar")), None)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the first process, without breaking the progress bar."""
        if not self.is_global_zero:
            return
        bar = self.progress_bar_callback
        if bar is not None and hasattr(bar, "print"):
            bar.print(*args, **kwargs)
        else:
            print(*args, **kwargs)

    def say(self, message: str) -> None:
        """Tell the user something about the run, once, on the first process."""
        if self.is_global_zero:
            print(message, file=sys.stderr)

    def warn(self, message: str) -> None:
        """Warn the user, on the first process."""
        if self.is_global_zero:
            warnings.warn(message, stacklevel=3)

    # ---- building

    def to_device(self, batch: Any, loader_idx: int) -> Any:
        """Move a batch to the device, through the transfer hooks."""
        before, transfer, after = self._transfer_hooks
        outer, self.hooks.current = self.hooks.current, "on_before_batch_transfer"
        batch = before(batch, loader_idx)
        batch = transfer(batch, self.strategy.device, loader_idx)
        batch = after(batch, loader_idx)
        batch = self.precision_plugin.convert_batch(batch)
        self.hooks.current = outer
        return batch

    def _make_it_a_trial(self, batches: int) -> None:
        self.max_epochs, self.max_steps = 1, batches
        self.limit_train_batches = self.limit_val_batches = self.limit_test_batches = (
            self.limit_predict_batches
        ) = batches
        self.num_sanity_val_steps = 0
        self.val_check_interval = 1.0
        self.check_val_every_n_epoch = 1


def _toggling(module: LightningModule) -> Callable[[Optimizer], Any]:
    @contextmanager
    def toggle(optimizer: Optimizer) -> Iterator[None]:
        module.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            module.untoggle_optimizer(optimizer)

    return toggle


def freezing_report(module: LightningModule) -> list[str]:
    """What of `module` is pinned to a mode against the rule, a line for each mode, for the run's log."""
    lines = []
    for mode, word in (("eval", "evaluation"), ("train", "training")):
        names = [
            name or type(module).__name__
            for name, pin in freezing.pinned_modules(module).items()
            if pin == mode
        ]
        if names:
            more = (
                f" and {len(names) - 3} more stay"
                if len(names) > 3
                else " stays"
                if len(names) == 1
                else " stay"
            )
            lines.append(f"Pinned: {', '.join(names[:3])}{more} in {word} mode.")
    return lines


def _print_summary(fn: str, summary: list[dict[str, float]]) -> None:
    for index, values in enumerate(summary):
        title = fn if len(summary) == 1 else f"{fn}, loader {index}"
        width = max(map(len, values), default=0)
        print("\n".join([title, *(f"  {name.ljust(width)}  {value:.6g}" for name, value in values.items())]))
