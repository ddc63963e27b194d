"""Whether a dataset or a network is still the same: cheaply within a run, and by its content from run to run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import stat
import types
from collections.abc import Hashable, Iterable, Mapping, Sequence
from copyreg import dispatch_table
from functools import cache, lru_cache
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from headstart.deferred.walk import Walk

# ---- within a run

_ROOM = 500  # this many elements of containers are read in whole, all containers together ...
_SHORT = 8  # ... and of those so short, all; a longer one that does not fit is sampled
_NUM_SAMPLED = 32


def signature(value: object) -> tuple[Hashable, ...]:
    """Give what tells whether a dataset (or its collate function) has changed since the last call in this process.

    Compare two signatures with `==`. Cheap enough for the start of every epoch, however long the dataset.

    What is small is read in whole: attributes, transforms and their settings, functions with their closures and the
    globals they use. Long lists, arrays and tensors are told by identity, length (and a tensor's version counter)
    and 32 of their elements, so that another list in the place of one is always seen, an element replaced in a long
    list seldom. An object of a compiled type is told by identity. The signature keeps alive what it tells by
    identity.

    An object's own `_fingerprint` or `fingerprint` (text, or a method that gives it) is believed. A class names
    attributes that do not change its samples (caches, counters) in `fingerprint_excludes`.

    Example:
        >>> settings = {"size": 224}
        >>> before = signature(settings)
        >>> before == signature(settings)
        True
        >>> settings["size"] = 256
        >>> before == signature(settings)
        False
    """
    walk = _Signature()
    try:
        walk.visit(value)
    except RecursionError:
        return (_Same(object()),)  # nested too deep to be read: equal to no other signature
    return tuple(walk.facts)


class _Same:
    """Equal where it is of the very same object, which it keeps alive so that the identity is not given again."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Signature(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.facts: list[Hashable] = []
        self._room = _ROOM

    def fact(self, kind: str, content: object) -> None:
        self.facts += (kind, content)

    def text(self, value: str) -> None:
        self.fact("str", value)

    def path(self, value: PurePath) -> None:
        self.fact("path", str(value))

    def items(self, value: Any) -> None:
        elements: Iterable[Any] = value
        if len(value) <= max(self._room, _SHORT):
            self._room -= len(value)
        else:
            self.fact("same", _Same(value))
            if isinstance(value, dict):  # the first and the last: those between are not reached at once
                half = _NUM_SAMPLED // 2
                elements = dict(chain(islice(value.items(), half), islice(reversed(value.items()), half)))
            elif isinstance(value, Sequence):
                elements = [value[position] for position in _sampled(len(value))]
            else:
                elements = list(islice(value, _NUM_SAMPLED))
        if isinstance(elements, Mapping):
            elements = chain.from_iterable(elements.items())
        elif isinstance(elements, set | frozenset):
            self.fact("set", frozenset(elements))
            return
        for each in elements:
            self.visit(each)

    def tensor_content(self, value: Tensor) -> None:
        self.fact("tensor", _Same(value))
        self.fact(str(value.dtype), value.shape)
        if not value.is_inference():
            self.fact("version", value._version)  # noqa: SLF001 (what autograd itself goes by)
        if _is_plain(value):
            self.fact("place", (value.data_ptr(), value.stride()))
            sample = value.detach()
            if value.numel() > _NUM_SAMPLED:
                sample = sample[torch.unravel_index(torch.tensor(_sampled(value.numel())), value.shape)]
            self.fact("numbers", repr(sample.tolist()))

    def array(self, value: np.ndarray[Any, Any]) -> None:
        self.fact("array", _Same(value))
        self.fact(str(value.dtype), (value.shape, value.strides, value.ctypes.data))
        sample = value.flat[np.array(_sampled(value.size), dtype=np.intp)]
        if value.dtype.hasobject:
            for each in sample.tolist():
                self.visit(each)
        else:
            self.fact("numbers", sample.tobytes())

    def code(self, value: types.CodeType) -> None:
        self.fact("code", value)

    def own_module(self, value: types.ModuleType) -> None:
        self.fact("module", _Same(value))

    def backend(self, value: object) -> None:
        self.fact("backend", _Same(value))

    def state(self, value: object) -> None:
        if not _is_python(type(value)):  # type: ignore[arg-type]  # a type has a hash
            self.fact("same", _Same(value))
            if type(value).__name__ == "Tokenizer":  # of the library `tokenizers`
                self.fact(
                    "settings", repr([getattr(value, name, None) for name in ("truncation", "padding")])
                )
        self.attributes(self.without_excluded(value, {**getattr(value, "__dict__", {}), **_slots(value)}))


def _sampled(length: int) -> list[int]:
    """Positions from the first to the last."""
    if length <= _NUM_SAMPLED:
        return list(range(length))
    return [step * (length - 1) // (_NUM_SAMPLED - 1) for step in range(_NUM_SAMPLED)]


def _slots(value: object) -> dict[str, object]:
    found: dict[str, object] = {}
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            is_private = slot.startswith("__") and not slot.endswith("__")
            name = f"_{base.__name__.lstrip('_')}{slot}" if is_private else slot
            if hasattr(value, name) and name != "__dict__":
                found[name] = getattr(value, name)
    return found


@cache
def _is_python(cls: type) -> bool:
    """Whether instances hold nothing but attributes: no base but `object` is compiled (as `copyreg` finds it)."""
    for base in cls.__mro__:
        is_heap_type = base.__flags__ & (1 << 9)
        new = base.__new__
        if not is_heap_type or (isinstance(new, types.BuiltinFunctionType) and new.__self__ is base):
            return base is object
    return True


# ---- from run to run


class DoubtError(Exception):
    """What something gives cannot be told from its content: never leaves this file."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.where: list[str] = []  # names of attributes, from the outermost

    def __str__(self) -> str:
        place = ".".join(self.where)
        return f"{place}: {self.args[0]}" if place else str(self.args[0])


def content_digest(value: object) -> str | None:
    """Give a digest of what a dataset or a function holds: equal in another process where the content is equal.

    Tensors and arrays are read by their bytes; a string or `Path` that names a file also by the file's size and time
    of change; an attribute that names a folder by those of every file below it; functions by their code, closure
    and globals; objects of libraries also by the version. Other objects are read as `pickle` would. Equal content
    that is laid out in another way (an attribute set in another order) may give another digest.

    An object's own `_fingerprint` (that of a Hugging Face dataset) or `fingerprint` is believed.

    Returns:
        64 hexadecimal digits; `None` wherever there is any doubt, such as with open files, generators, locks and
        other objects that cannot be pickled. `why_no_digest` says why.

    Not seen: what is read over the network or through names computed inside a method from anything but a folder
    that an attribute names, and a module of the user's own beyond its source, when it is used as `module.function`.

    Example:
        >>> content_digest([1, "a"]) == content_digest([1, "a"]), content_digest(n for n in range(3))
        (True, None)
    """
    try:
        return _digest(value, _Digest())
    except DoubtError:
        return None


def module_digest(module: nn.Module) -> str | None:
    """Give a digest of a network: of its classes' code, attributes, parameters and buffers, by name.

    Training mode, hooks, gradients, `requires_grad` and devices are left out.

    Returns:
        64 hexadecimal digits, equal in another process where the network is equal; `None` where an attribute
        leaves any doubt. `why_no_digest` says why.
    """
    try:
        return _digest(module, _NetworkDigest())
    except DoubtError:
        return None


def why_no_digest(value: object) -> str | None:
    """Say why `content_digest`, or of a network `module_digest`, gives `None`; `None` where it gives a digest.

    Example:
        >>> why_no_digest([n for n in range(3)]), why_no_digest([(n for n in range(3))])
        (None, 'cannot be pickled: a builtins.generator')
    """
    try:
        _digest(value, _NetworkDigest() if isinstance(value, nn.Module) else _Digest())
    except DoubtError as doubt:
        return str(doubt)
    return None


_FORMAT = "headstart digest 1"
_MOST_FILES = 1_000_000  # below one folder


def _digest(value: object, walk: _Digest) -> str:
    walk.fact("format", _FORMAT)
    # Whatever reads images or computes may use these without showing it.
    for package in ("torch", "torchvision", "pillow"):
        walk.fact("version", f"{package} {_distribution_version(package)}")
    try:
        walk.visit(value)
    except RecursionError:
        raise DoubtError("nested too deep") from None
    return walk.hexdigest()


@cache
def _distribution_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


class _Digest(Walk):
    def __init__(self) -> None:
        super().__init__()
        self._hash = hashlib.sha256()
        self._folders: set[str] = set()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def fact(self, kind: str, content: object) -> None:
        # `repr` has no line ends: facts cannot run together.
        self._hash.update(f"{kind} {content!r}\n".encode())

    def attributes(self, values: Mapping[str, object]) -> None:
        self.fact("attributes", len(values))
        for name, value in values.items():
            self.fact("attribute", name)
            try:
                self.visit(value)
                if isinstance(value, str | Path) and len(str(value)) > 2 and os.path.isdir(value):  # noqa: PTH112
                    self.folder(str(value))
            except DoubtError as doubt:
                doubt.where.insert(0, str(name))
                raise

    def text(self, value: str) -> None:
        self.fact("str", value)
        if 0 < len(value) < 1024:
            self.file(value)

    def path(self, value: PurePath) -> None:
        self.fact("path", str(value))
        self.file(value)

    def file(self, path: str | PurePath) -> None:
        """Read size and time of change of what may be a file."""
        try:
            found = os.stat(path)  # noqa: PTH116 (three times as fast, and there may be 100,000)
        except (OSError, ValueError):
            return
        if stat.S_ISREG(found.st_mode):
            self.fact("file", (found.st_size, found.st_mtime_ns))

    def folder(self, root: str) -> None:
        """Read names, sizes and times of change of all files below a folder, once."""
        if root in self._folders:
            return
        self._folders.add(root)
        num_files = 0
        entered: set[str] = set()
        for place, folders, files in os.walk(root, followlinks=True):
            folders[:] = sorted(folders) if (real := os.path.realpath(place)) not in entered else []
            entered.add(real)
            num_files += len(files)
            if num_files > _MOST_FILES:
                raise DoubtError(f"more than {_MOST_FILES:,} files below {root!r}")
            self.fact("folder", place)
            for name in sorted(files):
                self.fact("name", name)
                self.file(os.path.join(place, name))  # noqa: PTH118

    def items(self, value: Any) -> None:
        if isinstance(value, set | frozenset):
            # Sets have another order in every process, so each element is digested by itself.
            for digest in sorted(_digest(each, type(self)()) for each in value):
                self.fact("element", digest)
            return
        for each in chain.from_iterable(value.items()) if isinstance(value, Mapping) else value:
            self.visit(each)

    def tensor_content(self, value: Tensor) -> None:
        if not _is_plain(value):
            kind = f"{type(value).__qualname__}, {value.layout}, {value.dtype}, on {value.device}"
            raise DoubtError(f"not a plain tensor: {kind}")
        self.fact(str(value.dtype), tuple(value.shape))
        self._hash.update(_as_bytes(value).cpu().numpy().data)

    def array(self, value: np.ndarray[Any, Any]) -> None:
        if type(value) not in {np.ndarray, np.memmap}:
            self._instance(value)
            return
        self.fact(str(value.dtype), value.shape)
        if value.dtype.hasobject:
            self.visit(value.tolist())
        else:
            self._hash.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)

    def code(self, value: types.CodeType) -> None:
        self.fact("code", _code_digest(value))

    def own_module(self, value: types.ModuleType) -> None:
        try:
            self.fact("source", Path(str(value.__file__)).read_bytes())
        except (AttributeError, OSError):
            raise DoubtError(f"the module {value.__name__!r} has no source") from None

    def backend(self, value: Any) -> None:
        if value is not None:
            settings = json.loads(value.to_str()) | {"truncation": None, "padding": None}
            self.fact("backend", json.dumps(settings))

    def state(self, value: object) -> None:
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        try:
            registered = dispatch_table.get(type(value))
            reduced: Any = registered(value) if registered else value.__reduce_ex__(2)
        except Exception:  # noqa: BLE001 (whatever the object's own code raises)
            raise DoubtError(f"cannot be pickled: a {name}") from None
        if isinstance(reduced, str):  # a global of that name
            self.fact("global", f"{getattr(value, '__module__', '')}.{reduced}")
            return
        make, arguments, state, *items = (*reduced, None)[:5]
        self.visit(make)
        self.visit(arguments)
        # Attributes are a dictionary, or that and one of slots.
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(part, dict):
                self.attributes(self.without_excluded(value, part))
            else:
                self.visit(part)
        for part in items:
            self.visit(None if part is None else list(part))


class _NetworkDigest(_Digest):
    module_excludes = _Digest.module_excludes | {"training"}


@cache
def _code_digest(code: types.CodeType) -> str:
    """A digest of what code does: not of where it stands."""
    digest = hashlib.sha256(code.co_code + code.co_exceptiontable)
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    digest.update(repr((code.co_names, code.co_varnames, code.co_freevars, counts)).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            digest.update(_code_digest(constant).encode())
        elif isinstance(constant, frozenset):
            digest.update(repr(sorted(map(repr, constant))).encode())  # in another order in every process
        else:
            digest.update(repr(constant).encode())
    return digest.hexdigest()


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor is nothing but its numbers, and they are there."""
    return not (
        value.layout is not torch.strided
        or value.is_meta
        or value.is_quantized
        or is_traceable_wrapper_subclass(value)
    )


def _as_bytes(value: Tensor) -> Tensor:
    """Give a tensor's numbers as a flat uint8 tensor, without a copy where that is possible."""
    plain = value.detach().as_subclass(Tensor).resolve_conj().resolve_neg()
    return plain.reshape(-1).contiguous().view(torch.uint8)


# ---- weights, within a run

_COLUMNS = 512  # 8-byte words a row
_ROW_BYTES = 8 * _COLUMNS
_LARGE = 32 * 1024  # bytes from which a tensor is read where it lies
_BLOCK = 1024 * 1024 // _ROW_BYTES  # rows that stay in the processor's cache while they are read twice


class StateSum:
    """A checksum of what tensors hold: it sees what an edit through `.data` did, which no version counter does.

    Any single element that changes is seen for certain; elements that trade places, and several that change
    together, with a probability that leaves nothing to wish for where no one means to deceive. Shapes and the order
    of small tensors are no part of it: compare it for the same list of tensors.

    The bytes are read as 8-byte words, in rows and columns. Sums (modulo 2**64) along both are taken, and of each
    a sum with random odd weights, one a place. One transfer to the host a device.

    Args:
        tensors: They are read where they lie, whenever the sum is asked for: it must be made anew when one of them is
            given other memory.

    Example:
        >>> weight = torch.zeros(3)
        >>> state = StateSum([weight])
        >>> before = state.value()
        >>> weight.data[1] = 1e-30
        >>> before == state.value()
        False
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        by_device: dict[torch.device, list[Tensor]] = {}
        for tensor in tensors:
            by_device.setdefault(tensor.device, []).append(tensor)
        self._parts = [_Words(each, device) for device, each in by_device.items()]

    def value(self) -> tuple[int, ...]:
        """Give the sum of what they hold now."""
        return tuple(chain.from_iterable(part.sums() for part in self._parts))


class _Words:
    """The bytes of the tensors of one device, as rows of 8-byte words."""

    @torch.no_grad()
    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self._device = device
        self._blocks: list[Tensor] = []  # (R, _COLUMNS), int64
        self._rest: list[Tensor] = []  # uint8, too small to be read where they lie
        self._copied: list[Tensor] = []  # whose numbers lie apart, or are not what is stored
        for tensor in tensors:
            flat = _in_memory_order(tensor)
            if flat is None:
                self._copied.append(tensor)
                continue
            is_large = flat.numel() >= _LARGE and flat.data_ptr() % 8 == 0
            whole = flat.numel() // _ROW_BYTES * _ROW_BYTES if is_large else 0
            if whole:
                self._blocks += torch.split(flat[:whole].view(torch.int64).view(-1, _COLUMNS), _BLOCK)
            if whole < flat.numel():
                self._rest.append(flat[whole:])
        num_bytes = sum(each.numel() for each in self._rest)
        num_bytes += sum(each.numel() * each.element_size() for each in self._copied)
        self._rest.append(torch.zeros(-num_bytes % _ROW_BYTES, dtype=torch.uint8, device=device))

    @torch.no_grad()
    def sums(self) -> list[int]:
        rest = torch.cat([*self._rest, *map(_as_bytes, self._copied)]).view(torch.int64).view(-1, _COLUMNS)
        blocks = [*self._blocks, rest]
        sums = [torch.cat([block.sum(dim) for block in blocks]) for dim in (0, 1)]
        return torch.stack([(each * _odd_weights(len(each), self._device)).sum() for each in sums]).tolist()


def _in_memory_order(value: Tensor) -> Tensor | None:
    """Give the bytes of a tensor as they lie in memory, uint8 (n,); `None` where that is not all there is to it."""
    if value.is_conj() or value.is_neg():
        return None
    plain = value.detach().as_subclass(Tensor)
    plain = plain.permute(sorted(range(plain.ndim), key=plain.stride, reverse=True))
    return plain.view(-1).view(torch.uint8) if plain.is_contiguous() else None


@lru_cache(maxsize=8)
def _odd_weights(size: int, device: torch.device) -> Tensor:
    """Random odd numbers, the same for the same size; odd, so that no change of one word is multiplied to 0."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(2**62, (size,), generator=generator) * 2 + 1).to(device)
