"""A target as another package would write it: TorchScript. It knows nothing of edgekit but what edgekit exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import (
    Artifact,
    ConversionError,
    Converted,
    DeployableGraph,
    Engine,
    FrameToLabels,
    OutputKind,
    Precision,
    Quantization,
    Recipe,
    SessionOptions,
    TargetError,
    TensorForm,
    decode,
)


@dataclass
class TorchScriptSession:
    """A loaded module and the last frame."""

    artifact: Artifact
    module: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    last: Any = None

    def run(self, frame: np.ndarray) -> np.ndarray:
        import torch

        size = self.artifact.size
        if frame.dtype != np.uint8 or frame.shape != (1, size.height, size.width, 3):
            raise TargetError(f"a frame must be uint8 [1, {size.height}, {size.width}, 3]: resize it first")
        self.last = torch.from_numpy(frame)
        with torch.inference_mode():
            output = self.module(self.last)
            if self.artifact.output == "logits":
                return decode(output[0].permute(2, 0, 1).numpy(), size)[None]
        return output.numpy().copy()

    def run_graph(self) -> None:
        import torch

        with torch.inference_mode():
            self.module(self.last)


@dataclass(frozen=True)
class TorchScript:
    """The ``torchscript`` target."""

    name: str = "torchscript"
    title: str = "TorchScript"
    precisions: tuple[Precision, ...] = ("fp32",)
    output: OutputKind = "labels"
    device_pages: tuple[str, ...] = ()

    def missing(self) -> str | None:
        return None if find_spec("torch") else "torch not installed: run pip install torch"

    def tools(self) -> Mapping[str, str]:
        return {"torch": version("torch")}

    def engine(self) -> Engine:
        return Engine("measured", f"TorchScript of PyTorch {version('torch')}")

    def convert(
        self, graph: DeployableGraph, recipe: Recipe, quantization: Quantization | None, folder: Path
    ) -> Converted:
        import torch

        if recipe.precision != "fp32":
            raise ConversionError("TorchScript is made in fp32 only: choose --precision fp32")
        module = FrameToLabels(
            graph, channels_last=True, output=recipe.output, output_stride=recipe.output_stride
        ).eval()
        frame = torch.zeros(1, graph.size.height, graph.size.width, 3, dtype=torch.uint8)
        with torch.no_grad():
            torch.jit.trace(module, frame).save(str(folder / "model.pt"))
        labels = TensorForm("uint8", (1, graph.size.height, graph.size.width), "NHW")
        return Converted("model.pt", "uint8 [1,H,W,3] RGB", labels, self.tools())

    @contextmanager
    def open(self, artifact: Artifact, options: SessionOptions) -> Iterator[TorchScriptSession]:
        import torch

        if options.threads:
            torch.set_num_threads(options.threads)
        module = torch.jit.load(str(artifact.model_path))
        yield TorchScriptSession(artifact, module, {"threads": torch.get_num_threads(), "precision": "float32"})


TARGET = TorchScript()
