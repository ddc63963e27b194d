"""`headstart run SCRIPT [ARGS]`: a program written for PyTorch Lightning, unchanged, on headstart."""

from __future__ import annotations

import builtins
import runpy
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, TracebackType

from headstart.lightning_names import install

_USAGE = "usage: headstart run [-h] (SCRIPT | -m MODULE) [ARGS ...]"
_HELP = f"""\
{_USAGE}

Run a program written for PyTorch Lightning, unchanged: its imports of `pytorch_lightning`, `lightning.pytorch`,
`lightning` and `lightning_fabric` find headstart. Everything else is as with `python SCRIPT`: arguments, working
directory, exit code, traceback.

  SCRIPT       a Python file, or a folder or zip file with a __main__.py
  -m MODULE    run a module, as `python -m MODULE` does: headstart run -m pytest tests
  ARGS         the program's own arguments
  -h, --help   show this

A name that headstart lacks is an ImportError that says so. An installed PyTorch Lightning is not imported, nor is a
module of yours with one of those four names. Python processes that the program starts (loader workers with `spawn`,
`subprocess`, torchrun) find headstart too, through PYTHONPATH: not with `python -I` or `-E`, which ignore it.
"""


def run(arguments: list[str]) -> int:
    """Run a program in this process, and give its exit code.

    Args:
        arguments: What follows `headstart run`: a script or `-m MODULE`, then the program's own arguments.

    Returns:
        0 where the program ends, 1 where the module of `-m` does not exist, 2 for a wrong use. What the program
        raises, `SystemExit` included, is not caught.
    """
    match arguments:
        case ["-h" | "--help", *_]:
            print(_HELP, end="")
            return 0
        case ["-m", module, *rest]:
            return _run_module(module, rest)
        case ["-m"]:
            return _wrong_use("-m needs a MODULE")
        case [option, *_] if option.startswith("-"):
            return _wrong_use(f"unknown option {option!r} (the program's own options stand behind SCRIPT)")
        case [script, *rest]:
            return _run_script(script, rest)
    return _wrong_use("a SCRIPT or -m MODULE is needed")


def _run_script(script: str, arguments: list[str]) -> int:
    path = Path(script).absolute()
    if not path.exists():
        return _wrong_use(f"can't open file {str(path)!r}: there is no such file")
    sys.argv = [script, *arguments]
    if path.is_dir() or path.suffix in {".zip", ".pyz"}:
        _prepare(script)
        runpy.run_path(script, run_name="__main__")
        return 0
    _prepare(str(path.resolve().parent))
    # A module of its own, for good: what the program pickles, or leaves to run at exit, looks for `__main__`.
    main = ModuleType("__main__")
    main.__file__ = str(path)
    main.__loader__ = SourceFileLoader("__main__", str(path))
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    exec(code, main.__dict__)  # noqa: S102 (this is what the command is for)
    return 0


def _run_module(module: str, arguments: list[str]) -> int:
    sys.argv = ["-m", *arguments]  # runpy puts the file's name first
    _prepare(str(Path.cwd()))
    if find_spec(module) is None:
        print(f"headstart run: No module named {module}", file=sys.stderr)
        return 1
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def _prepare(first_path: str) -> None:
    """Make this process look as if Python had started the program, but for the imports."""
    if not sys.flags.safe_path:
        sys.path[0] = first_path
    install()
    sys.excepthook = _show_error


def _show_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Show an error as Python does, without the frames of this command."""
    step, own = traceback, traceback
    while step is not None:
        if step.tb_frame.f_code.co_filename == __file__:
            own = step.tb_next
        step = step.tb_next
    sys.__excepthook__(kind, error.with_traceback(own), own)


def _wrong_use(problem: str) -> int:
    print(f"{_USAGE}\nheadstart run: {problem}", file=sys.stderr)
    return 2
