"""What an artefact remembers of the data it was made from."""

import pytest

from headstart.cli.ending import found_in
from headstart.data import DatasetData


@pytest.mark.parametrize(("make", "count"), [(lambda text: text, 1), (lambda text: (text, "so it is"), 2)])
def test_it_knows_how_many_texts_a_sample_has_wherever_they_come_from(make, count):
    rows = [(make(f"{name} {number}"), name) for name in ("good", "bad") for number in range(9)]
    assert found_in(DatasetData(rows).prepare())["texts_per_sample"] == count
