"""A module of a program: the class or function is called, and what comes out is audited."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import HeadstartError, MisconfigurationError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from headstart.cli.inspected import Inspected


def inspect_module(spec: str, *, depth: int | None, shape: str | None) -> Inspected:
    """Give the audit of a module.

    Args:
        spec: `package.module:NAME` or `FILE.py:NAME`: a module, or what makes one without arguments.
        depth: Of the rows.
        shape: Of the input, with which the FLOPs are counted; `None` takes `example_input_array` where there is one.

    Raises:
        UnknownNameError: If there is no such file, module or name in it.
        MisconfigurationError: If it makes no module, or not without arguments.
        HeadstartError: If the program fails.
    """
    from headstart import freezing
    from headstart.cli.inspected import Inspected, in_evaluation

    found = Inspected()
    with _importable():
        module = _built(spec)
        optimizers, remark = _optimizers(module)
    inputs = _inputs(module, shape)
    freezing.establish_modes(module)
    step = None
    if inputs is not None:
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        step = in_evaluation(module, lambda: module(*arguments))
    found.add_text(f"{spec}: {type(module).__module__}.{type(module).__qualname__}")
    try:
        found.add_audit(module, step=step, depth=depth, optimizers=optimizers)
    except Exception as error:
        if step is None:
            raise
        raise HeadstartError(
            f"{spec} cannot compute {_described(inputs)}: {type(error).__name__}: {error}. Give the shape of its input with "
            "--input, such as 1,3,224,224."
        ) from error
    if step is None:
        found.add_text("No FLOPs: give the shape of its input with --input, or set example_input_array.")
    if remark:
        found.add_text(remark)
    found.values |= {"class": f"{type(module).__module__}.{type(module).__qualname__}", "remark": remark}
    return found


@contextmanager
def _importable() -> Iterator[None]:
    """Let what lies in the working directory be imported, as `python -m` does."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.remove(str(Path.cwd()))


def _built(spec: str) -> nn.Module:
    from torch import nn

    place, _, name = spec.rpartition(":")
    program = _program(place)
    known = [each for each, value in vars(program).items() if callable(value) or isinstance(value, nn.Module)]
    if name not in vars(program):
        listed = ", ".join(each for each in known if not each.startswith("_"))
        raise UnknownNameError(
            f"{place} has no {name!r}.{did_you_mean(name, known)} It has: {listed or 'nothing'}."
        )
    value = getattr(program, name)
    if isinstance(value, nn.Module):
        return value
    if not callable(value):
        raise MisconfigurationError(
            f"{spec} is a {type(value).__name__}; expected a module, its class, or a function that makes one."
        )
    _refuse_arguments(spec, value)
    module = _run(spec, value)
    if not isinstance(module, nn.Module):
        raise MisconfigurationError(
            f"{spec} gave a {type(module).__name__}; expected a torch.nn.Module, a LightningModule for example."
        )
    return module


def _program(place: str) -> Any:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not (place == error.name or place.startswith(f"{error.name}.")):
                raise HeadstartError(f"{place} cannot be imported: {error}.") from error
            raise UnknownNameError(
                f"There is no Python module {place!r} (looked in {Path.cwd()} and in what is installed). For a file, write "
                "FILE.py:NAME."
            ) from error
        except Exception as error:
            raise HeadstartError(f"{place} cannot be imported: {type(error).__name__}: {error}.") from error
    path = Path(place)
    if not path.is_file():
        raise UnknownNameError(f"There is no file {place!r} (looked in {Path.cwd()}).")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, "the name ends in .py"
    loader = spec.loader
    assert loader is not None, "the name ends in .py"
    program = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # for what lies beside it
    try:
        _run(place, lambda: loader.exec_module(program))
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return program


def _refuse_arguments(spec: str, value: Callable[..., Any]) -> None:
    needed = [
        each.name
        for each in inspect.signature(value).parameters.values()
        if each.default is each.empty and each.kind not in {each.VAR_POSITIONAL, each.VAR_KEYWORD}
    ]
    if needed:
        raise MisconfigurationError(
            f"{spec} needs arguments: {', '.join(needed)}. Name a function without arguments that makes the module, or give them "
            "defaults."
        )


def _run(what: str, function: Callable[[], object]) -> object:
    try:
        return function()
    except HeadstartError:
        raise
    except Exception as error:
        raise HeadstartError(f"{what} fails: {type(error).__name__}: {error}") from error


def _optimizers(module: nn.Module) -> tuple[list[Optimizer], str]:
    """Give the optimizers of a `LightningModule`, or say why there are none."""
    from headstart.hooks import is_overridden
    from headstart.module import LightningModule
    from headstart.optim import read_configuration

    if not isinstance(module, LightningModule) or not is_overridden(
        "configure_optimizers", module, LightningModule
    ):
        return [], ""
    try:
        configured = module.configure_optimizers()
        optimizers, _ = read_configuration(
            configured, module_name=type(module).__name__, automatic=module.automatic_optimization
        )
    except Exception as error:  # noqa: BLE001 (whatever it raises where no run has begun)
        return [], f"Groups and rates are not shown: configure_optimizers needs a run ({error})."
    return optimizers, ""


def _inputs(module: nn.Module, shape: str | None) -> Any:
    import torch

    if shape is None:
        return getattr(module, "example_input_array", None)
    try:
        sizes = [int(each) for each in shape.replace("x", ",").split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise MisconfigurationError(
            f"--input is {shape!r}; expected sizes with commas between, such as 1,3,224,224."
        )
    return torch.zeros(sizes)


def _described(inputs: Any) -> str:
    shape = getattr(inputs, "shape", None)
    return "its example_input_array" if shape is None else f"an input of the shape {tuple(shape)}"
