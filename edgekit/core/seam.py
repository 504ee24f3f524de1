"""The seam: what a target is. edgekit never asks more of one, and a target never learns which dataset it serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from edgekit.core.values import (
    Artifact,
    Converted,
    DeployableGraph,
    Engine,
    OutputKind,
    Precision,
    Quantization,
    Recipe,
    SessionOptions,
    UInt8,
)

ENTRY_POINT_GROUP = "edgekit.targets"
"""Packages offer targets under this entry-point group: ``name = "package.module:TARGET"``."""


class Session(Protocol):
    """An opened artifact, ready for frames."""

    settings: Mapping[str, Any]
    """What the engine really uses: threads, inference precision, options. Plain values."""

    def run(self, frame: UInt8) -> UInt8:
        """Label one frame: uint8 [1, H, W, 3] RGB -> uint8 [1, H, W] train ids at input resolution."""
        ...

    def run_graph(self) -> None:
        """One forward pass of the bare model on the last frame's native input (``graph`` scope)."""
        ...


@runtime_checkable
class Target(Protocol):
    """A runtime that artifacts are made for.

    Attributes:
        name: as typed after ``--target``; also the entry point's name.
        title: as shown to people.
        precisions: what it can convert to; the first float one is the default of ``convert``.
        output: form of its artifacts where none is asked for: the faster one from frame to label map.
        device_pages: report pages it stands on besides ``local`` (``apple``, ``jetson``, ``android``).
    """

    name: str
    title: str
    precisions: tuple[Precision, ...]
    output: OutputKind
    device_pages: tuple[str, ...]

    def missing(self) -> str | None:
        """None when it can work here, or the sentence that mends it. Must not import heavy packages."""
        ...

    def tools(self) -> Mapping[str, str]:
        """Versions of the packages that decide what ``convert`` writes; part of an artifact's identity."""
        ...

    def engine(self) -> Engine:
        """What executes artifacts on this machine and how far its numbers count."""
        ...

    def convert(
        self, graph: DeployableGraph, recipe: Recipe, quantization: Quantization | None, folder: Path
    ) -> Converted:
        """Write the model into ``folder`` (exists, empty). ``quantization`` is given exactly for int8.

        Raises:
            ConversionError, TargetError: with one sentence for the user.
        """
        ...

    def open(self, artifact: Artifact, options: SessionOptions) -> AbstractContextManager[Session]:
        """Load the artifact for running here."""
        ...


@runtime_checkable
class Inspectable(Protocol):
    """A target that shows what its artifacts compute on the way; ``edgekit compare`` asks for it, nothing else does."""

    def show_tensors(self, artifact: Artifact, frame: UInt8, look: Callable[[str, NDArray[Any]], None]) -> None:
        """Run a frame, uint8 [1, H, W, 3], and show the name and the values of every tensor, int8 ones as the numbers they mean.

        Maps have their channels first or last. ``look`` keeps no values.
        """
        ...
