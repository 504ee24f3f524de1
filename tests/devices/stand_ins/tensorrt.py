"""Stands in for TensorRT's Python package: an "engine" of the stand-in trtexec names its ONNX, which ONNX Runtime runs.

What edgekit calls of it behaves as the real one does, on "device memory" that the stand-in libcudart hands out.
"""

from __future__ import annotations

import ctypes
import enum
import json
from typing import Any

import numpy as np
import onnxruntime

__version__ = "10.3.0"


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class Logger:
    ERROR = 1

    def __init__(self, severity: int) -> None:
        self.severity = severity


def nptype(dtype: Any) -> Any:
    return dtype


class Runtime:
    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        try:
            return Engine(json.loads(data)["path"])
        except (ValueError, KeyError):
            return None  # as the real one does


class Engine:
    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.tensors = [(one, TensorIOMode.INPUT) for one in self.session.get_inputs()]
        self.tensors += [(one, TensorIOMode.OUTPUT) for one in self.session.get_outputs()]
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return str(self.tensors[index][0].name)

    def _of(self, name: str) -> Any:
        return next(one for one in self.tensors if one[0].name == name)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        mode: TensorIOMode = self._of(name)[1]
        return mode

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._of(name)[0].shape)

    def get_tensor_dtype(self, name: str) -> Any:
        kinds = {
            "tensor(float)": np.float32,
            "tensor(uint8)": np.uint8,
            "tensor(int32)": np.int32,
            "tensor(int64)": np.int64,
        }
        return kinds[self._of(name)[0].type]

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return True

    def _memory(self, name: str) -> Any:
        shape, dtype = self.engine.get_tensor_shape(name), np.dtype(self.engine.get_tensor_dtype(name))
        size = int(np.prod(shape)) * dtype.itemsize
        raw = (ctypes.c_uint8 * size).from_address(self.addresses[name])
        return np.frombuffer(raw, dtype).reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        given = {one.name: self._memory(one.name) for one in self.engine.session.get_inputs()}
        for one, output in zip(self.engine.session.get_outputs(), self.engine.session.run(None, given)):  # noqa: B905, runs on 3.9
            self._memory(one.name)[...] = output
        return True
