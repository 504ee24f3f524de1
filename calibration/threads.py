"""Work on frames side by side: that keeps cores busier than layers split over them, numpy's part of the work above all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from edgekit.core.ahead import Item, Result, in_order
from edgekit.networks.subnormals import flush_subnormals

AT_ONCE = 2
"""However many cores there are: each holds the maps of a whole frame."""


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What ``work`` gives for each item, in their order; no more items are taken than are worked on, and one besides."""
    cores = torch.get_num_threads()
    at_once = min(AT_ONCE, cores)

    def prepare() -> None:
        torch.set_num_threads(cores // at_once)  # of the calling thread
        flush_subnormals()

    return in_order(work, items, at_once, at_once, prepare)
