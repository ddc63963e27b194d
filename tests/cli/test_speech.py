"""What `headstart fit` says where: a terminal, a pipe, a program."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading

import pytest

from headstart.artefact import read_metadata
from headstart.cli import fit
from headstart.cli.main import main
from headstart.errors import MisconfigurationError

pyte = pytest.importorskip("pyte")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def in_terminal(solar_cells, tmp_path_factory):
    """`headstart fit --json` with a terminal for standard error, which is resized: folder, frames, screen, raw, stdout."""
    run = tmp_path_factory.mktemp("runs") / "seen"
    leader, follower = pty.openpty()

    def resize(columns, rows):
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    resize(100, 30)
    environment = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES", "NO_COLOR"}}
    process = subprocess.Popen(
        [sys.executable, "-m", "headstart", "fit", str(solar_cells), "--out", str(run), "--image_size", "64",
         "--batch_size", "8", "--epochs", "2", "--json"],
        env={**environment, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=follower, cwd=tmp_path_factory.mktemp("cwd"),
    )  # fmt: skip
    screen = pyte.HistoryScreen(100, 30, history=1000, ratio=0.5)
    stream = pyte.ByteStream(screen)
    raw, frames = b"", []

    def read():
        nonlocal raw
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:  # nobody writes any more
                return
            if not data:
                return
            raw += data
            stream.feed(data)
            frames.append("\n".join(line.rstrip() for line in screen.display))
            if "epoch 1/1" in frames[-1] and screen.columns == 100:
                resize(60, 30)
                screen.resize(30, 60)

    reader = threading.Thread(target=read)
    reader.start()
    printed, _ = process.communicate(timeout=300)
    os.close(follower)
    reader.join(timeout=30)
    os.close(leader)
    assert process.returncode == 0, raw.decode()
    return run, frames, screen, raw.decode(), printed.decode()


def test_the_view_goes_from_the_head_over_fine_tuning_to_the_test(in_terminal):
    _, frames, screen, raw, _ = in_terminal
    seen = "\n".join(frames)
    order = [
        "head: features to train on",
        "fine-tuning   epoch 0/1",
        "fine-tuning   epoch 1/1",
        "choice: validation",
    ]
    places = [seen.find(each) for each in order]
    assert -1 not in places
    assert places == sorted(places)
    tuning = next(
        each for each in frames if "epoch 1/1   batch 2/4" in each or "epoch 1/1   batch 3/4" in each
    )
    assert re.search(r"loss [\d.]+", tuning)
    assert re.search(r"val_f1 [\d.]+ \(best [\d.]+\)", tuning)
    assert re.search(r"lr [\d.e-]+ to [\d.e-]+   +[\d.]+ samples/s", tuning)
    assert "about 0:0" in tuning
    assert re.search(r"\d+ % of frozen work looked up", seen)
    assert "\x1b[?25l" not in raw  # the cursor was never hidden, so nothing can leave it so
    assert "Use it: headstart predict" in frames[-1]  # below, the prompt goes on
    narrow = [each for each in frames if max(map(len, each.splitlines())) <= 60 and "samples/s" in each]
    assert narrow[-1].count("fine-tuning   epoch") == 1  # the view of the wide terminal is gone


def test_standard_output_is_one_json_object_with_what_came_out(in_terminal):
    run, *_, printed = in_terminal
    assert printed.count("\n") == 1
    found = json.loads(printed)
    metadata = read_metadata(run)
    assert found["status"] == "finished"
    assert found["scores"] == metadata["metrics"]["test"]
    assert found["kept"]["name"] == metadata["metrics"]["choice"]["chosen"]
    assert found["validation"]["f1"] == metadata["metrics"]["validation"]["f1"]
    assert found["run"] == str(run)
    assert all(os.path.exists(path) for path in found["paths"].values())
    assert {"model", "curves", "options", "last_checkpoint"} <= set(found["paths"])
    assert found["seconds"]["total"] > found["seconds"]["training"] > 0


def test_a_pipe_gets_lines_without_control_codes(finished):
    _, printed = finished
    assert "\x1b" not in printed
    assert "\r" not in printed
    assert re.search(
        r"^Epoch 0/4, frozen phase: batch 4/4, loss .*, about 0:0\d left to the thaw$", printed, re.MULTILINE
    )
    assert len(re.findall(r"^Epoch \d/4", printed, re.MULTILINE)) == 5


def test_quiet_prints_where_the_run_is_and_errors(solar_cells, tmp_path, capfd):
    arguments = ["fit", str(solar_cells), "--out", str(tmp_path / "run"), "--image_size", "32", "--epochs", "1",
                 "--unfreeze_at_epoch", "1", "--quiet"]  # fmt: skip
    assert main(arguments) == 0
    assert capfd.readouterr() == (f"{tmp_path / 'run'}\n", "")
    assert main(arguments) == 1
    printed, errors = capfd.readouterr()
    assert printed == ""
    assert "holds a run already" in errors


def test_an_interrupted_run_is_one_json_object_too(solar_cells, tmp_path, capsys, monkeypatch):
    from headstart.callbacks import LiveView

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(LiveView, "on_train_epoch_start", interrupt)
    code = fit.run(
        [str(solar_cells), "--out", str(tmp_path / "run"), "--image_size", "32", "--epochs", "1", "--unfreeze_at_epoch",
         "1", "--json"]
    )  # fmt: skip
    assert code == 130
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "interrupted"
    assert found.get("scores") is None  # nothing was tested


def test_quiet_and_json_exclude_each_other():
    with pytest.raises(MisconfigurationError, match="--quiet prints where the run is, and --json one object"):
        fit.parse(["photos", "--out", "run", "--quiet", "--json"])
