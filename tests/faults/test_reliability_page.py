"""docs/reliability.md: each promise names a test, and the test is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(
    r"^\| (?!promise|---)(.+?) \| `(\S+?)::(\w+)` \|$",
    (ROOT / "docs" / "reliability.md").read_text(),
    re.MULTILINE,
)


@pytest.mark.parametrize(("file", "test"), [row[1:] for row in ROWS], ids=[row[2] for row in ROWS])
def test_a_promise_names_a_test_that_is_there(file, test):
    names = [
        each.name for each in ast.parse((ROOT / file).read_text()).body if isinstance(each, ast.FunctionDef)
    ]
    assert test in names


def test_every_row_of_the_page_names_a_test():
    text = (ROOT / "docs" / "reliability.md").read_text()
    assert len(re.findall(r"^\| (?!promise|---)", text, re.MULTILINE)) == len(ROWS) > 40
