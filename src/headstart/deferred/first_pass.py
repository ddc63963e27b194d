"""The first pass runs at the machine's speed: in which chunks, and in which memory format, the frozen part is run.

Nobody knows beforehand: on a CPU, chunks of 8 photos in channels-last order may run four times as fast as a batch of 32 in
the default one, and on a GPU it is otherwise. So the first samples are computed in different settings, timed, and the
fastest is kept; the values of the trials count as any others, for every setting was checked against the plain computation.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Setting:
    """How a chunk of samples is computed."""

    chunk_size: int
    channels_last: bool

    def prepare(self, root: Tensor) -> Tensor:
        """Bring a tensor of the batch into this memory format."""
        if self.channels_last and root.ndim == 4 and root.is_floating_point():
            return root.contiguous(memory_format=torch.channels_last)
        return root

    def __str__(self) -> str:
        return f"chunks of {self.chunk_size}{', channels-last' if self.channels_last else ''}"


@dataclass(slots=True)
class Pace:
    """Finds the fastest setting by trying.

    Args:
        batch_size: The loader's: the plain setting.
        formats: The memory formats that may be tried (`channels_last` or not).
        is_worthwhile: Whether what is saved may be more than what the trials cost.

    Example:
        >>> pace = Pace(32, formats=(False,), is_worthwhile=False)
        >>> str(pace.setting())
        'chunks of 32'
    """

    batch_size: int
    formats: tuple[bool, ...]
    is_worthwhile: bool
    seconds: dict[Setting, float] = field(default_factory=dict)  # a sample

    def setting(self) -> Setting:
        """Give the setting to be tried next, or the fastest of all that were tried."""
        plain = Setting(self.batch_size, channels_last=False)
        if not self.is_worthwhile:
            return plain
        untried = (each for each in self._candidates() if each not in self.seconds)
        return next(untried, None) or min(self.seconds, key=self.seconds.__getitem__)

    def _candidates(self) -> list[Setting]:
        """The formats first, in small chunks; then other sizes in the better format."""
        found = [Setting(8, channels_last) for channels_last in self.formats]
        if all(each in self.seconds for each in found):
            best = min(found, key=self.seconds.__getitem__)
            found += [Setting(size, best.channels_last) for size in (4, 16, 32, self.batch_size)]
        return found

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to try."""
        return not self.is_worthwhile or all(each in self.seconds for each in self._candidates())

    def run(self, setting: Setting, size: int, compute: Callable[[slice], None]) -> None:
        """Call `compute` with chunks of `size` samples, and take down how long one takes.

        The first chunk of a kind is slower (its kernels are made), and is not counted where there are others.
        """
        taken = []
        for start in range(0, size, setting.chunk_size):
            rows = slice(start, min(start + setting.chunk_size, size))
            begun = time.perf_counter()
            compute(rows)
            taken.append((time.perf_counter() - begun) / (rows.stop - start))
        if setting not in self.seconds and (size >= setting.chunk_size or not self.is_worthwhile):
            self.seconds[setting] = median(taken[1:] or taken)
