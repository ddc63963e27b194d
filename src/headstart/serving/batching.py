"""Dynamic batching: what several requests ask for at the same time is computed together.

Nothing waits for a batch to fill. While one is computed, samples gather, and the next batch takes as many as there are: a
single request is answered at once, and the busier the server is, the larger are its batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from headstart.errors import HeadstartError

#: From samples to a value for each.
Compute = Callable[[Sequence[Any]], Sequence[Any]]


class QueueFullError(HeadstartError, RuntimeError):
    """More samples wait than the queue has room for: come again later."""


@dataclass(slots=True)
class Counts:
    """What was computed since the server began; a batch that failed counts, and so do its samples one by one."""

    samples: int = 0
    batches: int = 0
    largest_batch: int = 0


class Batcher:
    """A bounded queue of samples, and one thread that computes them in batches.

    Args:
        compute: From samples to a value for each; is called in one thread, for one batch at a time.
        batch_size: The largest batch.
        queue_size: How many samples may have a place, from `places` on to the answer.

    Example:
        >>> async def main():
        ...     batcher = Batcher(lambda numbers: [number * number for number in numbers], batch_size=2, queue_size=8)
        ...     async with asyncio.TaskGroup() as tasks:
        ...         running = tasks.create_task(batcher.run())
        ...         with batcher.places(3):
        ...             print(await batcher.answer([1, 2, 3]), batcher.counts.batches)
        ...         running.cancel()
        >>> asyncio.run(main())
        [1, 4, 9] 2
    """

    def __init__(self, compute: Compute, *, batch_size: int, queue_size: int) -> None:
        self.counts = Counts()
        self.taken = 0  # places
        self._compute = compute
        self._batch_size = batch_size
        self._queue_size = queue_size
        self._waiting: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue()  # `places` bounds it

    @contextmanager
    def places(self, number: int) -> Iterator[None]:
        """Hold places for a request's samples, from before they are unpacked until they are answered.

        Raises:
            QueueFullError: If there are not so many.
        """
        if self.taken + number > self._queue_size:
            raise QueueFullError(
                f"{self.taken} samples are waiting, and there is no room for {number} more: the queue holds "
                f"{self._queue_size}. Try again in a moment."
            )
        self.taken += number
        try:
            yield
        finally:
            self.taken -= number

    async def answer(self, samples: Sequence[Any]) -> list[Any]:
        """Give the value of each sample. Whoever stops waiting leaves the queue."""
        futures = [asyncio.get_running_loop().create_future() for _ in samples]
        for sample, future in zip(samples, futures, strict=True):
            self._waiting.put_nowait((sample, future))
        return list(await asyncio.gather(*futures))

    async def run(self) -> None:
        """Compute until cancelled. A sample that makes the computation fail is an error to its own request alone."""
        with ThreadPoolExecutor(1, thread_name_prefix="compute") as thread:
            while True:
                batch = await self._next_batch()
                values = await self._values([sample for sample, _ in batch], thread)
                for (_, future), value in zip(batch, values, strict=True):
                    if future.done():
                        continue  # nobody waits for it any more
                    if isinstance(value, Exception):
                        future.set_exception(value)
                    else:
                        future.set_result(value)

    async def _values(self, samples: Sequence[Any], thread: ThreadPoolExecutor) -> list[Any]:
        """Give the value of each sample, or the exception that it raises by itself."""
        self.counts.samples += len(samples)
        self.counts.batches += 1
        self.counts.largest_batch = max(self.counts.largest_batch, len(samples))
        try:
            return list(await asyncio.get_running_loop().run_in_executor(thread, self._compute, samples))
        except Exception as error:  # whatever a network raises  # noqa: BLE001
            if len(samples) == 1:
                return [error]
        return [value for sample in samples for value in await self._values([sample], thread)]

    async def _next_batch(self) -> list[tuple[Any, asyncio.Future[Any]]]:
        """Give what waits, at least one; those whose request has gone are left out."""
        batch: list[tuple[Any, asyncio.Future[Any]]] = []
        while not batch:
            found = [await self._waiting.get()]
            with suppress(asyncio.QueueEmpty):
                while len(found) < self._batch_size:
                    found.append(self._waiting.get_nowait())
            batch = [(sample, future) for sample, future in found if not future.done()]
        return batch
