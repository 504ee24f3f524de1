"""From class logits at low resolution to the label map at full resolution, exactly and without the full-size logits.

``edgekit_decode.h`` beside this file is the decoder itself: one C header that an app includes. :func:`decode` runs
that header here, compiled on first use by the machine's C compiler, or the same arithmetic in numpy where there is none.
Both give the same labels, bit for bit. Importing this module compiles nothing and needs only numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import DataError
from edgekit.core.values import Size, UInt8
from edgekit.decoder import compiled, plain

__all__ = ["HEADER", "decode", "path"]

HEADER: Path = compiled.HEADER
"""The C header, to be copied into an app."""

DTYPES = ("float32", "float16", "int8", "uint8")
MAXIMUM_SIDE = 65536
MAXIMUM_CLASSES = 256


def decode(
    logits: NDArray[Any],
    size: Size | tuple[int, int],
    *,
    layout: Literal["CHW", "HWC"] | None = None,
    threads: int = 1,
    out: UInt8 | None = None,
) -> UInt8:
    """Labels of a logits map at full size: bilinear with half-pixel centres, then argmax, ties to the lowest class.

    Equal to ``reference_labels`` of :mod:`edgekit.export.graph` but for ties within float32 rounding. A logit is
    limited to -1e38..1e38 first, and a NaN counts as -1e38. Quantized logits must have one scale (positive) and one zero
    point for all classes: then neither changes the labels.

    Args:
        logits: float32, float16, int8 or uint8, C of 1 to 256, any strides.
        size: height and width of the label map, 1 to 65536 each; smaller than h x w is allowed too (no antialias).
        layout: ``CHW`` for logits [C, h, w], ``HWC`` for [h, w, C], which is read as it lies. Without it they are [C, h, w], and
            refused where only [h, w, C] has the label map's proportions.
        threads: how many threads share the rows; only the compiled decoder uses more than one.
        out: uint8 [H, W] to write to, columns beside one another; a fresh array when it is None. In a loop, one array
            used again saves the time the system needs for fresh memory.

    Returns:
        uint8 [H, W] of class numbers; ``out`` where that was given.

    Raises:
        DataError: an argument is not what it should be. A compiler that is missing or fails is no error.
    """
    height, width = (size.height, size.width) if isinstance(size, Size) else size
    _check(logits, height, width, threads)
    if layout not in (None, "CHW", "HWC"):
        raise DataError(f"there is no layout {layout!r}: CHW is [classes, h, w], HWC is [h, w, classes]")
    if layout is None and _has_classes_last(logits.shape, height, width):
        raise DataError(
            f"logits {list(logits.shape)} for labels of {height}x{width} look like [h, w, classes]: pass layout='HWC', or "
            "layout='CHW' if the classes are first"
        )
    if layout == "HWC":
        logits = logits.transpose(2, 0, 1)
    if not 1 <= logits.shape[0] <= MAXIMUM_CLASSES:
        raise DataError(f"logits must have 1 to {MAXIMUM_CLASSES} classes, not {logits.shape[0]}")
    sides = (logits.shape[1], logits.shape[2], height, width)
    if not all(isinstance(side, (int, np.integer)) and 1 <= side <= MAXIMUM_SIDE for side in sides):
        raise DataError(
            f"logits of {logits.shape[1]}x{logits.shape[2]} cannot become labels of {height}x{width}: "
            f"every side must be 1 to {MAXIMUM_SIDE}"
        )
    if out is None:
        out = np.empty((height, width), np.uint8)
    elif not _is_map(out, height, width):
        raise DataError(
            f"out must be a writable uint8 array [{height}, {width}] whose columns lie beside one another: "
            "without it you get a fresh one"
        )
    library = compiled.load().library
    if library is None:
        plain.decode(logits, out)
    else:
        library.decode(logits, out, threads)
    return out


def path() -> str:
    """Which decoder is in use and why: ``compiled by cc 12.2.0 (avx512)`` or ``numpy: no C compiler found ...``.

    The first call compiles, as the first :func:`decode` does.
    """
    return compiled.load().description


def _is_map(out: Any, height: int, width: int) -> bool:
    return (
        isinstance(out, np.ndarray)
        and out.dtype == np.uint8
        and out.shape == (height, width)
        and out.flags.writeable
        and (width == 1 or out.strides[1] == 1)
        and (height == 1 or out.strides[0] >= width)
    )


def _check(logits: Any, height: Any, width: Any, threads: int) -> None:
    if not isinstance(logits, np.ndarray) or logits.ndim != 3 or logits.dtype.name not in DTYPES:
        what = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, np.ndarray) else type(logits).__name__
        raise DataError(f"logits must be a numpy array [classes, h, w] of {', '.join(DTYPES)}, not {what}")
    if threads < 1:
        raise DataError(f"threads must be at least 1, not {threads}")


def _has_classes_last(shape: tuple[int, ...], height: int, width: int) -> bool:
    """Whether a map of logits has the label map's proportions only if its classes are last."""

    def fits(h: int, w: int) -> bool:
        return abs(h * width - w * height) <= max(height, width)  # a row or column more or less, as strides round

    return fits(shape[0], shape[1]) and not fits(shape[1], shape[2]) and shape[2] <= MAXIMUM_CLASSES
