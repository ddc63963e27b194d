"""The first pass runs at the machine's speed: in which chunks, and in which memory format, the frozen part is run.

Nobody knows beforehand: on a CPU, chunks of 8 photos in channels-last order may run four times as fast as a batch of 32 in
the default one, and on a GPU it is otherwise. So the first batch is computed in different settings, and timed. Chunks of
another size are taken only if they give the same bits, so that what the clock says changes no value.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

# The size whose bits the others must give.
_REFERENCE_SIZE = 8
_SIZES = (4, 16, 32)
# The default memory format is taken where the other is not clearly faster: two runs should decide alike.
_CLEARLY = 0.9


@dataclass(frozen=True, slots=True)
class Setting:
    """How samples are computed: in chunks of this size, in this memory format.

    Example:
        >>> str(Setting(8, channels_last=True))
        'chunks of 8, channels-last'
    """

    chunk_size: int
    channels_last: bool = False

    def run(self, roots: list[Tensor], compute: Callable[[list[Tensor]], None]) -> float:
        """Call `compute` with chunks of the roots' rows, and give the seconds that a sample took.

        The last chunk is filled up with copies of its last row, for the size of a chunk may show in the last bits. The
        first chunk is slower than the others (its kernels are made), and is counted only where it is the only one.
        """
        taken = []
        for start in range(0, len(roots[0]), self.chunk_size):
            chunk = [self._filled(each[start : start + self.chunk_size]) for each in roots]
            begun = time.perf_counter()
            compute(chunk)
            taken.append((time.perf_counter() - begun) / self.chunk_size)
        return median(taken[1:] or taken)

    def _filled(self, rows: Tensor) -> Tensor:
        absent = self.chunk_size - len(rows)
        if absent:
            rows = torch.cat([rows, rows[-1:].expand(absent, *rows.shape[1:])])
        if self.channels_last and rows.ndim == 4 and rows.is_floating_point():
            rows = rows.contiguous(memory_format=torch.channels_last)
        return rows

    def __str__(self) -> str:
        return f"chunks of {self.chunk_size}{', channels-last' if self.channels_last else ''}"


def fastest(
    num_rows: int,
    run: Callable[[Setting], tuple[Tensor, float]],
    is_close: Callable[[Tensor], bool],
    *,
    formats: Iterable[bool],
) -> tuple[Setting, float]:
    """Give the fastest setting, and the seconds that a sample takes in it.

    Args:
        num_rows: The number of samples that `run` computes: chunks are not larger.
        run: Computes them in a setting; gives the values and the seconds a sample.
        is_close: Whether values are within the tolerance of the plain computation.
        formats: The memory formats to try: `False` for the default one, `True` for channels-last.

    Example:
        >>> def run(setting):
        ...     return torch.ones(16), 1 / setting.chunk_size
        >>> fastest(16, run, lambda values: True, formats=[False])
        (Setting(chunk_size=16, channels_last=False), 0.0625)
    """
    best, reference, seconds = Setting(num_rows), None, 0.0
    for channels_last in formats:
        setting = Setting(min(_REFERENCE_SIZE, num_rows), channels_last)
        values, taken = run(setting)
        if is_close(values) and (reference is None or taken < _CLEARLY * seconds):
            best, reference, seconds = setting, values, taken
    if reference is None:
        return best, run(best)[1]
    for size in _SIZES:
        if size <= num_rows:
            setting = Setting(size, best.channels_last)
            values, taken = run(setting)
            if taken < seconds and torch.equal(values, reference):
                best, seconds = setting, taken
    return best, seconds
