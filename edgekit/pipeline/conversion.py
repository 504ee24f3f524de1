"""Conversions side by side, each in a process that may die without the run: one core traces while another calibrates."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.core import errors
from edgekit.core.errors import ConversionError, EdgekitError
from edgekit.core.files import clean_partials, open_log, read_checked
from edgekit.core.hold import is_held
from edgekit.core.progress import Progress, duration
from edgekit.core.registry import load_target
from edgekit.core.values import Artifact
from edgekit.devices.environment import available_cores
from edgekit.pipeline.artifacts import artifact_name, load_artifact, stage_name, stored_artifact
from edgekit.pipeline.check import doubt
from edgekit.pipeline.plans import Job, Order
from edgekit.pipeline.quantization import quantization_path

SIDE_BY_SIDE = 2
"""Processes at a time, however many cores there are: calibrating at 1024x2048 takes some 3 GiB in each."""

ENVIRONMENT: Mapping[str, str] = {
    # A thread of OpenMP's that waits spins, on the core that the other process computes on.
    "OMP_WAIT_POLICY": "passive",
    # Maps of tens of megabytes come and go: the kernel cleared every page of each anew, longer than a layer takes.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
"""The processes' environment, where the user's own says nothing else; glibc reads the last two, other systems neither."""


def convert_all(order: Order, jobs: Sequence[Job], progress: Progress) -> list[Artifact | EdgekitError]:
    """Make artifacts, or find those that the same inputs gave before; one result for each job, in their order.

    Targets made by the same tools share a process, since they share exports; others run side by side. How int8 represents
    the network is worked out once, while another process makes float artifacts. A process that dies fails the job it was at
    and no other.

    Raises:
        RuntimeError: a conversion met a bug of edgekit's.
    """
    results: dict[int, Artifact | EdgekitError] = {}
    groups: dict[str, deque[int]] = {}
    for index, job in enumerate(jobs):
        target = load_target(job.target)
        stored = stored_artifact(
            target, order.checkpoint, job.recipe, order.size, order.calibration_of(job), order.folder, progress
        )
        if stored is not None:
            results[index] = stored
        else:
            groups.setdefault(json.dumps(sorted(target.tools().items())), deque()).append(index)
    if groups:
        _Service(order, jobs, deque(groups.values()), results, progress).run()
    return [results[index] for index in range(len(jobs))]


PREPARE = -1
"""Instead of a job's number: working out how int8 represents the network, once for all targets."""


@dataclass
class _Worker:
    """A process, the groups of jobs that are its own, and the job it is at; None while it waits for the preparation."""

    process: subprocess.Popen[bytes]
    groups: list[deque[int]] = field(default_factory=list)
    current: int | None = None
    begun: float = field(default_factory=time.monotonic)

    def send(self, value: Any) -> None:
        """Pass it an order, a job, or None to prepare."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; the end of its answers tells
            left = memoryview(pickle.dumps(value))
            while left:
                left = left[os.write(self.process.stdin.fileno(), left) :]

    def answer(self) -> dict[str, Any] | None:
        """Its next answer; None when it died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return answer


def _start(order: Order) -> _Worker:
    with open_log(order.folder / "logs" / "conversion.log") as stray:
        worker = _Worker(
            subprocess.Popen(
                [sys.executable, "-P", "-m", "edgekit.pipeline.converter"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stray, bufsize=0, env={**ENVIRONMENT, **os.environ},
            )
        )  # fmt: skip
    worker.send(order)
    return worker


class _Service:
    """Keeps the processes busy until every group of jobs is done."""

    def __init__(
        self,
        order: Order,
        jobs: Sequence[Job],
        groups: deque[deque[int]],
        results: dict[int, Artifact | EdgekitError],
        progress: Progress,
    ) -> None:
        self.order, self.jobs, self.groups, self.results, self.progress = order, jobs, groups, results, progress
        self.workers: list[_Worker] = []
        self.exported = False
        self.told: set[str] = set()
        quantized = any(self._is_int8(index) for group in groups for index in group)
        self.prepared = not quantized or is_prepared(order)

    def run(self) -> None:
        """``results`` receives what comes of each job."""
        with selectors.DefaultSelector() as selector:
            try:
                while self.groups or self.workers:
                    while self.groups and len(self.workers) < min(SIDE_BY_SIDE, available_cores()):
                        worker = _start(self.order)
                        self.workers.append(worker)
                        assert worker.process.stdout is not None
                        selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
                        self._give(worker)
                    busy = [worker.current for worker in self.workers if worker.current is not None]
                    self.progress.update(", ".join(self._stage(index) for index in busy))
                    for key, _ in selector.select(timeout=1.0):
                        worker = key.data
                        answer = worker.answer()
                        if answer is not None and "exported" in answer:
                            self._say_exported(answer["exported"], answer["told"])
                            continue
                        if answer is not None and "lint" in answer:
                            self._say_lint(answer["lint"])
                            continue
                        self._finish(worker, answer)
                        if answer is None:
                            self.groups.extendleft(reversed(worker.groups))
                            self._dismiss(worker, selector)
                    for worker in [worker for worker in self.workers if worker.current is None]:
                        self._give(worker)
                        if worker.current is None and self.prepared:
                            self._dismiss(worker, selector)
            finally:
                for worker in self.workers:
                    _stop(worker)
                for part in ("artifacts", "cache"):
                    clean_partials(self.order.folder / part, alone=is_held(self.order.folder))

    def _is_int8(self, index: int) -> bool:
        return self.jobs[index].recipe.precision == "int8"

    def _stage(self, index: int) -> str:
        return preparing(self.order) if index == PREPARE else _stage(self.order, self.jobs[index])

    def _give(self, worker: _Worker) -> None:
        """Send it what it can do now; nothing where there is none, or all that is left waits for the preparation."""
        if not self.prepared and all(other.current != PREPARE for other in self.workers):
            worker.current = PREPARE
        else:
            ready = self._ready_in(worker.groups)
            if ready is None and (ready := self._ready_in(self.groups)) is not None:
                self.groups.remove(ready)
                worker.groups.append(ready)
            if ready is None and (ready := self._ready_of_others(worker)) is not None:
                worker.groups.append(ready)
            if ready is None:
                return
            worker.current = next(index for index in ready if self._can_do(index))
            ready.remove(worker.current)
            worker.groups = [group for group in worker.groups if group]
        worker.begun = time.monotonic()
        worker.send(None if worker.current == PREPARE else self.jobs[worker.current])

    def _can_do(self, index: int) -> bool:
        return self.prepared or not self._is_int8(index)

    def _ready_in(self, groups: Iterable[deque[int]]) -> deque[int] | None:
        return next((group for group in groups if any(self._can_do(index) for index in group)), None)

    def _ready_of_others(self, worker: _Worker) -> deque[int] | None:
        """The largest group that another process has besides one to go on with: better exported twice than left waiting."""
        found: list[tuple[_Worker, deque[int]]] = [
            (other, group)
            for other in self.workers
            if other is not worker and len(other.groups) > 1
            for group in other.groups
            if self._ready_in([group])
        ]
        if not found:
            return None
        other, largest = max(found, key=lambda pair: len(pair[1]))
        other.groups.remove(largest)
        return largest

    def _say_exported(self, seconds: float, told: Sequence[str]) -> None:
        if not self.exported:  # each process makes the graph for itself, at the same time
            self.progress.say(f"exporting {self.order.checkpoint.name} at {self.order.size}: {duration(seconds)}")
            for sentence in told:
                self.progress.say(f"{self.order.checkpoint.name}: {sentence}")
        self.exported = True

    def _say_lint(self, sentences: Sequence[str]) -> None:
        for sentence in sentences:  # of each precision of a target the same
            if sentence not in self.told:
                self.told.add(sentence)
                self.progress.say(sentence)

    def _finish(self, worker: _Worker, answer: dict[str, Any] | None) -> None:
        """Take down what came of what a process was at."""
        index, worker.current = worker.current, None
        if index is None:
            return
        took = duration(time.monotonic() - worker.begun)
        if index == PREPARE:
            log = self.order.folder / "logs" / "conversion.log"
            error = _error(answer, worker.process, "the network's values could not be looked at", log)
            if error is None:
                self.progress.say(f"{preparing(self.order)}: {took}")
            else:
                self._fail_int8(error)
            self.prepared = True
            return
        job = self.jobs[index]
        target, name = load_target(job.target), artifact_name(load_target(job.target), job.recipe, self.order.size)
        log = self.order.folder / "logs" / f"{name}.log"
        error = _error(answer, worker.process, f"{target.title} could not convert to {job.recipe.precision}", log)
        if error is None:
            artifact = load_artifact(self.order.folder / "artifacts" / name)
            self.results[index] = artifact
            self.progress.say(f"{_stage(self.order, job)}: {took}")
            if (sentence := doubt(artifact)) is not None:
                self.progress.say(sentence)
        else:
            self.results[index] = error
            self.progress.say(f"{target.title} {job.recipe.precision}: failed, {error}")

    def _fail_int8(self, error: EdgekitError) -> None:
        """Every int8 job fails where the preparation did."""
        self.progress.say(f"int8: failed, {error}")
        for group in [*self.groups, *(group for worker in self.workers for group in worker.groups)]:
            for index in [index for index in group if self._is_int8(index)]:
                self.results[index] = error
                group.remove(index)
        self.groups = deque(group for group in self.groups if group)
        for worker in self.workers:
            worker.groups = [group for group in worker.groups if group]

    def _dismiss(self, worker: _Worker, selector: selectors.BaseSelector) -> None:
        assert worker.process.stdout is not None
        selector.unregister(worker.process.stdout)
        self.workers.remove(worker)
        _stop(worker)


def preparing(order: Order) -> str:
    """What a stage of calibration is called."""
    frames = 0 if order.calibration is None else len(order.calibration.frames)
    return f"calibrating on {frames} frames at {order.size}"


def is_prepared(order: Order) -> bool:
    """Whether the quantization of an order with a calibration is there already."""
    assert order.calibration is not None
    return read_checked(quantization_path(order.checkpoint, order.calibration, order.folder)) is not None


def _stage(order: Order, job: Job) -> str:
    return stage_name(load_target(job.target), job.recipe, order.size)


def _error(
    answer: dict[str, Any] | None, process: subprocess.Popen[bytes], what: str, log: Path
) -> EdgekitError | None:
    """What a process's answer says went wrong, if anything; raises RuntimeError for a bug."""
    if answer is None:
        return ConversionError(f"{what}: its process {_end(process.wait())} (its output is in {log})")
    if "bug" in answer:
        raise RuntimeError(answer["bug"])
    if "error" in answer:
        kind = getattr(errors, answer["error"], EdgekitError)
        error: EdgekitError = kind(answer["text"])
        return error
    return None


def _end(code: int) -> str:
    """How a process ended, in words."""
    if code == -signal.SIGKILL:
        return "was killed, as happens when memory runs out: choose a smaller --size or, for int8, fewer --samples"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}: report it to the converter's makers"
    return f"ended with code {code}: report it to the converter's makers"


def _stop(worker: _Worker) -> None:
    """End the process, whatever it is doing; what it left half-written is cleaned by its name."""
    worker.process.kill()
    worker.process.wait()
    for stream in (worker.process.stdin, worker.process.stdout):
        if stream is not None:
            stream.close()
