"""`headstart fit`: frozen work is done once, also over a kill, and for the next run."""

import signal
import time

import pytest

from headstart.artefact import read_metadata
from headstart.cli import fit
from headstart.errors import MisconfigurationError

pytestmark = pytest.mark.slow

FROZEN = ("--image_size", "64", "--batch_size", "8", "--epochs", "4", "--unfreeze_at_epoch", "4",
          "--report", "false")  # fmt: skip  # it makes a pass of its own


def fit_here(data, out, *options):
    assert fit.run([str(data), "--out", str(out), *FROZEN, *options]) == 0
    return (out / "model.safetensors").read_bytes()


def test_the_result_says_what_was_not_computed_again(solar_cells, tmp_path, capsys):
    fit_here(solar_cells, tmp_path / "run")
    lines = " ".join(capsys.readouterr().out.split())
    assert "frozen work done once: 34 passes through the backbone" in lines  # 28 train, 6 val
    assert "TFLOP saved" in lines


def test_features_of_one_run_serve_the_next(solar_cells, tmp_path, capsys):
    features = tmp_path / "features"
    first = fit_here(solar_cells, tmp_path / "one", "--features", str(features))
    capsys.readouterr()
    again = fit_here(solar_cells, tmp_path / "two", "--features", str(features))
    lines = " ".join(capsys.readouterr().out.split())
    assert again == first
    # Each part's first batch is computed once more, to be compared with what was kept.
    assert "done once: 14 passes through the backbone" in lines
    assert fit_here(solar_cells, tmp_path / "three", "--features", str(features), "--lr", "0.01") != first


def finish(process):
    """Wait for the end, with its pipes read and closed; give the exit code and the errors."""
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def test_a_killed_run_goes_on_bit_for_bit_while_frozen(solar_cells, fit_in_second_process, tmp_path):
    settings = (*FROZEN, "--epochs", "40", "--unfreeze_at_epoch", "40")
    whole, run = tmp_path / "whole", tmp_path / "run"
    code, errors = finish(fit_in_second_process(solar_cells, "--out", whole, *settings))
    assert code == 0, errors
    process = fit_in_second_process(solar_cells, "--out", run, *settings)
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, finish(process)
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    finish(process)
    code, errors = finish(fit_in_second_process(solar_cells, "--out", run, "--resume"))
    assert code == 0, errors
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_it_can_be_switched_off(solar_cells, tmp_path, capsys):
    fit_here(solar_cells, tmp_path / "run", "--reuse_frozen", "off")
    assert "frozen work" not in capsys.readouterr().out


def test_augmented_views_are_stored_too(solar_cells, tmp_path, capsys):
    fit_here(solar_cells, tmp_path / "run", "--views", "2")
    lines = " ".join(capsys.readouterr().out.split())
    assert "done once: 62 passes through the backbone" in lines  # 2 x 28 train, 6 val


def test_views_are_for_images(reviews, tmp_path):
    with pytest.raises(MisconfigurationError, match="--views is for a folder of images"):
        fit.run([str(reviews), "--out", str(tmp_path / "run"), "--plan", "thaw", "--views", "2"])


def test_patience_begins_when_the_backbone_is_unfrozen(solar_cells, tmp_path):
    settings = (
        "--lr",
        "1e-12",
        "--backbone_lr",
        "1e-12",
        "--patience",
        "2",
        "--epochs",
        "9",
        "--unfreeze_at_epoch",
        "4",
    )
    fit_here(solar_cells, tmp_path / "run", *settings)
    epochs = read_metadata(tmp_path / "run")["history"]["epochs"]
    # Nothing is learned at this rate: the first epoch stays the best, and two unfrozen ones are waited for.
    assert [each["phase"] for each in epochs] == ["frozen"] * 4 + ["unfrozen"] * 2
