"""Several real processes: what trains changes, metrics, decisions, checkpoints; `worker.py` runs it all, once for 2 and once for 3."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from headstart.plans import PLANS

pytestmark = pytest.mark.slow  # processes that import torch

WORKER = Path(__file__).with_name("worker.py")

# Sums over the samples of a step are taken in another order: float32 rounding, over some 20 steps that move weights by 0.1.
ROUNDING = 1e-5


def torchrun(count: int, *command: str, timeout: int = 900, **more: str) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        [*start, *command], capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )


@pytest.fixture(scope="module", params=[2, 3])
def run(request, tmp_path_factory):
    """Give the result of a scenario by its name."""
    folder = tmp_path_factory.mktemp(f"processes{request.param}")
    finished = torchrun(request.param, str(WORKER), str(folder))
    assert finished.returncode == 0, finished.stderr[-3000:]
    results = json.loads((folder / "results.json").read_text())

    def result_of(name: str):
        assert "problem" not in results[name], results[name]["problem"]
        return results[name]["result"]

    result_of.size = request.param
    result_of.folder = folder
    return result_of


@pytest.mark.parametrize("train_bn", [False, True])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_processes_stay_the_same_when_backbone_finetuning_thaws(run, epoch, train_bn):
    found = run(f"BackboneFinetuning {epoch} {train_bn}")
    assert found["difference"] == 0.0
    assert found["moved"] > 1e-3


@pytest.mark.parametrize("setting", ["warn", "skip"])
def test_processes_stay_the_same_where_the_last_batch_of_a_window_counts_for_nothing(run, setting):
    found = run(f"last of a window left out: {setting}")
    assert found["difference"] == 0.0
    assert found["steps"] > 0


@pytest.mark.parametrize("name", ["base_finetuning", "by_hand_at_an_epoch", "by_hand_between_batches"])
def test_processes_stay_the_same_whoever_thaws(run, name):
    found = run(name)
    assert found["difference"] == 0.0
    assert found["moved"] > 1e-3


@pytest.mark.parametrize("name", sorted(PLANS))
def test_processes_stay_the_same_with_every_named_plan(run, name):
    found = run(f"plan {name}")
    assert found["difference"] == 0.0
    assert (found["moved"] > 0) == (name != "linear_probe")


def test_phases_of_a_time_end_at_the_same_step_in_all_processes(run):
    found = run("phases_of_a_time")
    assert found["difference"] == 0.0
    assert found["moved"] > 1e-3
    # A step takes 1.5 seconds on average over two processes, and 2 over three. Within an epoch, a stop is agreed upon during
    # the next batch.
    assert found["steps"] == {2: [0, 6, 12], 3: [0, 5, 11]}[run.size]


def test_processes_that_differ_are_named_at_the_end_of_the_epoch(run):
    assert "After epoch 0 two processes differ by" in run("checks_name_what_differs")


def test_processes_begin_with_the_weights_of_the_first(run):
    assert run("different_weights_at_the_start")["difference"] == 0.0


@pytest.mark.parametrize("title", ["even", "uneven", "a sample is left", "accumulated", "clipped", "dropped"])
def test_a_step_of_several_processes_is_that_of_one_with_their_batches_together(run, title):
    found = run(f"as one: {title}")
    assert found["ranks"] == 0.0
    assert found["weights"] < ROUNDING
    assert found["logged"] < ROUNDING
    assert found["steps"][0] == found["steps"][1] > 0


@pytest.mark.parametrize(
    "how", ["stepped", "clipped", "stepped without the trainer", "with and without manual_backward"]
)
def test_gradients_are_averaged_in_manual_optimization(run, how):
    found = run(f"manual optimization: {how}")
    assert found["difference"] == 0.0
    assert found["weights"] < ROUNDING  # an uneven last batch counts by its samples here too


@pytest.mark.parametrize("name", ["a_plateau_of_steps", "frozen_within_a_window"])
def test_processes_stay_the_same_where_each_has_its_own_values(run, name):
    assert run(name)["difference"] == 0.0


def test_an_optimizer_that_calls_its_closure_is_refused(run):
    assert "needs one process" in run("lbfgs")


# ---- samples, and what is logged of them


@pytest.mark.parametrize("title", ["indexed", "batches of its own", "stream"])
@pytest.mark.parametrize("kind", ["train", "validation", "predicted"])
def test_every_sample_is_seen_once(run, title, kind):
    assert run("seen_once")[title][kind] == list(range(11))


@pytest.mark.parametrize("kind", ["train", "val"])
def test_an_epochs_values_are_those_of_all_samples_each_counted_once(run, kind):
    found = run("logged")
    values = found["values"]
    assert found["all alike"]
    numbers = torch.arange(11.0)
    assert values[f"{kind} mean"] == numbers.mean()
    assert values[f"{kind} sum"] == numbers.sum()
    assert (values[f"{kind} min"], values[f"{kind} max"]) == (0.0, 10.0)
    assert values[f"{kind} first"] == 1.0  # rank_zero_only
    num_batches = -(-11 // (2 * run.size))
    assert values[f"{kind} of one"] == num_batches  # counted once, though it is agreed on twice
    assert values["acc"] == pytest.approx(6 / 11)  # a torchmetrics object
    assert values["rank"] == (run.size - 1) / 2  # logged when the epoch was over


# ---- decisions


def test_early_stopping_and_plateaus_decide_alike(run):
    found = run("decided_alike")
    (rate, epochs), *others = found["everyone"]
    assert all(each == [rate, epochs] for each in others)
    assert epochs == 4  # the mean is best in epoch 0, though the first process's own value falls to the end
    assert rate == pytest.approx(1e-4)  # cut in epochs 1, 2 and 3
    assert found["difference"] == 0.0


def test_one_process_that_stops_stops_all_after_the_same_step(run):
    found = run("one_stops_all")
    assert found["steps"] == [3] * run.size
    assert found["difference"] == 0.0


# ---- checkpoints


def test_a_run_goes_on_from_every_step_as_if_it_had_not_been_cut(run):
    found = run("resumed")
    assert len(found["differences"]) == found["steps"] - 1 == 8
    assert set(found["differences"].values()) == {0.0}
    assert set(found["values"].values()) == {0.0}


def test_a_run_goes_on_within_an_accumulation_window(run):
    assert run("resumed_within_a_window") == {"difference": 0.0, "ranks": 0.0}


def test_a_checkpoint_of_one_process_goes_on_in_several(run):
    found = run("from_one_process")
    assert max(found["differences"].values()) < ROUNDING
    assert f"{2 * run.size} samples a step then, {3 * run.size} now" in found["message"]


def test_a_checkpoint_of_several_processes_goes_on_in_one(run, quiet_trainer):
    from tests.strategy.worker import Net, loader

    path = run.folder / "resumed" / "whole" / "step=3.ckpt"  # the first epoch's last batch
    trainer = quiet_trainer(max_epochs=2)
    num_samples = 12 * run.size - 2
    with (
        pytest.warns(UserWarning, match=f"is of {run.size} processes, and now there are 1"),
        pytest.warns(UserWarning, match="holds the state of callbacks that this trainer does not have"),
    ):
        trainer.fit(Net(dropout=0.3), loader(num_samples, batch_size=4 * run.size), ckpt_path=path)
    assert trainer.current_epoch == 2
    assert trainer.global_step == 6


# ---- frozen work


def check_that_frozen_work_is_done_once(found):
    assert found["computed"] == found["samples"] > 0
    assert found["looked up"] >= 2 * found["samples"]  # in the epochs after the first
    assert found["weights"] < ROUNDING
    assert found["ranks"] == 0.0


def test_a_samples_frozen_work_is_done_once_in_all_processes(run):
    check_that_frozen_work_is_done_once(run("frozen_work_is_done_once"))


def test_a_samples_frozen_work_is_done_once_on_all_machines(tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    processes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=2", f"--node_rank={node}",
                "--master_addr=127.0.0.1", f"--master_port={port}", str(WORKER), str(tmp_path), "frozen_work",
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for node in (0, 1)
    ]  # fmt: skip
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)[-3000:]
    found = json.loads((tmp_path / "results.json").read_text())["frozen_work_is_done_once"]
    check_that_frozen_work_is_done_once(found["result"])


# ---- weights in parts


@pytest.mark.parametrize("title", ["thawed", "clipped", "accumulated"])
def test_weights_in_parts_train_as_whole_ones_do(run, title):
    found = run(f"in parts: {title}")
    assert found["weights"] < ROUNDING
    assert found["logged"] < ROUNDING
    assert found["held"] < 1 / run.size + 0.1  # the small parts are rounded up
    assert found["statistics"] == 0.0


@pytest.mark.parametrize("name", sorted({*PLANS} - {"lora"}))
def test_every_named_plan_trains_weights_in_parts_as_whole_ones(run, name):
    assert run(f"plan in parts: {name}")["weights"] < ROUNDING


def test_checkpoints_of_parts_go_on_exactly_written_as_one_file_or_in_parts(run):
    found = run("saved_in_parts")
    assert len(found["differences"]) == 5  # and the weights alone, as safetensors
    assert set(found["differences"].values()) == {0.0}


def test_checkpoints_in_parts_replace_each_other_and_the_last_one_goes_on(run):
    found = run("newest_in_parts")
    newest = "epoch=1-step=" + str(2 * -(-23 // (2 * run.size))) + ".ckpt"
    assert found["kept"] == [newest, "last-previous.ckpt", "last.ckpt"]
    assert found["weights"] < ROUNDING


def test_a_flipped_bit_in_a_part_is_found_and_the_run_goes_on_from_the_checkpoint_before(run):
    found = run("newest_in_parts")
    assert "last.ckpt.damaged" in found["kept after damage"]
    assert len(found["said"]) == 1
    assert "is not as it was written" in found["said"][0]
    assert found["weights after damage"] < ROUNDING


def test_a_flipped_bit_anywhere_in_a_checkpoint_in_parts_is_found(run, tmp_path):
    from headstart.checkpoint import read_checkpoint
    from headstart.errors import CheckpointError

    run("newest_in_parts")
    folder = shutil.copytree(run.folder / "newest_in_parts" / "last.ckpt", tmp_path / "copy.ckpt")
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 50)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(CheckpointError, match="damaged"):
                read_checkpoint(folder)
        path.unlink()
        with pytest.raises(CheckpointError):
            read_checkpoint(folder)
        path.write_bytes(content)
    assert read_checkpoint(folder)["epoch"] == 2


@pytest.mark.parametrize("saves", ["whole", "parts"])
def test_a_checkpoint_of_parts_is_read_by_one_process(run, saves):
    from headstart.checkpoint import read_checkpoint

    folder = run.folder / "saved_in_parts"
    path = folder / saves / "whole" / f"step={run('saved_in_parts')['steps']}.ckpt"
    assert path.is_dir() == (saves == "parts")
    weights = read_checkpoint(path)["state_dict"]
    expected = torch.load(folder / f"{saves}.pt", weights_only=True)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_checkpoints_of_parts_are_read_in_another_number_of_processes(run, tmp_path):
    finished = torchrun(
        5 - run.size, str(WORKER), str(tmp_path), "goes_on", OTHER_RUN=str(run.folder / "saved_in_parts")
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    found = json.loads((tmp_path / "results.json").read_text())["goes_on_in_another_number"]
    assert "problem" not in found, found["problem"]
    assert len(found["result"]) == 4
    assert set(found["result"].values()) == {0.0}


def test_what_cannot_be_done_in_parts_is_refused(run):
    manual, lora = run("refused_in_parts")
    assert "use strategy='ddp'" in manual
    assert "Adapters are small: use strategy='ddp'." in lora


# ---- how processes are started

PROGRAM = """
import sys
import torch
from headstart import Trainer
from headstart.demos.boring_classes import BoringModel

if __name__ == "__main__":
    trainer = Trainer(accelerator="cpu", devices=2, max_epochs=1, limit_train_batches=2, limit_val_batches=1, logger=False,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(BoringModel())
    # In one piece: both write to the same pipe.
    sys.stdout.write(f"process {trainer.global_rank} of {trainer.world_size}, {sys.argv[1:]}\\n")
"""


def test_the_trainer_starts_the_program_anew_in_each_process(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    finished = subprocess.run(
        [sys.executable, str(program), "--an", "argument"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert sorted(line for line in finished.stdout.splitlines() if line.startswith("process")) == [
        "process 0 of 2, ['--an', 'argument']",
        "process 1 of 2, ['--an', 'argument']",
    ]
    assert "headstart starts this program in 2 processes" in finished.stderr


def test_a_program_that_cannot_be_started_anew_says_what_to_do(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100, check=False
    )
    assert finished.returncode == 1
    assert "Write it to a file, or set devices=1." in finished.stderr


def test_devices_that_are_not_those_of_torchrun_are_refused(monkeypatch):
    from headstart import Trainer
    from headstart.errors import MisconfigurationError

    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(
        MisconfigurationError, match="devices is 3 .* torchrun started 2 processes on each of 1 machines"
    ):
        Trainer(accelerator="cpu", devices=3)
    assert Trainer(accelerator="cpu", devices=1).world_size == 1
    assert Trainer(accelerator="cpu").world_size == 2
