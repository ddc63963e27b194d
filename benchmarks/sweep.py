"""How much longer a sweep of 50 heads takes than one of 1: what a frozen backbone makes of the data is computed once.

Photos of solar cells (elpv-dataset, licence CC BY-NC-SA 4.0, certain labels) with EfficientNet-Lite0. Each sweep is a process of
its own, in a new folder, from its start to its end, the test of the best and start of Python included.

    python benchmarks/sweep.py
    python benchmarks/sweep.py --quick   # only shows that it runs
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import reuse_work

BAR = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description="The time of a sweep of many heads over that of one.")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--photos", type=int, default=1000, help="of each class, where there are so many")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--plans", nargs="*", default=["head", "linear_probe"])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.trials, options.photos, options.image_size, options.plans = 4, 20, 64, ["head"]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        num_photos = lay_out_photos(directory / "cells", options.photos)
        print(
            f"{num_photos:,} photos at {options.image_size} px, EfficientNet-Lite0; seconds of a whole sweep"
        )
        print(f"{'plan':<14} {'1 trial':>8} {f'{options.trials} trials':>10} {'ratio':>6}")
        for plan in options.plans:
            seconds = []
            for trials in (1, options.trials):
                out = directory / f"{plan}-{trials}"
                begun = time.perf_counter()
                sweep(directory / "cells", out, plan=plan, trials=trials, image_size=options.image_size)
                seconds.append(time.perf_counter() - begun)
                found = json.loads((out / "trials.json").read_text())
                assert len(found["trials"]) == trials
            ratio = seconds[1] / seconds[0]
            verdict = f"at most {BAR:g}x: {'yes' if ratio <= BAR else 'no'}"
            print(f"{plan:<14} {seconds[0]:>8.1f} {seconds[1]:>10.1f} {ratio:>6.2f}  {verdict}", flush=True)


def sweep(data: Path, out: Path, *, plan: str, trials: int, image_size: int) -> None:
    command = [sys.executable, "-m", "headstart", "sweep", data, "--out", out, "--plan", plan]
    more = ["--trials", trials, "--image_size", image_size]
    subprocess.run([str(each) for each in [*command, *more]], check=True, capture_output=True)


def lay_out_photos(folder: Path, per_class: int) -> int:
    """Make a folder per class with links to the photos; give their number."""
    source = reuse_work.package("elpv_dataset") / "data"
    rows = [line.split() for line in (source / "labels.csv").read_text().splitlines()]
    count = 0
    for label, name in (("0.0", "functional"), ("1.0", "defective")):
        (folder / name).mkdir(parents=True)
        for file, _, _ in [row for row in rows if row[1] == label][:per_class]:
            (folder / name / Path(file).name).symlink_to(source / file)
            count += 1
    return count


if __name__ == "__main__":
    main()
