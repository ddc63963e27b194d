"""`headstart COMMAND ...`: finds the command, and shows its errors as one message.

A command is a file of this folder with a function `run(arguments) -> int`, imported when it is called: the help and a
misspelt command cost nothing.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module

from headstart import __version__
from headstart.errors import HeadstartError, did_you_mean

COMMANDS = {
    "fit": "finetune a pretrained model on a folder of images or a table of texts",
    "predict": "classify files or texts with a model that `fit` made",
    "evaluate": "measure such a model on labelled data",
    "serve": "answer requests for such a model's predictions over HTTP, with a page to try it on",
    "inspect": "say what of a model is frozen, what trains, and what a step costs",
    "lr-find": "find a learning rate for a phase of a plan on your data",
    "export": "write such a model for other programs, compared with the run",
    "compare": "rank pretrained models by how well a head on their features does",
    "sweep": "try many settings, and keep the best by validation",
    "report": "make the report of a run again, or compare runs in one page",
    "run": "run a program written for PyTorch Lightning, unchanged",
}
_USAGE = "usage: headstart [-h] [--version] [--debug] COMMAND [ARGS ...]"


def main(argv: list[str] | None = None) -> int:
    """Run a command, and give the exit code.

    Args:
        argv: The arguments; `None` takes those of the process.

    Returns:
        0 for success, 1 for an error that the command names (a traceback stands before it with `--debug`, or with
        the environment variable `HEADSTART_DEBUG`), 2 for a wrong use, 130 after Ctrl-C.

    Example:
        >>> main(["--version"])
        headstart 0.1.0
        0
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    debug = os.environ.get("HEADSTART_DEBUG", "0") not in {"", "0"}
    while arguments and arguments[0] == "--debug":
        debug = True
        del arguments[0]
    match arguments:
        case []:
            print(_help(), end="", file=sys.stderr)
            return 2
        case ["-h" | "--help", *_]:
            print(_help(), end="")
            return 0
        case ["--version", *_]:
            print(f"headstart {__version__}")
            return 0
        case ["run", *rest]:
            # Not wrapped: what the program raises is the program's own.
            return _command("run", rest)
        case [name, *rest] if name in COMMANDS:
            return _with_clean_errors(name, rest, debug=debug or "--debug" in rest)
    kind = "option" if arguments[0].startswith("-") else "command"
    hint = did_you_mean(arguments[0], COMMANDS)
    print(
        f"{_USAGE}\nheadstart: unknown {kind} {arguments[0]!r}.{hint} Commands: {', '.join(COMMANDS)}.",
        file=sys.stderr,
    )
    return 2


def _command(name: str, arguments: list[str]) -> int:
    code: int = import_module(f"headstart.cli.{name.replace('-', '_')}").run(arguments)
    return code


def _with_clean_errors(name: str, arguments: list[str], *, debug: bool) -> int:
    if name != "fit" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        print(f"headstart {name} runs in one process: start it without torchrun.", file=sys.stderr)
        return 1
    try:
        return _command(name, [argument for argument in arguments if argument != "--debug"])
    except HeadstartError as error:
        if debug:
            traceback.print_exc()
        print(f"headstart {name}: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"headstart {name}: interrupted", file=sys.stderr)
        return 130


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return f"""\
{_USAGE}

Transfer learning and finetuning for PyTorch: start from a pretrained model, finish on your data.

commands:
{commands}

options:
  -h, --help  show this; `headstart COMMAND --help` says more of a command
  --version   show the version
  --debug     show the traceback of an error, as HEADSTART_DEBUG=1 does
"""
