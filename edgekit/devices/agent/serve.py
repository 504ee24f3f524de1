"""The agent's talk with the host: one JSON object a line each way, over its standard input and output."""

from __future__ import annotations

import errno
import json
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from edgekit.core.errors import ArtifactError, EdgekitError, TargetError
from edgekit.core.progress import Progress
from edgekit.core.text import parse_json
from edgekit.devices.agent import EXIT_LOST, MARK, SILENCE
from edgekit.devices.agent.cache import NoSpace
from edgekit.devices.agent.commands import COMMANDS, Agent
from edgekit.devices.agent.lock import Busy


class Talk:
    """Lines out, from any thread.

    Args:
        token: tells this talk's lines from anything else that is written to the same stream.
    """

    def __init__(self, token: str) -> None:
        self._start = f"{MARK}{token}:"
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
        self._lock = threading.Lock()
        self.number: Any = None
        """The number of the command that is being carried out."""
        os.dup2(2, 1)  # what runtimes print is no part of the talk

    def say(self, **content: Any) -> None:
        """One line about the command in hand; ends the process when nobody listens any more."""
        line = self._start + json.dumps({"id": self.number, **content}, allow_nan=False) + "\n"
        try:
            with self._lock:
                self._out.write(line)
                self._out.flush()
        except (BrokenPipeError, ConnectionError, OSError):
            os._exit(EXIT_LOST)  # workers and tools end with this process

    def event(self, **content: Any) -> None:
        """Something on the way."""
        self.say(event=content)


class Told(Progress):
    """Progress that the host shows."""

    def __init__(self, talk: Talk) -> None:
        super().__init__(silent=True)
        self._talk = talk
        self._last = 0.0

    def say(self, text: str) -> None:
        """A finished line."""
        self._talk.event(say=text)

    def update(self, text: str) -> None:
        """The line of the moment, at most one each second."""
        now = time.monotonic()
        if now - self._last > 1:
            self._last = now
            self._talk.event(progress=text)


def read_command(line: str) -> dict[str, Any] | None:
    """A line of the host's; None for what is no command, on which this side of the talk must not end."""
    try:
        command = parse_json(line)
    except ValueError:
        return None
    return command if isinstance(command, dict) and isinstance(command.get("do"), str) else None


def _listen(talk: Talk, commands: queue.Queue[Any], silence: float) -> None:
    """Lines in; the process ends with the host, also when only the network went."""
    heard = [time.monotonic()]

    def watch() -> None:
        while time.monotonic() - heard[0] < silence:
            time.sleep(min(1.0, silence / 4))
        os._exit(EXIT_LOST)

    threading.Thread(target=watch, daemon=True).start()
    for line in sys.stdin:
        heard[0] = time.monotonic()
        command = read_command(line)
        if command is None:
            continue
        if command.get("do") == "alive":
            talk.event(alive=True)
        else:
            commands.put(command)
    os._exit(EXIT_LOST if commands.unfinished_tasks else 0)


def serve(token: str, root: str, limit: int, version: str, silence: float = SILENCE) -> None:
    """Carry out the host's commands until it is gone.

    Args:
        token: of this talk.
        root: the cache's folder.
        limit: bytes that it may hold.
        version: of the edgekit that packed this agent.
        silence: seconds without a line after which the host counts as gone.
    """
    talk = Talk(token)
    commands: queue.Queue[Any] = queue.Queue()
    agent = Agent(talk, Told(talk), Path(root), limit, version)
    threading.Thread(target=_listen, args=(talk, commands, silence), daemon=True).start()
    while True:
        command = commands.get()
        talk.number = command.get("id")
        try:
            if command["do"] not in COMMANDS:
                raise EdgekitError(f"this agent does not know {command['do']!r:.60}")
            answer: dict[str, Any] = {"done": COMMANDS[command["do"]](agent, command)}
        except Exception as error:
            kind, text = _described(error)
            if kind == "bug":
                traceback.print_exc()
            answer = {"error": {"kind": kind, "text": text}}
        commands.task_done()
        talk.say(**answer)
        talk.number = None


def _described(error: Exception) -> tuple[str, str]:
    for kind, types in (("space", NoSpace), ("busy", Busy), ("missing", TargetError), ("artifact", ArtifactError)):
        if isinstance(error, types):
            return kind, str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "space", f"no space left on the device ({error.filename or 'no file named'})"
    if isinstance(error, EdgekitError):
        return "refused", str(error)
    return "bug", f"{type(error).__name__}: {error}"
