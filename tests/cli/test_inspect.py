"""`headstart inspect`: the audit of a run, a checkpoint and a backbone."""

from __future__ import annotations

import shutil

import pytest
import torch

from headstart.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture
def inspect(capsys):
    """Run it in this process, and give the exit code and the rows of standard output, split at spaces."""

    def call(*arguments):
        code = main(["inspect", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}, out + err

    return call


def test_a_run_shows_groups_and_rates_of_its_last_checkpoint(cell_run, inspect):
    code, rows, text = inspect(cell_run)
    assert code == 0
    assert "image-classification" in text
    assert rows["head"][:7] == ["head", "Linear", "2,562", "2,562", "train", "0", "0.001"]
    assert rows["backbone"][:7] == ["backbone", "Backbone", "3,371,008", "3,371,008", "train", "1", "0.0001"]
    assert "backbone.model.conv_stem" in rows


def test_an_artefact_alone_is_shown_as_it_predicts(cell_run, tmp_path, inspect):
    for name in ("headstart.json", "model.safetensors"):
        shutil.copy(cell_run / name, tmp_path / name)
    code, rows, text = inspect(tmp_path, "--depth", "1")
    assert code == 0
    assert "nothing trains" in text
    assert rows["head"][3:5] == ["0", "eval"]
    # Frozen, a step is a forward: 2 FLOPs a weight of the head.
    assert rows["head"][-1] == f"{2 * 1280 * 2:,}"


def test_a_checkpoint_of_another_program_is_shown_by_its_names(tmp_path, inspect):
    state = {
        "encoder.0.weight": torch.zeros(3, 2),
        "encoder.0.bias": torch.zeros(3),
        "head.weight": torch.zeros(1, 3),
    }
    torch.save({"state_dict": state, "epoch": 4, "global_step": 70}, tmp_path / "other.ckpt")
    code, rows, text = inspect(tmp_path / "other.ckpt")
    assert code == 0
    assert "epoch 4, global_step 70" in text
    assert rows["encoder.0"] == ["encoder.0", "2", "9"]
    assert rows["head"] == ["head", "1", "3"]


def test_a_backbone_is_shown_without_its_weights(inspect):
    code, rows, text = inspect("torchvision:resnet18")
    assert code == 0
    assert "images, 512 features" in text
    # ResNet-18 without its head, https://arxiv.org/abs/1512.03385, table 1: 1.8e9 multiply-adds at 224 pixels.
    frozen = int(text.split("Frozen, a step costs ")[1].split()[0].replace(",", ""))
    assert frozen == pytest.approx(2 * 1.8e9, rel=0.02)
    assert rows["total"][1] == "11,176,512"


def test_a_name_that_nothing_answers_to_is_an_error(inspect):
    code, _, text = inspect("resnet18")
    assert code == 1
    assert "Did you mean 'torchvision:resnet18'?" in text


def test_a_file_without_weights_is_an_error(tmp_path, inspect):
    torch.save({"epoch": 4}, tmp_path / "other.ckpt")
    code, _, text = inspect(tmp_path / "other.ckpt")
    assert code == 1
    assert "It holds: epoch" in text
