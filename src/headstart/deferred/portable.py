"""An expression in words that mean the same in every run: the key of values that are kept on disk."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headstart.deferred.fingerprint import content_digest, module_digest
from headstart.deferred.graph import BATCH_SIZE, Call, Expression, Output, Root, Rows
from headstart.deferred.recorder import digest_of

if TYPE_CHECKING:
    from headstart.deferred.source import Source


def portable_key(expression: Expression, source: Source, *, setting: str) -> str | None:
    """Give a text that is equal in two runs only where the values of an expression are equal, sample by sample.

    It names the content of the data set, of every network and constant in the expression, and torch's version.

    Args:
        expression: What is computed.
        source: The data of its samples.
        setting: How it is computed (`"auto"` or `"exact"`).

    Returns:
        The key; `None` where one of them has no certain content (a function of unknown make, say).
    """
    if source.content is None:
        source.content = content_digest(source.contents()) or ""
    words = _words(expression, {})
    if not source.content or words is None:
        return None
    content = json.dumps([torch.__version__, setting, source.content, words])
    return f"{expression!r:.80} {hashlib.sha256(content.encode()).hexdigest()}"


def _words(value: Any, seen: dict[Call, str | None]) -> str | None:
    """Give an argument, a call or an expression in words; `None` where one cannot be told for sure."""
    if isinstance(value, Root):
        return f"batch[{value.index}]:{value.dtype}{value.sample_shape}"
    if isinstance(value, Output):
        call = _words_of_call(value.call, seen)
        return None if call is None else f"{call}[{value.index}]:{value.dtype}"
    if isinstance(value, Rows):
        return None
    if isinstance(value, Tensor):
        return f"{value.dtype}{tuple(value.shape)}{digest_of(value).hex()}"
    if isinstance(value, dict | list | tuple):
        items = list(value.items()) if isinstance(value, dict) else list(value)
        words = [_words(each, seen) for each in items]
        return None if None in words else f"{type(value).__name__}{words}"
    if isinstance(value, slice):
        return f"slice({value.start!r}, {value.stop!r}, {value.step!r})"
    return "batch size" if value is BATCH_SIZE else repr(value)


def _words_of_call(call: Call, seen: dict[Call, str | None]) -> str | None:
    if call not in seen:
        if call.module is not None:
            subject = module_digest(call.module.module)
            foreign = [digest_of(each).hex() for each in call.module.foreign]
            subject = f"{subject} {foreign}" if subject and foreign else subject
        else:
            subject = f"{getattr(call.function, '__module__', '')}.{getattr(call.function, '__qualname__', call.name)}"
        args, kwargs = _words(call.args, seen), _words(call.kwargs, seen)
        certain = None not in {subject, args, kwargs}
        text = f"{subject} {args} {kwargs} {call.autocast} {call.device.type} {call.is_single}"
        # A digest, for a call may be an argument of many.
        seen[call] = hashlib.sha256(text.encode()).hexdigest() if certain else None
    return seen[call]
