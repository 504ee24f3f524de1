"""What the way from frame to labels costs beside the network itself.

Run: python -m benchmarks.speed.edges [SIZE] [ROUNDS]. Three sides take turns in one run, each in a process of its own: frame to
labels; the artifact's graph alone; and, for float, the network alone, which is the deployable graph converted by the
vendor's tool with ready float planes in and stride-8 logits out. In int8 the vendors' tools would quantize another network,
so that only what lies outside the graph is told: handing over the frame, and the decoder.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.shared import vendor_tools as tools
from benchmarks.shared.measured import keep
from benchmarks.shared.shipped_artifacts import artifacts, save_frames
from benchmarks.speed.vendor_speed import VENDOR_WORKER, describe, interleaved
from edgekit.core.progress import noise_to
from edgekit.core.values import DeployableGraph, Size
from edgekit.devices.environment import available_cores
from edgekit.devices.local import Subject, Worker
from edgekit.networks.checkpoint import Checkpoint, load_checkpoint
from reports.statistics import bootstrap_ratio

QUERIES, WARMUP = 4, 5
"""Of each side in one round, and before the first."""
GOAL = 0.15
TARGETS = ("openvino", "tflite", "onnxruntime")


class ChannelsLast(nn.Module):
    """The network as TFLite has it: [1, H, W, 3] -> [1, h, w, classes]."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return logits


def network_alone(name: str, graph: DeployableGraph, checkpoint: Checkpoint, folder: Path) -> Path:
    """A folder for the vendor's worker that holds the network without edges, in float32."""
    place = folder / f"{name}-alone"
    place.mkdir()
    planes = torch.zeros(1, 3, graph.size.height, graph.size.width)
    if name == "openvino":
        import openvino

        openvino.save_model(tools.to_openvino(graph.module, planes), place / "model.xml", compress_to_fp16=False)
        return describe(place, checkpoint, name, {"INFERENCE_PRECISION_HINT": "f32", "share": True})
    if name == "onnxruntime":
        tools.to_onnx(graph.module, planes, place / "model.onnx")
        return describe(place, checkpoint, name)
    tools.to_tflite(ChannelsLast(graph.module), planes.permute(0, 2, 3, 1).contiguous(), place / "model.tflite")
    return describe(place, checkpoint, name, {"channels_last": True})


def share(over: list[list[float]], base: list[list[float]]) -> dict[str, float]:
    """What ``over`` takes more than ``base``, as a share of it, with its paired interval."""
    ratio = bootstrap_ratio(over, base)
    return {"value": ratio.value - 1, "low": ratio.low - 1, "high": ratio.high - 1}


def main() -> None:
    """Measure every artifact and keep the shares."""
    size = Size.parse(sys.argv[1] if len(sys.argv) > 1 else "1024x2048")
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 25
    checkpoint = load_checkpoint("spssn-streets")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder, log, frames = Path(name), Path(name) / "log", Path(name) / "frames.npy"
        save_frames(size, 2, frames)
        for artifact, graph in artifacts(checkpoint, size, TARGETS, folder, "benchmarks/speed/edges.py"):
            alone = None
            if artifact.precision == "fp32":
                with noise_to(log):
                    alone = network_alone(artifact.target, graph(), checkpoint, folder)
            sides = {
                scope: Worker(Subject(artifact.folder, scope), frames, None, scope, log)
                for scope in ("frame-to-labels", "graph")
            }
            if alone is not None:
                sides["network"] = Worker(
                    Subject(alone, "network"), frames, available_cores(), "graph", log, VENDOR_WORKER
                )
            try:
                taken = interleaved(sides, rounds, QUERIES, WARMUP)
            finally:
                for worker in sides.values():
                    worker.stop()
            row: dict[str, Any] = {
                "artifact": artifact.title,
                "milliseconds": {side: float(np.median(np.concatenate(values))) for side, values in taken.items()},
                "outside": share(taken["frame-to-labels"], taken["graph"]),
                "all": share(taken["frame-to-labels"], taken["network"]) if "network" in taken else None,
            }
            rows.append(row)
            print(row, flush=True)
    keep("edges", {"size": str(size), "rounds": rounds, "goal": GOAL, "rows": rows})


if __name__ == "__main__":
    main()
