"""The other data of which `headstart fit --forgetting` asks what a backbone still knows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headstart.cli import forgetting
from headstart.cli.options import FitOptions
from headstart.errors import DataError


class Lengths(nn.Module):
    """A backbone that knows how long texts are."""

    name = "lengths"

    def forward(self, batch):
        return batch["length"]


@pytest.fixture
def num_right(tmp_path):
    """Write other data with these columns, and give how many samples a probe gets right, each by what it has not seen.

    In `words`, each class has texts of its own length; in `note`, all texts have the same.
    """

    def tokenize(texts):
        return {"length": torch.tensor([[float(len(text)), 1.0] for text in texts])}

    def call(columns, suffix=".csv", **named):
        values = {"words": ["a", "a longer text"], "note": ["same", "same"], "gold": ["x", "y"]}
        rows = [{columns[name]: value[n % 2] for name, value in values.items()} for n in range(40)]
        path = tmp_path / f"other{suffix}"
        if suffix == ".csv":
            lines = [",".join(row.values()) for row in rows]
            path.write_text("\n".join([",".join(columns.values()), *lines]))
        else:
            pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(path)
        model = nn.Module()
        model.kind, model.backbone, model.preprocessing = "text", Lengths(), tokenize
        options = FitOptions(data="a.csv", out="run", forgetting=str(path), accelerator="cpu", **named)
        return int(forgetting.look(model, options).is_right.sum())

    return call


@pytest.mark.parametrize("suffix", [".csv", ""])
@pytest.mark.parametrize(
    ("columns", "is_right"),
    [
        ({"words": "words", "note": "text", "gold": "gold"}, True),  # named, though there is a common name
        ({"words": "words", "note": "note", "gold": "label"}, True),  # one is named, one has a common name
        ({"words": "text", "note": "note", "gold": "label"}, True),
        ({"words": "other", "note": "words", "gold": "gold"}, False),
    ],
)
def test_other_data_is_read_by_the_named_columns_that_it_has(num_right, columns, is_right, suffix):
    found = num_right(columns, suffix, text_column="words", label_column="gold")
    assert (found > 30) == is_right


def test_other_data_whose_columns_are_unclear_must_have_those_of_the_data(num_right):
    columns = {"words": "one", "note": "two", "gold": "three"}
    message = r"which column holds the labels.*count for a.csv and for .*other.csv: rename columns where the two differ"
    with pytest.raises(DataError, match=message):
        num_right(columns, text_column="words", label_column="gold")
