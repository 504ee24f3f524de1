"""Which layers cost int8 its accuracy: each quantized alone, in simulation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from calibration.simulation import OUTPUT_AXIS, expected_drop, quantized_places, represented, rounded_weight
from edgekit.core.values import DeployableGraph, Quantization, Ranges, Scheme, UInt8
from edgekit.export.layers import layers_of
from edgekit.export.values import all_values, as_cores_read, from_cores, whole_range


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
    layers = [layer for layer in layers_of(graph) if layer.weighted or places & layer.nodes]
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {layer.name: [] for layer in layers}
    for frame in frames:
        values = all_values(graph, frame)
        logits = _only(next(value for node, value in values.items() if node.op == "output"))
        for layer in layers:
            pairs[layer.name].append(
                (logits, _alone(graph, values, layer.nodes, places, quantization.ranges[scheme], scheme))
            )
    return tuple(LayerLoss(name, _error(taken), expected_drop(taken)) for name, taken in pairs.items())


def _alone(
    graph: DeployableGraph,
    values: Mapping[Node, Any],
    nodes: Collection[str],
    places: Collection[str],
    ranges: Ranges,
    scheme: Scheme,
) -> Tensor:
    """The logits with some nodes in int8; what does not depend on them is taken from the float network's values."""
    changed: dict[Node, Any] = {}

    def now(node: Node) -> Any:
        return changed.get(node, values[node])

    with torch.inference_mode():
        for node, value in values.items():
            if node.op == "output":
                return _only(torch.fx.node.map_arg(node.args[0], now))
            if node.name not in nodes and not any(source in changed for source in node.all_input_nodes):
                continue
            if node.op == "call_function":
                arguments = list(cast("tuple[Any, ...]", torch.fx.node.map_arg(node.args, now)))
                if node.name in nodes and node.target in OUTPUT_AXIS:
                    arguments[1] = rounded_weight(node, arguments[1])
                value = cast(Any, node.target)(*arguments, **torch.fx.node.map_arg(node.kwargs, now))
            if node.name in nodes and node.name in places:
                held = as_cores_read(graph, node, value)
                value = from_cores(graph, node, represented(held, *whole_range(ranges[node.name]), scheme))
            changed[node] = value
    raise AssertionError("a graph has an output")


def _only(output: Any) -> Tensor:
    """An exported graph's output, which stands in a tuple."""
    return cast(Tensor, output[0] if isinstance(output, tuple | list) else output)


def _error(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    difference = sum(float((got - logits).square().sum()) for logits, got in pairs)
    whole = sum(float(logits.square().sum()) for logits, _ in pairs)
    return float(np.sqrt(difference / whole)) if whole else 0.0
