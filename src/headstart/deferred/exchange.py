"""Rows of columns from machine to machine, so that each finds what the others have computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from headstart.deferred.columns import Column

# Bytes that are sent at a time; no more are taken by the flags of all machines that are looked at together.
CHUNK = 64_000_000


class Group(Protocol):
    """What an exchange needs of the processes that take part: one of each machine.

    Attributes:
        rank: The number of this process, from 0.
        size: How many there are.
    """

    rank: int
    size: int

    def all_gather_object(self, value: Any) -> list[Any]:
        """Give the value of every process, by rank. Values are plain data, of at most some MB."""

    def broadcast(self, tensor: Tensor, src: int) -> None:
        """Make `tensor`, (n,) uint8 on the CPU and contiguous, in every process what it is in process `src`."""


def exchange(columns: Mapping[str, Column], group: Group, *, chunk: int = CHUNK) -> int:
    """Give every process the rows that any of them has.

    They tell each other which rows are there, and each row that one of them lacks is sent by the first that has it.
    All decide alike from the same flags, so nothing else has to be agreed on. What is put meanwhile goes along the next time.

    Args:
        columns: By key. A key that is missing in a process, or has another layout there, is left out.
        group: The processes, which all call this.
        chunk: Bytes that are sent at a time.

    Returns:
        How many rows were put here.
    """
    ours = {key: (column.layout, column.is_complete) for key, column in columns.items()}
    tables: list[dict[str, Any]] = group.all_gather_object(ours)
    num_received = 0
    for key in sorted(set(tables[0]).intersection(*tables[1:])):
        layouts, complete = zip(*(table[key] for table in tables), strict=True)
        if len(set(layouts)) == 1 and not all(complete):
            num_received += _exchange_column(columns[key], group, chunk)
    return num_received


def _exchange_column(column: Column, group: Group, chunk: int) -> int:
    num_received = 0
    row_bytes = math.prod(column.shape) * column.dtype.itemsize
    stretch = max(1, chunk // (8 * group.size))  # samples; a flag is a byte, and a number of a sample eight
    for start in range(0, column.num_samples, stretch):
        flags = column.filled[start : start + stretch]
        bits = group.all_gather_object(np.packbits(flags.numpy()).tobytes())
        has = torch.stack([_unpacked(each, len(flags)) for each in bits])  # (size, n)
        senders = has.to(torch.uint8).argmax(0)  # the first that has it
        is_wanted = has.any(0) & ~has.all(0)
        for sender in range(group.size):
            ids = (is_wanted & (senders == sender)).nonzero().flatten()
            for part in torch.split(ids, max(1, chunk // row_bytes)):
                if len(part):
                    num_received += _send(column, part + start, ~has[group.rank][part], group, sender)
    return num_received


def _send(column: Column, ids: Tensor, is_missing: Tensor, group: Group, sender: int) -> int:
    """Send rows; give how many of them were put here."""
    if group.rank == sender:
        group.broadcast(column.take(ids).contiguous().flatten().view(torch.uint8), sender)
        return 0
    rows = torch.empty(len(ids), *column.shape, dtype=column.dtype)
    group.broadcast(rows.view(-1).view(torch.uint8), sender)
    num_missing = int(is_missing.sum())
    return num_missing if num_missing and column.put(ids[is_missing], rows[is_missing]) else 0


def _unpacked(bits: bytes, count: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(np.bool_))
