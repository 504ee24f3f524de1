"""Every float tensor that an ONNX model computes of a frame, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from edgekit.core.values import Artifact, UInt8

BYTES_AT_ONCE = 1 << 30
"""Tensors that are read together hold no more."""


def show_tensors(artifact: Artifact, frame: UInt8, look: Callable[[str, NDArray[Any]], None]) -> None:
    """Make outputs of all tensors, some at a time: the runtime cannot fuse over what it must give."""
    import onnx
    import onnxruntime

    model = onnx.shape_inference.infer_shapes(onnx.load(str(artifact.model_path)))
    outputs = {value.name for value in model.graph.output}
    computed = {name for node in model.graph.node for name in node.output}
    shown = [
        value
        for value in (*model.graph.value_info, *model.graph.output)
        if value.name in computed
        and value.type.tensor_type.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    ]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    while shown:
        together: list[Any] = []
        held = 0
        while shown and (not together or held + _bytes(shown[-1]) <= BYTES_AT_ONCE):
            together.append(shown.pop())
            held += _bytes(together[-1])
        part = onnx.ModelProto()
        part.CopyFrom(model)
        part.graph.output.extend(value for value in together if value.name not in outputs)
        session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [value.name for value in together]
        for name, value in zip(names, session.run(names, {"frame": frame}), strict=True):
            look(name, value)


def _bytes(value: Any) -> int:
    size = 4
    for side in value.type.tensor_type.shape.dim:
        size *= max(1, side.dim_value)
    return size
