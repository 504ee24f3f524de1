"""What TFLite's int8 would make something else of: left in float, whatever the quantizer can do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from targets.common import is_lost, is_unlike
from targets.tflite_graph.model import Model

DIVISIONS = ("DIV", "SQRT", "RSQRT", "POW")
"""Their kernels refuse what was rounded to zero, as small roots are; what a power's base is rounded to may be zero too."""

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

WEIGHTED = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")

SMALLEST_SHARE = 0.25
"""The largest that a softmax gives, below which it has less than 64 of int8's steps."""

OF_EXPONENTIALS = ("ADD", "SUB", "MUL", "NEG", "SUM")


def left_in_float(model: Model, ranges: Mapping[str, Any]) -> list[str]:
    """Scopes, as the quantizer calls them by their results, of operations that int8 would make something else of.

    Args:
        ranges: {"min": ..., "max": ...} by tensor.
    """
    found = [
        *_infinite(model),
        *_of_exponentials(model),
        *_of_divisions(model, ranges),
        *_of_small_shares(model, ranges),
        *_of_computed_weights(model),
        *_unlike_joins(model, ranges),
    ]
    return [";".join(model.name(index) for index in operator.outputs) for operator in found]


def _of_divisions(model: Model, ranges: Mapping[str, Any]) -> list[Any]:
    """Quotients and roots, and what makes their divisors.

    A constant that is lost in a sum, as the epsilon before a root, was not there in vain, nor were the small squares beside it.
    """
    divisors: set[int] = set()
    dividends: set[int] = set()
    found = []
    for operator in reversed(model.operators):
        kind, results = model.kind(operator), set(operator.outputs)
        added = _added_constant(model, operator) if kind == "ADD" else None
        if kind in DIVISIONS:
            divisors.add(operator.inputs[0 if kind == "POW" else -1])
            dividends |= set(operator.inputs[:-1])
        elif (results & divisors and (kind in OF_DIVISORS or added is not None)) or (
            added is not None and _is_lost(added, model, operator, ranges)
        ):
            divisors |= set(operator.inputs)
        elif kind in CARRYING and results & dividends:
            dividends |= set(operator.inputs)
        else:
            continue
        found.append(operator)
    return found


def _added_constant(model: Model, operator: Any) -> float | None:
    """The largest magnitude of what a sum adds to a tensor; None where it adds two tensors."""
    constants = [model.float_constant(index) for index in operator.inputs]
    added = [float(np.abs(value).max()) for value in constants if value is not None]
    return added[0] if added else None


def _is_lost(added: float, model: Model, operator: Any, ranges: Mapping[str, Any]) -> bool:
    name = model.result(operator)
    return name in ranges and is_lost(added, (float(ranges[name]["min"]), float(ranges[name]["max"])))


def _of_exponentials(model: Model) -> list[Any]:
    """Arithmetic on exponentials, to the choice between it and something else.

    An ELU is SELECT(x >= 0, x, EXP(x) - 1): the exponentials that it discards would set the scale of those that it takes.
    """
    exponentials = [one for one in model.operators if model.kind(one) == "EXP"]
    starts = {index for operator in exponentials for index in operator.outputs}
    return _downstream(model, starts, ("SELECT", "SELECT_V2"), OF_EXPONENTIALS)


def _of_small_shares(model: Model, ranges: Mapping[str, Any]) -> list[Any]:
    """Softmaxes over many places, and what is weighted by them, down to its sum.

    Int8's softmax has steps of 1/256, whatever it gives, and most shares of a thousand are less; so are products by them.
    """
    softmaxes = [one for one in model.operators if model.kind(one) == "SOFTMAX"]
    known = [(one, ranges.get(model.result(one))) for one in softmaxes]
    found = [one for one, limits in known if limits is not None and float(limits["max"]) < SMALLEST_SHARE]
    shares = {index for one in found for index in one.outputs}
    return [*found, *_downstream(model, shares, ("SUM", "MEAN", *WEIGHTED), ("MUL", *CARRYING))]


def _of_computed_weights(model: Model) -> list[Any]:
    """Products by weights that the frame makes: int8's kernels take constants."""
    weighted = [one for one in model.operators if model.kind(one) in WEIGHTED]
    return [one for one in weighted if model.float_constant(one.inputs[1]) is None]


def _unlike_joins(model: Model, ranges: Mapping[str, Any]) -> list[Any]:
    """Joins of maps that have little in common: a join's parts and its result have one scale."""

    def known(index: int) -> tuple[float, float] | None:
        limits = ranges.get(model.name(index))
        return None if limits is None else (float(np.min(limits["min"])), float(np.max(limits["max"])))

    found = []
    for operator in model.operators:
        whole = known(operator.outputs[0]) if model.kind(operator) == "CONCATENATION" else None
        parts = [limits for index in operator.inputs if (limits := known(index)) is not None]
        if whole is not None and is_unlike(parts, whole):
            found.append(operator)
    return found


def _infinite(model: Model) -> list[Any]:
    """What masks with infinity, down to the softmax that makes zeros of it."""
    constants = (model.float_constant(index) for index in range(len(model.graph.tensors)))
    starts = {index for index, value in enumerate(constants) if value is not None and np.isinf(value).any()}
    return _downstream(model, starts, ("SOFTMAX",))


def _downstream(
    model: Model, starts: Collection[int], until: Collection[str], through: Collection[str] | None = None
) -> list[Any]:
    """What reads some tensors, in turn, to operations of the kinds ``until``; of others the kinds ``through``, or all."""
    reached = set(starts)
    found = []
    for operator in model.operators:
        kind = model.kind(operator)
        if reached & set(operator.inputs) and (kind in until or through is None or kind in through):
            found.append(operator)
            if kind not in until:
                reached |= set(operator.outputs)
    return found
