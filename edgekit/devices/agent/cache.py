"""What the host sent, kept on the device by content, up to a limit; what was used least recently goes first."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.core.errors import EdgekitError
from edgekit.core.files import path_bytes, sha256_path, write_json

_KEY = re.compile(r"[0-9a-f]{16,64}")
_AGENT = re.compile(r"agent-[0-9a-f]{16}\.pyz(\.\d+\.partial)?")
DONE = "manifest.json"
"""Written last into an artifact's folder: without it the folder is not whole."""


class NoSpace(EdgekitError):
    """The device has no room for what is to be sent."""


class Cache:
    """One folder: ``incoming`` (as pushed, unchecked), ``packs``, ``artifacts``, ``engines`` and ``logs``.

    Args:
        root: made if need be, for this user only.
        limit: bytes that it may hold.
    """

    KINDS = ("packs", "artifacts", "engines")

    def __init__(self, root: Path, limit: int) -> None:
        self.root = root
        self.limit = limit
        for part in ("", "incoming", "logs", *self.KINDS):
            (root / part).mkdir(mode=0o700, parents=True, exist_ok=True)

    def pack(self, key: str) -> Path:
        """Where a pack of frames lies, or would."""
        return self.root / "packs" / f"{_checked(key)}.npz"

    def frames(self, key: str) -> Path:
        """Where frames to measure with lie, or would."""
        return self.root / "packs" / f"{_checked(key)}.npy"

    def artifact(self, key: str) -> Path:
        """An artifact's folder."""
        return self.root / "artifacts" / _checked(key)

    def engine(self, key: str) -> Path:
        """Folder of an engine that was built here."""
        return self.root / "engines" / _checked(key)

    def incoming(self, key: str) -> Path:
        """Where the host pushes the file of this hash."""
        return self.root / "incoming" / _checked(key)

    def has(self, path: Path) -> bool:
        """Whether it is there and whole; then it counts as used now."""
        there = (path / DONE if path.parent.name == "artifacts" else path).exists()
        if there:
            os.utime(path)
        return there

    def keep(self, key: str, path: Path) -> None:
        """Put a pushed file in its place, when its bytes are those of its name; it may have several places.

        Raises:
            EdgekitError: they are not; the file is gone then.
        """
        source = self.incoming(key)
        if not source.is_file() or sha256_path(source) != key:
            source.unlink(missing_ok=True)
            raise EdgekitError("a file arrived damaged: run again")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            os.link(source, path)
        except OSError:  # a file system without links
            # Beside it first: half a file under its own name would count as whole.
            partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            try:
                shutil.copyfile(source, partial)
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    def empty_incoming(self) -> None:
        """Remove what was pushed and has its place, or never got one."""
        shutil.rmtree(self.root / "incoming", ignore_errors=True)
        (self.root / "incoming").mkdir(mode=0o700)

    def keep_artifact(self, key: str, files: Mapping[str, str], manifest: Mapping[str, Any]) -> None:
        """Put an artifact together of pushed files.

        Args:
            files: sha256 by name inside the artifact's folder.

        Raises:
            EdgekitError: a name leads out of the folder, or a file arrived damaged.
        """
        folder = self.artifact(key)
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in files.items():
            parts = name.split("/")
            if not name or "\\" in name or any(part in ("", ".", "..") for part in parts):
                raise EdgekitError(f"{name!r} is no name of an artifact's file")
            self.keep(content, folder.joinpath(*parts))
        write_json(folder / DONE, manifest)

    def make_room(self, size: int) -> None:
        """Have room for so many bytes more, inside the limit and on the disk.

        Raises:
            NoSpace: even without everything else that is kept here.
        """
        self.empty_incoming()
        entries = sorted((entry for kind in self.KINDS for entry in (self.root / kind).iterdir()), key=_used)
        held = {entry: path_bytes(entry) for entry in entries}
        spare = 16 << 20  # for logs, and what a runtime writes
        while True:
            free = shutil.disk_usage(self.root).free
            if sum(held.values()) + size <= self.limit and size + spare <= free:
                return
            if not entries:
                raise NoSpace(
                    f"{size / 1e6:.0f} MB do not fit: {free / 1e6:.0f} MB are free in {self.root}, "
                    f"and cache_megabytes allows {self.limit >> 20}"
                )
            oldest = entries.pop(0)
            del held[oldest]
            _remove(oldest)

    def size(self) -> int:
        """Bytes held."""
        return path_bytes(self.root)

    def clean(self) -> int:
        """Remove everything that edgekit put here, agents too; returns how many bytes that were. Nothing else is touched."""
        freed = self.size()
        for entry in list(self.root.iterdir()):
            if entry.name in ("incoming", "logs", *self.KINDS) or _AGENT.fullmatch(entry.name):
                _remove(entry)
        try:
            self.root.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY, errno.EEXIST):  # a mount, or somebody else's file
                raise
        return freed


def _checked(key: str) -> str:
    if not isinstance(key, str) or _KEY.fullmatch(key) is None:
        raise EdgekitError(f"{key!r} is no hash")
    return key


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
