"""The values that a graph computes of a frame, one after another, and which of them a converted model's tensors are.

Converters rename, fuse and reorder, each in its own way; what their tensors hold is what all of them must keep.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from edgekit.core.values import DeployableGraph, Float32, Quantization, Scheme, UInt8
from edgekit.export.graph import normalize
from edgekit.export.nodes import constant_tensor, is_convolution, is_transposed_convolution

READING_MEMORY = (torch.ops.aten.as_strided.default, torch.ops.aten.view_as_complex.default)

SAMPLES = 4096
"""Positions by which a tensor is known."""

TOLERANCE = 0.01
"""Largest distance at which two tensors are one, relative to the length of what they hold; fp16 weights move it by 0.001."""

AS_LIKE, ROUNDING = 1.1, 1e-6
"""Nodes whose distance is no more than so many times the least, and float's rounding, cannot be told apart."""

LONG_ROW = 4096
"""Values that are compared with as many others at a time."""

Visitor = Callable[[Node, Tensor], Tensor]
"""Sees each float that the graph computes, the frame's planes first; what it returns takes the value's place."""


class _Visited(Interpreter):
    def __init__(self, module: GraphModule, visit: Visitor) -> None:
        super().__init__(module)
        self._visit = visit

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        is_value = n.op in ("placeholder", "call_function") and isinstance(value, Tensor) and value.is_floating_point()
        if is_value and value.dtype == torch.bfloat16:  # which numpy has not
            return self._visit(n, value.float()).to(value.dtype)
        return self._visit(n, value) if is_value else value


def visit_values(graph: DeployableGraph, frame: UInt8, visit: Visitor) -> Tensor:
    """Run the graph on a frame, uint8 [1, H, W, 3]; returns its logits, float32 [1, classes, h, w]. No value is kept.

    Maps lie in memory with their channels last, with which PyTorch's CPU kernels are three times as fast.
    """
    with torch.inference_mode():
        logits: Tensor = _Visited(_channels_last(graph), visit).run(_planes(graph, frame))
    return logits


def visit_operations(graph: DeployableGraph, frame: UInt8, look: Callable[[Node, tuple[Any, ...]], None]) -> None:
    """Run the graph on a frame, uint8 [1, H, W, 3], and show each operation with the arguments it is given. None is kept."""

    class Shown(Interpreter):
        def run_node(self, n: Node) -> Any:
            if n.op == "call_function":
                look(n, self.fetch_args_kwargs_from_env(n)[0])
            return super().run_node(n)

    with torch.inference_mode():
        Shown(_channels_last(graph)).run(_planes(graph, frame))


def all_values(graph: DeployableGraph, frame: UInt8) -> dict[Node, Any]:
    """What every node of the graph's channels-last twin gives for a frame, constants too: gigabytes for a large frame."""
    values: dict[Node, Any] = {}

    class Kept(Interpreter):
        def run_node(self, n: Node) -> Any:
            values[n] = super().run_node(n)
            return values[n]

    with torch.inference_mode():
        Kept(_channels_last(graph), garbage_collect_values=False).run(_planes(graph, frame))
    return values


def _planes(graph: DeployableGraph, frame: UInt8) -> Tensor:
    planes = normalize(torch.from_numpy(frame), graph.normalization)
    return planes.contiguous(memory_format=torch.contiguous_format if _reads_memory(graph) else torch.channels_last)


def _reads_memory(graph: DeployableGraph) -> bool:
    """Whether an operation sees how maps lie in memory, so that they must lie there as in the network."""
    return any(node.target in READING_MEMORY for node in graph.module.graph.nodes)


def _channels_last(graph: DeployableGraph) -> GraphModule:
    return graph.derived.once("channels last", None, lambda: _moved(graph))


def _moved(graph: DeployableGraph) -> GraphModule:
    module = copy.deepcopy(graph.module)
    for node in module.graph.nodes if not _reads_memory(graph) else ():
        weight = (
            constant_tensor(module, node.args[1]) if is_convolution(node) or is_transposed_convolution(node) else None
        )
        if weight is not None and weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return module


def as_cores_read(graph: DeployableGraph, node: Node, value: Tensor) -> Tensor:
    """A node's value; of the frame's planes the pixels less the mean colour, which is what all cores read (pixels.py)."""
    if node.op != "placeholder":
        return value
    return value / torch.from_numpy(graph.normalization.scale()).reshape(1, 3, 1, 1)


def from_cores(graph: DeployableGraph, node: Node, value: Tensor) -> Tensor:
    """The inverse of :func:`as_cores_read`."""
    if node.op != "placeholder":
        return value
    return value * torch.from_numpy(graph.normalization.scale()).reshape(1, 3, 1, 1)


@dataclass(frozen=True)
class _Mark:
    """What a node holds for the probe: its shape, and its values at some positions."""

    shape: tuple[int, ...]
    sample: Float32


def _marks(graph: DeployableGraph, quantization: Quantization) -> Mapping[str, _Mark]:
    return graph.derived.once("marks", quantization, lambda: _marked(graph, quantization))


def _marked(graph: DeployableGraph, quantization: Quantization) -> Mapping[str, _Mark]:
    marks: dict[str, _Mark] = {}

    def mark(node: Node, value: Tensor) -> Tensor:
        marks[node.name] = _Mark(tuple(value.shape), _sample(as_cores_read(graph, node, value).numpy()))
        return value

    visit_values(graph, quantization.probe, mark)
    return marks


def _sample(value: NDArray[Any]) -> Float32:
    """Values at positions that depend on nothing but their number, 0 for infinite ones: float32 [at most SAMPLES]."""
    positions: NDArray[np.int64] = (
        np.arange(value.size)
        if value.size <= SAMPLES
        else np.random.default_rng(value.size).integers(0, value.size, SAMPLES)
    )
    return np.nan_to_num(np.asarray(value.reshape(-1)[positions], np.float32), posinf=0.0, neginf=0.0)


def find_nodes(graph: DeployableGraph, quantization: Quantization, value: NDArray[Any]) -> tuple[str, ...]:
    """Names of the nodes that hold this for the probe, channels first or last: several where nothing tells them apart.

    Args:
        value: a float tensor of a converted model, of the probe's frame; a batch of one may be left out.
    """
    found: dict[str, float] = {}
    orders = [value, value.transpose(0, 3, 1, 2)] if value.ndim == 4 else [value]
    for ordered in orders:
        sample, shape = None, _without_batch(ordered.shape)
        errors: dict[str, float] = {}
        for name, mark in _marks(graph, quantization).items():
            if _without_batch(mark.shape) != shape:
                continue
            sample = _sample(ordered) if sample is None else sample
            length = float(np.linalg.norm(mark.sample))
            distance = float(np.linalg.norm(sample - mark.sample))
            errors[name] = distance / length if length else (0.0 if distance == 0.0 else np.inf)
        if min(errors.values(), default=np.inf) < min(found.values(), default=TOLERANCE):
            found = errors  # of one order alone: the same values in another have other channels
    least = min(found.values(), default=0.0)
    return tuple(name for name, error in found.items() if error <= AS_LIKE * least + ROUNDING)


def known_limits(
    graph: DeployableGraph, quantization: Quantization, scheme: Scheme, names: Collection[str]
) -> Float32 | None:
    """What int8 is to represent of a converted model's tensor by channel, float32 [channels, 2]; None where it is no node's.

    Of nodes that the probe cannot tell apart it holds all. Maps that are idle on the probe are all alike, and what each
    reaches on other frames is not: of those nothing is known.

    Args:
        names: the nodes that the tensor is, as :func:`find_nodes` finds them.
    """
    if not any(_marks(graph, quantization)[name].sample.any() for name in names):
        return None
    return reduce(joined_limits, (quantization.ranges[scheme][name] for name in names))


def _without_batch(shape: tuple[int, ...]) -> tuple[int, ...]:
    return _without_batch(shape[1:]) if shape[:1] == (1,) else shape


def channel_limits(value: NDArray[Any]) -> Float32:
    """Smallest and largest value by channel, float32 [channels, 2]; in one row of what is not [1, C, H, W]."""
    if value.ndim != 4 or value.shape[0] != 1:
        return np.asarray([[value.min(), value.max()]], np.float32)
    channels = value.shape[1]
    if value.strides[1] != value.itemsize:
        rows = value[0].reshape(channels, -1)
        return np.stack([rows.min(1), rows.max(1)], 1).astype(np.float32)
    pixels = value[0].transpose(1, 2, 0).reshape(-1)  # as they lie in memory
    together = max(1, LONG_ROW // channels)  # pixels in one row: numpy is slow over short ones
    while (pixels.size // channels) % together:
        together -= 1
    rows = pixels.reshape(-1, together * channels)
    low, high = (side.reshape(together, channels) for side in (rows.min(0), rows.max(0)))
    return np.stack([low.min(0), high.max(0)], 1).astype(np.float32)


def joined_limits(one: Float32, other: Float32) -> Float32:
    """Limits by channel, [channels, 2], that hold both."""
    return np.stack([np.minimum(one[:, 0], other[:, 0]), np.maximum(one[:, 1], other[:, 1])], 1)


def whole_range(limits: Float32) -> tuple[float, float]:
    """The range of all channels together."""
    return float(limits[:, 0].min()), float(limits[:, 1].max())
