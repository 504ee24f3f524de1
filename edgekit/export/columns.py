"""A convolution over a frame's three channels, made to find several columns of its output at once.

In a frame as it lies in memory, [H, W, 3], columns side by side are already one column of more channels. Few channels leave
most of an int8 matrix product idle: three into 32 become twelve into 64, for the same sums of the same integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDED_CHANNELS = 64
"""Output channels that fill a matrix product; wider convolutions are left as they are."""


@dataclass(frozen=True)
class Folding:
    """How columns go together.

    Attributes:
        together: columns of the output that are found at once.
        stride: of the convolution, along a row; 1 afterwards.
        block: columns of the frame that become one.
        blocks: the new kernel's width.
        added: columns to add to the right of the frame; their weights are zero.
    """

    together: int
    stride: int
    block: int
    blocks: int
    added: int

    def weight(self, weight: NDArray[Any]) -> NDArray[Any]:
        """[O, kh, kw, 3] -> [together O, kh, blocks, 3 block]."""
        channels, tall, wide, depth = weight.shape
        folded = np.zeros((self.together, channels, tall, self.blocks * self.block, depth), weight.dtype)
        for position in range(self.together):
            folded[position, :, :, position * self.stride : position * self.stride + wide] = weight
        return folded.reshape(self.together * channels, tall, self.blocks, depth * self.block)


def fold_columns(channels: int, kernel: int, stride: int, columns: int, width: int) -> Folding | None:
    """The folding for a convolution without padding.

    Args:
        channels: of the output.
        kernel, stride: along a row.
        columns, width: of the output and the input.

    Returns:
        None where the convolution is wide enough, no number of columns divides the output, or some are never read.
    """
    together = next((n for n in range(FOLDED_CHANNELS // channels, 1, -1) if columns % n == 0), 1)
    block = together * stride
    blocks = -(-((together - 1) * stride + kernel) // block)
    added = (columns // together - 1 + blocks) * block - width
    return None if together == 1 or added < 0 else Folding(together, stride, block, blocks, added)
