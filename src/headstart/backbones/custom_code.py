"""Code that comes with a model: none is run, and nobody is asked whether to run it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from headstart.errors import MisconfigurationError

# For every `from_pretrained` and `from_config`: without it transformers asks on the terminal, and a "y" runs the code.
RUN_NO_CODE: dict[str, Any] = {"trust_remote_code": False}


@contextmanager
def refusing_code(what: str) -> Iterator[None]:
    """Let transformers' refusal of a model's own code say what that means here.

    Args:
        what: What is being read, as the message begins.

    Raises:
        MisconfigurationError: If the code inside cannot do without the model's own.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise MisconfigurationError(
            f"{what} needs code of its own, and headstart runs none that comes with a model. Take a model of a type "
            "that transformers has itself, or build the network in your code and give the module as the backbone."
        ) from error
