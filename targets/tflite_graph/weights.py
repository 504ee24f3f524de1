"""A flatbuffer that was converted before, with other weights: converting the same graph again would take ten seconds."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.values import DeployableGraph
from targets.tflite_graph.model import Model

CONVOLUTIONS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3}
"""Where convolutions' weights keep the output channels."""


def with_weights_of(model: bytes, before: DeployableGraph, after: DeployableGraph) -> bytes | None:
    """A float model with the convolutions' weights of another graph of the same nodes.

    Args:
        model: flatbuffer, converted from ``before``.

    Returns:
        None where the graphs differ in more than that, or a convolution is not found again: it must be converted anew.
    """
    if _but_for_weights(before) != _but_for_weights(after):
        return None
    parsed = Model(model)

    def held(operator: Any, position: int) -> bytes:
        return parsed.content(parsed.buffer(operator.inputs[position]))

    operators = {held(operator, 1): operator for operator in parsed.operators if parsed.kind(operator) in CONVOLUTIONS}
    wanted: dict[int, bytes] = {}
    other = _constants(after)
    for name, (weight, bias) in _constants(before).items():
        operator = operators.get(weight.tobytes())
        if operator is None or len(operator.inputs) < 3 or held(operator, 2) != bias.tobytes():
            return None
        for position, value in enumerate(other[name], 1):
            place = parsed.buffer(operator.inputs[position])
            if wanted.setdefault(place, value.tobytes()) != value.tobytes():  # equal before, and shared
                return None
    for place, data in wanted.items():
        parsed.fill(place, data)
    return parsed.pack()


def flatten_biases(model: Model) -> None:
    """Give every constant bias one axis, which the quantizer takes its scales to lie along.

    litert makes a product behind a linear layer part of that layer (LayerScale in ConvNeXt), and its bias [1, 1, 1, C].
    """
    for operator in model.operators:
        if model.kind(operator) != "FULLY_CONNECTED" or len(operator.inputs) < 3:
            continue
        if model.constant(operator.inputs[2]) is not None:
            bias = model.tensor(operator.inputs[2])
            bias.shape = np.array([int(np.prod(bias.shape))], np.int32)


def _but_for_weights(graph: DeployableGraph) -> list[Any]:
    """All that a graph computes with, the weights of its convolutions left out."""
    import torch

    from edgekit.export.nodes import constant_tensor, is_convolution

    module = graph.module
    parts: list[Any] = [graph.size, graph.logits_size, graph.normalization]

    def plain(reader: Any, source: Any) -> Any:
        constant = constant_tensor(module, source)
        if constant is None:
            return source.name
        return tuple(constant.shape) if is_convolution(reader) else constant.detach().numpy().tobytes()

    for node in module.graph.nodes:
        if node.op != "get_attr":
            arguments = torch.fx.node.map_arg((node.args, node.kwargs), partial(plain, node))
            parts.append((node.name, str(node.target), arguments))
    return parts


def _constants(graph: DeployableGraph) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Weights, as TFLite lays them out, and bias of every convolution by its node's name."""
    from edgekit.export.nodes import constant_tensor, is_convolution
    from edgekit.export.pixels import on_centred_pixels

    module = on_centred_pixels(graph)
    found = {}
    for node in module.graph.nodes:
        weight = constant_tensor(module, node.args[1]) if is_convolution(node) else None
        if weight is None:
            continue
        bias = constant_tensor(module, node.args[2]) if len(node.args) > 2 else None
        depthwise = len(node.args) > 6 and node.args[6] == weight.shape[0]
        ordered = weight.detach().permute((1, 2, 3, 0) if depthwise else (0, 2, 3, 1)).contiguous().numpy()
        given = np.zeros(weight.shape[0], np.float32) if bias is None else bias.detach().contiguous().numpy()
        found[node.name] = (ordered, given)
    return found
