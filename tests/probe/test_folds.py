"""The parts of the cross-validation."""

import torch

from headstart.probe.folds import deal


def test_folds_are_stratified_and_each_sample_is_held_out_once():
    targets = torch.tensor([0] * 40 + [1] * 10 + [2] * 2)
    folds = deal(targets, torch.ones(52, dtype=torch.bool), 5, seed=3)
    assert folds.bincount(minlength=5).tolist() == [11, 11, 10, 10, 10]
    assert folds[targets == 0].bincount(minlength=5).tolist() == [8] * 5
    assert folds[targets == 1].bincount(minlength=5).tolist() == [2] * 5
    assert folds[-2] != folds[-1]
