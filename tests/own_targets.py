"""The targets that edgekit brings."""

from __future__ import annotations

from collections.abc import Callable

from edgekit.core.registry import load_target
from edgekit.core.values import Artifact, Size

OWN = ("coreml", "onnxruntime", "openvino", "tensorrt", "tflite")
SMALL = Size(192, 384)
Make = Callable[..., Artifact]


def missing(name: str) -> str | None:
    return load_target(name).missing()
