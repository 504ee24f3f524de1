"""Progress lines for people: one line a stage, with the time left where it can be known, on a stream of their own."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from edgekit.core.files import open_log
from edgekit.core.text import printable


def duration(seconds: float) -> str:
    """``7 s``, ``2 min 05 s``, ``1 h 02 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Writes to the standard error of the moment it was made, whatever is redirected later."""

    def __init__(self, *, silent: bool = False) -> None:
        self._stream: TextIO | None = None
        if not silent:
            try:
                # A terminal that has no such letter gets its code.
                self._stream = os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1, errors="backslashreplace")
            except (OSError, ValueError, AttributeError):  # a test or a notebook without a real standard error
                self._stream = sys.stderr
        self._terminal = self._stream is not None and self._stream.isatty()
        # Elsewhere than in a terminal work that takes less than the interval needs no line of its own.
        self._shown = 0.0 if self._terminal else time.monotonic()
        self._open_line = False

    def say(self, text: str) -> None:
        """One finished line."""
        if self._stream is None:
            return
        self._clear()
        self._stream.write(printable(text) + "\n")
        self._stream.flush()

    def update(self, text: str) -> None:
        """The line of the moment: replaced in a terminal, written every 30 seconds elsewhere."""
        if self._stream is None:
            return
        now = time.monotonic()
        if now - self._shown < (0.2 if self._terminal else 30.0):
            return
        self._shown = now
        text = printable(text)
        if self._terminal:
            self._stream.write(f"\r\x1b[K{text[:100]}")
            self._stream.flush()
            self._open_line = True
        else:
            self._stream.write(text + "\n")

    def _clear(self) -> None:
        if self._open_line and self._stream is not None:
            self._stream.write("\r\x1b[K")
            self._open_line = False

    @contextmanager
    def stage(self, text: str) -> Iterator[None]:
        """A stage of unknown length: announced in a terminal, a line with its time when it is done."""
        started = time.monotonic()
        if self._terminal:
            self._shown = 0.0
            self.update(f"{text} ...")
        yield
        self.say(f"{text}: {duration(time.monotonic() - started)}")
        self._shown = time.monotonic()

    def count(self, text: str, done: int, total: int, started: float) -> None:
        """Progress of a counted stage with the time left; ``started`` is of ``time.monotonic``."""
        elapsed = time.monotonic() - started
        left = f", {duration(elapsed / done * (total - done))} left" if done else ""
        self.update(f"{text}: {done} of {total}{left}")


@contextmanager
def noise_to(log: Path) -> Iterator[None]:
    """Everything that is printed inside, by Python or by native code, goes to the end of ``log``."""
    with open_log(log) as file:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed from the start
                stream.flush()
        saved = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        python_streams = sys.stdout, sys.stderr
        text = os.fdopen(os.dup(file.fileno()), "w", buffering=1, errors="replace")
        sys.stdout = sys.stderr = text  # under a test's capture the Python streams are not the descriptors
        try:
            yield
        finally:
            text.flush()
            sys.stdout, sys.stderr = python_streams
            text.close()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])
