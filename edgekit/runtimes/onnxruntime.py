"""ONNX Runtime on CPU, for the artifacts of every target that writes ONNX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgekit.core.values import Artifact, SessionOptions, UInt8
from edgekit.runtimes.common import check_frame, label_map, output_settings, threads


@contextmanager
def open_session(artifact: Artifact, options: SessionOptions) -> Iterator[OnnxSession]:
    """Load the artifact into ONNX Runtime's CPU provider."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads(options)
    settings.log_severity_level = 3
    # The default keeps subnormals, on which a CPU is up to twenty times slower; trained networks have them.
    settings.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = onnxruntime.InferenceSession(str(artifact.model_path), settings, providers=["CPUExecutionProvider"])
    yield OnnxSession(
        artifact,
        session,
        {
            "threads": threads(options),
            "provider": "CPUExecutionProvider",
            "subnormals": "flushed to zero",
            **output_settings(artifact),
        },
        options,
    )


@dataclass
class OnnxSession:
    """An inference session; the last frame is kept for ``run_graph``."""

    artifact: Artifact
    session: Any
    settings: Mapping[str, Any]
    options: SessionOptions
    last: UInt8 | None = None

    def run(self, frame: UInt8) -> UInt8:
        """See :class:`edgekit.Session`."""
        check_frame(frame, self.artifact)
        self.last = frame
        output = self.session.run(None, {"frame": frame})[0]
        return label_map(output, self.artifact, self.options)

    def run_graph(self) -> None:
        """See :class:`edgekit.Session`."""
        self.session.run(None, {"frame": self.last})
