"""`headstart fit` in several processes: the whole main job, as in one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from headstart.artefact import load_artefact, read_metadata

pytestmark = pytest.mark.slow

SMALL = ("--image_size", "64", "--epochs", "2")


def run_in(folder, *command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(solar_cells, tmp_path_factory):
    """The same job in one process, with batches of 8, and in two that torchrun starts, with batches of 4: folder and output."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    torchrun = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "headstart")
    for name, start, batch_size in (("one", ("headstart",), 8), ("two", torchrun, 4)):
        process = run_in(
            folder, *start, "fit", solar_cells, "--out", folder / name, *SMALL, "--batch_size", batch_size
        )
        assert process.returncode == 0, process.stderr[-3000:]
        found[name] = (folder / name, process.stdout, process.stderr)
    return found


def test_the_job_comes_to_its_end_and_prints_once(finished):
    run, printed, _ = finished["two"]
    assert printed.count("Head fitted to its optimum") == printed.count("Use it: headstart predict") == 1
    assert load_artefact(run).class_names == ["defective", "functional"]


def test_the_head_is_that_of_one_process(finished):
    lines = [
        re.search(r"on 28 samples, accuracy in 5 folds [^;]*", finished[name][1]).group() for name in finished
    ]
    assert lines[0] == lines[1]
    metrics = [read_metadata(finished[name][0])["metrics"] for name in ("one", "two")]
    heads = [each["choice"]["candidates"][0] for each in metrics]
    # The features are computed in batches of another size: float32 rounding.
    assert heads[0]["accuracy"] == heads[1]["accuracy"]
    assert heads[0]["log_loss"]["value"] == pytest.approx(heads[1]["log_loss"]["value"], abs=1e-4)


def test_fine_tuning_takes_as_many_steps_on_as_many_samples(finished):
    rows = [
        json.loads((finished[name][0] / "headstart.json").read_text())["history"] for name in ("one", "two")
    ]
    phases = [[(each["epochs"], each["num_trainable"]) for each in row["phases"]] for row in rows]
    assert phases[0] == phases[1]
    curves = [
        (finished[name][0] / "logs" / "metrics.csv").read_text().splitlines() for name in ("one", "two")
    ]
    assert len(curves[0]) == len(curves[1])


def test_devices_start_the_processes(solar_cells, tmp_path):
    process = run_in(
        tmp_path, "headstart", "fit", solar_cells, "--out", "run", *SMALL, "--plan", "linear_probe", "--devices", "2",
        "--accelerator", "cpu",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    assert "headstart starts this program in 2 processes" in process.stderr
    assert process.stdout.count("Use it: headstart predict") == 1
    assert torch.isfinite(load_artefact(tmp_path / "run").head.weight).all()


def test_commands_of_one_process_say_so(tmp_path):
    process = run_in(
        tmp_path,
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "headstart",
        "inspect",
        "x",
    )
    assert process.returncode != 0
    assert "headstart inspect runs in one process: start it without torchrun." in process.stderr


def test_processes_that_read_other_samples_do_not_train(solar_cells, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(solar_cells, other)
    next((other / "defective").iterdir()).unlink()
    (tmp_path / "program.py").write_text(
        "import os\nfrom headstart.cli.main import main\n"
        f"data = {[str(solar_cells), str(other)]!r}[int(os.environ['RANK'])]\n"
        f"raise SystemExit(main(['fit', data, '--out', 'run', *{SMALL!r}]))\n"
    )
    process = run_in(tmp_path, "torch.distributed.run", "--standalone", "--nproc_per_node=2", "program.py")
    assert process.returncode != 0
    assert "the processes have not read the same samples (process 0: {'train': 28" in process.stderr
    assert not (tmp_path / "run").exists()
