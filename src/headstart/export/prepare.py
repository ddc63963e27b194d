"""From photos and texts to arrays, by an export's own facts: with Pillow, NumPy and tokenizers, and without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

Arrays = dict[str, npt.NDArray[Any]]

TOKENIZER_FILE = "tokenizer.json"


def pixels_of(photo: Image.Image, preprocessing: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """Give the pixels (H, W, 3) that the network sees of an RGB photo: resized, and the centre cut out.

    Args:
        photo: RGB and upright.
        preprocessing: The entry of that name in `export.json`.

    Example:
        >>> from PIL import Image
        >>> facts = {"resize_shorter_side": 8, "center_crop": 6, "interpolation": "bicubic"}
        >>> pixels_of(Image.new("RGB", (40, 20)), facts).shape
        (6, 6, 3)
    """
    from PIL import Image

    side, size = preprocessing["resize_shorter_side"], preprocessing["center_crop"]
    shorter = min(photo.size)
    # The longer side is rounded down, as torchvision does it.
    resized = photo.resize(
        (int(side * photo.width / shorter), int(side * photo.height / shorter)),
        Image.Resampling[preprocessing["interpolation"].upper()],
    )
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)), dtype=np.uint8)


def save_tokenizer(folder: Path, files: Mapping[str, bytes], *, max_length: int) -> None:
    """Write a tokenizer's files; `tokenizer.json` cuts and pads by itself, wherever it is loaded.

    Args:
        folder: Where to.
        files: What `TextPreprocessing.files` gave.
        max_length: Tokens beyond which a text is cut off.
    """
    from tokenizers import Tokenizer

    for name, content in files.items():
        (folder / name).write_bytes(content)
    settings = json.loads(files["tokenizer_config.json"])
    settings["model_max_length"] = max_length
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), "utf-8")
    tokenizer = Tokenizer.from_str(files[TOKENIZER_FILE].decode())
    pad_token = _token(settings["pad_token"])
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    tokenizer.enable_padding(
        direction=settings.get("padding_side", "right"),
        pad_id=tokenizer.token_to_id(pad_token),
        pad_token=pad_token,
    )
    tokenizer.save(str(folder / TOKENIZER_FILE))


def _token(value: Any) -> str:
    """Older files hold a token as a table, with how it meets the text around it."""
    return str(value["content"] if isinstance(value, Mapping) else value)


def tokens_of(
    texts: Sequence[str] | Sequence[tuple[str, str]], tokenizer_file: Path, names: Sequence[str]
) -> Arrays:
    """Give the tokens (B, T) of texts, or of pairs, by the file alone.

    Args:
        texts: The texts.
        tokenizer_file: The `tokenizer.json` of an export.
        names: The inputs of the network.
    """
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(tokenizer_file)).encode_batch(list(texts))
    values = {
        "input_ids": [each.ids for each in found],
        "attention_mask": [each.attention_mask for each in found],
        "token_type_ids": [each.type_ids for each in found],
    }
    return {name: np.array(values[name], dtype=np.int64) for name in names}
