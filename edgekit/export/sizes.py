"""Sizes of maps, without torch, so that sessions and targets that need no torch can ask for them."""

from __future__ import annotations

from edgekit.core.values import Size


def decision_size(size: Size, output_stride: int) -> Size:
    """Size of the map on which labels are decided at an output stride."""
    return Size(-(-size.height // output_stride), -(-size.width // output_stride))
