"""Which layers cost int8 its accuracy: each quantized alone, in simulation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from calibration.datasets import resize_labels
from calibration.simulation import (
    OUTPUT_AXIS,
    expected_drop,
    quantized_places,
    reads_int8,
    represented,
    rounded_weight,
)
from calibration.threads import side_by_side
from edgekit.core.values import DeployableGraph, Int64, Quantization, Scheme, Size, UInt8
from edgekit.decoder import decode
from edgekit.export.layers import layers_of
from edgekit.export.values import all_values, as_cores_read, from_cores, whole_range
from edgekit.metrics.scores import confusion_matrix, mean_iou


@dataclass(frozen=True)
class LayerLoss:
    """What one layer costs when it alone is quantized: its weights, with its bias as int8 corrects it, and what it reads.

    Attributes:
        layer: its name, see :class:`edgekit.export.layers.Layer`.
        output_error: of the logits, root mean square relative to theirs.
        expected_drop: of class mIoU, a fraction, see :func:`calibration.simulation.expected_drop`.
        drop: of class mIoU on the frames' own labels, a fraction; None without labels.
    """

    layer: str
    output_error: float
    expected_drop: float
    drop: float | None


def layer_losses(
    graph: DeployableGraph,
    quantization: Quantization,
    scheme: Scheme,
    frames: Sequence[tuple[UInt8, UInt8 | None]],
    report: Callable[[int, int], None],
) -> tuple[LayerLoss, ...]:
    """The loss of each layer that targets run in int8, in the network's order.

    A map that is rounded for several layers is charged to each of them, since each by itself may read it in float.

    Args:
        graph: the equalized one, which int8 is made of.
        frames: uint8 [1, H, W, 3] each, and its labels as the network's classes, uint8 [h, w] of any size, where all have them.
        report: layers looked at, and of how many, over all frames.
    """
    places = quantized_places(graph, scheme)
    readers = {node.name for node in graph.module.graph.nodes if reads_int8(node, scheme)}
    layers = [layer for layer in layers_of(graph) if readers & layer.nodes]
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {layer.name: [] for layer in layers}
    found: dict[str, list[Int64]] = {layer.name: [] for layer in layers}
    float_found: list[Int64] = []
    classes = len(graph.class_names)
    for number, (frame, truth) in enumerate(frames):
        values = all_values(graph, frame)
        logits = _only(next(value for node, value in values.items() if node.op == "output"))
        if truth is not None:
            float_found.append(_confusion(logits, graph.size, truth, classes))
        work = partial(_alone, graph, values, places=places, quantization=quantization, scheme=scheme)
        together = side_by_side(work, (layer.nodes for layer in layers))
        for index, (layer, alone) in enumerate(zip(layers, together, strict=True)):
            pairs[layer.name].append((logits, alone))
            if truth is not None:
                found[layer.name].append(_confusion(alone, graph.size, truth, classes))
            report(number * len(layers) + index + 1, len(frames) * len(layers))

    def drop(name: str) -> float | None:
        if len(float_found) < len(frames):
            return None
        before, after = (float(mean_iou(np.sum(confusions, 0))) for confusions in (float_found, found[name]))
        return before - after

    return tuple(LayerLoss(name, _error(taken), expected_drop(taken), drop(name)) for name, taken in pairs.items())


def _confusion(logits: Tensor, size: Size, truth: UInt8, classes: int) -> Int64:
    labels = decode(logits[0, :classes].numpy(), size)
    return confusion_matrix(resize_labels(labels, Size(*truth.shape)), truth, classes)


def _alone(
    graph: DeployableGraph,
    values: Mapping[Node, Any],
    nodes: Collection[str],
    places: Collection[str],
    quantization: Quantization,
    scheme: Scheme,
) -> Tensor:
    """The logits with some nodes in int8; what does not depend on them is taken from the float network's values."""
    changed: dict[Node, Any] = {}
    ranges = quantization.ranges[scheme]

    def now(node: Node) -> Any:
        return changed.get(node, values[node])

    def rounded(node: Node) -> Any:
        if node.name not in places:
            return now(node)
        held = as_cores_read(graph, node, now(node))
        return from_cores(graph, node, represented(held, *whole_range(ranges[node.name]), scheme))

    with torch.inference_mode():
        for node in values:
            if node.op == "output":
                return _only(torch.fx.node.map_arg(node.args[0], now))
            if node.name not in nodes and not any(source in changed for source in node.all_input_nodes):
                continue
            if node.op != "call_function":
                continue
            is_int8 = node.name in nodes and reads_int8(node, scheme)
            read = rounded if is_int8 else now
            arguments = list(cast("tuple[Any, ...]", torch.fx.node.map_arg(node.args, read)))
            if is_int8 and node.target in OUTPUT_AXIS:
                arguments[1] = rounded_weight(node, arguments[1])
                if node.name in quantization.biases:
                    correction = torch.from_numpy(quantization.biases[node.name])
                    bias = arguments[2] if len(arguments) > 2 else None
                    arguments[2:3] = [correction if bias is None else bias + correction]
            changed[node] = cast(Any, node.target)(*arguments, **torch.fx.node.map_arg(node.kwargs, now))
    raise AssertionError("a graph has an output")


def _only(output: Any) -> Tensor:
    """An exported graph's output, which stands in a tuple."""
    return cast(Tensor, output[0] if isinstance(output, tuple | list) else output)


def _error(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    difference = sum(float((got - logits).square().sum()) for logits, got in pairs)
    whole = sum(float(logits.square().sum()) for logits, _ in pairs)
    return float(np.sqrt(difference / whole)) if whole else 0.0
