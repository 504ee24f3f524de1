"""Image files as arrays: frames as colours, labels as the numbers that they were saved with, and clear words for the rest."""

from __future__ import annotations

import io
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from edgekit.core.errors import DataError
from edgekit.core.values import Int32, Size, UInt8

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF")
"""What is opened, whatever a file's suffix. Pillow knows some forty more, and hands PostScript to Ghostscript, a program."""
LOSSY = ("JPEG", "MPO")
MOST_PIXELS = 64_000_000
"""A larger image is no frame: it would take gigabytes. Four times 8K."""
UNSCALED = ("I", "F")
"""Pillow's modes without a fixed white; converted to RGB they would be cut off at 255."""
STRAY = ("Thumbs.db", "desktop.ini")
_OTHERS = ((b"heic", "HEIC"), (b"heix", "HEIC"), (b"mif1", "HEIC"), (b"msf1", "HEIC"), (b"avif", "AVIF"))
_DAMAGED = (
    UnidentifiedImageError,
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    struct.error,
    NotImplementedError,
    IndexError,
    KeyError,
)
"""Everything Pillow raises on a file it cannot read."""

Image.MAX_IMAGE_PIXELS = None  # MOST_PIXELS is the bound here, in a sentence rather than a warning


def is_stray(path: Path) -> bool:
    """Whether a desktop left this file beside those that were meant: hidden ones, macOS' ``._name.png`` among them."""
    return path.name.startswith(".") or path.name in STRAY


def images_in(folder: Path) -> list[Path]:
    """Image files directly in a folder, by suffix and in order; what a desktop left is passed over."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not is_stray(path))


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image file whose pixels are not decoded yet.

    Raises:
        DataError: missing, no regular file, of a format that edgekit does not name, too large, damaged or truncated; also
            for what is found out while its pixels are decoded in the block.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for without end
            raise DataError(f"{path} is no file: name an image file")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"{path} is {Size(image.height, image.width)}, more than {MOST_PIXELS // 1_000_000} million pixels: bring it to "
                    "the size of a frame first"
                )
            yield image
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: check the path") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} {_what_it_is(path)}") from error
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path} is damaged, or of a kind that cannot be read ({reason}): copy it again, or save it as PNG"
        ) from error


def _what_it_is(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(32)
    for brand, name in _OTHERS:
        if start[4:8] == b"ftyp" and brand in start[8:]:
            return f"is {name}, which edgekit does not read: save it as JPEG or PNG"
    return f"is damaged, or none of the image formats that edgekit reads ({', '.join(FORMATS)}): copy it again, or save it as PNG"


def read_image(path: Path) -> UInt8:
    """An image file as uint8 [H, W, 3] RGB: grey and palettes as the colours they stand for, transparency left out.

    Raises:
        DataError: as :func:`opened`, or of whole numbers or floats that have no fixed white.
    """
    with opened(path) as image:
        if image.mode.split(";")[0] in UNSCALED:
            raise DataError(
                f"{path} holds pixels of more than 8 bits (mode {image.mode}), whose white is not known: save it with 8 "
                "bits a channel"
            )
        # A phone stores its photos as the sensor lay and says in EXIF how to turn them.
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"), np.uint8)


def read_plane(path: Path, values: frozenset[int] | None = None) -> Int32:
    """A label image as int32 [H, W]: the numbers that its pixels were saved with.

    Args:
        values: what its dataset defines; they tell whether a palette of greys or its indices are the labels.

    Raises:
        DataError: as :func:`opened`, of several channels, or compressed in a way that changes numbers.
    """
    if not path.exists():
        raise DataError(f"{path} is missing: every frame needs its label image")
    with opened(path) as image:
        if image.format in LOSSY:
            raise DataError(
                f"{path} is a JPEG, whose compression changes the labels at every border: save masks as PNG"
            )
        plane = np.asarray(image)
        if plane.ndim != 2:
            raise DataError(
                f"{path} has {plane.ndim} dimensions, not a plane of label values: use the dataset's label images"
            )
        if plane.dtype.kind == "f":
            raise DataError(f"{path} holds fractions (mode {image.mode}): save labels as whole numbers")
        if image.mode == "P":
            plane = _grey_labels(plane, image.getpalette("RGB") or [], values)
        numbers = plane.astype(np.int32)
        return numbers // _scale(path, image)


def _scale(path: Path, image: Image.Image) -> int:
    """What Pillow multiplied a grey PNG of 2 or 4 bits by, to spread it over a byte."""
    if image.format != "PNG" or image.mode != "L":
        return 1
    with path.open("rb") as file:
        depth = file.read(26)[24]
    return {2: 85, 4: 17}.get(depth, 1)


def _grey_labels(indices: UInt8, palette: list[int], values: frozenset[int] | None) -> UInt8:
    """Labels of a palette image: its indices, as VOC's are; or its greys, where these alone are labels of the dataset.

    A tool that saves space gives a grey label image a palette, in an order of its own. One that makes labels visible
    spreads greys over a byte, so that they are no labels.
    """
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette) // 3] = np.asarray(palette, np.uint8).reshape(-1, 3)
    used = np.unique(indices)
    greys = colours[used]
    if (greys != greys[:, :1]).any() or (greys[:, 0] == used).all() or len(set(greys[:, 0].tolist())) < len(used):
        return indices
    if values is None or not set(greys[:, 0].tolist()) <= values:
        return indices
    labels: UInt8 = colours[:, 0][indices]
    return labels


def png(pixels: UInt8) -> bytes:
    """uint8 [H, W] or [H, W, 3] as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
