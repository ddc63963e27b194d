"""What `ModelCheckpoint` has saved, for loggers that upload it: which files are new, and what the best score is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from headstart.errors import MisconfigurationError


class NewFiles:
    """Tells which checkpoints are to be uploaded.

    Args:
        wanted: `"all"` for each when it is saved, `True` for the best and the last one at the end, `False` for none.

    Raises:
        MisconfigurationError: If `wanted` is something else.

    Example:
        >>> NewFiles(False).at_the_end()
        []
    """

    def __init__(self, wanted: Literal[True, False, "all"]) -> None:
        if wanted not in {True, False, "all"}:
            raise MisconfigurationError(f"log_model is {wanted!r}; expected True, False or 'all'.")
        self._wanted = wanted
        self._callback: Any = None
        self._uploaded: dict[str, float] = {}  # when each was written

    def saved(self, callback: Any) -> list[str]:
        """Give the files to upload now that a `ModelCheckpoint` has saved."""
        self._callback = callback
        return self._new() if self._wanted == "all" else []

    def at_the_end(self) -> list[str]:
        """Give the files to upload when the run is over."""
        return self._new() if self._wanted else []

    def summary(self) -> dict[str, Any]:
        """Give the best score and the file that has it."""
        found: dict[str, Any] = {}
        callback = self._callback
        if callback is not None and callback.best_model_score is not None:
            found[f"best/{callback.monitor}"] = float(callback.best_model_score)
        if callback is not None and callback.best_model_path:
            found["best_model_path"] = str(callback.best_model_path)
        return found

    def _new(self) -> list[str]:
        callback = self._callback
        if callback is None:
            return []
        paths = dict.fromkeys([*callback.best_k_models, callback.best_model_path, callback.last_model_path])
        written = {path: Path(path).stat().st_mtime for path in paths if path and Path(path).exists()}
        new = [path for path, when in written.items() if self._uploaded.get(path) != when]
        self._uploaded |= written
        return new
