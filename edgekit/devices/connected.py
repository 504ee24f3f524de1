"""A device that is connected, whatever the way to it: what stages ask of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgekit.core.contract import Terms
from edgekit.core.errors import EdgekitError
from edgekit.core.measurement import Counted, Environment, Sustained, Timed
from edgekit.core.progress import Progress
from edgekit.core.values import Artifact, ClassSet
from edgekit.devices.inventory import Device


class Connected(Protocol):
    """One device; everything is measured by a clock that runs on it.

    Attributes:
        device: of the inventory.
        found: what is there, in plain values.
        notes: what happened to it meanwhile and belongs into its report.
    """

    device: Device
    found: dict[str, Any]
    notes: list[str]

    @property
    def page(self) -> str | None:
        """The report page that stands for this kind of device where none is connected."""
        ...

    @property
    def runtimes(self) -> Mapping[str, str | None]:
        """What runs each target's artifacts there; None where it could be installed."""
        ...

    @property
    def environment(self) -> Environment:
        """The machine, as it was when it was connected."""
        ...

    def lacks(self, target: str) -> str | None:
        """Why a target's artifacts cannot run there, None when they can."""
        ...

    def title(self, target: str) -> str:
        """What runs a target's artifacts there, and its version."""
        ...

    def cannot_evaluate(self, artifact: Artifact) -> str | None:
        """What the device has or lacks so that its labels cannot be had there; None when they can."""
        ...

    def evaluate(
        self, artifact: Artifact, packs: Sequence[Callable[[], Path]], classes: ClassSet, threads: int | None
    ) -> tuple[list[Counted], Environment]:
        """Counts of each frame of the packs (see :func:`edgekit.devices.worker.count_pack`), and the environment."""
        ...

    def measure(self, artifacts: Sequence[Artifact], frames: Path, terms: Terms) -> list[Timed | EdgekitError]:
        """Per artifact its latency, which holds samples, or statistics where a tool keeps those to itself; or the error."""
        ...

    def sustain(self, artifact: Artifact, frames: Path, seconds: float, threads: int | None) -> Sustained:
        """One artifact under load for so long: see :meth:`edgekit.devices.local.Clock.sustain`."""
        ...

    def clean(self) -> int:
        """Remove everything that edgekit left there; the bytes that it held."""
        ...

    def close(self) -> None:
        """End the connection and what runs there; also from another thread, whose work then ends."""
        ...


def connect_device(device: Device, logs: Path, progress: Progress) -> Connected:
    """Connect, and see what is there.

    Args:
        logs: folder for what the device writes beside its answers.

    Raises:
        DeviceError: it cannot be reached or used.
    """
    if device.kind == "adb":
        from edgekit.devices.android import Phone

        return Phone(device, logs, progress)
    from edgekit.devices.board import Board

    return Board(device, logs, progress)
