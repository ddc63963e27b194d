"""Where a run stands, for messages: the epoch, the batch, and the samples in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import ConcatDataset, DataLoader, DistributedSampler, Subset

from headstart.deferred.source import index_loader, is_foreseeable
from headstart.signals import LONG_WAIT
from headstart.words import counted

if TYPE_CHECKING:
    from headstart.trainer import Trainer

_SHOWN = 16


def describe_batch(trainer: Trainer) -> str:
    """Give epoch, batch and step of the training batch under way and, where they are known, its samples."""
    progress = trainer.progress
    text = f"epoch {progress.epoch}, batch {progress.batch}, after {counted(progress.global_step, 'step')}"
    try:
        indices = samples_of_batch(trainer)
    except Exception:  # noqa: BLE001 (the program's own samplers; what is reported here is another error)
        indices = None
    return text if indices is None else f"{text}; {describe_samples(_dataset_of(trainer), indices)}"


def describe_failure(trainer: Trainer) -> str:
    """Give the place in the run at which an exception was raised: a sentence."""
    progress = trainer.progress
    if trainer.logbook.evaluation is not None:
        return f"It was raised in the validation of epoch {progress.epoch}, after {counted(progress.global_step, 'step')}."
    boundary, hook = trainer.boundary, trainer.hooks.current
    if boundary.is_fetching:
        return f"It was raised in reading a batch: {describe_batch(trainer)}."
    if boundary.is_open and hook != "on_train_epoch_start":
        return f"It was raised in {hook or 'the optimizer'}: {describe_batch(trainer)}."
    return f"It was raised in {hook or 'the trainer'}: epoch {progress.epoch}, after {counted(progress.global_step, 'step')}."


def say_that_it_waits(trainer: Trainer) -> None:
    """Say which batch the run has been waiting for, long enough for a loader's process to hang."""
    loader = trainer.train_dataloader
    workers = counted(loader.num_workers, "loader process", plural="loader processes")
    trainer.say(
        f"Waiting for {LONG_WAIT:.0f} seconds for a batch from {workers}: "
        f"{describe_batch(trainer)}. If one of them hangs, this does not end by itself: DataLoader(timeout=...) makes it "
        "an error."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or a CPU.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
        True
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(
        re.search(r"can't allocate memory|not enough memory|out of memory", str(error))
    )


def advice_for(trainer: Trainer, exception: BaseException) -> str:
    """Give what to do about failures of a loader whose message does not say so; else an empty string."""
    text = str(exception)
    # Its end of the pipe may be gone before the signal of its death is here.
    has_workers = trainer.boundary.is_fetching and getattr(trainer.train_dataloader, "num_workers", 0) > 0
    is_broken_pipe = has_workers and isinstance(exception, ConnectionError | EOFError)
    if is_broken_pipe or re.search(
        r"DataLoader worker.*(killed by signal|exited unexpectedly)", text, re.DOTALL
    ):
        return (
            "A loader's process was ended from outside. Most often memory ran out: use fewer workers (num_workers) or "
            "smaller batches."
        )
    if is_out_of_memory(exception) and trainer.batch_splitter is None:
        return (
            "Memory ran out. Halve the loader's batch_size and double accumulate_grad_batches: a step then has as many "
            "samples as before. Or let Trainer(on_out_of_memory='split') do so where it is needed, for losses that are "
            "means over samples."
        )
    if "DataLoader timed out" in text:
        return (
            "A loader's process gave no batch within the loader's timeout: one of the samples it was reading may hang (a "
            "network file, a lock), or reading is slow: then give more workers or a longer timeout."
        )
    return ""


def samples_of_batch(trainer: Trainer) -> list[int] | None:
    """Give the numbers of the samples of the training batch under way.

    The order is drawn once more from the random state of the epoch's start, so nothing is kept while all goes well.
    `None` where the order is not a function of that state (iterable datasets, samplers of the program's own), and with
    several processes, which draw it together.
    """
    if trainer.world_size > 1:
        return None
    loader, batches = trainer.train_dataloader, trainer.train_batches
    start = batches.state_dict().get("start")
    if start is None or not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return None
    is_distributed = type(getattr(loader.batch_sampler, "sampler", None)) is DistributedSampler
    if not is_foreseeable(loader) and not is_distributed:
        return None
    now = batches.random_state()
    try:
        batches.restore(start)
        order = index_loader(loader, first=trainer.boundary.is_first_pass)
        found = next(islice(order, trainer.progress.batch, None), None)
    finally:
        batches.restore(now)
    return None if found is None else [int(each) for each in found]


def _dataset_of(trainer: Trainer) -> Any:
    return getattr(trainer.train_dataloader, "dataset", None)


def describe_samples(dataset: Any, indices: Sequence[int]) -> str:
    """Give the numbers of samples and, where the dataset knows them, their files or rows.

    Example:
        >>> describe_samples([1, 2, 3], [2, 0])
        'samples 2, 0'
    """
    shown = list(indices[:_SHOWN])
    places = [place_of(dataset, index) for index in shown]
    words = [
        f"{index} ({place})" if place else str(index) for index, place in zip(shown, places, strict=True)
    ]
    more = f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else ""
    return f"samples {', '.join(words)}{more}"


def place_of(dataset: Any, index: int) -> str:
    """Give the file or row of a sample, in the datasets of `headstart.data` and those built like torchvision's folders.

    Example:
        >>> class Folder:
        ...     samples = [("cat/1.jpg", 0), ("dog/1.jpg", 1)]
        >>> place_of(Subset(Folder(), [1, 0]), 0)
        'dog/1.jpg'
    """
    if isinstance(dataset, Subset):
        return place_of(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        sizes = dataset.cumulative_sizes
        part = next(n for n, size in enumerate(sizes) if index < size)
        return place_of(dataset.datasets[part], index - (sizes[part - 1] if part else 0))
    inner = getattr(dataset, "images", dataset)
    for name in ("paths", "places", "samples"):
        known = getattr(inner, name, None)
        if isinstance(known, list) and index < len(known):
            found = known[index][0] if name == "samples" and isinstance(known[index], tuple) else known[index]
            return str(found)
    # headstart.deferred.Views and wrappers like it
    return place_of(dataset.dataset, index) if hasattr(dataset, "dataset") else ""
