"""How much memory calibration takes: many frames of the paper's full size, of which a few at a time are looked at.

Run: python -m benchmarks.speed.calibration_memory [SIZE] [SAMPLES]; 1024x2048 and 128 by default. A process of its own does what
``edgekit quantize`` does before it converts: chooses frames by class coverage, looks at each, and works ranges, equalization
and biases out. The peak is the operating system's, of the whole process, PyTorch and the graph included.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.shared.measured import keep
from calibration.choice import choose_frames
from calibration.datasets import open_split
from edgekit.core.progress import Progress
from edgekit.core.values import Size
from edgekit.networks.checkpoint import load_checkpoint
from edgekit.pipeline.artifacts import lazy_graph
from edgekit.pipeline.quantization import Calibration, prepare

CHECKPOINT, DATASET = "spssn-streets", "streets"


def peak_bytes() -> int:
    """The most memory that this process ever had, on Linux."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Calibrate once and keep the peak."""
    height, width = map(int, (sys.argv[1] if len(sys.argv) > 1 else "1024x2048").split("x"))
    size, samples = Size(height, width), int(sys.argv[2]) if len(sys.argv) > 2 else 128
    checkpoint = load_checkpoint(CHECKPOINT)
    graph = lazy_graph(checkpoint, size, Progress())()
    exported = peak_bytes()
    started = time.monotonic()
    calibration = Calibration(choose_frames(open_split(DATASET, "train", size=size), samples), size)
    print(f"{samples} frames chosen in {time.monotonic() - started:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        prepare(graph, checkpoint, calibration, Path(folder))
    peak = peak_bytes()
    result = {
        "checkpoint": CHECKPOINT, "dataset": DATASET, "size": str(size), "frames": len(calibration.frames),
        "peak_bytes": peak, "peak_bytes_before": exported,
    }  # fmt: skip
    keep("calibration_memory", result)
    print(f"peak {peak / 2**30:.2f} GiB, {exported / 2**30:.2f} before, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
