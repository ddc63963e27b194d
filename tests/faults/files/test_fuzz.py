"""The readers of files on mutated files: a value or a `HeadstartError`, and nothing else. `fuzz.py` looks longer."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.files.fuzz import TARGETS, feed

# What a mutation is: where (as a fraction of the length), how, and with what.
MUTATIONS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["flip", "put", "insert", "delete", "cut", "repeat", "swap"]),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from([b"\xff" * 8, b"\0" * 8, b"-1", b"999999999", b"null"]),
        ),
    ),
    min_size=1,
    max_size=6,
)


def mutated(content, mutations):
    for fraction, how, material in mutations:
        place = int(fraction * len(content))
        before, after = content[:place], content[place:]
        if how == "flip" and after:
            after = bytes([after[0] ^ (1 << material[0] % 8)]) + after[1:]
        elif how == "put":
            after = material + after[len(material) :]
        elif how == "insert":
            after = material + after
        elif how == "delete":
            after = after[len(material) :]
        elif how == "cut":
            after = after[: material[0]]
        elif how == "repeat":
            after = after[:64] + after
        elif how == "swap":
            before, after = after, before
        content = before + after
    return content


@pytest.fixture(scope="module")
def seeds():
    made = {}

    def seeds_of(name):
        if name not in made:
            made[name] = TARGETS[name].seeds()
        return made[name]

    return seeds_of


# Building a model takes its time.
COUNTS = {"artefact": 40, "image": 60}


@pytest.mark.parametrize("name", TARGETS)
def test_a_mutated_file_is_read_or_refused_with_a_message(name, seeds):
    files = seeds(name)
    for content in files:
        feed(name, content)

    @settings(
        max_examples=COUNTS.get(name, 150), deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.integers(0, len(files) - 1), MUTATIONS)
    def check(index, mutations):
        feed(name, mutated(files[index], mutations))

    check()


def test_a_mutated_checkpoint_is_refused_or_the_same(seeds):
    from headstart.errors import CheckpointError

    (content,) = seeds("checkpoint")

    @settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(MUTATIONS)
    def check(mutations):
        found = mutated(content, mutations)
        if found != content:
            with pytest.raises(CheckpointError):
                TARGETS["checkpoint"].read(found)

    check()


# ---- values in the place of others

VALUES = st.sampled_from(
    [None, True, 0, -1, 10**30, 1e308, "", "x", "../x", "hf-hub:a/b", "\ud800", [], [[]], {}, {"a": None}, [None], ["a", "a"], [1, 2]]
)  # fmt: skip


def paths_of(value, before=()):
    """The way to each value in nested dicts and lists."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield (*before, key)
        yield from paths_of(each, (*before, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize(("name", "count"), [("artefact", 60), ("features", 300)])
def test_a_value_in_the_place_of_another_is_read_or_refused_with_a_message(name, count, seeds):
    (content,) = seeds(name)
    cut = int.from_bytes(content[:4], "little")
    table = json.loads(content if name == "artefact" else content[4 : 4 + cut])
    ways = list(paths_of(table))

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(ways), VALUES)
    def check(path, new):
        text = json.dumps(replaced(table, path, new)).encode()
        feed(
            name, text if name == "artefact" else len(text).to_bytes(4, "little") + text + content[4 + cut :]
        )

    check()


# ---- what was found, by this file or by `fuzz.py`


def test_the_script_names_its_targets(program):
    out = program(
        "import runpy, sys; sys.argv = ['fuzz.py', '--list']; runpy.run_path('tests/faults/files/fuzz.py', run_name='__main__')"
    )
    assert out.split() == list(TARGETS)
    assert os.path.exists("tests/faults/files/fuzz.py")
