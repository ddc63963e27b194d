"""The web application: what is asked for under which path."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart import __version__
from headstart.errors import DataError
from headstart.serving.batching import Batcher, QueueFullError
from headstart.serving.bodies import Bodies, Refusal, RefusedError, samples_of, within
from headstart.serving.limits import Limits
from headstart.serving.page import page
from headstart.serving.predictor import Predictor
from headstart.serving.schemas import (
    REQUESTS,
    Health,
    ModelFacts,
    Prediction,
    Predictions,
    Problem,
)

_REFUSALS = {
    400: "The body is damaged",
    408: "The body was not sent in time",
    413: "The body, a text or their number is too large",
    415: "The body is of another type",
    422: "What was sent is not a photo, not a text, or empty",
    500: "The model failed",
    503: "The server is busy: come again",
    504: "The server was too slow",
}


def make_app(predictor: Predictor, metadata: Mapping[str, Any], limits: Limits) -> FastAPI:
    """Give the application of a model.

    Args:
        predictor: The model.
        metadata: What `read_metadata` gives of it.
        limits: What requests may cost.
    """
    batcher = Batcher(predictor.probabilities, batch_size=limits.batch_size, queue_size=limits.queue_size)
    bodies = Bodies(limits)
    statuses: Counter[int] = Counter()
    unpacking = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="unpack")
    facts = facts_of(predictor, metadata, limits)
    html, policy = page(facts)

    @asynccontextmanager
    async def computing(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        unpacking.shutdown(cancel_futures=True)

    # The pages that FastAPI makes of the schema fetch their programs from elsewhere.
    app = FastAPI(
        title="headstart", version=__version__, description=_description(facts), lifespan=computing,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.add_middleware(_Observed, statuses=statuses)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(html, headers={"content-security-policy": policy})

    @app.post(
        "/predict",
        response_model=Predictions,
        response_model_exclude_none=True,
        responses={status: {"model": Problem, "description": what} for status, what in _REFUSALS.items()},
        openapi_extra={"requestBody": {"required": True, "content": _request_schema(predictor)}},
        summary="The classes of photos or texts, with their probabilities",
    )
    async def predict(request: Request) -> Predictions:
        late = RefusedError(
            504, f"There was no answer within {limits.timeout:g} seconds: too many ask. Try again later."
        )
        with bodies.counted(request) as counted:
            async with samples_of(counted, takes=predictor.takes, limits=limits) as (names, samples):
                with batcher.places(len(samples)):
                    async with within(limits.timeout, late):
                        is_packed = predictor.takes == "photos"
                        rows = await batcher.answer(
                            await _unpacked(predictor, samples, names, limits, unpacking)
                            if is_packed
                            else samples
                        )
        return _answer(rows, names, predictor.class_names)

    @app.get("/health", summary="Whether the server runs")
    async def health() -> Health:
        return Health(status="ok", waiting=batcher.taken)

    @app.get("/model", summary="What is served, and how good it is")
    async def model() -> ModelFacts:
        return facts

    @app.get("/metrics", response_class=PlainTextResponse, summary="Counters, for Prometheus")
    async def metrics() -> str:
        return _exposition(batcher, bodies, statuses)

    @app.exception_handler(RefusedError)
    async def refuse(_: Request, refused: RefusedError) -> Response:
        return Refusal(refused)

    @app.exception_handler(HTTPException)
    async def point_the_way(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:80]
        what = (
            f"There is no {path!r}"
            if error.status_code == 404
            else f"{path!r} does not take {request.method}"
        )
        detail = f"{what}. Send {facts.takes} by POST to /predict; GET has /, /model, /health, /metrics and /openapi.json."
        return JSONResponse({"detail": detail}, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(QueueFullError)
    async def refuse_for_now(_: Request, error: QueueFullError) -> Response:
        return Refusal(RefusedError(503, str(error)))

    @app.exception_handler(ClientDisconnect)
    async def nobody_listens(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=400)

    @app.exception_handler(Exception)
    async def fail(_: Request, __: Exception) -> Response:
        statuses[500] += 1  # this answer is given outside of what counts the others
        detail = "The model failed on this request; what happened stands in the server's output."
        return JSONResponse({"detail": detail}, status_code=500)

    return app


def facts_of(predictor: Predictor, metadata: Mapping[str, Any], limits: Limits) -> ModelFacts:
    """Give what there is to say of a model that is served."""
    metrics = metadata.get("metrics") or {}
    calibration = metrics.get("calibration") or {}
    return ModelFacts(
        takes=predictor.takes,
        class_names=predictor.class_names,
        backbone=metadata["backbone"]["name"],
        preprocessing=metadata["preprocessing"],
        temperature=calibration.get("temperature"),
        metrics=metrics,
        created=metadata.get("created") or "",
        versions=metadata["versions"],
        limits=asdict(limits),
    )


async def _unpacked(
    predictor: Predictor,
    files: Sequence[Any],
    names: Sequence[str | None],
    limits: Limits,
    threads: ThreadPoolExecutor,
) -> list[Any]:
    """Give photos as the model sees them; refuse all where one cannot be read, and say which."""
    loop = asyncio.get_running_loop()
    unpack = partial(predictor.unpack, max_pixels=limits.max_pixels)
    found = await asyncio.gather(
        *(loop.run_in_executor(threads, unpack, file) for file in files), return_exceptions=True
    )
    reasons = []
    for number, (name, each) in enumerate(zip(names, found, strict=True), start=1):
        if isinstance(each, DataError):
            reasons.append(f"{repr(name[:100]) if name else f'image {number}'} cannot be read: {each}")
        elif isinstance(each, BaseException):
            raise each
    if reasons:
        others = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        nothing = " Nothing was predicted: send the others without it." if len(files) > 1 else ""
        raise RefusedError(
            422, f"{'; '.join(reasons[:3])}{others}. Expected photos (JPEG, PNG, WebP, ...).{nothing}"
        )
    return found


def _answer(
    rows: Sequence[Sequence[float]], names: Sequence[str | None], class_names: Sequence[str]
) -> Predictions:
    predictions = []
    for row, name in zip(rows, names, strict=True):
        probabilities = dict(zip(class_names, row, strict=True))
        best = max(probabilities, key=probabilities.__getitem__)
        predictions.append(
            Prediction(file=name, best=best, probability=probabilities[best], probabilities=probabilities)
        )
    return Predictions(predictions=predictions)


# ---- what others read


def _description(facts: ModelFacts) -> str:
    return f"Classifies {facts.takes} with {facts.backbone}: {len(facts.class_names)} classes."


def _request_schema(predictor: Predictor) -> dict[str, Any]:
    json = {"application/json": {"schema": REQUESTS[predictor.takes].model_json_schema()}}
    if predictor.takes != "photos":
        return json
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
    form = {"type": "object", "properties": {"file": files}, "required": ["file"]}
    return {"multipart/form-data": {"schema": form}, **json}


def _exposition(batcher: Batcher, bodies: Bodies, statuses: Mapping[int, int]) -> str:
    """Give the counters as Prometheus reads them, https://prometheus.io/docs/instrumenting/exposition_formats/."""
    counts = batcher.counts
    values = {
        "samples_total": ("counter", "photos, texts and pairs that were computed", counts.samples),
        "batches_total": ("counter", "batches in which they were computed", counts.batches),
        "largest_batch": ("gauge", "samples of the largest batch", counts.largest_batch),
        "waiting_samples": ("gauge", "samples that wait or are computed", batcher.taken),
        "held_bytes": ("gauge", "bytes of requests that are read or answered", bodies.held),
    }
    lines = [
        line
        for name, (kind, what, value) in values.items()
        for line in (
            f"# HELP headstart_{name} {what}",
            f"# TYPE headstart_{name} {kind}",
            f"headstart_{name} {value}",
        )
    ]
    lines += [
        "# HELP headstart_requests_total requests that were answered",
        "# TYPE headstart_requests_total counter",
        *(f'headstart_requests_total{{status="{status}"}} {n}' for status, n in sorted(statuses.items())),
    ]
    return "\n".join(lines) + "\n"


class _Observed:
    """Counts answers, and tells browsers to take them for what they are."""

    def __init__(self, app: ASGIApp, statuses: Counter[int]) -> None:
        self._app = app
        self._statuses = statuses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._statuses[message["status"]] += 1
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        await self._app(scope, receive, observed)
