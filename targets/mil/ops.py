"""The operations of ML Programs in torch, by the op documents of coremltools (``coremltools.converters.mil.mil.ops.defs``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.core.errors import TargetError

Args = Mapping[str, Any]
"""An op's inputs by name: values and float arrays as Tensor, all other constants as plain Python values."""

OpFunction = Callable[[Args, tuple[int, ...]], Tensor | tuple[Tensor, ...]]
"""Inputs and the first output's shape -> output(s)."""

OPS: dict[str, OpFunction] = {}

EXACT = frozenset(
    {
        "relu", "relu6", "clip", "abs", "maximum", "minimum", "reduce_max", "reduce_min", "max_pool", "identity",
        "concat", "stack", "split", "tile", "pad", "gather", "select", "slice_by_index", "slice_by_size",
        "reshape", "transpose", "expand_dims", "squeeze", "flatten2d", "pixel_shuffle",
        "upsample_nearest_neighbor", "resize_nearest_neighbor",
    }
)  # fmt: skip
"""Ops that only pick among their inputs' values: their fp16 results need no rounding."""


def _op(*names: str) -> Callable[[OpFunction], OpFunction]:
    def register(function: OpFunction) -> OpFunction:
        for name in names:
            OPS[name] = function
        return function

    return register


def as_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value)


# Elementwise ---------------------------------------------------------------------------------------------------------

for _name, _unary in {
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "softsign": F.softsign,
    "softplus": F.softplus,
    "abs": torch.abs,
    "exp": torch.exp,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "sign": torch.sign,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "logical_not": torch.logical_not,
    "identity": lambda x: x,
}.items():
    OPS[_name] = lambda a, shape, f=_unary: f(a["x"])  # type: ignore[misc]

for _name, _binary in {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "real_div": torch.true_divide,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "pow": torch.pow,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
}.items():
    OPS[_name] = lambda a, shape, f=_binary: f(as_tensor(a["x"]), as_tensor(a["y"]))  # type: ignore[misc]


@_op("clip")
def _clip(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.clamp(a["x"], a["alpha"], a["beta"])


@_op("clamped_relu")
def _clamped_relu(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.clamp(F.leaky_relu(a["x"], a["alpha"]), max=a["beta"])


@_op("leaky_relu")
def _leaky_relu(a: Args, shape: tuple[int, ...]) -> Tensor:
    return F.leaky_relu(a["x"], a["alpha"])


@_op("prelu")
def _prelu(a: Args, shape: tuple[int, ...]) -> Tensor:
    return F.prelu(a["x"], a["alpha"])


@_op("elu")
def _elu(a: Args, shape: tuple[int, ...]) -> Tensor:
    return F.elu(a["x"], a["alpha"])


@_op("gelu")
def _gelu(a: Args, shape: tuple[int, ...]) -> Tensor:
    mode = a.get("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return cast(Tensor, a["x"] * torch.sigmoid(1.702 * a["x"]))
    return F.gelu(a["x"], approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


@_op("sigmoid_hard")
def _sigmoid_hard(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.clamp(a["x"] * a["alpha"] + a["beta"], 0.0, 1.0)


@_op("linear_activation")
def _linear_activation(a: Args, shape: tuple[int, ...]) -> Tensor:
    return cast(Tensor, a["x"] * a["alpha"] + a["beta"])


@_op("thresholded_relu")
def _thresholded_relu(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.where(a["x"] >= a["alpha"], a["x"], 0.0)


@_op("scaled_tanh")
def _scaled_tanh(a: Args, shape: tuple[int, ...]) -> Tensor:
    return cast(Tensor, a["alpha"] * torch.tanh(a["x"] * a["beta"]))


@_op("rsqrt")
def _rsqrt(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.rsqrt(a["x"] + a.get("epsilon", 1e-12))


@_op("inverse")
def _inverse(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.reciprocal(a["x"] + a.get("epsilon", 1e-4))


@_op("log")
def _log(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.log(a["x"] + a.get("epsilon", 1e-45))


@_op("softmax")
def _softmax(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.softmax(a["x"], a.get("axis", -1))


@_op("select")
def _select(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.where(as_tensor(a["cond"]).bool(), as_tensor(a["a"]), as_tensor(a["b"]))


@_op("cast")
def _cast(a: Args, shape: tuple[int, ...]) -> Tensor:
    dtype = a["dtype"]
    x = as_tensor(a["x"])
    if dtype in ("fp16", "fp32"):
        return x.float()
    if dtype == "bool":
        return x.bool()
    return x.to({"uint8": torch.uint8, "int8": torch.int8, "int16": torch.int16}.get(dtype, torch.int32))


# Quantization --------------------------------------------------------------------------------------------------------


def _along(value: Any, axis: int | None, rank: int) -> Any:
    """A scalar as it is; a vector shaped so that it runs along ``axis``."""
    if isinstance(value, int | float):
        return value
    return as_tensor(value).reshape([-1 if index == cast(int, axis) % rank else 1 for index in range(rank)])


@_op("quantize")
def _quantize(a: Args, shape: tuple[int, ...]) -> Tensor:
    """``clip(round(x / scale) + zero_point)``, ties to even. The integers stay in float32, which holds them exactly."""
    rank = len(shape)
    low, high = (-128, 127) if a["output_dtype"] == "int8" else (0, 255)
    value = torch.div(a["input"], _along(a["scale"], a.get("axis"), rank)).round_()
    zero_point = a.get("zero_point", 0)
    if zero_point != 0:
        value += _along(zero_point, a.get("axis"), rank)
    return value.clamp_(low, high)


@_op("dequantize")
def _dequantize(a: Args, shape: tuple[int, ...]) -> Tensor:
    """``scale * (x - zero_point)``."""
    rank = len(shape)
    value = a["input"]
    zero_point = a.get("zero_point", 0)
    if zero_point != 0:
        value = value - _along(zero_point, a.get("axis"), rank)
    return cast(Tensor, value * _along(a["scale"], a.get("axis"), rank))


# Convolution, pooling, products --------------------------------------------------------------------------------------


def _padding(a: Args, kernel: Sequence[int], size: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Pixels before and after each spatial axis. ``same`` gives ceil(size / stride), the odd pixel after."""
    kind = a["pad_type"]
    if kind == "valid":
        return [(0, 0)] * len(kernel)
    if kind == "custom":
        pad = a["pad"]
        return [(pad[2 * axis], pad[2 * axis + 1]) for axis in range(len(kernel))]
    pads = []
    for side, window, stride in zip(size, kernel, strides, strict=True):
        total = max(0, (-(-side // stride) - 1) * stride + window - side)
        less, more = total // 2, total - total // 2
        pads.append((more, less) if kind == "same_lower" else (less, more))
    return pads


def _pad(x: Tensor, pads: Sequence[tuple[int, int]], value: float) -> Tensor:
    return F.pad(x, [side for pair in reversed(pads) for side in pair], value=value)


@_op("conv")
def _conv(a: Args, shape: tuple[int, ...]) -> Tensor:
    x, weight = a["x"], a["weight"]
    spatial = x.ndim - 2
    strides, dilations = a.get("strides", [1] * spatial), a.get("dilations", [1] * spatial)
    kernel = [(side - 1) * dilation + 1 for side, dilation in zip(weight.shape[2:], dilations, strict=True)]
    pads = _padding(a, kernel, x.shape[2:], strides)
    if any(before != after for before, after in pads):
        x, pads = _pad(x, pads, 0.0), [(0, 0)] * spatial
    function = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    return function(x, weight, a.get("bias"), strides, [pad[0] for pad in pads], dilations, a.get("groups", 1))


@_op("conv_transpose")
def _conv_transpose(a: Args, shape: tuple[int, ...]) -> Tensor:
    x, weight = a["x"], a["weight"]
    spatial = x.ndim - 2
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
    strides, dilations = a.get("strides", [1] * spatial), a.get("dilations", [1] * spatial)
    y = function(x, weight, None, strides, 0, 0, a.get("groups", 1), dilations)
    pads = []
    for axis, side in enumerate(shape[2:]):
        surplus = y.shape[2 + axis] - side
        before = a["pad"][2 * axis] if a["pad_type"] == "custom" else max(0, surplus // 2)
        pads.append((-before, before - surplus))
    y = _pad(y, pads, 0.0)
    bias = a.get("bias")
    return y if bias is None else y + bias.reshape(-1, *[1] * spatial)


def _pool_setup(a: Args) -> tuple[list[int], list[int], list[tuple[int, int]], bool]:
    kernel = a["kernel_sizes"]
    strides = a.get("strides", [1] * len(kernel))
    return kernel, strides, _padding(a, kernel, a["x"].shape[2:], strides), a.get("ceil_mode", False)


@_op("max_pool")
def _max_pool(a: Args, shape: tuple[int, ...]) -> Tensor:
    x = a["x"]
    kernel, strides, pads, ceil = _pool_setup(a)
    if any(before != after or before > side // 2 for (before, after), side in zip(pads, kernel, strict=True)):
        x, pads = _pad(x, pads, float("-inf")), [(0, 0)] * len(kernel)
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    return function(x, kernel, strides, [pad[0] for pad in pads], 1, ceil)


@_op("avg_pool")
def _avg_pool(a: Args, shape: tuple[int, ...]) -> Tensor:
    x = a["x"]
    kernel, strides, pads, ceil = _pool_setup(a)
    exclude = a.get("exclude_padding_from_average", False)
    function = cast("Callable[..., Tensor]", (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1])
    if all(before == after <= side // 2 for (before, after), side in zip(pads, kernel, strict=True)):
        return function(x, kernel, strides, [pad[0] for pad in pads], ceil, not exclude)
    pooled = function(_pad(x, pads, 0.0), kernel, strides)
    if exclude:
        pooled = pooled / function(_pad(torch.ones_like(x[:1, :1]), pads, 0.0), kernel, strides)
    return pooled


@_op("matmul")
def _matmul(a: Args, shape: tuple[int, ...]) -> Tensor:
    x, y = a["x"], a["y"]
    x = x.transpose(-1, -2) if a.get("transpose_x", False) else x
    y = y.transpose(-1, -2) if a.get("transpose_y", False) else y
    return torch.matmul(x, y)


@_op("linear")
def _linear(a: Args, shape: tuple[int, ...]) -> Tensor:
    return F.linear(a["x"], a["weight"], a.get("bias"))


@_op("batch_norm")
def _batch_norm(a: Args, shape: tuple[int, ...]) -> Tensor:
    scale = torch.rsqrt(a["variance"] + a.get("epsilon", 1e-5)) * a.get("gamma", 1.0)
    offset: Tensor = a.get("beta", 0.0) - a["mean"] * scale
    form = (-1, *[1] * (len(shape) - 2))
    return cast(Tensor, a["x"] * scale.reshape(form) + offset.reshape(form))


@_op("instance_norm")
def _instance_norm(a: Args, shape: tuple[int, ...]) -> Tensor:
    return F.instance_norm(a["x"], weight=a.get("gamma"), bias=a.get("beta"), eps=a.get("epsilon", 1e-5))


@_op("layer_norm")
def _layer_norm(a: Args, shape: tuple[int, ...]) -> Tensor:
    x = a["x"]
    axes = a.get("axes", list(range(x.ndim)))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    y: Tensor = (x - mean) * torch.rsqrt(variance + a.get("epsilon", 1e-5))
    form = [side if axis in [item % x.ndim for item in axes] else 1 for axis, side in enumerate(x.shape)]
    gamma, beta = a.get("gamma"), a.get("beta")
    y = y if gamma is None else y * gamma.reshape(form)
    return y if beta is None else y + beta.reshape(form)


# Reductions ----------------------------------------------------------------------------------------------------------


def _axes(a: Args) -> tuple[list[int], bool]:
    return a.get("axes") or list(range(a["x"].ndim)), a.get("keep_dims", False)


@_op("reduce_mean")
def _reduce_mean(a: Args, shape: tuple[int, ...]) -> Tensor:
    axes, keep = _axes(a)
    return cast(Tensor, a["x"].mean(axes, keepdim=keep))


@_op("reduce_sum")
def _reduce_sum(a: Args, shape: tuple[int, ...]) -> Tensor:
    axes, keep = _axes(a)
    return cast(Tensor, a["x"].sum(axes, keepdim=keep))


@_op("reduce_max")
def _reduce_max(a: Args, shape: tuple[int, ...]) -> Tensor:
    axes, keep = _axes(a)
    return torch.amax(a["x"], axes, keep)


@_op("reduce_min")
def _reduce_min(a: Args, shape: tuple[int, ...]) -> Tensor:
    axes, keep = _axes(a)
    return torch.amin(a["x"], axes, keep)


@_op("reduce_argmax")
def _reduce_argmax(a: Args, shape: tuple[int, ...]) -> Tensor:
    """Ties, which Core ML leaves open, go to the lowest index."""
    return cast(Tensor, a["x"].argmax(a.get("axis", -1), a.get("keep_dims", True)).to(torch.int32))


@_op("reduce_argmin")
def _reduce_argmin(a: Args, shape: tuple[int, ...]) -> Tensor:
    return cast(Tensor, a["x"].argmin(a.get("axis", -1), a.get("keep_dims", True)).to(torch.int32))


# Resizes -------------------------------------------------------------------------------------------------------------


def _grid(mode: str, source: int, target: int) -> Tensor:
    """Where each of ``target`` samples lies on an axis of ``source`` pixels: the op document's formulas."""
    index = torch.arange(target, dtype=torch.float32)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if target == 1:
            return torch.tensor([(source - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0])
        points = index * ((source - 1) / (target - 1))
    elif mode == "DEFAULT":
        points = index * (source / target)
    elif mode == "OFFSET_CORNERS":
        points = (index + 0.5) * (max(1, source - 1) / target)
    elif mode == "UNALIGN_CORNERS":
        points = (index + 0.5) * (source / target) - 0.5
    else:
        raise TargetError(f"edgekit's ML Program executor does not know the sampling mode '{mode}'")
    return points.clamp(0, source - 1)


def _along_axis(x: Tensor, axis: int, points: Tensor) -> Tensor:
    low = points.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    weight = (points - low).reshape([-1 if index == axis % x.ndim else 1 for index in range(x.ndim)])
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, high), weight)


def _bilinear(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    if x.ndim == 4 and mode in ("UNALIGN_CORNERS", "STRICT_ALIGN_CORNERS"):
        return F.interpolate(x, (height, width), mode="bilinear", align_corners=mode == "STRICT_ALIGN_CORNERS")
    return _along_axis(_along_axis(x, -2, _grid(mode, x.shape[-2], height)), -1, _grid(mode, x.shape[-1], width))


def _nearest(x: Tensor, height: int, width: int) -> Tensor:
    rows = torch.arange(height) * x.shape[-2] // height
    columns = torch.arange(width) * x.shape[-1] // width
    return x.index_select(-2, rows).index_select(-1, columns)


@_op("upsample_bilinear")
def _upsample_bilinear(a: Args, shape: tuple[int, ...]) -> Tensor:
    """The output is floor(size * factor); the grid is then set by the sizes, not by the factor."""
    align = a.get("align_corners", True)
    half = a.get("half_pixel_centers", not align)
    mode = "STRICT_ALIGN_CORNERS" if align else "UNALIGN_CORNERS" if half else "DEFAULT"
    return _bilinear(a["x"], shape[-2], shape[-1], mode)


@_op("resize_bilinear")
def _resize_bilinear(a: Args, shape: tuple[int, ...]) -> Tensor:
    return _bilinear(a["x"], shape[-2], shape[-1], a.get("sampling_mode", "DEFAULT"))


@_op("upsample_nearest_neighbor", "resize_nearest_neighbor")
def _resize_nearest(a: Args, shape: tuple[int, ...]) -> Tensor:
    return _nearest(a["x"], shape[-2], shape[-1])


@_op("resize")
def _resize(a: Args, shape: tuple[int, ...]) -> Tensor:
    mode = a.get("sampling_mode", "DEFAULT")
    if tuple(a["x"].shape[:-2]) != shape[:-2]:
        raise TargetError("edgekit's ML Program executor resizes the last two axes only")
    if a.get("interpolation_mode", "LINEAR") == "LINEAR":
        return _bilinear(a["x"], shape[-2], shape[-1], mode)
    if mode != "DEFAULT":
        raise TargetError(f"edgekit's ML Program executor does not know the nearest sampling mode '{mode}'")
    return _nearest(a["x"], shape[-2], shape[-1])


# Shapes --------------------------------------------------------------------------------------------------------------


@_op("concat")
def _concat(a: Args, shape: tuple[int, ...]) -> Tensor:
    values, axis = a["values"], a["axis"]
    if not as_tensor(values[0]).ndim:  # numbers side by side make a vector
        return torch.stack([as_tensor(value) for value in values])
    if not a.get("interleave", False):
        return torch.cat(values, axis)
    stacked = torch.stack(values, axis % len(shape) + 1)
    return stacked.reshape(shape)


@_op("reshape")
def _reshape(a: Args, shape: tuple[int, ...]) -> Tensor:
    return cast(Tensor, a["x"].reshape(shape))


@_op("expand_dims", "squeeze", "flatten2d")
def _reshape_only(a: Args, shape: tuple[int, ...]) -> Tensor:
    return cast(Tensor, a["x"].reshape(shape))


@_op("transpose")
def _transpose(a: Args, shape: tuple[int, ...]) -> Tensor:
    return cast(Tensor, a["x"].permute(a["perm"]))


@_op("slice_by_index")
def _slice_by_index(a: Args, shape: tuple[int, ...]) -> Tensor:
    x = a["x"]
    rank = x.ndim
    none = [False] * rank
    strides = a.get("stride", [1] * rank)
    begin_mask, end_mask, squeeze_mask = (a.get(name, none) for name in ("begin_mask", "end_mask", "squeeze_mask"))
    for axis in range(rank):
        side = x.shape[axis]
        if squeeze_mask[axis]:
            index = range(side)[a["begin"][axis]]
            x = x.narrow(axis, index, 1)
            continue
        begin = None if begin_mask[axis] else a["begin"][axis]
        end = None if end_mask[axis] else a["end"][axis]
        chosen = range(side)[begin : end : strides[axis]]
        x = (
            x.narrow(axis, chosen.start, len(chosen))
            if strides[axis] == 1
            else x.index_select(axis, torch.tensor(list(chosen)))
        )
    return cast(Tensor, x.reshape(shape))


@_op("slice_by_size")
def _slice_by_size(a: Args, shape: tuple[int, ...]) -> Tensor:
    x = a["x"]
    for axis, (begin, side) in enumerate(zip(a["begin"], shape, strict=True)):
        x = x.narrow(axis, begin % x.shape[axis], side)
    return cast(Tensor, x)


@_op("pad")
def _pad_op(a: Args, shape: tuple[int, ...]) -> Tensor:
    x, pad = a["x"], a["pad"]
    pairs = [(pad[index], pad[index + 1]) for index in range(0, len(pad), 2)]
    mode = a.get("mode", "constant")
    if mode == "constant":
        return _pad(x, pairs, a.get("constant_val", 0.0))
    # torch reflects and replicates the last axes only, and wants nothing said of the others.
    while pairs and pairs[0] == (0, 0):
        pairs = pairs[1:]
    return F.pad(x, [side for pair in reversed(pairs) for side in pair], mode=mode) if pairs else cast(Tensor, x)


@_op("tile")
def _tile(a: Args, shape: tuple[int, ...]) -> Tensor:
    return cast(Tensor, a["x"].repeat(a["reps"]))


@_op("split")
def _split(a: Args, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    x, axis = a["x"], a["axis"]
    sizes = a.get("split_sizes") or [x.shape[axis] // a["num_splits"]] * a["num_splits"]
    return torch.split(x, sizes, axis)


@_op("stack")
def _stack(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.stack(a["values"], a.get("axis", 0))


@_op("gather")
def _gather(a: Args, shape: tuple[int, ...]) -> Tensor:
    x, axis = as_tensor(a["x"]), a.get("axis", 0)
    indices = as_tensor(a["indices"]).long().reshape(-1)
    return x.index_select(axis, indices % x.shape[axis]).reshape(shape)


@_op("pixel_shuffle")
def _pixel_shuffle(a: Args, shape: tuple[int, ...]) -> Tensor:
    return F.pixel_shuffle(a["x"], a["upscale_factor"])


# What fewer networks hold ---------------------------------------------------------------------------------------------

for _name, _function in {
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "cosh": torch.cosh,
    "exp2": torch.exp2,
    "sinh": torch.sinh,
    "tan": torch.tan,
}.items():
    OPS[_name] = lambda a, shape, f=_function: f(a["x"])  # type: ignore[misc]


@_op("atanh")
def _atanh(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.atanh(a["x"] + a.get("epsilon", 1e-9))


@_op("threshold")
def _threshold(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.clamp(a["x"], min=a["alpha"])


@_op("logical_xor")
def _logical_xor(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.logical_xor(as_tensor(a["x"]), as_tensor(a["y"]))


@_op("softplus_parametric")
def _softplus_parametric(a: Args, shape: tuple[int, ...]) -> Tensor:
    alpha, beta = (_along(a[key], 1, a["x"].ndim) for key in ("alpha", "beta"))
    return cast(Tensor, alpha * F.softplus(beta * a["x"]))


for _name, _reduction in {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}.items():
    OPS[_name] = lambda a, shape, f=_reduction: f(a["x"], *_axes(a))  # type: ignore[misc]


@_op("reduce_prod")
def _reduce_prod(a: Args, shape: tuple[int, ...]) -> Tensor:
    axes, _ = _axes(a)
    x = a["x"]
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis)
    return cast(Tensor, x.reshape(shape))


@_op("l2_norm")
def _l2_norm(a: Args, shape: tuple[int, ...]) -> Tensor:
    """Over the last three axes together."""
    x = a["x"]
    return cast(Tensor, x / (x.square().sum((-3, -2, -1), keepdim=True) + a.get("epsilon", 1e-6)).sqrt())


@_op("local_response_norm")
def _local_response_norm(a: Args, shape: tuple[int, ...]) -> Tensor:
    return F.local_response_norm(a["x"], a["size"], a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("k", 1.0))


@_op("cumsum")
def _cumsum(a: Args, shape: tuple[int, ...]) -> Tensor:
    x, axis = a["x"], a.get("axis", 0)
    x = x.flip(axis) if a.get("reverse", False) else x
    total = x.cumsum(axis)
    total = total - x if a.get("exclusive", False) else total
    return cast(Tensor, total.flip(axis) if a.get("reverse", False) else total)


@_op("einsum")
def _einsum(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.einsum(a["equation"], *a["values"])


@_op("scaled_dot_product_attention")
def _attention(a: Args, shape: tuple[int, ...]) -> Tensor:
    mask = a.get("attn_mask")
    return F.scaled_dot_product_attention(a["query"], a["key"], a["value"], None if mask is None else as_tensor(mask))


@_op("argsort")
def _argsort(a: Args, shape: tuple[int, ...]) -> Tensor:
    descending = not a.get("ascending", False)
    return torch.argsort(a["x"], dim=a.get("axis", -1), descending=descending, stable=True).to(torch.int32)


@_op("topk")
def _topk(a: Args, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Values and, unless they are not asked for, their places; equal values by their places."""
    x, axis, count = a["x"], a.get("axis", -1), a.get("k", 1)
    values, places = x.sort(dim=axis, descending=not a.get("ascending", False), stable=True)
    found = values.narrow(axis, 0, count), places.narrow(axis, 0, count).to(torch.int32)
    return found if a.get("return_indices", True) else found[:1]


@_op("one_hot")
def _one_hot(a: Args, shape: tuple[int, ...]) -> Tensor:
    hot = F.one_hot(as_tensor(a["indices"]).long(), a["one_hot_vector_size"])
    hot = hot.movedim(-1, a.get("axis", -1))
    return torch.where(hot.bool(), as_tensor(a.get("on_value", 1)), as_tensor(a.get("off_value", 0)))


@_op("fill")
def _fill(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape, a.get("value", 0.0))


@_op("fill_like")
def _fill_like(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape, a.get("value", 0.0))


@_op("range_1d")
def _range_1d(a: Args, shape: tuple[int, ...]) -> Tensor:
    return as_tensor(a["start"]) + torch.arange(shape[0]) * as_tensor(a["step"])


@_op("shape")
def _shape(a: Args, shape: tuple[int, ...]) -> Tensor:
    return torch.tensor(as_tensor(a["x"]).shape, dtype=torch.int32)


@_op("reshape_like")
def _reshape_like(a: Args, shape: tuple[int, ...]) -> Tensor:
    return cast(Tensor, a["x"].reshape(shape))


@_op("reverse")
def _reverse(a: Args, shape: tuple[int, ...]) -> Tensor:
    x = a["x"]
    return cast(Tensor, x.flip(a.get("axes") or list(range(x.ndim))))


@_op("band_part")
def _band_part(a: Args, shape: tuple[int, ...]) -> Tensor:
    x, lower, upper = a["x"], a.get("lower", -1), a.get("upper", -1)
    x = x if lower < 0 else x.triu(-lower)
    return cast(Tensor, x if upper < 0 else x.tril(upper))


@_op("gather_along_axis")
def _gather_along_axis(a: Args, shape: tuple[int, ...]) -> Tensor:
    x, axis = as_tensor(a["x"]), a.get("axis", 0)
    indices = as_tensor(a["indices"]).long() % x.shape[axis]
    return x.gather(axis, indices)


@_op("gather_nd")
def _gather_nd(a: Args, shape: tuple[int, ...]) -> Tensor:
    x, indices = as_tensor(a["x"]), as_tensor(a["indices"]).long()
    batch = a.get("batch_dims", 0)
    if batch:
        raise TargetError("edgekit's ML Program executor knows gather_nd without batch dimensions only")
    return x[tuple(indices.unbind(-1))]


@_op("crop")
def _crop(a: Args, shape: tuple[int, ...]) -> Tensor:
    x, (top, bottom), (left, right) = a["x"], a["crop_height"], a["crop_width"]
    return cast(Tensor, x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right])


@_op("pixel_unshuffle")
def _pixel_unshuffle(a: Args, shape: tuple[int, ...]) -> Tensor:
    return F.pixel_unshuffle(a["x"], a["downscale_factor"])


@_op("space_to_depth")
def _space_to_depth(a: Args, shape: tuple[int, ...]) -> Tensor:
    """The place in a block is the slower part of the channel, as TensorFlow has it; a pixel shuffle's is the faster."""
    x, block = a["x"], a["block_size"]
    batch, channels, height, width = x.shape
    apart = x.reshape(batch, channels, height // block, block, width // block, block)
    return cast(Tensor, apart.permute(0, 3, 5, 1, 2, 4).reshape(shape))


@_op("depth_to_space")
def _depth_to_space(a: Args, shape: tuple[int, ...]) -> Tensor:
    x, block = a["x"], a["block_size"]
    batch, channels, height, width = x.shape
    apart = x.reshape(batch, block, block, channels // block**2, height, width)
    return cast(Tensor, apart.permute(0, 3, 4, 1, 5, 2).reshape(shape))


@_op("space_to_batch")
def _space_to_batch(a: Args, shape: tuple[int, ...]) -> Tensor:
    """The place in a block is the slower part of the batch."""
    (tall, wide), ((top, bottom), (left, right)) = a["block_shape"], as_tensor(a["paddings"]).tolist()
    x = F.pad(a["x"], (int(left), int(right), int(top), int(bottom)))
    batch, channels, height, width = x.shape
    apart = x.reshape(batch, channels, height // tall, tall, width // wide, wide)
    return apart.permute(3, 5, 0, 1, 2, 4).reshape(shape)


@_op("batch_to_space")
def _batch_to_space(a: Args, shape: tuple[int, ...]) -> Tensor:
    (tall, wide), ((top, bottom), (left, right)) = a["block_shape"], as_tensor(a["crops"]).tolist()
    x = a["x"]
    batch, channels, height, width = x.shape
    apart = x.reshape(tall, wide, batch // (tall * wide), channels, height, width).permute(2, 3, 4, 0, 5, 1)
    whole = apart.reshape(batch // (tall * wide), channels, height * tall, width * wide)
    return cast(Tensor, whole[..., int(top) : height * tall - int(bottom), int(left) : width * wide - int(right)])


@_op("sliding_windows")
def _sliding_windows(a: Args, shape: tuple[int, ...]) -> Tensor:
    x, axis = a["x"], a["axis"] % a["x"].ndim
    return cast(Tensor, x.unfold(axis, a["size"], a.get("stride", 1)).movedim(-1, axis + 1))


# Sampling at given places, and writing to them -------------------------------------------------------------------------


def _sampled(x: Tensor, columns: Tensor, rows: Tensor, mode: str, padding: str, value: float) -> Tensor:
    """[B, C, H, W] at places [B, h, w] in pixels, centres at whole numbers -> [B, C, h, w]."""
    modes = {"constant": "zeros", "border": "border", "reflection": "reflection", "symmetric": "reflection"}
    if mode not in ("bilinear", "nearest") or padding not in modes:
        raise TargetError(f"edgekit's ML Program executor does not know sampling '{mode}' with padding '{padding}'")
    height, width = x.shape[-2:]
    # What grid_sample reflects about depends on where it takes the corners to be: the pixels' centres, or their edges.
    centres = padding == "reflection"
    sides = [max(1, side - 1) if centres else side for side in (width, height)]
    grid = torch.stack(
        [(2 * place + (0 if centres else 1)) / side - 1 for place, side in zip((columns, rows), sides, strict=True)], -1
    )
    offset = value if padding == "constant" else 0.0
    return F.grid_sample(x - offset, grid, mode, modes[padding], align_corners=centres) + offset


def _pixels(coordinates: Tensor, side: int, mode: str, *, align_corners: bool) -> Tensor:
    """Coordinates of ``resample`` in pixels, the first one's centre at 0."""
    if mode == "unnormalized":
        return coordinates
    if mode not in ("normalized_minus_one_to_one", "normalized_zero_to_one"):
        raise TargetError(f"edgekit's ML Program executor does not know the coordinates '{mode}'")
    share = (coordinates + 1) / 2 if mode == "normalized_minus_one_to_one" else coordinates
    return share * (side - 1) if align_corners else share * side - 0.5


@_op("resample")
def _resample(a: Args, shape: tuple[int, ...]) -> Tensor:
    x, coordinates = a["x"], as_tensor(a["coordinates"]).float()
    height, width = x.shape[-2:]
    how, align = a["coordinates_mode"].lower(), a["align_corners"]
    columns, rows = (
        _pixels(places, side, how, align_corners=align)
        for places, side in zip(coordinates.unbind(-1), (width, height), strict=True)
    )
    sampling, padding = a["sampling_mode"].lower(), a["padding_mode"].lower()
    return _sampled(x, columns, rows, sampling, padding, float(a.get("padding_value", 0.0)))


@_op("affine")
def _affine(a: Args, shape: tuple[int, ...]) -> Tensor:
    """The document allows one mode of each kind: bilinear, zeros outside, corners aligned."""
    x = a["x"]
    matrix = as_tensor(a["transform_matrix"]).float().reshape(-1, 2, 3).expand(x.shape[0], 2, 3)
    grid = F.affine_grid(matrix, [*x.shape[:2], *shape[-2:]], align_corners=True)
    columns, rows = (
        _pixels(places, side, "normalized_minus_one_to_one", align_corners=True)
        for places, side in zip(grid.unbind(-1), (x.shape[-1], x.shape[-2]), strict=True)
    )
    return _sampled(x, columns, rows, "bilinear", "constant", 0.0)


_REDUCTIONS = {"mul": "prod", "max": "amax", "min": "amin"}


def _scattered(data: Tensor, axis: int, indices: Tensor, updates: Tensor, mode: str) -> Tensor:
    """``data`` with ``updates`` put in along an axis; all three have one rank."""
    indices, updates = indices % data.shape[axis], updates.to(data.dtype)
    if mode == "update":
        return data.scatter(axis, indices, updates)
    if mode in ("add", "sub"):
        return data.scatter_add(axis, indices, updates if mode == "add" else -updates)
    if mode == "div":
        mode, updates = "mul", 1 / updates
    if mode not in _REDUCTIONS:
        raise TargetError(f"edgekit's ML Program executor does not know the scatter mode '{mode}'")
    return data.scatter_reduce(axis, indices, updates, _REDUCTIONS[mode], include_self=True)


@_op("scatter_along_axis")
def _scatter_along_axis(a: Args, shape: tuple[int, ...]) -> Tensor:
    data, indices = as_tensor(a["data"]), as_tensor(a["indices"]).long()
    return _scattered(data, a.get("axis", 0) % data.ndim, indices, as_tensor(a["updates"]), a.get("mode", "add"))


@_op("scatter")
def _scatter(a: Args, shape: tuple[int, ...]) -> Tensor:
    data, updates = as_tensor(a["data"]), as_tensor(a["updates"])
    axis = a.get("axis", 0) % data.ndim
    along = [-1 if index == axis else 1 for index in range(data.ndim)]
    indices = as_tensor(a["indices"]).long().reshape(along).expand(updates.shape)
    return _scattered(data, axis, indices, updates, a.get("mode", "add"))


@_op("scatter_nd")
def _scatter_nd(a: Args, shape: tuple[int, ...]) -> Tensor:
    """The places that the last axis of the indices names, as rows of what they hold together."""
    data, indices = as_tensor(a["data"]), as_tensor(a["indices"]).long()
    depth = indices.shape[-1]
    sides = data.shape[:depth]
    place = torch.zeros(indices.shape[:-1], dtype=torch.long)
    for index, side in zip(indices.unbind(-1), sides, strict=True):
        place = place * side + index % side
    rows = data.reshape(math.prod(sides), -1)
    updates = as_tensor(a["updates"]).reshape(-1, rows.shape[1])
    places = place.reshape(-1, 1).expand(updates.shape)
    return _scattered(rows, 0, places, updates, a.get("mode", "add")).reshape(data.shape)


@_op("slice_update")
def _slice_update(a: Args, shape: tuple[int, ...]) -> Tensor:
    x = as_tensor(a["x"]).clone()
    places, kept = torch.arange(x.numel()).reshape(x.shape), as_tensor(a["update"]).to(x.dtype)
    chosen = cast(Tensor, _slice_by_index({**a, "x": places}, tuple(kept.shape)))
    x.view(-1)[chosen.reshape(-1)] = kept.reshape(-1)
    return x


@_op("non_zero")
def _non_zero(a: Args, shape: tuple[int, ...]) -> Tensor:
    return as_tensor(a["x"]).nonzero().int()


@_op("l2_pool")
def _l2_pool(a: Args, shape: tuple[int, ...]) -> Tensor:
    kernel, strides, pads, ceil = _pool_setup(a)
    function = cast("Callable[..., Tensor]", (F.avg_pool1d, F.avg_pool2d)[len(kernel) - 1])
    if ceil:
        raise TargetError("edgekit's ML Program executor knows l2_pool without ceil_mode only")
    return (function(_pad(a["x"].square(), pads, 0.0), kernel, strides) * math.prod(kernel)).sqrt()
