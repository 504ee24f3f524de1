"""What a command is to do, as frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.datasets import Split
from edgekit.core.values import Artifact, OutputKind, Precision, Size
from edgekit.devices.inventory import THIS_MACHINE, Device
from edgekit.devices.local import Mode, Scope
from edgekit.networks.checkpoint import Checkpoint
from edgekit.pipeline.quantization import Calibration


@dataclass(frozen=True)
class Plan:
    """What a run is to do.

    Attributes:
        checkpoint: what is deployed.
        size: input size.
        targets, precisions: what is made; ``precisions`` None means each target's first float one, and int8.
        evaluation: frames that accuracy is measured on.
        calibration: frames that quantizers see; None where nothing is quantized.
        folder: the run's folder.
        mode: how long latency is measured.
        threads: of the runtimes; None for all cores.
        output, output_stride: form of the artifacts; without an output each target's own.
        command: as typed.
        devices: where latency is measured, and accuracy too besides this machine's.
        sustained: seconds of sustained load for each artifact there, None for none.
    """

    checkpoint: Checkpoint
    size: Size
    targets: tuple[str, ...]
    precisions: tuple[Precision, ...] | None
    evaluation: Split
    calibration: Calibration | None
    folder: Path
    mode: Mode
    threads: int | None
    output: OutputKind | None
    output_stride: int
    command: str
    devices: tuple[Device, ...] = (THIS_MACHINE,)
    sustained: float | None = None

    @property
    def here(self) -> bool:
        """Whether latency is measured on this machine."""
        return THIS_MACHINE in self.devices


@dataclass(frozen=True)
class Bench:
    """What ``edgekit bench`` is to measure.

    Attributes:
        artifacts: all of one size.
        devices: of the inventory.
        mode, scope, threads: of the latency.
        sustained: seconds of sustained load for each artifact, None for none.
        evaluation: frames for the accuracy, None for none.
        command: as typed.
        folder: for samples, logs and pages.
    """

    artifacts: Sequence[Artifact]
    devices: Sequence[Device]
    mode: Mode
    scope: Scope
    threads: int | None
    sustained: float | None
    evaluation: Split | None
    command: str
    folder: Path

    @property
    def logs(self) -> Path:
        """For what tools and devices write beside their answers."""
        return self.folder / "logs"
