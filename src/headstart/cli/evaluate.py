"""`headstart evaluate RUN DATA`: the scores of a trained model on other labelled data."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.cli.arguments import (
    add_device_arguments,
    device_settings,
    named_text_columns,
    refuse_other_texts,
)
from headstart.errors import MisconfigurationError
from headstart.words import counted

if TYPE_CHECKING:
    from headstart.data import ClassificationData
    from headstart.tasks import Classifier

_DESCRIPTION = """\
Measure the model that `headstart fit` left in RUN on DATA: a folder with a folder of images per class (its test folder,
where it has train, val and test), or a table of texts and labels. Scores go to standard output, everything else to
standard error.
"""


def run(arguments: list[str]) -> int:
    """Evaluate and print; give the exit code.

    Args:
        arguments: What follows `headstart evaluate`.

    Returns:
        0.
    """
    options = _parser().parse_args(arguments)

    from headstart.artefact import load_artefact, read_metadata

    metadata = read_metadata(options.run)
    model = load_artefact(options.run)
    trained_on = metadata.get("data") or {}
    data = _open_data(options, model, trained_on)
    for line in data.prepare().report.lines():
        print(line, file=sys.stderr)
    if model.kind == "text":
        first = data.samples("test")[0].value
        refuse_other_texts(first, source=options.data, run=options.run, trained_on=trained_on)
    if warning := _seen_in_training(options.data, data, trained_on):
        print(f"Careful: {warning}", file=sys.stderr)

    from headstart.cli import output
    from headstart.cli.inference import scores_of

    scores = scores_of(model, data.test_dataloader(), **device_settings(options))
    if options.format == "json":
        print(json.dumps(scores.to_dict(model.class_names), indent=2, ensure_ascii=False))
    else:
        output.show(output.classes_table(scores, model.class_names))
        facts = [
            ("model", str(options.run)),
            ("tested on", f"{counted(scores.num_samples, 'sample')} of {options.data}"),
        ]
        output.show(output.facts_table("Result", [*facts, *output.score_facts(scores)]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headstart evaluate", description=_DESCRIPTION)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder that `headstart fit` wrote")
    parser.add_argument("data", metavar="DATA", help="labelled images or texts, with the classes of RUN")
    parser.add_argument("--format", choices=["table", "json"], default="table", help="(default: table)")
    parser.add_argument(
        "--json", action="store_const", const="json", dest="format", help="the same as --format json"
    )
    parser.add_argument("--text_column", help="the column of the texts (default: as in the training data)")
    parser.add_argument("--text_pair_column", help="the column of the second texts, for pairs")
    parser.add_argument("--label_column", help="the column of the labels (default: as in the training data)")
    add_device_arguments(parser)
    return parser


def _open_data(
    options: argparse.Namespace, model: Classifier, trained_on: dict[str, Any]
) -> ClassificationData:
    from headstart.cli.options import refuse_columns
    from headstart.data import ImageFolderData, TextTableData
    from headstart.data.opening import open_data
    from headstart.data.record_data import RecordData
    from headstart.tasks import ImageClassifier, TextClassifier

    columns: dict[str, Any] = {
        "text_columns": named_text_columns(options, trained_on) or trained_on.get("text_columns"),
        "label_column": options.label_column or trained_on.get("label_column"),
    }
    loading: dict[str, Any] = {"batch_size": options.batch_size, "num_workers": options.num_workers}
    found = open_data(options.data, **columns, **loading)
    if not found.has_columns:
        refuse_columns(options, source=options.data)
    if found.kind != model.kind:
        raise MisconfigurationError(
            f"The model in {options.run} judges {model.kind}, and {options.data} holds {found.kind}."
        )
    if isinstance(found, RecordData):
        found.evaluate_with(model.class_names).set_preprocessing(model.preprocessing)
        return found
    settings = {"class_names": model.class_names, **loading}
    if isinstance(model, ImageClassifier):
        transform = model.preprocessing.eval_transform()
        return ImageFolderData.for_evaluation(options.data, eval_transform=transform, **settings)
    assert isinstance(model, TextClassifier)
    return TextTableData.for_evaluation(
        options.data,
        tokenize=model.preprocessing,
        **columns,
        **settings,
    )


def _seen_in_training(path: str, data: ClassificationData, trained_on: dict[str, Any]) -> str | None:
    """Say so if this is the data of the training, and more of it than was held back."""
    source = trained_on.get("source")
    if source is None or Path(source).resolve() != Path(path).resolve():
        return None
    if data.report.num_samples <= trained_on.get("part_sizes", {}).get("test", 0):
        return None
    return f"{path} is what this model was trained on, so these scores are too good. RUN holds those of its test part."
