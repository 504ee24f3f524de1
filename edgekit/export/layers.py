"""A graph's layers: what is quantized or kept in float together, named by the user's own modules on every target."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch.fx import Node

from edgekit.core.errors import UsageError
from edgekit.core.values import DeployableGraph
from edgekit.export.graph import module_of

aten = torch.ops.aten

WEIGHTED = (aten.conv2d.default, aten.conv_transpose2d.input, aten.linear.default)

ACTIVATIONS = (
    aten.relu.default,
    aten.relu6.default,
    aten.leaky_relu.default,
    aten.hardtanh.default,
    aten.hardswish.default,
    aten.silu.default,
    aten.prelu.default,
    aten._prelu_kernel.default,
)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer with the activation after it, or another operation by itself.

    Attributes:
        name: of its module; of an operation without weights also what it does, as in ``pooling.1:add``.
        nodes: names of its graph nodes; a module that is called twice has those of both calls.
    """

    name: str
    nodes: frozenset[str]


def layers_of(graph: DeployableGraph) -> tuple[Layer, ...]:
    """The layers of a graph, in the order of their first operations; the frame itself is ``frame``."""
    names: dict[str, str] = {}
    for node in graph.module.graph.nodes:
        if node.op == "placeholder":
            names[node.name] = "frame"
        elif node.op == "call_function":
            source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
            if node.target in WEIGHTED:
                names[node.name] = module_of(node) or node.name
            elif node.target in ACTIVATIONS and source is not None and source.name in names and len(source.users) == 1:
                names[node.name] = names[source.name]
            else:
                names[node.name] = f"{module_of(node)}:{_operation_of(node)}"
    together: dict[str, set[str]] = {}
    for node_name, name in names.items():
        together.setdefault(name, set()).add(node_name)
    return tuple(Layer(name, frozenset(nodes)) for name, nodes in together.items())


def _operation_of(node: Node) -> str:
    """``relu`` of aten.relu.default; ``getitem`` where one of several results is taken."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket.__name__)
    return str(getattr(node.target, "__name__", node.target))


def nodes_of(graph: DeployableGraph, layers: Collection[str]) -> frozenset[str]:
    """Names of the nodes of some layers, by their names.

    Raises:
        UsageError: there is no such layer.
    """
    known: Mapping[str, Layer] = {layer.name: layer for layer in layers_of(graph)}
    for name in layers:
        if name not in known:
            raise UsageError(f"there is no layer '{name}': edgekit sensitivity lists the network's layers")
    return frozenset(node for name in layers for node in known[name].nodes)
