"""Why a converter refuses a network, in one sentence: the operation, its module, and what helps."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch.fx import GraphModule, Node

from edgekit.core.errors import ConversionError, EdgekitError, first_line
from edgekit.core.values import DeployableGraph
from edgekit.export.graph import module_of
from edgekit.export.lint import failures, operation_of, source_of

NAMED = re.compile(r"(?:aten|prims|prim)(?:::|\.)(\w+)|for op '(\w+)' not implemented")
"""An operation in the text of a converter's error."""


def refusal(graph: DeployableGraph, target: str, tool: str, error: Exception, *, int8: bool = False) -> Exception:
    """What to raise where a converter, or the runtime on what it made, raised an error of its own.

    Args:
        graph: what was converted.
        target: the target's name.
        tool: who refuses, as the sentence's subject.
        error: any; one of edgekit's own, of the disk or of the memory is given back as it is.
        int8: whether it was quantized, of which more is known to fail.
    """
    if isinstance(error, EdgekitError | OSError | MemoryError):
        return error
    known = [entry for entry in failures(graph.module, target) if int8 or entry.precision == "any"]
    if known:
        first = known[0]
        others = f" ({len(known) - 1} more: edgekit lint names them)" if len(known) > 1 else ""
        return ConversionError(
            f"{tool} cannot convert {first.operation} in {_place(first.module, first.source)}: {first.reason}; {first.remedy}{others}"
        )
    node = _named(graph.module, _texts(error))
    if node is not None:
        return ConversionError(
            f"{tool} cannot convert {operation_of(node)} in {_place(module_of(node), source_of(node))}: "
            "write it with other operations, or leave this target out with --target"
        )
    *_, innermost = _chain(error)
    return ConversionError(
        f"{tool} cannot convert the network ({first_line(innermost)}): edgekit lint names modules that convert badly; "
        "leave this target out with --target"
    )


def _place(module: str, source: str) -> str:
    name = f"module '{module}'" if module else "the network itself"
    return f"{name} ({source})" if source else name


def _chain(error: BaseException) -> Iterator[Exception]:
    """An error and its causes."""
    cause: BaseException | None = error
    while isinstance(cause, Exception):
        yield cause
        cause = cause.__cause__


def _texts(error: Exception) -> str:
    return "\n".join(str(one) for one in _chain(error))


def _named(module: GraphModule, text: str) -> Node | None:
    """The first node of an operation that a text names, in the text's order; underscores aside, which exporters add."""
    names = dict.fromkeys(name.replace("_", "") for match in NAMED.finditer(text) for name in match.groups() if name)
    nodes: dict[str, Node] = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            nodes.setdefault(operation_of(node).replace("_", ""), node)
    return next((nodes[name] for name in names if name in nodes), None)
