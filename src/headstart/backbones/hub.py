"""Pretrained weights from a hub: what was tried and what to do, said quickly where the hub cannot be reached."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from headstart.errors import HeadstartError


class HubError(HeadstartError, OSError):
    """Pretrained weights could not be fetched."""


@contextmanager
def huggingface_hub_access(what: str) -> Iterator[None]:
    """Let the code inside fetch from the Hugging Face hub, or from its local cache where the hub cannot be reached.

    The hub's own client tries a dead connection for up to a minute per file; here it is asked for its cache at once.

    Args:
        what: The backbone's name, for the message.

    Raises:
        HubError: If the code inside raised an `OSError`: no connection, no such model, not in the cache.
    """
    from huggingface_hub import constants

    address = constants.ENDPOINT
    reachable = not constants.HF_HUB_OFFLINE and can_connect(address)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable
    try:
        yield
    except OSError as error:
        raise fetch_error(what, tried=address, reachable=reachable, error=error) from error
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def fetching_nothing() -> Iterator[None]:
    """See to it that the code inside asks no hub, whatever a description that it reads may name."""
    try:
        from huggingface_hub import constants
    except ImportError:  # then nothing can be asked for
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def can_connect(address: str, *, timeout: float = 5.0) -> bool:
    """Whether a server answers. Behind a proxy that cannot be known, so it is assumed.

    Args:
        address: A URL.
        timeout: Seconds to wait.

    Example:
        >>> can_connect("http://localhost:1")
        False
    """
    parts = urlsplit(address)
    if os.environ.get(f"{parts.scheme}_proxy") or os.environ.get(f"{parts.scheme.upper()}_PROXY"):
        return True
    port = parts.port or {"http": 80}.get(parts.scheme, 443)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=timeout):
            return True
    except OSError:  # the answer, not a failure
        return False


def fetch_error(what: str, *, tried: str, reachable: bool, error: BaseException) -> HubError:
    """Give the error for weights that could not be fetched, with what to do instead.

    Args:
        what: The backbone's name.
        tried: The address.
        reachable: Whether a server answered there.
        error: What happened.
    """
    reason = str(error).strip().splitlines() or [type(error).__name__]
    state = "which answers" if reachable else "which cannot be reached from here, and the local cache"
    return HubError(
        f"The pretrained weights of {what!r} could not be loaded. Tried: {tried}, {state}. ({reason[0]}) "
        "What to do: check the name and the connection; or use a packaged backbone ('efficientnet_lite0' for images, "
        f"'minilm' for text); or a file or folder that you have ('{what}@/path/to/weights.safetensors', "
        "'/path/to/huggingface/folder'); or random weights (pretrained=False)."
    )
