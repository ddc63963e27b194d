"""How Python is told: a finder for `sys.meta_path`, and modules whose names are looked up in the table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from headstart.errors import did_you_mean
from headstart.lightning_names.table import NAMES, REASONS, SAME_AS, VERSION


class LightningFinder(MetaPathFinder, Loader):
    """Finds the modules of some top-level packages in the table, and refuses those that are not in it.

    Args:
        packages: Top-level names that this finder answers for; all others are left to the next finder.
    """

    def __init__(self, packages: Iterable[str]) -> None:
        self.packages = frozenset(packages)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Give the spec of a module that is in the table, or `None` for a package of somebody else.

        Raises:
            ModuleNotFoundError: If the module, or the name that a `from` import looks for, is not in headstart.
        """
        if fullname.partition(".")[0] not in self.packages:
            return None
        if not is_module(fullname):
            parent, _, name = fullname.rpartition(".")
            # `name` of the error is not `fullname`: Python drops that error, and the message with it, when it looks
            # for a submodule on behalf of `from parent import name`.
            raise ModuleNotFoundError(why_not(parent, name), name=parent)
        # Every module is a package, so that `from module import name` comes here with the names it did not find.
        return ModuleSpec(fullname, self, origin="headstart", is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Give an empty module of the table."""
        return TableModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a name is looked up when it is first used."""


class TableModule(ModuleType):
    """A module whose names are headstart's, imported when they are first used."""

    def __init__(self, name: str) -> None:
        super().__init__(name, f"{name}, as headstart has it.")
        self.__version__ = VERSION
        self.__all__ = sorted(NAMES.get(in_table(name), {}))

    def __getattr__(self, name: str) -> Any:
        here = in_table(self.__name__)
        if name in NAMES.get(here, {}):
            module, _, attribute = NAMES[here][name].partition(":")
            value = getattr(import_module(module), attribute or name)
        elif is_module(f"{self.__name__}.{name}"):
            value = import_module(f"{self.__name__}.{name}")
        else:
            raise AttributeError(why_not(self.__name__, name), name=name, obj=self)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__all__})


def in_table(module: str) -> str:
    """Give the name under which the table has a module.

    Example:
        >>> in_table("lightning.pytorch.callbacks")
        'pytorch_lightning.callbacks'
    """
    for alias, name in SAME_AS.items():
        if module == alias or module.startswith(f"{alias}."):
            return name + module.removeprefix(alias)
    return module


def is_module(name: str) -> bool:
    """Whether the table has this module, or one inside it."""
    here = in_table(name)
    return here in NAMES or here in SAME_AS.values() or any(known.startswith(f"{here}.") for known in NAMES)


def why_not(module: str, name: str) -> str:
    """Say that headstart lacks a name, and what to do.

    Args:
        module: Where the program looked for it, as the program wrote it.
        name: What it looked for.

    Example:
        >>> why_not("lightning.pytorch.callbacks", "EarlyStoping")
        "'EarlyStoping' (lightning.pytorch.callbacks) is not in headstart. Did you mean 'EarlyStopping'?"
    """
    message = f"{name!r} ({module}) is not in headstart"
    here = in_table(module)
    if name in REASONS:
        return f"{message}: {REASONS[name]}"
    if hint := did_you_mean(name, NAMES.get(here, {})):
        return f"{message}.{hint}"
    path = f"{here}.{name}"
    while path not in REASONS:
        path = path.rpartition(".")[0]
    return f"{message}: {REASONS[path]}"
