"""What runs artifacts: one file a runtime, which opens a session with numpy and that runtime alone.

Targets open their artifacts with it on this machine, and the agent on a device: what is measured in the two places is
one and the same code. It runs on Python 3.9 and newer.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgekit.core.errors import TargetError
from edgekit.core.seam import Session
from edgekit.core.values import Artifact, SessionOptions


@dataclass(frozen=True)
class Runtime:
    """What opens a target's artifacts.

    Attributes:
        title: as people know it.
        module: here, the file that opens it.
        packages: distributions of which any one will do, the one to install first.
        system: ``sys.platform`` it is for; empty means any.
    """

    title: str
    module: str
    packages: tuple[str, ...]
    system: str = ""

    def installed(self) -> str | None:
        """The version here, None where it is not installed. Imports nothing."""
        for package in self.packages:
            try:
                return version(package)
            except PackageNotFoundError:
                continue
        return None

    def fits(self) -> bool:
        """Whether this system can have it at all."""
        return self.system in ("", sys.platform)


RUNTIMES = {
    "coreml": Runtime("Core ML", "edgekit.runtimes.coreml", ("coremltools",), "darwin"),
    "onnxruntime": Runtime("ONNX Runtime", "edgekit.runtimes.onnxruntime", ("onnxruntime", "onnxruntime-gpu")),
    "openvino": Runtime("OpenVINO", "edgekit.runtimes.openvino", ("openvino",)),
    "tensorrt": Runtime("TensorRT", "edgekit.runtimes.tensorrt", ("tensorrt",), "linux"),
    "tflite": Runtime("LiteRT", "edgekit.runtimes.litert", ("ai-edge-litert", "tflite-runtime")),
}
"""By the target whose artifacts they run."""


def open_session(artifact: Artifact, options: SessionOptions) -> AbstractContextManager[Session]:
    """The artifact in the runtime it was made for.

    Raises:
        TargetError: no runtime is known for its target, or it is not installed.
    """
    runtime = RUNTIMES.get(artifact.target)
    if runtime is None:
        raise TargetError(
            f"no runtime is known for the target '{artifact.target}': it can be run by its own package only"
        )
    try:
        module: Any = importlib.import_module(runtime.module)
        opened: AbstractContextManager[Session] = module.open_session(artifact, options)
    except ImportError as error:
        raise TargetError(
            f"{runtime.title} is not installed ({error}): run {install_command(artifact.target)}"
        ) from error
    return opened


def install_command(target: str) -> str:
    """What adds a target's runtime to the Python in use."""
    more = " pillow" if target == "coreml" else ""  # which hands Core ML its images
    return f"{sys.executable or 'python3'} -m pip install {RUNTIMES[target].packages[0]}{more}"
