"""The facts of a run, which its report is made from: plain data in one file, so that no data set and no model is needed again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.errors import CheckpointError, MisconfigurationError
from headstart.files import write_together

FORMAT = 1
#: Where they are in a run's folder.
FACTS_FILE = Path("report", "facts.json")


def write_facts(run: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts of a run into its folder.

    Args:
        run: The folder.
        facts: Plain values; a number that is not finite becomes null.

    Raises:
        WriteError: If the disk is full or the folder cannot be written.
    """
    content = _encode(plain({"format": FORMAT, **facts}))
    write_together({run / FACTS_FILE: lambda path: path.write_bytes(content)})


def read_facts(run: str | Path) -> dict[str, Any]:
    """Give the facts of a run.

    Raises:
        MisconfigurationError: If there are none.
        CheckpointError: If they are damaged, or of a newer format.
    """
    path = Path(run) / FACTS_FILE
    if not path.is_file():
        raise MisconfigurationError(f"{str(run)!r} has nothing to report: {_why_missing(Path(run))}")
    try:
        content = path.read_bytes()
        facts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Copy the whole folder again.") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("format"), int):
        raise CheckpointError(f"{path} is damaged, or was not written by headstart: it has no format.")
    if facts["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has format {facts['format']}, and this headstart reads up to {FORMAT}: pip install --upgrade headstart."
        )
    checksum = facts.pop("checksum", None)
    if checksum != _checksum(facts):
        raise CheckpointError(
            f"{path} is damaged, or was changed after it was written: its checksum does not fit. Copy the whole folder again."
        )
    return facts


def plain(value: Any) -> Any:
    """Give what JSON can hold: tuples as lists, and null for a number that is not finite.

    Example:
        >>> plain({"a": (1, float("nan"))})
        {'a': [1, None]}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _encode(facts: dict[str, Any]) -> bytes:
    return json.dumps({**facts, "checksum": _checksum(facts)}, ensure_ascii=False).encode()


def _checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _why_missing(run: Path) -> str:
    if not run.is_dir():
        return "there is no such folder. Give the RUN of `headstart fit ... --out RUN`."
    if not (run / "run.yaml").is_file() and (run / "headstart.json").is_file():
        return (
            "it is a model alone, as a sweep keeps its best one: a report is made from what `headstart fit` finds out on its way. "
            f"`headstart inspect {run}` tells what is known of it."
        )
    if not (run / "run.yaml").is_file():
        return "it is no run (it has no run.yaml). Give the RUN of `headstart fit ... --out RUN`."
    return (
        f"there is no {FACTS_FILE} in it. The run did not come to its end, or ran with --report false: go on with "
        f"`headstart fit DATA --out {run} --resume --report true`."
    )
