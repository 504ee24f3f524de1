"""Core to ONNX, quantized alone where asked, then the edges around it as operations."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgekit.core.errors import ConversionError
from edgekit.core.values import Batches, DeployableGraph, Float32, Recipe, Size, UInt8
from edgekit.export.pixels import Bordered, on_bordered_pixels, on_centred_pixels
from edgekit.export.rewrites import split_max_pooling
from targets.common import centred_planes, planes, require_batches
from targets.onnx_graph.edges import CORE_INPUT, CORE_OUTPUT, from_bordered, from_planes, from_rows, with_output

OPSET = 19
"""Resize's semantics as of 19 and QuantizeLinear's as of 19 are what TensorRT 10 and ONNX Runtime both read."""

Scheme = Literal["symmetric", "asymmetric"]


def build(graph: DeployableGraph, recipe: Recipe, batches: Batches | None, scheme: Scheme) -> Any:
    """The whole ONNX model (``onnx.ModelProto``): uint8 frame in, labels or logits out.

    Args:
        scheme: of int8 activations. ``symmetric`` is signed with zero point 0, weights per channel, only where
            TensorRT runs int8; ``asymmetric`` is what ONNX Runtime's CPU kernels are fastest with.
    """
    half = recipe.precision == "fp16"
    if recipe.precision != "int8":
        core = _centred_core(graph, half)
        # TensorRT has convolutions of its own for three planes.
        rows = from_rows(core, graph) if scheme == "asymmetric" else None
        return with_output(rows or from_planes(core, graph, half), graph, recipe)
    frames = require_batches(recipe, batches)
    # TensorRT's int8 is signed and symmetric, so that raw pixels would lose a bit there.
    bordered = on_bordered_pixels(graph) if scheme == "asymmetric" else None
    if bordered is None:
        centred = centred_planes(frames, graph.normalization.mean_colour())
        core = _quantize(_centred_core(graph, False), centred, scheme)
        return with_output(from_planes(core, graph, False), graph, recipe)
    split_max_pooling(bordered.module)  # a third of the time of ONNX Runtime's pooling of bytes
    raw = (planes(_with_border(frame, bordered)).astype(np.float32) for frame in frames())
    height = bordered.top + graph.size.height + bordered.bottom
    width = bordered.left + graph.size.width + bordered.right
    core = _quantize(_export(bordered.module, Size(height, width), False), raw, scheme, raw_pixels=True)
    return with_output(from_bordered(core, graph, bordered), graph, recipe)


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


def tensor_values(model: Any) -> dict[str, np.ndarray]:
    """Initializers by name, as arrays."""
    from onnx import numpy_helper

    return {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
