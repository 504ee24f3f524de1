"""Is the clock honest? edgekit's ``graph`` scope beside each vendor's own tool, on the same artifacts, in turns.

Run: python -m benchmarks.speed.harness [SIZE] [ROUNDS]. OpenVINO: benchmark_app, one synchronous request (its latency hint takes all cores), float32
for what is not int8. LiteRT: litert-benchmark. ONNX Runtime has no tool in its package: a bare loop over session.run in a
process of its own. The goal is 3 %, or an interval that holds 1.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.shared.measured import keep
from benchmarks.shared.shipped_artifacts import artifacts, save_frames
from edgekit.core.errors import EdgekitError
from edgekit.core.values import Artifact, Size
from edgekit.devices.environment import available_cores
from edgekit.devices.local import Subject, Worker
from edgekit.networks.checkpoint import load_checkpoint
from reports.statistics import bootstrap_ratio

RUNS = 60
"""Of each side in one round."""
GOAL = 0.03
BIN = Path(sys.executable).parent
LOOP = """
import json, sys, time
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
options.add_session_config_entry("session.set_denormal_as_zero", "1")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
frame = np.load(sys.argv[2])[:1]
taken = []
for index in range(int(sys.argv[4]) + 10):
    begun = time.perf_counter_ns()
    session.run(None, {"frame": frame})
    taken.append((time.perf_counter_ns() - begun) / 1e6)
print(json.dumps(float(np.median(taken[10:]))))
"""


def run(command: list[str], cwd: Path) -> str:
    """What a tool prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode != 0:
        raise EdgekitError(f"{command[0]} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return done.stdout


def benchmark_app(artifact: Artifact, frames: Path, cwd: Path) -> float:
    """Median of OpenVINO's tool in ms."""
    frame = cwd / "frame.npy"
    np.save(frame, np.load(frames)[:1])
    text = run(
        [
            str(BIN / "benchmark_app"), "-m", str(artifact.model_path), "-d", "CPU", "-hint", "latency", "-api", "sync",
            "-niter", str(RUNS), "-infer_precision", "f32", "-i", str(frame),
        ],
        cwd,
    )  # fmt: skip
    found = re.search(r"Median:\s+([\d.]+) ms", text)
    if found is None:
        raise EdgekitError("benchmark_app printed no median")
    return float(found[1])


def litert_benchmark(artifact: Artifact, frames: Path, cwd: Path) -> float:
    """Median of LiteRT's tool in ms; it fills the input itself."""
    result = cwd / "litert.json"
    run(
        [
            str(BIN / "litert-benchmark"), "--model", str(artifact.model_path), "--num_threads", str(available_cores()),
            "--num_runs", str(RUNS), "--warmup_runs", "10", "--result_json", str(result),
        ],
        cwd,
    )  # fmt: skip
    return float(json.loads(result.read_text())["latency"]["median_ms"])


def onnxruntime_loop(artifact: Artifact, frames: Path, cwd: Path) -> float:
    """Median of a bare loop in ms."""
    arguments = [str(artifact.model_path), str(frames), str(available_cores()), str(RUNS)]
    return float(json.loads(run([sys.executable, "-c", LOOP, *arguments], cwd)))


TOOLS: dict[str, tuple[str, Callable[[Artifact, Path, Path], float]]] = {
    "openvino": ("benchmark_app -hint latency -api sync", benchmark_app),
    "tflite": ("litert-benchmark", litert_benchmark),
    "onnxruntime": ("a bare loop over session.run", onnxruntime_loop),
}


def main() -> None:
    """Measure every artifact both ways and keep the ratios."""
    size = Size.parse(sys.argv[1] if len(sys.argv) > 1 else "512x1024")
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    checkpoint = load_checkpoint("spssn-streets")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = folder / "frames.npy"
        save_frames(size, 1, frames)
        for artifact, _ in artifacts(checkpoint, size, tuple(TOOLS), folder, "benchmarks/speed/harness.py"):
            tool, measure = TOOLS[artifact.target]
            worker = Worker(Subject(artifact.folder, artifact.title), frames, None, "graph", folder / "log")
            try:
                worker.ask({"do": "warm", "runs": 10, "seconds": 1})
                own, other = [], []
                for _ in range(rounds):
                    own.append([float(np.median(worker.ask({"do": "round", "count": RUNS})["samples_ms"]))])
                    other.append([measure(artifact, frames, folder)])
            finally:
                worker.stop()
            ratio = bootstrap_ratio(own, other)
            holds = abs(ratio.value - 1) <= GOAL or ratio.low <= 1 <= ratio.high
            rows.append(
                {
                    "artifact": artifact.title, "tool": tool, "edgekit_ms": float(np.median(own)),
                    "tool_ms": float(np.median(other)), "holds": holds,
                    "ratio": {"value": ratio.value, "low": ratio.low, "high": ratio.high},
                }
            )  # fmt: skip
            print(
                f"{artifact.title:18} edgekit {rows[-1]['edgekit_ms']:6.2f} ms, {tool} {rows[-1]['tool_ms']:6.2f} ms: "
                f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]{'' if holds else ' MISSED'}",
                flush=True,
            )
    keep("harness", {"size": str(size), "rounds": rounds, "runs": RUNS, "goal": GOAL, "rows": rows})


if __name__ == "__main__":
    main()
