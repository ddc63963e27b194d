"""A loader whose batches are deferred, for training loops that are somebody else's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.deferred.reuse import Reuse


class ReusedLoader:
    """`loader`, with the batches of `reuse.batches(loader)` in every pass: what `Reuse.loader` gives.

    Whatever else is asked of it (`dataset`, `batch_size`, `sampler`) is the loader's.
    """

    def __init__(self, reuse: Reuse, loader: Any) -> None:
        self._reuse = reuse
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        return self._reuse.batches(self._loader)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)
