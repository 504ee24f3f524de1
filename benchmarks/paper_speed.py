"""The paper's Table 7 on this machine: one forward pass of SPSSN, over 200 iterations or more, and frame to labels.

Run: python benchmarks/paper_speed.py [CHECKPOINT] [SIZE...], or with ``camvid`` for Table 5's frames a second alone. PyTorch and
every runtime that runs here, float and int8, take turns at each size; the paper's figure is the bare network (`graph`), a user
waits for `frame-to-labels`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured import keep

from calibration.choice import choose_frames
from calibration.datasets import open_split
from edgekit.core.progress import Progress
from edgekit.core.registry import require
from edgekit.core.values import Artifact, Size
from edgekit.devices.environment import available_cores
from edgekit.devices.local import Scope
from edgekit.export.graph import Logits, normalize, reference_labels
from edgekit.networks.blocks import channels_last
from edgekit.networks.checkpoint import Checkpoint, load_checkpoint, load_network, shipped_names
from edgekit.networks.subnormals import flush_subnormals
from edgekit.pipeline.artifacts import lazy_graph, make_artifact, recipe_for
from edgekit.pipeline.commands import bench_frames_of, latencies_here
from edgekit.pipeline.quantization import Calibration
from edgekit.pipeline.run import default_size

SIZES = ("1024x2048", "1024x1024", "512x1024")
TARGETS = ("openvino", "tflite", "onnxruntime")
SCOPES: tuple[Scope, ...] = ("graph", "frame-to-labels")
ITERATIONS = 200
TURNS = 4


def artifacts(checkpoint: Checkpoint, size: Size, folder: Path) -> list[Artifact]:
    """Float and int8 of every runtime."""
    progress = Progress(silent=True)
    graph = lazy_graph(checkpoint, size, progress)
    calibration = Calibration(choose_frames(open_split("streets", "train", size=size), 4), size)
    return [
        make_artifact(
            require(name), checkpoint, graph, recipe_for(require(name), precision, None, 1), size, calibration if precision == "int8" else None,
            folder, "benchmarks/paper_speed.py", progress,
        )
        for name in TARGETS
        for precision in ("fp32", "int8")
    ]  # fmt: skip


class PyTorch:
    """The checkpoint in eager PyTorch, float32, channels last, all cores."""

    def __init__(self, checkpoint: Checkpoint, size: Size) -> None:
        flush_subnormals()
        torch.set_num_threads(available_cores())
        self.network = channels_last(Logits(load_network(checkpoint), len(checkpoint.class_names)).eval())
        self.checkpoint, self.size = checkpoint, size
        self.frame = open_split("streets", "test", size=size).references[0].load().image[None].copy()
        self.input = self.prepared()

    def prepared(self) -> torch.Tensor:
        """The frame as the network's input."""
        x = normalize(torch.from_numpy(self.frame), self.checkpoint.normalization)
        return x.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def samples(self, scope: Scope, count: int) -> list[float]:
        """Milliseconds of so many passes."""
        taken = []
        for _ in range(count):
            begun = time.perf_counter_ns()
            if scope == "graph":
                self.network(self.input)
            else:
                reference_labels(self.network(self.prepared()), self.size).to(torch.uint8).numpy()
            taken.append((time.perf_counter_ns() - begun) / 1e6)
        return taken


def timed(made: list[Artifact], scope: Scope, folder: Path) -> list[list[float]]:
    """Milliseconds of each artifact, all in turns, as `edgekit bench` takes them."""
    found = latencies_here(made, bench_frames_of(made[0]), "quick", scope, None, folder, Progress(silent=True))
    return [[value for part in found[str(one.folder)]["rounds_ms"] for value in part] for one in made]


def measured(checkpoint: Checkpoint, size: Size, folder: Path) -> dict[str, dict[str, Any]]:
    """Per scope and engine p50 in ms, frames a second and the number of samples."""
    made = artifacts(checkpoint, size, folder)
    eager = PyTorch(checkpoint, size)
    eager.samples("frame-to-labels", 3)
    result: dict[str, dict[str, Any]] = {}
    for scope in SCOPES:
        samples: dict[str, list[float]] = {artifact.title: [] for artifact in made}
        samples["pytorch fp32"] = []
        while min(map(len, samples.values())) < ITERATIONS:
            samples["pytorch fp32"] += eager.samples(scope, ITERATIONS // TURNS)
            for artifact, taken in zip(made, timed(made, scope, folder), strict=True):
                samples[artifact.title] += taken
        result[scope] = {}
        for title, values in samples.items():
            p50 = float(np.median(values))
            result[scope][title] = {"p50": p50, "fps": 1000 / p50, "n": len(values)}
            print(
                f"{size} {scope:16} {title:18} p50 {p50:7.1f} ms, {1000 / p50:6.1f} frames/s, {len(values)} samples",
                flush=True,
            )
    return result


def camvid(folder: Path) -> dict[str, dict[str, Any]]:
    """Table 5's frames a second: the shipped CamVid networks at their own size, OpenVINO int8, `graph` scope, in turns."""
    names = [name for name in shipped_names() if name.endswith("-camvid")]
    made = {}
    for name in names:
        checkpoint = load_checkpoint(name)
        size = default_size(checkpoint)
        calibration = Calibration(choose_frames(open_split("streets", "train", size=size), 4), size)
        progress = Progress(silent=True)
        made[name] = make_artifact(
            require("openvino"), checkpoint, lazy_graph(checkpoint, size, progress),
            recipe_for(require("openvino"), "int8", None, 1), size, calibration,
            folder / name, "benchmarks/paper_speed.py", progress,
        )  # fmt: skip
    samples: dict[str, list[float]] = {name: [] for name in made}
    while samples and min(map(len, samples.values())) < ITERATIONS:
        for name, artifact in made.items():  # each has a size of its own
            (taken,) = timed([artifact], "graph", folder)
            samples[name] += taken
    return {
        name: {
            "p50": float(np.median(values)), "fps": 1000 / float(np.median(values)), "n": len(values),
            "size": str(made[name].size),
        }
        for name, values in samples.items()
    }  # fmt: skip


def main() -> None:
    """Measure all sizes and keep them."""
    if sys.argv[1:] != ["camvid"]:
        checkpoint = load_checkpoint(sys.argv[1] if len(sys.argv) > 1 else "spssn-streets")
        rows = {}
        for text in sys.argv[2:] or SIZES:
            with tempfile.TemporaryDirectory() as folder:
                rows[text] = measured(checkpoint, Size.parse(text), Path(folder))
        keep("paper_speed", {"checkpoint": checkpoint.name, "sizes": rows})
    with tempfile.TemporaryDirectory() as folder:
        keep("camvid_speed", camvid(Path(folder)))


if __name__ == "__main__":
    main()
