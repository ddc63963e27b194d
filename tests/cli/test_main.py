from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

import pytest

from headstart import __version__
from headstart.cli.main import COMMANDS, main
from headstart.errors import DataError


@pytest.fixture
def fit(monkeypatch):
    """Put a function in the place of the command `fit`."""

    def put(function):
        module = ModuleType("headstart.cli.fit")
        module.run = function
        monkeypatch.setitem(sys.modules, "headstart.cli.fit", module)

    monkeypatch.delenv("HEADSTART_DEBUG", raising=False)
    return put


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_do_not_import_torch(headstart, option):
    code = (
        f"import sys; from headstart.cli.main import main; print(main([{option!r}]), 'torch' in sys.modules)"
    )
    assert headstart.python("-c", code).stdout.splitlines()[-1] == "0 False"


def test_the_help_has_a_line_for_each_command(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for command in ("fit", "predict", "evaluate", "inspect", "run"):
        assert sum(line.startswith(f"  {command} ") for line in lines) == 1


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"headstart {__version__}\n"


def test_without_a_command_the_help_goes_to_stderr_and_the_exit_code_is_2(capsys):
    assert main([]) == 2
    assert "usage: headstart" in capsys.readouterr().err


def test_an_unknown_command_is_answered_with_the_nearest_one(capsys):
    assert main(["predcit", "model"]) == 2
    error = capsys.readouterr().err
    assert "unknown command 'predcit'. Did you mean 'predict'?" in error
    assert f"Commands: {', '.join(COMMANDS)}." in error


def test_an_unknown_option_before_the_command_is_named(capsys):
    assert main(["--verbose", "fit"]) == 2
    assert "unknown option '--verbose'" in capsys.readouterr().err


def test_a_command_gets_its_arguments_and_gives_the_exit_code(fit):
    received = []
    fit(lambda arguments: received.append(arguments) or 7)
    assert main(["fit", "photos", "--out", "model"]) == 7
    assert received == [["photos", "--out", "model"]]


def _unreadable(arguments):
    raise DataError("cat.png cannot be read.")


def test_an_error_of_a_command_is_one_line(fit, capsys):
    fit(_unreadable)
    assert main(["fit", "photos"]) == 1
    assert capsys.readouterr().err == "headstart fit: cat.png cannot be read.\n"


@pytest.mark.parametrize("arguments", [["--debug", "fit"], ["fit", "--debug"], ["fit"]])
def test_debug_shows_the_traceback_before_it(fit, capsys, monkeypatch, arguments):
    fit(_unreadable)
    if "--debug" not in arguments:
        monkeypatch.setenv("HEADSTART_DEBUG", "1")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.endswith("headstart fit: cat.png cannot be read.\n")


def test_an_error_that_is_none_of_headstarts_is_not_hidden(fit):
    fit(lambda arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["fit"])


def test_ctrl_c_ends_a_command_with_130(fit, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    fit(interrupted)
    assert main(["fit"]) == 130
    assert capsys.readouterr().err == "headstart fit: interrupted\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_file_with_run(command):
    assert callable(import_module(f"headstart.cli.{command.replace('-', '_')}").run)
