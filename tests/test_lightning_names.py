from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

import headstart
from headstart import lightning_names
from headstart.lightning_names import table
from headstart.lightning_names.finder import LightningFinder, in_table, is_module
from headstart.lightning_names.rank_zero import (
    rank_zero_experiment,
    rank_zero_info,
    rank_zero_only,
    rank_zero_warn,
)
from headstart.lightning_names.requirements import RunIf, unmet

PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "tests_pytorch")


@pytest.fixture
def installed(monkeypatch):
    """The import names, for one test."""
    monkeypatch.setattr(sys, "meta_path", sys.meta_path.copy())
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    before = sys.modules.copy()
    lightning_names.install()
    yield
    for name in sys.modules.keys() - before.keys():
        if name.partition(".")[0] in PACKAGES:
            del sys.modules[name]


def aliases(module):
    yield module
    for alias, name in table.SAME_AS.items():
        if module == name or module.startswith(f"{name}."):
            yield alias + module.removeprefix(name)


@pytest.mark.parametrize("module", table.NAMES)
def test_every_name_of_the_table_is_there_under_each_name_of_its_module(installed, module):
    for name in table.NAMES[module]:
        found = [getattr(import_module(alias), name) for alias in aliases(module)]
        assert all(value is found[0] for value in found)


def test_the_names_of_programs_are_headstarts(installed):
    import lightning as L
    import lightning.pytorch as pl1
    import pytorch_lightning as pl2
    from lightning_fabric.utilities.seed import seed_everything
    from pytorch_lightning.core.lightning import LightningModule
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    assert L.LightningModule is pl1.LightningModule is pl2.LightningModule is LightningModule
    assert LightningModule is headstart.LightningModule
    assert seed_everything is headstart.seed_everything
    assert issubclass(MisconfigurationException, headstart.errors.MisconfigurationError)


def test_a_submodule_is_reached_without_importing_it(installed):
    import lightning as L

    assert L.pytorch.demos.boring_classes.BoringModel.__name__ == "BoringModel"


def test_a_star_import_brings_the_public_names(installed):
    found = {}
    exec("from pytorch_lightning import *", found)
    assert found["LightningModule"] is headstart.LightningModule


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "from lightning.pytorch.strategies import DeepSpeedStrategy",
            "'DeepSpeedStrategy' (lightning.pytorch.strategies) is not in headstart. Did you mean 'DDPStrategy'?",
        ),
        (
            "from pytorch_lightning import xyz",
            "'xyz' (pytorch_lightning) is not in headstart: headstart has the parts",
        ),
        (
            "import pytorch_lightning.serve",
            "'serve' (pytorch_lightning) is not in headstart: headstart has the parts",
        ),
        (
            "from lightning import Fabric",
            "'Fabric' (lightning) is not in headstart: headstart has one trainer",
        ),
        (
            "from pytorch_lightning.metrics.classification import Accuracy",
            "is not in headstart: use torchmetrics",
        ),
        (
            "from pytorch_lightning.callbacks import EarlyStoping",
            "'EarlyStoping' (pytorch_lightning.callbacks) is not in headstart. Did you mean 'EarlyStopping'?",
        ),
    ],
)
def test_an_import_of_what_is_lacking_is_an_import_error_that_says_so(installed, statement, message):
    with pytest.raises(ImportError) as raised:
        exec(statement, {})
    assert message in str(raised.value)


def test_an_attribute_that_is_lacking_is_an_attribute_error_that_says_so(installed):
    import pytorch_lightning as pl

    assert not hasattr(pl, "Fabric")
    with pytest.raises(
        AttributeError, match=r"'LightningCLI' \(pytorch_lightning.cli\) is not in headstart: build"
    ):
        _ = pl.cli.LightningCLI


def test_every_module_that_is_lacking_has_a_reason(installed):
    for module in (*PACKAGES, *table.NAMES):
        with pytest.raises(ImportError, match="is not in headstart"):
            import_module(f"{module}.no_such_thing_at_all")


def test_other_modules_are_left_to_others(installed):
    assert LightningFinder({"lightning"}).find_spec("lightning_utilities") is None
    assert find_spec("json").origin.endswith("__init__.py")


def test_installing_twice_changes_nothing(installed):
    before = sys.meta_path.copy(), sys.path.copy(), os.environ["PYTHONPATH"]
    lightning_names.install()
    assert (sys.meta_path, sys.path, os.environ["PYTHONPATH"]) == before


def test_versions_compare_as_programs_compare_them(installed):
    import pytorch_lightning as pl

    assert tuple(int(part) for part in pl.__version__.split(".")[:2]) >= (2, 0)


def test_the_second_names_lead_to_the_table():
    assert in_table("lightning.fabric.utilities") == "lightning_fabric.utilities"
    assert in_table("lightning") == "lightning"
    assert is_module("lightning.pytorch")
    assert is_module("pytorch_lightning.utilities.testing")
    assert not is_module("lightning.pytorch.LightningModule")


def test_rank_zero_functions_run_on_the_first_process_only(monkeypatch, caplog):
    counted = []
    count = rank_zero_only(lambda: counted.append(1))
    count()
    with caplog.at_level("INFO", logger="headstart"):
        rank_zero_info("%s is first", "here")
    with pytest.warns(UserWarning, match="careful"):
        rank_zero_warn("careful")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    count()
    rank_zero_warn("not here")
    assert counted == [1]
    assert [record.getMessage() for record in caplog.records] == ["here is first"]


def test_an_experiment_is_silent_on_other_processes(monkeypatch):
    experiment = rank_zero_experiment(lambda: "writer")
    assert experiment() == "writer"
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    silent = experiment()
    silent["key"] = 1
    assert silent.add_scalar("loss", 1.0).config["lr"] is silent


def test_random_state_is_put_back(installed):
    from pytorch_lightning.utilities.seed import isolate_rng

    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with isolate_rng():
        torch.rand(10)
    assert torch.equal(torch.rand(2), expected)


def test_a_test_that_needs_what_is_not_here_is_skipped():
    assert unmet(min_torch="2.0", max_torch="99", skip_windows=sys.platform == "win32", mps=None) == ([], {})
    assert unmet(max_torch="2.0", bf16_cuda=True)[0] == ["torch<2.0", "bf16_cuda"]
    assert unmet(min_cuda_gpus=100) == (["min_cuda_gpus"], {"min_cuda_gpus": True})
    assert RunIf(min_python="3.8").args == ()
    assert RunIf(min_python="3.8").kwargs["condition"] is False
    assert RunIf(tpu=True).kwargs["condition"] is True
