"""Core to ONNX, quantized alone where asked, then the edges around it as operations."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import ConversionError
from edgekit.core.values import Batches, DeployableGraph, Float32, Recipe, Size, UInt8
from edgekit.export.pixels import Bordered, on_bordered_pixels, on_centred_pixels
from edgekit.export.rewrites import split_max_pooling
from edgekit.export.sizes import decision_size
from targets.common import centred_planes, planes, require_batches

OPSET = 19
"""Resize's semantics as of 19 and QuantizeLinear's as of 19 are what TensorRT 10 and ONNX Runtime both read."""

CORE_INPUT, CORE_OUTPUT = "pixels", "logits"
Scheme = Literal["symmetric", "asymmetric"]


def build(graph: DeployableGraph, recipe: Recipe, batches: Batches | None, scheme: Scheme) -> Any:
    """The whole ONNX model (``onnx.ModelProto``): uint8 frame in, labels or logits out.

    Args:
        scheme: of int8 activations. ``symmetric`` is signed with zero point 0, weights per channel, only where
            TensorRT runs int8; ``asymmetric`` is what ONNX Runtime's CPU kernels are fastest with.
    """
    half = recipe.precision == "fp16"
    if recipe.precision != "int8":
        return _add_edges(_centred_core(graph, half), graph, recipe, _centring(graph, half))
    frames = require_batches(recipe, batches)
    # TensorRT's int8 is signed and symmetric, so that raw pixels would lose a bit there.
    bordered = on_bordered_pixels(graph) if scheme == "asymmetric" else None
    if bordered is None:
        centred = centred_planes(frames, graph.normalization.mean_colour())
        core = _quantize(_centred_core(graph, False), centred, scheme)
        return _add_edges(core, graph, recipe, _centring(graph, False))
    split_max_pooling(bordered.module)  # a third of the time of ONNX Runtime's pooling of bytes
    raw = (planes(_with_border(frame, bordered)).astype(np.float32) for frame in frames())
    height = bordered.top + graph.size.height + bordered.bottom
    width = bordered.left + graph.size.width + bordered.right
    core = _quantize(_export(bordered.module, Size(height, width), False), raw, scheme, raw_pixels=True)
    return _add_edges(core, graph, recipe, _bordering(core, graph, bordered))


@lru_cache(maxsize=2)
def _centred_core(graph: DeployableGraph, half: bool) -> Any:
    """The core on centred pixels, exported once for all targets and precisions that share it; nobody changes it."""
    return _export(on_centred_pixels(graph), graph.size, half)


def _export(module: Any, size: Size, half: bool) -> Any:
    import torch

    module = module.half() if half else module
    example = torch.zeros(1, 3, size.height, size.width, dtype=torch.float16 if half else torch.float32)
    program = torch.onnx.export(
        module, (example,), input_names=[CORE_INPUT], output_names=[CORE_OUTPUT], opset_version=OPSET, dynamo=True,
        verbose=False, external_data=False,
    )  # fmt: skip
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


@dataclass
class _Reader:
    """ONNX Runtime's calibration protocol over one pass of batches."""

    frames: Iterator[Float32]
    seen: int = 0

    def get_next(self) -> dict[str, Float32] | None:
        frame = next(self.frames, None)
        if frame is None:
            return None
        self.seen += 1
        return {CORE_INPUT: frame}


def _with_border(frame: UInt8, bordered: Bordered) -> UInt8:
    """The frame in its border: uint8 [1, top + H + bottom, left + W + right, 3]."""
    _, height, width, _ = frame.shape
    shape = (1, bordered.top + height + bordered.bottom, bordered.left + width + bordered.right, 3)
    whole = np.broadcast_to(bordered.colour, shape).copy()
    whole[:, bordered.top : bordered.top + height, bordered.left : bordered.left + width] = frame
    return whole


def _quantize(model: Any, inputs: Iterator[Float32], scheme: Scheme, raw_pixels: bool = False) -> Any:
    """Int8 by ONNX Runtime's tool, calibrated with the core's inputs.

    Args:
        raw_pixels: the inputs are bytes, whose quantization is known: scale 1, zero point 0.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    CalibrationDataReader.register(_Reader)
    reader = _Reader(inputs)
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
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_static(
            source, result, reader, quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QInt8 if scheme == "symmetric" else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "ConvTranspose", "Gemm"] if scheme == "symmetric" else QUANTIZED_BY_ONNXRUNTIME,
            extra_options=options,
        )  # fmt: skip
        if not reader.seen:
            raise ConversionError("calibration gave no frames: choose a --calib dataset that has some")
        return onnx.load(result)


QUANTIZED_BY_ONNXRUNTIME = ["Conv", "ConvTranspose", "Gemm", "Add", "MaxPool", "AveragePool", "Concat", "Relu", "Clip"]


@dataclass(frozen=True)
class _Edge:
    """Operations from the frame to the core, with their constants.

    Attributes:
        replaced: a node of the core that they stand for.
    """

    nodes: list[Any]
    constants: dict[str, NDArray[Any]]
    replaced: Any = None


def _centring(graph: DeployableGraph, half: bool) -> _Edge:
    """Frame -> pixels less the mean colour.

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
    return _Edge(nodes, {"edge_mean": graph.normalization.mean_colour().reshape(1, 3, 1, 1)})


def _bordering(core: Any, graph: DeployableGraph, bordered: Bordered) -> _Edge:
    """Frame in its border -> straight into the first convolution, whose quantized input the pixels are."""
    from onnx import helper

    height, width = graph.size.height, graph.size.width
    nodes, constants, last = [], {}, "frame"
    for axis, sides, other in ((1, (bordered.top, bordered.bottom), width), (2, (bordered.left, bordered.right), 0)):
        tall = bordered.top + height + bordered.bottom
        parts = [last]
        for position, side in enumerate(sides):
            if side:
                shape = (1, side, other, 3) if axis == 1 else (1, tall, side, 3)
                name = f"edge_border_{axis}_{position}"
                constants[name] = np.broadcast_to(bordered.colour, shape).copy()
                parts.insert(0 if position == 0 else len(parts), name)
        if len(parts) > 1:
            last = f"edge_bordered_{axis}"
            nodes.append(helper.make_node("Concat", parts, [last], axis=axis))
    (quantizing,) = (
        node for node in core.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == CORE_INPUT
    )
    nodes.append(helper.make_node("Transpose", [last], [quantizing.output[0]], perm=[0, 3, 1, 2]))
    return _Edge(nodes, constants, quantizing)


def _add_edges(model: Any, graph: DeployableGraph, recipe: Recipe, edge: _Edge) -> Any:
    """The core between the frame's edge and, for labels, the decision."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    core = model.graph
    height, width = graph.size.height, graph.size.width
    half = recipe.precision == "fp16"
    constants = dict(edge.constants)
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
            constants["edge_rows"] = np.arange(height, dtype=np.int64) * decision.height // height
            constants["edge_columns"] = np.arange(width, dtype=np.int64) * decision.width // width
            after.append(helper.make_node("Gather", ["edge_small", "edge_rows"], ["edge_tall"], axis=1))
            after.append(helper.make_node("Gather", ["edge_tall", "edge_columns"], ["edge_repeated"], axis=2))
            last = "edge_repeated"
        else:
            last = "edge_best"
        after.append(helper.make_node("Cast", [last], ["labels"], to=TensorProto.UINT8))
        outputs = [helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, height, width])]
    whole = helper.make_graph(
        [*edge.nodes, *(node for node in core.node if node is not edge.replaced), *after],
        "edgekit",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, height, width, 3])],
        outputs,
        [*core.initializer, *(numpy_helper.from_array(value, name) for name, value in constants.items())],
    )
    result = helper.make_model(whole, opset_imports=model.opset_import, ir_version=min(model.ir_version, 10))
    onnx.checker.check_model(result)
    return result


def tensor_values(model: Any) -> dict[str, np.ndarray]:
    """Initializers by name, as arrays."""
    from onnx import numpy_helper

    return {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
