"""What the tests of conversions share: the graph of a small network."""

from __future__ import annotations

import torch
from torch import nn

from edgekit.core.values import DeployableGraph, Normalization, Size
from edgekit.export.graph import export_aten
from edgekit.export.rewrites import apply_rewrites


def graph_of(
    network: nn.Module, size: Size, rewrites: bool = False, normalization: Normalization | None = None
) -> DeployableGraph:
    """The network's own graph, or the rewritten one; its classes are "class 0" and on."""
    example = torch.zeros(1, 3, size.height, size.width)
    with torch.no_grad():
        module = export_aten(network.eval(), example)
        applied = apply_rewrites(module) if rewrites else ()
        logits = module(example)
    names = tuple(f"class {index}" for index in range(logits.shape[1]))
    shape = Size(*logits.shape[2:])
    return DeployableGraph(module, size, shape, names, normalization or Normalization(), "0" * 64, applied)
