"""Random state: seeded, recorded, put back."""

import os
import random

import numpy as np
import pytest
import torch

from headstart import seed_everything
from headstart.checkpoint import read_checkpoint, write_checkpoint
from headstart.seed import capture_random_state, isolated_random_state, restore_random_state


def draw():
    """A number of each global generator; NumPy's normal numbers come in pairs, the second kept for later."""
    return random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(1))


def test_a_seed_sets_every_generator():
    seed_everything(5)
    first = draw()
    assert seed_everything(5) == 5
    assert draw() == first
    seed_everything(6)
    assert draw() != first


def test_a_seed_is_what_the_libraries_own_seeds_give():
    seed_everything(5)
    found = random.random(), float(np.random.rand()), float(torch.rand(1))
    expected = (
        random.Random(5).random(),
        float(np.random.RandomState(5).rand()),
        float(torch.rand(1, generator=torch.Generator().manual_seed(5))),
    )
    assert found == expected


def test_without_a_seed_the_environment_decides(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert seed_everything() == 17
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert seed_everything() == 0
    assert os.environ["PL_GLOBAL_SEED"] == "0"  # for the processes that this one starts


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed is {seed}; expected a whole number from 0 to 4294967295"):
        seed_everything(seed)


def test_it_prints_only_when_asked(capsys):
    seed_everything(1)
    assert capsys.readouterr().out == ""
    seed_everything(1, verbose=True, workers=True)
    assert capsys.readouterr().out == "Seed set to 1\n"


def test_a_recorded_state_comes_back_through_a_checkpoint(tmp_path):
    draw()
    write_checkpoint({"random": capture_random_state()}, tmp_path / "x.ckpt")
    expected = draw(), draw()
    restore_random_state(read_checkpoint(tmp_path / "x.ckpt")["random"])
    assert (draw(), draw()) == expected


def test_an_isolated_block_leaves_no_trace_even_if_it_raises():
    seed_everything(0)
    expected = draw()
    seed_everything(0)

    @isolated_random_state()
    def fails():
        draw()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert draw() == expected
