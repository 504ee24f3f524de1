"""The process that runs one artifact and holds the clock: JSON lines in, JSON lines out.

Started fresh for each artifact, so that load time and peak memory are the artifact's own. It is the same on this
machine and on a device; only what opens the artifact differs: here its target, there the runtime alone. It runs on
Python 3.9 with numpy.

Commands: ``open`` (artifact folder, threads, compute units, scope, and a frames file where latency is measured), ``warm``
(runs, seconds), ``round`` (count), ``span`` (seconds), ``evaluate`` (a pack of frames), ``label`` (the frame in the first part of a
file that both sides map, whose rest takes its labels), ``close``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from edgekit.core.errors import ArtifactError, EdgekitError
from edgekit.core.measurement import Counted
from edgekit.core.record import plain
from edgekit.core.seam import Session
from edgekit.core.values import Artifact, ClassSet, SessionOptions, UInt8
from edgekit.devices.lifeline import end_with_parent
from edgekit.metrics.scores import count_frame, sparse
from edgekit.runtimes.common import refuse_nan

Opener = Callable[[Path, SessionOptions], AbstractContextManager[Session]]
"""Opens what lies in a folder."""


def open_artifact(folder: Path, options: SessionOptions) -> AbstractContextManager[Session]:
    """The artifact's own target opens it."""
    return _open_by_target(read_artifact(folder), options)


def _open_by_target(artifact: Artifact, options: SessionOptions) -> AbstractContextManager[Session]:
    from edgekit.core.registry import load_target

    return load_target(artifact.target).open(artifact, options)


def open_runtime(folder: Path, options: SessionOptions) -> AbstractContextManager[Session]:
    """The runtime that the artifact was made for opens it, as on a device, where no target is."""
    from edgekit.runtimes import open_session

    return open_session(read_artifact(folder), options)


def read_artifact(folder: Path) -> Artifact:
    """The artifact of a folder; its files are not looked at."""
    return Artifact.from_manifest(folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")))


def peak_rss_bytes() -> int | None:
    """The most memory this process held at once; None where the system does not say."""
    try:
        # Not getrusage: its maximum survives exec and would report the parent's memory.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    except ImportError:
        return None


class _Run:
    """An opened artifact and what it is given."""

    def __init__(self, session: Session, frames: UInt8 | None, scope: str) -> None:
        self.session = session
        self._frames = frames
        self._scope = scope
        self._done = 0

    def sample(self, scope: str | None = None) -> float:
        """Milliseconds of one query: from frame in memory to label map in memory, or of the bare model."""
        assert self._frames is not None, "the worker was opened without frames"
        frame = self._frames[self._done % len(self._frames)][None]
        self._done += 1
        begin = time.perf_counter_ns()
        if (scope or self._scope) == "graph":
            self.session.run_graph()
        else:
            self.session.run(frame)
        return (time.perf_counter_ns() - begin) / 1e6


def _open(command: dict[str, Any], stack: contextlib.ExitStack, opener: Opener) -> tuple[_Run, dict[str, Any]]:
    given = command.get("frames")
    frames: UInt8 | None = None if given is None else np.ascontiguousarray(np.load(given))
    # Where no times are taken every frame's logits are looked at.
    options = SessionOptions(
        command["threads"], command.get("compute_units", "ALL"), refuse_nan if given is None else None
    )
    folder, described = Path(command["artifact"]), command.get("described")
    begin = time.perf_counter_ns()
    if described is None:
        session = stack.enter_context(opener(folder, options))
    else:
        session = stack.enter_context(_open_by_target(Artifact.from_manifest(folder, described), options))
    answer: dict[str, Any] = {"load_ms": (time.perf_counter_ns() - begin) / 1e6}
    run = _Run(session, frames, command.get("scope", "frame-to-labels"))
    if frames is not None:
        answer["first_ms"] = run.sample("frame-to-labels")  # also gives the graph its input
    answer["settings"] = dict(session.settings)
    return run, answer


def count_pack(label: Callable[[UInt8], UInt8], path: Path, classes: ClassSet) -> list[Counted]:
    """Label a pack's frames and count them: per frame its counts, and the share labelled as float PyTorch does.

    Args:
        label: uint8 [1, H, W, 3] -> uint8 [1, H, W].
        path: an ``.npz`` of ``<i>.image`` uint8 [H, W, 3], ``<i>.labels`` uint8 [h, w], ``<i>.rows`` and ``<i>.columns``
            (which row and column of the label map each of the truth's is compared with), and where there are any
            ``<i>.instances`` int32 [h, w] and ``<i>.reference`` uint8 [H, W].
    """
    frames = []
    with np.load(path, allow_pickle=False) as pack:
        for index in range(sum(name.endswith(".image") for name in pack.files)):
            image = pack[f"{index}.image"][None]
            labels = label(image)[0]
            if labels.shape != image.shape[1:3]:
                raise ArtifactError(f"labels {labels.shape} came back for a frame of {image.shape[1:3]}")
            native = labels[pack[f"{index}.rows"][:, None], pack[f"{index}.columns"]]
            instances = pack[f"{index}.instances"] if f"{index}.instances" in pack.files else None
            counts = sparse(count_frame(native, pack[f"{index}.labels"], instances, classes))
            agreement = None
            if f"{index}.reference" in pack.files:
                agreement = float((labels == pack[f"{index}.reference"]).mean())
            frames.append(Counted(counts, agreement))
    return frames


def _label(session: Session, command: dict[str, Any]) -> None:
    """Label the frame, uint8 [1, H, W, 3], that a mapped file begins with; its labels, uint8 [1, H, W], follow there."""
    height, width = command["size"]
    shared = np.memmap(command["shared"], np.uint8, "r+")
    frame = shared[: height * width * 3].reshape(1, height, width, 3)
    labels = session.run(np.array(frame))
    if labels.shape != (1, height, width):
        raise ArtifactError(
            f"labels {labels.shape} came back for input {height}x{width}: this target breaks the session contract"
        )
    shared[height * width * 3 :] = labels.reshape(-1)


def read_classes(document: dict[str, Any]) -> ClassSet:
    """The classes that JSON carried."""
    return ClassSet(**{key: _tuples(value) for key, value in document.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _serve(commands: TextIO, answers: TextIO, stack: contextlib.ExitStack, opener: Opener) -> None:
    run: _Run | None = None
    for line in commands:
        command: dict[str, Any] = json.loads(line)
        answer: dict[str, Any]
        if command["do"] == "open":
            run, answer = _open(command, stack, opener)
        elif run is None:
            raise EdgekitError("the worker was given work before an artifact")
        elif command["do"] == "warm":
            taken: list[float] = []
            while len(taken) < command["runs"] or sum(taken) < 1e3 * command["seconds"]:
                taken.append(run.sample())
            answer = {"samples_ms": taken}
        elif command["do"] == "round":
            answer = {"samples_ms": [run.sample() for _ in range(command["count"])]}
        elif command["do"] == "span":
            taken = []
            until = time.perf_counter() + command["seconds"]
            while not taken or time.perf_counter() < until:
                taken.append(run.sample())
            answer = {"samples_ms": taken}
        elif command["do"] == "evaluate":
            frames = count_pack(run.session.run, Path(command["pack"]), read_classes(command["classes"]))
            answer = {"frames": plain(frames)}
        elif command["do"] == "label":
            _label(run.session, command)
            answer = {}
        else:
            answer = {"peak_rss_bytes": peak_rss_bytes()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if command["do"] == "close":
            return


def main(opener: Opener = open_artifact) -> None:
    """Serve one host over standard input and output; what runtimes print goes to standard error."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with contextlib.ExitStack() as stack:
        try:
            _serve(sys.stdin, answers, stack, opener)
        except Exception as error:  # the host turns it into a sentence; the traceback goes to the log
            said = str(error) if isinstance(error, EdgekitError) else f"{type(error).__name__}: {error}"
            answers.write(json.dumps({"error": said}) + "\n")
            answers.flush()
            raise


if __name__ == "__main__":
    main()
