"""int8 simulated in float PyTorch: what representing a network's values costs it, before any converter is asked."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from edgekit.core.values import DeployableGraph, Ranges, Scheme, UInt8
from edgekit.export.nodes import constant_tensor
from edgekit.export.values import as_cores_read, from_cores, visit_values, whole_range
from edgekit.metrics.scores import mean_iou

aten = torch.ops.aten

READERS = (
    aten.conv2d.default,
    aten.conv_transpose2d.input,
    aten.linear.default,
    aten.add.Tensor,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.cat.default,
)
"""Operations that targets run in int8: what they read is quantized. Resizes and matrix products stay in float everywhere."""


ACTIVATIONS = (aten.relu.default, aten.hardtanh.default, aten.clamp.default)
"""Operations that are fused with the one before them."""

OUTPUT_AXIS: dict[Any, int] = {aten.conv2d.default: 0, aten.linear.default: 0, aten.conv_transpose2d.input: 1}
"""Where the weights of an operation keep their output channels."""


SMALLEST_SCALE = 1e-30
"""The scale of what is always zero."""


def quantized_places(graph: DeployableGraph, scheme: Scheme) -> frozenset[str]:
    """Names of the nodes whose values int8 represents.

    The frame itself is among them where its bytes must be made signed; elsewhere they are int8 as they are.
    """
    return frozenset(
        node.name
        for node in graph.module.graph.nodes
        if (node.op == "call_function" or (node.op == "placeholder" and scheme == "symmetric"))
        and _is_float(node)
        and (any(reads_int8(user, scheme) for user in node.users) or gives_int8(node, scheme))
    )


def gives_int8(node: Node, scheme: Scheme) -> bool:
    """Whether an operation's result is int8 whatever reads it.

    ONNX Runtime and TFLite, which are asymmetric, have kernels that give int8 only, after an activation that is fused with
    them. So a join's parts share the scale of its result there. OpenVINO rounds what is read in int8, and no more. A sum with a
    constant is none of these: it may be an epsilon, which would be lost, or a mask, which no int8 holds, and targets leave it in float.
    """
    if scheme == "symmetric" or not node.users or any(user.op == "output" for user in node.users):
        return False
    if node.target in ACTIVATIONS:
        source = node.args[0]
        return isinstance(source, Node) and source.target in READERS
    if node.target == aten.add.Tensor and not all(
        isinstance(one, Node) and one.op != "get_attr" for one in node.args[:2]
    ):
        return False
    return node.target in READERS and not all(user.target in ACTIVATIONS for user in node.users)


def reads_int8(node: Node, scheme: Scheme) -> bool:
    """Whether a target quantizes what an operation reads: no symmetric one a sum with a constant, which may be an epsilon."""
    if node.target == aten.add.Tensor and scheme == "symmetric":
        return all(isinstance(summand, Node) and summand.op != "get_attr" for summand in node.args[:2])
    return node.target in READERS


def _is_float(node: Node) -> bool:
    """Whether it gives a map of real numbers: a network may count positions in whole ones, which no range is known of."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def with_int8_weights(graph: DeployableGraph) -> DeployableGraph:
    """The graph with the weights of its layers rounded to int8: symmetric, per output channel, as all targets do."""
    module = copy.deepcopy(graph.module)
    for node in module.graph.nodes:
        if node.target not in OUTPUT_AXIS:
            continue
        weight = constant_tensor(module, node.args[1])
        if weight is not None:
            weight.data = rounded_weight(node, weight)
    return replace(graph, module=module)


def rounded_weight(node: Node, weight: Tensor) -> Tensor:
    """The weights of a layer's operation as int8 holds them."""
    others = [axis for axis in range(weight.ndim) if axis != OUTPUT_AXIS[node.target]]
    scale = weight.abs().amax(others, keepdim=True).clamp_min(SMALLEST_SCALE) / 127
    return (weight / scale).round() * scale


def represented(value: Tensor, low: float, high: float, scheme: Scheme) -> Tensor:
    """What int8 makes of a value, given the range that it is to represent."""
    low, high = min(low, 0.0), max(high, 0.0)
    if scheme == "symmetric":
        scale = max(-low, high, SMALLEST_SCALE) / 127
        return (value / scale).round_().clamp_(-127, 127).mul_(scale)
    scale = max(high - low, SMALLEST_SCALE) / 255
    zero_point = round(-low / scale)
    return (value / scale).round_().clamp_(-zero_point, 255 - zero_point).mul_(scale)


def simulate(graph: DeployableGraph, frame: UInt8, ranges: Ranges, scheme: Scheme, places: frozenset[str]) -> Tensor:
    """The logits of a frame with the values of some nodes represented in int8.

    Args:
        graph: with weights as :func:`with_int8_weights` leaves them, or in float.
    """
    limits = {name: whole_range(ranges[name]) for name in places}

    def quantize(node: Node, value: Tensor) -> Tensor:
        if node.name not in limits:
            return value
        held = represented(as_cores_read(graph, node, value), *limits[node.name], scheme)
        return from_cores(graph, node, held)

    return visit_values(graph, frame, quantize)


def expected_drop(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The drop in class mIoU (a fraction) that is to be expected, without a label.

    The float network's own probabilities stand for the truth, so that a label lost where it was sure costs much, one where
    two classes were nearly even next to nothing, and a rare class as much as a common one. On CamVid this followed the
    drop on real labels, which divergences of the logits do not: cutting values off spares those and costs thin classes.

    Args:
        pairs: logits [1, C, h, w] of the float network and of the simulated one, frame by frame.
    """
    return expected_drop_of_labels((expected, logits.argmax(1)[0]) for expected, logits in pairs)


def expected_drop_of_labels(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """As :func:`expected_drop`, of labels.

    Args:
        pairs: logits [1, C, h, w] of the float network and labels [h, w], frame by frame.
    """
    before = after = np.zeros((1, 1))
    for expected, labels in pairs:
        classes = expected.shape[1]
        probabilities = expected.softmax(1)[0].reshape(classes, -1)
        chosen = [F.one_hot(one.reshape(-1).long(), classes).to(torch.float32) for one in (expected.argmax(1), labels)]
        now_before, now_after = ((probabilities @ one).double().numpy() for one in chosen)
        before, after = before + now_before, after + now_after
    return float(np.nanmean(mean_iou(before)) - np.nanmean(mean_iou(after)))
