"""A folder that one command at a time works in: a lock that the system releases when its holder ends, however it ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgekit.core.errors import EdgekitError
from edgekit.core.files import disk_errors, make_folder

LOCK = ".edgekit.lock"
"""The file in a folder that is held. An open file's lock crosses containers and, where the disk keeps such locks, hosts."""
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: dict[str, int] = {}
"""Folders that this process holds, and how many times over."""

_files: set[int] = set()


def _let_go() -> None:
    """In a process that was forked and not started anew, a loader's of training for one: only the first one holds the folder."""
    for file in _files:
        os.close(file)
    _files.clear()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def is_held(folder: Path) -> bool:
    """Whether this process holds a folder or one that it lies in, so that nobody else writes there."""
    place = folder.resolve()
    return any(str(part) in _held for part in (place, *place.parents))


@contextmanager
def held(folder: Path, command: str, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Work in a folder alone. It is made where it is missing; one that was made for nothing is gone again afterwards.

    On a disk that keeps no locks, and on Windows, it is not held, and no more is promised than by temporary names.

    Args:
        command: as typed, for whoever finds it held.
        waiting: told once who holds it, after which it is waited for; without it that is an error.

    Raises:
        EdgekitError: another process holds it; the message says which.
    """
    place = str(folder.resolve())
    if place in _held:
        _held[place] += 1
        try:
            yield
        finally:
            _held[place] -= 1
        return
    made = not folder.exists()
    file = _take(folder, command, waiting)
    if file is None:
        yield
        return
    _held[place] = 1
    _files.add(file)
    try:
        yield
    finally:
        del _held[place]
        _files.discard(file)
        with suppress(OSError):  # while it is held: who waits sees that it is another file then
            os.unlink(folder / LOCK)
            if made and not os.listdir(folder):
                os.rmdir(folder)
        os.close(file)


def _take(folder: Path, command: str, waiting: Callable[[str], None] | None) -> int | None:
    """An open file with its lock; None where there are no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    told = False
    while True:
        make_folder(folder)
        with disk_errors(folder):
            file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            os.close(file)
            if waiting is None:
                raise EdgekitError(
                    f"{folder} is in use by {holder}: wait until it is done, or give this command another --out"
                ) from None
            if not told:
                waiting(holder)
                told = True
            time.sleep(0.2)
            continue
        except OSError as error:
            os.close(file)
            if error.errno in _NO_LOCKS:
                return None
            raise
        if not _is_at(file, folder / LOCK):  # its last holder took it away meanwhile
            os.close(file)
            continue
        said = {
            "command": command,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%H:%M:%S"),
        }
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(said).encode(), 0)
        return file


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(file: int) -> str:
    """Who holds a folder, in words; what the file says is only shown."""
    try:
        said = json.loads(os.pread(file, 65536, 0).decode())
        return f"{shown(said['command'])} (process {int(said['process'])} on {shown(said['host'])}, since {shown(said['since'])})"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another command"


def shown(text: object) -> str:
    """A file's text, cut to what a sentence bears."""
    line = " ".join(str(text).split())
    return line if len(line) <= 200 else f"{line[:200]}..."
