"""README.md and docs/: their Python runs, their commands run, what they show is printed, their links lead somewhere."""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from functools import partial
from pathlib import Path

import pytest
import torch

from docs.site.outputs import SET_UP, blocks_of, run_block, run_line, shown_below
from headstart.cli import sweep_options
from headstart.cli.main import main
from headstart.cli.options import parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
# The data is tiny and the default settings are not: one epoch, small pictures.
QUICK = {
    "photos": {"--epochs": "1", "--image_size": "32"},
    "cells": {"--epochs": "1", "--image_size": "64"},
    "table": {"--epochs": "1"},
}
#: Lines of a tutorial that another outcome, or another machine, words differently: what was kept and why, how far it is.
DEPENDS_ON_DATA = re.compile(
    r"\* ?(head alone|blend|fine-tuned|soup)[^:]*:|kept |.*validation;|frozen work |.*TFLOP saved|Epoch |.*: batch |.*done once: |.*: fastest in chunks"
)
#: Fits that several pages have: the words, and the folder that was made. The data is the same on every page.
_FITTED = {}


def lay_out_data(folder):
    """Make the data that the pages name."""
    from PIL import Image

    for number, name in enumerate(("cat", "dog")):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(10):
            color = (200 * number, 10 * index, 90)
            Image.new("RGB", (40, 40), color).save(folder / "photos" / name / f"{index}.png")
    (folder / "more-photos").symlink_to("photos")
    Image.new("RGB", (40, 40), "red").save(folder / "new.jpg")
    words = [("good", f"a fine thing, number {index}") for index in range(10)]
    words += [("bad", f"a poor thing, number {index}") for index in range(10)]
    table = "".join(f'{label},"{text}"\n' for label, text in words)
    (folder / "reviews.csv").write_text("label,text\n" + table)
    (folder / "new-reviews.csv").write_text("text\nsomething new\n")
    pairs = "".join(f'{label},"{text}","{text[::-1]}"\n' for label, text in words)
    (folder / "pairs.csv").write_text("gold,premise,hypothesis\n" + pairs)


def thin_out():
    """Leave a few samples of the data that a tutorial has made: 12 photos a class, 3 of the new ones, each 8th text."""
    for name in ("cells/functional", "cells/defective", "new/functional", "new/defective"):
        keep = 12 if name.startswith("cells") else 3
        for photo in sorted(Path(name).glob("*"))[:-keep]:
            photo.unlink()
    for table in map(Path, ("news.csv", "new.csv")):
        if table.exists():
            first, *rows = table.read_text().splitlines()
            table.write_text("\n".join([first, *rows[::8], ""]))


def run_quickly(line, *, may_copy):
    """Run a line of a page, on little data and with settings that take seconds."""
    words = shlex.split(line, comments=True)
    if not words or words[0] != "headstart":
        run_line(line)
        thin_out()
        return
    try:
        code = run_command(words[1:], may_copy=may_copy)
    except SystemExit as ended:  # --help and --print_config
        code = ended.code
    assert not code, line


def run_command(arguments, *, may_copy):
    """Run `headstart ...`; give the exit code."""
    if arguments[0] == "run":  # it puts modules into the process that runs it
        return subprocess.run([sys.executable, "-m", "headstart", *arguments], check=False).returncode
    if arguments[0] == "serve":
        return serve_briefly(arguments)
    if arguments[0] not in {"fit", "sweep"} or "--help" in arguments:
        return main(arguments)
    if any(re.match("(timm|torchvision|hf):", word) for word in arguments):
        # It needs a network: are the options right?
        (parse if arguments[0] == "fit" else sweep_options.parse)(arguments[1:])
        return 0
    if "--resume" in arguments:
        return main(arguments)
    quick = QUICK.get("photos" if arguments[1] == "shards" else arguments[1], QUICK["table"])
    more = [word for name, value in quick.items() if name not in arguments for word in (name, value)]
    return fit_once([*arguments, *more]) if may_copy else main([*arguments, *more])


def fit_once(arguments):
    """Fit, or copy what the same words gave on another page: the data that the pages name is the same everywhere."""
    run, words = Path(arguments[arguments.index("--out") + 1]), tuple(arguments)
    if words in _FITTED and not run.exists():
        shutil.copytree(_FITTED[words], run)
        return 0
    code = main(arguments)
    if run.exists() and words not in _FITTED:  # --print_config makes none
        _FITTED[words] = Path(tempfile.mkdtemp(dir=Path.cwd().parent)) / "run"
        shutil.copytree(run, _FITTED[words])
    return code


def beginnings(printed):
    """What the lines of an output begin with, up to the first number: the rest differs with data, machine and day."""
    # A rule is as wide as the names above it.
    lines = [" ".join(line.replace("─", " ").split()) for line in printed.splitlines()]
    return {re.split(r"\d", each)[0].strip(" *") for each in lines if not DEPENDS_ON_DATA.match(each)}


def serve_briefly(arguments):
    """Serve until it listens, then end it; give the exit code."""
    line = [sys.executable, "-m", "headstart", *arguments, "--port", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert "is served at http://" in server.stdout.readline()
            server.terminate()
            return server.wait(timeout=60)
        finally:
            server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_page_runs_from_top_to_bottom_and_prints_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    lay_out_data(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": f"docs_{page.stem}".replace("-", "_")}
    text = page.read_text()
    # A run that is gone on with, or whose output is shown, is the page's own.
    may_copy = "--resume" not in text and "tutorial" not in page.name
    for block, shown in shown_below(text, blocks_of(text)):
        printed = run_block(block, namespace, partial(run_quickly, may_copy=may_copy))
        if shown is not None:
            assert shown.text.strip(), f"{block.text}: what it prints is missing: `make docs-outputs`"
            assert beginnings(shown.text) <= beginnings(printed), printed


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_that_are_not_run_name_what_exists(page):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for block in blocks_of(page.read_text()):
        for line in block.text.splitlines() if block.language == "sh" else ():
            if line.startswith("make "):
                assert shlex.split(line, comments=True)[1] in targets, line
            elif found := re.match(r"pip install '\.\[(.*)\]'", line):
                assert set(found[1].split(",")) <= set(extras), line
            elif line and not line.startswith(("headstart ", "python ", *SET_UP)):
                pytest.fail(f"{line!r} is neither run nor checked")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_block_says_its_language(page):
    fences = re.findall(r"^```(\w*)$", page.read_text(), flags=re.MULTILINE)
    assert set(fences[::2]) <= {"python", "sh", "text", "yaml"}
    assert set(fences[1::2]) <= {""}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_design_names_every_file_of_the_package():
    text = (ROOT / "docs" / "design.md").read_text()
    package = ROOT / "src" / "headstart"
    for path in package.rglob("*.py"):
        if path.name not in {"__init__.py", "__main__.py"} and "path_entry" not in path.parts:
            assert path.name in text, path.relative_to(package)
