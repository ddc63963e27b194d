"""Signals while a trainer runs: SIGINT (Ctrl-C) and SIGTERM (a scheduler) end a fit between two batches, with nothing lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from headstart.strategy import Strategy

# A scheduler may signal a process group and its leader, who hands it on: that is one wish, not two.
_ONE_WISH = 1.0  # seconds

# After so long a wait for a loader's processes, one of them may hang.
LONG_WAIT = 120.0  # seconds


class SIGTERMException(SystemExit):
    """SIGTERM ended the run. Nobody need catch it: the process then ends with 143 = 128 + SIGTERM."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Signals:
    """Takes SIGINT and SIGTERM while a trainer runs, and holds them back until the step of a fit is whole.

    The first one ends the run at the next place from which it can go on: after the step, within a wait for data, or
    after a validation's batch. The second ends it at once; and the first does, where there is no fit but an evaluation or a
    prediction. A handler that the program has set itself stays, and where the trainer runs in another thread than the main
    one, Python lets nobody handle signals: all is as without headstart.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_urgent = False  # a second one came: nothing is saved
        self.is_agreed = (
            False  # the exception that ends the run was raised at the same place in every process
        )
        self.is_busy = False  # within a batch, which is finished first
        self.consequence = ""  # for the message: what becomes of the state
        self._since = 0.0
        self._process = 0
        self._is_main_thread = False
        self._before: dict[int, Any] = {}
        self._on_dead_worker: Any = None  # torch's handler of SIGCHLD, while ours stands in its place
        self._worker_is_dead = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals while the block runs, and give them back their handlers afterwards."""
        self.received, self.is_urgent, self.is_agreed, self.is_busy = None, False, False, False
        self._process = os.getpid()
        self._is_main_thread = threading.current_thread() is threading.main_thread()
        self._before = {}
        if self._is_main_thread:
            defaults: dict[int, Any] = {
                signal.SIGINT: signal.default_int_handler,
                signal.SIGTERM: signal.SIG_DFL,
            }
            for number, default in defaults.items():
                if signal.getsignal(number) is default:
                    self._before[number] = signal.signal(number, self._take)
        try:
            yield
            if self.received is not None:  # it came when all batches were over
                self._raise()
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._let_go_of_workers()

    def check(self, strategy: Strategy) -> None:
        """Where the run may end: end it, if that was asked of any of its processes."""
        if strategy.world_size > 1:
            asked = strategy.reduce_boolean_decision(self.received is not None, all=False)
        else:
            asked = self.received is not None
        if asked:
            self.end()

    def end(self) -> NoReturn:
        """End the run, here as in every process.

        Raises:
            KeyboardInterrupt: If Ctrl-C asked for it.
            SIGTERMException: If SIGTERM did, or another process.
        """
        self.is_agreed = True
        self._raise()

    def check_alone(self, strategy: Strategy) -> None:
        """As `check`, where only a run of one process may end."""
        if self.received is not None and strategy.world_size == 1:
            self.check(strategy)

    def begin_wait(self, strategy: Strategy) -> None:
        """Before a wait for data: from here on a signal, or a loader worker's death, ends the run at once.

        Nothing else is under way. Set `is_busy` again when the data is there.
        """
        if strategy.world_size > 1:
            return
        self.is_busy = False
        if self.received is not None:
            self.check(strategy)
        if self._worker_is_dead:
            self._worker_is_dead = False
            self._on_dead_worker(signal.SIGCHLD, None)  # raises, if it was a worker

    @contextmanager
    def alarm(self, call: Callable[[], None]) -> Iterator[None]:
        """Call a function if the block takes `LONG_WAIT`; where the program uses the alarm itself, it is left alone."""
        is_possible = self._is_main_thread and hasattr(signal, "setitimer")
        if not is_possible or signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:
            yield
            return
        signal.signal(signal.SIGALRM, lambda *_: call() if os.getpid() == self._process else None)
        signal.setitimer(signal.ITIMER_REAL, LONG_WAIT)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def hold_workers(self) -> None:
        """Hold back torch's handler of dead workers too: it raises wherever the program stands, within a step too."""
        if not self._is_main_thread or not hasattr(signal, "SIGCHLD"):
            return
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler != self._note_dead_child:
            self._on_dead_worker = signal.signal(signal.SIGCHLD, self._note_dead_child)

    # ---- handlers

    def _take(self, number: int, _frame: object) -> None:
        if os.getpid() != self._process:
            # A forked child. Ctrl-C reaches loader workers too, and they are needed until the step is done.
            if number != signal.SIGINT:
                _die_of(number)
            return
        if self.received is not None:
            if number == signal.SIGTERM and time.monotonic() - self._since < _ONE_WISH:
                return
            self.is_urgent = True
            if number == signal.SIGTERM:
                _die_of(number)
            raise KeyboardInterrupt
        self.received, self._since = number, time.monotonic()
        if not self.is_busy:
            self._raise()
        name = signal.Signals(number).name
        # Not print: what was interrupted may be a print.
        os.write(
            2,
            f"\n{name}: the run ends after this step. {self.consequence}Once more to end at once.\n".encode(),
        )

    def _note_dead_child(self, number: int, frame: object) -> None:
        if self.is_busy and os.getpid() == self._process:
            self._worker_is_dead = True
        else:
            self._on_dead_worker(number, frame)

    def _let_go_of_workers(self) -> None:
        if self._on_dead_worker is not None:
            signal.signal(signal.SIGCHLD, self._on_dead_worker)
        self._on_dead_worker, self._worker_is_dead = None, False

    def _raise(self) -> NoReturn:
        self.is_busy = False
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SIGTERMException


def _die_of(number: int) -> None:
    """End as a process that handles nothing does; parents and shells then see which signal it was."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
