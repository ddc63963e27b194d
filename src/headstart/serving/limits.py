"""What one request may cost, and all of them together."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from headstart.errors import MisconfigurationError

#: What a model takes: photos, texts, or pairs of texts.
Takes = Literal["photos", "texts", "pairs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the server takes on. Beyond it, a request is answered with 413, 408, 503 or 504.

    Attributes:
        max_body: Bytes of a request, counted while they are read.
        max_bodies: Bytes of all requests that are being read or answered.
        max_samples: Photos, texts or pairs in a request.
        max_pixels: Of a photo, unpacked.
        max_characters: Of a text.
        queue_size: Samples of all requests that wait or are computed.
        batch_size: Samples that are computed together.
        timeout: Seconds in which a request must have been read, and then again in which it must be answered.

    Example:
        >>> Limits.of("texts", timeout=5).max_body
        2000000
    """

    max_body: int = 20_000_000
    max_bodies: int = 200_000_000
    max_samples: int = 64
    max_pixels: int = 50_000_000
    max_characters: int = 100_000
    queue_size: int = 256
    batch_size: int = 32
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) > 0:
                raise MisconfigurationError(
                    f"{each.name} is {getattr(self, each.name)}; expected a number above 0."
                )
        if self.max_samples > self.queue_size:
            raise MisconfigurationError(
                f"max_samples is {self.max_samples} and queue_size {self.queue_size}: such a request would never find room. "
                "Give a queue at least as long as the largest request."
            )

    @classmethod
    def of(cls, takes: Takes, *, max_body: int | None = None, **values: float) -> Limits:
        """Give the limits for a kind of model: texts need much smaller bodies than photos.

        Args:
            takes: What the model takes.
            max_body: Bytes of a request; `None` takes 20 MB for photos and 2 MB for texts.
            **values: The other limits.
        """
        if max_body is None:
            max_body = 20_000_000 if takes == "photos" else 2_000_000
        return cls(max_body=max_body, max_bodies=max(200_000_000, max_body), **values)  # type: ignore[arg-type]
