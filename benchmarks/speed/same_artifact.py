"""Do the intervals say what they claim? One artifact against its own copy, on a quiet machine and beside other programs.

Run: python -m benchmarks.speed.same_artifact [PAIRS]; 50 by default, some 15 minutes. Of two folders with the same bytes neither is
faster, so that 95 % of the intervals of their ratio should hold 1. Half of the pairs run beside a load of twice as many busy
processes as there are cores. The intervals that one would make of rounds, as if each were by itself, stand beside them.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

from benchmarks.shared.measured import keep
from benchmarks.shared.shipped_artifacts import artifacts, save_frames
from edgekit.core.contract import LatencyContract, Terms
from edgekit.core.errors import EdgekitError
from edgekit.core.progress import Progress
from edgekit.core.values import Size
from edgekit.devices.local import Clock, Subject
from edgekit.networks.checkpoint import load_checkpoint
from edgekit.runtimes.common import available_cores
from reports.statistics import Interval, bootstrap_ratio

SIZE = Size(128, 256)
TARGETS = ("onnxruntime", "openvino", "tflite")
CONTRACT = LatencyContract(warmup_runs=3, warmup_seconds=0.25, queries=64, seconds=1.0)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other programs that want every core."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for one in others:
            one.kill()
            one.wait()


def pair(subjects: list[Subject], frames: Path, logs: Path) -> tuple[Interval, Interval]:
    """The ratio of two folders by processes, and by rounds."""
    taken = Clock(logs, Progress(silent=True)).measure(subjects, frames, Terms("quick", "graph"), CONTRACT)
    failed = [one for one in taken if isinstance(one, EdgekitError)]
    if failed:
        raise failed[0]
    first, second = (one for one in taken if not isinstance(one, EdgekitError))
    assert first.rounds_ms is not None and second.rounds_ms is not None
    return (
        bootstrap_ratio(first.processes_ms, second.processes_ms),
        bootstrap_ratio(first.rounds_ms, second.rounds_ms),
    )


def main() -> None:
    """Measure pairs in turns of quiet and load, and keep how many intervals hold 1."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    result: dict[str, Any] = {"pairs": pairs, "size": str(SIZE), "cores": available_cores(), "quiet": [], "load": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = folder / "frames.npy"
        save_frames(SIZE, 8, frames)
        made = artifacts(load_checkpoint("spssn-streets"), SIZE, TARGETS, folder, "benchmarks/speed/same_artifact.py")
        subjects = []
        for artifact, _ in made:
            copy = folder / "copies" / artifact.folder.name
            shutil.copytree(artifact.folder, copy)
            subjects.append([Subject(artifact.folder, artifact.title), Subject(copy, f"copy of {artifact.title}")])
        for one in itertools.islice(itertools.cycle(subjects), pairs):
            for state, processes in (("quiet", 0), ("load", 2 * available_cores())):
                with busy(processes):
                    by_process, by_round = pair(one, frames, folder / "logs")
                result[state].append(
                    {"artifact": one[0].title, "process": astuple(by_process), "round": astuple(by_round)}
                )
                print(state, one[0].title, by_process, by_round, flush=True)
            keep("same_artifact", result)


if __name__ == "__main__":
    main()
