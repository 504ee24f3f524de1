"""OpenVINO's CPU plugin."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgekit.core.values import Artifact, SessionOptions, UInt8
from edgekit.runtimes.common import check_frame, label_map, output_settings, threads


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Keep OpenVINO and NNCF from reporting their use to their makers; nobody asked edgekit to.

    They report imports and conversions unless the user opted out, or where ``CI`` says that nobody is there, and they do
    so from a fork of this process, which with the threads it has by then may hang and hold its streams open.
    """
    given = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if given is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = given


def load() -> Any:
    """The package; its first import would report itself."""
    with without_telemetry():
        import openvino
    return openvino


@contextmanager
def open_session(artifact: Artifact, options: SessionOptions) -> Iterator[OpenVINOSession]:
    """Compile the artifact for this machine's CPU."""
    ov = load()
    core = ov.Core()
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads(options)}
    if artifact.precision != "fp16":
        # By default the plugin runs "f32" in bf16 on CPUs with AMX: a float row must be what its name says.
        # fp16 takes that default: the half precision this CPU is fast with, bf16 or f16, which the settings name.
        properties["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = core.compile_model(artifact.model_path, "CPU", properties)
    settings = {
        "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
        "inference precision": compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
        "performance hint": "LATENCY",
        **output_settings(artifact),
    }
    yield OpenVINOSession(artifact, compiled.create_infer_request(), settings, options)


@dataclass
class OpenVINOSession:
    """An inference request on a compiled model."""

    artifact: Artifact
    request: Any
    settings: Mapping[str, Any]
    options: SessionOptions

    def run(self, frame: UInt8) -> UInt8:
        """See :class:`edgekit.Session`."""
        check_frame(frame, self.artifact)
        output = self.request.infer([frame], share_inputs=True, share_outputs=True)[0]
        return label_map(output, self.artifact, self.options, channels_last=True)

    def run_graph(self) -> None:
        """See :class:`edgekit.Session`."""
        self.request.infer()
