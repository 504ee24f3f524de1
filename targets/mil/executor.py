"""A reference executor for Core ML's ML Programs: an .mlpackage's own bytes, executed op by op in torch on the CPU.

The operations are in :mod:`targets.mil.ops`. Values that the program
types as fp16 are rounded to fp16 after each operation and held in float32 between: Core ML's own arithmetic may sum in
another order, so results agree within fp16 rounding, not bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekit.core.errors import ArtifactError, TargetError
from edgekit.runtimes.coreml import quiet
from targets.mil.ops import EXACT, OPS, OpFunction, as_tensor

Observer = Callable[[str, Tensor], None]
"""Sees the name and the value of each float that the program computes. It must not keep or change the value."""


@dataclass(frozen=True)
class Program:
    """An ML Program with its weights.

    Attributes:
        function: the main function, as coremltools represents it.
        inputs: shape by name.
        outputs: names, in order.
    """

    function: Any
    inputs: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]


def load_program(package: Path) -> Program:
    """Read an .mlpackage: the program from its specification, the weights from its blob.

    Raises:
        ArtifactError: no ML Program there, or a damaged one.
    """
    with quiet():
        from coremltools.models import MLModel

        if not package.is_dir():
            raise ArtifactError(f"'{package}' is not an .mlpackage: convert the model again")
        try:
            model = MLModel(str(package), skip_model_load=True)
            return program_of(model.get_spec(), model.weights_dir)
        except Exception as error:  # protobuf, blob reader and coremltools raise many types for damaged packages
            raise ArtifactError(
                f"'{package}' cannot be read as an ML Program: {type(error).__name__}: {error}"
            ) from error


def program_of(spec: Any, weights_dir: str) -> Program:
    """The program of a model specification whose weights lie in ``weights_dir``."""
    from coremltools.converters.mil.frontend.milproto.load import load

    with quiet():
        function = load(spec, spec.specificationVersion, weights_dir).functions["main"]
    return Program(
        function=function,
        inputs={name: tuple(int(side) for side in var.shape) for name, var in function.inputs.items()},
        outputs=tuple(var.name for var in function.outputs),
    )


@dataclass(frozen=True)
class _Step:
    """One op, ready to run; -1 stands in its shape where only running it tells."""

    function: OpFunction
    constants: Mapping[str, Any]
    variables: Mapping[str, str | tuple[str | Tensor, ...]]
    outputs: tuple[str, ...]
    shape: tuple[int, ...]
    rounds: tuple[bool, ...]
    floats: tuple[bool, ...]
    frees: tuple[str, ...]


class Executor:
    """Executes a program; weights are decompressed and rounded once, here.

    Args:
        program: what to execute.
        rounding: round fp16-typed values to fp16 (else all floats stay float32).

    Raises:
        TargetError: the program has an op this executor does not know; names the op and its place.
    """

    def __init__(self, program: Program, *, rounding: bool = True) -> None:
        self.inputs = program.inputs
        self.outputs = program.outputs
        self._constants: dict[str, Tensor] = {}
        self._steps = self._build(program, rounding=rounding)
        self._input_rounds = {
            name: rounding and dtype_of(var) == "fp16" for name, var in program.function.inputs.items()
        }

    def run(self, inputs: Mapping[str, Tensor], observe: Observer | None = None) -> dict[str, Tensor]:
        """Execute once: inputs by name -> outputs by name.

        Args:
            inputs: float32 tensors of the shapes in ``self.inputs``; an image is [1, 3, H, W] of 0..255, RGB.
            observe: called with each computed float's name and value, inputs included.
        """
        values: dict[str, Tensor] = {}
        with torch.inference_mode():
            for name, shape in self.inputs.items():
                if name not in inputs or tuple(inputs[name].shape) != shape:
                    raise TargetError(f"the program's input '{name}' must have the shape {list(shape)}")
                values[name] = _fp16(inputs[name]) if self._input_rounds[name] else inputs[name]
                if observe is not None:
                    observe(name, values[name])
            for step in self._steps:
                given = {key: _resolve(values, name) for key, name in step.variables.items()}
                result = step.function({**step.constants, **given}, step.shape)
                del given
                results = result if isinstance(result, tuple) else (result,)
                for name, value, rounds, is_float in zip(step.outputs, results, step.rounds, step.floats, strict=True):
                    value = _fp16(value) if rounds else value
                    values[name] = value
                    if observe is not None and is_float:
                        observe(name, value)
                for name in step.frees:
                    values.pop(name, None)
            return {name: values[name] if name in values else self._constants[name] for name in self.outputs}

    def _build(self, program: Program, *, rounding: bool) -> tuple[_Step, ...]:
        operations = list(program.function.operations)
        constant: dict[str, Any] = {}
        alias: dict[str, str] = {}
        twins: dict[tuple[Any, ...], str] = {}
        drafts: list[tuple[Any, dict[str, Any], dict[str, Any]]] = []
        for index, op in enumerate(operations):
            kind = op.op_type
            if kind == "const":
                constant[op.outputs[0].name] = op.outputs[0].val
                continue
            if kind.startswith("constexpr_"):
                constant[op.outputs[0].name] = op.materialized_val_inference()
                continue
            if kind not in OPS:
                raise TargetError(
                    f"edgekit's ML Program executor does not know the operation '{kind}', which makes "
                    f"'{op.outputs[0].name}' (operation {index + 1} of {len(operations)}): run this artifact on a Mac"
                )
            constants: dict[str, Any] = {}
            variables: dict[str, Any] = {}
            for key, source in op.inputs.items():
                if source is None:
                    continue
                if isinstance(source, list | tuple):
                    variables[key] = tuple(
                        _tensor(constant[item.name]) if item.name in constant else alias.get(item.name, item.name)
                        for item in source
                    )
                elif source.name in constant:
                    constants[key] = _plain(constant[source.name])
                else:
                    variables[key] = alias.get(source.name, source.name)
            if kind in ("quantize", "dequantize"):  # each reader of a value gets its own equal pair: compute one
                numbers = [item for item in constants.items() if not isinstance(item[1], str)]
                twin = (
                    kind,
                    constants.get("output_dtype"),
                    variables.get("input"),
                    repr([(key, as_tensor(value).tolist()) for key, value in sorted(numbers)]),
                )
                if twin in twins and op.outputs[0].name not in program.outputs:
                    alias[op.outputs[0].name] = twins[twin]
                    continue
                twins.setdefault(twin, op.outputs[0].name)
            if kind == "conv" and isinstance(constants.get("weight"), Tensor) and constants["weight"].ndim == 4:
                constants["weight"] = constants["weight"].contiguous(memory_format=torch.channels_last)
            drafts.append((op, constants, variables))
        for name in program.outputs:
            if name in constant:
                self._constants[name] = _tensor(constant[name])
        return self._finish(drafts, program, rounding=rounding)

    @staticmethod
    def _finish(
        drafts: Sequence[tuple[Any, dict[str, Any], dict[str, Any]]], program: Program, *, rounding: bool
    ) -> tuple[_Step, ...]:
        from coremltools.converters.mil.mil.types.symbolic import is_symbolic

        kept = set(program.outputs)
        steps: list[_Step] = []
        for op, constants, variables in reversed(drafts):
            outputs = tuple(var.name for var in op.outputs)
            read = {
                name
                for source in variables.values()
                for name in (source if isinstance(source, tuple) else (source,))
                if isinstance(name, str)
            }
            frees = tuple(sorted(read - kept)) + tuple(name for name in outputs if name not in kept)
            kept |= read
            fp16 = tuple(dtype_of(var) == "fp16" for var in op.outputs)
            steps.append(
                _Step(
                    function=OPS[op.op_type],
                    constants=constants,
                    variables=variables,
                    outputs=outputs,
                    shape=tuple(-1 if is_symbolic(side) else int(side) for side in op.outputs[0].shape),
                    rounds=tuple(rounding and half and op.op_type not in EXACT for half in fp16),
                    floats=tuple(half or dtype_of(var) == "fp32" for half, var in zip(fp16, op.outputs, strict=True)),
                    frees=frees,
                )
            )
        return tuple(reversed(steps))


def _resolve(values: Mapping[str, Tensor], name: str | tuple[str | Tensor, ...]) -> Any:
    if isinstance(name, str):
        return values[name]
    return tuple(values[item] if isinstance(item, str) else item for item in name)


def dtype_of(var: Any) -> str:
    """The type of a program's variable: fp16, fp32, int32, bool and so on."""
    return str(var.dtype.__type_info__()) if hasattr(var.dtype, "__type_info__") else str(var.dtype)


def _fp16(value: Tensor) -> Tensor:
    return value.half().float()


def _tensor(value: Any) -> Tensor:
    """A constant as torch holds it here: floats in float32, with subnormals (slow on CPUs) flushed to zero."""
    array = np.asarray(value)
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
        return torch.from_numpy(np.where(np.abs(array) < np.finfo(np.float32).tiny, np.float32(0), array))
    return torch.from_numpy(array.astype(np.int32 if array.dtype.kind in "iu" else array.dtype))


def _plain(value: Any) -> Any:
    array = np.asarray(value)
    if array.dtype.kind == "f" and array.ndim > 0:
        return _tensor(array)
    return array.tolist()
