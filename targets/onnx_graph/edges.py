"""Both ends of an ONNX graph: from a uint8 frame [1, H, W, 3] into its core, and from the core's logits out.

Each ``from_`` function takes the core, whose input is :data:`CORE_INPUT`, and gives a copy whose input is ``frame``, in
the form that a runtime's first convolution is fastest with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.values import DeployableGraph, Recipe
from edgekit.export.columns import Folding, fold_columns
from edgekit.export.pixels import Bordered
from edgekit.export.sizes import decision_size

CORE_INPUT, CORE_OUTPUT = "pixels", "logits"


def from_planes(core: Any, graph: DeployableGraph, *, half: bool) -> Any:
    """Into float32 (or float16) planes [1, 3, H, W] of pixels less the mean colour.

    The cast comes first, as TensorRT demands; the difference last, since three values in a row subtract slowly.
    """
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["frame"], ["edge_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["edge_float"], ["edge_planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["edge_planes", "edge_mean"], ["edge_centred" if half else CORE_INPUT]),
    ]
    if half:
        nodes.append(helper.make_node("Cast", ["edge_centred"], [CORE_INPUT], to=TensorProto.FLOAT16))
    mean = graph.normalization.mean_colour().reshape(1, 3, 1, 1)
    return _with_frame(_copy(core), graph, nodes, {"edge_mean": mean})


def from_rows(core: Any, graph: DeployableGraph) -> Any:
    """Into pixels less the mean colour as they lie in memory: float32 [1, 1, H, 3 W], a row's R, G, B, R, ... .

    A convolution over three planes is one over such rows, three times as wide and with three times the step, and is as
    fast in ONNX Runtime: the planes need not be made.

    Returns:
        None where something else reads the pixels, or a convolution that is dilated along the rows.
    """
    from onnx import TensorProto, helper

    model = _copy(core)
    weights = {entry.name: entry for entry in model.graph.initializer}
    for node in model.graph.node:
        if CORE_INPUT not in node.input:
            continue
        settings = _convolution(node)
        if settings is None or settings["dilations"][1] != 1 or node.input[1] not in weights:
            return None
        planes = _array(weights, node.input[1])
        count, _, tall, wide = planes.shape
        rows = np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).reshape(count, 1, tall, 3 * wide)
        node.input[1] = _constant(model, f"{node.input[1]}_rows", rows)
        top, left, bottom, right = settings["pads"]
        down, along = settings["strides"]
        _set(node, kernel_shape=[tall, 3 * wide], strides=[down, 3 * along], pads=[top, 3 * left, bottom, 3 * right])
    width = 3 * graph.size.width
    nodes = [
        helper.make_node("Reshape", ["frame", "edge_shape"], ["edge_rows_of_bytes"]),
        helper.make_node("Cast", ["edge_rows_of_bytes"], ["edge_float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["edge_float", "edge_mean"], [CORE_INPUT]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "edge_shape": np.asarray([1, 1, graph.size.height, width], np.int64),
        "edge_mean": np.tile(graph.normalization.mean_colour(), graph.size.width).reshape(1, 1, 1, width),
    }
    return _with_frame(model, graph, nodes, constants)


def from_bordered(core: Any, graph: DeployableGraph, bordered: Bordered) -> Any:
    """Into the quantized input of an int8 core, which the raw pixels in their border already are."""
    from onnx import helper

    model = _copy(core)
    (quantizing,) = (
        node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == CORE_INPUT
    )
    model.graph.node.remove(quantizing)
    bytes_name = quantizing.output[0]
    height = bordered.top + graph.size.height + bordered.bottom
    width = bordered.left + graph.size.width + bordered.right
    folding = _fold_columns(model, bytes_name, height, width)
    _store_unsigned(model, bytes_name)
    nodes, constants = _border(graph, bordered, 0 if folding is None else folding.added)
    last = nodes[-1].output[0] if nodes else "frame"
    if folding is not None:
        shape = [1, height, (width + folding.added) // folding.block, 3 * folding.block]
        constants["edge_blocks"] = np.asarray(shape, np.int64)
        nodes.append(helper.make_node("Reshape", [last, "edge_blocks"], ["edge_folded"]))
        last = "edge_folded"
    nodes.append(helper.make_node("Transpose", [last], [bytes_name], perm=[0, 3, 1, 2]))
    return _with_frame(model, graph, nodes, constants)


def with_output(model: Any, graph: DeployableGraph, recipe: Recipe, *, bytes_of_floats: bool) -> Any:
    """The whole model: its logits in float32, or the labels decided on them.

    Args:
        bytes_of_floats: labels pass through float32 on their way from integers to bytes, as TensorRT demands.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    core = model.graph
    height, width = graph.size.height, graph.size.width
    half = recipe.precision == "fp16"
    constants: dict[str, NDArray[Any]] = {}
    after, last = [], core.output[0].name
    if half:
        after.append(helper.make_node("Cast", [last], ["edge_logits"], to=TensorProto.FLOAT))
        last = "edge_logits"
    classes = len(graph.class_names)
    if recipe.output == "logits":
        shape = [1, classes, graph.logits_size.height, graph.logits_size.width]
        outputs = [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)]
    else:
        decision = decision_size(graph.size, recipe.output_stride)
        if decision != graph.logits_size:
            constants["edge_decision"] = np.asarray([1, classes, decision.height, decision.width], np.int64)
            after.append(
                helper.make_node(
                    "Resize", [last, "", "", "edge_decision"], ["edge_full"], mode="linear",
                    coordinate_transformation_mode="half_pixel",
                )
            )  # fmt: skip
            last = "edge_full"
        after.append(helper.make_node("ArgMax", [last], ["edge_best"], axis=1, keepdims=0))
        if decision != graph.size:
            # Repeated by gathering rows and columns: ONNX's nearest Resize takes no integers in every runtime.
            after.append(helper.make_node("Cast", ["edge_best"], ["edge_small"], to=TensorProto.INT32))
            constants["edge_rows"] = np.arange(height, dtype=np.int64) // recipe.output_stride
            constants["edge_columns"] = np.arange(width, dtype=np.int64) // recipe.output_stride
            after.append(helper.make_node("Gather", ["edge_small", "edge_rows"], ["edge_tall"], axis=1))
            after.append(helper.make_node("Gather", ["edge_tall", "edge_columns"], ["edge_repeated"], axis=2))
            last = "edge_repeated"
        else:
            last = "edge_best"
        if bytes_of_floats:
            after.append(helper.make_node("Cast", [last], ["edge_label_numbers"], to=TensorProto.FLOAT))
            last = "edge_label_numbers"
        after.append(helper.make_node("Cast", [last], ["labels"], to=TensorProto.UINT8))
        outputs = [helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, height, width])]
    whole = helper.make_graph(
        [*core.node, *after],
        "edgekit",
        core.input,
        outputs,
        [*core.initializer, *(numpy_helper.from_array(value, name) for name, value in constants.items())],
    )
    result = helper.make_model(whole, opset_imports=model.opset_import, ir_version=min(model.ir_version, 10))
    onnx.checker.check_model(result)
    return result


def _border(graph: DeployableGraph, bordered: Bordered, added: int) -> tuple[list[Any], dict[str, NDArray[Any]]]:
    """The frame in its border, with columns added on the right that nothing reads."""
    from onnx import helper

    height, width = graph.size.height, graph.size.width
    tall = bordered.top + height + bordered.bottom
    nodes: list[Any] = []
    constants: dict[str, NDArray[Any]] = {}
    for axis, sides in ((1, (bordered.top, bordered.bottom)), (2, (bordered.left, bordered.right + added))):
        parts = [nodes[-1].output[0] if nodes else "frame"]
        for position, side in enumerate(sides):
            if side:
                shape = (1, side, width, 3) if axis == 1 else (1, tall, side, 3)
                name = f"edge_border_{axis}_{position}"
                constants[name] = np.broadcast_to(bordered.colour, shape).copy()
                parts.insert(0 if position == 0 else len(parts), name)
        if len(parts) > 1:
            nodes.append(helper.make_node("Concat", parts, [f"edge_bordered_{axis}"], axis=axis))
    return nodes, constants


@dataclass(frozen=True)
class _First:
    """The only convolution over the quantized pixels.

    Attributes:
        node, settings: the convolution and its attributes.
        parameters: the DequantizeLinear of its weight and, where it has one, of its bias; nobody else reads them.
        quantization: of its output, which nothing else reads.
    """

    node: Any
    settings: dict[str, Any]
    parameters: list[Any]
    quantization: Any


def _first_convolution(model: Any, bytes_name: str) -> _First | None:
    """The convolution over the pixels of an int8 core; None where they are read in another way."""
    constants = {entry.name for entry in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def only_reader(name: str, operation: str) -> Any:
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and found[0].op_type == operation else None

    floats = only_reader(bytes_name, "DequantizeLinear")
    node = None if floats is None else only_reader(floats.output[0], "Conv")
    settings = None if node is None else _convolution(node)
    if node is None or settings is None:
        return None
    quantization = only_reader(node.output[0], "QuantizeLinear")
    parameters = [makers[name] for name in node.input[1:] if name in makers]
    own = all(
        part.op_type == "DequantizeLinear" and len(readers[part.output[0]]) == 1 and constants.issuperset(part.input)
        for part in parameters
    )
    if quantization is None or not own or len(parameters) != len(node.input) - 1:
        return None
    return _First(node, settings, parameters, quantization)


def _fold_columns(model: Any, bytes_name: str, height: int, width: int) -> Folding | None:
    """Have the first convolution find several columns of its output at once, in a fifth of the time.

    Args:
        bytes_name: the pixels, uint8 [1, 3, height, width], which become [1, 3 block, height, (width + added) / block].

    Returns:
        None, with the graph unchanged, where this is impossible or gains nothing.
    """
    from onnx import helper

    first = _first_convolution(model, bytes_name)
    if first is None or any(first.settings["pads"]) or first.settings["dilations"][1] != 1:
        return None
    constants = {entry.name: entry for entry in model.graph.initializer}
    weight, _, *zero_point = (_array(constants, name) for name in first.parameters[0].input)
    channels, _, tall, wide = weight.shape
    down, along = first.settings["strides"]
    columns = (width - wide) // along + 1
    folding = fold_columns(channels, wide, along, columns, width)
    if folding is None or any(part.any() for part in zero_point):
        return None
    for part in first.parameters:
        for index, name in enumerate(part.input):
            value = _array(constants, name)
            if value.ndim == 4:
                value = np.ascontiguousarray(folding.weight(value.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))
            elif value.shape == (channels,):
                value = np.tile(value, folding.together)
            part.input[index] = _constant(model, f"{name}_folded", value)
    _set(first.node, kernel_shape=[tall, folding.blocks], strides=[down, 1])

    rows = (height - (tall - 1) * first.settings["dilations"][0] - 1) // down + 1
    name = first.quantization.output[0]
    first.quantization.output[0] = f"{name}_folded"
    shape = _constant(model, "edge_unfolded", np.asarray([1, rows, columns, channels], np.int64))
    steps = (
        helper.make_node("Transpose", [f"{name}_folded"], ["edge_last"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["edge_last", shape], ["edge_columns_of_map"]),
        helper.make_node("Transpose", ["edge_columns_of_map"], [name], perm=[0, 3, 1, 2]),
    )
    place = list(model.graph.node).index(first.quantization) + 1
    for step in reversed(steps):
        model.graph.node.insert(place, step)
    return folding


def _store_unsigned(model: Any, bytes_name: str) -> None:
    """The weights that pixels are multiplied with as uint8 about 128: the same numbers, by another kernel.

    On an x86 CPU without VNNI, ONNX Runtime adds two products of a byte and an int8 in 16 bits, which overflow where pixels are
    bright (microsoft/onnxruntime#14642); of two unsigned bytes it does not. Later layers seldom come near.
    """
    constants = {entry.name: entry for entry in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        source = makers.get(node.input[0]) if node.op_type == "Conv" else None
        if source is None or source.op_type != "DequantizeLinear" or source.input[0] != bytes_name:
            continue
        dequantizing = makers[node.input[1]]
        weight, zero_point = (_array(constants, dequantizing.input[index]) for index in (0, 2))
        if weight.dtype != np.int8 or zero_point.any():
            continue
        for index, value in ((0, weight.astype(np.int16)), (2, zero_point.astype(np.int16))):
            name = f"{dequantizing.input[index]}_unsigned"
            dequantizing.input[index] = _constant(model, name, (value + 128).astype(np.uint8))


def _copy(core: Any) -> Any:
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(core)
    return model


def _with_frame(model: Any, graph: DeployableGraph, nodes: list[Any], constants: dict[str, NDArray[Any]]) -> Any:
    """The model with nodes before all others that make its input of a frame; constants nobody reads are dropped."""
    from onnx import TensorProto, helper

    for name, value in constants.items():
        _constant(model, name, value)
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    del model.graph.input[:]
    shape = [1, graph.size.height, graph.size.width, 3]
    model.graph.input.append(helper.make_tensor_value_info("frame", TensorProto.UINT8, shape))
    used = {name for node in model.graph.node for name in node.input}
    for entry in [entry for entry in model.graph.initializer if entry.name not in used]:
        model.graph.initializer.remove(entry)
    return model


def _constant(model: Any, name: str, value: NDArray[Any]) -> str:
    from onnx import numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _array(constants: dict[str, Any], name: str) -> NDArray[Any]:
    from onnx import numpy_helper

    value: NDArray[Any] = numpy_helper.to_array(constants[name])
    return value


def _convolution(node: Any) -> dict[str, Any] | None:
    """Attributes of a convolution with their defaults; None for other operations, groups, and padding by name."""
    from onnx import helper

    if node.op_type != "Conv":
        return None
    defaults = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1, "auto_pad": b"NOTSET"}
    settings = defaults | {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    return settings if settings["group"] == 1 and settings["auto_pad"] == b"NOTSET" else None


def _set(node: Any, **attributes: list[int]) -> None:
    from onnx import helper

    kept = [entry for entry in node.attribute if entry.name not in attributes]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(key, value) for key, value in attributes.items())])
