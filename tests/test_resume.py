"""A run that was cut and resumed is the run that was never cut, bit for bit."""

from __future__ import annotations

import json
import os
import random
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from headstart import Callback, LightningModule, Trainer, seed_everything
from headstart.callbacks import BackboneFinetuning, BaseFinetuning, EarlyStopping, ModelCheckpoint
from headstart.errors import MisconfigurationError
from headstart.loggers.logger import Logger
from headstart.plan import Phase, Plan

NUM_SAMPLES, BATCH_SIZE, NUM_BATCHES = 18, 4, 5  # the last batch is short


class Augmented(Dataset):
    """Draws from every global random generator for each sample, as augmentation does."""

    def __init__(self, num_samples: int = NUM_SAMPLES):
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(num_samples, 4, generator=generator)
        self.y = torch.arange(num_samples) % 3

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = 0.1 * torch.randn(4) + 0.01 * random.random() + 0.01 * float(np.random.rand())
        return self.x[index] + noise, self.y[index]


class Stream(IterableDataset):
    """Augmented samples in order, from a dataset that does not know its length."""

    def __iter__(self) -> Any:
        samples = Augmented()
        return (samples[index] for index in range(len(samples)))


class Net(LightningModule):
    """Batch norm, dropout, a metric: all that has a state of its own."""

    def __init__(self, setup: str = "sgd"):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 6), nn.ReLU()
        )
        self.head = nn.Linear(6, 3)
        self.accuracy = torchmetrics.MeanMetric()
        self.val_accuracy = torchmetrics.MeanMetric()
        self.setup_name = setup

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        logits = self(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.accuracy((logits.argmax(1) == y).float())
        self.log("train_acc", self.accuracy, on_step=False, on_epoch=True)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[-1]["lr"], on_step=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.val_accuracy((logits.argmax(1) == y).float())
        self.log("val_acc", self.val_accuracy)
        self.log("val_loss", nn.functional.cross_entropy(logits, y))

    def configure_optimizers(self) -> Any:
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        schedulers = torch.optim.lr_scheduler
        if self.setup_name == "adam and warm-up":
            optimizer = torch.optim.Adam(trainable, lr=0.01)
            warm_up = schedulers.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 7))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up, "interval": "step"}}
        optimizer = torch.optim.SGD(trainable, lr=0.05, momentum=0.9)
        if self.setup_name == "plateau":
            plateau = schedulers.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=1.0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
        if self.setup_name == "plateau on a training metric":
            plateau = schedulers.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=1.0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "train_acc"}}
        if self.setup_name == "one cycle":
            cycle = schedulers.OneCycleLR(optimizer, max_lr=0.1, total_steps=200)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
        return optimizer


class ThawedByHand(Net):
    """Thaws in a hook of the module, with no callback that could remember it."""

    def __init__(self, setup: str = "sgd"):
        super().__init__(setup)
        self.backbone.requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.backbone[4].requires_grad_(True)
            self.trainer.optimizers[0].add_param_group(
                {"params": list(self.backbone[4].parameters()), "lr": 0.003}
            )


class LayerByLayer(BaseFinetuning):
    """Thaws one layer an epoch, each in a group of its own."""

    def __init__(self) -> None:  # without super().__init__(), on purpose
        self.thawed: list[int] = []

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone[4], optimizer, lr=0.01)
        if epoch == 2:
            self.unfreeze_and_add_param_group([pl_module.backbone[0], pl_module.backbone[1]], optimizer)


class SaveEverywhere(Callback):
    """Keeps a checkpoint of every moment at which a `ModelCheckpoint` can save."""

    runs_after_module = True

    def __init__(self, folder: Path):
        self.folder = folder

    def save(self, trainer: Trainer, moment: str) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"{len(list(self.folder.iterdir())):03d} {moment}.ckpt")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.save(trainer, f"epoch {trainer.current_epoch} batch {batch_idx}")

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.save(trainer, f"epoch {trainer.current_epoch} end")

    def on_validation_end(self, trainer, pl_module) -> None:
        self.save(trainer, f"epoch {trainer.current_epoch} validation")

    def on_train_end(self, trainer, pl_module) -> None:
        self.save(trainer, "train end")


class Recorder(Logger):
    """Keeps what a logger is given."""

    name = "recorder"
    version = 0

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params) -> None: ...


def train_loader(num_workers: int = 0, *, own_generator: bool = False, stream: bool = False) -> DataLoader:
    if stream:
        return DataLoader(Stream(), batch_size=BATCH_SIZE, num_workers=num_workers)
    generator = torch.Generator().manual_seed(77) if own_generator else None
    return DataLoader(
        Augmented(), batch_size=BATCH_SIZE, shuffle=True, num_workers=num_workers, generator=generator
    )


def val_loader() -> DataLoader:
    return DataLoader(Augmented(7), batch_size=4)


def new_trainer(max_epochs: int = 3, **options: Any) -> Trainer:
    return Trainer(
        max_epochs=max_epochs, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        **{"logger": False, "log_every_n_steps": 1, "enable_checkpointing": False, **options},
    )  # fmt: skip


def fingerprint(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Everything in which two runs may differ at their end; the random generators are read by drawing."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {
        "weights": dict(module.state_dict()),
        "trains": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        "modes": {name: child.training for name, child in module.named_modules()},
        "optimizers": [each.state_dict() for each in trainer.optimizers],
        "groups": [
            [[names[parameter] for parameter in group["params"]] for group in each.param_groups]
            for each in trainer.optimizers
        ],
        "schedulers": [plain_state(config.scheduler) for config in trainer.lr_scheduler_configs],
        "epoch and step": (trainer.current_epoch, trainer.global_step),
        "values": trainer.callback_metrics,
        "draws": [torch.rand(3), random.random(), float(np.random.rand())],
    }


def plain_state(scheduler: Any) -> dict[str, Any]:
    # torch's schedulers keep functions in some states; they are not compared.
    return {key: value for key, value in scheduler.state_dict().items() if not callable(value)}


def assert_identical(left: Any, right: Any, where: str = "") -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key, value in left.items():
            assert_identical(value, right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_identical(one, other, f"{where}/{index}")
    elif isinstance(left, float) and left != left:
        assert right != right, where
    else:
        assert left == right, where


def check_every_resume(
    tmp_path: Path, make_module, *, callbacks=list, every: int = 1, loader=train_loader, **options
):
    """Run once without a cut, keep a checkpoint of each moment, and resume from each in a fresh trainer."""
    seed_everything(3)
    module, recorder = make_module(), Recorder()
    (tmp_path / "saved").mkdir()
    trainer = new_trainer(
        callbacks=[*callbacks(), SaveEverywhere(tmp_path / "saved")], logger=recorder, **options
    )
    trainer.fit(module, loader(), val_loader())
    expected = fingerprint(trainer, module)
    saved = sorted((tmp_path / "saved").iterdir())
    assert len(saved) > 15
    for path in saved[::every]:
        seed_everything(999)  # another process would not have the first one's random state
        module, rest = make_module(), Recorder()
        trainer = new_trainer(callbacks=callbacks(), logger=rest, **options)
        trainer.fit(module, loader(), val_loader(), ckpt_path=path)
        assert_identical(expected, fingerprint(trainer, module), path.name)
        tail = recorder.rows[len(recorder.rows) - len(rest.rows) :]
        assert_identical(tail, rest.rows, f"{path.name}, logged")


def thaw(epoch: int, **options: Any):
    return lambda: [BackboneFinetuning(unfreeze_backbone_at_epoch=epoch, **options)]


@pytest.mark.parametrize(
    "setup", ["sgd", "adam and warm-up", "plateau", "plateau on a training metric", "one cycle"]
)
def test_resumes_from_every_moment_with_optimizer_and_scheduler_as_they_were(tmp_path, setup):
    check_every_resume(tmp_path, lambda: Net(setup), every=1 if setup == "plateau" else 2)


@pytest.mark.parametrize("setup", ["adam and warm-up", "plateau", "one cycle"])
@pytest.mark.parametrize("train_bn", [True, False])
def test_resumes_before_at_and_after_the_epoch_in_which_the_backbone_thaws(tmp_path, setup, train_bn):
    check_every_resume(tmp_path, lambda: Net(setup), callbacks=thaw(1, train_bn=train_bn), every=2)


def test_resumes_a_backbone_that_thaws_in_the_first_epoch(tmp_path):
    check_every_resume(tmp_path, Net, callbacks=thaw(0), every=4)


@pytest.mark.parametrize("setup", ["adam and warm-up", "plateau"])
def test_resumes_groups_that_a_callback_added_epoch_by_epoch(tmp_path, setup):
    check_every_resume(tmp_path, lambda: Net(setup), callbacks=lambda: [LayerByLayer()], every=3)


@pytest.mark.parametrize("setup", ["sgd", "adam and warm-up"])
def test_resumes_what_was_thawed_by_hand_in_a_hook_of_the_module(tmp_path, setup):
    check_every_resume(tmp_path, lambda: ThawedByHand(setup), every=3)


def test_resumes_from_what_model_checkpoint_saves_every_few_steps_and_by_its_name_for_the_last(tmp_path):
    def run(**options: Any) -> tuple[Trainer, Net]:
        module = Net("plateau")
        keeper = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=2, save_top_k=-1, save_last=True)
        stopping = EarlyStopping("val_loss", patience=9)
        trainer = new_trainer(callbacks=[*thaw(1)(), stopping, keeper], enable_checkpointing=True)
        trainer.fit(module, train_loader(), val_loader(), **options)
        return trainer, module

    seed_everything(3)
    expected = fingerprint(*run())
    saved = sorted((tmp_path / "kept").glob("epoch*.ckpt"))
    assert len(saved) == 7  # 15 steps
    for path in [*saved[::3], "last"]:
        seed_everything(999)
        assert_identical(expected, fingerprint(*run(ckpt_path=path)), str(path))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"val_check_interval": 2}, id="validation in the middle of an epoch"),
        pytest.param({"val_check_interval": 0.5}, id="validation twice an epoch"),
        pytest.param(
            {"val_check_interval": 3, "check_val_every_n_epoch": None}, id="validation across epochs"
        ),
        pytest.param({"accumulate_grad_batches": 2}, id="accumulation with a short last window"),
        pytest.param(
            {"accumulate_grad_batches": 2, "val_check_interval": 1}, id="validation inside a window"
        ),
        pytest.param({"limit_train_batches": 4}, id="limited batches"),
        pytest.param({"gradient_clip_val": 0.1}, id="clipping"),
        pytest.param({"max_steps": 12}, id="ends in the middle of an epoch"),
        pytest.param({"precision": "bf16-mixed"}, id="autocast"),
    ],
)
def test_resumes_from_every_moment_under(tmp_path, options):
    check_every_resume(tmp_path, lambda: Net("plateau"), callbacks=thaw(1), every=4, **options)


@pytest.mark.parametrize("own_generator", [False, True])
def test_resumes_the_order_and_the_augmentation_of_the_data(tmp_path, own_generator):
    check_every_resume(tmp_path, Net, loader=lambda: train_loader(own_generator=own_generator), every=2)


@pytest.mark.slow
@pytest.mark.parametrize("own_generator", [False, True])
def test_resumes_the_order_and_the_augmentation_in_worker_processes(tmp_path, own_generator):
    check_every_resume(tmp_path, Net, loader=lambda: train_loader(2, own_generator=own_generator), every=6)


def test_resumes_a_stream_that_does_not_know_its_length(tmp_path):
    check_every_resume(
        tmp_path, Net, loader=lambda: train_loader(stream=True), accumulate_grad_batches=2, every=2
    )


def test_resumes_sums_of_booleans_and_of_halves(tmp_path):
    class Sums(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            for name, value in (("first", batch[0].mean() > 0), ("halves", loss.detach().bfloat16())):
                self.log(name, value, on_step=False, on_epoch=True, reduce_fx="sum")
            return loss

    check_every_resume(tmp_path, Sums, every=3)


@pytest.mark.filterwarnings(
    "ignore:The backbone is to be thawed at epoch 1, and training ends after 1 epochs"
)
def test_fit_again_after_validate_and_with_more_epochs_is_the_run_that_was_never_cut():
    def run(cut: list[int], setup: str) -> dict[str, Any]:
        seed_everything(3)
        module = Net(setup)
        loader = train_loader(own_generator=True)
        trainer = new_trainer(max_epochs=cut[0], callbacks=thaw(1)())
        for epochs in cut:
            trainer.max_epochs = epochs
            trainer.fit(module, loader, val_loader())
            if epochs != cut[-1]:
                trainer.validate(module, val_loader(), verbose=False)
        return fingerprint(trainer, module)

    for setup in ("plateau", "adam and warm-up", "one cycle"):
        whole = run([4], setup)
        for cut in ([1, 4], [2, 4], [1, 2, 3, 4]):
            assert_identical(whole, run(cut, setup), f"{setup}, fitted to {cut}")


def test_a_checkpoint_of_a_finished_run_goes_on_with_more_epochs(tmp_path):
    def run(max_epochs: int, ckpt_path: Path | None = None) -> tuple[Trainer, Net]:
        seed_everything(3)
        module = Net("adam and warm-up")
        trainer = new_trainer(max_epochs=max_epochs, callbacks=thaw(1)())
        trainer.fit(module, train_loader(), val_loader(), ckpt_path=ckpt_path)
        return trainer, module

    trainer, _ = run(2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    expected = fingerprint(*run(4))
    assert_identical(expected, fingerprint(*run(4, tmp_path / "two.ckpt")))


def test_the_backbone_trains_at_its_shown_rate_after_a_resume(tmp_path):
    seed_everything(3)
    trainer = new_trainer(max_epochs=2, callbacks=thaw(1, train_bn=False)())
    trainer.fit(Net(), train_loader())
    trainer.save_checkpoint(tmp_path / "thawed.ckpt")
    module = Net()
    trainer = new_trainer(max_epochs=3, callbacks=thaw(1, train_bn=False)())
    before = torch.load(tmp_path / "thawed.ckpt", weights_only=True)["state_dict"]
    trainer.fit(module, train_loader(), ckpt_path=tmp_path / "thawed.ckpt")
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.05, 0.01])
    for name, parameter in module.backbone.named_parameters():
        assert parameter.requires_grad
        if name == "0.bias":
            continue  # the batch norm behind it takes its gradient away
        assert not torch.equal(parameter, before[f"backbone.{name}"]), name


# ---- a second process, and a kill

PROGRAM = """
import json, os, signal, sys
import torch
from headstart import Callback, LightningModule, Trainer, seed_everything
from headstart.callbacks import BackboneFinetuning
from torch import nn

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 1)
    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self.head(self.backbone(batch[0])), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        if how == "killed" and self.current_epoch == 2 and batch_idx == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss
    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)

class SaveEachBatch(Callback):
    runs_after_module = True
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(path)

how, path = sys.argv[1:]
seed_everything(5 if how != "resumed" else 6)
data = torch.utils.data.TensorDataset(torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), torch.ones(20, 1))
module = Net()
trainer = Trainer(max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                  enable_model_summary=False, callbacks=[BackboneFinetuning(1), SaveEachBatch()])
trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4, shuffle=True),
            ckpt_path=path if how == "resumed" else None)
print(json.dumps({
    "weights": {name: value.tolist() for name, value in module.state_dict().items()},
    "loss": float(trainer.callback_metrics["loss"]),
    "draw": torch.rand(3).tolist(),
    "rates": [group["lr"] for group in trainer.optimizers[0].param_groups],
}))
"""


@pytest.mark.slow
def test_a_second_process_finishes_what_a_kill_cut_in_the_middle_of_an_epoch(tmp_path, monkeypatch, capsys):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run(how: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, program, how, tmp_path / "killed.ckpt"], capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    assert run("killed").returncode == -signal.SIGKILL
    resumed = run("resumed")
    assert resumed.returncode == 0, resumed.stderr
    # The run that is never cut happens here: a third process would only take time.
    monkeypatch.setattr(sys, "argv", [str(program), "whole", str(tmp_path / "whole.ckpt")])
    runpy.run_path(str(program))
    # JSON holds floats in full: equal text is equal bits.
    assert json.loads(resumed.stdout) == json.loads(capsys.readouterr().out)


# ---- plans


PLAN = Plan(
    phases=[
        Phase(name="head", trains="head", epochs=1),
        Phase(name="top", trains=("head", "last block"), lr=0.02, steps=7, norms="frozen"),
        Phase(name="all", trains="all", lr=0.01, layer_decay=0.5, epochs=1, l2_sp=0.1),
    ],
    monitor="val_loss",
)


@pytest.mark.slow
@pytest.mark.parametrize("setup", ["sgd", "adam and warm-up", "one cycle"])
def test_a_plan_goes_on_from_every_moment_phase_ends_included(tmp_path, setup):
    check_every_resume(tmp_path, lambda: Net(setup), plan=PLAN, max_epochs=-1)


def test_a_resume_with_another_plan_is_refused_where_it_has_begun(tmp_path):
    trainer = new_trainer(plan=PLAN, max_epochs=1)
    trainer.fit(Net(), train_loader(), val_loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(MisconfigurationError, match="phases that have begun cannot change"):
        new_trainer(plan="full").fit(Net(), train_loader(), val_loader(), ckpt_path=tmp_path / "a.ckpt")


# ---- manual optimization


class TwoByHand(LightningModule):
    """Its second optimizer steps with every other batch, on the gradients of both."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        one, two = self.optimizers()
        self.manual_backward(nn.functional.cross_entropy(self.first(x), y))
        one.step()
        one.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self.second(x), y))
        if batch_idx % 2:
            two.step()
            two.zero_grad()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(each.parameters(), 0.1) for each in (self.first, self.second)]


def test_gradients_that_wait_in_manual_optimization_are_resumed(tmp_path):
    class Saves(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.progress.total_batches}.ckpt")

    def run(*callbacks: Callback, path: Path | None = None) -> dict[str, torch.Tensor]:
        seed_everything(1)
        module = TwoByHand()
        trainer = Trainer(
            max_epochs=2, callbacks=list(callbacks), accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, DataLoader(Augmented(), BATCH_SIZE, shuffle=True), ckpt_path=path)
        return module.state_dict()

    whole = run(Saves())
    for batch in range(1, 2 * NUM_BATCHES):
        rest = run(path=tmp_path / f"{batch}.ckpt")
        assert all(torch.equal(value, rest[name]) for name, value in whole.items()), batch
