"""Image files: read as RGB whatever their kind, checked by decoding them, and as datasets."""

from __future__ import annotations

import errno
import os
import struct
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from torch.utils.data import Dataset

from headstart.data.report import SetAside
from headstart.errors import DataError, missing_dependency

if TYPE_CHECKING:
    from PIL import Image

#: A file with one of these is meant to be an image; any other file is one if it decodes as one.
IMAGE_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
    }
    | {".tif", ".tiff", ".webp"}
)

#: Larger images are refused by their header: unpacked, one would take half a gigabyte and more.
MAX_PIXELS = 178_956_970  # where Pillow draws the line too, unless a program has moved it

# What is read as an image, whatever the file is called. Others (EPS) are handed to programs outside of this process.
_FORMATS = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PNG",
    "PPM",
    "TGA",
    "TIFF",
    "WEBP",
)

# What operating systems and tools leave behind, beside the names that begin with a dot.
_SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"})


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's data.

    Example:
        >>> [is_hidden(name) for name in (".ipynb_checkpoints", "Thumbs.db", "cat.jpg")]
        [True, True, False]
    """
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


def is_image_name(path: Path) -> bool:
    """Whether the name says that this is an image."""
    return path.suffix.casefold() in IMAGE_SUFFIXES


def visible_children(folder: Path) -> tuple[list[Path], int]:
    """Give a folder's files and folders by name, and the number of hidden ones that were left out."""
    try:
        children = sorted(folder.iterdir(), key=lambda path: _normal(path.name))
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read: {error.strerror}. Check its name and permissions."
        ) from error
    visible = [path for path in children if not is_hidden(path.name)]
    return visible, len(children) - len(visible)


def files_below(folder: Path) -> tuple[list[Path], int]:
    """Give all files below a folder, in an order that does not depend on the file system.

    Links to folders are followed, each folder is entered once.

    Returns:
        The files, and the number of hidden files and folders that were left out (a hidden folder counts as one).
    """
    files: list[Path] = []
    num_hidden = 0
    entered: set[str] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        if (real := os.path.realpath(current)) in entered:
            continue
        entered.add(real)
        children, hidden = visible_children(current)
        num_hidden += hidden
        waiting += [child for child in children if child.is_dir()]
        files += [child for child in children if not child.is_dir()]
    return sorted(files, key=lambda path: _normal(path.as_posix())), num_hidden


def key_below(path: Path, root: Path) -> str:
    """Give the path below `root`, spelt the same on every system (macOS decomposes accents)."""
    return _normal(path.relative_to(root).as_posix())


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


# ---- reading


def open_image(path: str | Path) -> Image.Image:
    """Give an image file as it is to be seen: RGB, 8 bits a channel, upright.

    Grey and palette images become RGB; 16-bit ones are scaled, not clipped, to 8 bits; transparent parts become white;
    a camera's orientation mark (EXIF) is applied; of an animation, the first picture is taken.

    Raises:
        DataError: If the file is missing, damaged or no image; the message names it.
    """
    path = Path(path)
    try:
        return _decode(path)
    except Exception as error:  # a damaged file can raise anything in a decoder
        if is_no_damage(error):
            raise
        raise DataError(f"{path}: {_reason(path, error)}") from error


def read_image(file: BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Give an image that is no file on a disk (an upload, say), as `open_image` gives one that is.

    Args:
        file: Its bytes, to be read from their beginning.
        max_pixels: A larger image is refused by its header.

    Raises:
        DataError: If it is damaged, no image or too large; the message is the reason alone.

    Example:
        >>> import io
        >>> read_image(io.BytesIO(b"GIF89a, they say"))
        Traceback (most recent call last):
        headstart.errors.DataError: not an image
    """
    try:
        return _decode(file, max_pixels=max_pixels)
    except Exception as error:  # a damaged image can raise anything in a decoder
        if is_no_damage(error):
            raise
        raise DataError(_reason(file, error, max_pixels=max_pixels)) from error


def image_size(file: BinaryIO, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Give width and height in pixels by the header of an image; nothing is unpacked.

    Raises:
        DataError: If it is no image, or has more pixels; the message is the reason alone.
    """
    try:
        with _opened(file, max_pixels=max_pixels) as image:
            return image.size
    except Exception as error:  # a damaged image can raise anything in a decoder
        if is_no_damage(error):
            raise
        raise DataError(_reason(file, error, max_pixels=max_pixels)) from error


def _decode(source: Path | BinaryIO, *, small: bool = False, max_pixels: int = MAX_PIXELS) -> Image.Image:
    with _opened(source, max_pixels=max_pixels) as image:
        if small:
            image.draft("RGB", (32, 32))
        image.load()
        return to_rgb(image)


def _opened(source: Path | BinaryIO, *, max_pixels: int) -> Image.Image:
    """Give an image of which the header alone was read."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_dependency("PIL", needed_for="images", extra="images") from error

    if not isinstance(source, Path):
        source.seek(0)
    elif source.exists() and not source.is_file():
        raise IsADirectoryError("not a file")  # opening a named pipe would wait for ever
    image = Image.open(source, formats=_known_formats())
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise ValueError(
            f"{width:,} x {height:,} pixels, more than the {max_pixels:,} that are read; scale it down"
        )
    return image


@cache
def _known_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def to_rgb(image: Image.Image) -> Image.Image:
    """Give an image in RGB, upright, 8 bits a channel; what is transparent becomes white.

    Raises:
        ValueError: If its pixels lie outside of what they can mean.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        pixels = np.asarray(image)  # (H, W)
        # A floating-point image holds 0 to 1, an integer one (older readers give 16 bits as "I") 0 to 65535.
        top = 1.0 if image.mode == "F" else 65535
        if not (pixels.min() >= 0 and pixels.max() <= top):
            raise ValueError(f"pixels of mode {image.mode!r} outside 0 to {top}; save it with 8 or 16 bits")
        scaled = np.rint(pixels.astype(np.float64) * (255 / top)).astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if image.mode in {"RGBA", "RGBa", "LA", "La", "PA"} or "transparency" in image.info:
        # Dropping alpha would show whatever colour lies under the transparent parts.
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")


def is_no_damage(error: Exception) -> bool:
    """Whether what was raised while a sample was read says nothing of the sample: this program, or this process, lacks something."""
    return isinstance(error, ImportError) or getattr(error, "errno", None) in {errno.EMFILE, errno.ENFILE}


def _reason(source: Path | BinaryIO, error: Exception, *, max_pixels: int = MAX_PIXELS) -> str:
    """What is wrong with a file, in words without its name."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, FileNotFoundError) and isinstance(source, Path):
        return "a link to a file that is missing" if source.is_symlink() else "no such file"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than the {max_pixels:,} pixels that are read; scale it down"  # or as many as the program allows
    if isinstance(error, UnidentifiedImageError):
        size = source.stat().st_size if isinstance(source, Path) else source.seek(0, os.SEEK_END)
        return "an empty file" if size == 0 else "not an image"
    if isinstance(error, struct.error | EOFError | IndexError):
        return "a damaged image"  # the decoders' own words would not help
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


# ---- checking


def check_images(paths: Sequence[Path]) -> list[str | None]:
    """Give for each file the reason why it cannot be read, or `None` where it can.

    Each file is decoded to its end, on several threads (decoders release Python's lock).

    Args:
        paths: The files.
    """
    if not paths:
        return []
    num_threads = min(8, (os.cpu_count() or 1) + 1)
    # `ThreadPool` drops what is waiting when it is left, so Ctrl-C does not wait for thousands of files.
    with truncated_is_an_error(), ThreadPool(num_threads) as pool:
        return list(pool.imap(why_unreadable, paths, chunksize=8))


def why_unreadable(source: Path | BinaryIO) -> str | None:
    """Give the reason why an image cannot be read, or `None` where it can."""
    try:
        _decode(source, small=True)  # a JPEG is read whole and unpacked at an eighth: more than twice as fast
    except Exception as error:  # a damaged file can raise anything in a decoder
        if is_no_damage(error):
            raise
        return _reason(source, error)
    return None


@contextmanager
def truncated_is_an_error() -> Iterator[None]:
    """Other libraries set PIL to fill up truncated files with grey; the check must not."""
    try:
        from PIL import ImageFile
    except ImportError as error:
        raise missing_dependency("PIL", needed_for="images", extra="images") from error

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def open_images(paths: Sequence[str | Path]) -> tuple[list[Path], list[SetAside]]:
    """Give the readable images among files and folders, and those that are not, with the reason.

    Of a folder, every file that decodes is taken, as training does, hidden files left out; of the others in it, those are answered
    for whose name says that they are images. Files that were named are all answered for.

    Args:
        paths: Files and folders.

    Returns:
        The images in the given order (a folder's by name), and what was set aside.

    Raises:
        DataError: If there is no file or folder of a name.
    """
    found: list[Path] = []
    is_meant_to_be_one: list[bool] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = files_below(path)[0]
            found += files
            is_meant_to_be_one += map(is_image_name, files)
        elif path.exists():
            found.append(path)
            is_meant_to_be_one.append(True)
        else:
            raise DataError(f"There is no file or folder {str(path)!r}.")
    reasons = check_images(found)
    readable = [path for path, reason in zip(found, reasons, strict=True) if reason is None]
    set_aside = [
        SetAside(str(path), reason)
        for path, reason, is_meant in zip(found, reasons, is_meant_to_be_one, strict=True)
        if reason is not None and is_meant
    ]
    return readable, set_aside


# ---- datasets

#: From an RGB image to what a batch is made of: a float tensor (3, H, W).
Transform = Callable[["Image.Image"], Any]


class ImageFiles(Dataset[Any]):
    """Images as a dataset: `dataset[i]` is `transform(image)`, or the RGB image itself without a transform."""

    def __init__(self, paths: Sequence[str | Path], transform: Transform | None = None) -> None:
        self.paths = [Path(path) for path in paths]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        image = open_image(self.paths[index])
        return image if self.transform is None else self.transform(image)


class LabelledImages(Dataset[Any]):
    """Images and their classes as a dataset: `dataset[i]` is `(transform(image), class index)`.

    Args:
        images: Paths, or a dataset of images with an attribute `transform`.
        targets: Class indices.
        transform: What is done to each image.
    """

    def __init__(
        self,
        images: Sequence[str | Path] | Dataset[Any],
        targets: Sequence[int],
        *,
        transform: Transform | None = None,
    ) -> None:
        self.images: Any = images
        if isinstance(images, Sequence):
            self.images = ImageFiles(images)
        self.images.transform = transform
        self.targets = list(targets)

    @property
    def transform(self) -> Transform | None:
        """What is done to each image; may be set at any time before the loader is made."""
        transform: Transform | None = self.images.transform
        return transform

    @transform.setter
    def transform(self, transform: Transform | None) -> None:
        self.images.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index], self.targets[index]
