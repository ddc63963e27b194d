"""The layout: what a reader meets first is built on nothing that comes later."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import headstart

SRC = Path(headstart.__file__).parent

# The reading order of the files and packages of headstart. Each imports only from those before it.
READING_ORDER = [
    "",  # headstart itself: the public names, loaded when they are used
    "errors",
    "words",
    "durations",
    "files",
    "archive",
    # what a user writes
    "hparams",
    "transfer",
    "datamodule",
    "flops",
    "freezing",
    "groups",
    "plan",
    "plans",
    "adapters",
    "module",
    "callback",
    # what a run is made of
    "hooks",
    "signals",
    "seed",
    "blending",
    "allocator",
    "deferred",
    "loaders",
    "precision",
    "optim",
    "metrics",
    "strategy",
    "logbook",
    "checkpoint",
    "whereabouts",
    "boundary",
    "nonfinite",
    "out_of_memory",
    # the run
    "loop",
    "resume",
    "settings",
    "trainer",
    # what stands on it
    "callbacks",
    "lr_finder",
    "loggers",
    "demos",
    "backbones",
    "tasks",
    "data",
    "scores",
    "transferability",
    "probe",
    "calibration",
    "choice",
    "auto",
    "artefact",
    "sweep",
    "report",
    "export",
    "serving",
    "lightning_names",
    "cli",
    "__main__",
]


def module_name(path):
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(SRC.rglob("*.py"))}


def place(module):
    """The part of headstart that a module belongs to: a file or a package."""
    return module.removeprefix("headstart").lstrip(".").partition(".")[0]


def imports_at_load(path):
    """The modules of headstart that a file imports when it is loaded: not in functions, not for types alone."""
    found = set()

    def visit(nodes):
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                visit(node.orelse)
                continue
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} has a relative import"
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found.update(names & set(MODULES) or {node.module})
            for field in ("body", "orelse", "finalbody", "handlers"):
                visit(getattr(node, field, []))

    visit(ast.parse(path.read_text(encoding="utf-8")).body)
    return {name for name in found if name in MODULES}


IMPORTS = {module: imports_at_load(path) for module, path in MODULES.items()}


def test_every_file_has_a_place_in_the_reading_order():
    assert sorted({place(module) for module in MODULES}) == sorted(READING_ORDER)


@pytest.mark.parametrize("part", READING_ORDER)
def test_a_part_imports_only_from_what_stands_before_it(part):
    allowed = READING_ORDER[: READING_ORDER.index(part) + 1]
    later = {
        module: sorted(name for name in names if place(name) not in allowed)
        for module, names in IMPORTS.items()
        if place(module) == part
    }
    assert {module: names for module, names in later.items() if names} == {}


def test_no_files_import_each_other_in_a_circle():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {error.args[1]}")


def test_importing_headstart_imports_no_torch():
    program = "import sys, headstart, headstart.callbacks, headstart.loggers; print('torch' in sys.modules, 'numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
