"""`headstart serve RUN`: a model behind HTTP, for programs and for people."""

from __future__ import annotations

import argparse
from pathlib import Path

from headstart.cli.arguments import positive
from headstart.errors import missing_dependency

_DESCRIPTION = """\
Serve the model that `headstart fit` left in RUN: POST /predict takes photos as files or texts as JSON, and / is a page to
try it on. What is asked at the same time is computed together. Ctrl-C or SIGTERM ends it when all is answered.
"""


def run(arguments: list[str]) -> int:
    """Serve until told to end; give the exit code.

    Args:
        arguments: What follows `headstart serve`.

    Returns:
        0: to be ended is how a server ends.
    """
    options = _parser().parse_args(arguments)
    try:
        import python_multipart  # noqa: F401 (starlette asks for it when a file comes)

        from headstart.serving.app import make_app
        from headstart.serving.server import serve
    except ModuleNotFoundError as error:
        if error.name in {"fastapi", "uvicorn", "python_multipart", "pydantic", "starlette"}:
            raise missing_dependency(error.name, needed_for="`headstart serve`", extra="serve") from None
        raise
    from headstart.artefact import load_artefact, read_metadata
    from headstart.serving.limits import Limits
    from headstart.serving.predictor import Predictor, what_it_takes
    from headstart.settings import choose_device

    metadata = read_metadata(options.run)
    model = load_artefact(options.run)
    takes = what_it_takes(model, metadata)
    limits = Limits.of(
        takes,
        max_body=options.max_body,
        max_samples=options.max_samples,
        max_pixels=options.max_pixels,
        max_characters=options.max_characters,
        queue_size=options.queue_size,
        batch_size=options.batch_size,
        timeout=options.timeout,
    )
    device = choose_device(options.accelerator, "auto")
    predictor = Predictor(model, takes=takes, device=device, precision=options.precision)
    serve(
        make_app(predictor, metadata, limits),
        host=options.host,
        port=options.port,
        limits=limits,
        say=lambda address: print(f"{options.run} is served at {address} Ctrl-C ends it.", flush=True),
    )
    print("Ended.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headstart serve", description=_DESCRIPTION)
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="the folder that `headstart fit` wrote")
    add(
        "--host",
        default="127.0.0.1",
        help="the address to listen on; 0.0.0.0 for all (default: 127.0.0.1, this machine alone)",
    )
    add("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    add(
        "--batch_size",
        type=positive,
        default=32,
        help="samples that are computed together at most (default: 32)",
    )
    add(
        "--queue_size",
        type=positive,
        default=256,
        help="samples that may wait; more are answered with 503 (default: 256)",
    )
    add("--max_samples", type=positive, default=64, help="photos or texts in a request (default: 64)")
    add(
        "--max_body",
        type=positive,
        help="bytes of a request (default: 20,000,000 for photos, 2,000,000 for texts)",
    )
    add("--max_pixels", type=positive, default=50_000_000, help="of a photo (default: 50,000,000)")
    add("--max_characters", type=positive, default=100_000, help="of a text (default: 100,000)")
    add(
        "--timeout",
        type=float,
        default=30.0,
        help="seconds to read a request in, and to answer it in (default: 30)",
    )
    add("--accelerator", default="auto", help="auto, cpu, gpu, cuda or mps (default: auto)")
    add("--precision", default="32-true", help="number format, as for fit (default: 32-true)")
    return parser
