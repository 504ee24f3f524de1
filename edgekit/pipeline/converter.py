"""The process that converts: an order and jobs in (pickles, from its parent alone; None: prepare int8), JSON lines out.

It ends with its parent, whatever it is doing.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import pickle
import queue
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from edgekit.core.errors import EdgekitError
from edgekit.core.files import make_folder
from edgekit.core.progress import Progress
from edgekit.core.registry import load_target
from edgekit.core.values import DeployableGraph
from edgekit.pipeline.artifacts import lazy_graph, make_artifact
from edgekit.pipeline.plans import Job, Order
from edgekit.pipeline.quantization import prepare


def _read(orders: BinaryIO, received: queue.SimpleQueue[Any]) -> None:
    """Pass on what the parent sends; its end, which closes the pipe, is this process's end."""
    while True:
        try:
            received.put(pickle.load(orders))
        except EOFError:
            os._exit(0)


def _use_own_scratch(folder: Path) -> None:
    """Have temporary files where the next command cleans up after a process that was killed."""
    make_folder(folder)
    tempfile.tempdir = tempfile.mkdtemp(prefix=f".scratch.{os.getpid()}-", suffix=".partial", dir=folder)
    os.environ["TMPDIR"] = tempfile.tempdir


def _work(order: Order, job: Job | None, graph: Callable[[], DeployableGraph], answer: Callable[[Any], None]) -> None:
    """Make an artifact, or without a job work out how int8 represents the network."""
    begun = time.monotonic()
    try:
        exported = graph()
        answer({"exported": time.monotonic() - begun, "told": exported.left_out})
        if job is not None:
            answer({"lint": _grave(exported, job)})
            make_artifact(load_target(job.target), order, job.recipe, graph, Progress(silent=True))
        elif order.calibration is not None:
            prepare(graph(), order.checkpoint, order.calibration, order.folder)
    except EdgekitError as error:
        answer({"error": type(error).__name__, "text": str(error)})
    except Exception:  # a bug: the parent ends the command with it
        answer({"bug": traceback.format_exc()})
    else:
        answer({"made": True})


def _grave(graph: DeployableGraph, job: Job) -> tuple[str, ...]:
    """What lint calls wrong or failing of a job; nothing where a rule stumbles, which edgekit lint shows: it stops no conversion."""
    from edgekit.export.lint import grave

    try:
        return grave(graph, job.target, job.recipe.precision)
    except Exception:
        traceback.print_exc()  # to the log
        return ()


def main() -> None:
    """Serve one parent until it closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    faulthandler.enable()  # a crash in native code leaves its place in the log
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # Not sys.stdin: what a converter forks closes that, and would wait for the lock of the thread that reads it.
    orders = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(orders, received), daemon=True).start()
    # Tracing makes millions of small objects that stay; looking through them after every 700 takes a third of the time.
    gc.set_threshold(200_000, 20, 100)
    order: Order = received.get()
    _use_own_scratch(order.folder / "artifacts")
    graph = lazy_graph(order.checkpoint, order.size, Progress(silent=True))
    while True:
        _work(order, received.get(), graph, lambda value: print(json.dumps(value), file=answers))


if __name__ == "__main__":
    main()
