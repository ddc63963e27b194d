"""`headstart predict RUN FILE ...`: classes and probabilities of new photos and texts."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.cli.arguments import (
    add_device_arguments,
    device_settings,
    named_text_columns,
    refuse_other_texts,
)
from headstart.errors import DataError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader, Dataset

    from headstart.data import SetAside, TextRows
    from headstart.tasks import Classifier

_DESCRIPTION = """\
Classify photos or texts with the model that `headstart fit` left in RUN. Results go to standard output, everything
else to standard error. What cannot be read is named there, the rest is predicted, and the exit code is 1.
"""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one sample.

    Attributes:
        file: The file as it was named, or found in a folder.
        row: Where in the file (`"line 7"`); empty for a photo.
        probabilities: By class name.
    """

    file: str
    row: str
    probabilities: dict[str, float]

    @property
    def best(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)


def run(arguments: list[str]) -> int:
    """Predict and print; give the exit code.

    Args:
        arguments: What follows `headstart predict`.

    Returns:
        0, or 1 if something could not be read.
    """
    options = _parser().parse_args(arguments)

    from headstart.artefact import load_artefact, read_metadata
    from headstart.data import ImageFiles
    from headstart.data.text import TextCollate
    from headstart.tasks import ImageClassifier, TextClassifier

    metadata = read_metadata(options.run)
    model = load_artefact(options.run)
    _refuse_the_other_kind(options, model.kind)
    dataset: Dataset[Any]
    if isinstance(model, ImageClassifier):
        samples, unreadable = _photos(options.files)
        dataset = ImageFiles([file for file, _ in samples], model.preprocessing.eval_transform())
        collate = None
    else:
        assert isinstance(model, TextClassifier)
        dataset, samples, unreadable = _texts(options, metadata.get("data") or {})
        collate = TextCollate(model.preprocessing, labelled=False)
    for line in unreadable:
        print(f"headstart predict: {line}", file=sys.stderr)
    if not samples and not unreadable:
        raise DataError(
            f"There is nothing to predict in {', '.join(options.files)}: no photo and no text was found. Give photos or "
            "folders of photos, or for a model of texts a table or a .txt file."
        )
    if not samples and options.format == "table":
        return 1
    predictions = _predict(model, dataset, samples, collate, options) if samples else []
    try:
        _write(predictions, options.format)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`head`, say) has enough. Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if unreadable else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headstart predict", description=_DESCRIPTION)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder that `headstart fit` wrote")
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="photos or folders of photos; for texts: .txt with a text a line, or tables (CSV, TSV, JSON lines, Parquet)",
    )
    parser.add_argument(
        "--format",
        choices=["table", "csv", "json"],
        default="table",
        help="json holds the probabilities of all classes (default: table)",
    )
    parser.add_argument(
        "--json", action="store_const", const="json", dest="format", help="the same as --format json"
    )
    parser.add_argument("--text_column", help="the column of the texts (default: as in the training data)")
    parser.add_argument("--text_pair_column", help="the column of the second texts, for pairs")
    add_device_arguments(parser)
    return parser


# ---- what is to be predicted


def _refuse_the_other_kind(options: argparse.Namespace, kind: str) -> None:
    """Refuse tables where a model judges photos, and photos where it judges texts."""
    from headstart.data.images import is_image_name
    from headstart.data.table import TABLE_SUFFIXES

    for file in map(Path, options.files):
        is_table = file.suffix.casefold() in {*TABLE_SUFFIXES, ".txt"}
        if kind == "images" and is_table:
            raise DataError(f"The model in {options.run} judges photos, and {file} holds text. Give photos.")
        if kind == "text" and is_image_name(file):
            raise DataError(
                f"The model in {options.run} judges texts, and {file} is a photo. Give a table or a .txt file."
            )


def _photos(files: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Give the readable photos as (file, row), and a line for each that is not."""
    from headstart.data import open_images

    missing = [f"{file}: no such file or folder" for file in files if not Path(file).exists()]
    readable, set_aside = open_images([file for file in files if Path(file).exists()])
    return [(str(path), "") for path in readable], missing + [str(each) for each in set_aside]


def _texts(
    options: argparse.Namespace, trained_on: dict[str, Any]
) -> tuple[TextRows, list[tuple[str, str]], list[str]]:
    """Give the texts, their places as (file, row), and a line for each file or row that cannot be read."""
    from headstart.data import TextRows, read_rows

    columns = named_text_columns(options, trained_on) or trained_on.get("text_columns")
    num_texts = trained_on.get("texts_per_sample", len(columns or [""]))
    texts: list[Any] = []
    places: list[tuple[str, str]] = []
    unreadable: list[str] = []
    for file in options.files:
        set_aside: Iterable[SetAside]
        try:
            if Path(file).suffix.casefold() == ".txt":
                rows, set_aside = _lines(file, num_texts=num_texts)
            else:
                rows, set_aside = read_rows(file, text_columns=columns)
                for text in rows.texts[:1]:  # none where every row was set aside
                    refuse_other_texts(text, source=file, run=options.run, trained_on=trained_on)
        except DataError as error:
            unreadable.append(str(error))
            continue
        texts += rows.texts
        places += [(file, place) for place in rows.places]
        unreadable += [f"{file}, {each}" for each in set_aside]
    return TextRows(texts), places, unreadable


def _lines(file: str, *, num_texts: int) -> tuple[TextRows, list[SetAside]]:
    """Give the texts of a file with a text a line."""
    from headstart.data import SetAside, TextRows

    if num_texts > 1:
        raise DataError(
            f"{file}: this model judges pairs of texts; give a table with two columns, CSV for example."
        )
    try:
        lines = Path(file).read_text(encoding="utf-8-sig", errors="strict").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 (byte {error.start:,}). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{file}: {(error.strerror or str(error)).lower()}") from error
    if lines[-1] == "":
        del lines[-1]  # what is behind the last line's end
    numbered = [(f"line {number}", line.rstrip("\r")) for number, line in enumerate(lines, start=1)]
    texts = [(place, line) for place, line in numbered if line.strip()]
    empty = [SetAside(place, "empty text") for place, line in numbered if not line.strip()]
    return TextRows([line for _, line in texts], [place for place, _ in texts]), empty


# ---- prediction


def _predict(
    model: Classifier,
    dataset: Dataset[Any],
    samples: Sequence[tuple[str, str]],
    collate: Any,
    options: argparse.Namespace,
) -> list[Prediction]:
    from torch.utils.data import DataLoader

    from headstart.cli.inference import probabilities_of

    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=options.batch_size, num_workers=options.num_workers, collate_fn=collate
    )
    probabilities = probabilities_of(model, loader, **device_settings(options)).tolist()
    return [
        Prediction(file, row, dict(zip(model.class_names, values, strict=True)))
        for (file, row), values in zip(samples, probabilities, strict=True)
    ]


# ---- output


def _write(predictions: Sequence[Prediction], form: str) -> None:
    # A file's name may hold bytes that are no UTF-8; they are shown as escapes.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    if form == "json":
        records = [
            {
                "file": each.file,
                **({"row": each.row} if each.row else {}),
                "class": each.best,
                "probability": each.probabilities[each.best],
                "probabilities": each.probabilities,
            }
            for each in predictions
        ]
        # A record a line: one JSON document, and still of use to line-wise tools.
        print("[" + ",\n ".join(json.dumps(record, ensure_ascii=False) for record in records) + "]")
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["file", "row", "class", "probability"])
        for each in predictions:
            writer.writerow([each.file, each.row, each.best, f"{each.probabilities[each.best]:.6f}"])
    else:
        _write_table(predictions)


def _write_table(predictions: Sequence[Prediction]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from headstart.cli.output import show

    table = Table(box=box.SIMPLE_HEAD)
    has_rows = any(each.row for each in predictions)
    table.add_column("file", overflow="fold")
    if has_rows:
        table.add_column("row", no_wrap=True)
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    for each in predictions:
        row = [Text(each.row)] if has_rows else []
        table.add_row(Text(each.file), *row, Text(each.best), f"{each.probabilities[each.best]:.3f}")
    show(table)
