"""Measuring on the machine that this runs on: a fresh process for each artifact, interleaved rounds, raw samples kept.

The agent does on a device what edgekit does here: both call :func:`measure` and :func:`sustain`. Python 3.9 and numpy.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

from edgekit.core.contract import LATENCY_CONTRACTS, LatencyContract
from edgekit.core.errors import ArtifactError, DeviceError, EdgekitError
from edgekit.core.files import open_log
from edgekit.core.progress import Progress
from edgekit.devices.environment import conditions

ROUNDS = 8
SETTLING = 0.1
"""Seconds before a turn, and a query that does not count: ONNX Runtime's threads spin on for 40 ms after theirs, on others' cores."""
LOCK_SECONDS = 3600.0
"""How long a device that somebody else measures on is waited for."""
CLOCK_SLACK = 2.0
"""Seconds by which the time of day may run apart from the clock that measures before it is said."""
Mode = Literal["quick", "full"]
Scope = Literal["frame-to-labels", "graph"]
Outcome = Union["dict[str, Any]", EdgekitError]


WORKER = (sys.executable, "-P", "-m", "edgekit.devices.worker")


@dataclass(frozen=True)
class Subject:
    """An artifact to measure.

    Attributes:
        folder: the artifact's.
        title: as messages name it.
        compute_units: of Core ML.
    """

    folder: Path
    title: str
    compute_units: str = "ALL"


class Worker:
    """One artifact in a process of its own.

    Args:
        folder: the artifact's.
        title: as messages name it.
        frames: an ``.npy``, for latency; None where frames come in packs.
        command: what serves; a benchmark brings its own for what is no artifact.
        described: the artifact, where its folder holds no manifest.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        frames: Path | None,
        threads: int | None,
        scope: Scope,
        log: Path,
        command: Sequence[str] = WORKER,
        compute_units: str = "ALL",
        described: Any = None,
    ) -> None:
        self.title = title
        self.log = log
        with open_log(log) as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        try:
            self.opened = self.ask(
                {
                    "do": "open",
                    "artifact": str(folder),
                    "frames": None if frames is None else str(frames),
                    "threads": threads,
                    "scope": scope,
                    "compute_units": compute_units,
                    "described": described,
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
            raise ArtifactError(f"{self.title} {_ended(code)} (its output is in {self.log})")
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


def _ended(code: int) -> str:
    """How a runtime's process ended, in words."""
    if code == -9:
        return "was killed while it ran, as happens when memory runs out: choose a smaller --size"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"crashed its runtime ({name}): report it to the runtime's makers, or choose another precision"
    return f"ended its process with code {code}"


@contextmanager
def alone(progress: Progress) -> Iterator[None]:
    """This machine for one measurement: another one of any process is waited for.

    Raises:
        DeviceError: it did not end in an hour.
    """
    if sys.platform == "win32":  # has no such lock
        yield
        return
    from edgekit.devices.agent.lock import Busy, DeviceLock

    lock = DeviceLock("a measurement on this machine")
    try:
        lock.take(LOCK_SECONDS, lambda holder: progress.say(f"waiting for {holder}"))
    except Busy as holder:
        raise DeviceError(f"this machine is in use by {holder}: wait until that measurement is done") from None
    if lock.remark:
        progress.say(lock.remark)
    try:
        yield
    finally:
        lock.release()


class _Clocks:
    """Whether the time of day was set while the monotonic clock measured."""

    def __init__(self) -> None:
        self._apart = time.time() - time.monotonic()

    def jumped(self) -> float:
        """Seconds by which it was set, 0 when it was not."""
        apart = time.time() - time.monotonic() - self._apart
        return apart if abs(apart) > CLOCK_SLACK else 0.0


def measure(
    subjects: Sequence[Subject],
    frames: Path,
    mode: Mode,
    scope: Scope,
    threads: int | None,
    logs: Path,
    progress: Progress,
    command: Sequence[str] = WORKER,
    contract: LatencyContract | None = None,
) -> list[Outcome]:
    """Latency of artifacts that are to be compared, one result for each.

    All are open at once, each in its process; in every round each runs its share of queries in turn, so that a slow
    minute of the machine falls on all of them, after a moment in which the one before comes to rest. Clocks and
    temperatures are read after each share.

    Args:
        frames: an ``.npy`` of uint8 [N, H, W, 3], cycled through.
        scope: ``frame-to-labels``, or ``graph`` for one forward pass of the bare model.
        command: what serves.
        contract: the mode's own by default.

    Returns:
        Per artifact the ``latency`` object of a measurement without its provenance, or the error that stopped it.
    """
    contract = contract or LATENCY_CONTRACTS[mode]
    clocks = _Clocks()
    started: list[Worker] = []
    workers: list[Worker | None] = []
    results: list[Outcome] = []
    counts: list[int] = []
    try:
        for subject in subjects:
            progress.update(f"loading {subject.title}")
            try:
                log = logs / f"{subject.folder.name}.bench.log"
                worker = Worker(
                    subject.folder, subject.title, frames, threads, scope, log, command, subject.compute_units
                )
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
                    "peak_rss_bytes": None, "settings": worker.opened["settings"], "conditions": [],
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
                    if len(workers) > 1:
                        time.sleep(SETTLING)
                        opened.ask({"do": "warm", "runs": 1, "seconds": 0})
                    result["rounds_ms"].append(opened.ask({"do": "round", "count": counts[index]})["samples_ms"])
                    result["conditions"].append(conditions())
                except EdgekitError as error:
                    results[index] = error
            if all(isinstance(result, EdgekitError) for result in results):
                break
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
    if jump := clocks.jumped():
        for result in results:
            if isinstance(result, dict):
                result["clock_set_seconds"] = round(jump, 1)
    return results


def _enough(result: Outcome, contract: LatencyContract) -> bool:
    if isinstance(result, EdgekitError):
        return True
    samples = [sample for part in result["rounds_ms"] for sample in part]
    return len(samples) >= contract.queries and sum(samples) >= 1e3 * contract.seconds


def interval_of(seconds: float) -> float:
    """Length of an interval of a sustained load: sixty of them, but none shorter than a second or longer than ten."""
    return min(10.0, max(1.0, seconds / 60))


def sustain(
    subject: Subject,
    frames: Path,
    seconds: float,
    interval: float,
    threads: int | None,
    logs: Path,
    progress: Progress,
    command: Sequence[str] = WORKER,
    each: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """One artifact for as long as asked without a pause: what the device's heat leaves of its speed.

    There is no warm-up beyond the first frame: a cold start is part of what is looked for.

    Args:
        seconds: in all.
        interval: seconds of each interval.
        each: called with each interval when it is over.

    Returns:
        ``seconds``, ``settings`` and ``intervals``: when each began and ended, its samples and the conditions at its end.

    Raises:
        ArtifactError: it could not be run to the end.
    """
    worker = Worker(
        subject.folder, subject.title, frames, threads, "frame-to-labels",
        logs / f"{subject.folder.name}.sustained.log", command, subject.compute_units,
    )  # fmt: skip
    intervals: list[dict[str, Any]] = []
    before = conditions()
    try:
        begin = now = time.monotonic()
        while now - begin < seconds - 1e-3:
            progress.update(f"{subject.title}: sustained load, {now - begin:.0f} of {seconds:.0f} s")
            span = min(interval, seconds - (now - begin))
            samples = worker.ask({"do": "span", "seconds": span})["samples_ms"]
            end = time.monotonic()
            intervals.append(
                {
                    "begin_s": round(now - begin, 3), "end_s": round(end - begin, 3),
                    "samples_ms": [round(sample, 4) for sample in samples], **conditions(),
                }
            )  # fmt: skip
            each(intervals[-1])
            now = end
    finally:
        worker.stop()
    return {
        "seconds": seconds, "scope": "frame-to-labels", "settings": worker.opened["settings"], "before": before,
        "intervals": intervals,
    }  # fmt: skip
