"""Which frames of a training split calibrate: those that show the most of every class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibration.datasets import FrameReference, Split
from edgekit.core.errors import DataError
from edgekit.core.values import Float64

CANDIDATES = 4
"""Labels are read of so many frames for each one that is chosen."""

FIRST_PIXELS = 1e-3
"""A class's first pixels in a frame count most; from about this share of the frame on, more of them count ever less."""


@dataclass(frozen=True)
class Choice:
    """Calibration frames.

    Attributes:
        frames: in the split's order.
        shares: of all their labelled pixels, by class name; empty where labels could not be read.
        why: how they were chosen, as a manifest words it.
    """

    frames: Split
    shares: dict[str, float]
    why: str


def choose_frames(split: Split, count: int) -> Choice:
    """``count`` frames, by what their labels show; spread evenly over the split where it has none to read.

    Frames are taken one by one, each time the one that adds most to the logarithm of every class's pixels, which
    never is more than 1 - 1/e short of the best choice in that measure (Nemhauser, Wolsey and Fisher 1978).
    """
    candidates = split.first(count * CANDIDATES)
    if len(candidates) <= count:
        return Choice(candidates, {}, "all frames of the split")
    try:
        shares = np.stack([_shares(reference, len(split.classes)) for reference in candidates.references])
    except DataError:
        return Choice(split.first(count), {}, "evenly spread over the split, which has no labels to choose by")
    chosen = _cover(shares, count)
    frames = replace(candidates, references=tuple(candidates.references[index] for index in chosen))
    together = shares[chosen].mean(0)
    return Choice(
        frames,
        dict(zip(split.classes.names, (float(share) for share in together), strict=True)),
        f"by class coverage among {len(candidates)} evenly spread over the split",
    )


def _shares(reference: FrameReference, classes: int) -> Float64:
    """The share of a frame's pixels that each class has."""
    labels = reference.load_labels()
    return np.bincount(labels.ravel(), minlength=256)[:classes] / labels.size


def _cover(shares: Float64, count: int) -> Sequence[int]:
    """Rows that together cover the columns, in order."""
    covered = np.zeros(shares.shape[1])
    left = list(range(len(shares)))
    for _ in range(count):
        gains = np.log1p((covered + shares[left]) / FIRST_PIXELS).sum(1)
        best = left.pop(int(gains.argmax()))
        covered += shares[best]
    return sorted(set(range(len(shares))) - set(left))
