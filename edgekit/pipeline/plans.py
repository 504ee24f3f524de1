"""What a command is to do, as frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.datasets import Split
from edgekit.core.contract import Terms
from edgekit.core.values import Artifact, OutputKind, Precision, Recipe, Size
from edgekit.devices.inventory import THIS_MACHINE, Device
from edgekit.networks.checkpoint import Checkpoint
from edgekit.pipeline.quantization import Calibration


@dataclass(frozen=True)
class Order:
    """What all conversions of a command have in common.

    Attributes:
        checkpoint: what is converted.
        size: input size.
        folder: the run's folder.
        command: as typed, for the manifests.
        calibration: for all that is int8.
    """

    checkpoint: Checkpoint
    size: Size
    folder: Path
    command: str
    calibration: Calibration | None = None

    def calibration_of(self, job: Job) -> Calibration | None:
        """The frames that a job needs."""
        return self.calibration if job.recipe.precision == "int8" else None


@dataclass(frozen=True)
class Job:
    """One artifact to make."""

    target: str
    recipe: Recipe


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
        terms: how latency is measured; its threads are all runtimes'.
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
    terms: Terms
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
        terms: of the latency; its threads are all runtimes'.
        sustained: seconds of sustained load for each artifact, None for none.
        evaluation: frames for the accuracy, None for none.
        command: as typed.
        folder: for samples, logs and pages.
    """

    artifacts: Sequence[Artifact]
    devices: Sequence[Device]
    terms: Terms
    sustained: float | None
    evaluation: Split | None
    command: str
    folder: Path

    @property
    def logs(self) -> Path:
        """For what tools and devices write beside their answers."""
        return self.folder / "logs"


@dataclass(frozen=True)
class Work:
    """Where something is evaluated, and with what.

    Attributes:
        device: of the inventory.
        threads: of the runtimes; None for all cores.
        folder: for what tools say, and for frames on their way to a device.
    """

    device: Device
    threads: int | None
    folder: Path


@dataclass(frozen=True)
class Budget:
    """How much mIoU int8 may lose, and where that is proved.

    Attributes:
        max_drop: a fraction; the upper end of the drop's 95 % interval must not exceed it.
        verification: frames that neither calibrated nor guided a repair; None where there are none.
        why_not: the reason, then.
    """

    max_drop: float
    verification: Split | None
    why_not: str = ""


@dataclass(frozen=True)
class Quantize:
    """What ``edgekit quantize`` is to make.

    Attributes:
        calibration: frames to choose ``samples`` from.
        evaluation: labelled frames for mIoU and its drop; None where there are none, and ``why_not`` is the reason.
        output, output_stride: form of the artifacts; without an output each target's own.
        keep_float: layers that stay in float.
        budget: where it breaks on ``evaluation``, more layers stay in float, the most sensitive first.
        folder: the run's.
        threads: of the runtimes; None for all cores.
        command: as typed.
    """

    checkpoint: Checkpoint
    targets: tuple[str, ...]
    size: Size
    calibration: Split
    samples: int
    evaluation: Split | None
    folder: Path
    command: str
    why_not: str = ""
    output: OutputKind | None = None
    output_stride: int = 1
    keep_float: tuple[str, ...] = ()
    budget: Budget | None = None
    threads: int | None = None
