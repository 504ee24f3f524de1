"""Channels of a map brought to like ranges, so that one int8 scale serves them all; the float network stays the same.

Scale a channel before a ReLU, a pooling, a bilinear resize or a sum, and what comes after is scaled alike. So the
convolutions that make a channel can be multiplied by a factor that those which read it are divided by (Nagel et al. 2019,
"Data-free quantization through weight equalization and bias correction", section 4.1). Factors are powers of two: what the
network gives is the same bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekit.core.values import DeployableGraph, Float32, Int64
from edgekit.export.nodes import add_constant, constant_tensor, drop_unused_constants, is_convolution, node_shape

aten = torch.ops.aten

RECTIFIERS = (aten.relu.default, aten.leaky_relu.default)

HOMOGENEOUS = (
    *RECTIFIERS,
    aten.prelu.default,
    aten._prelu_kernel.default,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.upsample_bilinear2d.vec,
    aten.upsample_nearest2d.vec,
)
"""Operations on each channel by itself for which f(2 x) = 2 f(x)."""

LARGEST_FACTOR = 2.0**24
"""A channel further than that from the others is as good as dead."""

LEVELS = 1.0, 64.0
"""Between these the largest value of a usual map lies; fp16 has room for values and weights on both sides."""

IDLE_SHARE = 1 / 32
"""A channel that stays below this share of what its weights allow may come nearer on other frames."""

Scales = Mapping[str, Float32]
"""What each channel of a map is multiplied by: float32 [channels], powers of two, by node; maps without one stay as they are."""


def find_scales(graph: DeployableGraph, reaches: Mapping[str, Float32], evenness: float) -> Scales:
    """Factors that bring the channels of each map to like ranges.

    Where depthwise convolutions alone read a channel, its range becomes the map's: their weights have a scale for each
    channel. Other convolutions have one scale for all the channels they read, so that what evens out values makes
    weights uneven. In both cases it does not matter how a network's channels were scaled before.

    Args:
        reaches: the largest absolute value of each channel on frames, float32 [channels], by node.
        evenness: 1 to make all values alike, 0 all weights, 1/2 to meet halfway.
    """
    channels = _Channels(graph.module)
    factors = _factors(graph.module, channels, reaches, evenness)
    return {
        node.name: scales
        for node, numbers in channels.of.items()
        if (scales := np.asarray([factors.get(int(one), 1.0) for one in numbers], np.float32)).min() != 1
        or scales.max() != 1
    }


def settled(graph: DeployableGraph, reaches: Mapping[str, Float32], scales: Scales) -> Scales:
    """The factors with whole maps brought to a usual level, together with those that share channels, where they are far from it.

    Equalization evens out the channels of a map and leaves the map where it was. Where a network's layers were scaled
    against each other, the weights that lead into a tiny map would be too small for the fp16 scales that Core ML has,
    and a huge map too large for fp16 itself.

    Args:
        reaches: the largest absolute value of each channel before these factors, float32 [channels], by node.
        scales: what :func:`find_scales` gives, or none.
    """
    channels = _Channels(graph.module)
    largest = {  # what is cut off by a ReLU does not count
        node: float((reaches[node.name] * scales.get(node.name, np.float32(1.0))).max())
        for node in channels.of
        if not node.users or any(user.target not in RECTIFIERS for user in node.users)
    }
    levels: dict[int, float] = {}
    for together in _connected(channels):
        of_maps = [reach for node, reach in largest.items() if reach > 0 and int(channels.of[node][0]) in together]
        usual = float(np.median(of_maps)) if of_maps else LEVELS[0]
        if not LEVELS[0] <= usual <= LEVELS[1] and not together & channels.fixed:
            factor = _power_of_two(float(np.sqrt(LEVELS[0] * LEVELS[1])) / usual)
            levels |= dict.fromkeys(together, float(np.clip(factor, 1 / LARGEST_FACTOR, LARGEST_FACTOR)))
    found = dict(scales)
    for node, numbers in channels.of.items():
        factors = np.asarray([levels.get(int(one), 1.0) for one in numbers], np.float32)
        if (factors != 1).any():
            found[node.name] = factors * scales.get(node.name, np.float32(1.0))
    return found


def equalized(graph: DeployableGraph, scales: Scales) -> DeployableGraph:
    """The graph with its convolutions' weights scaled so that its maps are; its nodes keep their names."""
    if not scales:
        return graph
    module = copy.deepcopy(graph.module)
    count = 0
    for node in list(module.graph.nodes):
        if not _is_scalable(module, node):
            continue
        source = cast(Node, node.args[0])
        weight, bias = _weight(module, node), _bias(module, node)
        out = scales.get(node.name, np.ones(weight.shape[0], np.float32))
        read = scales.get(source.name, np.ones(node_shape(source)[1], np.float32))[_read_channels(node, weight)]
        if (out == 1).all() and (read == 1).all():
            continue
        factor = torch.from_numpy(out[:, None] / read)[:, :, None, None]
        constants = [add_constant(module, node, "equalized_weight", weight * factor)]
        if bias is not None:
            constants.append(add_constant(module, node, "equalized_bias", bias * torch.from_numpy(out)))
        node.args = (source, *constants, *node.args[1 + len(constants) :])
        count += bool((out != 1).any())
    module.graph.eliminate_dead_code()
    drop_unused_constants(module)
    module.graph.lint()
    module.recompile()
    return replace(
        graph, module=module, origin=graph.origin or graph, rewrites=(*graph.rewrites, f"equalize_channels x {count}")
    )


class _Channels:
    """Which channels of which maps must bear one factor, as a union of sets.

    Attributes:
        of: a number for each channel of each map, float [1, C, H, W]; channels of one number are scaled alike.
        fixed: numbers of channels that cannot be scaled.
    """

    def __init__(self, module: GraphModule) -> None:
        self.of: dict[Node, Int64] = {}
        self._parent: list[int] = []
        fixed: set[int] = set()
        for node in module.graph.nodes:
            numbers = self._carried(node, fixed) if _is_map(node) else None
            if numbers is None and _is_scalable(module, node):
                numbers = self._new(node)
            elif numbers is None:
                for source in node.all_input_nodes:
                    fixed.update(self.of.get(source, np.empty(0, np.int64)).tolist())
                if _is_map(node):
                    numbers = self._new(node)
                    fixed.update(numbers.tolist())
            if numbers is not None:
                self.of[node] = numbers
        self.of = {node: np.asarray([self._root(int(one)) for one in numbers]) for node, numbers in self.of.items()}
        self.fixed = frozenset(self._root(one) for one in fixed)

    def _carried(self, node: Node, fixed: set[int]) -> Int64 | None:
        """The channels of an operation whose result is scaled as what it reads; None of others.

        Args:
            fixed: receives the channels of a gate, which weighs those of a map.
        """
        if node.target in HOMOGENEOUS or _is_mean_of_places(node):
            return self.of.get(cast(Node, node.args[0]))
        if (gated := _gated(node)) is not None and all(one in self.of for one in gated):
            values, gate = gated
            fixed.update(self.of[gate].tolist())
            return self.of[values]
        if node.target is aten.add.Tensor and not node.kwargs and all(term in self.of for term in node.args):
            one, other = (self.of[cast(Node, term)] for term in node.args)
            if len(one) == len(other):
                for first, second in zip(one.tolist(), other.tolist(), strict=True):
                    self._parent[self._root(second)] = self._root(first)
                return one
        if node.target is aten.cat.default and node.args[1:] == (1,):
            parts = cast("list[Node]", node.args[0])
            if all(part in self.of for part in parts):
                return np.concatenate([self.of[part] for part in parts])
        return None

    def _new(self, node: Node) -> Int64:
        numbers = len(self._parent) + np.arange(node_shape(node)[1])
        self._parent += numbers.tolist()
        return numbers

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = number = self._parent[self._parent[number]]
        return number


def _is_map(node: Node) -> bool:
    value = node.meta.get("val")
    return (
        node.op != "get_attr"
        and isinstance(value, Tensor)
        and value.ndim == 4
        and value.is_floating_point()
        and value.shape[0] == 1
    )


def _is_mean_of_places(node: Node) -> bool:
    """Whether it is each channel's mean over a map, as a gate looks at it."""
    return (
        node.target is aten.mean.dim
        and not node.kwargs
        and len(node.args) == 3
        and isinstance(node.args[1], list | tuple)
        and sorted(side % 4 for side in cast("list[int]", node.args[1])) == [2, 3]
        and bool(node.args[2])
    )


def _gated(node: Node) -> tuple[Node, Node] | None:
    """A map and the factor of each of its channels, [1, C, 1, 1] or [1, 1, h, w], that a product weighs it with."""
    if node.target is not aten.mul.Tensor or node.kwargs or not all(isinstance(one, Node) for one in node.args):
        return None
    one, other = cast("tuple[Node, Node]", node.args)
    for values, gate in ((one, other), (other, one)):
        smaller = _is_map(values) and _is_map(gate) and node_shape(values) == node_shape(node) != node_shape(gate)
        if smaller and values is not gate:
            return values, gate
    return None


def _is_scalable(module: GraphModule, node: Node) -> bool:
    """A convolution with constant weights that no other node reads."""
    constants = [source for source in node.args[1:3] if source is not None]
    return (
        is_convolution(node)
        and _is_map(node)
        and _is_map(cast(Node, node.args[0]))
        and all(
            constant_tensor(module, source) is not None and len(cast(Node, source).users) == 1 for source in constants
        )
    )


def _weight(module: GraphModule, node: Node) -> Tensor:
    weight = constant_tensor(module, node.args[1])
    assert weight is not None
    return weight.detach()


def _bias(module: GraphModule, node: Node) -> Tensor | None:
    bias = constant_tensor(module, node.args[2]) if len(node.args) > 2 else None
    return None if bias is None else bias.detach()


def _read_channels(node: Node, weight: Tensor) -> Int64:
    """The channel of its input that each weight of a convolution reads: [O, I / groups]."""
    groups = node_shape(cast(Node, node.args[0]))[1] // weight.shape[1]
    group = np.arange(weight.shape[0]) // (weight.shape[0] // groups)
    return group[:, None] * weight.shape[1] + np.arange(weight.shape[1])


def _factors(
    module: GraphModule, channels: _Channels, reaches: Mapping[str, Float32], evenness: float
) -> dict[int, float]:
    """The factor of each number in :class:`_Channels`, where it is not 1."""
    reach: dict[int, float] = {}  # of its values
    weighs: dict[int, float] = {}  # of the weights that read it, each against what it goes into
    shared: set[int] = set()  # is read by convolutions with one scale for several channels
    for node, numbers in channels.of.items():
        if not node.users or any(user.target not in RECTIFIERS for user in node.users):
            _raise(reach, numbers, reaches[node.name])
        if not _is_scalable(module, node):
            continue
        source = cast(Node, node.args[0])
        weight, bias = _weight(module, node), _bias(module, node)
        read = _read_channels(node, weight)
        size = weight.abs().numpy()
        possible = (size.sum((2, 3)) * reaches[source.name][read]).sum(1)
        possible = possible if bias is None else possible + bias.abs().numpy()
        _raise(reach, numbers, IDLE_SHARE * possible)
        result = np.maximum(reaches[node.name], IDLE_SHARE * possible).clip(np.finfo(np.float32).tiny)
        _raise(weighs, channels.of[source][read].ravel(), (size.max((2, 3)) / result[:, None]).ravel())
        if weight.shape[1] > 1:
            shared.update(channels.of[source].tolist())
    factors: dict[int, float] = {}
    for together in _connected(channels):
        free = [one for one in together - channels.fixed if reach.get(one, 0.0) > 0 and weighs.get(one, 0.0) > 0]
        whole = max((reach.get(one, 0.0) for one in together), default=0.0)
        for kind in (shared, together - shared):
            ends = {
                one: (weighs[one] * reach[one]) ** (1 - evenness) if one in shared else 1.0
                for one in free
                if one in kind
            }
            raised = _power_of_two(whole / max(ends.values(), default=1.0))  # so that the largest stays about as large
            for one, end in ends.items():
                factor = raised * _power_of_two(end / reach[one])
                factors[one] = float(np.clip(factor, 1 / LARGEST_FACTOR, LARGEST_FACTOR))
    return factors


def _power_of_two(factor: float) -> float:
    """The nearest; 1 for 0."""
    return 2.0 ** round(np.log2(factor)) if factor > 0 else 1.0


def _raise(held: dict[int, float], numbers: NDArray[Any], values: NDArray[Any]) -> None:
    """Have each number hold no less than its value."""
    for number, value in zip(numbers.tolist(), values.tolist(), strict=True):
        held[number] = max(held.get(number, 0.0), value)


def _connected(channels: _Channels) -> Iterator[set[int]]:
    """Channels that lie in one map, and in maps that share some with it."""
    left = [set(numbers.tolist()) for numbers in channels.of.values()]
    while left:
        together = left.pop()
        while touching := [one for one in left if one & together]:
            left = [one for one in left if not one & together]
            together = together.union(*touching)
        yield together
