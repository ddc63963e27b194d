"""How much faster two processes are than one: the first pass over a frozen network, and full fine-tuning.

Photos of solar cells (elpv-dataset, licence CC BY-NC-SA 4.0) at 160 px with EfficientNet-Lite0. All processes together take
batches of 32, each computes with one thread, so two processes have twice the cores of one: the ratio is that of
strong scaling. What DDP sends in a step is counted too.

    python benchmarks/scaling.py [--processes 1 2] [--photos 320] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import reuse_work
import torch
from torch.utils.data import DataLoader, Subset

BATCH_SIZE = 32


def main() -> None:
    parser = argparse.ArgumentParser(description="Time one process beside several.")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--photos", type=int, default=320)
    parser.add_argument("--size", type=int, default=160, help="pixels")
    parser.add_argument("--quick", action="store_true", help="32 photos, to see that it runs")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.photos, arguments.size = 32, 64
    if arguments.worker:
        work(*arguments.worker, count=arguments.photos, size=arguments.size)
        return
    from reuse import write_photos

    found = {}
    with tempfile.TemporaryDirectory() as directory:
        write_photos(Path(directory), None if not arguments.quick else 64)
        for processes in arguments.processes:
            answer = Path(directory) / f"{processes}.json"
            command = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc_per_node={processes}",
            ]
            command += [__file__, "--photos", str(arguments.photos), "--size", str(arguments.size)]
            command += ["--worker", f"{directory}/photos.json", str(answer)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
            found[processes] = json.loads(answer.read_text())
    first = found[arguments.processes[0]]
    print(
        f"{arguments.photos} photos at {arguments.size} px, {BATCH_SIZE} a step of all processes, one thread each"
    )
    print(
        f"{'seconds of':<44}" + "".join(f"{f'{each} processes':>14}" for each in found) + f"{'speed-up':>10}"
    )
    for name in ("first pass, frozen", "later pass, stored features", "full fine-tuning, an epoch"):
        row = [each[name] for each in found.values()]
        print(f"{name:<44}" + "".join(f"{value:>14.2f}" for value in row) + f"{first[name] / row[-1]:>10.2f}")
    print(f"gradients that are averaged in a step of full fine-tuning: {first['bytes'] / 1e6:.1f} MB")


def work(photos: str, answer: str, *, count: int, size: int) -> None:
    """Train for two epochs frozen, then for two with everything, and write the seconds of each."""
    import warnings

    import headstart
    from headstart.deferred import Reuse

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    dataset = reuse_work.Photos(photos, size)
    loader = DataLoader(
        Subset(dataset, range(min(count, len(dataset)))), batch_size=BATCH_SIZE // num_processes, shuffle=True
    )
    found = {}
    for name, freeze in (("frozen", "really"), ("full", "nothing")):
        module = reuse_work.new_module(headstart.LightningModule, "photos", freeze)
        trainer = headstart.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, strategy="ddp" if num_processes > 1 else "auto",
            reuse_frozen=Reuse(say=lambda line: None) if freeze == "really" else False,
        )  # fmt: skip
        trainer.fit(module, loader)
        seconds = [float(trainer.strategy.reduce(torch.tensor(each), "max")) for each in module.epoch_seconds]
        found[name] = seconds
        found["bytes"] = sum(
            each.numel() * each.element_size() for each in module.parameters() if each.requires_grad
        )
    if trainer.is_global_zero:
        rows = {
            "first pass, frozen": found["frozen"][0],
            "later pass, stored features": found["frozen"][1],
            "full fine-tuning, an epoch": found["full"][1],
            "bytes": found["bytes"],
        }
        Path(answer).write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
