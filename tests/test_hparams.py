"""Hyper-parameters: collected from `__init__`, and only such as a checkpoint gives back."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from headstart import LightningDataModule, LightningModule
from headstart.checkpoint import read_checkpoint, write_checkpoint
from headstart.errors import MisconfigurationError, UnknownNameError
from headstart.hparams import HyperParameters, refuse_unreadable


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Options:
    lr: float = 0.1


class Keeps(LightningModule):
    def __init__(self, value: Any, lr: float = 0.1):
        super().__init__()
        self.save_hyperparameters()


UNREADABLE = {
    "a path": (Path("data"), r"PosixPath|WindowsPath", r"\(str\(path\)\)"),
    "an enum member": (Colour.RED, "Colour", "to plain types"),
    "a data class": (Options(), "Options", r"\(dataclasses.asdict\(value\)\)"),
    "a namespace": (argparse.Namespace(lr=1), "argparse.Namespace", r"\(vars\(namespace\)\)"),
    "a function": (torch.nn.functional.relu, "function", "to plain types"),
    "a class": (Options, "class .*Options", "to plain types"),
    "a module": (nn.Linear(1, 1), "Linear", "to plain types"),
    "a NumPy scalar": (np.float32(0.1), "numpy.float32", r"\(value.item\(\)\)"),
    "an ordered dict": (collections.OrderedDict(lr=1), "OrderedDict", r"\(dict\(value\)\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_hyper_parameter_that_could_not_be_read_back_is_refused_by_name_when_it_is_saved(what):
    value, kind, advice = UNREADABLE[what]
    with pytest.raises(
        MisconfigurationError, match=f"(?s)Keeps: the hyper-parameter 'value' is of type .*{kind}"
    ) as caught:
        Keeps(value)
    assert caught.match(advice)
    assert caught.match(r"ignore=\['value'\]")


@pytest.mark.parametrize("what", UNREADABLE)
@pytest.mark.parametrize(
    "nest", [lambda v: [1, v], lambda v: {"a": {"b": v}}, lambda v: (v,)], ids=["list", "dict", "tuple"]
)
def test_it_is_found_inside_lists_and_dicts_too(what, nest):
    with pytest.raises(MisconfigurationError, match="'value' holds a value of type"):
        Keeps(nest(UNREADABLE[what][0]))


def test_a_namespace_given_whole_is_taken_apart_and_one_with_a_path_is_refused():
    class FromNamespace(LightningModule):
        def __init__(self, args: argparse.Namespace):
            super().__init__()
            self.save_hyperparameters(args)

    assert FromNamespace(argparse.Namespace(lr=0.5)).hparams == {"lr": 0.5}
    with pytest.raises(MisconfigurationError, match="'root'"):
        FromNamespace(argparse.Namespace(root=Path("x")))


def test_what_is_accepted_comes_back_from_a_checkpoint_as_it_was(tmp_path):
    values = {
        "none": None, "flag": True, "count": 3, "rate": 0.1, "complex": 1 + 2j, "text": "é", "bytes": b"x",
        "list": [1, [2.0, None]], "tuple": (1, "a"), "set": {1, 2}, "dict": {"a": {1: "b"}},
        "dtype": torch.bfloat16, "device": torch.device("cpu"), "size": torch.Size([1, 2]), "tensor": torch.ones(2),
    }  # fmt: skip
    refuse_unreadable(values, owner="Net")
    write_checkpoint({"hyper_parameters": values}, tmp_path / "a.ckpt")
    found = read_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"]
    assert torch.equal(found.pop("tensor"), values.pop("tensor"))
    assert found == values
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in values.items()
    }


def test_arguments_of_every_init_are_kept_and_the_subclass_wins():
    class Base(LightningModule):
        def __init__(self, width: int, lr: float = 0.1):
            super().__init__()
            self.save_hyperparameters()

    class Derived(Base):
        def __init__(self, depth: int, lr: float = 0.2, **kwargs: Any):
            super().__init__(width=7, lr=lr / 2)

    assert Derived(3, extra="x").hparams == {"width": 7, "depth": 3, "lr": 0.2, "extra": "x"}


def test_names_choose_and_ignore_leaves_out():
    class Chooses(LightningModule):
        def __init__(self, lr: float, width: int, backbone: nn.Module):
            super().__init__()
            self.save_hyperparameters("lr", "width")

    class Ignores(LightningModule):
        def __init__(self, lr: float, width: int, backbone: nn.Module):
            super().__init__()
            self.save_hyperparameters(ignore="backbone")

    assert Chooses(0.1, 2, nn.ReLU()).hparams == Ignores(0.1, 2, nn.ReLU()).hparams == {"lr": 0.1, "width": 2}


def test_a_name_that_is_no_argument_is_answered_with_the_nearest():
    class Slips(LightningModule):
        def __init__(self, learning_rate: float):
            super().__init__()
            self.save_hyperparameters("learning_rat")

    with pytest.raises(UnknownNameError, match=r"'learning_rat'.*Did you mean 'learning_rate'\?"):
        Slips(0.1)


def test_hyper_parameters_are_attributes_and_a_missing_one_names_the_nearest():
    hparams = HyperParameters(lr=0.1, width=3)
    hparams.depth = 2
    del hparams.width
    assert dict(hparams) == {"lr": 0.1, "depth": 2}
    with pytest.raises(AttributeError, match=r"'dept'. Did you mean 'depth'\? Saved: lr, depth."):
        _ = hparams.dept


def test_a_data_module_keeps_its_own():
    class Data(LightningDataModule):
        def __init__(self, batch_size: int, root: Any = None):
            super().__init__()
            self.save_hyperparameters()

    assert Data(4).hparams == {"batch_size": 4, "root": None}
    with pytest.raises(MisconfigurationError, match="Data: the hyper-parameter 'root'"):
        Data(4, Path("data"))
