"""What requests may cost."""

import pytest

from headstart.errors import MisconfigurationError
from headstart.serving.limits import Limits


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(MisconfigurationError, match="timeout is 0; expected a number above 0"):
        Limits(timeout=0)
    with pytest.raises(MisconfigurationError, match="timeout is nan"):
        Limits(timeout=float("nan"))


def test_a_request_must_fit_into_the_queue():
    with pytest.raises(MisconfigurationError, match="max_samples is 64 and queue_size 8: .* never find room"):
        Limits(queue_size=8)


def test_photos_may_be_larger_than_texts_and_all_bodies_at_least_as_large_as_one():
    assert Limits.of("photos").max_body == 20_000_000
    assert Limits.of("pairs").max_body == 2_000_000
    assert Limits.of("photos", max_body=10**9).max_bodies == 10**9
