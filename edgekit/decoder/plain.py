"""The decoder in numpy, for machines without a C compiler: the same arithmetic, so the same labels, bit for bit.

Between four neighbouring source points every interpolated value is a convex combination of the four: a class that leads
at all of them leads everywhere between them. Only the other cells are interpolated, and only for the classes that can
win there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit.core.values import Float32, Int64, UInt8

LIMIT = np.float32(1e38)
PIXELS, LOGITS = 1 << 18, 1 << 20
"""How many pixels and how many logits of each corner are worked on at once: some megabytes each."""


class _Axis(NamedTuple):
    """One axis of the label map.

    low: int64 [target], the source point before each position. weights: float32 [2, target], that point's weight and the
    next one's. starts: int64 [length + 1], the first position after each source point.
    """

    low: Int64
    weights: Float32
    starts: Int64


def decode(logits: NDArray[Any], out: UInt8) -> None:
    """Write the labels of logits [C, h, w] to ``out`` uint8 [H, W]. The arguments are checked by the caller."""
    _, height, width = logits.shape
    rows, columns = _axis(height, out.shape[0]), _axis(width, out.shape[1])
    values = limited(logits)
    leaders = _leaders(values)
    np.take(leaders[:, columns.low], rows.low, axis=0, out=out)
    down, right = np.minimum(np.arange(height) + 1, height - 1), np.minimum(np.arange(width) + 1, width - 1)
    below = leaders[down]
    undecided = (leaders != leaders[:, right]) | (leaders != below) | (leaders != below[:, right])
    tall, wide = np.diff(rows.starts), np.diff(columns.starts)
    for row_count in map(int, np.unique(tall[tall > 0])):  # cells of one size in pixels are interpolated together
        for column_count in map(int, np.unique(wide[wide > 0])):
            y, x = np.nonzero(undecided & (tall == row_count)[:, None] & (wide == column_count))
            block = max(1, min(row_count, PIXELS // column_count))
            cells = max(1, min(PIXELS // (block * column_count), LOGITS // len(values)))
            for first in range(0, len(y), cells):
                i, j = y[first : first + cells], x[first : first + cells]
                corners = [values[:, row, column] for row in (i, down[i]) for column in (j, right[j])]
                at_x = columns.starts[j, None] + np.arange(column_count)
                for offset in range(0, row_count, block):
                    at_y = rows.starts[i, None] + np.arange(offset, min(offset + block, row_count))
                    out[at_y[:, :, None], at_x[:, None, :]] = _interpolated(
                        corners, rows.weights[:, at_y], columns.weights[:, at_x]
                    )


def limited(logits: NDArray[Any]) -> Float32:
    """Logits as float32 in -1e38..1e38, NaN as -1e38, so that interpolating neither overflows nor meets a NaN."""
    values: Float32 = np.ascontiguousarray(logits, dtype=np.float32)
    if np.issubdtype(logits.dtype, np.integer):
        return values
    values = np.where(values > -LIMIT, values, -LIMIT)  # a NaN is above nothing (fmax let a signalling one through)
    return np.minimum(values, LIMIT, out=values)


def _axis(length: int, target: int) -> _Axis:
    """In integers (over 2 * target) but for the last division, so that the weights are the nearest floats."""
    position = np.maximum((2 * np.arange(target, dtype=np.int64) + 1) * length - target, 0)
    low = position // (2 * target)
    rest = position % (2 * target)
    weights = np.stack([2 * target - rest, rest]).astype(np.float32) / np.float32(2 * target)
    return _Axis(low, weights, np.searchsorted(low, np.arange(length + 1)).astype(np.int64))


def _leaders(values: Float32) -> UInt8:
    """Argmax over the classes, ties to the lowest: float32 [C, h, w] -> uint8 [h, w].

    numpy's own argmax over the first axis copies the whole map to turn it.
    """
    best = values[0].copy()
    leaders = np.zeros(best.shape, np.uint8)
    for label in range(1, len(values)):
        above = values[label] > best
        np.copyto(best, values[label], where=above)
        np.copyto(leaders, np.uint8(label), where=above)
    return leaders


def _interpolated(corners: list[Float32], row_weights: Float32, column_weights: Float32) -> UInt8:
    """Labels of n cells of the same size.

    Args:
        corners: float32 [C, n] each: top left, top right, bottom left, bottom right.
        row_weights: float32 [2, n, rows] of the top and of the bottom corners.
        column_weights: float32 [2, n, columns] of the left and of the right corners.

    Returns:
        uint8 [n, rows, columns].
    """
    possible = _candidates(corners)
    count = possible.sum(0)
    order = np.argsort(-count, kind="stable")  # cells with many candidates first: then the rest is a slice
    count, possible = count[order], possible[:, order]
    cell, label = np.nonzero(possible.T)  # by cell, then by class
    first = np.searchsorted(cell, np.arange(len(count)))
    top, bottom = row_weights[:, order]
    left, right = column_weights[:, order, None, :]
    best = np.empty((len(count), row_weights.shape[2], column_weights.shape[2]), np.float32)
    labels = np.empty(best.shape, np.uint8)
    for turn in range(int(count[0])):
        cells = int(np.count_nonzero(count > turn))
        own = label[first[:cells] + turn]
        at = [corner[own, order[:cells]][:, None] for corner in corners]
        value = (at[0] * top[:cells] + at[2] * bottom[:cells])[:, :, None] * left[:cells]
        value += (at[1] * top[:cells] + at[3] * bottom[:cells])[:, :, None] * right[:cells]
        own_label = own.astype(np.uint8)[:, None, None]
        if turn == 0:
            best[:], labels[:] = value, own_label
        else:
            above = value > best[:cells]
            np.copyto(best[:cells], value, where=above)
            np.copyto(labels[:cells], own_label, where=above)
    back = np.empty_like(labels)
    back[order] = labels
    return back


def _candidates(corners: list[Float32]) -> NDArray[np.bool_]:
    """Which classes can win somewhere in a cell: those that no corner's leader exceeds at all four. bool [C, n]."""
    possible = np.ones(corners[0].shape, bool)
    cells = np.arange(corners[0].shape[1])
    for corner in corners:
        leader = corner.argmax(0)
        below = corners[0] < corners[0][leader, cells]
        for other in corners[1:]:
            below &= other < other[leader, cells]
        possible &= ~below
    return possible
