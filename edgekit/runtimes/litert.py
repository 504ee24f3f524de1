"""LiteRT's interpreter (XNNPACK), or tflite-runtime's where only that is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgekit.core.values import Artifact, SessionOptions, UInt8
from edgekit.runtimes.common import check_frame, label_map, output_settings, threads


def interpreter_class() -> Any:
    """LiteRT's interpreter, or tflite-runtime's; raises ImportError when neither is installed."""
    if not importlib.util.find_spec("ai_edge_litert") and importlib.util.find_spec("tflite_runtime"):
        from tflite_runtime.interpreter import Interpreter
    else:
        from ai_edge_litert.interpreter import Interpreter
    return Interpreter


@contextmanager
def open_session(artifact: Artifact, options: SessionOptions) -> Iterator[LiteRTSession]:
    """Load the artifact and allocate its tensors."""
    count = threads(options)
    interpreter = interpreter_class()(model_path=str(artifact.model_path), num_threads=count)
    interpreter.allocate_tensors()
    settings = {"threads": count, "delegate": "XNNPACK", **output_settings(artifact)}
    yield LiteRTSession(
        artifact,
        interpreter,
        interpreter.get_input_details()[0]["index"],
        interpreter.get_output_details()[0]["index"],
        settings,
        options,
    )


@dataclass
class LiteRTSession:
    """An interpreter with its tensors allocated."""

    artifact: Artifact
    interpreter: Any
    input_index: int
    output_index: int
    settings: Mapping[str, Any]
    options: SessionOptions

    def run(self, frame: UInt8) -> UInt8:
        """See :class:`edgekit.Session`."""
        check_frame(frame, self.artifact)
        self.interpreter.set_tensor(self.input_index, frame)
        self.interpreter.invoke()
        output = self.interpreter.get_tensor(self.output_index)
        return label_map(output, self.artifact, self.options, channels_last=True)

    def run_graph(self) -> None:
        """See :class:`edgekit.Session`."""
        self.interpreter.invoke()
