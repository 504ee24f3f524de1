"""The way of a uint8 frame into an int8 flatbuffer: its bytes, as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.values import Float32
from edgekit.export.columns import Folding, fold_columns
from targets.tflite_graph.model import Model, quantization

VALID = 1
"""A convolution's padding, by its number in TFLite's schema."""


@dataclass(frozen=True)
class _Way:
    """Operations from the frame to its first convolution, each read by the next alone."""

    cast: Any
    subtraction: Any
    quantization: Any
    pad: Any
    convolution: Any


def on_bytes(model: Model, mean: Float32) -> bool:
    """Have an int8 model's first convolution read the frame's bytes, instead of centring and quantizing them in float.

    Bytes are int8 numbers but for their sign bit. The mean colour moves into the bias; where the convolution pads with it,
    a border of it, rounded to whole pixel values, is put around the frame. The float frames of the original take twelve
    times the frame's memory and a tenth of the time.

    Args:
        model: unchanged where the frame is read in another way than by one padded convolution.
        mean: the mean colour, float32 [3], in pixel values.

    Returns:
        Whether it was changed.
    """
    way = _way(model)
    if way is None:
        return False
    _rewrite(model, way, mean.astype(np.float64))
    return True


def _way(model: Model) -> _Way | None:
    found = []
    tensor = model.graph.inputs[0]
    for kind in ("CAST", "SUB", "QUANTIZE", "PAD", "CONV_2D"):
        readers = [operator for operator in model.operators if tensor in list(operator.inputs)]
        if len(readers) != 1 or model.kind(readers[0]) != kind:
            return None
        found.append(readers[0])
        tensor = readers[0].outputs[0]
    way = _Way(*found)
    options = way.convolution.builtinOptions
    return (
        way if options.padding == VALID and options.dilationWFactor == 1 and len(way.convolution.inputs) == 3 else None
    )


def _rewrite(model: Model, way: _Way, mean: NDArray[np.float64]) -> None:
    graph = model.graph
    frame, pixels = graph.inputs[0], way.quantization.outputs[0]
    graph.tensors[frame].quantization = quantization([1.0], [0])
    graph.tensors[pixels].quantization = quantization([1.0], [-128])
    way.quantization.inputs = [frame]
    _move_mean_into_bias(model, way, mean)

    _, height, width, _ = graph.tensors[frame].shape
    (top, bottom), (left, right) = _pads(model, way, height, width)
    folding = _fold(model, way, left + width + right)
    right += 0 if folding is None else folding.added
    colour = (np.round(mean).clip(0, 255) - 128).astype(np.int8)
    operators = [way.quantization]
    last = pixels
    for axis, before, after in ((1, top, bottom), (2, left, right)):
        rows, across = top + height + bottom, width if axis == 1 else left + width + right
        parts = [last]
        for side, count in (("before", before), ("after", after)):
            if count:
                shape = (1, count, width, 3) if axis == 1 else (1, rows, count, 3)
                border = model.add_tensor(f"frame_border_{axis}_{side}", shape, 1.0, -128)
                model.set_constant(border, np.broadcast_to(colour, shape))
                parts.insert(0 if side == "before" else len(parts), border)
        if len(parts) > 1:
            last = model.add_tensor(f"frame_bordered_{axis}", (1, rows, across, 3), 1.0, -128)
            operators.append(model.operator("CONCATENATION", parts, [last], version=2, axis=axis))
    if folding is not None:
        shape = (1, top + height + bottom, (left + width + right) // folding.block, 3 * folding.block)
        folded = model.add_tensor("frame_folded", shape, 1.0, -128)
        operators.append(_reshaped(model, last, folded))
        last = folded
    way.convolution.inputs[0] = last
    gone = (way.cast, way.subtraction, way.quantization, way.pad)
    graph.operators = [*operators, *(one for one in graph.operators if not any(one is other for other in gone))]


def _move_mean_into_bias(model: Model, way: _Way, mean: NDArray[np.float64]) -> None:
    """The convolution reads pixel values of scale 1, so that its bias has the weights' own scale."""
    weight_index, bias_index = way.convolution.inputs[1:]
    weight, bias = model.tensor(weight_index), model.tensor(bias_index)
    scale = np.broadcast_to(np.asarray(weight.quantization.scale, np.float64), weight.shape[0])
    old = _held(model, bias_index) * np.asarray(bias.quantization.scale, np.float64) / scale
    new = np.round(old - (_held(model, weight_index) * mean).sum((1, 2, 3))).astype(np.int32)
    bias.quantization.scale, bias.quantization.zeroPoint = scale.tolist(), [0] * len(scale)
    model.set_constant(bias_index, new)


def _pads(model: Model, way: _Way, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows above and below the frame and columns beside it, as far as the convolution reads them."""
    tensors = model.graph.tensors
    pads = _held(model, way.pad.inputs[1])
    options = way.convolution.builtinOptions
    _, tall, wide, _ = tensors[way.convolution.inputs[1]].shape
    _, rows, columns, _ = tensors[way.convolution.outputs[0]].shape
    top, left = int(pads[1, 0]), int(pads[2, 0])
    reach = (rows - 1) * options.strideH + (tall - 1) * options.dilationHFactor + 1
    across = (columns - 1) * options.strideW + wide
    return (top, max(0, reach - top - height)), (left, max(0, across - left - width))


def _fold(model: Model, way: _Way, width: int) -> Folding | None:
    """Have the convolution find several columns at once, where that gains something."""
    graph = model.graph
    options = way.convolution.builtinOptions
    weight_index, bias_index = way.convolution.inputs[1:]
    weight = model.tensor(weight_index)
    output = way.convolution.outputs[0]
    _, rows, columns, channels = graph.tensors[output].shape
    folding = fold_columns(channels, weight.shape[2], options.strideW, columns, width)
    if folding is None:
        return None
    folded = folding.weight(_held(model, weight_index))
    values = np.tile(_held(model, bias_index), folding.together)
    scale = np.tile(np.asarray(model.tensor(bias_index).quantization.scale), folding.together).tolist()
    for index, value in ((weight_index, folded), (bias_index, values)):
        tensor = model.tensor(index)
        tensor.shape = list(value.shape)
        model.set_constant(index, value)
        tensor.quantization.scale, tensor.quantization.zeroPoint = scale, [0] * len(scale)
    shape = (1, rows, columns // folding.together, folding.together * channels)
    several = model.add_tensor("columns_together", shape, 1.0, -128)
    graph.tensors[several].quantization = graph.tensors[output].quantization
    way.convolution.outputs = [several]
    options.strideW = 1
    graph.operators.insert(graph.operators.index(way.convolution) + 1, _reshaped(model, several, output))
    return folding


def _held(model: Model, index: int) -> NDArray[Any]:
    """A constant's values in its shape."""
    value = model.constant(index)
    assert value is not None
    return value.reshape(model.tensor(index).shape)


def _reshaped(model: Model, source: int, output: int) -> Any:
    return model.operator("RESHAPE", [source], [output], newShape=list(model.tensor(output).shape))
