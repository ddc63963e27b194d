"""A file of safetensors: names, shapes and types, from its header; no weight is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import CheckpointError, missing_dependency

if TYPE_CHECKING:
    from headstart.cli.inspected import Inspected


def inspect_weights(path: Path, *, depth: int) -> Inspected:
    """Give what is in a file of safetensors.

    Args:
        path: The file.
        depth: How many words of the tensors' names make a row.

    Raises:
        CheckpointError: If it is damaged or something else.
        MissingDependencyError: If safetensors is not installed.
    """
    from headstart.cli.inspected import Inspected, phrase, size_of

    shapes, types, metadata = _header(path)
    rows: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        row = rows.setdefault(".".join(name.split(".")[:-1][:depth]) or name, [0, 0])
        row[0] += 1
        row[1] += _product(shape)
    num_values = sum(values for _, values in rows.values())
    counts = Counter(types.values())
    found = Inspected()
    facts = [
        ("tensors", f"{len(shapes):,} with {num_values:,} values"),
        ("types", ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common())),
        ("file", size_of(path.stat().st_size)),
        *([("metadata", phrase(metadata))] if metadata else []),
    ]
    found.add_facts(str(path), facts)
    width = max(map(len, [*rows, "module"]))
    lines = [f"{'module':<{width}}  {'tensors':>7}  {'values':>13}"]
    lines += [f"{prefix:<{width}}  {count:>7,}  {values:>13,}" for prefix, (count, values) in rows.items()]
    found.add_text("\n".join(lines))
    found.values = {
        "num_tensors": len(shapes),
        "num_parameters": num_values,
        "types": dict(counts),
        "size": path.stat().st_size,
        "metadata": metadata,
        "modules": [
            {"name": prefix, "num_tensors": count, "num_parameters": values}
            for prefix, (count, values) in rows.items()
        ],
    }
    return found


def _header(path: Path) -> tuple[dict[str, list[int]], dict[str, str], dict[str, str]]:
    """Give shapes and types by tensor, and the file's own metadata."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise missing_dependency("safetensors", needed_for="'.safetensors' files", extra="images") from None
    shapes: dict[str, list[int]] = {}
    types: dict[str, str] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata: dict[str, Any] = dict(file.metadata() or {})
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                part = file.get_slice(name)
                shapes[name], types[name] = list(part.get_shape()), str(part.get_dtype())
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged, or no file of safetensors ({path.stat().st_size:,} bytes): {error}. Copy it again from where it "
            "came from."
        ) from error
    return shapes, types, metadata


def _product(shape: list[int]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found
