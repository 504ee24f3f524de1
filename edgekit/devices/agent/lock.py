"""One measurement at a time on a device, whoever asks: a lock that the system releases when its holder ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOCK = Path("/tmp/edgekit-device.lock")
"""In a folder that is the machine's own, for all its users: a home may lie on a server."""


class Busy(Exception):
    """Somebody else measures; says who."""


class DeviceLock:
    """Held by an open file: a crash, a kill or a power cut releases it.

    Args:
        holder: what others are told while it is held.
        path: of the file.
    """

    def __init__(self, holder: str, path: Path = LOCK) -> None:
        self._holder = holder
        self._path = path
        self._file: int | None = None

    def take(self, seconds: float, waiting: Callable[[str], Any] = lambda _: None) -> None:
        """Wait until it is free.

        Args:
            seconds: how long to wait.
            waiting: told once who holds it.

        Raises:
            Busy: it was not free in that time.
        """
        if self._file is not None:
            return
        # Not O_CREAT on a file that is there: in a shared /tmp the system refuses that for another user's.
        try:
            file = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            os.fchmod(file, 0o666)
        until = time.monotonic() + seconds
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(file, 512, 0).decode(errors="replace").strip() or "another process"
                if not told:
                    waiting(holder)
                    told = True
                if time.monotonic() > until:
                    os.close(file)
                    raise Busy(holder) from None
                time.sleep(0.2)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{self._holder} (process {os.getpid()})".encode(), 0)
        self._file = file

    def release(self) -> None:
        """Let the next one measure."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None
