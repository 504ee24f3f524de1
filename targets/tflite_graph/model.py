"""A flatbuffer, parsed once: its operators by the schema's own names, its tensors and constants, and bytes again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT32 = 0
"""A tensor's type, by its number in TFLite's schema."""


@cache
def kinds() -> dict[int, str]:
    """The schema's names of operators by their numbers."""
    from ai_edge_litert import schema_py_generated as schema

    return {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}


class Model:
    """A model of one graph, which may be changed until it is packed.

    Attributes:
        graph: the schema's SubGraphT.
    """

    def __init__(self, content: bytes) -> None:
        from ai_edge_quantizer.utils import tfl_flatbuffer_utils

        self._flatbuffer: Any = tfl_flatbuffer_utils.read_model(content)
        self._size = len(content)
        self.graph: Any = self._flatbuffer.subgraphs[0]

    @property
    def operators(self) -> list[Any]:
        """The graph's operators (OperatorT), in the order in which they run."""
        found: list[Any] = self.graph.operators
        return found

    def kind(self, operator: Any) -> str:
        """``CONV_2D`` and the like, as the schema names it."""
        return kinds()[self._flatbuffer.operatorCodes[operator.opcodeIndex].builtinCode]

    def tensor(self, index: int) -> Any:
        """A tensor (TensorT) by its number."""
        return self.graph.tensors[index]

    def name(self, index: int) -> str:
        """A tensor's name."""
        return str(self.tensor(index).name.decode())

    def result(self, operator: Any) -> str:
        """The name of an operator's first result."""
        return self.name(operator.outputs[0])

    def constant(self, index: int) -> NDArray[Any] | None:
        """A tensor's constant values, as its type says; None where it is computed, or is not there (-1)."""
        from ai_edge_quantizer.utils import tfl_flatbuffer_utils

        if index < 0:
            return None
        found: NDArray[Any] | None = tfl_flatbuffer_utils.get_tensor_data(self.tensor(index), self._flatbuffer.buffers)
        return found

    def float_constant(self, index: int) -> NDArray[Any] | None:
        """As :meth:`constant`, of a float32 tensor; None of others."""
        return self.constant(index) if index >= 0 and self.tensor(index).type == FLOAT32 else None

    def buffer(self, index: int) -> int:
        """The number of the buffer that holds a tensor's values."""
        return int(self.tensor(index).buffer)

    def content(self, buffer: int) -> bytes:
        """A buffer's bytes."""
        data = self._flatbuffer.buffers[buffer].data
        return b"" if data is None else np.asarray(data, np.uint8).tobytes()

    def fill(self, buffer: int, content: bytes) -> None:
        """Have a buffer hold these bytes."""
        self._flatbuffer.buffers[buffer].data = np.frombuffer(content, np.uint8)

    def set_constant(self, index: int, value: NDArray[Any]) -> None:
        """Have a tensor hold these values, of its type, in a buffer of its own: another may stand in several places."""
        from ai_edge_litert import schema_py_generated as schema

        made = schema.BufferT()
        made.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        self._flatbuffer.buffers.append(made)
        self.tensor(index).buffer = len(self._flatbuffer.buffers) - 1

    def add_tensor(self, name: str, shape: Sequence[int], scale: float, zero_point: int) -> int:
        """A new int8 tensor: its number."""
        from ai_edge_litert import schema_py_generated as schema

        made = schema.TensorT()
        made.name, made.shape, made.type = name.encode(), list(shape), schema.TensorType.INT8
        made.quantization = quantization([scale], [zero_point])
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def operator(self, kind: str, inputs: list[int], outputs: list[int], *, version: int = 1, **options: Any) -> Any:
        """A new operator, which is in no graph yet.

        Args:
            kind: the schema's name, such as ``CONCATENATION``.
            version: of its kernel.
            options: fields of its options' table.
        """
        from ai_edge_litert import schema_py_generated as schema

        code = getattr(schema.BuiltinOperator, kind)
        codes = self._flatbuffer.operatorCodes
        known = [index for index, one in enumerate(codes) if one.builtinCode == code and one.version >= version]
        if not known:
            entry = schema.OperatorCodeT()
            entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, code, version
            codes.append(entry)
            known = [len(codes) - 1]
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = known[0], inputs, outputs
        if options:
            table = f"{kind.title().replace('_', '')}Options"
            made.builtinOptionsType = getattr(schema.BuiltinOptions, table)
            made.builtinOptions = getattr(schema, f"{table}T")()
            for name, value in options.items():
                setattr(made.builtinOptions, name, value)
        return made

    def pack(self) -> bytes:
        """The model as bytes."""
        import flatbuffers

        builder = flatbuffers.Builder(self._size)
        builder.Finish(self._flatbuffer.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def quantization(scale: list[float], zero_point: list[int]) -> Any:
    """The schema's QuantizationParametersT along the first axis."""
    from ai_edge_litert import schema_py_generated as schema

    made = schema.QuantizationParametersT()
    made.scale, made.zeroPoint, made.quantizedDimension = scale, zero_point, 0
    return made
