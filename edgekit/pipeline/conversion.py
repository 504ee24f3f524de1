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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.core import errors
from edgekit.core.errors import ConversionError, EdgekitError
from edgekit.core.files import clean_partials
from edgekit.core.progress import Progress, duration
from edgekit.core.registry import load_target
from edgekit.core.values import Artifact, Recipe, Size
from edgekit.devices.environment import available_cores
from edgekit.networks.checkpoint import Checkpoint
from edgekit.pipeline.artifacts import Calibration, artifact_name, load_artifact, stage_name, stored_artifact

SIDE_BY_SIDE = 2
"""Processes at a time, however many cores there are: calibrating at 1024x2048 takes some 3 GiB in each."""


@dataclass(frozen=True)
class Order:
    """What all conversions of a command have in common.

    Attributes:
        checkpoint: what is converted.
        size: input size.
        folder: the run's folder.
        command: as typed, for the manifests.
        calibration: for all that is int8. A process keeps its frames from one conversion to the next.
    """

    checkpoint: Checkpoint
    size: Size
    folder: Path
    command: str
    calibration: Calibration | None = None

    def calibration_of(self, job: Job) -> Calibration | None:
        """The frames that a job needs."""
        return self.calibration if job.recipe.precision == "int8" else None


@dataclass(frozen=True)
class Job:
    """One artifact to make."""

    target: str
    recipe: Recipe


def convert_all(order: Order, jobs: Sequence[Job], progress: Progress) -> list[Artifact | EdgekitError]:
    """Make artifacts, or find those that the same inputs gave before; one result for each job, in their order.

    Targets made by the same tools share a process, since they share exports; others run side by side. A process that dies
    fails the job it was at and no other.

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
        _serve(order, jobs, deque(groups.values()), results, progress)
    return [results[index] for index in range(len(jobs))]


@dataclass
class _Worker:
    """A process, the jobs that are its own, and the one it is at."""

    process: subprocess.Popen[bytes]
    waiting: deque[int]
    current: int = -1
    begun: float = field(default_factory=time.monotonic)

    def give(self, jobs: Sequence[Job]) -> None:
        """Send it its next job."""
        self.current = self.waiting.popleft()
        self.begun = time.monotonic()
        self._send(jobs[self.current])

    def _send(self, value: Any) -> None:
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


def _start(order: Order, waiting: deque[int]) -> _Worker:
    log = order.folder / "logs" / "conversion.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stray:
        worker = _Worker(
            subprocess.Popen(
                [sys.executable, "-P", "-m", "edgekit.pipeline.converter"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stray, bufsize=0,
            ),
            waiting,
        )  # fmt: skip
    worker._send(order)
    return worker


def _serve(
    order: Order,
    jobs: Sequence[Job],
    groups: deque[deque[int]],
    results: dict[int, Artifact | EdgekitError],
    progress: Progress,
) -> None:
    """Keep the processes busy until every group is done; ``results`` receives what comes of each job."""
    workers: list[_Worker] = []
    exported = False
    with selectors.DefaultSelector() as selector:
        try:
            while groups or workers:
                while groups and len(workers) < min(SIDE_BY_SIDE, available_cores()):
                    worker = _start(order, groups.popleft())
                    workers.append(worker)
                    assert worker.process.stdout is not None
                    selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
                    worker.give(jobs)
                progress.update(", ".join(_stage(order, jobs[worker.current]) for worker in workers))
                for key, _ in selector.select(timeout=1.0):
                    worker = key.data
                    answer = worker.answer()
                    job = jobs[worker.current]
                    if answer is not None and "exported" in answer:
                        if not exported:  # each process makes the graph for itself, at the same time
                            progress.say(
                                f"exporting {order.checkpoint.name} at {order.size}: {duration(answer['exported'])}"
                            )
                        exported = True
                        continue
                    result = _result(order, job, worker, answer)
                    results[worker.current] = result
                    if isinstance(result, Artifact):
                        progress.say(f"{_stage(order, job)}: {duration(time.monotonic() - worker.begun)}")
                    else:
                        progress.say(f"{load_target(job.target).title} {job.recipe.precision}: failed, {result}")
                    if answer is not None and not worker.waiting and groups:
                        worker.waiting = groups.popleft()
                    if answer is not None and worker.waiting:
                        worker.give(jobs)
                        continue
                    if worker.waiting:
                        groups.appendleft(worker.waiting)
                    selector.unregister(key.fileobj)
                    workers.remove(worker)
                    _stop(worker)
        finally:
            for worker in workers:
                _stop(worker)
            clean_partials(order.folder / "artifacts")


def _stage(order: Order, job: Job) -> str:
    return stage_name(load_target(job.target), job.recipe, order.size)


def _result(order: Order, job: Job, worker: _Worker, answer: dict[str, Any] | None) -> Artifact | EdgekitError:
    target = load_target(job.target)
    name = artifact_name(target, job.recipe, order.size)
    if answer is None:
        return ConversionError(
            f"{target.title} could not convert to {job.recipe.precision}: its process "
            f"{_end(worker.process.wait())} (its output is in {order.folder / 'logs' / name}.log)"
        )
    if "bug" in answer:
        raise RuntimeError(answer["bug"])
    if "error" in answer:
        kind = getattr(errors, answer["error"], EdgekitError)
        error: EdgekitError = kind(answer["text"])
        return error
    return load_artifact(order.folder / "artifacts" / name)


def _end(code: int) -> str:
    """How a process ended, in words."""
    if code == -signal.SIGKILL:
        return "was killed, as happens when memory runs out: choose a smaller --size or fewer --samples"
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
