"""Which name of PyTorch Lightning is what in headstart: data only.

`NAMES` has a row for each module: what can be imported from it, and where headstart defines it (`module`, or
`module:name` where the name differs). Modules of the 1.x series stand beside those of the 2.x series.
"""

from __future__ import annotations

# Programs compare it, and print it.
VERSION = "2.6.0+headstart"

# The same modules under a second name.
SAME_AS = {
    "lightning.pytorch": "pytorch_lightning",
    "lightning.fabric": "lightning_fabric",
}


def _in(module: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, module)


_CALLBACK = _in("headstart.callback", "Callback")
_MODULE = _in("headstart.module", "LightningModule")
_DATAMODULE = _in("headstart.datamodule", "LightningDataModule")
_TRAINER = _in("headstart.trainer", "Trainer")
_SEED = {**_in("headstart.seed", "seed_everything"), **_in("headstart.lightning_names.seed", "isolate_rng")}
_TOP = {
    **_CALLBACK, **_MODULE, **_DATAMODULE, **_TRAINER, **_in("headstart.seed", "seed_everything"),
}  # fmt: skip

_FINETUNING = _in("headstart.callbacks", "BackboneFinetuning", "BaseFinetuning")
_CHECKPOINT = _in("headstart.callbacks", "ModelCheckpoint")
_EARLY_STOPPING = _in("headstart.callbacks", "EarlyStopping")
_LR_MONITOR = _in("headstart.callbacks", "LearningRateMonitor")
_SUMMARY = _in("headstart.callbacks", "ModelSummary", "RichModelSummary")
_PROGRESS = _in("headstart.callbacks", "ProgressBar", "RichProgressBar", "TQDMProgressBar")
_LAMBDA = _in("headstart.callbacks", "LambdaCallback")
_TIMER = _in("headstart.callbacks", "Timer")

_CSV = _in("headstart.loggers", "CSVLogger")
_TENSORBOARD = _in("headstart.loggers", "TensorBoardLogger")
_MLFLOW = _in("headstart.loggers", "MLFlowLogger")
_WANDB = _in("headstart.loggers", "WandbLogger")
_LOGGER = _in("headstart.loggers", "Logger")
_EXPERIMENT = _in("headstart.lightning_names.rank_zero", "rank_zero_experiment")

_TUNER = _in("headstart.lightning_names.tuner", "Tuner")

_RANK_ZERO = _in(
    "headstart.lightning_names.rank_zero",
    "rank_zero_only", "rank_zero_info", "rank_zero_warn", "rank_zero_debug", "rank_zero_deprecation",
)  # fmt: skip
_MISCONFIGURATION = {"MisconfigurationException": "headstart.errors:MisconfigurationError"}
_EXCEPTIONS = {**_MISCONFIGURATION, "SIGTERMException": "headstart.signals"}
_MOVE = {"move_data_to_device": "headstart.transfer:move_to_device"}
_ATTRIBUTES = {"AttributeDict": "headstart.hparams:HyperParameters"}
_WARNINGS = {
    "PossibleUserWarning": "headstart.lightning_names.rank_zero:PossibleUserWarning",
    "LightningDeprecationWarning": "headstart.lightning_names.rank_zero:RankZeroDeprecationWarning",
}
_TYPES = {
    **_in(
        "headstart.lightning_names.types",
        "STEP_OUTPUT", "TRAIN_DATALOADERS", "EVAL_DATALOADERS", "OptimizerLRScheduler", "OptimizerConfig",
        "OptimizerLRSchedulerConfig", "LRSchedulerConfigType", "LRSchedulerType", "LRSchedulerTypeUnion",
    ),
    "LRSchedulerPLType": "headstart.lightning_names.types:LRSchedulerTypeUnion",
    "LRSchedulerConfig": "headstart.optim:SchedulerConfig",
    "_EVALUATE_OUTPUT": "headstart.lightning_names.types:EVALUATE_OUTPUT",
    "_PREDICT_OUTPUT": "headstart.lightning_names.types:PREDICT_OUTPUT",
}  # fmt: skip
_DEMOS = _in(
    "headstart.demos.boring_classes",
    "BoringModel", "BoringDataModule", "DemoModel", "ManualOptimBoringModel", "RandomDataset", "RandomDictDataset",
    "RandomIterableDataset", "RandomIterableDatasetWithLen",
)  # fmt: skip

NAMES: dict[str, dict[str, str]] = {
    "lightning": _TOP,
    "pytorch_lightning": _TOP,
    "pytorch_lightning.core": {**_MODULE, **_DATAMODULE},
    "pytorch_lightning.core.module": _MODULE,
    "pytorch_lightning.core.lightning": _MODULE,  # 1.x
    "pytorch_lightning.core.datamodule": _DATAMODULE,
    "pytorch_lightning.core.optimizer": {"LightningOptimizer": "headstart.optim:ManagedOptimizer"},
    "pytorch_lightning.core.hooks": _in("headstart.datamodule", "DataHooks"),
    "pytorch_lightning.trainer": {**_TRAINER, "seed_everything": "headstart.seed"},
    "pytorch_lightning.trainer.trainer": _TRAINER,
    "pytorch_lightning.trainer.states": _in("headstart.lightning_names.types", "TrainerFn"),
    # ---- callbacks
    "pytorch_lightning.callbacks": {
        **_CALLBACK,
        **_FINETUNING,
        **_CHECKPOINT,
        **_EARLY_STOPPING,
        **_LR_MONITOR,
        **_SUMMARY,
        **_PROGRESS,
        **_LAMBDA,
        **_TIMER,
    },
    "pytorch_lightning.callbacks.callback": _CALLBACK,
    "pytorch_lightning.callbacks.base": _CALLBACK,  # 1.x
    "pytorch_lightning.callbacks.finetuning": _FINETUNING,
    "pytorch_lightning.callbacks.model_checkpoint": _CHECKPOINT,
    "pytorch_lightning.callbacks.early_stopping": _EARLY_STOPPING,
    "pytorch_lightning.callbacks.lr_monitor": _LR_MONITOR,
    "pytorch_lightning.callbacks.model_summary": _SUMMARY,
    "pytorch_lightning.callbacks.rich_model_summary": _SUMMARY,
    "pytorch_lightning.callbacks.progress": _PROGRESS,
    "pytorch_lightning.callbacks.progress.progress_bar": _PROGRESS,
    "pytorch_lightning.callbacks.progress.rich_progress": _PROGRESS,
    "pytorch_lightning.callbacks.progress.tqdm_progress": _PROGRESS,
    "pytorch_lightning.callbacks.lambda_function": _LAMBDA,
    "pytorch_lightning.callbacks.timer": _TIMER,
    # ---- learning rates
    "pytorch_lightning.tuner": _TUNER,
    "pytorch_lightning.tuner.tuning": _TUNER,
    # ---- loggers
    "pytorch_lightning.loggers": {**_CSV, **_TENSORBOARD, **_MLFLOW, **_WANDB, **_LOGGER},
    "pytorch_lightning.loggers.logger": {**_LOGGER, **_EXPERIMENT},
    "pytorch_lightning.loggers.base": {
        "LightningLoggerBase": "headstart.loggers:Logger",
        **_EXPERIMENT,
    },  # 1.x
    "pytorch_lightning.loggers.csv_logs": _CSV,
    "pytorch_lightning.loggers.tensorboard": _TENSORBOARD,
    "pytorch_lightning.loggers.mlflow": _MLFLOW,
    "pytorch_lightning.loggers.wandb": _WANDB,
    # ---- utilities
    "pytorch_lightning.utilities": {**_RANK_ZERO, **_MOVE, **_ATTRIBUTES},
    "pytorch_lightning.utilities.rank_zero": {**_RANK_ZERO, **_WARNINGS},
    "pytorch_lightning.utilities.distributed": _RANK_ZERO,  # 1.x
    "pytorch_lightning.utilities.exceptions": _EXCEPTIONS,
    "pytorch_lightning.utilities.warnings": _WARNINGS,
    "pytorch_lightning.utilities.seed": _SEED,
    "pytorch_lightning.utilities.types": _TYPES,
    "pytorch_lightning.utilities.model_summary": {
        "ModelSummary": "headstart.callbacks.model_summary:summarize",
        "summarize": "headstart.callbacks.model_summary",
    },
    "pytorch_lightning.utilities.parsing": _ATTRIBUTES,
    "pytorch_lightning.utilities.apply_func": _MOVE,  # 1.x
    "pytorch_lightning.utilities.testing._runif": {
        "_runif_reasons": "headstart.lightning_names.requirements:unmet"
    },
    "pytorch_lightning.demos": {},
    "pytorch_lightning.demos.boring_classes": _DEMOS,
    "pytorch_lightning.strategies": _in("headstart.strategy", "DDPStrategy", "FSDPStrategy", "Strategy"),
    # ---- what lies under it
    "lightning_fabric": _in("headstart.seed", "seed_everything"),
    "lightning_fabric.utilities": {**_RANK_ZERO, **_MOVE},
    "lightning_fabric.utilities.apply_func": _MOVE,
    "lightning_fabric.utilities.exceptions": _MISCONFIGURATION,
    "lightning_fabric.utilities.rank_zero": {**_RANK_ZERO, **_WARNINGS},
    "lightning_fabric.utilities.seed": _in("headstart.seed", "seed_everything"),
    "lightning_fabric.utilities.warnings": _WARNINGS,
    # ---- empty, so that the error of an import names the class that is lacking
    "pytorch_lightning.accelerators": {},
    "pytorch_lightning.cli": {},
    "pytorch_lightning.plugins": {},
    "pytorch_lightning.profilers": {},
    # ---- helpers of the peer's own tests
    "tests_pytorch.helpers.runif": _in("headstart.lightning_names.requirements", "RunIf"),
}

# Why a name or a whole module is lacking, and what to do instead; the nearest enclosing module answers.
_ONE_PROCESS_OR_MANY = "give the Trainer strategy='auto', and start several processes with torchrun."
REASONS = {
    "pytorch_lightning": "headstart has the parts that transfer learning and finetuning need.",
    "lightning": "headstart has the parts that transfer learning and finetuning need.",
    "lightning_fabric": "headstart has one trainer, and its `freezing` works in a plain PyTorch loop too.",
    "Fabric": "headstart has one trainer, and its `freezing` works in a plain PyTorch loop too.",
    "tests_pytorch": "put the helpers of the tests on PYTHONPATH.",
    "pytorch_lightning.accelerators": "give the Trainer accelerator='cpu', 'gpu' or 'mps' by name.",
    "pytorch_lightning.callbacks": "write it as a `Callback`, whose hooks are the same.",
    "pytorch_lightning.cli": "build the Trainer in Python, or use `headstart fit --config run.yaml`.",
    "pytorch_lightning.loggers": "write it as a `Logger`, or use CSVLogger, TensorBoardLogger, MLFlowLogger or WandbLogger.",
    "pytorch_lightning.metrics": "use torchmetrics; `self.log` takes its metrics.",
    "pytorch_lightning.plugins": "give the Trainer precision='bf16-mixed', or another one by name.",
    "pytorch_lightning.profilers": "use torch.profiler around `trainer.fit`.",
    "pytorch_lightning.strategies": _ONE_PROCESS_OR_MANY,
    "pytorch_lightning.tuner": "use `headstart.lr_finder.find_lr`; choose the batch size in Python.",
}
