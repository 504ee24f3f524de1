"""TorchScript with the fault that EDGEKIT_FAULT names, so that a test can stop edgekit at a chosen moment.

``convert-sleep``, ``evaluate-sleep``, ``bench-sleep`` write their process id into the file
EDGEKIT_FAULT_REACHED and wait to be killed; ``convert-die`` is killed as if memory had run out.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit_torchscript import TorchScript, TorchScriptSession

from edgekit import Artifact, Converted, DeployableGraph, Quantization, Recipe, SessionOptions


def fault() -> str:
    return os.environ.get("EDGEKIT_FAULT", "")


def in_worker() -> bool:
    """Whether this is the process that measures latency."""
    return Path(sys.argv[0]).name == "worker.py"


def wait_to_be_killed() -> None:
    Path(os.environ["EDGEKIT_FAULT_REACHED"]).write_text(str(os.getpid()))
    time.sleep(120)


class FaultySession(TorchScriptSession):
    runs = 0

    def run(self, frame: Any) -> Any:
        self.runs += 1
        if fault() == "evaluate-sleep" and not in_worker() and self.runs == 2:
            wait_to_be_killed()
        if fault() == "bench-sleep" and in_worker() and self.runs == 5:
            wait_to_be_killed()
        if fault() == "bench-die" and in_worker() and self.runs == 5:
            os._exit(9)
        return super().run(frame)


@dataclass(frozen=True)
class Faulty(TorchScript):
    """The ``faulty`` target."""

    name: str = "faulty"
    title: str = "Faulty"

    def convert(
        self, graph: DeployableGraph, recipe: Recipe, quantization: Quantization | None, folder: Path
    ) -> Converted:
        print("noise of a converter")
        os.write(2, b"native noise of a converter\n")
        converted = super().convert(graph, recipe, quantization, folder)
        if fault() == "convert-sleep":
            wait_to_be_killed()
        if fault() == "convert-die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault() == "convert-raise":
            raise ValueError("unsupported operation: flux\nand a second line that nobody needs")
        if fault() == "convert-missing-file":
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/opt/flux/compiler")
        if fault() == "convert-full":
            raise OSError(errno.ENOSPC, "No space left on device")
        return converted

    @contextmanager
    def open(self, artifact: Artifact, options: SessionOptions) -> Iterator[FaultySession]:
        with super().open(artifact, options) as opened:
            yield FaultySession(opened.artifact, opened.module, opened.settings)


TARGET = Faulty()
