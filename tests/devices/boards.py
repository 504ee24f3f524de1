"""A run that was carried out through a real sshd, and a project that goes on with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sshd
from seam import Done, call, edgekit, environment

MOMENT = """
from edgekit.core.contract import LATENCY_CONTRACTS, LatencyContract
LATENCY_CONTRACTS["quick"] = LatencyContract(1, 0.0, 64, 0.0, 1)
"""
RUN = (
    "--precisions", "fp32", "--size", "64x128", "--frames", 5, "--samples", 3, "--threads", 1, "--out", "out",
)  # fmt: skip
"""A run of moments."""


@dataclass(frozen=True)
class Made:
    """A run that was carried out through ssh: the folder that it was called in, and what it said."""

    folder: Path
    checkpoint: Path
    done: Done


@dataclass(frozen=True)
class Project:
    """A folder with a finished run in ``out`` and an inventory, whose devices are behind one sshd."""

    folder: Path
    server: sshd.Server
    made: Made
    patch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]

    def device(self, name: str = "board", **more: Any) -> Path:
        """Another device in the inventory; its cache's folder."""
        sshd.inventory(self.folder, self.server, name, **more)
        return self.folder / f"cache-{name}" / "edgekit"

    def edgekit(self, *arguments: object) -> Done:
        """A command in this process."""
        return call(self.patch, self.capfd, *arguments)

    def run(self, *more: object, targets: str = "onnxruntime") -> Done:
        """The run again: what it made is there."""
        return self.edgekit("run", self.made.checkpoint, "--targets", targets, *RUN, "--json", *more)


def make_run(folder: Path, checkpoint: Path) -> Made:
    """The run, in a process of its own."""
    (folder / "sitecustomize.py").write_text(MOMENT)
    server = sshd.make_server(folder / "sshd")
    sshd.inventory(folder, server)
    server.start()
    try:
        done = edgekit(
            "run", checkpoint, *RUN, "--device", "local,board", "--json", cwd=folder, env=environment(folder)
        )  # fmt: skip
    finally:
        server.stop()
    assert done.code == 0, done.err
    return Made(folder, checkpoint, done)
