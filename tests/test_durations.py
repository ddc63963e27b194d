"""Times as people write them, and as they read them."""

from datetime import timedelta

import pytest

from headstart.durations import positive_seconds_of, seconds_of, spelled
from headstart.errors import MisconfigurationError


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("90s", 90),
        (" 1.5 h ", 5400),
        ("10m", 600),
        ("01:02:03:04", 93784),
        (timedelta(minutes=2), 120),
        ({"hours": 1, "seconds": 1}, 3601),
        ("0s", 0),
    ],
)
def test_a_time_may_be_written_in_many_ways(given, seconds):
    assert seconds_of(given, what="time") == seconds


@pytest.mark.parametrize(
    "given", ["soon", "10", "10 minutes", 5, "-1s", "1:00:00", "9" * 10 + ":00:00:00", "", None, True, ["1s"]]
)
def test_what_is_no_time_is_refused(given):
    with pytest.raises(MisconfigurationError, match=r"^--time is .*; expected a time such as 90s, 10m, 1h"):
        seconds_of(given, what="--time")


def test_the_keywords_of_a_timedelta_are_asked_for():
    with pytest.raises(
        MisconfigurationError, match=r"--time is \{'minute': 3\}; expected the keywords of a timedelta"
    ):
        seconds_of({"minute": 3}, what="--time")
    for wrong in ({"days": 1e12}, {"days": float("nan")}):
        with pytest.raises(MisconfigurationError, match="expected the keywords of a timedelta"):
            seconds_of(wrong, what="--time")


@pytest.mark.parametrize(
    "given", ["0m", 0, -3, 10**309, "9" * 400 + "s", float("inf"), float("nan"), timedelta(0)]
)
def test_no_time_at_all_is_refused_where_it_makes_no_sense(given):
    with pytest.raises(MisconfigurationError, match=r"--time is .*; expected a time above 0"):
        positive_seconds_of(given, what="--time")


def test_a_number_is_one_of_seconds_where_it_makes_sense():
    assert positive_seconds_of(2.5, what="time") == 2.5


def test_times_are_readable():
    seconds = (0.04, 59.94, 60, 75, 3599, 3599.6, 3600, 7384)
    assert [spelled(each) for each in seconds] == [
        "0.0 s", "59.9 s", "1 min", "1 min 15 s", "59 min 59 s", "1 h", "1 h", "2 h 3 min",
    ]  # fmt: skip
