from __future__ import annotations

import json

import pytest

from headstart.data import DataReport, SetAside
from headstart.data.report import refuse_too_many_unreadable
from headstart.errors import DataError

BAD = [SetAside(f"cat/{number}.jpg", "not an image") for number in range(30)]


def test_one_in_a_hundred_is_set_aside_and_more_are_refused():
    refuse_too_many_unreadable(BAD[:2], num_samples=200, source="pets")
    with pytest.raises(DataError, match=r"pets: 3 of 200 samples cannot be used \(1.5%"):
        refuse_too_many_unreadable(BAD[:3], num_samples=200, source="pets")


def test_the_refusal_lists_the_first_and_counts_the_rest():
    with pytest.raises(DataError) as caught:
        refuse_too_many_unreadable(BAD, num_samples=100, source="pets")
    message = str(caught.value)
    assert "30 of 100" in message
    assert "cat/0.jpg: not an image" in message
    assert "... and 22 more" in message


def test_lines_are_cut_and_the_file_is_not():
    report = DataReport(
        source="pets",
        class_names=["a", "b"],
        part_sizes={"train": 5000, "val": 500},
        part_class_counts={"train": [4000, 1000], "val": [400, 100]},
        num_hidden=2,
        set_aside=BAD,
        notes=["Something to know."],
    )
    lines = report.lines()
    assert lines[0] == "pets: 5,500 samples in 2 classes: 5,000 train, 500 val"
    assert "2 hidden files or folders ignored" in lines
    assert "30 set aside:" in lines
    assert "  ... and 22 more" in lines
    assert lines[-1] == "Something to know."
    written = json.loads(json.dumps(report.to_dict()))
    assert len(written["set_aside"]) == 30
    assert written["num_samples"] == 5500
