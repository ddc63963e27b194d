"""Time a training step: a plain PyTorch loop, then `Trainer` with more and more switched on.

The model is so small (one `Linear(32, 2)`, batches of tensors in memory, one thread) that what is measured is the
trainer. With `--peer PYTHON`, an interpreter that has pytorch-lightning 2.x takes its turns in the same run. Every round
times every set-up once; a ratio is the median over rounds of the time divided by the plain loop's in the same round and
the same interpreter. Ratios carry from one machine to another, microseconds do not.

    python benchmarks/overhead.py [--peer /path/to/python] [--rounds 25] [--steps 400] [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Self

BATCH_SIZE = 8
SETUPS = {
    "plain": "plain PyTorch loop",
    "bare": "Trainer, all off",
    "log": "Trainer, self.log",
    "full": "Trainer, self.log + bar + CSV",
}
LIBRARIES = ("headstart", "pytorch_lightning")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a training step beside a plain loop.")
    parser.add_argument("--peer", help="a Python interpreter that has pytorch-lightning 2.x")
    parser.add_argument("--rounds", type=int, default=25, help="how often each set-up is timed")
    parser.add_argument("--steps", type=int, default=400, help="steps in one timing")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 20 steps, to see that it runs")
    parser.add_argument("--worker", choices=LIBRARIES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        answer_requests(arguments.worker)
        return
    rounds, steps = (2, 20) if arguments.quick else (arguments.rounds, arguments.steps)
    interpreters = {"headstart": sys.executable}
    if arguments.peer:
        interpreters["pytorch_lightning"] = arguments.peer
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name, python)) for name, python in interpreters.items()}
        timings = [
            {name: {setup: worker.time(setup, steps) for setup in SETUPS} for name, worker in workers.items()}
            for _ in range(rounds)
        ]
        versions = {name: worker.version for name, worker in workers.items()}
    print(f"{rounds} rounds of {steps} steps, batches of {BATCH_SIZE}, one thread")
    print(f"{'library':<26}{'set-up':<32}{'us a step':>10}{'fastest':>10}{'ratio':>8}{'CPU ratio':>11}")
    for name in workers:
        for setup, title in SETUPS.items():
            wall = [each[name][setup]["wall"] for each in timings]
            print(
                f"{versions[name]:<26}{title:<32}{1e6 * statistics.median(wall):>10.0f}{1e6 * min(wall):>10.0f}"
                f"{median_ratio(timings, name, setup, 'wall'):>8.2f}"
                f"{median_ratio(timings, name, setup, 'cpu'):>11.2f}"
            )


def median_ratio(timings: list, name: str, setup: str, clock: str) -> float:
    """The time of a set-up divided by the plain loop's of the same round: the median over rounds."""
    return statistics.median(each[name][setup][clock] / each[name]["plain"][clock] for each in timings)


class Worker:
    """A second process that has one library imported, and times a set-up when it is told to; idle in between."""

    def __init__(self, library: str, python: str) -> None:
        self._process = subprocess.Popen(
            [python, __file__, "--worker", library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        self.version = self._receive()

    def __enter__(self) -> Self:
        for setup in SETUPS:
            self.time(setup, 20)  # what happens once, such as imports, is over
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def time(self, setup: str, steps: int) -> dict:
        """Seconds a step, by the wall clock and of this process."""
        self._process.stdin.write(json.dumps([setup, steps]) + "\n")
        self._process.stdin.flush()
        return self._receive()

    def _receive(self):
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a second process ended early; its message stands above")
        return json.loads(line)


# ---- inside a worker


def answer_requests(library: str) -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    package = __import__(library)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    print(json.dumps(f"{library} {package.__version__}"), file=answers)
    with (
        # Bars are drawn, into nothing: a terminal's speed is not measured.
        Path(os.devnull).open("w") as nothing,
        contextlib.redirect_stdout(nothing),
        tempfile.TemporaryDirectory() as directory,
    ):
        for line in sys.stdin:
            setup, steps = json.loads(line)
            wall, cpu = time_setup(setup, steps, library, directory)
            print(json.dumps({"wall": wall / steps, "cpu": cpu / steps}), file=answers)


def time_setup(setup: str, steps: int, library: str, directory: str) -> tuple[float, float]:
    import torch

    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            torch.randn(BATCH_SIZE, 32, generator=generator),
            torch.randint(2, (BATCH_SIZE,), generator=generator),
        )
        for _ in range(steps)
    ]
    if setup == "plain":
        return time_plain_loop(batches)
    return time_trainer(batches, library, setup, directory)


def time_plain_loop(batches: list) -> tuple[float, float]:
    import torch
    from torch.nn import functional

    model = torch.nn.Linear(32, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    started = time.perf_counter(), time.process_time()
    for x, y in batches:
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started[0], time.process_time() - started[1]


def time_trainer(batches: list, library: str, setup: str, directory: str) -> tuple[float, float]:
    import torch
    from torch.nn import functional

    package = __import__(library)
    logs = setup != "bare"
    times = []

    class Net(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(32, 2)

        def on_train_start(self):
            times.append((time.perf_counter(), time.process_time()))

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = functional.cross_entropy(self.layer(x), y)
            if logs:
                self.log("loss", loss, prog_bar=True)
            return loss

        def on_train_end(self):
            times.append((time.perf_counter(), time.process_time()))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    trainer = package.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=directory,
        logger=csv_logger(library, directory) if setup == "full" else False,
        callbacks=[drawing_bar(library)] if setup == "full" else [],
        enable_progress_bar=setup == "full",
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), InMemory(batches))
    (wall, cpu), (wall_end, cpu_end) = times
    return wall_end - wall, cpu_end - cpu


class InMemory:
    """A loader that does nothing but hand out batches; the peer reads a bare list as one loader for each item."""

    def __init__(self, batches: list) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def csv_logger(library: str, directory: str):
    loggers = __import__(f"{library}.loggers", fromlist=["CSVLogger"])
    return loggers.CSVLogger(directory)


def drawing_bar(library: str):
    """A bar that draws although there is no terminal (the peer's always does)."""
    if library == "headstart":
        from headstart.callbacks import RichProgressBar

        return RichProgressBar(console_kwargs={"force_terminal": True, "force_interactive": True})
    from pytorch_lightning.callbacks import TQDMProgressBar

    return TQDMProgressBar()


if __name__ == "__main__":
    main()
