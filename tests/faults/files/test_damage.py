"""Damage is found before anything is loaded: cut files, and a flipped bit anywhere."""

import os
import subprocess
import sys
import zipfile

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from headstart import LightningDataModule, LightningModule
from headstart.archive import check
from headstart.callbacks import ModelCheckpoint
from headstart.checkpoint import (
    read_checkpoint,
    write_checkpoint,
)
from headstart.cli.interrupt import Interrupt, fit_until_ctrl_c
from headstart.errors import CheckpointError

DAMAGED = (
    r"last\.ckpt is damaged, or no checkpoint \([\d,]+ bytes\): .*Nothing of it was loaded\. Copy it again"
)

# ---- a checkpoint


def test_a_flipped_bit_at_any_place_of_a_checkpoint_is_found(checkpoint, flip):
    for place in range(checkpoint.stat().st_size):
        flip(checkpoint, place, bit=place % 8)
        with pytest.raises(CheckpointError, match=DAMAGED):
            read_checkpoint(checkpoint)
        flip(checkpoint, place, bit=place % 8)
    assert read_checkpoint(checkpoint)["epoch"] == 3


def test_a_checkpoint_cut_at_any_place_is_found(checkpoint):
    for length in reversed(range(checkpoint.stat().st_size)):
        os.truncate(checkpoint, length)
        with pytest.raises(CheckpointError, match=DAMAGED):
            read_checkpoint(checkpoint)


def test_a_checkpoint_with_something_behind_or_before_it_is_found(checkpoint):
    content = checkpoint.read_bytes()
    for longer in (content + b"\0", b"\0" + content, content + content, content[:-4] + content):
        checkpoint.write_bytes(longer)
        with pytest.raises(CheckpointError, match=DAMAGED):
            read_checkpoint(checkpoint)


def test_a_zeroed_block_in_the_midst_of_the_weights_is_found(tmp_path):
    # What a disk without power leaves: a file of the right length with a block that was never written.
    write_checkpoint({"state_dict": {"w": torch.ones(100_000)}}, tmp_path / "last.ckpt")
    with (tmp_path / "last.ckpt").open("rb+") as file:
        file.seek(200_000)
        file.write(bytes(4096))
    with pytest.raises(CheckpointError, match=r"the checksum of its entry '.*data/0' does not fit\. Nothing"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_the_seal_is_ignored_by_every_other_reader_of_such_files(checkpoint):
    for options in ({}, {"mmap": True}):
        assert torch.load(checkpoint, weights_only=True, **options)["epoch"] == 3
    with checkpoint.open("rb") as file:
        assert torch.load(file, weights_only=True)["epoch"] == 3
    with zipfile.ZipFile(checkpoint) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"headstart seal 1 sha256 ")


def test_a_file_of_another_tool_is_checked_by_the_checksums_of_its_entries(tmp_path, flip):
    path = tmp_path / "theirs.ckpt"
    torch.save({"state_dict": {"w": torch.arange(100.0)}}, path)
    assert read_checkpoint(path)["state_dict"]["w"][99] == 99
    place = path.read_bytes().index(torch.arange(100.0).numpy().tobytes())
    flip(path, place + 50)
    assert torch.load(path, weights_only=True)["state_dict"]["w"].sum() != 4950  # torch itself does not look
    with pytest.raises(
        CheckpointError, match=r"'theirs/data/0' does not fit \(or it was written without checksums"
    ):
        read_checkpoint(path)


def test_a_file_of_an_old_torch_is_read_though_nothing_in_it_tells_whether_it_is_whole(tmp_path):
    torch.save({"epoch": 1}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.ckpt") == {"epoch": 1}


def test_a_program_that_turned_checksums_off_gets_sealed_checkpoints_all_the_same(tmp_path):
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        write_checkpoint({"state_dict": {"w": torch.ones(100)}}, tmp_path / "a.ckpt")
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)
    assert read_checkpoint(tmp_path / "a.ckpt")["state_dict"]["w"].sum() == 100


@pytest.mark.slow
def test_checking_takes_no_more_memory_for_a_larger_file(tmp_path, program):
    write_checkpoint({"state_dict": {"w": torch.ones(25_000_000)}}, tmp_path / "large.ckpt")
    grown = program(
        """
        import sys
        from pathlib import Path
        from headstart.archive import check

        def peak():  # ru_maxrss would be that of the process that started this one, if it was larger
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

        before = peak()
        check(Path(sys.argv[1]))
        print(peak() - before)
        """,
        tmp_path / "large.ckpt",
    )
    assert int(grown) < 10_000  # kB, of a file of 100 MB


# ---- going on from the one before


class Count(LightningModule):
    """Its weight is minus the number of steps."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return self.weight * batch[0].mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def loader():
    return DataLoader(TensorDataset(torch.ones(2, 1)))


def trainer_for(folder, max_epochs, quiet_trainer, **options):
    saving = ModelCheckpoint(folder, save_last=True, **{"save_top_k": 0, **options})
    return quiet_trainer(max_epochs=max_epochs, enable_checkpointing=True, callbacks=[saving])


@pytest.fixture
def three_epochs(tmp_path, quiet_trainer):
    trainer_for(tmp_path / "kept", 3, quiet_trainer).fit(Count(), loader())
    return tmp_path / "kept"


def test_the_last_checkpoint_and_the_one_before_it_are_kept(three_epochs):
    assert sorted(path.name for path in three_epochs.iterdir()) == ["last-previous.ckpt", "last.ckpt"]
    assert read_checkpoint(three_epochs / "last.ckpt")["global_step"] == 6
    assert read_checkpoint(three_epochs / "last-previous.ckpt")["global_step"] == 4


def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before_and_says_so(
    three_epochs, quiet_trainer, flip
):
    flip(three_epochs / "last.ckpt", 1000)
    module, trainer = Count(), trainer_for(three_epochs, 5, quiet_trainer)
    with pytest.warns(
        UserWarning, match=r"not used: .*last\.ckpt \(.*checksum.*used instead: .*last-previous\.ckpt"
    ):
        trainer.fit(module, loader(), ckpt_path="last")
    assert (trainer.global_step, module.weight.item()) == (10, -10)
    # The damaged one never takes the place of a whole one.
    assert sorted(path.name for path in three_epochs.iterdir()) == [
        "last-previous.ckpt", "last.ckpt", "last.ckpt.damaged",
    ]  # fmt: skip
    assert read_checkpoint(three_epochs / "last-previous.ckpt")["global_step"] == 8


def test_where_all_are_damaged_the_error_says_so(three_epochs, quiet_trainer, flip):
    for name in ("last.ckpt", "last-previous.ckpt"):
        os.truncate(three_epochs / name, 500)
    with pytest.raises(
        CheckpointError, match=r"all are damaged: .*last\.ckpt \(.*last-previous\.ckpt \(.*begin anew"
    ):
        trainer_for(three_epochs, 5, quiet_trainer).fit(Count(), loader(), ckpt_path="last")
    assert len(list(three_epochs.iterdir())) == 2  # left as they are


def test_a_link_to_the_newest_file_has_a_previous_one_too(tmp_path, quiet_trainer, flip):
    saving = ModelCheckpoint(tmp_path / "kept", save_last="link")
    trainer = quiet_trainer(max_epochs=3, enable_checkpointing=True, callbacks=[saving])
    trainer.fit(Count(), loader())
    assert read_checkpoint(tmp_path / "kept" / "last-previous.ckpt")["global_step"] == 4


@pytest.mark.slow
def test_a_kill_at_any_moment_of_saving_leaves_a_whole_checkpoint(tmp_path):
    """The process ends before the n-th thing that it asks of the file system, for every n."""
    program = """
import os, sys
from pathlib import Path
import torch
from headstart.checkpoint import keeping_previous, write_checkpoint

path, fatal = Path(sys.argv[1]), int(sys.argv[2])
calls = 0

def audit(event, arguments):
    global calls
    if event in {"os.link", "os.rename", "os.remove", "open", "os.chmod", "os.replace"} and armed:
        calls += 1
        if calls == fatal:
            os._exit(9)

armed = False
sys.addaudithook(audit)
for number in (1, 2):
    with keeping_previous(path):
        write_checkpoint({"epoch": number}, path)
for fatal in range(1, 100):
    child = os.fork()
    if child == 0:
        armed = True
        with keeping_previous(path):
            write_checkpoint({"epoch": 3}, path)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    from headstart.checkpoint import newest_whole, read_checkpoint
    print(fatal, code, read_checkpoint(newest_whole([path], say=print))["epoch"], flush=True)
    if code == 0:
        break
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "last.ckpt"), "0"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) > 8  # so many moments, and the last one is the end
    assert [code for _, code, _ in lines] == ["9"] * (len(lines) - 1) + ["0"]
    assert {epoch for _, _, epoch in lines} == {"2", "3"}
    # What the kills left behind stands under no final name.
    check(tmp_path / "last-previous.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == [
        "last-previous.ckpt",
        "last.ckpt",
    ]


class Data(LightningDataModule):
    def train_dataloader(self):
        return loader()


def resumed(folder, quiet_trainer, max_epochs):
    """Go on as `headstart fit --resume` does."""
    interrupt = Interrupt(folder / "last.ckpt")
    saving = ModelCheckpoint(folder, filename="best", save_last=True, enable_version_counter=False)
    trainer = quiet_trainer(max_epochs=max_epochs, enable_checkpointing=True, callbacks=[interrupt, saving])
    module = Count()
    assert not fit_until_ctrl_c(trainer, module, Data(), interrupt, resume=True)
    return trainer.global_step, module.weight.item()


def test_headstart_fit_goes_on_from_the_newest_whole_checkpoint_and_says_so(
    tmp_path, quiet_trainer, flip, capsys
):
    folder = tmp_path / "checkpoints"
    assert resumed(folder, quiet_trainer, 3) == (6, -6)
    assert "no checkpoint yet" in capsys.readouterr().out
    flip(folder / "last.ckpt", 1000)
    assert resumed(folder, quiet_trainer, 4) == (8, -8)
    said = capsys.readouterr().out
    assert "Damaged, and not used: " in said and f"is used instead: {folder / 'last-previous.ckpt'}" in said
    # With both gone, the best one is still a whole state of the same run.
    for name in ("last.ckpt", "last-previous.ckpt"):
        os.truncate(folder / name, 100)
    assert resumed(folder, quiet_trainer, 5) == (10, -10)
    assert f"is used instead: {folder / 'best.ckpt'}" in capsys.readouterr().out
    for path in folder.glob("*.ckpt"):
        os.truncate(path, 100)
    with pytest.raises(CheckpointError, match=r"no checkpoint to go on from, all are damaged: .*best\.ckpt"):
        resumed(folder, quiet_trainer, 6)


def test_ctrl_c_keeps_the_checkpoint_before_its_own(tmp_path, quiet_trainer):
    folder = tmp_path / "checkpoints"
    resumed(folder, quiet_trainer, 2)
    interrupt = Interrupt(folder / "last.ckpt")
    interrupt.is_requested = True
    with pytest.raises(KeyboardInterrupt):
        saving = ModelCheckpoint(folder, save_last=True, save_top_k=0, enable_version_counter=False)
        trainer = quiet_trainer(max_epochs=3, callbacks=[interrupt, saving], enable_checkpointing=True)
        trainer.fit(Count(), loader())
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 1
    assert read_checkpoint(folder / "last-previous.ckpt")["global_step"] == 4
