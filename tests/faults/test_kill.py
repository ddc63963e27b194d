"""SIGKILL at any moment: run again with `ckpt_path="last"`, the job ends with the bits of the run that nobody killed."""

import os
import random
import time

import pytest

from headstart.callbacks import ModelCheckpoint
from tests.faults.conftest import digest, errors
from tests.faults.jobs import train

SEED = 20261
DATA = {"augmented": {"augmented": True}, "features": {"features": True}}
# What happens to the files of a run, and how often at least: one checkpoint alone is written in a hundred pieces.
CHECKPOINTS = {"open": 12, "write": 300, "fsync": 12, "rename": 6, "remove": 3}
COLUMNS = {"open": 4, "fsync": 2, "rename": 2}


@pytest.mark.slow
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("number", range(5))
def test_a_job_killed_three_times_ends_as_if_nobody_had(
    number, data, start, run_to_end, undisturbed, tmp_path
):
    settings = DATA[data]
    expected = undisturbed(train, **settings)
    draw = random.Random(f"{SEED} {number} {data}")
    kills = []
    for where, moments in [("features", COLUMNS), ("checkpoints", CHECKPOINTS)]:
        where, moments = (where, moments) if data == "features" else ("checkpoints", CHECKPOINTS)
        what = draw.choice(list(moments))
        kills.append((where, what, draw.randrange(moments[what])))
        assert run_to_end(train, tmp_path, kill_at=kills[-1], **settings) == -9, (kills, errors(tmp_path))
    (tmp_path / "begun").unlink()
    process = start(train, tmp_path, **settings)
    while not (tmp_path / "begun").exists():
        time.sleep(0.002)
    kills.append(draw.uniform(0, 0.1))
    time.sleep(kills[-1])
    process.kill()
    process.join()
    print(f"seed {SEED}: killed at {kills}")  # shown where the test fails
    assert process.exitcode in {-9, 0}  # on a fast machine it may be over before: killed twice then
    assert len((tmp_path / "moments").read_text().splitlines()) == 2, "killed within a write"
    assert run_to_end(train, tmp_path, **settings) == 0, errors(tmp_path)
    assert digest(tmp_path) == expected


def test_what_a_killed_process_was_writing_is_removed_by_the_next_run(quiet_trainer, tmp_path):
    from headstart.demos.boring_classes import BoringModel

    old, new, other = (tmp_path / name for name in (".last.ckpt.a1.tmp", ".last.ckpt.b2.tmp", ".notes.tmp"))
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    quiet_trainer(callbacks=[ModelCheckpoint(tmp_path)], enable_checkpointing=True, max_steps=1).fit(
        BoringModel()
    )
    assert sorted(path.name for path in tmp_path.glob(".*.tmp")) == [new.name, other.name]
