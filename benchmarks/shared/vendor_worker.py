"""What a user does with a vendor's defaults, as a process that the benchmarks drive like edgekit's own worker.

A folder holds the vendor's model and ``pipeline.json``: kind, options, input size, mean and std. Frames are normalized in
numpy, the model gives full-size logits, numpy takes the argmax.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.core.values import Float32, SessionOptions, UInt8
from edgekit.devices.worker import main


def normalized(frame: UInt8, mean: Float32, std: Float32) -> Float32:
    """uint8 [1, H, W, 3] -> float32 [1, 3, H, W], as users write it."""
    x = (frame.astype(np.float32) / 255.0 - mean) / std
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32)


@dataclass
class Pipeline:
    """Normalization, the vendor's model, argmax.

    Attributes:
        infer: logits [1, C, H, W] of the native input; called again for one forward pass of the bare model.
        channels_last: the native input is [1, H, W, 3], laid out so before ``infer``.
        dtype: of the native input.
        scale, zero_point: of a quantized input.
    """

    infer: Any
    mean: Float32
    std: Float32
    settings: Mapping[str, Any]
    channels_last: bool = False
    dtype: Any = np.float32
    scale: float = 1.0
    zero_point: int = 0
    last: Any = None

    def run(self, frame: UInt8) -> UInt8:
        """uint8 [1, H, W, 3] -> uint8 [1, H, W]."""
        x = normalized(frame, self.mean, self.std)
        if self.dtype != np.float32:
            x = np.clip(np.round(x / self.scale) + self.zero_point, -128, 127).astype(self.dtype)
        self.last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if self.channels_last else x
        x = self.last
        labels: UInt8 = np.asarray(self.infer(x)).argmax(1).astype(np.uint8)
        return labels

    def run_graph(self) -> None:
        """One forward pass on the last input."""
        self.infer(self.last)


def openvino(folder: Path, options: dict[str, Any], threads: int | None) -> tuple[Any, dict[str, Any]]:
    """compile_model with its defaults, or with the inference precision that ``options`` names; ``share`` copies nothing."""
    import openvino as ov

    share = {f"share_{side}": True for side in ("inputs", "outputs") if options.get("share")}
    chosen = {name: value for name, value in options.items() if name != "share"}
    compiled = ov.Core().compile_model(folder / "model.xml", "CPU", chosen)
    request = compiled.create_infer_request()
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return lambda x: request.infer([x], **share)[0], {"inference precision": precision}


def onnxruntime(folder: Path, options: dict[str, Any], threads: int | None) -> tuple[Any, dict[str, Any]]:
    """InferenceSession with its defaults."""
    import onnxruntime as runtime

    session = runtime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0], {"provider": "CPUExecutionProvider"}


def pytorch(folder: Path, options: dict[str, Any], threads: int | None) -> tuple[Any, dict[str, Any]]:
    """The network itself, eager or through torch.compile."""
    import torch

    module = torch.load(folder / "model.pt", weights_only=False).eval()
    if options.get("compile"):
        module = torch.compile(module)

    def infer(x: Float32) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(x)).numpy()

    return infer, {"threads": torch.get_num_threads(), **options}


@contextmanager
def opener(folder: Path, options: SessionOptions) -> Iterator[Pipeline]:
    """Opens a vendor's folder."""
    threads = options.threads
    description = json.loads((folder / "pipeline.json").read_text())
    mean, std = (np.asarray(description[key], np.float32) for key in ("mean", "std"))
    kind, chosen = description["kind"], description["options"]
    if kind == "tflite":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(folder / "model.tflite"), num_threads=threads)
        interpreter.allocate_tensors()
        source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

        def infer(x: Any) -> Any:
            interpreter.set_tensor(source["index"], x)
            interpreter.invoke()
            return interpreter.get_tensor(result["index"])

        scale, zero_point = source["quantization"]
        last = bool(chosen.get("channels_last"))
        yield Pipeline(infer, mean, std, {"threads": threads}, last, source["dtype"], scale or 1.0, zero_point)
        return
    engine = {"openvino": openvino, "onnxruntime": onnxruntime, "pytorch": pytorch}[kind]
    infer, settings = engine(folder, chosen, threads)
    yield Pipeline(infer, mean, std, settings)


if __name__ == "__main__":
    main(opener)
