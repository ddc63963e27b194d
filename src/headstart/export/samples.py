"""The samples on which an export is compared with its run: from the run's data where that is there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data import open_image, open_images, read_rows
from headstart.data.images import files_below, is_image_name
from headstart.errors import DataError
from headstart.export.source import Source

NUM_SAMPLES = 16

#: A photo (a file, or an image of Pillow), a text, or a pair of texts.
Sample = Any


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples, and where they are from.

    Attributes:
        values: One or more.
        origin: In words.
        are_real: `False` for random ones.
    """

    values: Sequence[Sample]
    origin: str
    are_real: bool


def samples_for(source: Source, given: Sequence[str] = ()) -> Samples:
    """Give up to 16 samples, spread evenly over what there is.

    Args:
        source: The run.
        given: Files or folders of photos, or tables of texts; without any, the run's own data, and where that is gone,
            random inputs.

    Raises:
        DataError: If samples were given, and none can be read.
    """
    if given:
        values = _read(source, given)
        if not values:
            raise DataError(
                f"--samples {' '.join(given)}: nothing there can be read. Give photos or folders of photos, or for texts a "
                "table (CSV, TSV, JSON lines, Parquet)."
            )
        more = f" and {len(given) - 1} more" if len(given) > 1 else ""
        return Samples(values, f"{given[0]}{more}", are_real=True)
    data = (source.metadata.get("data") or {}).get("source")
    if data is not None and Path(data).exists():
        with suppress(DataError):  # texts that are no table: a Hugging Face dataset, tar files
            if values := _read(source, [data]):
                return Samples(values, str(data), are_real=True)
    where = "the run names no data" if data is None else f"{data} cannot be read from here"
    return Samples(_random(source), f"random inputs ({where}; --samples takes real ones)", are_real=False)


def opened(photo: Sample) -> Any:
    """Give a photo as an RGB image."""
    return open_image(photo) if isinstance(photo, str | Path) else photo


def _read(source: Source, places: Sequence[str]) -> list[Sample]:
    if source.model.kind == "text":
        columns = (source.metadata.get("data") or {}).get("text_columns")
        return _spread([text for place in places for text in read_rows(place, text_columns=columns)[0].texts])
    files: list[Path] = []
    for place in map(Path, places):
        if not place.exists():
            raise DataError(f"--samples {place}: there is no such file or folder.")
        files += (
            [file for file in files_below(place)[0] if is_image_name(file)] if place.is_dir() else [place]
        )
    # More than are needed: some may be damaged.
    readable, _ = open_images(_spread(files, limit=4 * NUM_SAMPLES))
    return _spread(readable)


def _spread(found: Sequence[Sample], limit: int = NUM_SAMPLES) -> list[Sample]:
    step = max(1, -(-len(found) // limit))
    return list(islice(found[::step], limit))


def _random(source: Source) -> list[Sample]:
    generator = np.random.default_rng(0)
    if source.model.kind == "images":
        from PIL import Image

        shape = (300, 400, 3)
        return [
            Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)) for _ in range(NUM_SAMPLES)
        ]
    tokenizer = source.model.preprocessing.tokenizer  # type: ignore[union-attr]  # of a text model

    def text() -> str:
        length = int(generator.integers(1, 60))
        return str(tokenizer.decode(generator.integers(0, len(tokenizer), length), skip_special_tokens=True))

    if source.facts["texts_per_sample"] == 2:
        return [(text(), text()) for _ in range(NUM_SAMPLES)]
    return [text() for _ in range(NUM_SAMPLES)]
