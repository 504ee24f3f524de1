"""The vendors' converters and quantizers with their defaults, as their documentation shows them; for all benchmarks.

Every network takes float32 [1, 3, H, W] and every calibration frame is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edgekit.core.values import Float32


def to_coreml(network: Any, example: Any, model: Path) -> None:
    """torch.jit.trace, coremltools.convert for iOS 17."""
    import coremltools
    import torch

    traced = torch.jit.trace(network, example)  # type: ignore[no-untyped-call]
    kind = coremltools.TensorType(shape=example.shape)
    target = coremltools.target.iOS17
    coremltools.convert(traced, inputs=[kind], minimum_deployment_target=target).save(str(model))


def to_tflite(network: Any, example: Any, model: Path) -> None:
    """litert_torch.convert."""
    import litert_torch

    litert_torch.convert(network, (example,)).export(str(model))


def quantize_tflite(model: Path, frames: Iterable[Float32], quantized: Path) -> None:
    """ai-edge-quantizer's static recipe."""
    from ai_edge_quantizer import quantizer, recipe

    tool = quantizer.Quantizer(str(model), recipe.static_wi8_ai8())
    ranges = tool.calibrate({"serving_default": [{"args_0": frame} for frame in frames]})
    tool.quantize(ranges).export_model(str(quantized))


def to_openvino(network: Any, example: Any) -> Any:
    """openvino.convert_model; the ``openvino.Model``."""
    import openvino

    return openvino.convert_model(network, example_input=example, input=list(example.shape))


def quantize_openvino(model: Any, frames: Iterable[Float32]) -> Any:
    """nncf.quantize; the quantized ``openvino.Model``."""
    import nncf

    return nncf.quantize(model, nncf.Dataset(list(frames)))


def to_onnx(network: Any, example: Any, model: Path) -> None:
    """torch.onnx.export, its only input named ``input``."""
    import torch

    torch.onnx.export(
        network, (example,), str(model), input_names=["input"], dynamo=True, verbose=False, external_data=False
    )


def quantize_onnx(model: Path, frames: Iterator[Float32], quantized: Path, symmetric: bool = False) -> None:
    """quantize_static.

    Args:
        symmetric: signed and symmetric without quantized biases, which is what TensorRT's parser takes.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no type information
        def get_next(self) -> dict[str, Any] | None:
            frame = next(frames, None)
            return None if frame is None else {"input": frame}

    options: dict[str, Any] = {}
    if symmetric:
        options = {
            "activation_type": QuantType.QInt8,
            "weight_type": QuantType.QInt8,
            "extra_options": {"ActivationSymmetric": True, "QuantizeBias": False},
        }
    quantize_static(model, quantized, Reader(), **options)
