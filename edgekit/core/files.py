"""Writing so that a kill at any moment leaves the old file, the new file, or nothing; and hashing of contents."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from edgekit.core.errors import EdgekitError
from edgekit.core.text import parse_json

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
MOST_JSON = 1 << 30
"""Bytes of a JSON file: counts of thousands of frames take some hundred megabytes."""
DISK_ERRORS = (*_FULL, *_REFUSED)
"""What an OSError says when the place, not the work, is at fault."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one sentence that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise EdgekitError(f"no space left while writing {path}: free some disk space and run again") from error
        if error.errno in _REFUSED:
            raise EdgekitError(
                f"{path} cannot be written ({error.strerror}): make its folder writable, or choose another place with --out"
            ) from error
        raise


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing.

    Raises:
        EdgekitError: the disk is full, the place is not writable, or a file stands in the way.
    """
    with disk_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise EdgekitError(
                f"{path} cannot be made a folder, since a file stands in its way: choose another place with --out"
            ) from error


def open_log(path: Path) -> BinaryIO:
    """A file to append to, in a folder that is made where it is missing.

    Raises:
        EdgekitError: as :func:`make_folder`.
    """
    make_folder(path.parent)
    with disk_errors(path):
        return path.open("ab")


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` through a temporary name and a rename.

    Raises:
        EdgekitError: the disk is full or the place is not writable.
    """
    make_folder(path.parent)
    with disk_errors(path):
        handle, temporary = tempfile.mkstemp(prefix=_partial_prefix(path), suffix=".partial", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp makes 0600, whatever the user lets others see
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, document: Any) -> None:
    """Write one JSON document atomically, with a newline at its end; NaN is refused rather than written."""
    write_text(path, json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON document.

    Raises:
        EdgekitError: the file is not JSON (cut short by hand or by another tool).
    """
    try:
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"it is larger than {MOST_JSON >> 20} MiB")
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise EdgekitError(f"{path} is not valid JSON ({error}): delete it and run again") from error


SEAL = "seal"
"""The key of a document's own hash."""


def write_sealed(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON object with the hash of what it says, so that one that was edited since is known."""
    write_json(path, {**document, SEAL: sha256_json(document)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What :func:`write_sealed` wrote, without the seal.

    Raises:
        EdgekitError: it is not JSON, has no seal, or was changed after it was written.
    """
    document = read_json(path)
    seal = document.pop(SEAL, None) if isinstance(document, dict) else None
    if seal is None or seal != sha256_json(document):
        raise EdgekitError(f"{path} was changed after it was written (its seal does not fit): delete it and run again")
    return dict(document)


def write_checked(path: Path, data: bytes) -> None:
    """Write bytes atomically, and their sha256 beside them; first, so that a file without its own is not believed."""
    write_text(_digest_of(path), sha256_bytes(data))
    write_bytes(path, data)


def read_checked(path: Path) -> bytes | None:
    """What :func:`write_checked` wrote; None where it is not there, or damaged."""
    try:
        data, digest = path.read_bytes(), _digest_of(path).read_bytes()
    except OSError:
        return None
    return data if sha256_bytes(data).encode() == digest else None


def _digest_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


@contextmanager
def new_folder(path: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block succeeds and vanishes when it does not.

    Args:
        keep: of a name that says what is inside: a folder that another command has made meanwhile, and may be reading, stays.
    """
    make_folder(path.parent)
    with disk_errors(path):
        temporary = Path(tempfile.mkdtemp(prefix=_partial_prefix(path), suffix=".partial", dir=path.parent))
        try:
            yield temporary
            _to_disk(temporary)
            os.chmod(temporary, 0o777 & ~_UMASK)
            if keep and path.exists():
                shutil.rmtree(temporary)
            else:
                _put_in_place(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


_UMASK = os.umask(0o077)
"""What the user withholds from others in new files. Asking sets it, so it is asked once, before there are threads."""
os.umask(_UMASK)


def _to_disk(folder: Path) -> None:
    """Have the disk keep every file of a folder before a rename says that it is whole."""
    for entry in folder.rglob("*"):
        if entry.is_file() and not entry.is_symlink():
            with entry.open("rb") as file:
                os.fsync(file.fileno())


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename a folder over another one, which is set aside first; where two commands do so at once, both get through."""
    while True:
        aside = Path(tempfile.mkdtemp(prefix=_partial_prefix(path), suffix=".partial", dir=path.parent))
        try:
            with suppress(FileNotFoundError):
                os.replace(path, aside)
            os.replace(temporary, path)
            return
        except BaseException as error:
            if not isinstance(error, OSError) or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                with suppress(OSError):  # interrupted between the two: what was there is put back
                    if any(aside.iterdir()):
                        os.replace(aside, path)
                raise  # else the other command's came in between
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _partial_prefix(path: Path) -> str:
    return f".{path.name}.{os.getpid()}-"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's process
        return True
    return process != os.getpid()


def clean_partials(folder: Path, *, alone: bool = False) -> None:
    """Remove what a killed run (SIGKILL, power cut) left half-written directly inside ``folder``.

    Args:
        alone: nobody else writes there, so that all of it goes. Otherwise what a living process of this system is writing
            stays; processes of another container or host cannot be told from dead ones.
    """
    if not folder.is_dir():
        return
    for entry in folder.glob(".*.partial"):
        owner = re.search(r"\.(\d+)-[^.]*\.partial$", entry.name)
        if not alone and owner is not None and _is_alive(int(owner[1])):
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def sha256_bytes(data: bytes | memoryview) -> str:
    """Hexadecimal sha256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(document: Any) -> str:
    """Hash of a JSON document that does not depend on the order of its keys."""
    return sha256_bytes(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def sha256_path(path: Path) -> str:
    """Hash of a file's bytes, or of a folder's relative names and bytes in sorted order (an .mlpackage is a folder)."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
            digest.update(bytes.fromhex(sha256_path(file)))
        return digest.hexdigest()
    with path.open("rb") as file_object:
        return sha256_stream(file_object)


def sha256_stream(file: BinaryIO) -> str:
    """Hash of what is left to read in an opened file."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def path_bytes(path: Path) -> int:
    """Size in bytes of a file, or of all files under a folder; what its links lead to lies elsewhere and is not counted."""
    if path.is_dir():
        return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file() and not entry.is_symlink())
    return path.stat().st_size


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON-ready copy of a mapping of plain values."""
    copy: dict[str, Any] = json.loads(json.dumps(value))
    return copy
