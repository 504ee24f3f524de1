"""Core ML itself, through coremltools on macOS: predictions on chosen compute units, and where each operation is placed."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgekit.core.errors import ArtifactError, UsageError, first_line
from edgekit.core.values import Artifact, SessionOptions, UInt8
from edgekit.runtimes.common import check_frame, label_map, output_settings

COMPUTE_UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
"""What a package may run on, by coremltools' names; the first is what an app gets by default."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep coremltools' import warnings, those of the torchao that it imports, and progress bars off the terminal."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("coremltools", "torch"))}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def open_session(artifact: Artifact, options: SessionOptions) -> Iterator[CoreMLSession]:
    """Compile and load the package.

    Raises:
        ArtifactError: Core ML cannot load it.
    """
    images = importlib.import_module("PIL.Image")
    with quiet():
        ct = importlib.import_module("coremltools")
        try:
            units = getattr(ct.ComputeUnit, options.compute_units)
            model = ct.models.MLModel(str(artifact.model_path), compute_units=units)
        except Exception as error:  # Core ML's compiler reports through several types
            raise ArtifactError(f"Core ML cannot load '{artifact.model_path}': {first_line(error)}") from error
    description = model.get_spec().description  # a copy: not for every frame
    settings = {
        "engine": f"Core ML, macOS {platform.mac_ver()[0]}",
        "compute units": options.compute_units,
        **output_settings(artifact),
    }
    yield CoreMLSession(
        artifact, model, images, description.input[0].name, description.output[0].name, options, settings
    )


@dataclass
class CoreMLSession:
    """A loaded package; the last frame is kept for ``run_graph``."""

    artifact: Artifact
    model: Any
    images: Any
    input_name: str
    output_name: str
    options: SessionOptions
    settings: Mapping[str, Any]
    last: Any = None

    def run(self, frame: UInt8) -> UInt8:
        """See :class:`edgekit.Session`."""
        check_frame(frame, self.artifact)
        self.last = {self.input_name: self.images.fromarray(frame[0])}
        return label_map(self.model.predict(self.last)[self.output_name], self.artifact, self.options)

    def run_graph(self) -> None:
        """See :class:`edgekit.Session`."""
        if self.last is None:
            raise UsageError("run_graph needs a frame first: call run")
        self.model.predict(self.last)


def placement(artifact: Artifact, compute_units: str) -> dict[str, Any]:
    """Where Core ML means to run each operation, by its compute plan.

    Returns:
        ``operations`` and ``cost`` (a share of the whole, the plan's estimate) by device, and ``elsewhere``: the operators
        that do not run where most of the cost is, with how often. Constants have no device and are not counted.

    Raises:
        ArtifactError: this macOS or coremltools makes no compute plan (it needs macOS 14.4).
    """
    with quiet():
        ct = importlib.import_module("coremltools")
        try:
            plans = importlib.import_module("coremltools.models.compute_plan")
            units = getattr(ct.ComputeUnit, compute_units)
            model = ct.models.MLModel(str(artifact.model_path), compute_units=units)
            plan = plans.MLComputePlan.load_from_path(path=model.get_compiled_model_path(), compute_units=units)
            return count_placement(plan)
        except Exception as error:  # as above; an older macOS has no plan, and a newer one may have another
            raise ArtifactError(f"Core ML makes no compute plan here: {first_line(error)}") from error


def count_placement(plan: Any) -> dict[str, Any]:
    """:func:`placement` of a plan that was loaded."""
    operations: dict[str, int] = {}
    cost: dict[str, float] = {}
    placed: list[tuple[str, str]] = []
    for operation in plan.model_structure.program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is None:
            continue
        # MLNeuralEngineComputeDevice, MLGPUComputeDevice, MLCPUComputeDevice
        device = type(usage.preferred_compute_device).__name__[2 : -len("ComputeDevice")]
        device = {"NeuralEngine": "Neural Engine"}.get(device, device)
        operations[device] = operations.get(device, 0) + 1
        estimate = plan.get_estimated_cost_for_mlprogram_operation(operation)
        cost[device] = cost.get(device, 0.0) + (0.0 if estimate is None else float(estimate.weight))
        placed.append((device, str(operation.operator_name)))
    main = max(operations, key=lambda device: (cost[device], operations[device]), default="")
    elsewhere: dict[str, int] = {}
    for device, name in placed:
        if device != main:
            elsewhere[f"{name} on {device}"] = elsewhere.get(f"{name} on {device}", 0) + 1
    return {
        "operations": operations,
        "cost": {device: round(share, 4) for device, share in cost.items()},
        "elsewhere": elsewhere,
    }
