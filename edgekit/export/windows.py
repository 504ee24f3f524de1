"""Pooling, padding, parts of maps, resizes and convolutions that a converter gets wrong, or refuses, in what all of them have right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from edgekit.export.forms import Forms, register
from edgekit.export.nodes import argument

aten = torch.ops.aten

FORMS: Forms = {}
_form = partial(register, FORMS)


# Pooling -------------------------------------------------------------------------------------------------------------


def _is_average_of_another_count(node: Node) -> bool:
    """Windows that reach beyond the padding, or a divisor of their own."""
    spatial = node.args[0].meta["val"].shape[2:]  # type: ignore[union-attr]
    kernel, stride, padding = _window(
        len(spatial), *(argument(node, name) for name in ("kernel_size", "stride", "padding"))
    )
    beyond = [_beyond(length, *sides) > 0 for length, *sides in zip(spatial, kernel, stride, padding, strict=True)]
    overhangs = bool(argument(node, "ceil_mode")) and any(beyond) and max(padding) > 0
    return overhangs or argument(node, "divisor_override") is not None


@_form(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default, where=_is_average_of_another_count)
def average_pooling(self: Tensor, **given: Any) -> Any:
    """An average of full windows, the map continued by zeros, times a constant: the window's size by what PyTorch divides by."""
    spatial = self.shape[2:]
    kernel, stride, padding = _window(len(spatial), *(given[name] for name in ("kernel_size", "stride", "padding")))
    beyond = [
        _beyond(length, *sides) if given["ceil_mode"] else 0
        for length, *sides in zip(spatial, kernel, stride, padding, strict=True)
    ]
    if any(beyond):
        self = F.pad(self, [side for after in reversed(beyond) for side in (0, after)])
    pooling = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(spatial) - 1]
    averages = pooling(self, kernel, stride, padding)
    divisor, size = given.get("divisor_override"), math.prod(kernel)
    if divisor is not None:
        return averages * (size / divisor)
    factor = np.ones((1, 1))
    for axis, (length, outputs) in enumerate(zip(spatial, averages.shape[2:], strict=True)):
        places = np.arange(outputs) * stride[axis] - padding[axis]
        counts = _counts(length, places, kernel[axis], padding[axis], inside=not given["count_include_pad"])
        factor = factor[..., None] * (kernel[axis] / counts)
    return averages * torch.from_numpy(factor.astype(str(self.dtype).removeprefix("torch.")))


def _window(axes: int, *given: Any) -> tuple[list[int], list[int], list[int]]:
    """Kernel, stride and padding by axis."""
    kernel, stride, padding = (list(one) * (axes if len(one) == 1 else 1) for one in given)
    return kernel, stride or kernel, padding


def _beyond(length: int, kernel: int, stride: int, padding: int) -> int:
    """How far the last window of a pooling with ceil_mode reaches beyond the padding."""
    outputs = -(-(length + 2 * padding - kernel) // stride) + 1
    outputs -= (outputs - 1) * stride >= length + padding  # a window must begin on the map, or in the padding before it
    return max(0, (outputs - 1) * stride + kernel - length - 2 * padding)


def _counts(length: int, starts: np.ndarray, kernel: int, padding: int, *, inside: bool) -> np.ndarray:
    """By how much PyTorch divides along one axis: the window's places on the map, or on the padded one."""
    ends = np.minimum(starts + kernel, length + padding)
    counts: np.ndarray = np.minimum(ends, length) - np.maximum(starts, 0) if inside else ends - starts
    return counts


def _gives_maxima_alone(node: Node) -> bool:
    """Whether nothing reads the places of the maxima."""
    return not any(user.args[1] == 1 and user.users for user in node.users)


@_form(aten.max_pool2d_with_indices.default, where=_gives_maxima_alone)
def _max_pooling(self: Tensor, **options: Any) -> Any:
    return (F.max_pool2d(self, **{**options, "stride": options["stride"] or None}),) * 2


@_form(aten.adaptive_max_pool2d.default, where=_gives_maxima_alone)
def _adaptive_max_pooling(self: Tensor, output_size: Sequence[int]) -> Any:
    """A pooling where the bins divide the map, else a maximum for each row of bins, and for each column of those."""
    lengths = self.shape[-2:]
    if all(length % bins == 0 for length, bins in zip(lengths, output_size, strict=True)):
        window = [length // bins for length, bins in zip(lengths, output_size, strict=True)]
        return (F.max_pool2d(self, window) if output_size != [1, 1] else self.amax((-2, -1), keepdim=True),) * 2
    for axis, bins in zip((self.ndim - 2, self.ndim - 1), output_size, strict=True):
        length = self.shape[axis]
        ends = [(index * length // bins, -((-(index + 1) * length) // bins)) for index in range(bins)]
        self = torch.cat([part(self, axis, start, end).amax(axis, keepdim=True) for start, end in ends], axis)
    return self, self


# Parts of maps -------------------------------------------------------------------------------------------------------


def part(x: Tensor, axis: int, start: int, end: int) -> Tensor:
    """Places start to end of an axis."""
    result: Tensor = aten.slice.Tensor(x, axis, start, end)
    return result


@_form(
    aten.pad.default,
    where=lambda node: argument(node, "mode") == "circular" or any(side < 0 for side in argument(node, "pad")),
)
def _pad(self: Tensor, pad: Sequence[int], mode: str, value: float | None) -> Any:
    """Padding by a negative number takes away, of mirrors what they show aside; what goes round is the map's other end."""
    more, less = [max(side, 0) for side in pad], [max(-side, 0) for side in pad]
    mirrors = mode in ("reflect", "replicate")
    if mirrors and any(more):
        self = F.pad(self, more, mode)
    for index in range(len(pad) // 2):
        axis = self.ndim - 1 - index
        before, after = less[2 * index : 2 * index + 2]
        if before or after:
            self = part(self, axis, before, self.shape[axis] - after)
    if mirrors or not any(more):
        return self
    return _wrapped(self, more) if mode == "circular" else F.pad(self, more, mode, value)


def _wrapped(x: Tensor, pad: Sequence[int]) -> Tensor:
    for index in range(len(pad) // 2):
        axis = x.ndim - 1 - index
        length, (before, after) = x.shape[axis], pad[2 * index : 2 * index + 2]
        ends = [part(x, axis, length - before, length)] if before else []
        starts = [part(x, axis, 0, after)] if after else []
        x = torch.cat([*ends, x, *starts], axis) if before or after else x
    return x


@_form(aten.copy.default)
def _copy(self: Tensor, src: Tensor, **_: Any) -> Any:
    """What an assignment writes, in the type and the size of what it overwrites: OpenVINO takes what is overwritten."""
    value = src if src.dtype == self.dtype else src.to(self.dtype)
    return value if value.shape == self.shape else value.expand(self.shape)


@_form(aten.rot90.default)
def _rot90(self: Tensor, k: int, dims: Sequence[int]) -> Any:
    first, second = dims
    if k % 2 == 0:
        return self.flip(list(dims)) if k % 4 == 2 else self
    return self.transpose(first, second).flip(first if k % 4 == 1 else second)


@_form(aten.take_along_dim.default, where=lambda node: argument(node, "dim") is not None)
def _take_along_dim(self: Tensor, indices: Tensor, dim: int) -> Any:
    lengths = [max(here, there) for here, there in zip(self.shape, indices.shape, strict=True)]
    map_shape, places_shape = list(lengths), list(lengths)
    map_shape[dim], places_shape[dim] = self.shape[dim], indices.shape[dim]
    return torch.gather(self.expand(map_shape), dim, indices.expand(places_shape))


@_form(aten.slice_scatter.default, where=lambda node: argument(node, "step") == 1)
def _slice_scatter(self: Tensor, src: Tensor, dim: int, start: int | None, end: int | None, **_: Any) -> Any:
    length = self.shape[dim]
    first, last = slice(start, end).indices(length)[:2]
    parts = [part(self, dim, 0, first), src, part(self, dim, last, length)]
    return torch.cat([one for one in parts if one.shape[dim]], dim)


@_form(aten.select_scatter.default)
def _select_scatter(self: Tensor, src: Tensor, dim: int, index: int) -> Any:
    place = index % self.shape[dim]
    return _slice_scatter(self, src.unsqueeze(dim), dim, place, place + 1)


@_form(aten.channel_shuffle.default, aten.native_channel_shuffle.default)
def _channel_shuffle(self: Tensor, groups: int) -> Any:
    batch, channels, *sides = self.shape
    return self.reshape(batch, groups, channels // groups, *sides).transpose(1, 2).reshape(self.shape)


@_form(aten.unsafe_split.Tensor)
def _unsafe_split(self: Tensor, split_size: int, dim: int) -> Any:
    return torch.split(self, split_size, dim)


@_form(aten.unfold.default)
def _unfold(self: Tensor, dimension: int, size: int, step: int) -> Any:
    """Windows of any axis, as nn.Unfold has them of two: the map from each place in the window on, side by side."""
    length = self.shape[dimension] - size + 1
    places = [aten.slice.Tensor(self, dimension, place, place + length, step) for place in range(size)]
    return torch.stack(places, -1)


# Resizes and convolutions --------------------------------------------------------------------------------------------


def _leaves_a_part_over(node: Node) -> bool:
    """A resize by a factor, to a map that no whole number of pixels gives: converters keep the sizes alone."""
    factors = argument(node, "scale_factors") or ()
    lengths = node.args[0].meta["val"].shape[2:]  # type: ignore[union-attr]
    return any(length * factor % 1 for length, factor in zip(lengths, factors, strict=False))


@_form(aten.upsample_nearest2d.vec, where=_leaves_a_part_over)
def take_nearest(input: Tensor, output_size: Any, scale_factors: Any, *, exact: bool = False) -> Any:
    """A resize to the nearest pixels as a choice of rows and one of columns: ``exact`` is PyTorch's nearest-exact."""
    mode = "nearest-exact" if exact else "nearest"
    for axis in (2, 3):
        length = input.shape[axis]
        size, factor = (None if one is None else one[axis - 2] for one in (output_size, scale_factors))
        input = input.index_select(axis, torch.from_numpy(nearest_places(length, size, factor, mode)))
    return input


def nearest_places(length: int, size: int | None, factor: float | None, mode: str) -> np.ndarray:
    """Which of the pixels along an axis PyTorch takes: int64 [size]."""
    with _disable_current_modes():  # numbers, whatever is traced
        places = torch.arange(length, dtype=torch.float32).reshape(1, 1, -1)
        found: np.ndarray = F.interpolate(places, size, factor, mode).numpy().reshape(-1).astype(np.int64)
    return found


@_form(aten._upsample_nearest_exact2d.vec)
def _take_nearest_exactly(input: Tensor, output_size: Any, scale_factors: Any) -> Any:
    """By whole multiples the same as the other, which every runtime has."""
    sizes = output_size or [
        math.floor(length * factor) for length, factor in zip(input.shape[2:], scale_factors, strict=True)
    ]
    multiples = [size / length for size, length in zip(sizes, input.shape[2:], strict=True)]
    if all(multiple % 1 == 0 for multiple in multiples):
        return F.interpolate(input, scale_factor=multiples, mode="nearest")
    return take_nearest(input, output_size, scale_factors, exact=True)


@_form(aten.affine_grid_generator.default, where=lambda node: len(argument(node, "size")) == 4)
def _affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool) -> Any:
    """The places of a grid, constant, by the matrix."""
    height, width = size[2:]
    rows, columns = (_line(length, align_corners) for length in (height, width))
    places = np.stack([*np.meshgrid(columns, rows), np.ones((height, width))], -1).reshape(1, height * width, 3)
    grid = torch.matmul(torch.from_numpy(places.astype(str(theta.dtype).removeprefix("torch."))), theta.transpose(1, 2))
    return grid.reshape(-1, height, width, 2)


def _line(length: int, align_corners: bool) -> np.ndarray:
    """From -1 to 1 along one side, the corners in the middle of the outer pixels or at their outer edges."""
    if length == 1:
        return np.zeros(1)
    return np.linspace(-1, 1, length) * (1.0 if align_corners else (length - 1) / length)


def _is_dilated_by_computed_weights(node: Node) -> bool:
    return bool(argument(node, "weight").op != "get_attr" and max(argument(node, "dilation")) > 1)


@_form(aten.conv2d.default, where=_is_dilated_by_computed_weights)
def convolution_as_products(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    """A convolution whose weights are computed, in products: of each place of its window if it is depthwise, else of matrices."""
    rows, columns = weight.shape[2:]
    steps, reach = (
        _both(stride),
        [side * (length - 1) for side, length in zip(_both(dilation), (rows, columns), strict=True)],
    )
    above, left = _both(padding)
    x = F.pad(input, (left, left, above, above)) if above or left else input
    shape = [(length - far - 1) // step + 1 for length, far, step in zip(x.shape[2:], reach, steps, strict=True)]
    places = []
    for row, column in product(range(rows), range(columns)):
        place = x
        for axis, start in ((2, row * _both(dilation)[0]), (3, column * _both(dilation)[1])):
            size, step = shape[axis - 2], steps[axis - 2]
            if (start, step, size) != (0, 1, x.shape[axis]):
                place = aten.slice.Tensor(place, axis, start, start + (size - 1) * step + 1, step)
        places.append(place)
    is_depthwise = groups == weight.shape[0] == input.shape[1]
    result = _sum_of_places(places, weight) if is_depthwise else _products_of_groups(places, weight, groups)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


def _sum_of_places(places: Sequence[Tensor], weight: Tensor) -> Tensor:
    factors = weight.reshape(1, weight.shape[0], -1)
    terms = [place * part(factors, 2, index, index + 1).unsqueeze(3) for index, place in enumerate(places)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _products_of_groups(places: Sequence[Tensor], weight: Tensor, groups: int) -> Tensor:
    """Channels last, as runtimes with that layout hold them."""
    batch, channels, height, width = places[0].shape
    read, given = channels // groups, weight.shape[0] // groups
    results = []
    for group in range(groups):
        mine = [part(one, 1, group * read, (group + 1) * read) if groups > 1 else one for one in places]
        pixels = (
            (torch.cat(mine, 1) if len(mine) > 1 else mine[0]).permute(0, 2, 3, 1).reshape(batch, height * width, -1)
        )
        factors = part(weight, 0, group * given, (group + 1) * given) if groups > 1 else weight
        matrix = factors.reshape(given, read, -1).permute(2, 1, 0).reshape(-1, given)
        results.append(torch.matmul(pixels, matrix))
    joined = torch.cat(results, 2) if groups > 1 else results[0]
    return joined.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def _both(value: Any) -> list[int]:
    """One number for both axes, or two."""
    return list(value) * (2 if len(value) == 1 else 1)
