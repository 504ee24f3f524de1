"""How long all artifacts take, float and int8, against the vendors' converters called one after another.

Run: python -m benchmarks.speed.time_to_artifact [SIZE] [SAMPLES] [ROUNDS]; 1024x2048, 32 and 5 by default. One side is a fresh
process that does what each converter's documentation says, with defaults, on the network as it is: coremltools, litert-torch
and ai-edge-quantizer, OpenVINO and NNCF, torch.onnx.export and, of its one file, ONNX Runtime's quantize_static twice, the
second time in TensorRT's form, reading the calibration frames for each. coremltools has no int8 of activations on Linux: that
artifact is edgekit's alone. The other side is edgekit's conversion of all ten, as ``edgekit run`` does it, and once more of the
nine that the vendors make too. The frames are PNG files in Cityscapes' layout, drawn before anything is timed. All run in turns.
Memory is the proportional share (PSS) of all living processes of a side together, sampled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.shared import vendor_tools as tools
from benchmarks.shared.measured import keep
from calibration.choice import CANDIDATES
from calibration.datasets import open_split, resize_image
from calibration.streets import LABEL_IDS
from edgekit.core.errors import EdgekitError
from edgekit.core.files import write_json
from edgekit.core.progress import Progress, noise_to
from edgekit.core.registry import load_target
from edgekit.core.values import Size
from edgekit.networks.checkpoint import load_checkpoint
from edgekit.pipeline.artifacts import recipe_for
from edgekit.pipeline.conversion import convert_all
from edgekit.pipeline.inputs import open_calibration, precisions_of
from edgekit.pipeline.plans import Job, Order
from reports.statistics import Interval, bootstrap_ratio

TARGETS = ("coreml", "onnxruntime", "openvino", "tensorrt", "tflite")
CHECKPOINT = "spssn-streets"
WITHOUT = "Core ML int8: coremltools calibrates activations on macOS only, so the vendors' side goes without"
SIDES = ("vendors", "edgekit, all ten", "edgekit, the vendors' nine")


class Stopwatch:
    """Seconds by stage, one after another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, stage: str) -> None:
        """What has passed since the last stop belongs to ``stage``."""
        now = time.perf_counter()
        self.seconds[stage], self._last = now - self._last, now


def write_frames(size: Size, count: int, root: Path) -> None:
    """Frames of streets and their labels, in Cityscapes' layout and ids."""
    ids = np.zeros(256, np.uint8)
    ids[: len(LABEL_IDS)] = LABEL_IDS
    for reference in open_split("streets", "train", size=size).first(count).references:
        frame = reference.load()
        for kind, name, pixels in (
            ("leftImg8bit", "leftImg8bit", frame.image),
            ("gtFine", "gtFine_labelIds", ids[frame.labels]),
        ):
            path = root / kind / "train" / "streets" / f"{reference.name}_{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def vendors(size: Size, samples: int, root: Path, folder: Path) -> dict[str, float]:
    """Every converter in turn, as its documentation calls it; returns seconds by stage."""
    watch = Stopwatch()
    import openvino
    import torch

    from edgekit.export.graph import Logits, normalize
    from edgekit.networks.checkpoint import load_network

    checkpoint = load_checkpoint(CHECKPOINT)
    network = Logits(load_network(checkpoint), len(checkpoint.class_names)).eval()
    example = torch.zeros(1, 3, size.height, size.width)
    split = open_split("cityscapes", "train", root).first(samples)

    def frames() -> Iterator[Any]:
        for reference in split.references:
            frame = torch.from_numpy(resize_image(reference.load_image(), size)[None].copy())
            yield normalize(frame, checkpoint.normalization).numpy()

    watch.stop("torch and the network")
    tools.to_coreml(network, example, folder / "model.mlpackage")
    watch.stop("Core ML fp16")
    tools.to_tflite(network, example, folder / "model.tflite")
    watch.stop("TFLite fp32")
    tools.quantize_tflite(folder / "model.tflite", frames(), folder / "int8.tflite")
    watch.stop("TFLite int8")
    model = tools.to_openvino(network, example)
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    watch.stop("OpenVINO fp32")
    openvino.save_model(tools.quantize_openvino(model, frames()), folder / "int8.xml")
    watch.stop("OpenVINO int8")
    tools.to_onnx(network, example, folder / "model.onnx")
    watch.stop("ONNX, for ONNX Runtime and TensorRT")
    for title, symmetric in (("ONNX Runtime", False), ("TensorRT", True)):
        tools.quantize_onnx(folder / "model.onnx", frames(), folder / "int8.onnx", symmetric)
        watch.stop(f"{title} int8")
    return watch.seconds


class Stages(Progress):
    """Keeps what conversions say of themselves, with the time at which they said it."""

    def __init__(self) -> None:
        super().__init__(silent=True)
        self.begun = time.perf_counter()
        self.lines: list[tuple[float, str]] = []

    def say(self, text: str) -> None:
        """See :class:`edgekit.core.progress.Progress`."""
        self.lines.append((round(time.perf_counter() - self.begun, 1), text))


def edgekit(size: Size, samples: int, root: Path, folder: Path, every: bool) -> list[tuple[float, str]]:
    """edgekit's artifacts, by its own pipeline; returns its progress lines with their times.

    Args:
        every: with Core ML int8, which the vendors' side goes without.
    """
    stages = Stages()
    calibration = open_calibration("cityscapes", root, samples, size)
    jobs = [
        Job(name, recipe_for(load_target(name), precision, None, 1))
        for name in TARGETS
        for precision in precisions_of(load_target(name), None)
        if every or (name, precision) != ("coreml", "int8")
    ]
    order = Order(load_checkpoint(CHECKPOINT), size, folder, "benchmark", calibration)
    for result in convert_all(order, jobs, stages):
        if isinstance(result, EdgekitError):
            raise result
    return stages.lines


def family(process: int) -> Iterator[int]:
    """A process and all that descend from it, as far as the system tells."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended meanwhile
                continue
            children.setdefault(parent, []).append(int(entry.name))
    waiting = [process]
    while waiting:
        current = waiting.pop()
        yield current
        waiting += children.get(current, [])


def memory(process: int) -> int:
    """Bytes that a process and its descendants hold, shared pages counted once."""
    total = 0
    for member in family(process):
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def run(side: str, size: Size, samples: int, root: Path) -> dict[str, Any]:
    """One side in a fresh process: seconds, processor time of all its processes, peak memory, and its own stages."""
    with tempfile.TemporaryDirectory() as name:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.speed.time_to_artifact",
                "--side",
                side,
                str(size),
                str(samples),
                str(root),
                name,
            ]
        )
        peak = 0
        ended = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.5):
                peak = max(peak, memory(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            ended.set()
            watcher.join()
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{side} ended with code {process.returncode}")
        stages = json.loads((Path(name) / "stages.json").read_text())
    cpu = usage.ru_utime + usage.ru_stime
    print(f"{side:26} {seconds:6.1f} s, {cpu:6.1f} s of processor time, peak {peak / 2**30:.2f} GiB", flush=True)
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak, "stages": stages}


def main() -> None:
    """Run both sides in turns, and keep the ratio of their times."""
    if sys.argv[1:2] == ["--side"]:
        side, size, samples, root, folder = (
            sys.argv[2], Size.parse(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]), Path(sys.argv[6])
        )  # fmt: skip
        with noise_to(folder / "log"):
            stages: Any = (
                vendors(size, samples, root, folder)
                if side == SIDES[0]
                else edgekit(size, samples, root, folder, side == SIDES[1])
            )
        write_json(folder / "stages.json", stages)
        return
    size = Size.parse(sys.argv[1] if len(sys.argv) > 1 else "1024x2048")
    samples = int(sys.argv[2]) if len(sys.argv) > 2 else 32
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    taken: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as frames:
        write_frames(size, samples * CANDIDATES, Path(frames))
        for _ in range(rounds):
            for side in taken:
                taken[side].append(run(side, size, samples, Path(frames)))
            ratios = kept_rounds(size, samples, taken)
    for side, ratio in ratios.items():
        print(f"{side}: {ratio.value:.2f} times as fast [{ratio.low:.2f}, {ratio.high:.2f}]")
    print(WITHOUT)
    for side, one in taken.items():
        print(f"{side}, first round: {json.dumps(one[0]['stages'])}")


def kept_rounds(size: Size, samples: int, taken: dict[str, list[dict[str, Any]]]) -> dict[str, Interval]:
    """Keep the rounds so far; returns how many times as fast as the vendors each side of edgekit's is."""
    seconds = {side: [[one["seconds"]] for one in taken[side]] for side in SIDES}
    ratios = {side: bootstrap_ratio(seconds[SIDES[0]], seconds[side]) for side in SIDES[1:]}
    keep(
        "time_to_artifact",
        {"checkpoint": CHECKPOINT, "size": str(size), "samples": samples, "cores": len(os.sched_getaffinity(0)),
         "sides": taken, "without": WITHOUT,
         "ratios": {side: {"value": one.value, "low": one.low, "high": one.high} for side, one in ratios.items()}},
    )  # fmt: skip
    return ratios


if __name__ == "__main__":
    main()
