"""What a max pooling pads with: minus infinity in float, of which no int8 is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from targets.tflite_graph.model import Model


def make_padding_finite(model: Model, ranges: Mapping[str, Any]) -> None:
    """Put the least value that int8 holds of what is padded, in the place of minus infinity.

    litert pads before a max pooling by a PADV2 of its own. Of values that int8 holds, none is less than that one, so that
    the pooling gives what it gave.

    Args:
        ranges: {"min": ..., "max": ...} by tensor.
    """
    for operator in model.operators:
        if model.kind(operator) != "PADV2":
            continue
        value, source = model.constant(operator.inputs[2]), model.name(operator.inputs[0])
        if value is not None and source in ranges and np.isneginf(value).all():
            model.set_constant(operator.inputs[2], np.minimum(ranges[source]["min"], 0.0).astype(np.float32))
