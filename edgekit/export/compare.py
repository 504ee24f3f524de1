"""Two converted models of one checkpoint, layer by layer: where they part.

A model's tensors are known as the network's values by what they hold, as in :mod:`edgekit.export.values`, but loosely: int8 moves
every value a little, and a fault may move them much. A tensor is taken for the value that it correlates with most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from edgekit.core.values import DeployableGraph, Float32, UInt8
from edgekit.export.layers import layers_of
from edgekit.export.values import visit_values

POSITIONS = 256
"""Pixels of a map at which tensors are compared, all channels at each; drawn once for each height and width."""

UNLIKE = 0.5
"""What a value leaves unexplained of a tensor that is none of the network's, as a share of the tensor's length."""

AS_LIKE = 1.01
"""A tensor is also another value's where that leaves no more unexplained than so many times the least: a copy, say."""

ROUNDING = 1e-6
"""A difference below this share is float32's rounding."""

Shape = tuple[int, int, int]
"""Channels, height and width."""

Look = Callable[[str, NDArray[Any]], None]
"""Is shown the name and the values of a tensor; must not keep the values."""


@dataclass(frozen=True)
class LayerDistance:
    """How far apart two models are at one layer, each as a share of the float result's root mean square.

    Attributes:
        layer: its name, see :class:`edgekit.export.layers.Layer`.
        first, second: of each model to the float network; None where it has no tensor like this layer's result.
        apart: of one model to the other.
    """

    layer: str
    first: float | None
    second: float | None
    apart: float | None


@dataclass(frozen=True)
class Parting:
    """Where two models part.

    Attributes:
        layer: the first at which they are further apart than tolerated, or that one of them has lost; None where there is none.
        lost: ``first`` or ``second`` where that model has nothing like this layer or any after it.
        unseen: layers just before it that were not compared, for want of a tensor on one side: it may be one of them.
        steepest: the layer at which they move apart most beyond what comes in; None where nothing was compared.
    """

    layer: str | None
    lost: str | None
    unseen: tuple[str, ...]
    steepest: str | None


@dataclass
class Samples:
    """What a model's tensors hold at some positions, over one frame or several.

    Attributes:
        shapes: of the tensors that are looked for; others are passed over.
        rescaled: channels may be scaled by powers of two against the float network's, and sums as a whole by anything, as int8's
            are (equalization; one scale for what is added).
        values: float32 [channels, positions] of each frame, by tensor and the shape that it was taken to have.
    """

    shapes: frozenset[Shape]
    rescaled: bool
    values: dict[tuple[str, Shape], list[Float32]] = field(default_factory=dict)

    def look(self, name: str, value: NDArray[Any]) -> None:
        """Take down a tensor [1, C, H, W] or [1, H, W, C], with or without the batch."""
        if value.ndim == 4 and value.shape[0] == 1:
            value = value[0]
        if value.ndim != 3:
            return
        readings = {tuple(value.shape): value, tuple(np.roll(value.shape, 1)): value.transpose(2, 0, 1)}
        for shape, planes in readings.items():
            if shape in self.shapes:
                self.values.setdefault((name, shape), []).append(_sample(planes))

    def matched(self, graph: DeployableGraph, expected: Mapping[str, Float32]) -> dict[str, Float32]:
        """The tensor that is each of the network's values, scaled as expected; absent where there is none.

        Args:
            expected: what :func:`float_samples` gives.
        """
        shapes, sums = map_shapes(graph), _sums(graph)
        best: dict[str, tuple[float, Float32]] = {}
        for (_, shape), frames in self.values.items():
            tensor = np.concatenate(frames, 1)
            if not np.isfinite(tensor).all():  # like nothing that the network computes
                continue
            alike: dict[str, tuple[float, Float32]] = {}
            for name, value in expected.items():
                if shapes[name] == shape and value.shape == tensor.shape:
                    reading = _rescaled(tensor, value, as_a_whole=name in sums) if self.rescaled else tensor
                    alike[name] = _unexplained(reading, value), reading
            shares = _least({name: share for name, (share, _) in alike.items() if share < UNLIKE})
            # A value and its multiple leave the same unexplained: the nearer of them it is.
            distances = {name: relative_distance(alike[name][1], expected[name], expected[name]) for name in shares}
            for name, distance in _least(distances).items():
                if name not in best or distance < best[name][0]:
                    best[name] = distance, alike[name][1]
        return {name: reading for name, (_, reading) in best.items()}


def _least(numbers: Mapping[str, float]) -> dict[str, float]:
    """Those that are the least of all, but for what :data:`AS_LIKE` and rounding allow."""
    least = min(numbers.values(), default=0.0)
    return {name: number for name, number in numbers.items() if number <= max(AS_LIKE * least, least + ROUNDING)}


def relative_distance(one: Float32, other: Float32, whole: Float32) -> float:
    """Root mean square of the difference over that of ``whole``."""
    length = float(np.linalg.norm(whole))
    difference = float(np.linalg.norm(one - other))
    return difference / length if length else (0.0 if difference == 0.0 else np.inf)


def map_shapes(graph: DeployableGraph) -> dict[str, Shape]:
    """Shapes of the maps that the network computes, by the name of the node that gives it; other values are not compared."""
    shapes: dict[str, Shape] = {}
    for node in graph.module.graph.nodes:
        value = node.meta.get("val")
        is_map = isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()
        if node.op == "call_function" and is_map:
            channels, height, width = (int(side) for side in value.shape[1:])
            shapes[node.name] = channels, height, width
    return shapes


def float_samples(graph: DeployableGraph, frames: Sequence[UInt8]) -> dict[str, Float32]:
    """What the network's maps hold at the positions where models are looked at: float32 [channels, positions] by node."""
    wanted = map_shapes(graph)
    taken: dict[str, list[Float32]] = {name: [] for name in wanted}

    def look(node: Node, value: Any) -> Any:
        if node.name in wanted:
            taken[node.name].append(_sample(value[0].numpy()))
        return value

    for frame in frames:
        visit_values(graph, frame, look)
    return {name: np.concatenate(of_frames, 1) for name, of_frames in taken.items()}


def compare_layers(
    graph: DeployableGraph, expected: Mapping[str, Float32], first: Samples, second: Samples
) -> tuple[LayerDistance, ...]:
    """The distances at every layer that gives a map, in the network's order.

    Args:
        expected: what :func:`float_samples` gives for the same frames.
    """
    shapes, rows = map_shapes(graph), []
    one, other = (model.matched(graph, expected) for model in (first, second))
    for layer, node in _results(graph).items():
        if node in shapes:
            whole = expected[node]
            ends = [found.get(node) for found in (one, other)]
            first_off, second_off = (None if end is None else relative_distance(end, whole, whole) for end in ends)
            apart = relative_distance(ends[0], ends[1], whole) if ends[0] is not None and ends[1] is not None else None
            rows.append(LayerDistance(layer, first_off, second_off, apart))
    return tuple(rows)


def parting(graph: DeployableGraph, distances: Sequence[LayerDistance], tolerance: float) -> Parting:
    """Where two models part.

    A layer without a tensor of its own, fused into the next or rewritten, is passed over; one after which nothing of the
    network is found again is where a model has lost it.

    Args:
        tolerance: the largest distance between the two that is passed over.
    """
    after, before = _neighbours(graph)
    rows = {row.layer: row for row in distances}
    found: tuple[str | None, str | None, tuple[str, ...]] = None, None, ()
    for row in distances:
        lost = next((side for side in ("first", "second") if _is_lost(row.layer, side, rows, after)), None)
        if lost is not None or (row.apart is not None and row.apart > tolerance):
            _, unseen = _nearest_before(row.layer, rows, before)
            found = row.layer, lost, tuple(other.layer for other in distances if other.layer in unseen)
            break

    def step(row: LayerDistance) -> float:
        assert row.apart is not None
        come_in = [rows[name].apart or 0.0 for name in _nearest_before(row.layer, rows, before)[0]]
        return row.apart - max(come_in, default=0.0)

    compared = [row for row in distances if row.apart is not None]
    steepest = max(compared, key=step).layer if compared else None
    return Parting(*found, steepest)


def _sample(planes: NDArray[Any]) -> Float32:
    """[C, H, W] -> float32 [C, positions]; the positions depend on nothing but H and W."""
    height, width = planes.shape[1:]
    pixels = height * width
    positions = np.arange(pixels)
    if pixels > POSITIONS:
        positions = np.random.default_rng((height, width)).integers(0, pixels, POSITIONS)
    taken: Float32 = planes[:, positions // width, positions % width].astype(np.float32)
    return taken


def _unexplained(tensor: Float32, value: Float32) -> float:
    """What is left of a tensor after the multiple of a value that is nearest to it, as a share of its length."""
    # In float32 the square root below would make 3e-4 of rounding, and of a value and its multiple the wrong one be taken.
    one, other = tensor.astype(np.float64), value.astype(np.float64)
    length, whole = float(np.linalg.norm(one)), float(np.linalg.norm(other))
    if not length or not whole:
        return 0.0 if length == whole else 1.0
    along = float(np.vdot(one, other)) / (length * whole)
    return float(np.sqrt(max(0.0, 1.0 - along * along)))


def _sums(graph: DeployableGraph) -> frozenset[str]:
    """Names of the nodes that add two maps."""
    nodes = graph.module.graph.nodes
    return frozenset(node.name for node in nodes if node.target == torch.ops.aten.add.Tensor)


def _rescaled(found: Float32, expected: Float32, *, as_a_whole: bool) -> Float32:
    """Each channel multiplied by the power of two that makes it about as long as expected, and all by what fits best."""
    lengths, wanted = np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1)
    ratio = np.divide(wanted, lengths, out=np.ones_like(wanted), where=(lengths > 0) & (wanted > 0))
    scaled: Float32 = found * np.exp2(np.round(np.log2(ratio)))[:, None].astype(np.float32)
    square = float(np.vdot(scaled, scaled))
    return scaled * np.float32(np.vdot(scaled, expected) / square) if as_a_whole and square else scaled


def _results(graph: DeployableGraph) -> dict[str, str]:
    """The last node of each layer but the frame, by the layer's name, in the order of those nodes.

    A module may do one operation several times, all of them one layer: what it gave last may come after other layers.
    """
    order = {node.name: index for index, node in enumerate(graph.module.graph.nodes)}
    layers = [layer for layer in layers_of(graph) if layer.name != "frame"]
    last = {layer.name: max(layer.nodes, key=lambda name: order[name]) for layer in layers}
    return dict(sorted(last.items(), key=lambda pair: order[pair[1]]))


def _neighbours(graph: DeployableGraph) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """The layers that read each layer, and those that it reads."""
    layer_of = {node: layer.name for layer in layers_of(graph) for node in layer.nodes}
    after: dict[str, set[str]] = {name: set() for name in layer_of.values()}
    before: dict[str, set[str]] = {name: set() for name in layer_of.values()}
    for node in graph.module.graph.nodes:
        for source in node.all_input_nodes:
            reader, read = layer_of.get(node.name), layer_of.get(source.name)
            if reader is not None and read is not None and reader != read:
                after[read].add(reader)
                before[reader].add(read)
    return after, before


def _reached(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for name in edges[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def _is_lost(layer: str, side: str, rows: Mapping[str, LayerDistance], after: Mapping[str, set[str]]) -> bool:
    here = {layer, *_reached(layer, after)} & rows.keys()
    return all(getattr(rows[name], side) is None for name in here)


def _nearest_before(
    layer: str, rows: Mapping[str, LayerDistance], before: Mapping[str, set[str]]
) -> tuple[set[str], set[str]]:
    """The nearest layers before one at which the two were compared, and those between at which they were not."""
    known: set[str] = set()
    unseen: set[str] = set()
    waiting = [layer]
    while waiting:
        for name in before[waiting.pop()] - known - unseen:
            if name in rows and rows[name].apart is not None:
                known.add(name)
            else:
                unseen.add(name)
                waiting.append(name)
    return known, unseen & rows.keys()
