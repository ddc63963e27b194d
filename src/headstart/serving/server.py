"""Runs the application until Ctrl-C or SIGTERM, and answers first what was asked before."""

from __future__ import annotations

import gc
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from headstart.errors import MisconfigurationError
from headstart.serving.limits import Limits

# Clients that have opened a connection; what they may send is bounded by `Limits`.
_MAX_CONNECTIONS = 1000


def serve(app: FastAPI, *, host: str, port: int, limits: Limits, say: Callable[[str], None] = print) -> None:
    """Serve until Ctrl-C or SIGTERM; a second Ctrl-C does not wait for answers.

    Args:
        app: What answers.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        limits: Their timeout bounds how long the end may take.
        say: Is told the address, once it listens.

    Raises:
        MisconfigurationError: If it cannot listen there.
    """
    # It complains of each damaged body, and so does the answer.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    # What was loaded stays: searched for garbage again and again, it made large JSON take seconds instead of tenths.
    gc.freeze()
    listener = _listen(host, port)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=math.ceil(2 * limits.timeout) + 1,  # reading, then answering
    )  # fmt: skip
    server = uvicorn.Server(config)
    with _signals_ending(server), listener:
        say(f"http://{_written(host)}:{listener.getsockname()[1]}/")
        server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MisconfigurationError(
            f"Cannot listen on {host!r}, port {port}: {reason}. Give another --port (0 takes a free one), or a --host that "
            "is an address of this machine."
        ) from error


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextmanager
def _signals_ending(server: uvicorn.Server) -> Iterator[None]:
    """Take signals before uvicorn does; and after it, which raises once more what ended it when all is answered."""

    def end(*_: object) -> None:
        server.should_exit = True

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
