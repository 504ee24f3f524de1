"""ONNX Runtime: the ONNX graph, quantized for its CPU kernels, run and measured here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgekit.core.files import write_bytes
from edgekit.core.registry import missing_packages, versions
from edgekit.core.seam import Session
from edgekit.core.values import (
    Artifact,
    Converted,
    DeployableGraph,
    Engine,
    OutputKind,
    Precision,
    Quantization,
    Recipe,
    SessionOptions,
    UInt8,
)
from edgekit.runtimes.onnxruntime import open_session
from targets.common import float_edges, native_output

WITHOUT_VNNI = (
    "ONNX Runtime adds pairs of int8 products in 16 bits there, where large ones overflow; the layer that reads the "
    "frame is safe from that, and the session option session.x64quantprecision=1 keeps all others exact too, at about "
    "a third more time"
)


@dataclass(frozen=True)
class OnnxRuntime:
    """The ``onnxruntime`` target."""

    name: str = "onnxruntime"
    title: str = "ONNX Runtime"
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    output: OutputKind = "logits"
    device_pages: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """See :class:`edgekit.Target`."""
        return missing_packages(("onnx", "onnxscript", "onnxruntime", "torch"), "onnxruntime")

    def tools(self) -> Mapping[str, str]:
        """See :class:`edgekit.Target`."""
        return versions("onnx", "onnxscript", "onnxruntime", "torch")

    def engine(self) -> Engine:
        """See :class:`edgekit.Target`."""
        return Engine("measured", f"ONNX Runtime {versions('onnxruntime').get('onnxruntime', '')} CPU provider")

    def convert(
        self, graph: DeployableGraph, recipe: Recipe, quantization: Quantization | None, folder: Path
    ) -> Converted:
        """See :class:`edgekit.Target`."""
        from targets.onnx_graph.build import build

        model, kept = build(graph, recipe, quantization, "asymmetric")
        write_bytes(folder / "model.onnx", model.SerializeToString())
        quantized = recipe.precision == "int8"
        centred = any("edge_mean" in node.input for node in model.graph.node)
        return Converted(
            model="model.onnx",
            native_input=f"uint8 [1,{graph.size.height},{graph.size.width},3] RGB",
            native_output=native_output(graph, recipe),
            tools=self.tools(),
            kept_float=(*kept, *float_edges(recipe, centred=centred)) if quantized else (),
            scheme="asymmetric" if quantized else None,
            notes={"on x86 without VNNI": WITHOUT_VNNI} if quantized else {},
        )

    def open(self, artifact: Artifact, options: SessionOptions) -> AbstractContextManager[Session]:
        """See :class:`edgekit.Target`."""
        return open_session(artifact, options)

    def show_tensors(self, artifact: Artifact, frame: UInt8, look: Callable[[str, NDArray[Any]], None]) -> None:
        """See :class:`edgekit.core.seam.Inspectable`."""
        from targets.onnx_graph.inspect import show_tensors

        show_tensors(artifact, frame, look)


TARGET = OnnxRuntime()
