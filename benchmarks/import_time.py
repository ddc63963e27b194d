"""Time what a user waits for before anything happens: `import headstart`, `headstart --help`, and `import torch` beside.

Each row is a fresh process, start of Python included; the rows take turns, round after round. With `--peer PYTHON`, an
interpreter that has pytorch-lightning 2.x takes its turns in the same run.

    python benchmarks/import_time.py [--peer /path/to/python] [--rounds 9] [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description="Time imports and the command line's help.")
    parser.add_argument("--peer", help="a Python interpreter that has pytorch-lightning 2.x")
    parser.add_argument("--rounds", type=int, default=9, help="how often each row is timed")
    parser.add_argument("--quick", action="store_true", help="1 round, to see that it runs")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    commands = {
        "python, nothing imported": [sys.executable, "-c", "pass"],
        "import headstart": [sys.executable, "-c", "import headstart"],
        "headstart --help": [sys.executable, "-m", "headstart", "--help"],
        "from headstart import Trainer": [sys.executable, "-c", "from headstart import Trainer"],
        "import torch": [sys.executable, "-c", "import torch"],
    }
    if arguments.peer:
        commands["peer: import torch"] = [arguments.peer, "-c", "import torch"]
        commands["peer: import pytorch_lightning"] = [arguments.peer, "-c", "import pytorch_lightning"]
    for command in commands.values():
        seconds(command)  # from now on the files are in memory
    timings = [{title: seconds(command) for title, command in commands.items()} for _ in range(rounds)]
    print(f"{rounds} rounds, fresh processes; the ratio is to `import torch` in the same round")
    print(f"{'what':<34}{'median s':>10}{'fastest s':>11}{'ratio':>8}")
    for title in commands:
        taken = [each[title] for each in timings]
        ratio = statistics.median(each[title] / each["import torch"] for each in timings)
        print(f"{title:<34}{statistics.median(taken):>10.2f}{min(taken):>11.2f}{ratio:>8.2f}")


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
