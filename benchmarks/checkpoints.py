"""What it costs to write a checkpoint so that damage is found, and to look before reading, beside torch alone.

python benchmarks/checkpoints.py            # --quick only shows that it runs
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from headstart import archive
from headstart.checkpoint import read_checkpoint, write_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    num_tensors, rounds = (10, 2) if options.quick else (100, options.rounds)
    state = {"state_dict": {f"weight{index}": torch.randn(500_000) for index in range(num_tensors)}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.ckpt"

        def plain() -> None:
            with path.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())

        steps: dict[str, Callable[[], object]] = {
            "torch.save and fsync": plain,
            "the seal": lambda: archive.seal(path),
            "write_checkpoint": lambda: write_checkpoint(state, path),
            "torch.load": lambda: torch.load(path, weights_only=True),
            "the check": lambda: archive.check(path),
            "read_checkpoint": lambda: read_checkpoint(path),
        }
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):  # in turns, so that other work on the machine meets all of them
            for name, step in steps.items():
                begun = perf_counter()
                step()
                times[name].append(perf_counter() - begun)
        print(f"{path.stat().st_size:,} bytes in {num_tensors} tensors; median of {rounds}")
    write, read = median(times["torch.save and fsync"]), median(times["torch.load"])
    for name, values in times.items():
        base = write if list(steps).index(name) < 3 else read
        print(f"{name:<24}{median(values):>10.4f} s{median(values) / base:>10.3f}")


if __name__ == "__main__":
    main()
