"""Nested values: lists, tuples, mappings and dataclasses with tensors somewhere inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any


def map_structure(value: Any, function: Callable[[Any], Any]) -> Any:
    """Give `value` with `function` applied to everything in it that is no container.

    Args:
        value: Lists, tuples, named tuples, mappings (transformers' outputs and batches too), dataclasses and slices,
            nested at will.
        function: From a leaf to what stands in its place.

    Example:
        >>> map_structure({"a": [1, 2], "b": slice(None, 3)}, lambda leaf: leaf and leaf * 10)
        {'a': [10, 20], 'b': slice(None, 30, None)}
    """
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([map_structure(each, function) for each in value])
    if kind is dict:
        return {key: map_structure(each, function) for key, each in value.items()}
    if kind is slice:
        return slice(*(map_structure(each, function) for each in (value.start, value.stop, value.step)))
    if isinstance(value, Mapping):
        mapped = {key: map_structure(each, function) for key, each in value.items()}
        # A model's output is a mapping and a dataclass, and is built from keywords.
        return kind(**mapped) if is_dataclass(value) else kind(mapped)
    if isinstance(value, tuple):
        items = [map_structure(each, function) for each in value]
        return kind(*items) if hasattr(value, "_fields") else kind(items)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{each.name: map_structure(getattr(value, each.name), function) for each in fields(value)}
        )
    return function(value)


def leaves_of(value: Any) -> Iterator[Any]:
    """Give everything in `value` that is no container, in the order of `map_structure`.

    Example:
        >>> list(leaves_of([1, {"a": (2, None)}]))
        [1, 2, None]
    """
    kind = type(value)
    if kind is tuple or kind is list or isinstance(value, tuple):
        parts = value
    elif isinstance(value, Mapping):
        parts = value.values()
    elif kind is slice:
        parts = (value.start, value.stop, value.step)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, each.name) for each in fields(value)]
    else:
        yield value
        return
    for each in parts:
        yield from leaves_of(each)
