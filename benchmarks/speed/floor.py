"""The floor: how fast this machine could run the network at best, from its own measured rates.

Run: python -m benchmarks.speed.floor. Operations of the deployable graph over the rate of a large matrix product (float32,
bfloat16, int8), and bytes over the bandwidth of a large copy. Bytes: weights once, every map written once and read once by
each operation that reads it; an activation function belongs to what it follows. No engine that runs operation after
operation can be below both; ``benchmarks/results.md`` sets the measured times beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.fx import GraphModule, Node

from benchmarks.shared.measured import keep
from edgekit.core.progress import Progress
from edgekit.core.values import Size
from edgekit.devices.environment import available_cores
from edgekit.networks.checkpoint import load_checkpoint
from edgekit.pipeline.artifacts import lazy_graph

SIZES = ("1024x2048", "1024x1024", "512x1024")
SIDE = 3072
SECONDS = 4.0
aten = torch.ops.aten
IN_PLACE = (aten.relu.default, aten.hardtanh.default, aten.clamp.default)
VIEWS = (aten.permute.default, aten.reshape.default)


def best(work: Callable[[], object]) -> float:
    """Shortest of many repetitions, in seconds."""
    shortest, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        start = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def rates() -> dict[str, float]:
    """Operations a second (a product and a sum are two) and bytes a second, all cores."""
    torch.set_num_threads(available_cores())
    single = torch.randn(SIDE, SIDE)
    half = single.bfloat16()
    whole = torch.randint(-127, 127, (SIDE, SIDE), dtype=torch.int8)
    source, target = torch.randn(1 << 26), torch.empty(1 << 26)
    operations = 2 * SIDE**3
    return {
        "fp32": operations / best(lambda: single @ single),
        "bf16": operations / best(lambda: half @ half),
        "int8": operations / best(lambda: torch._int_mm(whole, whole)),
        "bytes": 2 * source.nbytes / best(lambda: target.copy_(source)),
    }


def counts(module: GraphModule) -> tuple[int, int, int]:
    """Multiply-adds, values of maps written and read, values of weights."""
    multiplications = moved = weights = 0
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target in (*IN_PLACE, *VIEWS):
            continue
        shape = tuple(node.meta["val"].shape)
        moved += prod(shape)
        for source in node.all_input_nodes:
            size = prod(tuple(source.meta["val"].shape)) if source.op != "get_attr" else 0
            moved += size
        constants = [source for source in node.all_input_nodes if source.op == "get_attr"]
        weights += sum(prod(value_shape(module, source)) for source in constants)
        if node.target is aten.conv2d.default:
            kernel = value_shape(module, node.all_input_nodes[1])
            multiplications += prod(shape) * prod(kernel[1:])
        elif node.target is aten.matmul.default:
            multiplications += prod(shape) * int(node.all_input_nodes[0].meta["val"].shape[-1])
    return multiplications, moved, weights


def value_shape(module: GraphModule, node: Node) -> tuple[int, ...]:
    """Shape of a constant."""
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return tuple(value.shape)


def main() -> None:
    """Measure the rates, count the work of each size, print and keep the floors."""
    found = rates()
    print(", ".join(f"{name} {value / 1e9:.0f} G/s" for name, value in found.items()))
    checkpoint = load_checkpoint("spssn-streets")
    rows = {}
    for text in SIZES:
        graph = lazy_graph(checkpoint, Size.parse(text), Progress(silent=True))()
        assert isinstance(graph.module, GraphModule)
        multiplications, moved, weights = counts(graph.module)
        floors = {}
        for precision, width in (("fp32", 4), ("bf16", 2), ("int8", 1)):
            compute = 1e3 * 2 * multiplications / found[precision]
            traffic = 1e3 * (moved + weights) * width / found["bytes"]
            floors[precision] = {"compute_ms": compute, "traffic_ms": traffic}
            print(f"{text} {precision}: {compute:.1f} ms of operations, {traffic:.1f} ms of bytes")
        rows[text] = {"multiply_adds": multiplications, "values_moved": moved, "weights": weights, "floors": floors}
    keep("floor", {"checkpoint": checkpoint.name, "rates": found, "sizes": rows})


if __name__ == "__main__":
    main()
