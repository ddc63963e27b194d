"""A disk that is full or cannot be written: an error that names the file, and nothing half-written.

A small file system is mounted where that is allowed (as root, or in a user namespace), otherwise the size of a file is
limited: the same code meets ENOSPC, or EFBIG. Both run wherever they can; the second runs everywhere.
"""

import os
import shutil
import subprocess
from functools import cache

import pytest

# The programs below run one after the other, each in a fork with a folder of its own, in which `fill` leaves 200 kB, or 300 kB a file.
PREAMBLE = """
import errno, os, resource, subprocess, sys, traceback
from pathlib import Path
import torch
from torch.utils.data import DataLoader, TensorDataset
from headstart import LightningModule, Trainer, artefact
from headstart.callbacks import ModelCheckpoint
from headstart.checkpoint import keeping_previous, read_checkpoint, write_checkpoint
from headstart.deferred.store import Store
from headstart.errors import WriteError
from headstart.tasks import ImageClassifier
torch.set_num_threads(1)

how, root = sys.argv[1], Path(sys.argv[2])

def fill():
    if how == "mount":
        (folder / "other").write_bytes(bytes(500_000))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

expected = errno.ENOSPC if how == "mount" else errno.EFBIG
reason = "No space left on device" if how == "mount" else "File too large"
def names():
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != "other")

for name, text in zip(sys.argv[3::2], sys.argv[4::2]):
    folder = root / name
    folder.mkdir()
    if how == "mount":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", folder], check=True)
    child = os.fork()
    if child == 0:
        try:
            exec(text)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""

CHECKPOINT = """
path = folder / "last.ckpt"
for epoch in (1, 2):
    with keeping_previous(path):
        write_checkpoint({"epoch": epoch}, path)
fill()
for size in (100_000, 1_000_000):  # torch meets the full disk in its midst, or only at its end
    try:
        with keeping_previous(path):
            write_checkpoint({"epoch": 3, "state_dict": {"w": torch.ones(size)}}, path)
    except WriteError as error:
        assert error.errno == expected, error.errno
        assert str(path) in str(error) and reason in str(error), error
        assert "give another folder" in str(error) and "untouched" in str(error), error
    else:
        raise AssertionError("written")
    assert names() == ["last-previous.ckpt", "last.ckpt"], names()
    assert read_checkpoint(path)["epoch"] == 2
    assert read_checkpoint(folder / "last-previous.ckpt")["epoch"] == 1
"""

RUN = """
class Growing(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))
    def training_step(self, batch, batch_idx):
        return self.weight.sum()
    def on_save_checkpoint(self, checkpoint):
        checkpoint["more"] = torch.ones(100 if self.current_epoch < 2 else 1_000_000)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

fill()
trainer = Trainer(
    max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
    callbacks=[ModelCheckpoint(folder, save_last=True)],
)
try:
    trainer.fit(Growing(), DataLoader(TensorDataset(torch.ones(2, 1))))
except WriteError as error:
    assert reason in str(error), error
else:
    raise AssertionError("written")
assert names() == ["epoch=1-step=4.ckpt", "last-previous.ckpt", "last.ckpt"], names()
assert read_checkpoint(folder / "last.ckpt")["epoch"] == 1
"""

ARTEFACT = """
model = ImageClassifier("torchvision:squeezenet1_1", class_names=["a", "b"], pretrained=False, image_size=64)
run = folder / "run"
fill()
try:
    artefact.save_artefact(run, model)
except WriteError as error:
    assert error.errno == expected, error.errno
    assert str(run / "model.safetensors") in str(error) and reason in str(error), error
else:
    raise AssertionError("written")
assert names() == [], names()
"""

FEATURES = """
fill()
notes = []
# The room was there when the store began.
with Store(directory=folder, on_note=notes.append, memory_limit=10_000_000, disk_limit=10**9) as store:
    column = store.column("backbone(x)", num_samples=100, shape=(10_000,), dtype=torch.float32)
    column.put(torch.arange(100), torch.ones(100, 10_000))
    assert column.place == "memory" and column.num_filled == 100  # the run goes on without the file
assert str(folder) in notes[0] and reason in notes[0] and "free space" in notes[0].lower(), notes
assert names() in ([], [".lock"]), names()
with Store(directory=folder, on_note=notes.append) as store:  # a small one fits
    column = store.column("small(x)", num_samples=10, shape=(10,), dtype=torch.float32)
    column.put(torch.arange(10), torch.ones(10, 10))
assert len(notes) == 1, notes
"""

PROGRAMS = {"checkpoint": CHECKPOINT, "run": RUN, "artefact": ARTEFACT, "features": FEATURES}


@cache
def mounting():
    """The prefix of a command that may mount a file system of its own; `None` where nobody lets us."""
    for prefix in (("unshare", "--mount"), ("unshare", "--mount", "--map-root-user")):
        if shutil.which("unshare"):
            command = [*prefix, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return prefix
    return None


def test_a_small_file_system_can_be_mounted_or_the_other_means_is_used():
    # Said aloud in the log of a run (-rA), never skipped in silence.
    print(
        "a full disk is tested with",
        "a mounted file system and" if mounting() else "",
        "a limit on file sizes",
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mount", "limit"])
def test_a_full_disk_is_named_and_leaves_what_was_there(program, tmp_path, how):
    if how == "mount" and mounting() is None:
        how = "limit"  # said by the test above
    parts = [word for part in PROGRAMS.items() for word in part]
    program(PREAMBLE, how, tmp_path, *parts, prefix=mounting() if how == "mount" else ())


READ_ONLY = """
import errno, os, sys
from pathlib import Path
import torch
root = Path(sys.argv[1])
folder = root / "locked"
folder.mkdir()
from headstart.checkpoint import read_checkpoint, write_checkpoint
from headstart.deferred.store import Store
from headstart.errors import WriteError
write_checkpoint({"epoch": 1}, folder / "last.ckpt")
with Store(directory=root / "other", on_note=print):
    pass  # imports what it needs, which another user may not read
folder.chmod(0o555)
if os.getuid() == 0:  # permissions do not bind root
    os.chmod(root, 0o755)
    os.setresuid(65534, 65534, 65534)
for path in (folder / "last.ckpt", folder / "deeper" / "last.ckpt"):
    try:
        write_checkpoint({"epoch": 2}, path)
    except WriteError as error:
        assert error.errno == errno.EACCES
        assert f"{path} was not written: Permission denied. Change the permissions" in str(error), error
    else:
        raise AssertionError("written")
assert read_checkpoint(folder / "last.ckpt") == {"epoch": 1}
assert os.listdir(folder) == ["last.ckpt"]
notes = []
with Store(directory=folder, on_note=notes.append) as store:
    store.column("backbone(x)", num_samples=2, shape=(2,), dtype=torch.float32).put(torch.arange(2), torch.ones(2, 2))
assert "Permission denied" in notes[0] and str(folder) in notes[0], notes
"""


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_named(program, tmp_path_factory):
    # Not in `tmp_path`, whose parents are closed to other users.
    import tempfile

    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        program(READ_ONLY, root)


def test_the_error_is_an_oserror_with_its_number():
    from headstart.errors import WriteError

    assert issubclass(WriteError, OSError)
    assert WriteError("full", number=28).errno == 28
    assert str(WriteError("full", number=28)) == "full"
