"""How an operation is written out in others: a function of its arguments takes its place in the graph.

Each form is a function of the operation's own arguments, named as in its schema, on tensors of the operation's shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate, map_arg

from edgekit.export.nodes import add_constant, argument

aten = torch.ops.aten

Form = Callable[..., Any]
Condition = Callable[[Node], bool]
Forms = dict[torch._ops.OpOverload, tuple[Form, Condition]]
"""By operation: what it is written as, and of which of its nodes."""


def write_forms(module: GraphModule, forms: Forms) -> int:
    """Write the operations that have a form out; says how many."""
    count = 0
    for node in list(module.graph.nodes):
        found = forms.get(node.target) if node.op == "call_function" else None
        if found is not None and found[1](node):
            replace_by(module, node, found[0])
            count += 1
    return count


def replace_by(module: GraphModule, node: Node, form: Form) -> None:
    """Put what a form does with a node's arguments in the node's place; a node of several results has as many of the form's."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = {known.name: argument(node, known.name) for known in schema.arguments}
    sources = list(dict.fromkeys(node.all_input_nodes))
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = [torch.empty(source.meta["val"].shape, dtype=source.meta["val"].dtype) for source in sources]

    def written(*values: Tensor) -> Any:
        of = dict(zip(sources, values, strict=True))
        return form(**map_aggregate(given, lambda one: of[one] if isinstance(one, Node) else one))

    with torch.no_grad():
        traced = make_fx(written, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True)(*tensors)
    traced.graph.eliminate_dead_code()
    copies: dict[Node, Node] = dict(
        zip((one for one in traced.graph.nodes if one.op == "placeholder"), sources, strict=True)
    )
    for one in traced.graph.nodes:
        if one.op == "get_attr":
            copies[one] = add_constant(module, node, "written", getattr(traced, str(one.target)))
        elif one.target is aten.lift_fresh_copy.default:  # how tracing takes a constant in
            copies[one] = copies[one.args[0]]
        elif one.op == "call_function":
            with module.graph.inserting_before(node):
                copies[one] = module.graph.node_copy(one, copies.__getitem__)
            copies[one].meta = {**node.meta, "val": one.meta["val"]}
        elif one.op == "output":
            _give(module, node, map_arg(one.args[0], copies.__getitem__))


def _give(module: GraphModule, node: Node, results: Any) -> None:
    if isinstance(results, Node):
        node.replace_all_uses_with(results)
    else:
        for user in list(node.users):  # operator.getitem
            user.replace_all_uses_with(results[user.args[1]])
            module.graph.erase_node(user)
    module.graph.erase_node(node)


def _always(_: Node) -> bool:
    return True


def register(forms: Forms, *operations: torch._ops.OpOverload, where: Condition = _always) -> Callable[[Form], Form]:
    """A decorator: what operations are written as."""

    def of(form: Form) -> Form:
        for operation in operations:
            forms[operation] = form, where
        return form

    return of
