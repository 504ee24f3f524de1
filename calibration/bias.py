"""Bias correction: what rounding a convolution's weights adds to the mean of its result is taken off its bias.

Rounding errors of a channel's weights do not cancel where the values they meet are all of one sign, as after a ReLU: the
result is shifted by the same amount everywhere (Nagel et al. 2019, "Data-free quantization through weight equalization and
bias correction", section 4.2). Here the shift is measured on calibration frames, borders included.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from calibration.simulation import rounded_weight
from edgekit.core.values import DeployableGraph, Float32, UInt8
from edgekit.export.nodes import add_constant, constant_tensor, drop_unused_constants, is_convolution
from edgekit.export.values import visit_operations

Corrections = Mapping[str, Float32]
"""What is added to the bias of each convolution: float32 [channels], by node."""


def find_corrections(graph: DeployableGraph, frames: Iterable[UInt8]) -> Corrections:
    """The mean shifts that int8 weights cause on frames, with the opposite sign.

    Args:
        graph: in float, equalized where int8's is.
        frames: uint8 [1, H, W, 3] each, at least one.
    """
    rounding = {
        node.name: rounded_weight(node, weight) - weight
        for node in graph.module.graph.nodes
        if (weight := _own_weight(graph, node)) is not None
    }
    shifts: dict[str, list[Float32]] = {name: [] for name in rounding}

    def look(node: Node, arguments: tuple[Any, ...]) -> None:
        if node.name in rounding:
            moved = cast(Any, node.target)(arguments[0], rounding[node.name], None, *arguments[3:])
            shifts[node.name].append(moved.mean((0, 2, 3)).numpy())

    for frame in frames:
        visit_operations(graph, frame, look)
    return {name: -np.stack(of_frames).mean(0, dtype=np.float32) for name, of_frames in shifts.items()}


def corrected(graph: DeployableGraph, corrections: Corrections, but: Collection[str] = ()) -> DeployableGraph:
    """The graph with its convolutions' biases corrected; its nodes keep their names.

    Args:
        but: nodes that int8 leaves in float: their weights are not rounded.
    """
    wanted = {name: correction for name, correction in corrections.items() if name not in but}
    if not wanted:
        return graph
    module = copy.deepcopy(graph.module)
    for node in list(module.graph.nodes):
        if node.name not in wanted:
            continue
        bias = constant_tensor(module, node.args[2]) if len(node.args) > 2 else None
        correction = torch.from_numpy(wanted[node.name])
        value = correction if bias is None else bias.detach() + correction
        constant = add_constant(module, node, "corrected_bias", value)
        node.args = (*node.args[:2], constant, *node.args[3:])
    module.graph.eliminate_dead_code()
    drop_unused_constants(module)
    module.graph.lint()
    module.recompile()
    return replace(
        graph,
        module=module,
        origin=graph.origin or graph,
        rewrites=(*graph.rewrites, f"correct_biases x {len(wanted)}"),
    )


def _own_weight(graph: DeployableGraph, node: Node) -> Tensor | None:
    """The constant weights of a convolution whose bias, if it has one, is a constant too; else None."""
    if not is_convolution(node):
        return None
    weight = constant_tensor(graph.module, node.args[1])
    bias = node.args[2] if len(node.args) > 2 else None
    if weight is None or (bias is not None and constant_tensor(graph.module, bias) is None):
        return None
    return weight.detach()
