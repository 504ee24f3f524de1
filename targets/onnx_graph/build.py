"""Core to ONNX, quantized alone where asked, then the edges around it as operations."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.core.errors import ConversionError
from edgekit.core.values import DeployableGraph, Float32, Quantization, Recipe, Scheme, Size, UInt8
from edgekit.export.pixels import Bordered, on_bordered_pixels, on_centred_pixels
from edgekit.export.precision import to_half
from edgekit.export.rewrites import ANTIALIASED, attend_with_heads, smooth_by_matrices, split_max_pooling
from targets.common import (
    is_lost,
    is_unlike,
    kept_layers,
    planes,
    recognize,
    require_quantization,
    widen,
    with_width,
)
from targets.onnx_graph.edges import CORE_INPUT, CORE_OUTPUT, from_bordered, from_planes, from_rows, with_output

OPSET = 19
"""Resize's semantics as of 19 and QuantizeLinear's as of 19 are what TensorRT 10 and ONNX Runtime both read."""


def build(
    graph: DeployableGraph, recipe: Recipe, quantization: Quantization | None, scheme: Scheme
) -> tuple[Any, tuple[str, ...]]:
    """The whole ONNX model (``onnx.ModelProto``): uint8 frame in, labels or logits out. And the layers kept in float.

    Args:
        scheme: of int8 activations. ``symmetric`` also means int8 only where TensorRT runs it; ``asymmetric`` is what ONNX
            Runtime's CPU kernels are fastest with.
    """
    half = recipe.precision == "fp16"
    if recipe.precision != "int8":
        core = _centred_core(graph, half=half, smooth=_smooths(graph, scheme))
        # TensorRT has convolutions of its own for three planes.
        rows = from_rows(core, graph) if scheme == "asymmetric" else None
        return with_output(
            rows or from_planes(core, graph, half=half), graph, recipe, bytes_of_floats=scheme == "symmetric"
        ), ()
    chosen = require_quantization(recipe, quantization)
    # TensorRT's int8 is signed and symmetric, so that raw pixels would lose a bit there.
    bordered = on_bordered_pixels(graph) if scheme == "asymmetric" else None
    if bordered is None or _reads_frame(graph, recipe.keep_float):

        def centred(frame: UInt8) -> Float32:
            return planes(frame - graph.normalization.mean_colour())

        core, kept = _quantize(
            _centred_core(graph, half=False, smooth=_smooths(graph, scheme)), graph, recipe, chosen, scheme, centred
        )
        return with_output(
            from_planes(core, graph, half=False), graph, recipe, bytes_of_floats=scheme == "symmetric"
        ), kept
    split_max_pooling(bordered.module)  # a third of the time of ONNX Runtime's pooling of bytes
    height = bordered.top + graph.size.height + bordered.bottom
    width = bordered.left + graph.size.width + bordered.right
    float_core = _export(bordered.module, graph, Size(height, width), half=False)

    def raw(frame: UInt8) -> Float32:
        return planes(_with_border(frame, bordered)).astype(np.float32)

    core, kept = _quantize(float_core, graph, recipe, chosen, scheme, raw, raw_pixels=True)
    return with_output(from_bordered(core, graph, bordered), graph, recipe, bytes_of_floats=False), kept


def _centred_core(graph: DeployableGraph, *, half: bool, smooth: bool) -> Any:
    """The core on centred pixels, exported once for all targets and precisions that share it; nobody changes it."""

    def export() -> Any:
        module = on_centred_pixels(graph)
        if smooth:
            smooth_by_matrices(module)
        return _export(module, graph, graph.size, half=half)

    return graph.derived.once("onnx core", (half, smooth), export, most=2)


def _smooths(graph: DeployableGraph, scheme: Scheme) -> bool:
    """Whether resizes are with antialiasing, which TensorRT's parser does not have."""
    return scheme == "symmetric" and any(node.target in ANTIALIASED for node in graph.module.graph.nodes)


def _export(module: Any, graph: DeployableGraph, size: Size, *, half: bool) -> Any:
    """A form of the graph's core as ONNX."""
    import torch

    from edgekit.export.refusals import refusal

    attend_with_heads(module)
    module = to_half(module) if half else module
    example = torch.zeros(1, 3, size.height, size.width, dtype=torch.float16 if half else torch.float32)
    try:
        program = torch.onnx.export(
            module, (example,), input_names=[CORE_INPUT], output_names=[CORE_OUTPUT], opset_version=OPSET, dynamo=True,
            verbose=False, external_data=False,
        )  # fmt: skip
    except Exception as error:  # it raises many types; each means that it cannot take this network
        raise refusal(graph, "onnxruntime", "PyTorch's ONNX exporter", error) from error
    if program is None:
        raise ConversionError("torch.onnx.export gave no program for this network")
    model = program.model_proto
    for part in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ):
        del part.metadata_props[:]  # stack traces with the paths of this machine
    return model


def _with_border(frame: UInt8, bordered: Bordered) -> UInt8:
    """The frame in its border: uint8 [1, top + H + bottom, left + W + right, 3]."""
    _, height, width, _ = frame.shape
    shape = (1, bordered.top + height + bordered.bottom, bordered.left + width + bordered.right, 3)
    whole = np.broadcast_to(bordered.colour, shape).copy()
    whole[:, bordered.top : bordered.top + height, bordered.left : bordered.left + width] = frame
    return whole


def _quantize(
    model: Any,
    graph: DeployableGraph,
    recipe: Recipe,
    quantization: Quantization,
    scheme: Scheme,
    to_input: Callable[[UInt8], Float32],
    *,
    raw_pixels: bool = False,
) -> tuple[Any, tuple[str, ...]]:
    """Int8 by ONNX Runtime's tool, and what it leaves in float: layers, and kinds of operations.

    Args:
        to_input: what the core reads of a frame.
        raw_pixels: it reads bytes, whose quantization is known: scale 1, zero point 0.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData, save_tensors_data

    from edgekit.export.refusals import refusal

    operations = QUANTIZED_BY_TENSORRT if scheme == "symmetric" else QUANTIZED_BY_ONNXRUNTIME
    options: dict[str, Any] = {"WeightSymmetric": True}
    if raw_pixels:
        byte = {"quant_type": QuantType.QUInt8, "scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}
        options["TensorQuantOverrides"] = {CORE_INPUT: [byte]}
    if scheme == "symmetric":
        # TensorRT: signed, zero point 0, bias in float, nothing between a convolution and its ReLU or sum.
        options |= {
            "ActivationSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm", "ConvTranspose"],
        }
    found, kept = _ranges(model, graph, recipe, quantization, scheme, to_input, operations)
    excluded = {layer for node in model.graph.node if (layer := kept.get(node.name)) and node.op_type in operations}
    read = {name for node in model.graph.node if node.name in kept for name in node.input}
    # The tool makes them the limits of their quantized result; what reads it in float needs them as they are.
    activations = {node.name for node in model.graph.node if node.op_type in CLAMPS and read & set(node.output)}
    left = _left_in_float(model, found)
    floats = kept.keys() | activations | left.keys()
    with tempfile.TemporaryDirectory() as folder:
        source, ranges, result = (Path(folder) / name for name in ("float.onnx", "ranges.json", "int8.onnx"))
        onnx.save(model, source)
        limits = {name: tuple(np.asarray(side, np.float32) for side in pair) for name, pair in found.items()}
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, limits), ranges)
        try:
            quantize_static(
                source, result, None, quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QInt8 if scheme == "symmetric" else QuantType.QUInt8,
                weight_type=QuantType.QInt8, op_types_to_quantize=operations, extra_options=options,
                nodes_to_exclude=sorted(floats), calibration_cache_path=ranges,
            )  # fmt: skip
        except Exception as error:  # it raises many types; each means that it cannot take this network
            raise refusal(graph, "onnxruntime", "ONNX Runtime's quantizer", error, int8=True) from error
        quantized = onnx.load(result)
    _read_float(quantized, model, floats)
    kinds = {node.op_type for node in model.graph.node} - {*operations, *CLAMPS, "Constant", "Identity"}
    return quantized, (*kept_layers(recipe, excluded), *sorted(kinds | set(left.values())))


def _left_in_float(model: Any, ranges: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    """Nodes that int8 would make something else of, and the kind of each.

    The tool leaves a clamp out, for what it reads has a range that ends where the clamp does: but every range holds zero, and
    one whose limits do not is lost. And a constant that is lost in a sum, as the epsilon before a root, was not there in vain.
    A join's parts and its result have one scale, which unlike parts cannot share.
    """
    values = tensor_values(model)

    def lost(node: Any) -> bool:
        added = [np.abs(values[name]).max() for name in node.input if name in values]
        return bool(added) and node.output[0] in ranges and is_lost(float(added[0]), ranges[node.output[0]])

    def beyond_zero(name: str, *, above: bool) -> bool:
        return name in values and bool((values[name] > 0 if above else values[name] < 0).any())

    left = {}
    for node in model.graph.node:
        low, high = [*node.input[1:3], "", ""][:2]
        clamps = node.op_type == "Clip" and (beyond_zero(low, above=True) or beyond_zero(high, above=False))
        parts = [ranges[name] for name in node.input if name in ranges]
        unlike = node.op_type == "Concat" and node.output[0] in ranges and is_unlike(parts, ranges[node.output[0]])
        if clamps or unlike or (node.op_type == "Add" and lost(node)):
            left[node.name] = node.op_type
    return left


def _read_float(quantized: Any, model: Any, names: Collection[str]) -> None:
    """Have nodes read what they read in the float model: the tool has them read what it rounded for others."""
    before = {node.name: list(node.input) for node in model.graph.node if node.name in names}
    if not before:
        return
    graph = quantized.graph
    for node in graph.node:
        if node.name in before:
            del node.input[:]
            node.input.extend(before[node.name])
    held = {entry.name for entry in graph.initializer}
    wanted = {name for of_node in before.values() for name in of_node} - held
    graph.initializer.extend(entry for entry in model.graph.initializer if entry.name in wanted)
    outputs = {output.name for output in graph.output}
    while True:
        used = {name for node in graph.node for name in node.input} | outputs
        unread = [node for node in graph.node if not used & set(node.output)]
        if not unread:
            break
        for node in unread:
            graph.node.remove(node)
    for entry in [entry for entry in graph.initializer if entry.name not in used]:
        graph.initializer.remove(entry)


def _ranges(
    model: Any,
    graph: DeployableGraph,
    recipe: Recipe,
    quantization: Quantization,
    scheme: Scheme,
    to_input: Callable[[UInt8], Float32],
    operations: list[str],
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Smallest and largest value of all that the quantized operations read and give.

    And the nodes that belong to layers kept in float, with their layers.
    """
    constants = {entry.name for entry in model.graph.initializer}
    quantized = [
        name
        for node in model.graph.node
        if node.op_type in operations
        for name in (*node.input, *node.output)
        if name and name not in constants and name != CORE_INPUT
    ]
    given_by = {name: node.name for node in model.graph.node for name in node.output if name}
    names = list(dict.fromkeys([*quantized, *given_by] if recipe.keep_float else quantized))
    given = to_input(quantization.probe)
    values = zip(names, _session_on(model, names).run(None, {CORE_INPUT: given}), strict=True)
    floats = [(CORE_INPUT, given), *((name, value) for name, value in values if value.dtype == np.float32)]
    seen = recognize(graph, quantization, recipe, scheme, floats)
    del values, floats
    ranges = {CORE_INPUT: (0.0, 255.0), **seen.ranges()}
    found = {name: ranges[name] for name in (CORE_INPUT, *quantized) if name in ranges}
    unknown = [name for name in dict.fromkeys(quantized) if name not in found]
    for node in model.graph.node:  # pooled in two steps: the one between is no node, and holds some of what it reads
        if node.op_type == "MaxPool" and node.output[0] in unknown and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
            unknown.remove(node.output[0])
    if unknown:
        session = _session_on(model, unknown)
        for pixels in quantization.batches():
            for name, value in zip(unknown, session.run(None, {CORE_INPUT: to_input(pixels)}), strict=True):
                widen(found, name, value)
    kept = {given_by[name]: layer for name, layer in seen.kept.items() if name in given_by}
    return with_width(found), kept


def _reads_frame(graph: DeployableGraph, layers: tuple[str, ...]) -> bool:
    """Whether one of the layers reads the frame, which then must be centred: int8 alone reads bytes."""
    from edgekit.export.layers import nodes_of

    kept = nodes_of(graph, layers)
    return any(
        user.name in kept for node in graph.module.graph.nodes if node.op == "placeholder" for user in node.users
    )


def _session_on(model: Any, names: list[str]) -> Any:
    """An ONNX Runtime session that gives these values of a float core."""
    import onnx
    import onnxruntime

    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    del open_model.graph.output[:]
    open_model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(open_model.SerializeToString(), options, providers=["CPUExecutionProvider"])


CLAMPS = ("Relu", "Clip")
QUANTIZED_BY_TENSORRT = ["Conv", "ConvTranspose", "Gemm"]
QUANTIZED_BY_ONNXRUNTIME = ["Conv", "ConvTranspose", "Gemm", "Add", "MaxPool", "AveragePool", "Concat", "Relu", "Clip"]


def tensor_values(model: Any) -> dict[str, np.ndarray]:
    """Initializers by name, as arrays."""
    from onnx import numpy_helper

    return {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
