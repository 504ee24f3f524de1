"""A linter of the rules TensorRT's ONNX parser sets for explicit quantization.

Sources: NVIDIA's TensorRT developer guide, "Working with Quantized Types" (explicit quantization, Q/DQ placement), its
``DataType`` reference (uint8 converts from and to float32 and float16 alone), and onnx-tensorrt's ``docs/operators.md`` and
``onnxOpImporters.cpp`` (QuantizeLinear, DequantizeLinear, Cast).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from targets.onnx_graph.build import tensor_values

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
OPERATORS = frozenset(
    [
        "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
        "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv",
        "ConvTranspose", "Cos", "Cosh", "CumSum", "DeformConv", "DepthToSpace", "DequantizeLinear", "Div", "Dropout",
        "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "Gather", "GatherElements",
        "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual",
        "GridSample", "GroupNormalization", "GRU", "Hardmax", "HardSigmoid", "HardSwish", "Identity",
        "InstanceNormalization", "IsInf", "IsNaN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log",
        "LogSoftmax", "LpNormalization", "LpPool", "LRN", "LSTM", "MatMul", "Max", "MaxPool", "Mean",
        "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg", "NonMaxSuppression", "NonZero", "Not",
        "OneHot", "Or", "Pad", "Pow", "PRelu", "QuantizeLinear", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
        "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
        "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence", "RNN", "RoiAlign", "Round", "Scatter",
        "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice",
        "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh",
        "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where", "Xor",
    ]
)  # fmt: skip
"""Operators of networks that the parser of TensorRT 10 lists as supported (docs/operators.md of onnx/onnx-tensorrt, 10.15).

Left out: what came after 10.1 (STFT and windows), graphs within graphs (If, Loop, Scan), whose nodes nobody would check, and what
draws numbers.
"""


MOST_LARGEST = 3840
"""The parser's topk gives fewer."""


@dataclass(frozen=True)
class Finding:
    """One broken rule.

    Attributes:
        node: name of the node.
        level: ``error`` when the parser or builder refuses the graph; ``slow`` when it only blocks a fusion.
        text: what is wrong.
    """

    node: str
    level: Literal["error", "slow"]
    text: str


def check(model: Any) -> list[Finding]:
    """All findings on an ``onnx.ModelProto``; empty for a graph TensorRT takes as it stands."""
    from onnx import TensorProto
    from onnx.helper import get_attribute_value
    from onnx.shape_inference import infer_shapes

    graph = model.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in infer_shapes(model).graph.value_info}
    values = tensor_values(model)
    types = {entry.name: entry.data_type for entry in graph.initializer}
    producer = {output: node for node in graph.node for output in node.output}
    consumers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    outputs = {output.name for output in graph.output}
    findings: list[Finding] = []

    def report(node: Any, level: Literal["error", "slow"], text: str) -> None:
        findings.append(Finding(node.name or node.output[0], level, text))

    for value in graph.input:
        dimensions = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        if not dimensions or any(size < 1 for size in dimensions):
            findings.append(Finding(value.name, "error", "an input with a dynamic size: edgekit's engines are static"))
        if value.type.tensor_type.elem_type == TensorProto.UINT8:
            for node in consumers.get(value.name, []):
                if node.op_type != "Cast":
                    report(node, "error", "uint8 is an input type only: a Cast to float must follow it directly")
    for node in graph.node:
        if node.op_type not in OPERATORS:
            report(node, "error", f"operator {node.op_type} is not one the parser supports")
        to_bytes = node.op_type == "Cast" and get_attribute_value(node.attribute[0]) == TensorProto.UINT8
        if to_bytes and kinds.get(node.input[0]) not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            report(node, "error", "uint8 is made of floats only: a Cast to float must stand before it")
        _check_attributes(node, values, consumers, report)
        if node.op_type not in (QUANTIZE, DEQUANTIZE):
            continue
        _check_scale(node, values, types, producer, report)
        if node.op_type == QUANTIZE:
            for reader in consumers.get(node.output[0], []):
                if reader.op_type != DEQUANTIZE:
                    report(
                        node, "error", f"a quantized tensor feeds {reader.op_type}: only DequantizeLinear may read it"
                    )
                elif not _same(values, node.input[1], reader.input[1]):
                    report(node, "error", "its DequantizeLinear has another scale")
            if node.output[0] in outputs:
                report(node, "error", "a quantized tensor is the network's output")
            source = producer.get(node.input[0])
            if source is not None and source.op_type == "Conv":
                readers = {reader.op_type for reader in consumers.get(source.output[0], [])} - {QUANTIZE}
                after = {
                    reader.op_type for dequantize in consumers.get(node.output[0], []) for reader in consumers.get(dequantize.output[0], [])
                }  # fmt: skip
                if "Relu" in readers | after:
                    report(node, "slow", "it stands between a convolution and its ReLU, which then cannot be fused")
        else:
            for reader in consumers.get(node.output[0], []):
                biased = reader.op_type in ("Conv", "ConvTranspose", "Gemm") and len(reader.input) > 2
                if biased and reader.input[2] == node.output[0]:
                    report(node, "error", "it dequantizes a bias: biases must stay in float")
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            quantized = [_is_dequantized(name, producer) for name in node.input[:2]]
            if quantized[0] != quantized[1]:
                report(node, "slow", "only one of input and weights is quantized: it runs in float")
    return findings


def _check_attributes(node: Any, values: dict[str, Any], consumers: dict[str, list[Any]], report: Any) -> None:
    """What the parser's table of operators refuses of an operator that it otherwise takes."""
    from onnx.helper import get_attribute_value

    attributes = {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Resize":
        if attributes.get("mode") == b"cubic":
            report(node, "error", "a cubic resize: the parser has nearest and linear only")
        if attributes.get("antialias"):
            report(node, "error", "a resize with antialiasing, which the parser does not have")
    if node.op_type in ("AveragePool", "LpPool") and any(one != 1 for one in attributes.get("dilations", ())):
        report(node, "error", "a dilated pooling, which the parser does not have")
    if node.op_type == "ScatterND" and attributes.get("reduction", b"none") != b"none":
        report(node, "error", "a scatter that adds up or compares: the parser has one that overwrites")
    if node.op_type == "TopK":
        if attributes.get("sorted", 1) != 1:
            report(node, "error", "a topk that is not sorted, which the parser does not have")
        largest = [int(np.max(values[name])) for name in node.input[1:2] if name in values]
        if largest and largest[0] >= MOST_LARGEST:
            report(node, "error", f"a topk of {MOST_LARGEST} or more, which the parser does not have")
    if node.op_type == "LSTM" and attributes.get("input_forget"):
        report(node, "error", "an LSTM with coupled gates, which the parser does not have")
    if node.op_type in ("LSTM", "GRU", "RNN") and attributes.get("layout"):
        report(node, "error", "a recurrent layer with the batch first, which the parser does not have")
    if node.op_type == "MaxPool":
        if any(dilation != 1 for dilation in attributes.get("dilations", ())):
            report(node, "error", "a dilated max pooling, which the parser does not have")
        if len(node.output) > 1 and consumers.get(node.output[1]):
            report(node, "error", "the places of the maxima of a pooling are read: the parser gives the maxima only")


def _check_scale(
    node: Any, values: dict[str, Any], types: dict[str, int], producer: dict[str, Any], report: Any
) -> None:
    from onnx import TensorProto

    scale = values.get(node.input[1])
    if scale is None:
        report(node, "error", "its scale is computed at run time: scales must be constants")
        return
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        report(node, "error", "its scale is not above zero everywhere")
    if len(node.input) > 2 and node.input[2]:
        zero_point = values.get(node.input[2])
        if zero_point is None:
            report(node, "error", "its zero point is computed at run time: it must be a constant 0")
        elif (zero_point != 0).any():
            report(node, "error", "its zero point is not 0")
        if types.get(node.input[2]) not in (TensorProto.INT8, None):
            report(node, "error", "its type is not int8 (uint8 and int32 are refused)")
    elif node.op_type == QUANTIZE:
        report(node, "error", "it has no zero point, so its type is uint8: give an int8 zero of the scale's shape")
    if np.size(scale) > 1:
        weights = node.input[0] in values or _comes_from_constant(node.input[0], values, producer)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        if not weights:
            report(node, "error", "an activation has a scale per channel: only weights may")
        elif node.input[0] in values and values[node.input[0]].shape[axis] != np.size(scale):
            report(
                node, "error", f"{np.size(scale)} scales on axis {axis} of a tensor {list(values[node.input[0]].shape)}"
            )


def _comes_from_constant(name: str, values: dict[str, Any], producer: dict[str, Any]) -> bool:
    node = producer.get(name)
    return name in values or (node is not None and node.op_type == QUANTIZE and node.input[0] in values)


def _is_dequantized(name: str, producer: dict[str, Any]) -> bool:
    node = producer.get(name)
    return node is not None and node.op_type == DEQUANTIZE


def _same(values: dict[str, Any], first: str, second: str) -> bool:
    if first == second:
        return True
    return first in values and second in values and np.array_equal(values[first], values[second])
