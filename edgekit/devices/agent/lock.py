"""One measurement at a time on a device, whoever asks: a lock that the system releases when its holder ends."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.core.errors import EdgekitError
from edgekit.core.text import printable

LOCK = Path("/tmp/edgekit-device.lock")
"""In a folder that is the machine's own, for all its users: a home may lie on a server."""
_OPENED = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Busy(Exception):
    """Somebody else measures; says who."""


class DeviceLock:
    """Held by an open file: a crash, a kill or a power cut releases it.

    Where the file is another user's who keeps it from everybody, this user's own stands in: nobody can forbid a measurement
    by a file in a folder that all may write to.

    Args:
        holder: what others are told while it is held.
        path: of the file.

    Attributes:
        remark: after it was taken, that measurements of other users are not waited for, and why; empty where they are.
    """

    def __init__(self, holder: str, path: Path = LOCK) -> None:
        self.remark = ""
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
            EdgekitError: no file for it can be opened.
        """
        if self._file is not None:
            return
        file = self._open()
        until = time.monotonic() + seconds
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = printable(os.pread(file, 512, 0).decode(errors="replace")).strip() or "another process"
                if not told:
                    waiting(holder)
                    told = True
                if time.monotonic() > until:
                    os.close(file)
                    raise Busy(holder) from None
                time.sleep(0.2)
        self._file = file
        self._write(f"{self._holder} (process {os.getpid()})")

    def release(self) -> None:
        """Let the next one measure."""
        if self._file is not None:
            self._write("")
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        self.remark = ""
        file = _opened(self._path)
        if file is not None:
            return file
        own = _own(self._path)
        file = _opened(own)
        if file is None:
            raise EdgekitError(
                f"neither {self._path} nor {own} can be opened, by which measurements wait for one another: remove one"
            )
        self.remark = (
            f"{self._path} is not a file that this user may open: other users' measurements are not waited for"
        )
        return file

    def _write(self, text: str) -> None:
        """Say who holds it, where this user may."""
        assert self._file is not None
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, text.encode(), 0)
        except OSError:  # another user's, which may be read; the lock itself is as good
            return


def _own(path: Path) -> Path:
    """The same in this user's folder, by the machine's name, since a home may lie on a server."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~"), ".cache")
    return cache / "edgekit" / f"{path.stem}-{socket.gethostname().replace('/', '-')}.lock"


def _opened(path: Path) -> int | None:
    """The file, made where it is missing; None where it is no plain file or may not be opened."""
    # Not O_CREAT on a file that is there: in a shared /tmp the system refuses that for another user's.
    for flags in (os.O_RDWR, os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR, os.O_RDONLY):
        try:
            if flags & os.O_CREAT:
                path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, flags | _OPENED, 0o666)
        except OSError:
            continue
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:  # of another name it may be somebody's work
            os.close(file)
            return None
        if flags & os.O_CREAT:
            os.fchmod(file, 0o666)
        return file
    return None
