"""Core to ONNX, quantized alone where asked, then the edges around it as operations."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgekit.core.errors import ConversionError
from edgekit.core.values import Batches, DeployableGraph, Float32, Normalization, Recipe
from edgekit.export.sizes import decision_size
from targets.common import normalized

OPSET = 19
"""Resize's semantics as of 19 and QuantizeLinear's as of 19 are what TensorRT 10 and ONNX Runtime both read."""

CORE_INPUT, CORE_OUTPUT = "normalized", "logits"
Scheme = Literal["symmetric", "asymmetric"]


def build(graph: DeployableGraph, recipe: Recipe, batches: Batches | None, scheme: Scheme) -> Any:
    """The whole ONNX model (``onnx.ModelProto``): uint8 frame in, labels or logits out.

    Args:
        scheme: of int8 activations. ``symmetric`` is signed with zero point 0, weights per channel, only where
            TensorRT runs int8; ``asymmetric`` is what ONNX Runtime's CPU kernels are fastest with.
    """
    model = _export_core(graph, half=recipe.precision == "fp16")
    if recipe.precision == "int8":
        if batches is None:
            raise ConversionError("int8 needs calibration frames: name them with --calib")
        model = _quantize(model, batches, graph.normalization, scheme)
    return _add_edges(model, graph, recipe)


@lru_cache(maxsize=2)
def _export_core(graph: DeployableGraph, half: bool) -> Any:
    """The core as ONNX, exported once for all targets and precisions that share it; nobody changes it."""
    import torch

    module = copy.deepcopy(graph.module).half() if half else graph.module
    example = torch.zeros(1, 3, graph.size.height, graph.size.width, dtype=torch.float16 if half else torch.float32)
    program = torch.onnx.export(
        module, (example,), input_names=[CORE_INPUT], output_names=[CORE_OUTPUT], opset_version=OPSET, dynamo=True,
        verbose=False, external_data=False,
    )  # fmt: skip
    if program is None:
        raise ConversionError("torch.onnx.export gave no program for this network")
    return program.model_proto


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


def _quantize(model: Any, batches: Batches, normalization: Normalization, scheme: Scheme) -> Any:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    CalibrationDataReader.register(_Reader)
    reader = _Reader(normalized(batches, normalization))
    options: dict[str, Any] = {"WeightSymmetric": True}
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


def _add_edges(model: Any, graph: DeployableGraph, recipe: Recipe) -> Any:
    """Frame to normalized input before the core, logits to labels after it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    core = model.graph
    height, width = graph.size.height, graph.size.width
    half = recipe.precision == "fp16"
    before = [
        helper.make_node("Cast", ["frame"], ["edge_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["edge_float", "edge_scale"], ["edge_scaled"]),
        helper.make_node("Add", ["edge_scaled", "edge_offset"], ["edge_shifted"]),
        helper.make_node("Transpose", ["edge_shifted"], ["edge_channels" if half else CORE_INPUT], perm=[0, 3, 1, 2]),
    ]
    if half:
        before.append(helper.make_node("Cast", ["edge_channels"], [CORE_INPUT], to=TensorProto.FLOAT16))
    constants: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "edge_scale": graph.normalization.scale().reshape(1, 1, 1, 3),
        "edge_offset": graph.normalization.offset().reshape(1, 1, 1, 3),
    }
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
        [*before, *core.node, *after],
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
