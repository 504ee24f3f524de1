"""An exported graph in another floating-point type, types that the network names included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from edgekit.export.rewrites import fold_constants

aten = torch.ops.aten

DOUBLES = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}
"""What stands for a type where all is computed in float64."""


def to_half(module: GraphModule) -> GraphModule:
    """The graph, in place, in float16. What the network computes of constants alone, such as coordinates, is computed in float32 before that,
    and the types that it names follow: ``module.half()`` converts parameters and buffers only.
    """
    fold_constants(module, most=None)
    for node in list(module.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
        elif node.op == "call_function":
            node.args = map_aggregate(node.args, _half_of)
            node.kwargs = map_aggregate(node.kwargs, _half_of)
            if _is_real_of_others(node):
                with module.graph.inserting_after(node):
                    half = module.graph.call_function(aten._to_copy.default, (node,), {"dtype": torch.float16})
                half.meta = dict(node.meta)
                node.replace_all_uses_with(half, delete_user_cb=lambda user, own=half: user is not own)
    module.recompile()
    return module.half()


def _is_real_of_others(node: Node) -> bool:
    """Whether it makes real numbers of whole ones or truths, which have the default type and not the network's."""
    value = node.meta.get("val")
    sources = [source.meta.get("val") for source in node.all_input_nodes]
    return (
        isinstance(value, Tensor)
        and value.dtype == torch.float32
        and not any(isinstance(one, Tensor) and one.is_floating_point() for one in sources)
        and torch.float16 not in (*node.args, *node.kwargs.values())
    )


def _half_of(value: Any) -> Any:
    return torch.float16 if value is torch.float32 else value


def to_double(module: GraphModule) -> GraphModule:
    """The graph, in place, in float64, with constants of its own. Run it where the default type is float64 too."""
    for node in list(module.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
            continue
        if node.op == "call_function":
            node.args = map_aggregate(node.args, _double_of)
            node.kwargs = map_aggregate(node.kwargs, _double_of)
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dtype in DOUBLES:
            node.meta["val"] = value.to(DOUBLES[value.dtype])
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.dtype in DOUBLES:
            owner_name, _, attribute = name.rpartition(".")
            owner = module.get_submodule(owner_name)
            delattr(owner, attribute)
            owner.register_buffer(attribute, value.detach().to(DOUBLES[value.dtype]))
    module.recompile()
    return module


def _double_of(value: Any) -> Any:
    return DOUBLES.get(value, value) if isinstance(value, torch.dtype) else value


@contextmanager
def double_by_default() -> Iterator[None]:
    """Numbers without a type are float64, those that a graph and its rewrites make of whole numbers too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
