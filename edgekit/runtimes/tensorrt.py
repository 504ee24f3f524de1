"""TensorRT through its Python package, on an engine that was built on the same device."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import ArtifactError, TargetError
from edgekit.core.values import Artifact, SessionOptions, UInt8
from edgekit.runtimes.common import check_frame, label_map, output_settings

ENGINE = "model.engine"
"""The engine's file beside the ONNX it was built of."""
TO_DEVICE, TO_HOST = 1, 2
"""cudaMemcpyKind."""


class Cuda:
    """The few calls of CUDA's runtime that are needed, so that no further package is."""

    def __init__(self) -> None:
        names = ["libcudart.so", ctypes.util.find_library("cudart"), "/usr/local/cuda/lib64/libcudart.so"]
        for name in filter(None, names):
            try:
                self._library = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            raise TargetError("CUDA's runtime (libcudart.so) is not found: add its folder to LD_LIBRARY_PATH")
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def _check(self, code: int, what: str) -> None:
        if code:
            text = self._library.cudaGetErrorString(code).decode(errors="replace")
            raise ArtifactError(f"CUDA's {what} failed: {text}")

    def allocate(self, size: int) -> int:
        """Device memory."""
        pointer = ctypes.c_void_p()
        self._check(self._library.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size)), "cudaMalloc")
        return int(pointer.value or 0)

    def free(self, pointer: int) -> None:
        """Give it back."""
        self._library.cudaFree(ctypes.c_void_p(pointer))

    def stream(self) -> int:
        """A stream of its own."""
        pointer = ctypes.c_void_p()
        self._check(self._library.cudaStreamCreate(ctypes.byref(pointer)), "cudaStreamCreate")
        return int(pointer.value or 0)

    def end_stream(self, stream: int) -> None:
        """Destroy it."""
        self._library.cudaStreamDestroy(ctypes.c_void_p(stream))

    def copy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        """In the stream's order."""
        code = self._library.cudaMemcpyAsync(
            ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), kind, ctypes.c_void_p(stream)
        )
        self._check(code, "cudaMemcpyAsync")

    def wait(self, stream: int) -> None:
        """Until all of it is done."""
        self._check(self._library.cudaStreamSynchronize(ctypes.c_void_p(stream)), "cudaStreamSynchronize")


@contextmanager
def open_session(artifact: Artifact, options: SessionOptions) -> Iterator[TensorRTSession]:
    """The engine that trtexec built beside the model.

    Raises:
        ArtifactError: no engine, or one of another TensorRT or GPU.
    """
    import tensorrt as trt

    path = Path(artifact.folder) / ENGINE
    if not path.is_file():
        raise ArtifactError(f"{path} is not there: the engine is built on the device first")
    cuda = Cuda()
    logger = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(logger).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ArtifactError(
            f"TensorRT {trt.__version__} cannot load {path}: it was built for another GPU or TensorRT, so empty the "
            "device's cache with edgekit devices clean, and run again"
        )
    context = engine.create_execution_context()
    with ExitStack() as stack:
        stream = cuda.stream()
        stack.callback(cuda.end_stream, stream)
        buffers: dict[str, tuple[int, NDArray[Any]]] = {}
        names = {trt.TensorIOMode.INPUT: "", trt.TensorIOMode.OUTPUT: ""}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            names[engine.get_tensor_mode(name)] = name
            host = np.empty(tuple(engine.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name)))
            pointer = cuda.allocate(host.nbytes)
            stack.callback(cuda.free, pointer)
            context.set_tensor_address(name, pointer)
            buffers[name] = pointer, host
        settings = {
            "engine": f"TensorRT {trt.__version__}",
            "copies": "to and from the GPU, inside the clock",
            **output_settings(artifact),
        }
        inputs, outputs = buffers[names[trt.TensorIOMode.INPUT]], buffers[names[trt.TensorIOMode.OUTPUT]]
        yield TensorRTSession(artifact, cuda, context, stream, inputs, outputs, options, settings)


@dataclass
class TensorRTSession:
    """An execution context with its buffers, each a device pointer and the host's array."""

    artifact: Artifact
    cuda: Cuda
    context: Any
    stream: int
    input: tuple[int, NDArray[Any]]
    output: tuple[int, NDArray[Any]]
    options: SessionOptions
    settings: Mapping[str, Any]

    def run(self, frame: UInt8) -> UInt8:
        """See :class:`edgekit.Session`."""
        check_frame(frame, self.artifact)
        pointer, host = self.input
        source = np.ascontiguousarray(frame, host.dtype).reshape(host.shape)
        self.cuda.copy(pointer, source.ctypes.data, source.nbytes, TO_DEVICE, self.stream)
        self.context.execute_async_v3(self.stream)
        pointer, host = self.output
        self.cuda.copy(host.ctypes.data, pointer, host.nbytes, TO_HOST, self.stream)
        self.cuda.wait(self.stream)
        return label_map(host, self.artifact, self.options)

    def run_graph(self) -> None:
        """See :class:`edgekit.Session`."""
        self.context.execute_async_v3(self.stream)
        self.cuda.wait(self.stream)
