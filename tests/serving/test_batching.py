"""What is asked at the same time is computed together, in a bounded queue."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from headstart.serving.batching import Batcher, QueueFullError


def in_another_thread(main):
    """A test of pages may have left an event loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, main()).result(timeout=20)


class Held:
    """Doubles numbers, as soon as it may; remembers the batches."""

    def __init__(self):
        self.may_go, self.batches, self.has_begun = threading.Event(), [], threading.Event()

    def __call__(self, samples):
        self.has_begun.set()
        assert self.may_go.wait(10)
        self.batches.append(list(samples))
        if 13 in samples:
            raise RuntimeError("not this one")
        return [2 * sample for sample in samples]

    async def begin(self):
        await asyncio.to_thread(self.has_begun.wait, 10)


def test_what_comes_while_a_batch_is_computed_is_the_next_batch_and_each_fails_for_itself():
    compute = Held()
    batcher = Batcher(compute, batch_size=4, queue_size=100)

    async def main():
        running = asyncio.create_task(batcher.run())
        asked = [asyncio.create_task(batcher.answer([0]))]
        await compute.begin()
        asked += [asyncio.create_task(batcher.answer([n, n + 10])) for n in (1, 2)]
        asked += [asyncio.create_task(batcher.answer([n])) for n in (3, 13)]
        await asyncio.sleep(0)
        compute.may_go.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        running.cancel()
        return answers

    answers = in_another_thread(main)
    assert compute.batches == [[0], [1, 11, 2, 12], [3, 13], [3], [13]]
    assert answers[:4] == [[0], [2, 22], [4, 24], [6]]
    assert str(answers[4]) == "not this one"  # and nobody else's
    assert batcher.counts.largest_batch == 4


def test_whoever_stops_waiting_is_not_computed():
    compute = Held()
    batcher = Batcher(compute, batch_size=1, queue_size=100)

    async def main():
        running = asyncio.create_task(batcher.run())
        first = asyncio.create_task(batcher.answer([1]))
        await compute.begin()
        gone, last = asyncio.create_task(batcher.answer([2])), asyncio.create_task(batcher.answer([3]))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        compute.may_go.set()
        answers = await first + await last
        running.cancel()
        return answers

    assert in_another_thread(main) == [2, 6]
    assert compute.batches == [[1], [3]]


def test_a_full_queue_takes_no_more_until_there_is_room():
    batcher = Batcher(len, batch_size=1, queue_size=3)
    with batcher.places(2):
        with pytest.raises(
            QueueFullError, match=r"2 samples are waiting, and there is no room for 2 more: .* holds 3"
        ):
            batcher.places(2).__enter__()
        with batcher.places(1):
            assert batcher.taken == 3
    assert batcher.taken == 0
