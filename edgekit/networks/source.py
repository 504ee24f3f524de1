"""What makes a network of the user's own: the source that it is read from, and the files that it reads while it is made."""

from __future__ import annotations

import ast
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit.core.files import sha256_json, sha256_path

OWN_PACKAGES = ("edgekit", "targets", "calibration", "reports")
_SOURCE = (".py", ".pyc", ".so", ".pth")
"""What importing opens, some of it only the first time; :func:`code_of` looks at source."""


def code_of(reference: str) -> str:
    """Hash of the source that makes a user's network: its module's, and that of all that one imports, anywhere in a file and in
    turn, from the same package or from beside it. Files are read and nothing is imported: the hash is the same whatever a command
    has imported so far. An installed package counts where the network is from it, edgekit's own never: its version is in every key.
    """
    module = reference.partition(":")[0]
    place = getattr(sys.modules[module], "__file__", None)
    if place is None:
        return sha256_json([])
    first = Path(os.path.abspath(place))  # a link keeps its own name, by which it is imported
    root = first.parents[module.count(".") + (first.stem == "__init__")]
    installed = not {"site-packages", "dist-packages"}.isdisjoint(root.parts)
    found: dict[str, str] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        top = name.partition(".")[0]
        if top != module.partition(".")[0] and (installed or top in OWN_PACKAGES):
            continue
        for file in _sources_of(root, name):
            where = file.relative_to(root)
            if where.as_posix() not in found:
                found[where.as_posix()] = sha256_path(file)
                pending += _imports_of(file, where.parts[:-1])
    return sha256_json(sorted(found.items()))


def _sources_of(root: Path, module: str) -> list[Path]:
    """Files below a folder that a module of this name, and the packages it is in, are read from; none where it lies elsewhere."""
    files: list[Path] = []
    folder = root
    for part in module.split("."):
        files += [folder / f"{part}.py", folder / part / "__init__.py", folder / f"{part}.so"]
        files += sorted(folder.glob(f"{part}.*.so"))
        folder /= part
    return [file for file in files if file.is_file()]


def _imports_of(file: Path, package: tuple[str, ...]) -> list[str]:
    """Names that the source of a module in a package may import; of ``from a import b``, ``a.b`` too, which may be a module.

    Where it imports by names that only running it would tell, every module of its package.
    """
    if file.suffix != ".py":
        return []
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # which nothing that runs has imported
        return []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}".strip(".") for alias in node.names if alias.name != "*"] + [base]
        elif isinstance(node, ast.Name | ast.Attribute) and package:
            called = node.id if isinstance(node, ast.Name) else node.attr
            if called in ("import_module", "__import__", "iter_modules", "walk_packages"):
                inside = (path.relative_to(file.parent).with_suffix("").parts for path in file.parent.rglob("*.py"))
                names += [".".join([*package, *parts]) for parts in inside]
    return [name for name in names if name]


class _Watch:
    """Files that one thread opens to read, as Python's audit events tell; a hook of these cannot be taken away again."""

    def __init__(self) -> None:
        self.thread: int | None = None
        self.opened: set[str] = set()
        self.written: set[str] = set()
        self._hooked = False

    def hook(self) -> None:
        """Listen from now on, once for the process."""
        if not self._hooked:
            self._hooked = True
            sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or self.thread != threading.get_ident():
            return
        path, mode, flags = arguments
        if (
            not isinstance(path, str | bytes | os.PathLike) or not _asked_by_own_code()
        ):  # or a descriptor, opened before
            return
        writes = (isinstance(mode, str) and not set("wax+").isdisjoint(mode)) or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) != 0
        )
        (self.written if writes else self.opened).add(os.path.abspath(os.fsdecode(path)))


_watch = _Watch()
_read_before: dict[str, set[str]] = {}
"""The files that each factory has read so far in this process: its module reads what it does on import only once."""


@contextmanager
def files_read_by(reference: str) -> Iterator[list[tuple[str, str]]]:
    """A list that holds, after the block, the names and hashes of the data files that were read in it, a ``cfg.json`` for one.

    What belongs to Python or to an installed package is left out: versions of those are in every key.
    """
    found: list[tuple[str, str]] = []
    _watch.hook()
    _watch.opened, _watch.written = set(), set()
    _watch.thread = threading.get_ident()
    try:
        yield found
    finally:
        _watch.thread = None
    known = _read_before.setdefault(reference, set())
    known |= {path for path in _watch.opened - _watch.written if _is_data(path)}
    found += sorted((os.path.basename(path), sha256_path(Path(path))) for path in known if os.path.isfile(path))


def _asked_by_own_code() -> bool:
    """Whether the user's code asked for what is being opened, itself or through a library, and no import of a library did."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<frozen importlib"):
            return False
        if not name.startswith("<") and not _is_installed(name):
            return True
        frame = frame.f_back  # type: ignore[assignment]  # None at the end, which the loop looks for
    return False


def _is_installed(path: str) -> bool:
    """Whether a file is Python's, an installed package's or edgekit's own: of those versions are in every key."""
    return path.startswith(_INSTALLED) or not {"site-packages", "dist-packages"}.isdisjoint(Path(path).parts)


_INSTALLED = (
    os.path.dirname(os.__file__), sys.prefix + os.sep, sys.base_prefix + os.sep,
    str(Path(__file__).parent.parent) + os.sep,
)  # fmt: skip


def _is_data(path: str) -> bool:
    if path.endswith(_SOURCE) or "__pycache__" in path or path.startswith(("/proc/", "/sys/", "/dev/")):
        return False
    return os.path.isfile(path) and not _is_installed(path)
