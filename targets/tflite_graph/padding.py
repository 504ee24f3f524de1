"""What a max pooling pads with: minus infinity in float, of which no int8 is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from targets.tflite_graph.frame import PADV2, add_buffer, packed


def with_finite_padding(model: bytes, ranges: Mapping[str, Any]) -> bytes:
    """The float model with the least value that int8 holds of what is padded, in the place of minus infinity.

    litert pads before a max pooling by a PADV2 of its own. Of values that int8 holds, none is less than that one, so that
    the pooling gives what it gave.

    Args:
        ranges: {"min": ..., "max": ...} by tensor.
    """
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    flatbuffer = tfl_flatbuffer_utils.read_model(model)
    core = flatbuffer.subgraphs[0]
    changed = False
    for operator in core.operators:
        if flatbuffer.operatorCodes[operator.opcodeIndex].builtinCode != PADV2:
            continue
        padding = core.tensors[operator.inputs[2]]
        value = tfl_flatbuffer_utils.get_tensor_data(padding, flatbuffer.buffers)
        source = core.tensors[operator.inputs[0]].name.decode()
        if value is None or source not in ranges or not np.isneginf(value).all():
            continue
        # A buffer may stand in several places, each with a range of its own.
        padding.buffer = add_buffer(flatbuffer, np.minimum(ranges[source]["min"], 0.0).astype(np.float32))
        changed = True
    return packed(flatbuffer, len(model)) if changed else model
