"""Each benchmark runs, and prints its rows; what the rows say is not judged here, for the machine may be busy."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # second processes that import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def rows_of(script):
    """Run a benchmark as its reader would, and give the lines it prints."""
    command = [sys.executable, str(BENCHMARKS / script), "--quick"]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=300
    ).stdout.splitlines()


def row_about(title, rows):
    """The columns after the title of the one row that has it."""
    (row,) = [row for row in rows if title in row]
    return row.partition(title)[2].split()


def test_overhead_prints_each_set_up_beside_the_plain_loop():
    rows = rows_of("overhead.py")
    titles = [
        "plain PyTorch loop",
        "Trainer, all off",
        "Trainer, self.log  ",
        "Trainer, self.log + bar + CSV",
    ]
    for title in titles:
        median, fastest, ratio, cpu_ratio = map(float, row_about(title, rows))
        assert median >= fastest > 0
        assert ratio > 0
        assert cpu_ratio > 0
    assert row_about(titles[0], rows)[2:] == ["1.00", "1.00"]


def test_import_time_prints_each_start_beside_the_import_of_torch():
    rows = rows_of("import_time.py")
    for title in ["python, nothing", "import headstart", "headstart --help", "from headstart import Trainer"]:
        assert row_about(title, rows)
    assert row_about("import torch  ", rows)[-1] == "1.00"


def test_frozen_flops_prints_that_a_real_freeze_costs_a_forward_pass_and_moves_no_statistics():
    rows = rows_of("frozen_flops.py")
    by_hand = row_about("plain PyTorch: backbone frozen, in eval mode", rows)
    frozen = row_about("BackboneFinetuning(train_bn=False)", rows)
    norms_train = row_about("BackboneFinetuning(), train_bn=True", rows)
    full = row_about("no callback: everything trains", rows)
    assert frozen == by_hand
    assert frozen[2:] == ["0", "of", "20"]
    assert norms_train[2:] == full[2:] == ["20", "of", "20"]
    assert float(frozen[0]) < float(norms_train[0]) < float(full[0])


def test_reuse_prints_each_figure_beside_its_bar_and_trains_to_the_same_losses_as_plain_loops():
    rows = rows_of("reuse.py")
    bars = {
        "photos, later epoch: headstart / plain loop on features": "at most 2x",
        "photos, last stage trains, later epoch: headstart / that stage alone": "at most 1.25x",
        "never useful, a step: reuse_frozen='auto' / False": "at most 1.02x",
        "photos, memory above a plain run, values on disk": "at most 200 MB",
        "photos, first pass an image: headstart / bare forward, inside memory_kept": "the limit",
        "photos, first pass an image: headstart / bare forward, outside": "the limit",
    }
    for title, bar in bars.items():
        *figures, _ = " ".join(row_about(title, rows)).partition(bar)
        assert figures[1] == bar
        assert len(figures[0].split()) >= 3
    # The figures depend on how busy the machine is; the losses do not.
    for title in ["photos, last epoch, plain loop", "last stage, last epoch, plain loop"]:
        reference, own, difference, verdict, *_ = row_about(title, rows)
        assert float(reference) == pytest.approx(float(own), abs=1e-4)
        assert float(difference) <= 1e-4
        assert verdict == "same"


def test_checkpoints_prints_seal_and_check_beside_torch():
    rows = rows_of("checkpoints.py")
    for title in (
        "torch.save and fsync",
        "the seal",
        "write_checkpoint",
        "torch.load",
        "the check",
        "read_checkpoint",
    ):
        seconds, _, ratio = row_about(title, rows)
        assert float(seconds) > 0 and float(ratio) > 0


def test_sweep_prints_the_time_of_many_heads_over_that_of_one():
    rows = rows_of("sweep.py")
    one, many, ratio, *verdict = row_about("head  ", rows)
    assert float(ratio) == pytest.approx(float(many) / float(one), rel=0.05)
    assert verdict[:2] == ["at", "most"]


def test_never_worse_prints_auto_beside_its_head_and_a_rival():
    rows = rows_of("never_worse.py")
    for title in ("auto  ", "its head alone  ", "full, equal epochs  "):
        num_seeds, accuracy, *_ = row_about(title, rows[:-4])
        assert num_seeds == "1"
        assert 0 <= float(accuracy) <= 1
