"""What the rewrites ask of an exported ATen graph's nodes, and how they give it constants."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten


def constant_tensor(module: GraphModule, node: Any) -> Tensor | None:
    """The constant behind a get_attr node, or None."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return cast(Tensor, value)


def add_constant(module: GraphModule, before: Node, name: str, value: Tensor) -> Node:
    """Register ``value`` as a buffer under a free name and make a get_attr node for it before ``before``."""
    index = 0
    while hasattr(module, f"{name}_{index}"):
        index += 1
    module.register_buffer(f"{name}_{index}", value.detach().clone())
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(f"{name}_{index}")
    node.meta["val"] = value
    return node


def node_shape(node: Node) -> tuple[int, ...]:
    return tuple(int(side) for side in node.meta["val"].shape)


def argument(node: Node, name: str) -> Any:
    """An argument by its name in the operation's schema, given or default; None when there is none of that name."""
    for position, known in enumerate(cast(torch._ops.OpOverload, node.target)._schema.arguments):
        if known.name == name:
            given = node.args[position] if position < len(node.args) else node.kwargs.get(name)
            return known.default_value if given is None and known.has_default_value() else given
    return None


def sides(value: Any, default: int = 1) -> tuple[int, int]:
    """Height and width of an argument that may hold one number for both, two, or none."""
    numbers = (
        [int(side) for side in value] if isinstance(value, list | tuple) else [] if value is None else [int(value)]
    )
    return (default, default) if not numbers else (numbers[0], numbers[-1])


def is_convolution(node: Node) -> bool:
    return node.op == "call_function" and node.target is aten.conv2d.default


def is_transposed_convolution(node: Node) -> bool:
    return node.op == "call_function" and node.target is aten.conv_transpose2d.input


def drop_unused_constants(module: GraphModule) -> None:
    """Forget parameters no node reads, so that converters do not carry the unfolded weights along."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in used:
            owner_name, _, attribute = name.rpartition(".")
            owner = operator.attrgetter(owner_name)(module) if owner_name else module
            delattr(owner, attribute)
