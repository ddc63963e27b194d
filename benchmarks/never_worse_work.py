"""What `never_worse.py` runs, each piece in a process of its own: `headstart fit`, and what others do with the same samples.

The peers' interpreter runs this file too, so headstart is imported only where headstart trains. Everybody has the same
network with a linear head, the same training samples in batches of 32. `headstart fit` mirrors every second photo,
and has validation samples, by which it chooses; the rivals have neither, as in the examples of their documentation, from
which their settings are, or, for a plain loop, usual ones. Nothing was tuned on any of these data. Seconds are the
processor's: with one thread, the wall time of a quiet machine, and the same on a busy one.

The rivals:

- Lightning: `BackboneFinetuning` with the documented `lambda_func` (1.5), AdamW at 1e-3; it thaws in the middle of the run
  (at the documented epoch 200 it would never);
- fastai: `fine_tune` with its defaults, one frozen epoch, then a cycle with rates that differ by depth;
- full: AdamW, one cycle up to 1e-3 for the head and 1e-4 (photos) or 5e-5 (texts) for the backbone;
- from scratch: AdamW, one cycle up to 1e-3, from random weights.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import reuse_work
import torch
from reuse_work import BATCH_SIZE, Photos, Texts, new_parts, pad
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset

HEAD_LR = SCRATCH_LR = 1e-3
FULL_LR = {"photos": 1e-4, "texts": 5e-5}
TRIAL_SAMPLES = 1024


def work(job: dict) -> dict:
    """Do what a job says, and give the figures."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.manual_seed(0)
    jobs = {"auto": run_auto, "rival": run_rival, "reach": reach_from_scratch}
    return jobs[job.pop("do")](**job)


# ---- headstart


def run_auto(*, folder: str, options: list[str], test: dict) -> dict:
    """Run `headstart fit` with its plan `auto`; give test accuracies of what it kept, its head alone, and its fine-tuned model.

    The mean recall of the classes beside them: validation samples are of all classes alike, those of the test need not be.
    """
    from sklearn.metrics import balanced_accuracy_score

    from headstart import seed_everything
    from headstart.auto import HEAD, TUNED
    from headstart.cli import auto, curves, set_up
    from headstart.cli.options import parse
    from headstart.cli.run_folder import RunFolder
    from headstart.deferred import Reuse

    settings = replace(parse(options).options, report=False)  # the peers make none
    data = set_up.open_data(settings).prepare()
    begun = time.process_time()
    seed_everything(settings.seed, verbose=False)
    model = set_up.make_model(settings, data)
    run = RunFolder(Path(folder))
    run.begin(settings, data)
    reuse = Reuse(directory=run.features, say=lambda line: None)
    outcome = auto.train(
        model, data, settings, run, resume=False, reuse=reuse, loggers=curves.loggers_of(run, settings.logger)
    )
    seconds = time.process_time() - begun
    transform = model.preprocessing.eval_transform() if model.kind == "images" else None
    predicted = {"auto": predictions_of(model, test, transform)}
    validation = outcome.metrics["validation"]["acc"]
    for name in (HEAD, TUNED):
        outcome.candidates.keep(name)
        predicted[f"its {name}"] = predictions_of(model, test, transform)
    epochs = outcome.record.phases[-1].epochs if outcome.record.phases else 0
    kept = outcome.metrics["choice"]["chosen"]
    return {
        "accuracies": {who: share_right(*found) for who, found in predicted.items()},
        "recalls": {
            who: float(balanced_accuracy_score(targets, found)) for who, (found, targets) in predicted.items()
        },
        "seconds": seconds,
        "epochs": epochs,
        "kept": kept,
        "validation": validation,
    }


# ---- the rivals


def run_rival(
    *, name: str, train: dict, test: dict, epochs: int | None = None, seconds: float | None = None
) -> dict:
    """Train as a rival does for so many epochs, or as many as fit into so many seconds; give its test accuracy.

    How many fit is found by a trial of two epochs of at most `TRIAL_SAMPLES`, which is not counted.
    """
    dataset = dataset_of(train)
    # The first run imports and warms up.
    timed(name, train, Subset(dataset, range(min(64, len(dataset)))), epochs=2)
    if epochs is None:
        drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
        trial = Subset(dataset, drawn[:TRIAL_SAMPLES].tolist())
        _, taken = timed(name, train, trial, epochs=2)
        epochs = max(1, round(2 * seconds / taken * len(trial) / len(dataset)))
    network, taken = timed(name, train, dataset, epochs=epochs)
    return {
        "accuracies": {name: share_right(*predictions_of(network, test))},
        "seconds": taken,
        "epochs": epochs,
    }


def timed(name: str, data: dict, dataset: Dataset, *, epochs: int) -> tuple[nn.Module, float]:
    """Train a new network, and give it with the seconds."""
    rivals: dict[str, Callable] = {
        "Lightning": fit_lightning,
        "fastai": fit_fastai,
        "full": fit_plain,
        "from scratch": fit_plain,
    }
    backbone, head = new_parts(data["kind"], data["num_classes"])
    lr = FULL_LR[data["kind"]]
    if name == "from scratch":
        lr = SCRATCH_LR
        forget(backbone)
    loader = loader_of(dataset, data, shuffle=True)
    begun = time.process_time()
    rivals[name](backbone, head, loader, epochs=epochs, lr=lr, kind=data["kind"])
    return nn.Sequential(backbone, head), time.process_time() - begun


def fit_lightning(
    backbone: nn.Module, head: nn.Module, loader: DataLoader, *, epochs: int, kind: str, **_
) -> None:
    """Train as the documentation of `BackboneFinetuning` shows; thaw in the middle."""
    import pytorch_lightning
    from pytorch_lightning.callbacks import BackboneFinetuning

    module = reuse_work.new_module(pytorch_lightning.LightningModule, kind, "default", (backbone, head))
    callback = BackboneFinetuning(epochs // 2, lambda epoch: 1.5)
    reuse_work.fit("pytorch_lightning", module, loader, epochs, callbacks=[callback])


def fit_fastai(backbone: nn.Module, head: nn.Module, loader: DataLoader, *, epochs: int, **_) -> None:
    """Train as the documentation of `fine_tune` shows; its frozen epoch counts."""
    from fastai.callback.progress import no_bar  # noqa: F401 (adds it to Learner)
    from fastai.callback.schedule import fine_tune  # noqa: F401 (adds it to Learner)
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

    learner = Learner(
        DataLoaders(loader, []),
        nn.Sequential(backbone, head),
        loss_func=cross_entropy,
        splitter=lambda network: [list(part.parameters()) for part in network],
    )
    with learner.no_bar():
        learner.fine_tune(max(1, epochs - 1))


def fit_plain(
    backbone: nn.Module, head: nn.Module, loader: DataLoader, *, epochs: int, lr: float, **_
) -> None:
    """Train everything in a plain loop."""
    network = nn.Sequential(backbone, head).train()
    optimizer = torch.optim.AdamW([{"params": part.parameters()} for part in network])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [lr, HEAD_LR], total_steps=epochs * len(loader) + 1
    )
    for _ in range(epochs):
        one_epoch(network, loader, optimizer, schedule)


def one_epoch(network: nn.Module, loader: DataLoader, optimizer, schedule=None) -> None:
    for inputs, targets in loader:
        loss = cross_entropy(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def reach_from_scratch(*, train: dict, validation: dict, accuracy: float, seconds: float) -> dict:
    """Train from random weights until the validation accuracy is reached, or the time is over."""
    backbone, head = new_parts(train["kind"], train["num_classes"])
    forget(backbone)
    network = nn.Sequential(backbone, head)
    optimizer = torch.optim.AdamW(network.parameters(), lr=SCRATCH_LR)
    loader = loader_of(dataset_of(train), train, shuffle=True)
    best, taken, epochs = 0.0, 0.0, 0
    while taken < seconds and best < accuracy:
        begun = time.process_time()
        one_epoch(network.train(), loader, optimizer)
        taken += time.process_time() - begun
        epochs += 1
        best = max(best, share_right(*predictions_of(network, validation)))
    return {"best": best, "wanted": accuracy, "seconds": taken, "epochs": epochs, "accuracies": {}}


# ---- what they share


def forget(network: nn.Module) -> None:
    """Give a network random weights: each layer's own, and of a transformer those that its configuration draws."""
    if isinstance(network, reuse_work.MeanPooled):
        from transformers import AutoModel

        network.encoder = AutoModel.from_config(network.encoder.config)
        return
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def loader_of(dataset: Dataset, data: dict, *, shuffle: bool) -> DataLoader:
    collate = pad if data["kind"] == "texts" else None
    return DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=shuffle, collate_fn=collate)


def dataset_of(data: dict) -> Dataset:
    return (
        Texts(data["file"], data["size"]) if data["kind"] == "texts" else Photos(data["file"], data["size"])
    )


@torch.no_grad()
def predictions_of(
    network: nn.Module, data: dict, transform: Callable | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give predicted and true classes, (N,), in evaluation mode, with the network's own preprocessing if it has one."""
    network.eval()
    dataset = dataset_of(data)
    if transform is not None:
        dataset.transform = transform
    loader = loader_of(dataset, data, shuffle=False)
    predicted, targets = zip(
        *((network(inputs).argmax(dim=1), targets) for inputs, targets in loader), strict=True
    )
    return torch.cat(predicted), torch.cat(targets)


def share_right(predicted: torch.Tensor, targets: torch.Tensor) -> float:
    return (predicted == targets).double().mean().item()


def answer(job: str, file: str) -> None:
    """Do a job, and write what came out into a file; what libraries print goes to standard error."""
    import sys

    with contextlib.redirect_stdout(sys.stderr):
        result = work(json.loads(job))
    Path(file).write_text(json.dumps(result), encoding="utf-8")
