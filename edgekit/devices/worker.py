"""The process that runs one artifact and holds the clock: JSON lines in, JSON lines out.

Started fresh for each artifact, so that load time and peak memory are the artifact's own. It imports the artifact's
target and nothing else of edgekit's upper floors.

Commands: ``open`` (artifact folder, threads, frames file, scope), ``warm`` (runs, seconds), ``round`` (count), ``close``.
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

from edgekit.core.errors import EdgekitError
from edgekit.core.registry import load_target
from edgekit.core.seam import Session
from edgekit.core.values import Artifact, SessionOptions, UInt8

Opener = Callable[[Path, int | None], AbstractContextManager[Session]]
"""Opens what lies in a folder, with so many threads (None: all cores)."""


def open_artifact(folder: Path, threads: int | None) -> AbstractContextManager[Session]:
    """The artifact's own target opens it."""
    artifact = Artifact.from_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    return load_target(artifact.target).open(artifact, SessionOptions(threads=threads))


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


def _samples(session: Session, frames: UInt8, count: int, start: int, scope: str) -> list[float]:
    """Milliseconds of queries one after another: from frame in memory to label map in memory, or of the bare model."""
    taken = []
    for index in range(start, start + count):
        frame = frames[index % len(frames)][None]
        begin = time.perf_counter_ns()
        if scope == "graph":
            session.run_graph()
        else:
            session.run(frame)
        taken.append((time.perf_counter_ns() - begin) / 1e6)
    return taken


def _serve(commands: TextIO, answers: TextIO, stack: contextlib.ExitStack, opener: Opener) -> None:
    session: Session | None = None
    frames: UInt8 | None = None
    done = 0
    scope = "frame-to-labels"
    for line in commands:
        command: dict[str, Any] = json.loads(line)
        answer: dict[str, Any]
        if command["do"] == "open":
            frames = np.ascontiguousarray(np.load(command["frames"]))
            begin = time.perf_counter_ns()
            session = stack.enter_context(opener(Path(command["artifact"]), command["threads"]))
            load = (time.perf_counter_ns() - begin) / 1e6
            scope = command["scope"]
            first = _samples(session, frames, 1, 0, "frame-to-labels")[0]  # also gives the graph its input
            answer = {"load_ms": load, "first_ms": first, "settings": dict(session.settings)}
        elif session is None or frames is None:
            raise EdgekitError("the worker was given work before an artifact")
        elif command["do"] == "warm":
            taken: list[float] = []
            while len(taken) < command["runs"] or sum(taken) < 1e3 * command["seconds"]:
                taken += _samples(session, frames, 1, len(taken), scope)
            answer = {"samples_ms": taken}
        elif command["do"] == "round":
            answer = {"samples_ms": _samples(session, frames, command["count"], done, scope)}
            done += command["count"]
        else:
            answer = {"peak_rss_bytes": peak_rss_bytes()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if command["do"] == "close":
            return


def main(opener: Opener = open_artifact) -> None:
    """Serve one host over standard input and output; what runtimes print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with contextlib.ExitStack() as stack:
        try:
            _serve(sys.stdin, answers, stack, opener)
        except Exception as error:  # the host turns it into a sentence; the traceback goes to the log
            answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
            answers.flush()
            raise


if __name__ == "__main__":
    main()
