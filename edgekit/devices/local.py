"""Measuring on the machine that this runs on: a fresh process for each artifact, interleaved rounds, raw samples kept.

The agent does on a device what edgekit does here: both have a :class:`Clock`. Python 3.9 and numpy.
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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Union

from edgekit.core.contract import CROWDED, LATENCY_CONTRACTS, LatencyContract, Scope, Terms, cores_taken
from edgekit.core.errors import ArtifactError, DeviceError, EdgekitError
from edgekit.core.files import open_log
from edgekit.core.measurement import Conditions, Latency, LoadInterval, Sustained
from edgekit.core.progress import Progress
from edgekit.core.values import Provenance
from edgekit.devices.environment import available_cores, busy_seconds, conditions

ROUNDS = 8
SETTLING = 0.1
"""Seconds before a turn, and a query that does not count: ONNX Runtime's threads spin on for 40 ms after theirs, on others' cores."""
LATER_WARMUP = 0.25
"""Share of the warm-up's seconds that an artifact's later processes have: caches of the machine are warm by then."""
LOOKING = 0.3
"""Seconds for which the machine's load is looked at before anything is measured."""
TICK = 0.01
"""Seconds by which Linux counts work."""
LOCK_SECONDS = 3600.0
"""How long a device that somebody else measures on is waited for."""
CLOCK_SLACK = 2.0
"""Seconds by which the time of day may run apart from the clock that measures before it is said."""
Outcome = Union[Latency, EdgekitError]  # noqa: UP007  Python 3.9 evaluates it


WORKER = (sys.executable, "-P", "-m", "edgekit.devices.worker")


@dataclass(frozen=True)
class Subject:
    """An artifact to measure.

    Attributes:
        folder: the artifact's.
        title: as messages name it.
        compute_units: of Core ML.
        by: what runs it, as its provenance says; empty on a device, since whoever asked knows.
        described: the artifact, where its folder holds no manifest.
    """

    folder: Path
    title: str
    compute_units: str = "ALL"
    by: str = ""
    described: Any = None


@dataclass(frozen=True)
class Load:
    """A sustained load: seconds in all and of each interval; ``threads`` None for all cores."""

    seconds: float
    interval: float
    threads: int | None = None


class Worker:
    """One artifact in a process of its own.

    Args:
        frames: an ``.npy``, for latency; None where frames come in packs.
        scope: of the latency.
        log: for what its runtime prints.
        command: what serves; a benchmark brings its own for what is no artifact.
    """

    def __init__(
        self,
        subject: Subject,
        frames: Path | None,
        threads: int | None,
        scope: Scope,
        log: Path,
        command: Sequence[str] = WORKER,
    ) -> None:
        self.title = subject.title
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
                    "artifact": str(subject.folder),
                    "frames": None if frames is None else str(frames),
                    "threads": threads,
                    "scope": scope,
                    "compute_units": subject.compute_units,
                    "described": subject.described,
                }
            )
        except BaseException:
            self.stop()
            raise

    @property
    def process_id(self) -> int:
        """Of the process."""
        return self._process.pid

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


def interval_of(seconds: float) -> float:
    """Length of an interval of a sustained load: sixty of them, but none shorter than a second or longer than ten."""
    return min(10.0, max(1.0, seconds / 60))


class _Elsewhere:
    """How busy the cores are with other programs from now on.

    Args:
        process: that measures, whose own work does not count.
    """

    def __init__(self, process: int | None) -> None:
        self._process, self._begin = process, time.monotonic()
        self._before = self._work()

    def _work(self) -> float | None:
        whole = busy_seconds()
        own = 0.0 if self._process is None else busy_seconds(self._process)
        return None if whole is None or own is None else whole - own

    def cores(self) -> float | None:
        """Cores' worth of work since; None where the system does not say."""
        now, seconds = self._work(), time.monotonic() - self._begin
        if now is None or self._before is None or seconds < 10 * TICK:
            return None
        return max(0.0, (now - self._before) / seconds)


class _Turns:
    """One artifact that is measured in turns with others: its process, its share of a round, and what came of it."""

    def __init__(self, subject: Subject, terms: Terms, contract: LatencyContract) -> None:
        self.subject = subject
        self.error: EdgekitError | None = None
        self._terms, self._contract = terms, contract
        self._worker: Worker | None = None
        self._share = 0
        self._opened: dict[str, Any] = {}
        self._warmup: list[float] = []
        self._rounds: list[tuple[float, ...]] = []
        self._process_rounds: list[int] = []
        self._conditions: list[Conditions] = []
        self._peak: int | None = None

    def open(self, frames: Path, log: Path, command: Sequence[str]) -> None:
        """Start a process of it and warm it up; the pace of the first plans how many queries a round has."""
        terms, contract = self._terms, self._contract
        first = self._worker is None
        if not first:
            self.close()
            self.stop()
        self._worker = Worker(self.subject, frames, terms.threads, terms.scope, log, command)
        seconds = contract.warmup_seconds * (1.0 if first else LATER_WARMUP)
        warmup = self._ask({"do": "warm", "runs": contract.warmup_runs, "seconds": seconds})
        self._process_rounds.append(0)
        if first:
            self._opened, self._warmup = self._worker.opened, warmup
            pace = sorted(warmup)[len(warmup) // 2] / 1e3
            self._share = math.ceil(max(contract.queries, math.ceil(contract.seconds / pace)) / ROUNDS)

    def _ask(self, command: dict[str, Any]) -> list[float]:
        assert self._worker is not None
        taken: list[float] = self._worker.ask(command)["samples_ms"]
        return taken

    def take(self, *, settle: bool) -> None:
        """Its share of a round, and the conditions after it."""
        assert self._worker is not None
        if settle:
            time.sleep(SETTLING)
            self._ask({"do": "warm", "runs": 1, "seconds": 0})
        elsewhere = _Elsewhere(self._worker.process_id)
        self._rounds.append(tuple(self._ask({"do": "round", "count": self._share})))
        busy = elsewhere.cores()
        taken = None if busy is None else round(cores_taken(busy, self._terms.threads, available_cores()), 2)
        self._conditions.append(replace(conditions(), cores_taken=taken))
        self._process_rounds[-1] += 1

    def close(self) -> None:
        """Ask for its peak memory; that of the process with the most counts."""
        assert self._worker is not None
        peak = self._worker.ask({"do": "close"})["peak_rss_bytes"]
        self._peak = peak if self._peak is None or peak is None else max(self._peak, peak)

    def attempt(self, work: Callable[[], None]) -> None:
        """Do something, unless it failed before; what goes wrong now is kept."""
        if self.error is None:
            try:
                work()
            except EdgekitError as error:
                self.error = error

    def stop(self) -> None:
        """End its process."""
        if self._worker is not None:
            self._worker.stop()

    def enough(self) -> bool:
        """Whether it has all that the contract asks for, or never will."""
        samples = [sample for part in self._rounds for sample in part]
        contract = self._contract
        return self.error is not None or (len(samples) >= contract.queries and sum(samples) >= 1e3 * contract.seconds)

    def outcome(self, clock_set: float) -> Outcome:
        """The latency, or what went wrong."""
        if self.error is not None:
            return self.error
        opened, processes = self._opened, tuple(self._process_rounds)
        return Latency(
            Provenance("measured", self.subject.by), self._terms.mode, self._terms.scope,
            rounds_ms=tuple(self._rounds), process_rounds=processes if len(processes) > 1 else None,
            warmup_ms=tuple(self._warmup), first_ms=opened["first_ms"],
            load_ms=opened["load_ms"], peak_rss_bytes=self._peak, settings=opened["settings"],
            conditions=tuple(self._conditions), clock_set_seconds=round(clock_set, 1) if clock_set else None,
        )  # fmt: skip


@dataclass(frozen=True)
class Clock:
    """What measures on the machine that it runs on.

    Attributes:
        logs: folder for what runtimes print.
        progress: is told of it.
        command: what serves artifacts.
    """

    logs: Path
    progress: Progress
    command: Sequence[str] = WORKER

    def measure(
        self, subjects: Sequence[Subject], frames: Path, terms: Terms, contract: LatencyContract | None = None
    ) -> list[Outcome]:
        """Latency of artifacts that are to be compared: for each the value, or the error that stopped it.

        All are open at once, each in its process; in every round each runs its share of queries in turn, so that a slow
        minute of the machine falls on all of them, after a moment in which the one before comes to rest. Every few rounds
        all get new processes, since one that begins badly stays so. Clocks, temperatures and what other programs do are read
        with each share.

        Args:
            frames: an ``.npy`` of uint8 [N, H, W, 3], cycled through.
            contract: the mode's own by default.
        """
        clocks = _Clocks()
        contract = contract or LATENCY_CONTRACTS[terms.mode]
        turns = [_Turns(subject, terms, contract) for subject in subjects]
        self._look_around(terms)
        try:
            number = 0
            # The share of a round is planned from the warm-up's pace; where that was slow, rounds are added for all.
            while number < ROUNDS or (number < 4 * ROUNDS and not all(one.enough() for one in turns)):
                if number % max(1, ROUNDS // contract.processes) == 0:
                    for one in turns:
                        self.progress.update(f"loading {one.subject.title}")
                        log = self.logs / f"{one.subject.folder.name}.bench.log"
                        one.attempt(partial(one.open, frames, log, self.command))
                number += 1
                for one in turns:
                    if one.error is None:
                        self.progress.update(
                            f"measuring latency: round {number} of {max(number, ROUNDS)}, {one.subject.title}"
                        )
                    one.attempt(partial(one.take, settle=len(turns) > 1))
                if all(one.error is not None for one in turns):
                    break
            for one in turns:
                one.attempt(one.close)
        finally:
            for one in turns:
                one.stop()
        return [one.outcome(clocks.jumped()) for one in turns]

    def _look_around(self, terms: Terms) -> None:
        """Say so where other programs want the cores that are about to be measured."""
        elsewhere = _Elsewhere(None)
        time.sleep(LOOKING)
        cores, busy = available_cores(), elsewhere.cores()
        if busy is not None and cores_taken(busy, terms.threads, cores) > CROWDED:
            self.progress.say(
                f"this machine is busy: other programs use {busy:.1f} of {cores} cores. Times are longer than they would be "
                "alone, and their intervals wider: stop those programs, or read ratios only"
            )

    def sustain(
        self,
        subject: Subject,
        frames: Path,
        load: Load,
        each: Callable[[LoadInterval], None] = lambda _: None,
    ) -> Sustained:
        """One artifact for as long as asked without a pause: what the device's heat leaves of its speed.

        There is no warm-up beyond the first frame: a cold start is part of what is looked for.

        Args:
            each: called with each interval when it is over.

        Raises:
            ArtifactError: it could not be run to the end.
        """
        log = self.logs / f"{subject.folder.name}.sustained.log"
        worker = Worker(subject, frames, load.threads, "frame-to-labels", log, self.command)
        intervals: list[LoadInterval] = []
        before = conditions()
        try:
            begin = now = time.monotonic()
            while now - begin < load.seconds - 1e-3:
                self.progress.update(f"{subject.title}: sustained load, {now - begin:.0f} of {load.seconds:.0f} s")
                span = min(load.interval, load.seconds - (now - begin))
                samples = worker.ask({"do": "span", "seconds": span})["samples_ms"]
                end = time.monotonic()
                rounded = tuple(round(sample, 4) for sample in samples)
                intervals.append(LoadInterval(round(now - begin, 3), round(end - begin, 3), conditions(), rounded))
                each(intervals[-1])
                now = end
        finally:
            worker.stop()
        return Sustained(load.seconds, tuple(intervals), settings=worker.opened["settings"], before=before)
