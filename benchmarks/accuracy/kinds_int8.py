"""int8 of the twelve kinds of networks that tests/kinds.py holds: what it loses, what was expected, and how fast it is beside float.

Run: python -m benchmarks.accuracy.kinds_int8 [NAME ...]; goes on where it was stopped. By default options, on all targets: 16 calibration
frames, 24 streets val frames at 128x256, which did not calibrate. Latency is of the bare graph at 256x512, int8 and float in turns.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.shared.measured import keep, kept
from calibration.choice import choose_frames
from calibration.datasets import open_split
from edgekit.core.contract import Terms
from edgekit.core.errors import EdgekitError
from edgekit.core.measurement import Latency, Timed
from edgekit.core.progress import Progress
from edgekit.core.registry import load_target
from edgekit.core.values import Size
from edgekit.networks.checkpoint import load_checkpoint
from edgekit.pipeline.artifacts import lazy_graph, make_artifact, recipe_for
from edgekit.pipeline.here import Here, bench_frames_of
from edgekit.pipeline.int8 import quantize
from edgekit.pipeline.mending import simulated_drop
from edgekit.pipeline.plans import Order, Quantize
from edgekit.pipeline.quantization import Calibration
from edgekit.pipeline.stored import bench_frames
from reports.quantization import Quantized
from reports.statistics import bootstrap_ratio

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from kinds import KINDS  # noqa: E402  the tests' folder is put on the path above

TARGETS = ("coreml", "onnxruntime", "openvino", "tensorrt", "tflite")
TIMED = ("onnxruntime", "openvino", "tflite")
SIZE, LARGER = Size(128, 256), Size(256, 512)
SAMPLES, FRAMES = 16, 24


def accuracy(name: str) -> list[dict[str, Any]]:
    """A row for each target."""
    from edgekit.pipeline.artifacts import load_artifact

    checkpoint = load_checkpoint(str(ROOT / "tests" / "trained" / f"{name}.safetensors"), factory(name))
    plan = Quantize(
        checkpoint, TARGETS, SIZE, open_split("streets", "train", size=SIZE), SAMPLES,
        open_split("streets", "val", size=SIZE).first(FRAMES), Path("runs") / f"kinds-{name}", "benchmarks/accuracy/kinds_int8.py",
    )  # fmt: skip
    rows = []
    for row in quantize(plan, Progress()):
        if not isinstance(row, Quantized) or row.loss is None:
            raise SystemExit(f"{name} on {row.target} failed: {getattr(row, 'failed', 'no loss')}")
        manifest = load_artifact(row.artifact).manifest
        rows.append(
            {
                "target": row.target, "float": row.loss.miou_float, "drop": row.loss.miou_drop, "interval": list(row.loss.miou_drop_ci),
                "simulated": simulated_drop(manifest["calibration"]), "seen": manifest["check"].get("expected_drop"),
                "mended": list(row.mended), "collapsed": row.collapsed,
            }
        )  # fmt: skip
    return rows


def factory(name: str) -> str:
    return f"kinds:{getattr(KINDS[name], '__name__', name)}"


def speed(name: str) -> dict[str, list[float]]:
    """int8's latency over float's with its 95 % interval, by runtime."""
    checkpoint = load_checkpoint(str(ROOT / "tests" / "trained" / f"{name}.safetensors"), factory(name))
    folder = Path("runs") / f"kinds-{name}"
    progress = Progress(silent=True)
    graph = lazy_graph(checkpoint, LARGER, progress)
    calibration = Calibration(choose_frames(open_split("streets", "train", size=LARGER), 4), LARGER)
    order = Order(checkpoint, LARGER, folder, "benchmarks/accuracy/kinds_int8.py", calibration)
    found: dict[str, list[float]] = {}
    for runtime in TIMED:
        target = load_target(runtime)
        pair = [
            make_artifact(target, order, recipe_for(target, precision, None, 1), graph, progress)
            for precision in ("int8", "fp32")
        ]  # fmt: skip
        samples = bench_frames(bench_frames_of(pair[0]), LARGER, folder)
        taken = Here(None, folder / "logs", progress).times(pair, samples, Terms("quick", "graph"))
        if failed := [one for one in taken if isinstance(one, EdgekitError)]:
            raise failed[0]
        rounds = [
            one.latency.processes_ms for one in taken if isinstance(one, Timed) and isinstance(one.latency, Latency)
        ]
        assert rounds[0] is not None and rounds[1] is not None
        ratio = bootstrap_ratio(rounds[0], rounds[1])
        found[runtime] = [ratio.value, ratio.low, ratio.high]
    return found


def main() -> None:
    document = kept("kinds_int8")
    result: dict[str, Any] = {} if document is None else document["result"]
    for name in sys.argv[1:] or KINDS:
        if name in result:
            continue
        result[name] = {"rows": accuracy(name), "speed": speed(name)}
        keep("kinds_int8", result)
        print(name, result[name], flush=True)


if __name__ == "__main__":
    main()
