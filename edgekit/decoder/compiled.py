"""``edgekit_decode.h`` compiled by the machine's C compiler and loaded. Whatever goes wrong, the answer is a reason.

The library is kept in the user's cache folder under a name that holds the hash of everything that decides it: the
header, the compiler, the flags and the processor. A file beside it holds its own hash, so that a damaged library is
built again instead of loaded.
"""

from __future__ import annotations

import ctypes
import os
import pkgutil
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import EdgekitError
from edgekit.core.files import sha256_bytes, sha256_json, write_bytes, write_text
from edgekit.core.values import UInt8
from edgekit.decoder import plain

HEADER = Path(__file__).with_name("edgekit_decode.h")
COMPILERS = ("cc", "gcc", "clang")
OPTIMIZED = ("-O3", "-march=native"), ("-O3",)
"""Flags in the order of preference; not every compiler knows -march=native."""
COMMON = ("-ffp-contract=off", "-fPIC", "-shared", "-DEDGEKIT_DECODE_IMPLEMENTATION")
SECONDS = 120
"""A compiler that takes longer is given up."""

TYPES = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.uint8): 2, np.dtype(np.float16): 3}


def header_text() -> str:
    """The header, also where this package lies inside a zip and the file has no path."""
    data = pkgutil.get_data(__name__, HEADER.name)
    assert data is not None
    return data.decode()


class _Logits(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("classes", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("class_stride", ctypes.c_ssize_t),
        ("row_stride", ctypes.c_ssize_t),
        ("column_stride", ctypes.c_ssize_t),
    )


class _Labels(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("row_stride", ctypes.c_ssize_t),
    )


class Library:
    """The loaded header."""

    def __init__(self, file: Path) -> None:
        """Load ``file``; raises OSError or AttributeError when it is no such library."""
        handle = ctypes.CDLL(str(file))
        self._decode = handle.edgekit_decode
        self._decode.argtypes = (
            ctypes.POINTER(_Logits), ctypes.POINTER(_Labels), ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p,
            ctypes.c_size_t,
        )  # fmt: skip
        self._scratch_bytes = handle.edgekit_decode_scratch_bytes
        self._scratch_bytes.argtypes = (ctypes.POINTER(_Logits), ctypes.POINTER(_Labels))
        self._scratch_bytes.restype = ctypes.c_size_t
        self._status_text = handle.edgekit_decode_status_text
        self._status_text.restype = ctypes.c_char_p
        instructions = handle.edgekit_decode_instructions
        instructions.restype = ctypes.c_char_p
        self.instructions: str = instructions().decode()

    def decode(self, logits: NDArray[Any], out: UInt8, threads: int) -> None:
        """Write the labels of logits [C, h, w] to ``out`` uint8 [H, W], the rows shared by some threads.

        The arguments are checked by the caller. The interpreter is free for other threads meanwhile.
        """
        item = logits.dtype.itemsize
        if not logits.flags.aligned or not logits.dtype.isnative:  # aligned: strides are whole items too
            logits = logits.astype(logits.dtype.newbyteorder("="), order="C", copy=True)
        strides = [stride // item for stride in logits.strides]
        source = _Logits(logits.ctypes.data, TYPES[logits.dtype], *logits.shape, *strides)
        height, width = out.shape
        target = _Labels(out.ctypes.data, height, width, max(out.strides[0], width))
        size = self._scratch_bytes(source, target)

        def rows(first: int, end: int) -> int:
            scratch = np.empty(size, np.uint8)
            return int(self._decode(source, target, first, end, scratch.ctypes.data, size))

        parts = min(threads, height)
        edges = [height * part // parts for part in range(parts + 1)]
        waiting = [_pool(parts - 1).submit(rows, *edges[part : part + 2]) for part in range(1, parts)]
        statuses = [rows(0, edges[1]), *(part.result() for part in waiting)]
        for status in statuses:
            if status != 0:  # every argument was checked before
                raise RuntimeError(f"the compiled decoder refused its arguments: {self._status_text(status).decode()}")


@dataclass(frozen=True)
class Loaded:
    """What :func:`load` found: the library, or None, and a sentence that says which and why."""

    library: Library | None
    description: str


_lock = threading.Lock()
_loaded: Loaded | None = None
_workers: dict[tuple[int, int], ThreadPoolExecutor] = {}


def load() -> Loaded:
    """The compiled decoder, built on the first call in a process unless the cache has it. Never raises."""
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = _load()
        return _loaded


def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads that are kept. A forked child has none of its parent's, hence the process in the key."""
    with _lock:
        key = (os.getpid(), workers)
        if key not in _workers:
            _workers[key] = ThreadPoolExecutor(workers, "edgekit-decode")
        return _workers[key]


class _Unusable(Exception):
    """Why there is no compiled decoder."""


def _load() -> Loaded:
    try:
        compiler = _compiler()
        version = _run([*compiler, "--version"]).strip().partition("\n")[0]
        library = _build(compiler, version)
        found = re.search(r"\d+\.\d+(\.\d+)?", version)
        name = " ".join([Path(compiler[0]).name, *compiler[1:], *([found[0]] if found else [])])
        return Loaded(library, f"compiled by {name} ({library.instructions})")
    except _Unusable as reason:
        return Loaded(None, f"numpy: {reason}")
    except Exception as error:  # a compiler is other people's software: nothing it does may stop a decode
        return Loaded(None, f"numpy: the compiled decoder could not be made ({type(error).__name__}: {error})")


def _compiler() -> list[str]:
    """The command of the C compiler: $CC, else the first that is there."""
    if os.name != "posix":
        raise _Unusable("the decoder is compiled on Linux and macOS only")
    if chosen := shlex.split(os.environ.get("CC", "")):
        if found := shutil.which(chosen[0]):
            return [found, *chosen[1:]]
        raise _Unusable(f"$CC names '{chosen[0]}', which is not there")
    for name in COMPILERS:
        if found := shutil.which(name):
            return [found]
    raise _Unusable(f"no C compiler found (looked for {', '.join(COMPILERS)})")


def _run(command: Sequence[str], source: str | None = None) -> str:
    """What a command prints. LC_ALL, so that messages and versions read the same everywhere."""
    try:
        done = subprocess.run(
            command, input=source or "", capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unusable(f"{command[0]} could not be run ({error})") from error
    if done.returncode != 0:
        lines = (
            [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no message"]
        )
        raise _Unusable(f"{command[0]} failed ({lines[0].strip()})")
    return done.stdout


def _build(compiler: Sequence[str], version: str) -> Library:
    """The library from the cache, or compiled: with the best flags that the compiler takes."""
    header = header_text()
    commands = [[*compiler, *flags, *COMMON] for flags in OPTIMIZED]
    names = [sha256_json([header, version, command, _processor()])[:24] for command in commands]
    for name in names:
        if library := _cached(name):
            return library
    reasons = []
    for command, name in zip(commands, names):
        try:
            return _compile(command, header, name)
        except _Unusable as reason:
            reasons.append(reason)
    raise reasons[0]


def _cached(name: str) -> Library | None:
    """The library of that name from the cache, if it is there, whole, and works."""
    folder = _cache_folder()
    if folder is None:
        return None
    file = folder / f"{name}.so"
    try:
        if sha256_bytes(file.read_bytes()) != _seal(file).read_text().strip():
            return None
        return _proved(file)
    except (OSError, UnicodeDecodeError, _Unusable):
        return None


def _compile(command: Sequence[str], header: str, name: str) -> Library:
    """Compile and load; the cache gets a copy where it can be written.

    The header goes through standard input: what is compiled is what was hashed.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-decode-") as temporary:
        built = Path(temporary) / "decode.so"
        _run([*command, "-x", "c", "-o", str(built), "-"], header)
        library, folder = built.read_bytes(), _cache_folder()
        if folder is not None:
            file = folder / f"{name}.so"
            try:
                write_bytes(file, library)
                write_text(_seal(file), sha256_bytes(library) + "\n")
                return _proved(file)
            except (EdgekitError, OSError, _Unusable):
                pass  # no room, no right, or a folder that runs nothing: this process uses its own copy
        return _proved(built)  # stays mapped after its file is gone


def _seal(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _proved(file: Path) -> Library:
    """The loaded library, after it labelled a small map as numpy does."""
    try:
        library = Library(file)
    except (OSError, AttributeError) as error:
        raise _Unusable(f"the compiled decoder cannot be loaded ({error})") from error
    logits = np.random.default_rng(0).standard_normal((11, 6, 9), np.float32)
    expected, labels = np.empty((40, 70), np.uint8), np.empty((40, 70), np.uint8)
    plain.decode(logits, expected)
    library.decode(logits, labels, 1)
    if not np.array_equal(labels, expected):
        raise _Unusable("the compiled decoder gives other labels than numpy")
    return library


def _cache_folder() -> Path | None:
    """The user's cache, made if need be; None where there is none that only this user can write."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "edgekit" / "decoder"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):
        return None
    # What is loaded is run: a folder that others can write to is not trusted.
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    return folder


def _processor() -> str:
    """What -march=native depends on: the processor's features, or the machine's name where they cannot be read."""
    return "\n".join(sorted(set(_features()))) or f"{platform.node()} {platform.machine()} {platform.processor()}"


def _features() -> Iterator[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        if line.lower().startswith(("flags", "features", "model name", "cpu part")):
            yield " ".join(line.split())
