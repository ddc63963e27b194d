import math

import pytest

from headstart.callbacks.monitored import check_mode, is_better, never_logged, worst
from headstart.errors import MisconfigurationError


@pytest.mark.parametrize("mode", ["min", "max"])
def test_every_number_is_better_than_the_worst_and_than_nan(mode):
    for value in (-1e9, 0.0, 1e9):
        assert is_better(value, worst(mode), mode=mode)
        assert is_better(value, math.nan, mode=mode)
        assert not is_better(math.nan, value, mode=mode)
        assert not is_better(value, value, mode=mode)


def test_another_direction_is_answered_with_the_two_that_there_are():
    with pytest.raises(MisconfigurationError, match=r"mode='auto'.*'min' where less is better.*'max'"):
        check_mode("auto", owner="EarlyStopping")


def test_a_name_that_nobody_logged_is_answered_with_those_that_somebody_did():
    message = str(never_logged("val_los", {"val_loss": 1.0, "acc": 0.5}, owner="EarlyStopping"))
    assert "Did you mean 'val_loss'?" in message
    assert "Logged so far: acc, val_loss." in message
    assert "Logged so far: nothing." in str(never_logged("val_loss", [], owner="EarlyStopping"))
