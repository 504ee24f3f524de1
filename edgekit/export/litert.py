"""Exact rewrites that litert-torch alone needs: other converters are right, or faster, without them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekit.export.forms import Forms, register, replace_by, write_forms
from edgekit.export.nodes import argument, drop_unused_constants, is_transposed_convolution, node_shape, sides
from edgekit.export.rewrites import smooth_by_matrices
from edgekit.export.windows import average_pooling, convolution_as_products, take_nearest

aten = torch.ops.aten

FORMS: Forms = {}
_form = partial(register, FORMS)


def for_litert(module: GraphModule) -> None:
    """Apply all of them."""
    write_forms(module, QUOTIENTS)
    write_forms(module, FORMS)
    straighten_products(module)
    smooth_by_matrices(module)
    crop_transposed_convolutions(module)
    module.graph.eliminate_dead_code()
    drop_unused_constants(module)
    module.graph.lint()
    module.recompile()


def crop_transposed_convolutions(module: GraphModule) -> int:
    """Transposed convolutions whose padding TensorFlow cannot say, without one and with a crop behind.

    For ``ConvTranspose2d(3, stride=2, padding=1, output_padding=1)`` above all.
    """
    count = 0
    for node in list(module.graph.nodes):
        if not is_transposed_convolution(node) or fits_tensorflow(node) or not can_be_cropped(node):
            continue
        before = sides(argument(node, "padding"))
        batch, channels, *lengths = node_shape(node)
        after = [before[axis] - extra for axis, extra in enumerate(sides(argument(node, "output_padding")))]
        value, wanted = node.meta["val"], dict(node.meta)
        source, weight, bias, stride, groups, dilation = (
            argument(node, name) for name in ("input", "weight", "bias", "stride", "groups", "dilation")
        )
        node.args, node.kwargs = (source, weight, bias, stride, [0, 0], [0, 0], groups, dilation), {}
        whole = [length + before[axis] + after[axis] for axis, length in enumerate(lengths)]
        node.meta["val"] = value.new_empty((batch, channels, *whole))
        last = node
        for axis, length in enumerate(lengths):
            with module.graph.inserting_after(last):
                part = (last, 2 + axis, before[axis], before[axis] + length)
                cropped = module.graph.call_function(aten.slice.Tensor, part)
            sizes = [*lengths[: axis + 1], *whole[axis + 1 :]]
            cropped.meta = {**wanted, "val": value.new_empty((batch, channels, *sizes))}
            last.replace_all_uses_with(cropped, lambda user, cropped=cropped: user is not cropped)
            last = cropped
        count += 1
    module.graph.lint()
    module.recompile()
    return count


def fits_tensorflow(node: Node) -> bool:
    """Whether TensorFlow's two paddings, VALID and SAME, can say those of a transposed convolution."""
    kernel, stride = node_shape(argument(node, "weight"))[2:], sides(argument(node, "stride"))
    padding, extra = sides(argument(node, "padding")), sides(argument(node, "output_padding"))
    return sides(argument(node, "dilation")) == (1, 1) and all(
        padding[axis] == 0 or (2 * padding[axis] == kernel[axis] - stride[axis] and extra[axis] == 0) for axis in (0, 1)
    )


def can_be_cropped(node: Node) -> bool:
    """Whether a transposed convolution is a part of the one without padding, and that one fits TensorFlow."""
    extra = sides(argument(node, "output_padding"))
    padded = sides(argument(node, "padding"))
    return sides(argument(node, "dilation")) == (1, 1) and all(extra[axis] <= padded[axis] for axis in (0, 1))


def straighten_products(module: GraphModule) -> int:
    """Products of matrices that litert-torch 0.10 makes something else of.

    Of two that are both transposed it forgets the first one's; by a vector, with an axis of one before, it loses an axis.
    """
    count = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in (aten.matmul.default, aten.bmm.default):
            continue
        factors = cast("list[Node]", list(node.args))
        if len(node_shape(node)) > 3 and node_shape(node)[-1] == 1:
            replace_by(module, node, _product_by_a_vector)
            count += 1
        elif all(_swaps_the_last_axes(one) for one in factors):
            replace_by(module, node, _transposed_product)
            count += 1
    return count


def _swaps_the_last_axes(node: Node) -> bool:
    """Whether it is a transposed matrix, or several."""
    axes = len(node.meta["val"].shape)
    order = list(range(axes))
    if node.target is aten.transpose.int:
        return {int(cast(int, axis)) % axes for axis in node.args[1:]} == set(order[-2:])
    swapped = [*order[:-2], *reversed(order[-2:])]
    return node.target is aten.permute.default and [int(axis) % axes for axis in argument(node, "dims")] == swapped


def _product_by_a_vector(**factors: Tensor) -> Any:
    first, second = factors.values()
    return (first * second.transpose(-1, -2)).sum(-1, keepdim=True)


def _transposed_product(**factors: Tensor) -> Any:
    first, second = (one.transpose(-1, -2) for one in factors.values())
    return torch.matmul(second, first).transpose(-1, -2)


def _divides_by_a_map(node: Node) -> bool:
    return _is_real(node) and isinstance(node.args[1], Node) and argument(node, "rounding_mode") is not None


def _rounded_quotient(self: Tensor, other: Tensor, rounding_mode: str) -> Any:
    """litert-torch makes a rounding of it that its converter does not know."""
    quotient = self / other
    return (
        torch.floor(quotient) if rounding_mode == "floor" else torch.sign(quotient) * torch.floor(torch.abs(quotient))
    )


QUOTIENTS: Forms = {aten.div.Tensor_mode: (_rounded_quotient, _divides_by_a_map)}


# A constant less, or over, a map: litert-torch 0.10 moves changes of layout past both, and takes the map less, or over, the
# constant in the end. Of a sum, or a product, the side does not matter.


def _begins_with_a_constant(node: Node) -> bool:
    return _is_real(node) and _is_constant(node.args[0])


def _ends_with_a_constant(node: Node) -> bool:
    return _is_real(node) and _is_constant(node.args[1])


def _is_constant(value: Any) -> bool:
    return not isinstance(value, Node) or value.op == "get_attr"


def _is_real(node: Node) -> bool:
    return bool(node.meta["val"].is_floating_point())


@_form(aten.sub.Tensor, where=_begins_with_a_constant)
def _constant_less(self: Any, other: Tensor, **_: Any) -> Any:
    return other * -1.0 + self


@_form(aten.rsub.Scalar, aten.rsub.Tensor, where=_ends_with_a_constant)
def _less_from_constant(self: Tensor, other: Any, **_: Any) -> Any:
    return self * -1.0 + other


@_form(aten.div.Tensor, where=_begins_with_a_constant)
def _constant_over(self: Any, other: Tensor) -> Any:
    return torch.pow(other, -1.0) * self


@_form(aten.reciprocal.default, where=_is_real)
def _reciprocal(self: Tensor) -> Any:
    return torch.pow(self, -1.0)


# Maps made larger, by the wrong axis where litert-torch lays channels last -------------------------------------------


@_form(aten.repeat.default, aten.tile.default)
def _repeat(self: Tensor, **given: Sequence[int]) -> Any:
    (repeats,) = given.values()
    repeats = [1] * (self.ndim - len(repeats)) + list(repeats)
    result = self.reshape([1] * (len(repeats) - self.ndim) + list(self.shape)) if len(repeats) > self.ndim else self
    for axis, times in enumerate(repeats):
        result = torch.cat([result] * times, axis) if times > 1 else result
    return result


def _is_larger_map(node: Node) -> bool:
    shape = node_shape(node)
    return len(shape) == 4 and _is_real(node) and node_shape(cast(Node, node.args[0])) != shape


@_form(aten.expand.default, where=_is_larger_map)
def _expand(self: Tensor, size: Sequence[int], **_: Any) -> Any:
    """A sum with zeros: what repeats a map by itself is given its layout rightly."""
    given = [1] * (4 - self.ndim) + list(self.shape)
    zeros = [int(side) if here == 1 else 1 for here, side in zip(given, size, strict=True)]
    return self.reshape(given) + torch.from_numpy(np.zeros(zeros, np.float32))


def _is_no_multiple(node: Node) -> bool:
    before, after = (node_shape(one)[2:] for one in (cast(Node, node.args[0]), node))
    return any(large % small for small, large in zip(before, after, strict=True))


FORMS[aten.upsample_nearest2d.vec] = take_nearest, _is_no_multiple


# What has no kernel of its own, or one that int8 has not ---------------------------------------------------------------------------------------


def _leaves_out_padding(node: Node) -> bool:
    return not argument(node, "count_include_pad") and max(argument(node, "padding")) > 0


FORMS[aten.avg_pool2d.default] = average_pooling, _leaves_out_padding

MOST_LARGEST = 16
"""A topk of more is not rewritten: each of its values takes a search of the whole axis."""


def has_few_largest(node: Node) -> bool:
    """Whether a topk can be written as so many searches for a maximum."""
    return bool(argument(node, "k") <= MOST_LARGEST)


@_form(aten.topk.default, where=has_few_largest)
def _topk(self: Tensor, k: int, dim: int, largest: bool, **_: Any) -> Any:
    """The largest, then the largest without it, and so on: LiteRT's interpreter has no sort."""
    x = self if largest else self * -1.0
    axis = dim % x.ndim
    shape = [x.shape[axis] if each == axis else 1 for each in range(x.ndim)]
    positions = torch.from_numpy(np.arange(x.shape[axis]).reshape(shape))
    least = x.amin(axis, keepdim=True)
    values, places = [], []
    for _index in range(k):
        values.append(x.amax(axis, keepdim=True))
        places.append(x.argmax(axis, keepdim=True))
        x = torch.where(positions == places[-1], least, x)
    found = torch.cat(values, axis)
    return found if largest else found * -1.0, torch.cat(places, axis)


def has_computed_weights(node: Node) -> bool:
    """Whether the weights of a convolution depend on the frame."""
    weight = argument(node, "weight")
    return isinstance(weight, Node) and weight.op != "get_attr"


FORMS[aten.conv2d.default] = convolution_as_products, has_computed_weights
