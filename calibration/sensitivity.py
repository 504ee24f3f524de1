"""Which layers cost int8 its accuracy: each quantized alone, in simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from calibration.simulation import expected_drop, quantized_places, simulate, with_int8_weights
from edgekit.core.values import DeployableGraph, Quantization, Scheme, UInt8
from edgekit.export.layers import layers_of
from edgekit.export.values import visit_values


@dataclass(frozen=True)
class LayerLoss:
    """What one layer costs when it alone is quantized: its weights, and its result.

    Attributes:
        layer: its name, see :class:`edgekit.export.layers.Layer`.
        output_error: of the logits, root mean square relative to theirs.
        expected_drop: of class mIoU, a fraction, see :func:`calibration.simulation.expected_drop`.
    """

    layer: str
    output_error: float
    expected_drop: float


def layer_losses(
    graph: DeployableGraph, quantization: Quantization, scheme: Scheme, frames: Sequence[UInt8]
) -> tuple[LayerLoss, ...]:
    """The loss of each layer that int8 touches, in the network's order.

    Args:
        graph: the equalized one, which int8 is made of.
        frames: uint8 [1, H, W, 3] each.
    """
    places = quantized_places(graph, scheme)
    expected = [visit_values(graph, frame, lambda _, value: value) for frame in frames]
    losses = []
    for layer in layers_of(graph):
        touched = places & layer.nodes
        if not touched and not layer.weighted:
            continue
        rounded = with_int8_weights(graph, layer.nodes) if layer.weighted else graph
        got = [simulate(rounded, frame, quantization.ranges[scheme], scheme, touched) for frame in frames]
        pairs = list(zip(expected, got, strict=True))
        losses.append(LayerLoss(layer.name, _error(pairs), expected_drop(pairs)))
    return tuple(losses)


def _error(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    difference = sum(float((got - logits).square().sum()) for logits, got in pairs)
    whole = sum(float(logits.square().sum()) for logits, _ in pairs)
    return float(np.sqrt(difference / whole)) if whole else 0.0
