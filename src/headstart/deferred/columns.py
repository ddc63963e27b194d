"""Tables of per-sample values: a `Column` of equal rows, and a `RaggedColumn` of rows that differ in length.

They know nothing of where their bytes lie: the `Store` gives them tensors, in memory or mapped from a file. Nothing
here is a Python object per sample. Neither class may be used from two threads at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Place = Literal["memory", "disk"]

# A new segment is as large as all before it, within these bounds: few segments, little room without use.
SMALLEST_SEGMENT, LARGEST_SEGMENT = 1 << 20, 1 << 28  # bytes


@dataclass(frozen=True)
class Layout:
    """What the rows of a column are like.

    Args:
        num_samples: Number of rows.
        shape: Of one sample; `()` for a number.
        dtype: Of the values.
        channels_last: For samples (C, H, W): rows are kept as (H, W, C).

    Example:
        >>> layout = Layout(10, (3, 4, 5), torch.float32, channels_last=True)
        >>> layout.rows, layout.nbytes
        ((10, 4, 5, 3), 2400)
    """

    num_samples: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool = False

    def __post_init__(self) -> None:
        assert not self.channels_last or len(self.shape) == 3, f"channels_last needs (C, H, W): {self.shape}"

    @property
    def rows(self) -> tuple[int, ...]:
        """The shape of all rows as they are kept: (N, *shape), or (N, H, W, C)."""
        shape = (*self.shape[1:], self.shape[0]) if self.channels_last else self.shape
        return (self.num_samples, *shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all rows."""
        return math.prod(self.rows) * self.dtype.itemsize


def as_rows(raw: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Give bytes, (n,) uint8, as a tensor of this dtype and shape."""
    with torch.inference_mode(mode=False):  # else the view could not be written outside of inference mode
        return raw.view(dtype).view(shape)


class Column:
    """The values of one expression, a row per sample; `Store.column` makes it.

    Args:
        layout: What the rows are like.
        rows: Where they are kept: (N, *shape), or (N, H, W, C) for `channels_last`.
        place: Where `rows` lies.
        filled: Which rows are there, (N,) bool; `None`: none.
        is_shared: `rows` and `filled` are mapped by other processes too, which put rows into them: never is a row taken
            out again, and a row is written before it is said to be there.
        renew: Gives room for a copy of `rows`, or `None` where there is none. `put` asks for it where `rows` is a saved
            file, which others may have mapped too.

    Attributes:
        is_saved: `rows` is a saved file, and is never written.
        is_shared: As it was given.
        is_broken: There was no room for the copy that `put` needed. The rows that are there stay; `put` takes no more.

    Example:
        >>> column = Column(Layout(4, (2,), torch.float32), torch.empty(4, 2))
        >>> column.put(torch.tensor([3, 1]), torch.tensor([[3.0, 3.5], [1.0, 1.5]]))
        True
        >>> column.missing(torch.tensor([0, 1]))
        tensor([ True, False])
        >>> column.take(torch.tensor([1, 3, 1]))
        tensor([[1.0000, 1.5000],
                [3.0000, 3.5000],
                [1.0000, 1.5000]])
    """

    def __init__(
        self,
        layout: Layout,
        rows: Tensor,
        *,
        place: Place = "memory",
        filled: Tensor | None = None,
        is_shared: bool = False,
        renew: Callable[[], Tensor | None] | None = None,
    ) -> None:
        self.layout = layout
        self.num_samples = layout.num_samples
        self.shape = layout.shape
        self.dtype = layout.dtype
        self.nbytes = layout.nbytes
        self.place: Place = place
        self.is_shared = is_shared
        self.is_saved = filled is not None and not is_shared
        self.is_broken = False
        self._rows = rows
        self._renew = renew
        with torch.inference_mode(mode=False):  # else it could not be written outside of inference mode
            self.filled = torch.zeros(self.num_samples, dtype=torch.bool) if filled is None else filled
        self._first_gap = 0  # all rows before it are there

    @property
    def num_filled(self) -> int:
        """How many rows are there. They are counted anew, for other processes may have put some."""
        return int(self.filled.count_nonzero())

    @property
    def is_complete(self) -> bool:
        """Whether every row is there. What is there stays there, so each flag is passed once in all calls."""
        if self._first_gap < self.num_samples:
            rest = self.filled[self._first_gap :].numpy()
            # Looked at before the others, which another process may be filling: so the first gap after it is found, or 0
            # where there is none.
            if rest[0]:
                self._first_gap += int(rest.argmin()) or len(rest)
        return self._first_gap == self.num_samples

    def nbytes_in(self, place: Place) -> int:
        """Give the bytes that lie in `place`."""
        return self.nbytes if place == self.place else 0

    def missing(self, ids: Tensor) -> Tensor | None:
        """Say which of these rows are not there.

        Args:
            ids: Samples, (B,) int64.

        Returns:
            (B,) bool; `None` where all are there.
        """
        if self.is_complete:
            return None
        mask = self.filled.index_select(0, ids).logical_not_()
        return mask if mask.any() else None

    def take(self, ids: Tensor) -> Tensor:
        """Give the rows of these samples, which must be there.

        Args:
            ids: Samples, (B,) int64.

        Returns:
            (B, *shape), always a new tensor; in `torch.channels_last` format where rows are kept so.
        """
        assert self.missing(ids) is None, "rows were taken that were never put"
        rows = self._rows.index_select(0, ids)
        return rows.permute(0, 3, 1, 2) if self.layout.channels_last else rows

    def put(self, ids: Tensor, values: Tensor) -> bool:
        """Keep the rows of these samples.

        Args:
            ids: Samples, (B,) int64. A sample may come twice, with equal values.
            values: (B, *shape), of the column's dtype.

        Returns:
            False where nothing was kept, because the column `is_broken`.
        """
        if self.is_saved and not self._leave_saved_file():
            return False
        values = values.detach().to("cpu")
        if self.layout.channels_last:
            values = values.permute(0, 2, 3, 1)
        self._rows.index_copy_(0, ids, values)
        self.filled.index_fill_(0, ids, 1)  # after the rows: another process may look at any moment
        return True

    def _leave_saved_file(self) -> bool:
        copy = None if self.is_broken or self._renew is None else self._renew()
        if copy is None:
            self.is_broken = True
            return False
        self._rows = copy.copy_(self._rows)
        self.is_saved = False
        return True

    def copy_to(self, rows: Tensor) -> Tensor:
        """Copy all rows to other room; give which of them are there, (N,) bool, and were when the copy began."""
        filled = self.filled.clone()  # before the rows: what is put meanwhile is copied in part
        rows.copy_(self._rows)
        return filled

    def release(self) -> None:
        """Give the room of the rows back. The column cannot be used afterwards."""
        self._rows = torch.empty(0)


class RaggedColumn:
    """Values of samples whose first dimension differs, (L, *rest); `Store.ragged` makes it.

    An offset and a length per sample point into a pool, which grows by segments. A row is there if it was put with
    exactly the length that is asked for. A sample that is put with another length leaves its old room without use.

    Args:
        num_samples: Number of samples.
        rest: The shape of one position.
        dtype: Of the values.
        allocate: Gives so many bytes, (n,) uint8, and where they lie; `None` where there is no room.

    Example:
        >>> def allocate(nbytes):
        ...     return torch.empty(nbytes, dtype=torch.uint8), "memory"
        >>> column = RaggedColumn(4, (), dtype=torch.int64, allocate=allocate)
        >>> column.put(torch.tensor([2, 0]), torch.tensor([[1, 2, 3], [4, 5, 6]]))
        True
        >>> column.take(torch.tensor([0]), length=3)
        tensor([[4, 5, 6]])
        >>> column.missing(torch.tensor([0, 1]), length=3)
        tensor([False,  True])
        >>> column.missing(torch.tensor([0]), length=2)
        tensor([True])
    """

    def __init__(
        self,
        num_samples: int,
        rest: tuple[int, ...],
        *,
        dtype: torch.dtype,
        allocate: Callable[[int], tuple[Tensor, Place] | None],
    ) -> None:
        self.num_samples = num_samples
        self.rest = rest
        self.dtype = dtype
        self.num_filled = 0
        self._allocate = allocate
        self._segments: list[Tensor] = []  # each (positions, *rest)
        self._places: list[Place] = []
        self._end = 0  # the first free position of the last segment, counted over all segments
        with torch.inference_mode(mode=False):
            self._starts = torch.zeros(0, dtype=torch.int64)  # the first position of each segment
            self._offsets = torch.full((num_samples,), -1, dtype=torch.int64)
            self._lengths = torch.full((num_samples,), -1, dtype=torch.int32)

    @property
    def nbytes(self) -> int:
        """The bytes so far."""
        return self.nbytes_in("memory") + self.nbytes_in("disk")

    @property
    def place(self) -> Place:
        """Where the newest values lie: the pool goes on to the disk when the memory is used up."""
        return self._places[-1] if self._places else "memory"

    def nbytes_in(self, place: Place) -> int:
        """Give the bytes that lie in `place`; the offsets and lengths are always in memory."""
        pool = sum(s.nbytes for s, where in zip(self._segments, self._places, strict=True) if where == place)
        return pool + (self._offsets.nbytes + self._lengths.nbytes if place == "memory" else 0)

    def missing(self, ids: Tensor, *, length: int) -> Tensor | None:
        """Say which of these samples were not put with this length.

        Args:
            ids: Samples, (B,) int64.
            length: Of each of them.

        Returns:
            (B,) bool; `None` where all are there.
        """
        mask = self._lengths.index_select(0, ids) != length
        return mask if mask.any() else None

    def take(self, ids: Tensor, *, length: int) -> Tensor:
        """Give the values of these samples, which must be there with this length.

        Args:
            ids: Samples, (B,) int64.
            length: Of each of them.

        Returns:
            (B, length, *rest), always a new tensor.
        """
        assert self.missing(ids, length=length) is None, "values were taken that were never put"
        taken = torch.empty((len(ids), length, *self.rest), dtype=self.dtype)
        for segment, rows, index in self._parts(self._offsets.index_select(0, ids), length):
            part = segment.index_select(0, index.flatten()).view(*index.shape, *self.rest)
            if len(part) == len(ids):
                return part
            taken[rows] = part
        return taken

    def put(self, ids: Tensor, values: Tensor) -> bool:
        """Keep the values of these samples, in place of earlier ones.

        Args:
            ids: Samples, (B,) int64. A sample may come twice, with equal values.
            values: (B, length, *rest), of the column's dtype.

        Returns:
            False where nothing was kept (earlier values stay), because there was no room for all.
        """
        length = values.shape[1]
        values = values.detach().to("cpu")
        different, inverse = torch.unique(ids, return_inverse=True)
        if len(different) < len(ids):
            chosen = torch.empty_like(different).index_copy_(0, inverse, torch.arange(len(ids)))
            ids, values = different, values[chosen]
        is_new = self._lengths.index_select(0, ids) != length
        num_new = int(is_new.sum())
        if not self._make_room(num_new * length):
            return False
        offsets = self._offsets.index_select(0, ids)
        offsets[is_new] = self._end + torch.arange(num_new) * length
        for segment, rows, index in self._parts(offsets, length):
            segment.index_copy_(0, index.flatten(), values[rows].flatten(0, 1))
        self._end += num_new * length
        self.num_filled += int((self._lengths.index_select(0, ids) < 0).sum())
        self._offsets.index_copy_(0, ids, offsets)
        self._lengths.index_fill_(0, ids, length)
        return True

    def _parts(self, offsets: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give each segment that these rows lie in, which rows they are, and their positions in it, (rows, length)."""
        positions = torch.arange(length)
        numbers = torch.bucketize(offsets, self._starts, right=True) - 1
        for number in torch.unique(numbers).tolist():
            rows = (numbers == number).nonzero().flatten()
            index = (offsets[rows] - self._starts[number]).unsqueeze(1) + positions
            yield self._segments[number], rows, index

    def _make_room(self, num_positions: int) -> bool:
        """Make the last segment one with so many free positions; a row never spans two."""
        end_of_last = int(self._starts[-1]) + len(self._segments[-1]) if self._segments else -1
        if self._end + num_positions <= end_of_last:
            return True
        position_bytes = math.prod(self.rest) * self.dtype.itemsize
        pool = sum(segment.nbytes for segment in self._segments)
        wished = min(max(pool, SMALLEST_SEGMENT), LARGEST_SEGMENT) // max(position_bytes, 1)
        size = max(num_positions, wished, 1)
        while (found := self._allocate(size * position_bytes)) is None:
            if size <= max(num_positions, 1):
                return False
            size = max(num_positions, size // 2, 1)
        raw, place = found
        self._segments.append(as_rows(raw, self.dtype, (size, *self.rest)))
        self._places.append(place)
        self._end = max(end_of_last, 0)
        self._starts = torch.cat([self._starts, torch.tensor([self._end])])
        return True

    def release(self) -> None:
        """Give the room of the values back. The column cannot be used afterwards."""
        self._segments, self._places = [], []
