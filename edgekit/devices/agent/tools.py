"""Programs that are on the device already: TensorRT's trtexec, and what watches the board meanwhile."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.core.errors import ArtifactError, EdgekitError
from edgekit.core.progress import Progress

OUTPUT = 4 << 20
"""Bytes of a program's output that are kept: its end."""
TRTEXEC = "/usr/src/tensorrt/bin"
"""Where JetPack puts trtexec, outside of PATH."""
WATCHING = 5.0
"""Seconds that tegrastats has for its first line, before what it is to watch begins."""
PROGRAMS = ("trtexec", "tegrastats")


def find(program: str) -> str | None:
    """The path of one of :data:`PROGRAMS`, None where it is not installed."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(program, path=f"{path}{os.pathsep}{TRTEXEC}") if program in PROGRAMS else None


def gpu() -> str:
    """What an engine is built for: the GPU's name, or the board's, whose GPU is a part of it; empty without either."""
    if tool := shutil.which("nvidia-smi"):
        said = _said((tool, "--query-gpu=name,compute_cap", "--format=csv,noheader"))
        if said:
            return " ".join(said.split("\n")[0].split())[:200]
    try:
        return Path("/proc/device-tree/model").read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def jetpack() -> str | None:
    """JetPack's version, as its package says it; None without it."""
    if shutil.which("dpkg-query") is None:
        return None
    return _said(("dpkg-query", "--show", "--showformat=${Version}", "nvidia-jetpack")) or None


def banner() -> str | None:
    """The first lines of trtexec, which hold TensorRT's version; None without it."""
    path = find("trtexec")
    return None if path is None else _said((path, "--help"))[:4096]


def _said(command: Sequence[str]) -> str:
    """Standard output of a program that only tells something; empty when it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def lifeline(command: Sequence[str]) -> tuple[str, ...]:
    """The command in a process that ends with this one."""
    return (sys.executable, sys.argv[0], "exec", *command)


def run(program: str, arguments: Sequence[str], seconds: float, progress: Progress, *, watched: bool) -> dict[str, Any]:
    """Run a program to its end.

    Args:
        seconds: after which it is ended.
        watched: run tegrastats beside it, where it is installed.

    Returns:
        ``code`` (None when it took too long), ``output`` (both streams, its end), and ``tegrastats``, its output or None.

    Raises:
        EdgekitError: there is no such program.
    """
    path = find(program)
    if path is None:
        raise EdgekitError(f"{program} is not installed there: it comes with JetPack (apt install nvidia-jetpack)")
    watcher, watcher_path = None, find("tegrastats") if watched else None
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as beside:
        if watcher_path is not None:
            watcher = subprocess.Popen(
                lifeline((watcher_path, "--interval", "500")), stdin=subprocess.DEVNULL, stdout=beside, stderr=beside
            )
            until = time.monotonic() + WATCHING
            while not os.fstat(beside.fileno()).st_size and watcher.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
        process = subprocess.Popen(
            lifeline((path, *arguments)), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        begin = time.monotonic()
        try:
            while process.poll() is None and time.monotonic() - begin < seconds:
                progress.update(f"{program}: {time.monotonic() - begin:.0f} s")
                time.sleep(0.05)
            code = process.poll()
        finally:
            for running in (process, watcher):
                if running is not None and running.poll() is None:
                    running.send_signal(signal.SIGKILL)
                    running.wait()
        return {
            "code": code,
            "output": _end(output),
            "tegrastats": None if watcher is None else _end(beside),
            "program": path,
        }


def exported_times(path: Path, field: str, limit: int) -> list[float]:
    """One number of each query in a file of trtexec's ``--exportTimes``, in order.

    The file takes some 270 bytes a query, which is over a hundred megabytes where a minute has hundreds of thousands:
    it is read line by line, as trtexec writes it, and only what is asked for leaves the device.

    Args:
        field: ``computeMs``, ``latencyMs``, ``h2dMs`` or ``d2hMs``.
        limit: how many, from the first on.

    Raises:
        ArtifactError: it was cut short, or holds no such numbers.
    """
    wanted = re.compile(rf'"{re.escape(field)}"\s*:\s*([^\s,}}]+)')
    values: list[float] = []
    last = ""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            last = line.strip() or last
            try:
                values += [round(float(found), 6) for found in wanted.findall(line)]
            except ValueError:
                raise ArtifactError(f"trtexec's {path.name} holds a time that is no number: look at it") from None
    if not last.endswith("]"):
        raise ArtifactError(f"trtexec's {path.name} was cut short: free some space there and run again")
    if not values or not all(map(math.isfinite, values)):
        raise ArtifactError(f"trtexec's {path.name} holds no timed query: look at trtexec's output by hand")
    return values[:limit]


def _end(file: Any) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - OUTPUT))
    text: str = file.read().decode(errors="replace")
    return text
