from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Programs for `headstart run`: no part of this suite, and without it their imports find nothing.
collect_ignore_glob = ["programs/*"]


@pytest.fixture
def headstart(tmp_path):
    """Call the command line, or `.python`, as a second process in an empty folder."""

    def python(*arguments, **environment):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def call(*arguments, **environment):
        return python("-m", "headstart", *arguments, **environment)

    call.python = python
    return call


@pytest.fixture
def programs():
    return Path(__file__).with_name("programs")


# ---- a finetuned model, made once for all tests of the commands that need one


@pytest.fixture(scope="session")
def solar_cells(tmp_path_factory):
    """40 photos of solar cells, a folder per class."""
    source = Path(pytest.importorskip("elpv_dataset").__file__).parent / "data"
    rows = [line.split() for line in (source / "labels.csv").read_text().splitlines()]
    root = tmp_path_factory.mktemp("data") / "cells"
    for label, name in (("0.0", "functional"), ("1.0", "defective")):
        (root / name).mkdir(parents=True)
        for file, _, _ in [row for row in rows if row[1] == label][:20]:
            (root / name / Path(file).name).symlink_to(source / file)
    return root


@pytest.fixture(scope="session")
def fit_in_second_process(tmp_path_factory):
    """Start `headstart fit`, and give the process; its output is text."""

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "headstart", "fit", *map(str, arguments)],
            cwd=tmp_path_factory.mktemp("cwd"),
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


#: A frozen phase and an unfrozen one, in seconds.
SMALL = (
    "--image_size",
    "64",
    "--batch_size",
    "8",
    "--epochs",
    "5",
    "--unfreeze_at_epoch",
    "2",
    "--patience",
    "9",
)


@pytest.fixture(scope="session")
def small_settings():
    return SMALL


@pytest.fixture(scope="session")
def finished(solar_cells, fit_in_second_process, tmp_path_factory):
    """A run that nobody interrupted: its folder, and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    process = fit_in_second_process(solar_cells, "--out", run, *SMALL)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return run, printed


@pytest.fixture(scope="session")
def cell_run(finished):
    return finished[0]


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    """A table with 48 short texts in three classes."""
    said = {"good": "I love this {}", "bad": "I hate this {}", "question": "where can I buy a {}?"}
    things = ["film", "book", "car", "phone", "house", "meal", "song", "hat"] * 2
    rows = [
        f'{n},"{text.format(thing)}",{label}'
        for label, text in said.items()
        for n, thing in enumerate(things)
    ]
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    path.write_text("\n".join(["id,what was said,sentiment", *rows]))
    return path


@pytest.fixture(scope="session")
def text_run(reviews, tmp_path_factory):
    """A run on texts, whose column was named."""
    from headstart.cli import fit

    run = tmp_path_factory.mktemp("runs") / "texts"
    code = fit.run(
        [str(reviews), "--out", str(run), "--epochs", "3", "--unfreeze_at_epoch", "2", "--batch_size", "8",
         "--lr", "0.01", "--text_column", "what was said", "--label_column", "sentiment"]
    )  # fmt: skip
    assert code == 0
    return run


@pytest.fixture(scope="session")
def pair_run(text_run, tmp_path_factory):
    """A model of pairs that knows no names of columns, as of texts in tar files."""
    from headstart.artefact import load_artefact, save_artefact

    run = tmp_path_factory.mktemp("runs") / "pairs"
    save_artefact(run, load_artefact(text_run), metrics={}, data_report={"texts_per_sample": 2}, history={})
    return run


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """The name of a small image network with random weights."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    save_file(timm.create_model("mobilenetv3_small_050", pretrained=False).state_dict(), file)
    return f"timm:mobilenetv3_small_050@{file}"
