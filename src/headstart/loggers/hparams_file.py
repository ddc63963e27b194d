"""`hparams.yaml`: the hyper-parameters of a run, readable to people and to any YAML reader, written without one."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What YAML 1.1 takes for something other than a string.
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def write_hparams(path: str | Path, params: Mapping[str, Any]) -> None:
    """Write hyper-parameters as YAML, a line each; the file is whole or as it was before.

    Args:
        path: The file; its directory exists.
        params: Numbers, strings, booleans, `None`, and lists and dicts of them; anything else is written as text.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "hparams.yaml"
        >>> write_hparams(path, {"lr": 1e-05, "layers": [1, 2], "name": "tiny", "norm": None})
        >>> print(path.read_text(), end="")
        lr: 1.0e-05
        layers: [1, 2]
        name: "tiny"
        norm: null
    """
    path = Path(path)
    lines = [f"{_text_key(key)}: {to_yaml(value)}\n" for key, value in params.items()]
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(lines) or "{}\n", encoding="utf-8")
    os.replace(temporary, path)  # noqa: PTH105 (Path.replace cannot be told from str.replace by readers)


def to_yaml(value: Any) -> str:
    """Give one value as YAML in one line.

    Example:
        >>> to_yaml({"betas": (0.9, 0.999), "scale": float("inf"), "amsgrad": False})
        '{betas: [0.9, 0.999], scale: .inf, amsgrad: false}'
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return _text_float(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text_key(key)}: {to_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(to_yaml(inner) for inner in value) + "]"
    return json.dumps(str(value), ensure_ascii=False)


def _text_key(key: Any) -> str:
    text = str(key)
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", text) and text.lower() not in _RESERVED
    return text if plain else json.dumps(text, ensure_ascii=False)


def _text_float(value: float) -> str:
    if math.isnan(value):
        return ".nan"
    if math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    text = repr(float(value))
    # YAML 1.1 reads 1e-05 as a string, and 1.0e-05 as a number.
    mantissa, exponent, power = text.partition("e")
    return f"{mantissa}.0e{power}" if exponent and "." not in mantissa else text
