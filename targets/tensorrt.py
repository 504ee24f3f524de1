"""TensorRT (Jetson): an ONNX with explicit Q/DQ that obeys its parser, and the trtexec line that builds it on the device."""

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

TRTEXEC = (
    "trtexec --onnx=model.onnx --saveEngine=/tmp/model.engine --stronglyTyped --useCudaGraph --useSpinWait --noDataTransfers "
    "--separateProfileRun --warmUp=1000 --duration=10 --percentile=50,90,99 --exportTimes=/tmp/times.json"
)
"""Builds the engine on the device and times one forward pass (``computeMs``), the same on TensorRT 10 and 11.

What it writes lies outside the artifact's folder, which holds what its manifest lists and nothing else.
``--stronglyTyped`` takes the graph's own precisions at their word on 10; 11 always does and ignores the flag.
"""


@dataclass(frozen=True)
class TensorRT:
    """The ``tensorrt`` target."""

    name: str = "tensorrt"
    title: str = "TensorRT"
    precisions: tuple[Precision, ...] = ("fp16", "fp32", "int8")
    output: OutputKind = "labels"
    device_pages: tuple[str, ...] = ("jetson",)

    def missing(self) -> str | None:
        """See :class:`edgekit.Target`."""
        return missing_packages(("onnx", "onnxscript", "onnxruntime", "torch"), "tensorrt")

    def tools(self) -> Mapping[str, str]:
        """See :class:`edgekit.Target`."""
        return versions("onnx", "onnxscript", "onnxruntime", "torch")

    def engine(self) -> Engine:
        """See :class:`edgekit.Target`."""
        number = versions("onnxruntime").get("onnxruntime", "")
        return Engine(
            "reference",
            f"ONNX Runtime {number} CPU provider",
            why="the same ONNX with its Q/DQ; TensorRT builds and runs it on the device only",
            no_latency="TensorRT runs on NVIDIA devices only: build and time it there with the trtexec line in the manifest",
        )

    def convert(
        self, graph: DeployableGraph, recipe: Recipe, quantization: Quantization | None, folder: Path
    ) -> Converted:
        """See :class:`edgekit.Target`; the written graph passes :func:`targets.onnx_graph.rules.check`."""
        from edgekit.export.refusals import refusal
        from targets.onnx_graph.build import build
        from targets.onnx_graph.rules import check

        model, kept = build(graph, recipe, quantization, "symmetric")
        broken = [finding for finding in check(model) if finding.level == "error"]
        if broken:
            raise refusal(graph, self.name, "TensorRT's parser", ValueError(f"{broken[0].node}: {broken[0].text}"))
        write_bytes(folder / "model.onnx", model.SerializeToString())
        quantized = recipe.precision == "int8"
        return Converted(
            model="model.onnx",
            native_input=f"uint8 [1,{graph.size.height},{graph.size.width},3] RGB",
            native_output=native_output(graph, recipe),
            tools=self.tools(),
            kept_float=(*kept, *float_edges(recipe)) if quantized else (),
            scheme="symmetric" if quantized else None,
            notes={"trtexec": TRTEXEC, "measure on jetson": f"cd {{artifact}} && {TRTEXEC}"},
        )

    def open(self, artifact: Artifact, options: SessionOptions) -> AbstractContextManager[Session]:
        """See :class:`edgekit.Target`."""
        return open_session(artifact, options)

    def show_tensors(self, artifact: Artifact, frame: UInt8, look: Callable[[str, NDArray[Any]], None]) -> None:
        """See :class:`edgekit.core.seam.Inspectable`."""
        from targets.onnx_graph.inspect import show_tensors

        show_tensors(artifact, frame, look)


TARGET = TensorRT()
