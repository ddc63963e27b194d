"""Reading an object piece by piece: what a dataset, a function or a network is made of, as a list of facts."""

from __future__ import annotations

import dis
import importlib.metadata
import logging
import platform
import sys
import types
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from enum import Enum
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Known in whole by their `repr`.
_ATOMS: frozenset[type] = frozenset({type(None), bool, int, float, complex, bytes, type(...), range})

# By the first of a type's bases that stands here: the method that reads it. Anything else is read by `_instance`.
_READERS: dict[type, str] = {
    **dict.fromkeys((str, int, float, bytes), "_scalar"),  # of subclasses; these themselves are read at once
    **dict.fromkeys(
        (np.generic, np.dtype, torch.dtype, torch.device, torch.layout, torch.memory_format), "_atom"
    ),
    **dict.fromkeys((list, tuple, deque, dict, types.MappingProxyType, set, frozenset), "_container"),
    Tensor: "_tensor",
    np.ndarray: "array",
    PurePath: "path",
    Enum: "_enum",
    type: "_class",
    types.FunctionType: "_function",
    types.MethodType: "_method",
    types.BuiltinFunctionType: "_builtin",
    **dict.fromkeys(
        (
            types.MethodDescriptorType,
            types.WrapperDescriptorType,
            types.GetSetDescriptorType,
            types.MemberDescriptorType,
            types.ClassMethodDescriptorType,
        ),
        "_descriptor",
    ),
    types.ModuleType: "_module",
    partial: "_partial",
    property: "_property",
    **dict.fromkeys((staticmethod, classmethod), "_wrapped_method"),
    cached_property: "_cached_property",
    type(lru_cache(len)): "_cached_function",
    nn.Module: "_network",
    logging.Logger: "_logger",
    weakref.ref: "_reference",
}
_TOKENIZER = "PreTrainedTokenizerBase"  # by name, since transformers may not be installed

_INTERCEPTORS = (
    "headstart.deferred.modules"  # what it puts in the place of torch's functions is no part of a class
)

# Hooks and the like: what every module has from its start, but for these four.
_MODULE_BOOKKEEPING = frozenset(vars(nn.Module())) - {"_parameters", "_buffers", "_modules", "training"}
_TOKENIZER_BOOKKEEPING = frozenset(
    {"_tokenizer", "deprecation_warnings", "verbose", "_in_target_context_manager"}
)


class Walk(ABC):
    """Visits a value and all that it holds, each object once, and says facts about it.

    Two values with the same facts are equal for whoever calls them. What a fact is made of, and how closely large
    things are looked at, is for the two kinds to say: `headstart.deferred.fingerprint`.

    A function is its code, defaults, closure and, where it is the user's own, the globals that it uses; a class is
    its functions and those of its parents. An installed package counts as fixed by its version, so that its
    functions' globals are not followed.
    """

    module_excludes = _MODULE_BOOKKEEPING

    def __init__(self) -> None:
        # With the object: a number is free again once it is gone.
        self._seen: dict[int, tuple[int, object]] = {}

    # ---- for the two kinds to say

    @abstractmethod
    def fact(self, kind: str, content: object) -> None:
        """Take in one fact: text or a number."""

    @abstractmethod
    def text(self, value: str) -> None:
        """Read a string."""

    @abstractmethod
    def path(self, value: PurePath) -> None:
        """Read a path, which may name a file."""

    @abstractmethod
    def items(self, value: Any) -> None:
        """Read the elements of a list, tuple, deque, dictionary or set."""

    @abstractmethod
    def tensor_content(self, value: Tensor) -> None:
        """Read the numbers of a tensor."""

    @abstractmethod
    def array(self, value: np.ndarray[Any, Any]) -> None:
        """Read a NumPy array."""

    @abstractmethod
    def code(self, value: types.CodeType) -> None:
        """Read what a function does."""

    @abstractmethod
    def own_module(self, value: types.ModuleType) -> None:
        """Read a module of the user's own."""

    @abstractmethod
    def backend(self, value: object) -> None:
        """Read the compiled part of a tokenizer."""

    @abstractmethod
    def state(self, value: object) -> None:
        """Read what an object of no known type holds."""

    # ---- what they have in common

    def visit(self, value: object) -> None:
        """Read a value of any type."""
        cls = type(value)
        if cls in _ATOMS:
            self.fact(cls.__name__, repr(value))
        elif cls is str:
            assert isinstance(value, str)
            self.text(value)
        elif id(value) in self._seen:
            self.fact("again", self._seen[id(value)][0])
        else:
            self._seen[id(value)] = (len(self._seen), value)
            getattr(self, _reader_of(cls))(value)  # type: ignore[arg-type]  # a type has a hash

    def attributes(self, values: Mapping[str, object]) -> None:
        """Read named values."""
        self.fact("attributes", len(values))
        for name, value in values.items():
            self.fact("attribute", name)
            self.visit(value)

    def _atom(self, value: object) -> None:
        self.fact(type(value).__qualname__, repr(value))

    def _scalar(self, value: str | float | bytes) -> None:
        self.visit(type(value))
        plain = next(kind for kind in (str, int, float, bytes) if isinstance(value, kind))
        self.visit(plain(value))  # type: ignore[arg-type]

    def _container(self, value: Any) -> None:
        if type(value) not in _READERS:
            self.visit(type(value))
            self.visit(getattr(value, "__dict__", None))
            self.visit(getattr(value, "default_factory", None))  # of a `defaultdict`
        self.fact(type(value).__qualname__, len(value))
        self.items(value)

    def _tensor(self, value: Tensor) -> None:
        if type(value) not in {Tensor, nn.Parameter}:
            self.visit(type(value))
            self.attributes(vars(value))
        self.tensor_content(value)

    def _enum(self, value: Enum) -> None:
        self.fact("enum", f"{_name(type(value))}.{value.name}")
        self.visit(value.value)

    def _class(self, value: type) -> None:
        self.fact("class", _name(value))
        is_own = self._is_own(value.__module__)
        for name, member in vars(value).items():
            member = getattr(member, "__func__", member)  # noqa: PLW2901 (of class methods and static methods)
            if isinstance(member, types.FunctionType) and _home(member) == _INTERCEPTORS:
                member = getattr(member, "__wrapped__", member)  # noqa: PLW2901 (only while a loop runs)
            if isinstance(member, types.FunctionType):
                if is_own or installed_version(_home(member)) is None:
                    self.fact("function", name)
                    self.visit(member)  # the user's, perhaps put into a class of a library
                elif name == "forward" or (
                    value is not nn.Module and _package(_home(member)) == _package(value.__module__)
                ):
                    # Libraries add helpers to each other's classes, some only once they are imported. (So does torch's
                    # compiler to `nn.Module`, when it is first used; what that does, its version says.)
                    self.fact("function", name)
                    self.code(member.__code__)
            elif is_own and not (name.startswith("__") or name == "_abc_impl"):
                self.fact("attribute", name)
                self.visit(member)
        for parent in value.__bases__:
            self.visit(parent)

    def _function(self, value: types.FunctionType) -> None:
        self.fact("function", _name(value))
        self.code(value.__code__)
        self.visit(value.__defaults__)
        self.visit(value.__kwdefaults__)
        for cell in value.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # not yet filled
                self.fact("cell", "empty")
            else:
                self.visit(content)
        if self._is_own(_home(value)):
            for name in _global_names(value.__code__):
                if name in value.__globals__:
                    self.fact("global", name)
                    self.visit(value.__globals__[name])

    def _method(self, value: types.MethodType) -> None:
        self.fact("method", value.__func__.__qualname__)
        self.visit(value.__func__)
        self.visit(value.__self__)

    def _builtin(self, value: types.BuiltinFunctionType) -> None:
        self._descriptor(value)
        self.visit(value.__self__)  # its module, or what it is a method of

    def _descriptor(self, value: Any) -> None:
        self.fact(type(value).__qualname__, value.__qualname__)

    def _module(self, value: types.ModuleType) -> None:
        self.fact("module", value.__name__)
        if self._is_own(value.__name__):
            self.own_module(value)

    def _partial(self, value: partial[Any]) -> None:
        self.fact("partial", len(value.args))
        for part in (value.func, value.args, value.keywords):
            self.visit(part)

    def _property(self, value: property) -> None:
        self.fact("property", "")
        for function in (value.fget, value.fset):
            self.visit(function)

    def _wrapped_method(self, value: staticmethod[..., Any] | classmethod[Any, ..., Any]) -> None:
        self.fact(type(value).__qualname__, "")
        self.visit(value.__func__)

    def _cached_property(self, value: cached_property[Any]) -> None:
        self.fact("cached property", "")
        self.visit(value.func)

    def _cached_function(self, value: Any) -> None:
        self.fact("cached function", "")
        self.visit(value.__wrapped__)

    def _network(self, value: nn.Module) -> None:
        self.visit(type(value))
        self.attributes(self.without_excluded(value, vars(value), self.module_excludes))

    def _logger(self, value: logging.Logger) -> None:
        self.fact("logger", value.name)

    def _reference(self, value: weakref.ref[Any]) -> None:
        self.fact("reference", "")
        self.visit(value())

    def _tokenizer(self, value: Any) -> None:
        # A call of a Hugging Face tokenizer sets truncation and padding of its backend anew, from its arguments and
        # from the attributes read here; what the last call left there decides nothing.
        self.visit(type(value))
        self.fact("vocabulary", len(value))
        self.attributes(self.without_excluded(value, vars(value), _TOKENIZER_BOOKKEEPING))
        self.backend(vars(value).get("_tokenizer"))

    def _instance(self, value: object) -> None:
        self.visit(type(value))
        own = _own_fingerprint(value)
        if own is None:
            self.state(value)
        else:
            self.fact("fingerprint", own)

    @staticmethod
    def without_excluded(
        owner: object, values: Mapping[str, object], excluded: frozenset[str] = frozenset()
    ) -> dict[str, object]:
        """Give attributes without those that a class says are no part of what it gives.

        A dataset with a cache or a counter names them: `fingerprint_excludes = ("cache",)`.
        """
        excluded = excluded.union(getattr(type(owner), "fingerprint_excludes", ()))
        return {name: value for name, value in values.items() if name not in excluded}

    def _is_own(self, module: str) -> bool:
        """Whether a module is the user's own; if not, the version of its package is a fact."""
        version = installed_version(module)
        if version is not None:
            self.fact("version", f"{_package(module)} {version}")
        return version is None


def installed_version(module: str) -> str | None:
    """Give the version of the installed package that a module belongs to; `None` for the user's own code.

    Example:
        >>> installed_version("torch.nn") == torch.__version__, installed_version("__main__")
        (True, None)
    """
    return _package_version(_package(module))


@cache
def _package_version(package: str) -> str | None:
    if package in sys.stdlib_module_names:
        return platform.python_version()
    module = sys.modules.get(package)
    if not {"site-packages", "dist-packages"}.intersection(
        Path(getattr(module, "__file__", None) or "").parts
    ):
        return None
    version = getattr(module, "__version__", None)
    if isinstance(version, str):
        return version
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _reader_of(cls: type) -> str:
    for base in cls.__mro__:
        if base in _READERS:
            return _READERS[base]
        if base.__name__ == _TOKENIZER:
            return "_tokenizer"
    return "_instance"


@cache
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """The globals that a function and the functions in it read."""
    names = {step.argval: None for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= dict.fromkeys(_global_names(constant))
    return tuple(names)


def _name(value: type | types.FunctionType) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _package(module: str) -> str:
    return module.partition(".")[0]


def _home(function: types.FunctionType) -> str:
    """The module that a function stands in; its `__module__` may be that of a function it wraps."""
    return str(function.__globals__.get("__name__", ""))


def _own_fingerprint(value: object) -> str | None:
    """What an object says of itself: not what it passes on (`__getattr__`) from one that it wraps."""
    for name in ("_fingerprint", "fingerprint"):
        if name in getattr(value, "__dict__", ()) or hasattr(type(value), name):
            found = getattr(value, name)
            if isinstance(found, types.MethodType):
                try:
                    found = found()
                except TypeError:  # it wants arguments: something else of that name
                    continue
            if isinstance(found, str) and found:
                return found
    return None
