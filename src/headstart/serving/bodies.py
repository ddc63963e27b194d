"""The bodies of requests, read within limits: what is too much is refused while it comes in, not after."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import io
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, BinaryIO

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from headstart.errors import HeadstartError
from headstart.serving.limits import Limits, Takes
from headstart.serving.schemas import REQUESTS, Images, Pairs, Texts

# After a refusal, what a client still sends is thrown away for a while: were the connection closed at once, the
# client's system might throw away the answer, which nobody has read yet.
_LINGER = 2.0  # seconds
_LINGER_BYTES = 100_000_000

# Photos in base64 need a comma each. JSON with more commas and brackets is small to send and large to hold.
_MAX_STRUCTURE = 10_000


class RefusedError(HeadstartError, RuntimeError):
    """A request that is not answered.

    Args:
        status: Of HTTP.
        message: What was received, what was expected, what to do.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.is_read = True  # whether the body came to its end


class Refusal(JSONResponse):
    """The answer to a request that is refused, which reaches the client even where it is still sending."""

    def __init__(self, refused: RefusedError) -> None:
        headers = {"retry-after": "1"} if refused.status == 503 else {}
        if not refused.is_read:
            headers["connection"] = "close"
        super().__init__({"detail": str(refused)}, status_code=refused.status, headers=headers)
        self._is_read = refused.is_read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; then let the client finish, for a while."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        if not self._is_read:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER):
                    await _throw_away(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _throw_away(receive: Receive) -> None:
    num_bytes = 0
    while num_bytes < _LINGER_BYTES:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body"):
            return
        num_bytes += len(message["body"])


@asynccontextmanager
async def within(seconds: float, refused: RefusedError) -> AsyncIterator[None]:
    """Refuse where the block takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise refused from None


class Bodies:
    """Reads bodies within the limits of one and of all.

    Args:
        limits: The limits.
    """

    def __init__(self, limits: Limits) -> None:
        self.held = 0  # bytes of requests that are being read or answered
        self._limits = limits

    @contextmanager
    def counted(self, request: Request) -> Iterator[Request]:
        """Give the request with a body whose bytes count from when they come in to the end of the block.

        Raises:
            RefusedError: While it is read: 413 for more than a request may have, 503 for more than there is room for.
        """
        limits = self._limits
        too_large = RefusedError(
            413,
            f"The request has more than {limits.max_body:,} bytes, the most that is taken. Send less at a time, or smaller "
            "photos.",
        )
        num_bytes, is_read = 0, False

        async def receive() -> Message:
            nonlocal num_bytes, is_read
            message = await request.receive()
            if message["type"] == "http.request":
                is_read = not message.get("more_body", False)
                num_bytes += len(message.get("body", b""))
                self.held += len(message.get("body", b""))
                if num_bytes > limits.max_body:
                    raise too_large
                if self.held > limits.max_bodies:
                    raise RefusedError(
                        503,
                        "The server holds as many bytes of requests as it has room for. Try again in a moment.",
                    )
            return message

        try:
            if int(request.headers.get("content-length", 0)) > limits.max_body:
                raise too_large
            yield Request(request.scope, receive)
        except RefusedError as refused:
            refused.is_read = is_read
            raise
        finally:
            self.held -= num_bytes


# ---- what is in them


@asynccontextmanager
async def samples_of(
    request: Request, *, takes: Takes, limits: Limits
) -> AsyncIterator[tuple[list[str | None], list[Any]]]:
    """Give the names of a request's files (`None` for what came as JSON), and its photos as files, texts or pairs.

    The files are closed at the end of the block.

    Args:
        request: Its body is counted.
        takes: What the model takes.
        limits: The limits.

    Raises:
        RefusedError: If the body is no such thing, in words for whoever sent it.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(
            415,
            f"The body is compressed ({request.headers['content-encoding'][:40]!r}); send it as it is, without "
            "Content-Encoding.",
        )
    late = RefusedError(
        408,
        f"The request was not read to its end within {limits.timeout:g} seconds. Send it faster, or less.",
    )
    if content_type == "application/json":
        async with within(limits.timeout, late):
            body = await request.body()
        samples = _json_samples(body, takes=takes, limits=limits)
        yield [None] * len(samples), samples
    elif content_type == "multipart/form-data" and takes == "photos":
        async with within(limits.timeout, late):
            files = await _files(request, limits)
        try:
            yield [file.filename for file in files], [file.file for file in files]
        finally:
            for file in files:
                await file.close()
    else:
        what = f"content type is {content_type[:80]!r}" if content_type else "request names no content type"
        raise RefusedError(415, f"The {what}; expected {_EXPECTED[takes]}.")


_EXPECTED: dict[Takes, str] = {
    "photos": (
        "multipart/form-data with files (curl -F file=@photo.jpg ADDRESS/predict), or application/json such as "
        '{"images": ["BASE64"]}'
    ),
    "texts": 'application/json such as {"texts": ["a text"]}',
    "pairs": 'application/json such as {"pairs": [["a text", "another"]]}',
}


def _refuse_too_many(number: int, limits: Limits) -> None:
    if number > limits.max_samples:
        raise RefusedError(
            413,
            f"The request has {number:,} samples; expected up to {limits.max_samples}. Send several requests.",
        )


async def _files(request: Request, limits: Limits) -> list[UploadFile]:
    parser = MultiPartParser(
        request.headers, request.stream(), max_files=limits.max_samples, max_fields=limits.max_samples
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RefusedError(
            400,
            f"The files cannot be read: {error.message} Expected multipart/form-data with 1 to {limits.max_samples} files: "
            "curl -F file=@photo.jpg ADDRESS/predict",
        ) from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files or len(files) < len(form.multi_items()):
        await form.close()
        fields = ", ".join(repr(name[:40]) for name, value in form.multi_items() if isinstance(value, str))
        raise RefusedError(
            422,
            f"The request has {len(files)} files, and fields that are none: {fields or 'nothing'}. Expected files alone: "
            "curl -F file=@photo.jpg ADDRESS/predict (the @ makes it a file).",
        )
    return files


def _json_samples(body: bytes, *, takes: Takes, limits: Limits) -> list[Any]:
    if takes == "photos" and sum(map(body.count, (b",", b"[", b"{"))) > _MAX_STRUCTURE:
        raise RefusedError(413, f"The JSON has too many values; expected {_EXPECTED[takes]}.")
    try:
        values = from_json(body)
    except ValueError as error:
        raise RefusedError(422, f"The body is not JSON: {error}. Expected {_EXPECTED[takes]}.") from error
    # A complaint for each key would take more room than they do.
    if not isinstance(values, dict) or len(values) > 1:
        what = f"an object of {len(values):,} keys" if isinstance(values, dict) else type(values).__name__
        raise RefusedError(422, f"The JSON is {what}; expected {_EXPECTED[takes]}.")
    (wanted,) = REQUESTS[takes].model_fields
    if wanted not in values:
        held = f"has {next(iter(values))[:40]!r}" if values else "is empty"
        raise RefusedError(422, f"The JSON {held}; this model takes {takes}: expected {_EXPECTED[takes]}.")
    try:
        content = REQUESTS[takes].model_validate(values)
    except ValidationError as error:
        raise RefusedError(422, f"{_first_problem(error)} Expected {_EXPECTED[takes]}.") from error
    match content:
        case Images():
            _refuse_too_many(len(content.images), limits)
            return [_from_base64(image, number) for number, image in enumerate(content.images, start=1)]
        case Texts():
            _check_texts(content.texts, limits)
            return list(content.texts)
        case Pairs():
            _check_texts([text for pair in content.pairs for text in pair], limits, per_sample=2)
            return [tuple(pair) for pair in content.pairs]


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(each)[:40] for each in first["loc"])
    return f"The JSON is not as expected{f', at {place!r}' if place else ''}: {first['msg'].rstrip('.')}."


def _check_texts(texts: Sequence[str], limits: Limits, *, per_sample: int = 1) -> None:
    _refuse_too_many(len(texts) // per_sample, limits)
    for index, text in enumerate(texts):
        number = index // per_sample + 1
        if not text.strip():
            raise RefusedError(422, f"Text {number} is empty. Leave it out, or send some words.")
        if len(text) > limits.max_characters:
            raise RefusedError(
                413,
                f"Text {number} has {len(text):,} characters; expected up to {limits.max_characters:,}. The model reads only "
                "the beginning of a long text: cut it off.",
            )


def _from_base64(text: str, number: int) -> BinaryIO:
    content = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return io.BytesIO(base64.b64decode(content, validate=True))
    except (binascii.Error, ValueError) as error:
        raise RefusedError(
            422, f"Image {number} is not in base64: {error}. Send the bytes of the image file in base64."
        ) from error
