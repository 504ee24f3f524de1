"""Subnormal numbers: a trained network's weights and activations decay into them, and CPUs are up to 20 times slower there."""

from __future__ import annotations

import numpy as np
import torch


def flush_subnormals() -> None:
    """Have this process treat subnormals as zero; call it before the first parallel operation, for workers inherit it."""
    for kind in (np.float16, np.float32, np.float64):
        np.finfo(kind)  # numpy keeps the answer; asked afterwards, it warns that the smallest subnormal is zero
        str(np.finfo(kind))
    torch.set_flush_denormal(True)


def without_subnormals(values: torch.Tensor) -> torch.Tensor:
    """A copy in which they are zeros."""
    copy = values.clone()
    if not values.is_floating_point():
        return copy
    return copy.masked_fill_(values.abs() < torch.finfo(values.dtype).tiny, 0.0)
