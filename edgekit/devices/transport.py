"""The way to a device: commands with their exit codes, and files. ssh and adb are two of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgekit.devices.inventory import Device

OUTPUT_LIMIT = 16 << 20
"""The most bytes that one command's output may have: a device is not trusted with this machine's memory."""


@dataclass(frozen=True)
class Done:
    """What a command on a device left: its own exit code and what it wrote."""

    code: int
    out: bytes
    err: bytes


class Transport(Protocol):
    """A connection to one device. Every error names the device and says in one sentence how to mend it."""

    device: Device

    def run(self, command: Sequence[str], data: bytes = b"", seconds: float = 60.0, limit: int = OUTPUT_LIMIT) -> Done:
        """Run a command there, given as its arguments; the transport quotes them for the device's shell.

        Args:
            command: program and arguments.
            data: standard input.
            seconds: how long it may take.
            limit: bytes of output that are taken.

        Returns:
            Whatever exit code it ended with.

        Raises:
            DeviceError: the device cannot be reached or refuses, or the command wrote more than ``limit`` or took longer
                than ``seconds``; nothing of it is left on this side.
            DeviceLost: the connection went meanwhile.
        """
        ...

    def push(self, source: Path, remote: str) -> None:
        """Copy a file to the device, through a temporary name and a rename; its folder is made.

        Raises:
            DeviceError: no space, or refused.
            DeviceLost: the connection went; nothing stands under the file's name.
        """
        ...

    def close(self) -> None:
        """End the connection and everything of it on this side; also from another thread, whose command then ends."""
        ...
