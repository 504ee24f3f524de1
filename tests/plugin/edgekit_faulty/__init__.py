"""TorchScript with the fault that EDGEKIT_FAULT names, so that a test can stop edgekit at a chosen moment.

``convert-sleep``, ``evaluate-sleep``, ``bench-sleep`` write their process id into the file
EDGEKIT_FAULT_REACHED and wait to be killed; ``convert-die`` is killed as if memory had run out, ``evaluate-die`` as a runtime crashes.
"""

from __future__ import annotations

import copy
import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from edgekit_torchscript import TorchScript, TorchScriptSession

from edgekit import Artifact, Converted, DeployableGraph, Quantization, Recipe, SessionOptions


def fault() -> str:
    return os.environ.get("EDGEKIT_FAULT", "")


def wait_to_be_killed() -> None:
    Path(os.environ["EDGEKIT_FAULT_REACHED"]).write_text(str(os.getpid()))
    time.sleep(120)


class FaultySession(TorchScriptSession):
    runs = 0
    doing = ""

    def run(self, frame: Any) -> Any:
        self.runs += 1
        if fault() == "evaluate-sleep" and self.doing == "evaluate" and self.runs == 2:
            wait_to_be_killed()
        if fault() == "evaluate-die" and self.doing == "evaluate" and self.runs == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault() == "bench-sleep" and self.doing == "bench" and self.runs == 5:
            wait_to_be_killed()
        if fault() == "bench-die" and self.doing == "bench" and self.runs == 5:
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
        if fault() == "convert-wrong":  # a converter that gets one convolution wrong, without a word
            graph = replace(graph, module=copy.deepcopy(graph.module))
            with torch.no_grad():
                weight = next(value for value in graph.module.buffers() if value.ndim == 4)
                weight.mul_(torch.linspace(0.5, 1.5, len(weight))[:, None, None, None])
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
            session = FaultySession(opened.artifact, opened.module, opened.settings)
            if Path(sys.argv[0]).name == "worker.py":  # and not the converter, which tries what it made
                session.doing = "bench" if options.look is None else "evaluate"
            yield session


TARGET = Faulty()
