"""README.md and docs/: their Python runs, their commands run, their links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from headstart.cli import sweep_options
from headstart.cli.main import main
from headstart.cli.options import parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [page.name for page in PAGES]
# The data is tiny and the default settings are not: one epoch, small pictures.
QUICK = {"photos": ["--epochs", "1", "--image_size", "32"], "table": ["--epochs", "1"]}


def blocks(page):
    """Give (language, text) of each fenced block of a page, in their order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


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


def run_command(line):
    """Run a `headstart ...` line of a page; give the exit code."""
    arguments = shlex.split(line, comments=True)[1:]
    if arguments[0] == "run":  # it puts modules into the process that runs it
        return subprocess.run([sys.executable, "-m", "headstart", *arguments], check=False).returncode
    if arguments[0] not in {"fit", "sweep"} or "--help" in arguments:
        return main(arguments)
    if re.search("(timm|torchvision|hf):", line):  # needs a network: are the options right?
        (parse if arguments[0] == "fit" else sweep_options.parse)(arguments[1:])
        return 0
    if "--resume" in arguments:
        return main(arguments)
    kind = "photos" if arguments[1] == "photos" else "table"
    quick = [
        word
        for name, value in zip(QUICK[kind][::2], QUICK[kind][1::2], strict=True)
        if name not in arguments
        for word in (name, value)
    ]
    return main([*arguments, *quick])


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out_data(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": f"docs_{page.stem}"}
    for language, text in blocks(page):
        if language == "python" and (script := re.match(r"# (\w+\.py)\n", text)):
            Path(script.group(1)).write_text(text)
        elif language == "python":
            exec(compile(text, str(page), "exec"), namespace)
        elif language == "sh":
            for line in re.findall(r"^headstart .*$", text, flags=re.MULTILINE):
                try:
                    code = run_command(line)
                except SystemExit as ended:  # --help and --print_config
                    code = ended.code
                assert not code, line


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
