"""Normalization moved into the first convolutions, so that a frame needs one subtraction, or nothing at all, before them.

Both forms are equal to normalizing first, within float rounding, zero padding included: padding stands for the mean colour.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekit.core.values import DeployableGraph, UInt8
from edgekit.export.nodes import add_constant, constant_tensor, drop_unused_constants, is_convolution, node_shape

aten = torch.ops.aten


def on_centred_pixels(graph: DeployableGraph, factor: float = 1.0) -> GraphModule:
    """The graph on pixels less the mean colour, times a factor: float32 [1, 3, H, W] of about -128..128 -> logits.

    Normalization's factor goes into the weights of the convolutions that read the frame; whatever else reads it gets a
    product.
    """
    module, frame = _copy(graph)
    scale = torch.from_numpy(graph.normalization.scale()) / factor
    others = []
    for user in list(frame.users):
        weight = _weight(module, user, frame)
        if weight is None:
            others.append(user)
            continue
        scaled = (weight.double() * scale.double().reshape(1, 3, 1, 1)).float()
        user.args = (frame, add_constant(module, user, "pixel_weight", scaled), *user.args[2:])
    if others:
        constant = add_constant(module, frame.next, "pixel_scale", scale.reshape(1, 3, 1, 1))
        with module.graph.inserting_after(constant):
            product = module.graph.call_function(aten.mul.Tensor, (frame, constant))
        product.meta = dict(frame.meta)
        for user in others:
            user.replace_input_with(frame, product)
    return _finished(module)


@dataclass(frozen=True)
class Bordered:
    """A graph on raw pixels with a border of the mean colour, which stands where convolutions would pad with zeros.

    Attributes:
        module: float32 [1, 3, top + H + bottom, left + W + right] of 0..255 -> logits.
        top, bottom, left, right: pixels of border.
        colour: uint8 [3], the border's. Rounded to whole pixel values, which is finer than int8 resolves the frame.
    """

    module: GraphModule
    top: int
    bottom: int
    left: int
    right: int
    colour: UInt8


def on_bordered_pixels(graph: DeployableGraph) -> Bordered | None:
    """The graph on raw pixels, which a uint8 frame already is in the form that an int8 convolution reads.

    Returns:
        None where something other than a convolution of constants reads the frame, or convolutions that pad it differently.
    """
    module, frame = _copy(graph)
    scale = torch.from_numpy(graph.normalization.scale()).double().reshape(1, 3, 1, 1)
    offset = torch.from_numpy(graph.normalization.offset()).double().reshape(1, 3, 1, 1)
    borders = set()
    for user in list(frame.users):
        weight = _weight(module, user, frame)
        if weight is None:
            return None
        given = cast("tuple[Any, ...]", user.args[2:])
        bias_node, stride, padding, dilation, groups = (*given, *_CONVOLUTION[len(given) :])
        border = []
        for axis in range(2):
            before = int(padding[axis])
            reach = (node_shape(user)[2 + axis] - 1) * int(stride[axis]) + int(dilation[axis]) * (
                weight.shape[2 + axis] - 1
            )
            border += [before, max(0, reach + 1 - before - node_shape(frame)[2 + axis])]
        borders.add(tuple(border))
        bias = constant_tensor(module, bias_node)
        if bias is None and bias_node is not None:  # one that the network computes
            return None
        shifted = (weight.double() * offset).sum((1, 2, 3)) + (0.0 if bias is None else bias.double())
        user.args = (
            frame,
            add_constant(module, user, "pixel_weight", (weight.double() * scale).float()),
            add_constant(module, user, "pixel_bias", shifted.float()),
            stride,
            [0, 0],
            dilation,
            groups,
        )
    if len(borders) != 1:
        return None
    top, bottom, left, right = borders.pop()
    colour = torch.from_numpy(graph.normalization.mean_colour()).round().clamp(0, 255).to(torch.uint8).numpy()
    return Bordered(_finished(module), top, bottom, left, right, colour)


_CONVOLUTION: tuple[Any, ...] = (None, [1, 1], [0, 0], [1, 1], 1)
"""Defaults of aten.conv2d after input and weight: bias, stride, padding, dilation, groups."""


def _copy(graph: DeployableGraph) -> tuple[GraphModule, Node]:
    module = copy.deepcopy(graph.module)
    (frame,) = (node for node in module.graph.nodes if node.op == "placeholder")
    return module, frame


def _weight(module: GraphModule, node: Node, frame: Node) -> Tensor | None:
    """The constant weight of a plain convolution over the frame's three channels, or None."""
    if not is_convolution(node) or node.args[0] is not frame or (len(node.args) > 6 and node.args[6] != 1):
        return None
    return constant_tensor(module, node.args[1])


def _finished(module: GraphModule) -> GraphModule:
    drop_unused_constants(module)
    module.graph.lint()
    module.recompile()
    return module
