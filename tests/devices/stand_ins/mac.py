"""Makes a Linux machine's Python look like a Mac's to the agent: Core ML's calls are answered by edgekit's ML Program executor.

Imported by the device's ``sitecustomize``. coremltools itself is the real one; what it has on a Mac only stands here.
"""

from __future__ import annotations

import importlib
import platform
import sys
import types
from pathlib import Path
from typing import Any

NOT_THERE = "CPU_AND_NE"
"""Compute units that this Mac refuses."""
ODD = "CPU_ONLY"
"""Compute units whose plan has another shape than it should."""
no_coremltools = False
"""Whether the agent's own process cannot import coremltools."""
real_import = importlib.import_module


class MLModel:
    def __init__(self, path: str, compute_units: Any) -> None:
        if compute_units.name == NOT_THERE:
            raise RuntimeError("Error compiling model: the Neural Engine is not available.")
        self.path = path

    def get_spec(self) -> Any:
        return real_import("coremltools").utils.load_spec(self.path)

    def predict(self, given: dict[str, Any]) -> dict[str, Any]:
        import numpy as np
        import torch

        executor = real_import("targets.mil.executor")
        if not hasattr(self, "executor"):
            torch.set_num_threads(1)
            self.executor = executor.Executor(executor.load_program(Path(self.path)))
        ((name, image),) = given.items()
        assert image.mode == "RGB"
        frame = torch.from_numpy(np.array(image, np.float32).transpose(2, 0, 1)[None].copy())
        return {name: value.numpy() for name, value in self.executor.run({name: frame}).items()}

    def get_compiled_model_path(self) -> str:
        return self.path


class MLNeuralEngineComputeDevice:
    pass


class MLCPUComputeDevice:
    pass


class MLComputePlan:
    """Every operation of the package on the Neural Engine, but for those that it does not have."""

    def __init__(self, operations: list[Any]) -> None:
        block = types.SimpleNamespace(operations=operations)
        functions = {"main": types.SimpleNamespace(block=block)}
        self.model_structure = types.SimpleNamespace(program=types.SimpleNamespace(functions=functions))

    @classmethod
    def load_from_path(cls, path: str, compute_units: Any) -> MLComputePlan:
        program = real_import("coremltools").utils.load_spec(path).mlProgram
        (block,) = program.functions["main"].block_specializations.values()
        if compute_units.name == ODD:
            plan = cls([])
            plan.model_structure = types.SimpleNamespace(program=None)
            return plan
        return cls([types.SimpleNamespace(operator_name=f"ios17.{one.type}") for one in block.operations])

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        if operation.operator_name.endswith("const"):
            return None
        device: Any = MLCPUComputeDevice if "argmax" in operation.operator_name else MLNeuralEngineComputeDevice
        return types.SimpleNamespace(preferred_compute_device=device())

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        return types.SimpleNamespace(weight=0.001)


def import_module(name: str, package: str | None = None) -> Any:
    if name == "coremltools.models.compute_plan":
        return types.SimpleNamespace(MLComputePlan=MLComputePlan)
    if name == "coremltools" and no_coremltools and "serve" in sys.argv:
        raise ImportError("libmilstoragepython is of another macOS")
    module = real_import(name, package)
    if name == "coremltools":
        return types.SimpleNamespace(
            ComputeUnit=module.ComputeUnit, models=types.SimpleNamespace(MLModel=MLModel), utils=module.utils
        )
    return module


if "serve" in sys.argv or "worker" in sys.argv:
    importlib.import_module = import_module
    platform.mac_ver = lambda *_: ("15.1", ("", "", ""), "arm64")  # type: ignore[assignment]
    if "serve" in sys.argv:
        sys.platform = "darwin"
        platform.system = lambda: "Darwin"
