from __future__ import annotations

import json
import shutil
from textwrap import dedent

import pytest

from headstart.cli.run import run


@pytest.fixture
def script(tmp_path):
    """Write a program, and give its path."""

    def write(text, name="program.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(dedent(text))
        return path

    return write


def python_and_headstart(headstart, *arguments):
    """What Python itself does with a program, and what `headstart run` does."""
    return headstart.python(*arguments), headstart("run", *arguments)


# ---- a program runs as with python


def test_arguments_paths_and_main_are_pythons_own(headstart, script):
    path = script(
        """
        import json, sys
        main = sys.modules["__main__"]
        print(json.dumps([sys.argv, sys.path[0], __file__, __name__, __spec__, main.__dict__ is globals(), __package__]))
        import beside
        print(beside.VALUE, __annotations__ if "__annotations__" in globals() else "")
        value: "int" = 3
        print(__annotations__)
        """,
        "folder/program.py",
    )
    script("VALUE = 5", "folder/beside.py")
    python, own = python_and_headstart(headstart, "folder/program.py", "--lr", "-m", "--help")
    assert own.stdout == python.stdout
    assert own.returncode == python.returncode == 0
    assert json.loads(own.stdout.splitlines()[0])[:2] == [
        ["folder/program.py", "--lr", "-m", "--help"],
        str(path.parent),
    ]


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(3)",
        "raise SystemExit('the message')",
        "def inner():\n    raise ValueError('the message')\n\ninner()",
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('a') from error",
        "x = = 1",
        "import atexit\natexit.register(print, 'at exit')\nraise KeyboardInterrupt",
        "import nothing_of_that_name",
        "import sys\nsys.excepthook = lambda *error: print('hook', error[0])\nraise ValueError",
    ],
)
def test_exit_codes_and_tracebacks_are_the_programs_own(headstart, script, program):
    script(program)
    python, own = python_and_headstart(headstart, "program.py")
    assert (own.returncode, own.stdout, own.stderr) == (python.returncode, python.stdout, python.stderr)


def test_an_error_of_headstart_keeps_its_traceback(headstart, script):
    script("from headstart.errors import DataError\n\nraise DataError('cat.png')")
    result = headstart("run", "program.py")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback (most recent call last):\n  File ")
    assert result.stderr.endswith("headstart.errors.DataError: cat.png\n")


def test_a_folder_with_a_main_runs(headstart, script):
    script("import sys, beside\nprint(__name__, sys.argv)", "folder/__main__.py")
    script("print('beside')", "folder/beside.py")
    python, own = python_and_headstart(headstart, "folder", "a")
    assert own.stdout == python.stdout
    assert own.stdout.startswith("beside\n__main__ ")


def test_a_module_runs_with_m(headstart, script):
    script("import sys, beside\nprint(__name__, __spec__.name, sys.argv, sys.path[0])", "package/__main__.py")
    script("import sys\nprint(__name__, 'package' in sys.modules)\nsys.exit(4)", "package/other.py")
    script("", "beside.py")
    for module in ("package", "package.other"):
        python, own = python_and_headstart(headstart, "-m", module, "--flag")
        assert (own.returncode, own.stdout, own.stderr) == (python.returncode, python.stdout, python.stderr)


# ---- wrong use


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a SCRIPT or -m MODULE is needed"),
        (["-m"], "-m needs a MODULE"),
        (["--fast", "program.py"], "unknown option '--fast'"),
        (["no_such_program.py"], "no_such_program.py': there is no such file"),
    ],
)
def test_wrong_use_is_answered_with_the_usage_and_2(capsys, arguments, message):
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: headstart run")
    assert message in error


def test_a_module_that_does_not_exist_is_named(headstart):
    result = headstart("run", "-m", "no_such_module")
    assert (result.returncode, result.stderr) == (1, "headstart run: No module named no_such_module\n")


def test_the_help_needs_no_torch(headstart):
    result = headstart.python(
        "-c",
        "import sys; from headstart.cli.main import main; print(main(['run', '--help']), 'torch' in sys.modules)",
    )
    assert result.stdout.startswith("usage: headstart run")
    assert result.stdout.splitlines()[-1] == "0 False"


# ---- the imports


def test_an_installed_peer_is_not_imported(headstart, script, tmp_path):
    for package in ("pytorch_lightning", "lightning", "lightning_fabric"):
        script("raise AssertionError('the installed one was imported')", f"installed/{package}/__init__.py")
    script(
        """
        import subprocess, sys
        import lightning, lightning_fabric, pytorch_lightning
        print(pytorch_lightning.LightningModule.__module__, lightning.LightningModule.__module__)
        subprocess.run([sys.executable, "-c", "import pytorch_lightning as pl; print(pl.Callback.__module__)"])
        """
    )
    result = headstart("run", "program.py", PYTHONPATH=tmp_path / "installed")
    assert result.stdout.split() == ["headstart.module", "headstart.module", "headstart.callback"], (
        result.stderr
    )


def test_a_lacking_name_ends_the_program_with_an_import_error_that_says_so(headstart, script):
    script("from lightning.pytorch.profilers import SimpleProfiler")
    result = headstart("run", "program.py")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        "ModuleNotFoundError: 'SimpleProfiler' (lightning.pytorch.profilers) is not in headstart: "
    )


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_the_imports_reach_loader_workers_that_start_from_nothing(headstart, programs, start):
    result = headstart("run", programs / "spawned_workers.py", start)
    assert result.stdout == "indices 0 1 2 3\nheadstart 1 1 1 1\nelsewhere True\n", result.stderr


# ---- whole programs

# Beside each program stands what it printed with PyTorch Lightning 2.6.6 and torch 2.14.1, on a CPU.
TYPICAL = (
    "autoencoder_then_classifier",
    "backbone_finetuning",
    "callbacks_and_csv",
    "datamodule_and_predict",
    "finetuning_of_the_first_series",
    "manual_optimization",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPICAL)
def test_a_typical_program_prints_what_it_prints_with_the_peer(headstart, programs, tmp_path, name):
    result = headstart("run", programs / f"{name}.py", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    expected = (programs / f"{name}.txt").read_text().split()
    printed = result.stdout.split()
    # Bit-identical on one machine; another build of torch may sum in another order.
    assert [_as_number(word) for word in printed] == [
        pytest.approx(value, rel=1e-3) if isinstance(value := _as_number(word), float) else value
        for word in expected
    ]


def _as_number(word):
    try:
        return float(word)
    except ValueError:
        return word


def test_a_failing_test_under_pytest_shows_its_values_and_gives_1(headstart, script):
    script("def test_it():\n    value = 3\n    assert value == 4", "test_one.py")
    result = headstart("run", "-m", "pytest", "-p", "no:cacheprovider", "test_one.py")
    assert result.returncode == 1
    assert "assert 3 == 4" in result.stdout


@pytest.mark.slow
def test_a_suite_of_finetuning_tests_passes_under_pytest(headstart, programs, tmp_path):
    shutil.copy(programs / "finetuning_suite.py", tmp_path / "test_finetuning.py")
    result = headstart("run", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_finetuning.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "8 passed, 1 skipped" in result.stdout
