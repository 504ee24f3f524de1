"""Latency on this machine: a fresh process for each artifact, interleaved rounds, raw samples kept."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from edgekit.core.contract import LATENCY_CONTRACTS, LatencyContract
from edgekit.core.errors import ArtifactError, EdgekitError
from edgekit.core.progress import Progress
from edgekit.core.values import Artifact

ROUNDS = 8
Mode = Literal["quick", "full"]
Scope = Literal["frame-to-labels", "graph"]


WORKER = (sys.executable, "-P", "-m", "edgekit.devices.worker")


class Worker:
    """One artifact in a process of its own.

    Args:
        folder: the artifact's.
        title: as messages name it.
        command: what serves; a benchmark brings its own for what is no artifact.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        frames: Path,
        threads: int | None,
        scope: Scope,
        log: Path,
        command: Sequence[str] = WORKER,
    ) -> None:
        self.title = title
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        try:
            self.opened = self.ask(
                {
                    "do": "open",
                    "artifact": str(folder),
                    "frames": str(frames),
                    "threads": threads,
                    "scope": scope,
                }
            )
        except BaseException:
            self.stop()
            raise

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """One command and its answer.

        Raises:
            ArtifactError: the process reported an error or died; its log is named.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):  # nothing, or what a killed process had written of its answer
            code = self._process.wait()
            raise ArtifactError(f"{self.title} ended its process with code {code} (its output is in {self.log})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ArtifactError(f"{self.title} cannot be run: {answer['error']} (its output is in {self.log})")
        return answer

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue


def measure(
    artifacts: Sequence[Artifact],
    frames: Path,
    mode: Mode,
    scope: Scope,
    threads: int | None,
    logs: Path,
    progress: Progress,
) -> list[dict[str, Any] | EdgekitError]:
    """Latency of artifacts that are to be compared, one result for each.

    All are open at once, each in its process; in every round each runs its share of queries in turn, so that a slow
    minute of the machine falls on all of them.

    Args:
        frames: an ``.npy`` of uint8 [N, H, W, 3], cycled through.
        scope: ``frame-to-labels``, or ``graph`` for one forward pass of the bare model.

    Returns:
        Per artifact the ``latency`` object of a measurement without its provenance, or the error that stopped it.
    """
    contract = LATENCY_CONTRACTS[mode]
    started: list[Worker] = []
    workers: list[Worker | None] = []
    results: list[dict[str, Any] | EdgekitError] = []
    counts: list[int] = []
    try:
        for artifact in artifacts:
            progress.update(f"loading {artifact.title}")
            try:
                log = logs / f"{artifact.folder.name}.bench.log"
                worker = Worker(artifact.folder, artifact.title, frames, threads, scope, log)
                started.append(worker)
                warmup = worker.ask({"do": "warm", "runs": contract.warmup_runs, "seconds": contract.warmup_seconds})
            except EdgekitError as error:
                workers.append(None)
                counts.append(0)
                results.append(error)
                continue
            pace = sorted(warmup["samples_ms"])[len(warmup["samples_ms"]) // 2] / 1e3
            total = max(contract.queries, math.ceil(contract.seconds / pace))
            workers.append(worker)
            counts.append(math.ceil(total / ROUNDS))
            results.append(
                {
                    "scope": scope, "mode": mode, "rounds_ms": [], "warmup_ms": warmup["samples_ms"],
                    "first_ms": worker.opened["first_ms"], "load_ms": worker.opened["load_ms"],
                    "peak_rss_bytes": None, "settings": worker.opened["settings"],
                }
            )  # fmt: skip
        number = 0
        # The share of a round is planned from the warm-up's pace; where that was slow, rounds are added for all.
        while number < ROUNDS or (number < 4 * ROUNDS and not all(_enough(result, contract) for result in results)):
            number += 1
            for index, opened in enumerate(workers):
                result = results[index]
                if opened is None or isinstance(result, EdgekitError):
                    continue
                progress.update(f"measuring latency: round {number} of {max(number, ROUNDS)}, {opened.title}")
                try:
                    result["rounds_ms"].append(opened.ask({"do": "round", "count": counts[index]})["samples_ms"])
                except EdgekitError as error:
                    results[index] = error
        for index, opened in enumerate(workers):
            result = results[index]
            if opened is not None and not isinstance(result, EdgekitError):
                try:
                    result["peak_rss_bytes"] = opened.ask({"do": "close"})["peak_rss_bytes"]
                except EdgekitError as error:
                    results[index] = error
    finally:
        for worker in started:
            worker.stop()
    return results


def _enough(result: dict[str, Any] | EdgekitError, contract: LatencyContract) -> bool:
    if isinstance(result, EdgekitError):
        return True
    samples = [sample for part in result["rounds_ms"] for sample in part]
    return len(samples) >= contract.queries and sum(samples) >= 1e3 * contract.seconds
