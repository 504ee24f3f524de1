"""Helper functions that several targets share. No runtime is imported here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import ConversionError
from edgekit.core.values import (
    DeployableGraph,
    Float32,
    Quantization,
    Recipe,
    Scheme,
    TensorForm,
)

SMALLEST_REACH = 1e-30
"""A range that reaches less far is zero."""


def planes(frame: NDArray[Any]) -> NDArray[Any]:
    """[1, H, W, 3] -> [1, 3, H, W], channels apart in memory too."""
    return np.ascontiguousarray(frame.transpose(0, 3, 1, 2))


def require_quantization(recipe: Recipe, quantization: Quantization | None) -> Quantization:
    """What an int8 recipe is made with; raises ConversionError when it is not given."""
    if quantization is None:
        raise ConversionError(f"{recipe.precision} needs calibration frames: name them with --calib")
    return quantization


Name = TypeVar("Name")


@dataclass(frozen=True)
class Recognized(Generic[Name]):
    """What a float model's tensors are in the graph, by one look at the probe frame."""

    limits: dict[Name, Float32]
    """Of those that are nodes, by name: the least and largest value of each channel, float32 [channels, 2]."""
    unknown: list[Name]
    """Names of those that are no node."""
    kept: dict[Name, str]
    """Of those that layers kept in float give: the layer."""

    def ranges(self) -> dict[Name, tuple[float, float]]:
        """Smallest and largest value of each tensor that is a node."""
        from edgekit.export.values import whole_range

        return {name: whole_range(limits) for name, limits in self.limits.items()}


def recognize(
    graph: DeployableGraph,
    quantization: Quantization,
    recipe: Recipe,
    scheme: Scheme,
    tensors: Iterable[tuple[Name, NDArray[Any]]],
) -> Recognized[Name]:
    """Which nodes of the graph a float model's tensors are, so what their ranges are and which layers give them.

    Args:
        tensors: names and values for the probe, float; none is kept.

    Raises:
        UsageError: the recipe keeps a layer that does not exist.
    """
    from edgekit.export.layers import nodes_of
    from edgekit.export.values import find_nodes, known_limits

    layers = {node: layer for layer in recipe.keep_float for node in nodes_of(graph, (layer,))}
    seen: Recognized[Name] = Recognized({}, [], {})
    for name, value in tensors:
        nodes = find_nodes(graph, quantization, value)
        limits = known_limits(graph, quantization, scheme, nodes)
        if limits is None:
            seen.unknown.append(name)
        else:
            seen.limits[name] = limits
        for node in nodes:
            if node in layers:
                seen.kept[name] = layers[node]
    return seen


def kept_layers(recipe: Recipe, excluded: Collection[str]) -> tuple[str, ...]:
    """The recipe's layers that are kept in float, in its order; the others have no operation that would be int8 here.

    Args:
        excluded: layers of which an operation was left out of int8.
    """
    return tuple(layer for layer in recipe.keep_float if layer in excluded)


def with_width(ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The ranges with one for what is always zero, of which no scale can be made: from zero to what the others reach.

    Any would represent zeros; but kernels refuse scales that lie too far from those of what they read and give.
    """
    reaches = [max(-low, high) for low, high in ranges.values() if max(-low, high) > SMALLEST_REACH]
    usual = float(np.median(reaches)) if reaches else 1.0
    return {
        name: (low, high) if max(-low, high) > SMALLEST_REACH else (0.0, usual) for name, (low, high) in ranges.items()
    }


def widen(ranges: dict[str, tuple[float, float]], name: str, value: NDArray[Any]) -> None:
    """Have a tensor's range, if it has one, hold these values too, but for infinite ones, which stay in float."""
    low, high = ranges.get(name, (np.inf, -np.inf))
    least, most = float(value.min()), float(value.max())
    if not np.isfinite((least, most)).all():
        finite = value[np.isfinite(value)]
        least, most = float(finite.min(initial=0.0)), float(finite.max(initial=0.0))
    ranges[name] = (min(low, least), max(high, most))


def is_lost(constant: float, of_sum: tuple[float, float]) -> bool:
    """Whether a constant in a sum is less than a step of the int8 that would hold it."""
    low, high = min(of_sum[0], 0.0), max(of_sum[1], 0.0)
    return 0 < constant < (high - low) / 255


SMALLEST_PART = 1 / 8
"""A part of a join that reaches less far, beside the whole, has five bits of int8 or less there."""


def is_unlike(parts: Iterable[tuple[float, float]], whole: tuple[float, float]) -> bool:
    """Whether a join's parts, by their ranges, are too unlike for the one scale that its kernel gives them all."""
    reach = max(-whole[0], whole[1])
    reaches = [max(-low, high) for low, high in parts]
    return any(0 < one < SMALLEST_PART * reach for one in reaches)


def float_edges(recipe: Recipe, *, centred: bool = True) -> tuple[str, ...]:
    """What of the frame's way lies outside an int8 core, as a manifest words it.

    Args:
        centred: the mean colour is taken off in float, where other cores read the frame's bytes.
    """
    centring = ("centring of the frame",) if centred else ()
    return (*centring, *(("final upsampling and argmax",) if recipe.output == "labels" else ()))


def native_output(
    graph: DeployableGraph, recipe: Recipe, *, channels_last: bool = False, dtype: str = "float32"
) -> TensorForm:
    """What a model with labels or logits (of ``dtype``) as its output gives."""
    if recipe.output == "logits":
        classes, height, width = len(graph.class_names), graph.logits_size.height, graph.logits_size.width
        shape = (height, width, classes) if channels_last else (classes, height, width)
        return TensorForm(dtype, (1, *shape), "NHWC" if channels_last else "NCHW")
    return TensorForm("uint8", (1, graph.size.height, graph.size.width), "NHW")
