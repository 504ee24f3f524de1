"""Counts that a report can show: those of the network's classes and of the frames' own pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgekit.core.errors import EdgekitError
from edgekit.core.measurement import Accuracy, Measurement
from edgekit.core.values import ClassSet, Int64


def shown(row: Measurement, classes: ClassSet, truth: Int64 | None) -> Measurement:
    """The measurement; without an accuracy whose counts cannot be shown, and the reason in its place.

    Args:
        classes: of the network.
        truth: int64 [frames, C], the labelled pixels of each frame, which all rows share; None where nobody knows them.
    """
    if row.accuracy is None:
        return row
    try:
        _check(row.accuracy, classes, truth)
    except EdgekitError as error:
        why = f"what was measured cannot be shown, {error}: measure it again"
        return replace(row, accuracy=None, accuracy_why=why)
    return row


def _check(accuracy: Accuracy, classes: ClassSet, truth: Int64 | None) -> None:
    frames = len(accuracy.frames)
    for index, counts in enumerate(accuracy.counts):
        place = f"accuracy.counts[{index}]"
        for kind, number in (("class", len(classes)), ("category", len(classes.category_names))):
            for key in (f"{kind}_hits", f"{kind}_misses"):
                found = len(getattr(counts, key))
                if found != number:
                    raise EdgekitError(f"{place}.{key} has {found} entries for {number}")
        pixels = _labelled(counts.confusion, len(classes), f"{place}.confusion")
        if truth is not None and (len(truth) != frames or not np.array_equal(pixels, truth[index])):
            raise EdgekitError(
                f"{place} counts {pixels.sum()} pixels, which are not those that float PyTorch was counted on"
            )


def _labelled(confusion: Any, classes: int, place: str) -> Int64:
    """int64 [C]: the pixels of each class of the truth."""
    pixels = np.zeros(classes, np.int64)
    try:
        triples = np.asarray(confusion if len(confusion) else np.zeros((0, 3), np.int64))
    except (ValueError, OverflowError):  # of several lengths
        triples = np.zeros(0)
    good = triples.ndim == 2 and triples.shape[1] == 3 and triples.dtype.kind == "i" and bool((triples >= 0).all())
    if not good or (len(triples) and (triples[:, :2].max() >= classes or triples[:, 2].max() > 1 << 40)):
        raise EdgekitError(f"{place} is not a list of pairs of {classes} classes and counts")
    np.add.at(pixels, triples[:, 0], triples[:, 2])
    return pixels
