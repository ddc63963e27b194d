"""What several processes do: `torchrun --nproc_per_node=N worker.py FOLDER` runs every scenario, and writes what came out.

Torch is imported once for all of them. Each scenario is a function of the folder; what the first process's returns is written
to `FOLDER/results.json`, and what it raises too, so that one failure does not hide the others.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from headstart import Callback, LightningModule, Trainer, seed_everything
from headstart.callbacks import BackboneFinetuning, BaseFinetuning, EarlyStopping, ModelCheckpoint
from headstart.callbacks import plan as plan_runner
from headstart.deferred import Reuse
from headstart.errors import HeadstartError
from headstart.plan import Phase, Plan
from headstart.plans import PLANS, named_plan
from headstart.strategy import DDPStrategy, FSDPStrategy

SCENARIOS: dict[str, Any] = {}


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


class Net(LightningModule):
    """Blocks with batch norms or layer norms, and a head; everything in the optimizer that trains at the start."""

    def __init__(self, *, norms: bool = True, lr: float = 0.1, optimizer: Any = None, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.BatchNorm1d(6) if norms else nn.LayerNorm(6))
                for _ in range(3)
            )
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(6, 3))
        self.make_optimizer, self.lr = optimizer, lr

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = cross_entropy(self.head(self.backbone(batch[0])), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", cross_entropy(self.head(self.backbone(batch[0])), batch[1]))

    def configure_optimizers(self) -> Any:
        if self.make_optimizer is not None:
            return self.make_optimizer(self)
        trained = [each for each in self.parameters() if each.requires_grad]
        return torch.optim.SGD(trained, lr=self.lr, momentum=0.9)


def samples(count: int = 24) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=generator)
    return TensorDataset(x, x[:, :3].argmax(1))


def loader(count: int = 24, *, batch_size: int = 2, shuffle: bool = True, **settings: Any) -> DataLoader:
    return DataLoader(samples(count), batch_size=batch_size, shuffle=shuffle, **settings)


def trainer_of(**settings: Any) -> Trainer:
    off = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{"accelerator": "cpu", "max_epochs": 3, "num_sanity_val_steps": 0, **off, **settings})


def difference_of_ranks(trainer: Trainer) -> float:
    return trainer.strategy.largest_difference(trainer.lightning_module)


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


# ---- what trains changes, and processes stay the same


def thawed(
    callback: Any = None, plan: Any = None, module: LightningModule | None = None, **settings: Any
) -> dict:
    """Fit, and give how far processes differ, and how far the backbone moved."""
    module = module or Net()
    before = copy.deepcopy(module.backbone.state_dict())
    trainer = trainer_of(callbacks=callback, plan=plan, strategy=DDPStrategy(checks=True), **settings)
    trainer.fit(module, loader(), loader(6))
    moved = {
        name: float((value - before[name]).abs().max())
        for name, value in module.backbone.state_dict().items()
        if name in before and value.is_floating_point() and "running" not in name
    }
    return {"difference": difference_of_ranks(trainer), "moved": max(moved.values(), default=0.0)}


for epoch in (0, 1, 2):
    for train_bn in (False, True):

        def backbone_finetuning(folder: Path, *, epoch=epoch, train_bn=train_bn) -> dict:
            return thawed(BackboneFinetuning(epoch, train_bn=train_bn), max_epochs=4)

        SCENARIOS[f"BackboneFinetuning {epoch} {train_bn}"] = backbone_finetuning


class BlockAfterBlock(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch < 3:
            self.unfreeze_and_add_param_group(pl_module.backbone[2 - epoch], optimizer, train_bn=True)


@scenario
def base_finetuning(folder: Path) -> dict:
    return thawed(BlockAfterBlock(), max_epochs=4)


for name in PLANS:

    def named(folder: Path, *, name=name) -> dict:
        module = Net(optimizer=lambda net: torch.optim.AdamW(net.parameters(), lr=1e-2))
        return thawed(plan=named_plan(name, **QUICK.get(name, {"epochs": 2})), max_epochs=None, module=module)

    SCENARIOS[f"plan {name}"] = named

QUICK = {
    "lp_ft": {"head_epochs": 1, "epochs": 2},
    "gradual": {"epochs": 1, "num_blocks": 2},
}


@scenario
def phases_of_a_time(folder: Path) -> dict:
    """A step takes the first process a second, the next one two, and so on; the validation takes none."""

    class Slow(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            clock.now += 1.0 + self.global_rank
            return super().training_step(batch, batch_idx)

    clock = SimpleNamespace(now=0.0)
    phases = [
        Phase(name=trains, trains=trains, lr=0.1, time=9, schedule="cosine") for trains in ("head", "all")
    ]
    before, plan_runner.monotonic = plan_runner.monotonic, lambda: clock.now
    steps = Steps()
    try:
        found = thawed(steps, plan=Plan(phases=phases), max_epochs=None, module=Slow())
    finally:
        plan_runner.monotonic = before
    return {**found, "steps": steps.counts}


class Steps(Callback):
    def on_train_end(self, trainer, pl_module):
        self.counts = [each["step"] for each in plan_runner.runner_of(trainer).history] + [
            trainer.global_step
        ]


class ByHand(Net):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.backbone.requires_grad_(self.global_step >= 3)  # in the middle of the first epoch

    def on_train_start(self) -> None:
        self.backbone.requires_grad_(False)


@scenario
def by_hand_at_an_epoch(folder: Path) -> dict:
    class AtEpochs(Net):
        def on_train_epoch_start(self) -> None:
            self.backbone.requires_grad_(self.current_epoch % 2 == 1)

    everything = lambda net: torch.optim.SGD(net.parameters(), lr=0.1)  # noqa: E731
    return thawed(module=AtEpochs(optimizer=everything), max_epochs=4)


@scenario
def by_hand_between_batches(folder: Path) -> dict:
    everything = lambda net: torch.optim.SGD(net.parameters(), lr=0.1)  # noqa: E731
    return thawed(module=ByHand(optimizer=everything), max_epochs=2)


@scenario
def checks_name_what_differs(folder: Path) -> str:
    class Drifts(Net):
        def on_train_epoch_end(self) -> None:
            with torch.no_grad():
                self.head[1].bias += dist.get_rank()

    try:
        trainer_of(strategy=DDPStrategy(checks=True)).fit(Drifts(), loader())
    except HeadstartError as error:
        return str(error)
    return "nothing was raised"


# ---- as one process with the same global batches


def as_one(count: int, optimizer: Any, **settings: Any) -> dict:
    """Fit with all processes, and with one whose batches are as large as all of theirs; give the difference."""
    batch_size, drop_last = 2, settings.pop("drop_last", False)
    size = dist.get_world_size()
    found, order = {}, {}
    for strategy, each in (("ddp", batch_size), ("single_device", batch_size * size)):
        seed_everything(7, verbose=False)
        module = Net(norms=False, optimizer=optimizer)
        seen: list[float] = []
        module.on_train_batch_end = lambda outputs, batch, batch_idx, seen=seen: seen.append(
            float(batch[0].sum())
        )
        trainer = trainer_of(strategy=strategy, devices="auto" if strategy == "ddp" else 1, **settings)
        trainer.fit(module, loader(count, batch_size=each, drop_last=drop_last), loader(7))
        found[strategy] = copy.deepcopy(module.state_dict())
        order[strategy] = {
            name: float(value) for name, value in trainer.callback_metrics.items() if "step" not in name
        }
        if strategy == "ddp":
            difference, steps = difference_of_ranks(trainer), trainer.global_step
    logged = max(abs(order["ddp"][name] - order["single_device"][name]) for name in order["single_device"])
    return {
        "ranks": difference, "weights": distance(found["ddp"], found["single_device"]), "logged": logged,
        "steps": [steps, trainer.global_step],
    }  # fmt: skip


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)


def adamw(net):
    return torch.optim.AdamW(net.parameters(), lr=1e-2)


for title, arguments in {
    "even": (24, sgd, {}),
    "uneven": (23, sgd, {}),
    "a sample is left": (25, adamw, {}),
    "accumulated": (26, sgd, {"accumulate_grad_batches": 2}),
    "clipped": (23, sgd, {"gradient_clip_val": 0.05}),
    "dropped": (23, sgd, {"drop_last": True}),
}.items():

    def equal(folder: Path, *, arguments=arguments) -> dict:
        count, optimizer, settings = arguments
        return as_one(count, optimizer, **settings)

    SCENARIOS[f"as one: {title}"] = equal


# ---- what is logged


@scenario
def logged(folder: Path) -> dict:
    """Sums of sample numbers, over 11 samples in batches of 2: what is counted twice or not at all would show."""

    class Logs(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)
            self.accuracy = MulticlassAccuracy(num_classes=2, average="micro")

        def training_step(self, batch, batch_idx):
            (x,) = batch
            self.record("train", x)
            self.log("step mean", x.mean(), on_step=True, on_epoch=False, sync_dist=True)
            return self.layer(x).mean() * 0

        def validation_step(self, batch, batch_idx):
            (x,) = batch
            self.record("val", x)
            self.accuracy.update((x[:, 0] >= 5).long(), torch.ones(len(x), dtype=torch.long))
            self.log("acc", self.accuracy)

        def record(self, kind, x):
            self.log(f"{kind} mean", x.mean(), on_step=False, on_epoch=True)
            self.log(f"{kind} sum", x.sum(), reduce_fx="sum", on_step=False, on_epoch=True)
            self.log(f"{kind} min", x.min(), reduce_fx="min", on_step=False, on_epoch=True)
            self.log(f"{kind} max", x.max(), reduce_fx="max", on_step=False, on_epoch=True)
            self.log(f"{kind} first", 1.0, rank_zero_only=True, on_step=False, on_epoch=True)
            if self.global_rank == 0:
                self.log(f"{kind} of one", 1.0, reduce_fx="sum", on_step=False, on_epoch=True)

        def on_validation_epoch_end(self):
            self.log("rank", float(self.global_rank))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    numbers = TensorDataset(torch.arange(11.0).unsqueeze(1))
    trainer = trainer_of(max_epochs=1)
    trainer.fit(Logs(), DataLoader(numbers, batch_size=2, shuffle=True), DataLoader(numbers, batch_size=2))
    everyone = trainer.strategy.gather_objects(
        {name: float(value) for name, value in trainer.callback_metrics.items()}
    )
    return {"values": everyone[0], "all alike": all(each == everyone[0] for each in everyone)}


@scenario
def seen_once(folder: Path) -> dict:
    """Which samples `training_step`, `validation_step` and `predict_step` see, over all processes."""

    class Sees(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)
            self.seen = {"train": [], "validation": []}

        def training_step(self, batch, batch_idx):
            if self.trainer.share is None or not self.trainer.share.is_empty:
                self.seen["train"] += batch[0][:, 0].tolist()
            return self.layer(batch[0]).mean()

        def validation_step(self, batch, batch_idx):
            self.seen["validation"] += batch[0][:, 0].tolist()

        def predict_step(self, batch, batch_idx):
            return batch[0][:, 0]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    class Stream(IterableDataset):
        def __iter__(self):
            return ((torch.tensor([float(number)]),) for number in range(11))

    numbers = TensorDataset(torch.arange(11.0).unsqueeze(1))
    own_batches = [[0, 1, 2], [3], [4, 5, 6, 7], [8, 9], [10]]
    found = {}
    for title, make in {
        "indexed": lambda: DataLoader(numbers, batch_size=2, shuffle=True),
        "batches of its own": lambda: DataLoader(numbers, batch_sampler=own_batches),
        "stream": lambda: DataLoader(Stream(), batch_size=2),
    }.items():
        module, trainer = Sees(), trainer_of(max_epochs=1)
        trainer.fit(module, make(), make())
        predicted = torch.cat(
            [each.flatten() for each in trainer.predict(module, make())] or [torch.empty(0)]
        )
        kinds = {**module.seen, "predicted": predicted.tolist()}
        everyone = trainer.strategy.gather_objects(kinds)
        found[title] = {kind: sorted(number for each in everyone for number in each[kind]) for kind in kinds}
    return found


# ---- decisions


class Said(Net):
    """Logs values that differ from process to process."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        # Falling in the first process, rising in the others: their mean rises from the second epoch on.
        value = -1.0 if self.global_rank == 0 else 2.0
        self.log("val", value * self.current_epoch)


@scenario
def decided_alike(folder: Path) -> dict:
    class Plateau(Said):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val"}}

    trainer = trainer_of(max_epochs=9, callbacks=EarlyStopping("val", patience=3))
    module = Plateau()
    trainer.fit(module, loader(), loader(12))
    rates = [trainer.optimizers[0].param_groups[0]["lr"], trainer.current_epoch]
    return {"everyone": trainer.strategy.gather_objects(rates), "difference": difference_of_ranks(trainer)}


@scenario
def a_plateau_of_steps(folder: Path) -> dict:
    """A scheduler that watches the last step's loss, which is each process's own."""

    class Plateau(Net):
        def training_step(self, batch, batch_idx):
            loss = cross_entropy(self.head(self.backbone(batch[0])), batch[1])
            self.log("step_loss", loss)
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "step_loss"}}

    trainer = trainer_of(max_epochs=8)
    trainer.fit(Plateau(), loader())
    return {"difference": difference_of_ranks(trainer)}


@scenario
def frozen_within_a_window(folder: Path) -> dict:
    class Window(Net):
        def on_train_batch_start(self, batch, batch_idx):
            self.backbone.requires_grad_(batch_idx % 2 == 0)

    module = Window(optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1))
    trainer = trainer_of(accumulate_grad_batches=2, max_epochs=2)
    trainer.fit(module, loader())
    return {"difference": difference_of_ranks(trainer)}


for setting in ("warn", "skip"):

    def last_of_a_window_left_out(folder: Path, *, setting: str = setting) -> dict:
        """The last batch of each window gives no loss, or one that is left out: what the others gave is averaged."""

        class LeavesOut(Net):
            def training_step(self, batch, batch_idx):
                loss = super().training_step(batch, batch_idx)
                if batch_idx % 2 == 0:
                    return loss
                return None if setting == "warn" else loss * torch.nan

        module = LeavesOut(optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1))
        trainer = trainer_of(accumulate_grad_batches=2, max_epochs=2, on_nan=setting)
        trainer.fit(module, loader())
        return {"difference": difference_of_ranks(trainer), "steps": trainer.global_step}

    SCENARIOS[f"last of a window left out: {setting}"] = last_of_a_window_left_out


@scenario
def lbfgs(folder: Path) -> str:
    try:
        trainer_of().fit(Net(optimizer=lambda net: torch.optim.LBFGS(net.parameters())), loader())
    except HeadstartError as error:
        return str(error)
    return "nothing was raised"


@scenario
def newest_in_parts(folder: Path) -> dict:
    """Checkpoints in parts with the usual settings: one is kept, `last` beside it, from which the run goes on."""

    def run(max_epochs: int) -> tuple[Trainer, dict[str, torch.Tensor]]:
        saves = ModelCheckpoint(folder, save_last=True, enable_version_counter=False)
        with_path = {"path": "last", "callbacks": [saves], "enable_checkpointing": True}
        return fitted(FSDPStrategy(saves="parts"), max_epochs=max_epochs, **with_path)

    run(2)
    kept = sorted(path.name for path in folder.iterdir())
    weights = run(3)[1]
    expected = fitted(FSDPStrategy(), max_epochs=3)[1]
    damaged = next((folder / "last.ckpt" / "parts").glob("__*"))
    dist.barrier()  # before one process changes what another looks at
    if dist.get_rank() == 0:
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
    dist.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = run(3)[1]
    return {
        "kept": kept,
        "weights": distance(weights, expected),
        "kept after damage": sorted(path.name for path in folder.iterdir()),
        "weights after damage": distance(again, expected),
        "said": [str(each.message) for each in caught if "Damaged" in str(each.message)],
    }


@scenario
def one_stops_all(folder: Path) -> dict:
    class Stops(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_rank == trainer.world_size - 1 and trainer.global_step == 2:
                trainer.should_stop = True

    trainer = trainer_of(max_epochs=5, callbacks=Stops())
    trainer.fit(Net(), loader(48))
    return {
        "steps": trainer.strategy.gather_objects(trainer.global_step),
        "difference": difference_of_ranks(trainer),
    }


# ---- gradients that are averaged otherwise


for how in ("stepped", "clipped", "stepped without the trainer", "with and without manual_backward"):

    def manual_optimization(folder: Path, *, how: str = how) -> dict:
        class Manual(Net):
            def __init__(self):
                super().__init__(norms=False, optimizer=sgd)
                self.automatic_optimization = False

            def training_step(self, batch, batch_idx):
                optimizer = self.optimizers(use_pl_optimizer=how != "stepped without the trainer")
                optimizer.zero_grad()
                loss = cross_entropy(self.head(self.backbone(batch[0])), batch[1])
                if how == "with and without manual_backward" and batch_idx % 2:
                    loss.backward()
                else:
                    self.manual_backward(loss)
                if how == "clipped":
                    self.clip_gradients(optimizer, gradient_clip_val=0.01, gradient_clip_algorithm="value")
                optimizer.step()

        # Uneven where that is counted by samples: in manual_backward.
        count = 24 if how == "with and without manual_backward" else 23
        seed_everything(7, verbose=False)
        trainer = trainer_of()
        trainer.fit(Manual(), loader(count))
        weights = copy.deepcopy(trainer.lightning_module.state_dict())
        difference = difference_of_ranks(trainer)
        seed_everything(7, verbose=False)
        one = trainer_of(strategy="single_device", devices=1)
        one.fit(Manual(), loader(count, batch_size=2 * dist.get_world_size()))
        return {"difference": difference, "weights": distance(weights, one.lightning_module.state_dict())}

    SCENARIOS[f"manual optimization: {how}"] = manual_optimization


@scenario
def different_weights_at_the_start(folder: Path) -> dict:
    module = Net()
    torch.manual_seed(100 + dist.get_rank() if dist.is_initialized() else 0)
    nn.init.normal_(module.head[1].weight)
    trainer = trainer_of(max_epochs=1)
    trainer.fit(module, loader())
    return {"difference": difference_of_ranks(trainer)}


# ---- checkpoints


def run_with_checkpoints(folder: Path, *, ckpt_path: str | None = None, **settings: Any) -> Trainer:
    seed_everything(3, verbose=False)
    saves = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = trainer_of(
        callbacks=[saves, BackboneFinetuning(1, train_bn=True)], max_epochs=3, enable_checkpointing=True,
        reuse_frozen="exact", deterministic=True, **settings,
    )  # fmt: skip
    module = Net(dropout=0.3)
    trainer.fit(module, loader(3 * 4 * trainer.world_size - 2, batch_size=4), loader(5), ckpt_path=ckpt_path)
    torch.use_deterministic_algorithms(mode=False)
    return trainer


@scenario
def resumed_within_a_window(folder: Path) -> dict:
    """Gradients that were accumulated when the checkpoint was written go on."""
    seen = {}
    for title in ("whole", "again"):
        seed_everything(3, verbose=False)

        class Saves(Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                if title == "whole" and (trainer.current_epoch, batch_idx) == (1, 2):
                    trainer.save_checkpoint(folder / "within.ckpt")

        trainer = trainer_of(
            callbacks=[Saves()], accumulate_grad_batches=2, reuse_frozen="exact", deterministic=True
        )
        module = Net(dropout=0.3)
        path = None if title == "whole" else folder / "within.ckpt"
        trainer.fit(module, loader(8 * trainer.world_size), ckpt_path=path)
        torch.use_deterministic_algorithms(mode=False)
        seen[title] = copy.deepcopy(module.state_dict())
    return {"difference": distance(seen["whole"], seen["again"]), "ranks": difference_of_ranks(trainer)}


@scenario
def resumed(folder: Path) -> dict:
    whole = run_with_checkpoints(folder / "whole")
    expected = copy.deepcopy(whole.lightning_module.state_dict())
    expected_values = {name: float(value) for name, value in whole.callback_metrics.items()}
    steps = whole.global_step
    differences, values = {}, {}
    for step in range(1, steps):
        path = folder / "whole" / f"step={step}.ckpt"
        again = run_with_checkpoints(folder / f"again{step}", ckpt_path=str(path))
        differences[step] = distance(again.lightning_module.state_dict(), expected)
        everyone = again.strategy.gather_objects(
            {
                name: float(value)
                for name, value in again.callback_metrics.items()
                if not name.endswith("_step")
            }
        )
        values[step] = max(abs(each[name] - expected_values[name]) for each in everyone for name in each)
    torch.save(expected, folder / "expected.pt")
    return {"differences": differences, "values": values, "steps": steps}


@scenario
def from_one_process(folder: Path) -> dict:
    """A checkpoint of one process, at an epoch's end and in the middle of one, goes on in several."""
    size = dist.get_world_size()

    def run(strategy: str, batch_size: int, name: str, **more: Any) -> Trainer:
        seed_everything(3, verbose=False)
        saves = ModelCheckpoint(folder / name, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = trainer_of(
            strategy=strategy, devices=1 if strategy == "single_device" else "auto", callbacks=[saves],
            enable_checkpointing=True, max_epochs=3,
        )  # fmt: skip
        trainer.fit(Net(norms=False, optimizer=adamw), loader(24, batch_size=batch_size), **more)
        return trainer

    # Each process runs the single one for itself: in a folder of its own.
    one = run("single_device", 2 * size, f"one{dist.get_rank()}")
    expected = copy.deepcopy(one.lightning_module.state_dict())
    found = {}
    for step in (one.global_step // 3, one.global_step // 3 + 1):
        path = folder / "one0" / f"step={step}.ckpt"
        dist.barrier()
        several = run("ddp", 2, f"several{step}", ckpt_path=str(path))
        found[step] = distance(several.lightning_module.state_dict(), expected)
    try:
        run("ddp", 3, "other", ckpt_path=str(folder / "one0" / f"step={one.global_step // 3 + 1}.ckpt"))
        message = "nothing was raised"
    except HeadstartError as error:
        message = str(error)
    return {"differences": found, "message": message}


# ---- frozen work


@scenario
def frozen_work_is_done_once(folder: Path) -> dict:
    """Three epochs in another order each: what is computed, over all processes. (A batch of one sample is another case.)"""
    count = 64 if dist.get_world_size() == 4 else 60
    reuse = Reuse(min_gain=0, say=lambda line: None)
    seed_everything(5, verbose=False)
    module = Net(norms=False)
    trainer = trainer_of(reuse_frozen=reuse, callbacks=BackboneFinetuning(99, train_bn=False), max_epochs=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it never thaws
        trainer.fit(module, loader(count))
    seed_everything(5, verbose=False)
    plain = Net(norms=False)
    other = trainer_of(reuse_frozen=False, callbacks=BackboneFinetuning(99, train_bn=False), max_epochs=3)
    other.fit(plain, loader(count))
    counts = trainer.strategy.gather_objects((reuse.report().num_computed, reuse.report().num_looked_up))
    return {
        "samples": count,
        "computed": sum(computed for computed, _ in counts),
        "looked up": sum(found for _, found in counts),
        "weights": distance(module.state_dict(), plain.state_dict()),
        "ranks": difference_of_ranks(trainer),
    }


# ---- weights in parts


def fitted(
    strategy: Any, *, plan: Any = None, path: Any = None, **settings: Any
) -> tuple[Trainer, dict[str, torch.Tensor]]:
    """Fit with a thaw in the second epoch, or a plan; give the trainer and the whole weights."""
    seed_everything(7, verbose=False)
    module = Net(norms=False, optimizer=adamw if plan is not None else None)
    is_one = strategy == "single_device"
    size = dist.get_world_size() if is_one else 1
    callbacks = settings.pop("callbacks", []) + ([BackboneFinetuning(1)] if plan is None else [])
    settings = {"max_epochs": 3 if plan is None else None, "reuse_frozen": "exact", **settings}
    trainer = trainer_of(
        strategy=strategy, devices=1 if is_one else "auto", callbacks=callbacks, plan=plan, **settings
    )
    trainer.fit(module, loader(23, batch_size=2 * size), loader(7), ckpt_path=path)
    return trainer, copy.deepcopy(trainer.strategy.whole(module.state_dict()))


for title, settings in {
    "thawed": {},
    "clipped": {"gradient_clip_val": 0.05},
    "accumulated": {"accumulate_grad_batches": 2},
}.items():

    def in_parts(folder: Path, *, settings=settings) -> dict:
        several, weights = fitted("fsdp", **settings)
        one, expected = fitted("single_device", **settings)
        values = several.callback_metrics, one.callback_metrics
        names = [name for name in values[1] if not name.endswith("_step") and name != "loss"]
        parts = list(several.lightning_module.parameters())
        return {
            "weights": distance(weights, expected),
            "logged": max(abs(float(values[0][name] - values[1][name])) for name in names),
            "held": sum(each.to_local().numel() for each in parts) / sum(each.numel() for each in parts),
            "statistics": several.strategy.largest_difference(several.lightning_module),
        }

    SCENARIOS[f"in parts: {title}"] = in_parts

for name in sorted({*PLANS} - {"lora"}):

    def plan_in_parts(folder: Path, *, name=name) -> dict:
        settings = {**QUICK.get(name, {"epochs": 2}), "monitor": "val", "mode": "min"}
        weights = fitted("fsdp", plan=named_plan(name, **settings))[1]
        expected = fitted("single_device", plan=named_plan(name, **settings))[1]
        return {"weights": distance(weights, expected)}

    SCENARIOS[f"plan in parts: {name}"] = plan_in_parts


@scenario
def saved_in_parts(folder: Path) -> dict:
    """Checkpoints as one file and as a folder of parts, read by as many processes, and by one."""
    found = {}
    for saves in ("whole", "parts"):

        def run(name: str, path: Any = None, *, saves=saves) -> dict[str, torch.Tensor]:
            callback = ModelCheckpoint(
                folder / saves / name, filename="{step}", every_n_train_steps=1, save_top_k=-1
            )
            return fitted(
                FSDPStrategy(saves=saves), path=path, callbacks=[callback], enable_checkpointing=True
            )[1]

        expected = run("whole")
        # What `go_on_in_another_number` reads.
        torch.save(expected, folder / f"{saves}.pt")
        steps = len(list((folder / saves / "whole").iterdir()))
        for step in (2, steps - 2):  # before the thaw and after it
            again = run(f"again{step}", str(folder / saves / "whole" / f"step={step}.ckpt"))
            found[f"{saves} {step}"] = distance(again, expected)
    trainer, expected = fitted(FSDPStrategy(saves="parts"), max_epochs=1)
    trainer.save_checkpoint(folder / "weights.safetensors")
    if dist.get_rank() == 0:
        found["safetensors"] = distance(load_file(folder / "weights.safetensors"), expected)
    return {"differences": found, "steps": steps}


@scenario
def goes_on_in_another_number(folder: Path) -> dict:
    """The last checkpoint of a run of another number of processes: nothing is left to train, and the weights are its."""
    source = Path(os.environ.get("OTHER_RUN", folder))
    found = {}
    for saves in ("whole", "parts") if source != folder else ():
        path = max(
            (source / saves / "whole").iterdir(), key=lambda each: int(each.stem.removeprefix("step="))
        )
        expected = torch.load(source / f"{saves}.pt", weights_only=True)
        for strategy in (FSDPStrategy(saves=saves), DDPStrategy()):
            weights = fitted(strategy, path=str(path))[1]
            found[f"{saves} {type(strategy).__name__}"] = distance(weights, expected)
    return found


@scenario
def refused_in_parts(folder: Path) -> list[str]:
    class Manual(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    messages = []
    for module, settings in (
        (Manual(), {}),
        (Net(optimizer=adamw), {"plan": named_plan("lora"), "max_epochs": None}),
    ):
        try:
            trainer_of(strategy="fsdp", **settings).fit(module, loader())
        except HeadstartError as error:
            messages.append(str(error))
    return messages


# ---- running them


def main() -> None:
    folder, *wanted = sys.argv[1:]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    strategy = DDPStrategy()
    strategy.connect()
    results = {}
    for name, function in SCENARIOS.items():
        if wanted and not any(name.startswith(each) for each in wanted):
            continue
        own = Path(folder) / name.replace(" ", "_").replace(":", "")
        if strategy.is_global_zero:
            own.mkdir(parents=True)
        strategy.barrier()
        problem = None
        try:
            results[name] = {"result": function(own)}
        except Exception:  # noqa: BLE001 (the test that asks for it fails)
            problem = traceback.format_exc()
        problems = strategy.gather_objects(problem)
        if any(problems):
            results[name] = {"problem": "\n".join(filter(None, problems))}
    if strategy.is_global_zero:
        (Path(folder) / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
