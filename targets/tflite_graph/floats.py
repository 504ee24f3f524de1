"""What TFLite's int8 would make something else of: left in float, whatever the quantizer can do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from targets.common import is_lost

FLOAT32 = 0
"""A tensor's type, by its number in TFLite's schema."""

DIVISIONS = ("DIV", "SQRT", "RSQRT")
"""Their kernels refuse what was rounded to zero, as small roots are."""

CARRYING = (
    "RESHAPE",
    "TRANSPOSE",
    "SLICE",
    "STRIDED_SLICE",
    "SPLIT",
    "SPLIT_V",
    "SQUEEZE",
    "EXPAND_DIMS",
    "GATHER",
    "UNPACK",
)
"""What gives the values that it reads; in int8 all of them by one scale, what is later divided and what divides it alike."""

OF_DIVISORS = ("SUM", "MEAN", "MUL", *CARRYING)
"""What makes a divisor of larger things: a step of int8, small beside those, may be all that is left of it."""

OF_EXPONENTIALS = ("ADD", "SUB", "MUL", "NEG", "SUM")


def left_in_float(model: bytes, ranges: Mapping[str, Any]) -> list[str]:
    """Scopes, as the quantizer calls them by their results, of operations that int8 would make something else of.

    Args:
        ranges: {"min": ..., "max": ...} by tensor.
    """
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    flatbuffer = tfl_flatbuffer_utils.read_model(model)
    found = [*_infinite(flatbuffer), *_of_exponentials(flatbuffer), *_of_divisions(flatbuffer, ranges)]
    core = flatbuffer.subgraphs[0]
    return [";".join(core.tensors[index].name.decode() for index in operator.outputs) for operator in found]


def kind_of(flatbuffer: Any, operator: Any) -> str:
    """``CONV_2D`` and the like."""
    return _kinds()[flatbuffer.operatorCodes[operator.opcodeIndex].builtinCode]


@cache
def _kinds() -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}


def _constant(flatbuffer: Any, index: int) -> Any:
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    tensor = flatbuffer.subgraphs[0].tensors[index]
    return tfl_flatbuffer_utils.get_tensor_data(tensor, flatbuffer.buffers) if tensor.type == FLOAT32 else None


def _of_divisions(flatbuffer: Any, ranges: Mapping[str, Any]) -> list[Any]:
    """Quotients and roots, and what makes their divisors.

    A constant that is lost in a sum, as the epsilon before a root, was not there in vain, nor were the small squares beside it.
    """
    core = flatbuffer.subgraphs[0]
    divisors: set[int] = set()
    dividends: set[int] = set()
    found = []
    for operator in reversed(core.operators):
        kind, results = kind_of(flatbuffer, operator), set(operator.outputs)
        if kind in DIVISIONS:
            divisors.add(operator.inputs[-1])
            dividends |= set(operator.inputs[:-1])
        elif kind == "ADD" and (results & divisors or _loses_its_constant(flatbuffer, operator, ranges)):
            if all(_constant(flatbuffer, index) is None for index in operator.inputs):
                continue
            divisors |= set(operator.inputs)
        elif kind in OF_DIVISORS and results & divisors:
            divisors |= set(operator.inputs)
        elif kind in CARRYING and results & dividends:
            dividends |= set(operator.inputs)
        else:
            continue
        found.append(operator)
    return found


def _loses_its_constant(flatbuffer: Any, operator: Any, ranges: Mapping[str, Any]) -> bool:
    name = flatbuffer.subgraphs[0].tensors[operator.outputs[0]].name.decode()
    constants = [_constant(flatbuffer, index) for index in operator.inputs]
    added = [float(np.abs(value).max()) for value in constants if value is not None]
    if not added or name not in ranges:
        return False
    return is_lost(added[0], (float(ranges[name]["min"]), float(ranges[name]["max"])))


def _of_exponentials(flatbuffer: Any) -> list[Any]:
    """Arithmetic on exponentials, to the choice between it and something else.

    An ELU is SELECT(x >= 0, x, EXP(x) - 1): the exponentials that it discards would set the scale of those that it takes.
    """
    reached: set[int] = set()
    found = []
    for operator in flatbuffer.subgraphs[0].operators:
        kind = kind_of(flatbuffer, operator)
        if kind == "EXP":
            reached |= set(operator.outputs)
        elif reached & set(operator.inputs) and kind in (*OF_EXPONENTIALS, "SELECT", "SELECT_V2"):
            found.append(operator)
            if kind in OF_EXPONENTIALS:
                reached |= set(operator.outputs)
    return found


def _infinite(flatbuffer: Any) -> list[Any]:
    """What masks with infinity, down to the softmax that makes zeros of it."""
    reached: set[int] = set()
    found = []
    for operator in flatbuffer.subgraphs[0].operators:
        for index in operator.inputs:
            value = _constant(flatbuffer, index) if index >= 0 else None
            if value is not None and np.isinf(value).any():
                reached.add(index)
        if reached & set(operator.inputs):
            found.append(operator)
            if kind_of(flatbuffer, operator) != "SOFTMAX":
                reached |= set(operator.outputs)
    return found
