"""The paper's Table 7 on this machine: one forward pass of SPSSN, over 200 iterations or more, and frame to labels.

Run: python -m benchmarks.speed.paper_speed [CHECKPOINT] [SIZE...], with ``camvid`` for Table 5's frames a second alone, or with
``gpu`` for PyTorch on a GPU. PyTorch and every runtime that runs here, float and int8, take turns at each size; the paper's
figure is the bare network (`graph`), a user waits for `frame-to-labels`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.shared.measured import gpu, keep
from calibration.choice import choose_frames
from calibration.datasets import open_split
from edgekit.core.contract import Scope, Terms
from edgekit.core.errors import EdgekitError
from edgekit.core.measurement import Latency, Timed
from edgekit.core.progress import Progress
from edgekit.core.registry import require
from edgekit.core.values import Artifact, Size
from edgekit.devices.environment import available_cores
from edgekit.export.graph import Logits, normalize, reference_labels
from edgekit.networks.blocks import channels_last
from edgekit.networks.checkpoint import Checkpoint, load_checkpoint, load_network, shipped_names
from edgekit.networks.subnormals import flush_subnormals
from edgekit.pipeline.artifacts import lazy_graph, make_artifact, recipe_for
from edgekit.pipeline.here import Here, bench_frames_of
from edgekit.pipeline.inputs import default_size
from edgekit.pipeline.plans import Order
from edgekit.pipeline.quantization import Calibration
from edgekit.pipeline.stored import bench_frames

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
    order = Order(checkpoint, size, folder, "benchmarks/speed/paper_speed.py", calibration)
    return [
        make_artifact(require(name), order, recipe_for(require(name), precision, None, 1), graph, progress)
        for name in TARGETS
        for precision in ("fp32", "int8")
    ]


class PyTorch:
    """The checkpoint in eager PyTorch, float32, channels last: all cores, or a GPU."""

    def __init__(self, checkpoint: Checkpoint, size: Size, device: str = "cpu") -> None:
        flush_subnormals()
        torch.set_num_threads(available_cores())
        self.device = torch.device(device)
        network = Logits(load_network(checkpoint), len(checkpoint.class_names)).eval()
        self.network = channels_last(network.to(self.device))
        self.checkpoint, self.size = checkpoint, size
        frame = open_split("streets", "test", size=size).references[0].load().image[None].copy()
        self.frame = torch.from_numpy(frame)
        self.input = self.prepared(self.frame.to(self.device))

    def prepared(self, frame: torch.Tensor) -> torch.Tensor:
        """A frame as the network's input."""
        return normalize(frame, self.checkpoint.normalization, torch.channels_last)

    def labels(self, frame: torch.Tensor) -> torch.Tensor:
        """uint8 [1, H, W] of a frame on the device, there."""
        return reference_labels(self.network(self.prepared(frame)), self.size).to(torch.uint8)

    def graph(self) -> None:
        """One forward pass of the bare network."""
        self.network(self.input)

    def frame_to_labels(self) -> torch.Tensor:
        """The frame, in the host's memory, to labels there."""
        return self.labels(self.frame.to(self.device)).cpu()

    @torch.inference_mode()
    def samples(self, scope: Scope, count: int) -> list[float]:
        """Milliseconds of so many passes, each waited for."""
        taken = []
        for _ in range(count):
            begun = time.perf_counter_ns()
            if scope == "graph":
                self.graph()
            else:
                self.frame_to_labels()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append((time.perf_counter_ns() - begun) / 1e6)
        return taken


class Captured(PyTorch):
    """The same on a GPU in float16, its kernels captured into one CUDA graph for each scope."""

    @torch.inference_mode()
    def __init__(self, checkpoint: Checkpoint, size: Size) -> None:
        super().__init__(checkpoint, size, "cuda")
        self.network = self.network.half()
        self.on_device = self.frame.to(self.device)
        self.bare, self.whole = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's
        with torch.cuda.stream(side):  # as capturing asks: what is made on first use is made before
            for _ in range(3):
                self.network(self.input)
                self.labels(self.on_device)
        torch.cuda.synchronize()
        with torch.cuda.graph(self.bare):
            self.network(self.input)
        with torch.cuda.graph(self.whole):
            self.found = self.labels(self.on_device)

    def prepared(self, frame: torch.Tensor) -> torch.Tensor:
        return super().prepared(frame).half()

    def graph(self) -> None:
        self.bare.replay()

    def frame_to_labels(self) -> torch.Tensor:
        self.on_device.copy_(self.frame)
        self.whole.replay()
        return self.found.cpu()


def on_gpu(checkpoint: Checkpoint, size: Size) -> dict[str, Any]:
    """As :func:`measured`, of PyTorch on a GPU; ``labels_agree`` is the share of float32's labels that float16 gives."""
    engines = {
        "pytorch fp32, eager": PyTorch(checkpoint, size, "cuda"),
        "pytorch fp16, captured": Captured(checkpoint, size),
    }
    with torch.inference_mode():
        exact, rounded = (engine.frame_to_labels() for engine in engines.values())
    result: dict[str, Any] = {"labels_agree": float((exact == rounded).double().mean())}
    for scope in SCOPES:
        samples: dict[str, list[float]] = {title: [] for title in engines}
        for _ in range(TURNS):
            for title, engine in engines.items():
                engine.samples(scope, 10)
                samples[title] += engine.samples(scope, ITERATIONS // TURNS)
        result[scope] = {title: summary(values) for title, values in samples.items()}
        print(size, scope, result["labels_agree"], result[scope], flush=True)
    return result


def summary(values: list[float]) -> dict[str, Any]:
    """p50 in ms, frames a second, number of samples."""
    p50 = float(np.median(values))
    return {"p50": p50, "fps": 1000 / p50, "n": len(values)}


def timed(made: list[Artifact], scope: Scope, folder: Path) -> list[list[float]]:
    """Milliseconds of each artifact, all in turns, as `edgekit bench` takes them."""
    samples = bench_frames(bench_frames_of(made[0]), made[0].size, folder)
    found = Here(None, folder / "logs", Progress(silent=True)).times(made, samples, Terms("quick", scope))
    if failed := [one for one in found if isinstance(one, EdgekitError)]:
        raise failed[0]
    return [one.latency.samples for one in found if isinstance(one, Timed) and isinstance(one.latency, Latency)]


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
            result[scope][title] = found = summary(values)
            print(
                f"{size} {scope:16} {title:18} p50 {found['p50']:7.1f} ms, {found['fps']:6.1f} frames/s, {len(values)} samples",
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
        order = Order(checkpoint, size, folder / name, "benchmarks/speed/paper_speed.py", calibration)
        recipe = recipe_for(require("openvino"), "int8", None, 1)
        made[name] = make_artifact(require("openvino"), order, recipe, lazy_graph(checkpoint, size, progress), progress)
    samples: dict[str, list[float]] = {name: [] for name in made}
    while samples and min(map(len, samples.values())) < ITERATIONS:
        for name, artifact in made.items():  # each has a size of its own
            (taken,) = timed([artifact], "graph", folder)
            samples[name] += taken
    return {name: summary(values) | {"size": str(made[name].size)} for name, values in samples.items()}


def main() -> None:
    """Measure all sizes and keep them."""
    if sys.argv[1:] == ["gpu"]:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # or convolutions of float32 are not
        checkpoint = load_checkpoint("spssn-streets")
        rows = {text: on_gpu(checkpoint, Size.parse(text)) for text in SIZES}
        keep("gpu_speed", {"checkpoint": checkpoint.name, "sizes": rows} | gpu())
        return
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
