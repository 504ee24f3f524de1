"""Helper functions that several targets share. No runtime is imported here."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from edgekit.core.errors import ConversionError, TargetError
from edgekit.core.values import (
    Artifact,
    Batches,
    DeployableGraph,
    Float32,
    Normalization,
    Recipe,
    SessionOptions,
    Size,
    UInt8,
)


def threads(options: SessionOptions) -> int:
    """The asked number of threads, or as many cores as this process may use."""
    if options.threads is not None:
        return options.threads
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_frame(frame: UInt8, artifact: Artifact) -> None:
    """Raise TargetError unless ``frame`` is uint8 [1, H, W, 3] at the artifact's size."""
    expected = (1, artifact.size.height, artifact.size.width, 3)
    if frame.shape != expected or frame.dtype != np.uint8:
        raise TargetError(
            f"a frame must be uint8 {list(expected)}, not {frame.dtype} {list(frame.shape)}: resize it first"
        )


def normalized(batches: Batches, normalization: Normalization) -> Iterator[Float32]:
    """One pass of calibration frames as the network's input: float32 [1, 3, H, W]."""
    scale, offset = normalization.scale(), normalization.offset()
    for frame in batches():
        yield np.ascontiguousarray((frame * scale + offset).transpose(0, 3, 1, 2))


def require_batches(recipe: Recipe, batches: Batches | None) -> Batches:
    """The calibration batches of an int8 recipe; raises ConversionError when there are none."""
    if batches is None:
        raise ConversionError(f"{recipe.precision} needs calibration frames: name them with --calib")
    return batches


def native_output(graph: DeployableGraph, recipe: Recipe) -> str:
    """What a model with labels or logits as its output gives, as a manifest words it."""
    if recipe.output == "logits":
        return f"float32 [1,{len(graph.class_names)},{graph.logits_size.height},{graph.logits_size.width}]"
    return f"uint8 [1,{graph.size.height},{graph.size.width}]"


def decode_logits(logits: Float32, size: Size) -> UInt8:
    """Labels of float logits [1, C, h, w] at full size, bilinear with half-pixel centres: uint8 [1, H, W].

    The plain path, for sessions without torch: rows are interpolated in blocks, so that the full-size logits never exist
    at once.
    """
    _, _, height, width = logits.shape
    rows, columns = _interpolation(height, size.height), _interpolation(width, size.width)
    wide = np.einsum("cij,jx->cix", logits[0], columns.T, optimize=True)
    labels = np.empty((1, size.height, size.width), np.uint8)
    for top in range(0, size.height, 64):
        block = np.einsum("yi,cix->cyx", rows[top : top + 64], wide, optimize=True)
        labels[0, top : top + 64] = block.argmax(0)
    return labels


def _interpolation(length: int, target: int) -> Float32:
    """Bilinear interpolation along one axis as a matrix: float32 [target, length]."""
    position = np.clip((np.arange(target) + 0.5) * (length / target) - 0.5, 0, None)
    low = np.minimum(position.astype(np.int64), length - 1)
    high = np.minimum(low + 1, length - 1)
    weight = (position - low).astype(np.float32)
    matrix = np.zeros((target, length), np.float32)
    np.add.at(matrix, (np.arange(target), low), 1 - weight)
    np.add.at(matrix, (np.arange(target), high), weight)
    return matrix
