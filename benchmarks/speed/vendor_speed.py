"""From camera frame to label map: edgekit's artifacts against the vendors' default pipelines for the same checkpoint.

Run: python -m benchmarks.speed.vendor_speed [SIZE...] [--rounds N]. The vendor's side converts the network with full-size logits
by its converter's defaults, feeds normalized floats from numpy and takes the argmax in numpy; int8 is its tool's default
quantization with the same frames. Both sides have all cores. All pipelines of a family are open at once, each in a process
of its own, and take turns. edgekit's labels are compared with the unrewritten float network's in PyTorch.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.shared import vendor_tools as tools
from benchmarks.shared.full_size import FullSize
from benchmarks.shared.measured import keep
from benchmarks.shared.vendor_worker import normalized
from calibration.choice import choose_frames
from calibration.datasets import open_split
from edgekit.core.progress import Progress, noise_to
from edgekit.core.registry import require
from edgekit.core.values import Artifact, Float32, Precision, SessionOptions, Size, UInt8
from edgekit.devices.environment import available_cores
from edgekit.devices.local import Subject, Worker
from edgekit.export.graph import Logits
from edgekit.networks.checkpoint import Checkpoint, load_checkpoint, load_network
from edgekit.pipeline.accuracy import pytorch_labeller
from edgekit.pipeline.artifacts import lazy_graph, make_artifact, recipe_for
from edgekit.pipeline.plans import Order
from edgekit.pipeline.quantization import Calibration
from reports.statistics import bootstrap_ratio

SIZES = ("1024x2048", "1024x1024", "512x1024")
CALIBRATION_FRAMES = 4
FRAMES = 4
QUERIES, WARMUP = 2, 3
"""Of each pipeline in one round, and before the first."""
SETTLING = 0.3
"""Seconds before each turn: threads of ONNX Runtime spin for a while after a query, on a core that the next pipeline needs."""
VENDOR_WORKER = (sys.executable, "-m", "benchmarks.shared.vendor_worker")


@dataclass(frozen=True)
class Pair:
    """edgekit's artifact and the vendor's pipeline that it is set against; ``goal`` is the factor asked for at 1024x2048."""

    title: str
    precision: Precision
    vendor: str
    goal: float | None = None


FAMILIES: dict[str, tuple[Pair, ...]] = {
    "openvino": (
        Pair("float, the engine's default precision", "fp16", "float, default", 2.5),
        Pair("float, f32", "fp32", "float, f32", 2.5),
        # edgekit's int8 computes what is left in float as f32, which its session asks for: as the engine has it on its own, too.
        Pair("int8, the vendor's float parts at the engine's default precision", "int8", "int8, default", 5.0),
        Pair("int8, the vendor's float parts in f32", "int8", "int8, f32", 5.0),
    ),
    "tflite": (Pair("float", "fp32", "float", 2.0), Pair("int8", "int8", "int8", 3.0)),
    "onnxruntime": (Pair("float", "fp32", "float", 2.5), Pair("int8", "int8", "int8", 2.5)),
    # PyTorch has no artifact of edgekit's: those of the fastest runtime here stand beside it.
    "pytorch": (
        Pair("eager, beside OpenVINO f32", "fp32", "eager"),
        Pair("eager, beside OpenVINO int8", "int8", "eager"),
        Pair("compiled, beside OpenVINO f32", "fp32", "compiled"),
        Pair("compiled, beside OpenVINO int8", "int8", "compiled"),
    ),
}


def inputs(checkpoint: Checkpoint, frames: list[UInt8]) -> Iterator[Float32]:
    """Frames as the network takes them: float32 [1, 3, H, W]."""
    mean, std = (np.asarray(part, np.float32) for part in (checkpoint.normalization.mean, checkpoint.normalization.std))
    return (normalized(frame, mean, std) for frame in frames)


def describe(folder: Path, checkpoint: Checkpoint, kind: str, options: dict[str, Any] | None = None) -> Path:
    """Write what the vendor's worker needs beside the model."""
    normalization = checkpoint.normalization
    description = {"kind": kind, "options": options or {}, "mean": normalization.mean, "std": normalization.std}
    (folder / "pipeline.json").write_text(json.dumps(description))
    return folder


def vendor_openvino(network: nn.Module, checkpoint: Checkpoint, frames: list[UInt8], folder: Path) -> dict[str, Path]:
    """convert_model, save_model, nncf.quantize, compile_model."""
    import openvino as ov

    made = {}
    model = tools.to_openvino(network, torch.from_numpy(next(inputs(checkpoint, frames))))
    quantized = tools.quantize_openvino(model, inputs(checkpoint, frames))
    for name, entry in (("float", model), ("int8", quantized)):
        for precision, options in (("default", {}), ("f32", {"INFERENCE_PRECISION_HINT": "f32"})):
            place = folder / f"{name}-{precision}"
            place.mkdir()
            # save_model halves the weights by default; the f32 side keeps them whole
            ov.save_model(entry, place / "model.xml", compress_to_fp16=precision == "default")
            made[f"{name}, {precision}"] = describe(place, checkpoint, "openvino", options)
    return made


def vendor_tflite(network: nn.Module, checkpoint: Checkpoint, frames: list[UInt8], folder: Path) -> dict[str, Path]:
    """litert_torch.convert, ai-edge-quantizer's static recipe, the Interpreter."""
    place, other = folder / "float", folder / "int8"
    place.mkdir()
    other.mkdir()
    tools.to_tflite(network, torch.from_numpy(next(inputs(checkpoint, frames))), place / "model.tflite")
    tools.quantize_tflite(place / "model.tflite", inputs(checkpoint, frames), other / "model.tflite")
    return {"float": describe(place, checkpoint, "tflite"), "int8": describe(other, checkpoint, "tflite")}


def vendor_onnxruntime(
    network: nn.Module, checkpoint: Checkpoint, frames: list[UInt8], folder: Path
) -> dict[str, Path]:
    """torch.onnx.export, quantize_static, InferenceSession."""
    place, other = folder / "float", folder / "int8"
    place.mkdir()
    other.mkdir()
    tools.to_onnx(network, torch.from_numpy(next(inputs(checkpoint, frames))), place / "model.onnx")
    tools.quantize_onnx(place / "model.onnx", inputs(checkpoint, frames), other / "model.onnx")
    return {"float": describe(place, checkpoint, "onnxruntime"), "int8": describe(other, checkpoint, "onnxruntime")}


def vendor_pytorch(network: nn.Module, checkpoint: Checkpoint, frames: list[UInt8], folder: Path) -> dict[str, Path]:
    """The module as it is."""
    made = {}
    for name in ("eager", "compiled"):
        place = folder / name
        place.mkdir()
        torch.save(network, place / "model.pt")
        made[name] = describe(place, checkpoint, "pytorch", {"compile": True} if name == "compiled" else {})
    return made


VENDORS = {
    "openvino": vendor_openvino,
    "tflite": vendor_tflite,
    "onnxruntime": vendor_onnxruntime,
    "pytorch": vendor_pytorch,
}


def interleaved(workers: dict[str, Worker], rounds: int, queries: int, warmup: int) -> dict[str, list[list[float]]]:
    """Rounds of milliseconds of so many queries, each turn after a rest, all after so many warm-up queries each."""
    for worker in workers.values():
        worker.ask({"do": "warm", "runs": warmup, "seconds": 0})
    taken: dict[str, list[list[float]]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            time.sleep(SETTLING)
            taken[name].append(worker.ask({"do": "round", "count": queries})["samples_ms"])
    return taken


def measured(
    vendors: dict[str, Path], artifacts: Mapping[Precision, Artifact], frames: Path, rounds: int, log: Path
) -> dict[str, dict[str, Any]]:
    """Rounds, peak memory and settings of all pipelines; edgekit's are named ``edgekit <precision>``."""
    workers: dict[str, Worker] = {}
    try:
        for name, folder in vendors.items():
            title = f"vendor {name}"
            workers[title] = Worker(
                Subject(folder, title), frames, available_cores(), "frame-to-labels", log, VENDOR_WORKER
            )
        for name, artifact in artifacts.items():
            title = f"edgekit {name}"
            workers[title] = Worker(Subject(artifact.folder, title), frames, None, "frame-to-labels", log)
        taken = interleaved(workers, rounds, QUERIES, WARMUP)
        result = {}
        for name, worker in workers.items():
            peak = worker.ask({"do": "close"})["peak_rss_bytes"]
            result[name] = {"rounds_ms": taken[name], "peak_rss_bytes": peak, "settings": worker.opened["settings"]}
        return result
    finally:
        for worker in workers.values():
            worker.stop()


def agreement(artifact: Artifact, frames: list[UInt8], expected: list[UInt8]) -> float:
    """Share of pixels that an artifact labels as the unrewritten float network does."""
    with require(artifact.target).open(artifact, SessionOptions()) as session:
        shares = [float((session.run(frame) == labels).mean()) for frame, labels in zip(frames, expected, strict=True)]
    return float(np.mean(shares))


def compared(
    family: str, result: dict[str, dict[str, Any]], agreements: Mapping[Precision, float], size: Size
) -> list[dict[str, Any]]:
    """A row for each pair."""
    rows = []
    for pair in FAMILIES[family]:
        own, vendor = result[f"edgekit {pair.precision}"], result[f"vendor {pair.vendor}"]
        ratio = bootstrap_ratio(vendor["rounds_ms"], own["rounds_ms"])
        row = {
            "family": family,
            "title": pair.title,
            "size": str(size),
            "precision": pair.precision,
            "edgekit_ms": float(np.median(np.concatenate(own["rounds_ms"]))),
            "vendor_ms": float(np.median(np.concatenate(vendor["rounds_ms"]))),
            "ratio": {"value": ratio.value, "low": ratio.low, "high": ratio.high},
            "goal": pair.goal if str(size) == SIZES[0] else None,
            "agreement": agreements[pair.precision],
            "edgekit_bytes": own["peak_rss_bytes"],
            "vendor_bytes": vendor["peak_rss_bytes"],
            "settings": {"edgekit": own["settings"], "vendor": vendor["settings"]},
        }
        rows.append(row)
        print(
            f"{size} {family:12} {pair.title:40} vendor {row['vendor_ms']:7.1f} ms, edgekit {row['edgekit_ms']:6.1f} ms: "
            f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}], goal {pair.goal or 'none'}; labels {100 * row['agreement']:.3f} %; "
            f"memory {own['peak_rss_bytes'] / 1e6:.0f} of {vendor['peak_rss_bytes'] / 1e6:.0f} MB",
            flush=True,
        )
    return rows


def main() -> None:
    """Measure all families at all sizes and keep them, each as soon as it is there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", default=SIZES)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--checkpoint", default="spssn-streets")
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    progress = Progress(silent=True)
    rows: list[dict[str, Any]] = []
    for text in arguments.sizes:
        size = Size.parse(text)
        calibration = Calibration(choose_frames(open_split("streets", "train", size=size), CALIBRATION_FRAMES), size)
        calibration_frames = list(calibration.batches()())
        test = [
            ref.load_image()[None].copy() for ref in open_split("streets", "test", size=size).first(FRAMES).references
        ]
        graph = lazy_graph(checkpoint, size, progress)
        with pytorch_labeller(checkpoint, size) as label:
            expected = [label(frame) for frame in test]
        for family in arguments.families.split(","):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / "vendor").mkdir()
                np.save(folder / "frames.npy", np.concatenate(test))
                network = FullSize(Logits(load_network(checkpoint), len(checkpoint.class_names))).eval()
                order = Order(checkpoint, size, folder, "benchmarks/speed/vendor_speed.py", calibration)
                target = require("openvino" if family == "pytorch" else family)
                precisions = dict.fromkeys(pair.precision for pair in FAMILIES[family])
                with noise_to(folder / "log"):
                    vendors = VENDORS[family](network, checkpoint, calibration_frames, folder / "vendor")
                    artifacts = {
                        precision: make_artifact(target, order, recipe_for(target, precision, None, 1), graph, progress)
                        for precision in precisions
                    }
                gc.collect()
                result = measured(vendors, artifacts, folder / "frames.npy", arguments.rounds, folder / "log")
                agreements = {precision: agreement(made, test, expected) for precision, made in artifacts.items()}
            rows += compared(family, result, agreements, size)
            keep("vendor_speed", {"checkpoint": checkpoint.name, "rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
