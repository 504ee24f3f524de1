"""Targets by entry point, imported on first use."""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version

from edgekit.core.errors import TargetError, UsageError
from edgekit.core.seam import ENTRY_POINT_GROUP, Target


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name)}


def target_names() -> tuple[str, ...]:
    """Names of all installed targets, edgekit's own and those of other packages, sorted."""
    return tuple(_entries())


@cache
def load_target(name: str) -> Target:
    """The target of this name.

    Raises:
        UsageError: no such target.
        TargetError: its package is broken.
    """
    entry = _entries().get(name)
    if entry is None:
        raise UsageError(f"there is no target '{name}': choose from {', '.join(target_names())}")
    try:
        target = entry.load()
    except Exception as error:  # a plug-in's import may fail in any way; the user needs its name and cause
        raise TargetError(
            f"target '{name}' ({entry.value}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(target, Target):
        raise TargetError(
            f"target '{name}' ({entry.value}) does not implement edgekit.Target: see docs/architecture.md"
        )
    _describes_itself(name, entry, target)
    return target


def _describes_itself(name: str, entry: EntryPoint, target: Target) -> None:
    """Ask a plug-in once what every command asks it, so that one that raises is as broken as one that cannot be imported."""
    if entry.value.partition(":")[0].startswith("targets."):  # edgekit's own
        return
    try:
        target.tools()
        if target.missing() is None:
            target.engine()
    except Exception as error:  # as with its import
        raise TargetError(
            f"target '{name}' ({entry.value}) cannot say what it needs: {type(error).__name__}: {error}"
        ) from error


def require(name: str) -> Target:
    """The target of this name, able to work here.

    Raises:
        TargetError: with the sentence that mends it.
    """
    target = load_target(name)
    sentence = target.missing()
    if sentence is not None:
        raise TargetError(f"target '{name}' cannot work here: {sentence}")
    return target


def missing_packages(modules: tuple[str, ...], extra: str) -> str | None:
    """None when all ``modules`` can be imported, else the sentence with the install command. Imports none of them."""
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    if not absent:
        return None
    return f"{', '.join(absent)} not installed: run pip install 'edgekit[{extra}]'"


def versions(*packages: str) -> dict[str, str]:
    """Installed versions by distribution name; absent ones are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
