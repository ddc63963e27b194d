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
    rows: dict[str, list[str]] = {}  # the tensors of each
    for name in shapes:
        rows.setdefault(".".join(name.split(".")[:depth]), []).append(name)
    num_values = sum(map(_product, shapes.values()))
    counts = Counter(types.values())
    found = Inspected()
    facts = [
        ("tensors", f"{len(shapes):,} with {num_values:,} values"),
        ("types", ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common())),
        ("file", size_of(path.stat().st_size)),
        *([("metadata", phrase(metadata))] if metadata else []),
    ]
    found.add_facts(str(path), facts)
    width = max(map(len, [*rows, "name"]))
    lines = [f"{'name':<{width}}  {'tensors':>7}  {'values':>13}  shape and type"]
    for prefix, names in rows.items():
        values = sum(_product(shapes[name]) for name in names)
        alone = f"{' x '.join(map(str, shapes[names[0]])) or 'a number'}, {types[names[0]]}"
        about = alone if len(names) == 1 else f"in {prefix}.*: --depth {depth + 1} shows more"
        lines.append(f"{prefix:<{width}}  {len(names):>7,}  {values:>13,}  {about}")
    found.add_text("\n".join(lines))
    found.values = {
        "num_tensors": len(shapes),
        "num_parameters": num_values,
        "types": dict(counts),
        "size": path.stat().st_size,
        "metadata": metadata,
        "tensors": [{"name": name, "shape": shape, "type": types[name]} for name, shape in shapes.items()],
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
