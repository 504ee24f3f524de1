"""Exact rewrites on an exported ATen graph. Each is one function that changes the graph in place and says how often.

They work on any network that ``torch.export`` takes, because they see operations, not modules. Each is proved equal to
the original within float rounding by ``tests/export/test_export.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgekit.export import arithmetic, windows
from edgekit.export.forms import Forms, write_forms
from edgekit.export.nodes import (
    add_constant,
    argument,
    constant_tensor,
    drop_unused_constants,
    is_convolution,
    is_transposed_convolution,
    node_shape,
    sides,
)

aten = torch.ops.aten


def number_padding(module: GraphModule) -> int:
    """Convolutions whose padding is a word, "same" or "valid", with its numbers, by which everything else knows them.

    An even window under "same" has one pixel more behind than before, which becomes a padding of its own.
    """
    count = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not aten.conv2d.padding:
            continue
        source, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
        stride, dilation = (list(sides(argument(node, name))) for name in ("stride", "dilation"))
        reach = [0, 0]  # of the window beyond its first pixel
        if argument(node, "padding") == "same":
            reach = [step * (side - 1) for step, side in zip(dilation, node_shape(weight)[2:], strict=True)]
        odd = [side % 2 for side in reach]
        if any(odd):
            with module.graph.inserting_before(node):
                padded = module.graph.call_function(aten.pad.default, (source, [0, odd[1], 0, odd[0]]))
            value = source.meta["val"]
            height, width = node_shape(source)[2:]
            shape = (*node_shape(source)[:2], height + odd[0], width + odd[1])
            padded.meta = {**node.meta, "val": value.new_empty(shape)}
            source = padded
        node.target = aten.conv2d.default
        groups = argument(node, "groups")
        node.args = (source, weight, bias, stride, [side // 2 for side in reach], dilation, groups)
        node.kwargs = {}
        count += 1
    return count


def fold_batch_norm(module: GraphModule) -> int:
    """Merge each batch norm into the convolutions, transposed or not, before it (paper, section 5.3).

    It goes through joins, sums and bilinear resizes that nothing else reads, into each convolution before them. Where there is
    none to take it, the batch norm of a map becomes a depthwise convolution of 1x1, of other values a product and a sum.
    """
    count = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        source, weight_node, bias_node, mean_node, variance_node, _, epsilon = node.args
        mean, variance = constant_tensor(module, mean_node), constant_tensor(module, variance_node)
        if mean is None or variance is None or any(user.args[1] != 0 for user in node.users):
            continue
        gamma, beta = constant_tensor(module, weight_node), constant_tensor(module, bias_node)
        # In float64, so that the only rounding is the final one.
        scale = torch.rsqrt(variance.double() + epsilon)
        if gamma is not None:
            scale = scale * gamma.double()
        offset = (0.0 if beta is None else beta.double()) - mean.double() * scale
        result = _Affine(module, node).on(source, scale, offset)
        for user in list(node.users):  # getitem 0: the output; the other two items are training statistics
            user.replace_all_uses_with(result)
            module.graph.erase_node(user)
        module.graph.erase_node(node)
        count += 1
    module.graph.eliminate_dead_code()
    return count


def fold_products(module: GraphModule) -> int:
    """Merge a constant factor, of all or of each channel, into the convolutions before it, as :func:`fold_batch_norm` does."""
    count = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not aten.mul.Tensor or node.kwargs:
            continue
        values = [one for one in node.args if isinstance(one, Node) and one.op != "get_attr"]
        if len(values) != 1 or len(node_shape(values[0])) != 4 or node_shape(values[0]) != node_shape(node):
            continue
        channels = node_shape(node)[1]
        factor = _factors_of(module, node.args[1] if node.args[0] is values[0] else node.args[0], channels)
        affine = _Affine(module, node)
        same_type = values[0].meta["val"].dtype == node.meta["val"].dtype
        if factor is None or not same_type or not affine.reaches_one(values[0]):
            continue
        node.replace_all_uses_with(affine.on(values[0], factor, torch.zeros_like(factor)))
        module.graph.erase_node(node)
        count += 1
    module.graph.eliminate_dead_code()
    return count


def _factors_of(module: GraphModule, value: Any, channels: int) -> Tensor | None:
    """A number, or a constant with a number for each channel, as float64 [channels]; None of anything else."""
    if isinstance(value, int | float):
        return torch.full((channels,), float(value), dtype=torch.float64)
    constant = constant_tensor(module, value)
    if constant is None or not constant.is_floating_point():
        return None
    shape = (1,) * (4 - constant.ndim) + tuple(constant.shape)
    if len(shape) != 4 or shape[0] != 1 or shape[2:] != (1, 1) or shape[1] not in (1, channels):
        return None
    return constant.double().reshape(-1).expand(channels).clone()


class _Affine:
    """A factor and a summand for each channel, put where they cost least.

    Args:
        norm: the batch norm that they are of, in whose place anything new is put.
    """

    def __init__(self, module: GraphModule, norm: Node) -> None:
        self.module, self.norm = module, norm

    def on(self, source: Node, scale: Tensor, offset: Tensor) -> Node:
        """What stands for ``source * scale + offset``; both float64 [C]. Changes what nothing else reads."""
        if self._takes(source):
            self._fold(source, scale, offset)
            return source
        if len(source.users) == 1 and source.target is aten.cat.default and source.args[1:] == (1,):
            parts = cast("list[Node]", source.args[0])
            alike = all(part.meta["val"].dtype == source.meta["val"].dtype for part in parts)
            if alike and len(set(parts)) == len(parts) and any(self.reaches_one(part) for part in parts):
                widths = [node_shape(part)[1] for part in parts]
                pieces = zip(parts, torch.split(scale, widths), torch.split(offset, widths), strict=True)
                return self._again(source, ([self.on(*piece) for piece in pieces], 1))
        if self.reaches_one(source) and source.target is aten.upsample_bilinear2d.vec:  # its weights add up to 1
            return self._again(source, (self.on(cast(Node, source.args[0]), scale, offset), *source.args[1:]))
        if self.reaches_one(source) and source.target is aten.add.Tensor:
            one, other = cast("tuple[Node, Node]", source.args)
            return self._again(source, (self.on(one, scale, offset), self.on(other, scale, offset * 0)))
        return self._apart(source, scale, offset)

    def _takes(self, node: Node) -> bool:
        """Whether it is a convolution of constants that one node alone reads."""
        if not (is_convolution(node) or is_transposed_convolution(node)) or len(node.users) != 1:
            return False
        bias = node.args[2] if len(node.args) > 2 else None
        computed = bias is not None and constant_tensor(self.module, bias) is None
        return constant_tensor(self.module, node.args[1]) is not None and not computed

    def reaches_one(self, node: Node) -> bool:
        """Whether all that leads to a node is taken by convolutions, through operations that nothing else reads."""
        if self._takes(node):
            return True
        if node.op != "call_function" or len(node.users) != 1:
            return False
        if node.target is aten.upsample_bilinear2d.vec:
            return self.reaches_one(cast(Node, node.args[0]))
        if node.target is aten.cat.default and node.args[1:] == (1,):
            parts = cast("list[Node]", node.args[0])
            alike = all(part.meta["val"].dtype == node.meta["val"].dtype for part in parts)
            return alike and len(set(parts)) == len(parts) and all(map(self.reaches_one, parts))
        return _is_sum(node) and node.args[0] is not node.args[1] and all(map(self.reaches_one, node.all_input_nodes))

    def _fold(self, node: Node, scale: Tensor, offset: Tensor) -> None:
        kernel = constant_tensor(self.module, node.args[1])
        assert kernel is not None
        old = constant_tensor(self.module, node.args[2]) if len(node.args) > 2 else None
        bias = offset if old is None else offset + old.double() * scale
        weight = _scaled_outputs(node, kernel.double(), scale).to(kernel.dtype)
        weight_constant = add_constant(self.module, node, "folded_weight", weight)
        bias_constant = add_constant(self.module, node, "folded_bias", bias.to(kernel.dtype))
        node.args = (node.args[0], weight_constant, bias_constant, *node.args[3:])

    def _again(self, node: Node, args: tuple[Any, ...]) -> Node:
        """The same operation on other values, in the batch norm's place."""
        with self.module.graph.inserting_before(self.norm):
            made = self.module.graph.call_function(cast(Any, node.target), args)
        made.meta = dict(node.meta)
        return made

    def _apart(self, source: Node, scale: Tensor, offset: Tensor) -> Node:
        """As an operation of its own.

        Every runtime has an int8 kernel for the convolution, with a scale for each channel, and one pass over the map in float.
        """
        graph, kind = self.module.graph, source.meta["val"].dtype
        meta = {**self.norm.meta, "val": source.meta["val"]}  # the batch norm's place in the user's code
        if len(node_shape(source)) == 4:
            weight = add_constant(self.module, self.norm, "by_channel_weight", scale.to(kind).reshape(-1, 1, 1, 1))
            bias = add_constant(self.module, self.norm, "by_channel_bias", offset.to(kind))
            with graph.inserting_before(self.norm):
                arguments = (source, weight, bias, [1, 1], [0, 0], [1, 1], scale.numel())
                result = graph.call_function(aten.conv2d.default, arguments)
        else:
            shape = (1, -1, *[1] * (len(node_shape(source)) - 2))
            factor = add_constant(self.module, self.norm, "batch_norm_scale", scale.to(kind).reshape(shape))
            addend = add_constant(self.module, self.norm, "batch_norm_offset", offset.to(kind).reshape(shape))
            with graph.inserting_before(self.norm):
                product = graph.call_function(aten.mul.Tensor, (source, factor))
                result = graph.call_function(aten.add.Tensor, (product, addend))
            product.meta = dict(meta)
        result.meta = dict(meta)
        return result


def _scaled_outputs(node: Node, kernel: Tensor, scale: Tensor) -> Tensor:
    """The weights of a convolution whose output channels are multiplied by ``scale``."""
    if is_convolution(node):
        return kernel * scale.reshape(-1, 1, 1, 1)
    groups = argument(node, "groups")  # [I, O / groups, kh, kw]: the groups lie along the input channels
    grouped = kernel.reshape(groups, -1, *kernel.shape[1:]) * scale.reshape(groups, 1, -1, 1, 1)
    return grouped.reshape(kernel.shape)


def pooling_matrix(length: int, bins: int) -> Tensor:
    """Adaptive average pooling along one axis as a matrix: float32 [bins, length].

    Bin ``i`` averages ``floor(i * length / bins)`` up to ``ceil((i + 1) * length / bins)``, as PyTorch defines it.
    """
    matrix = torch.zeros(bins, length)
    for index in range(bins):
        start = index * length // bins
        end = -((-(index + 1) * length) // bins)
        matrix[index, start:end] = 1.0 / (end - start)
    return matrix


def replace_adaptive_pooling(module: GraphModule) -> int:
    """Adaptive average pooling in a form every runtime has a fast kernel for.

    One bin is a mean; bins that divide the map are an ordinary average pool; any other is a product with one constant
    bin matrix (converters otherwise emit a slice and a mean for every bin). The product is written channels-last, so that
    runtimes with that layout need no transpose around it. The matrix is a precomputed buffer: built inside forward it
    becomes an IOTA that the LiteRT interpreter refuses. It has an entry for every bin and pixel: beyond
    :data:`LARGEST_BIN_MATRIX`, rows and columns have one each.
    """
    count = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not aten.adaptive_avg_pool2d.default:
            continue
        source = cast(Node, node.args[0])
        height, width = node_shape(source)[-2:]
        rows, columns = (int(side) for side in cast("list[int]", node.args[1]))
        graph = module.graph
        if (rows, columns) == (1, 1):
            with graph.inserting_before(node):
                new = graph.call_function(aten.mean.dim, (source, [2, 3], True))
        elif height % rows == 0 and width % columns == 0:
            window = [height // rows, width // columns]
            with graph.inserting_before(node):
                new = graph.call_function(aten.avg_pool2d.default, (source, window, window))
        elif rows * columns * height * width > LARGEST_BIN_MATRIX:
            new = _by_rows_and_columns(
                module, node, "pool", pooling_matrix(height, rows), pooling_matrix(width, columns)
            )
        else:
            batch, channels = node_shape(source)[:2]
            matrix = torch.kron(pooling_matrix(height, rows), pooling_matrix(width, columns))
            constant = add_constant(module, node, "pool_bins", matrix)
            chain: list[tuple[Any, tuple[Any, ...]]] = [
                (aten.permute.default, ([0, 2, 3, 1],)),
                (aten.reshape.default, ([batch, height * width, channels],)),
                (aten.matmul.default, ()),
                (aten.reshape.default, ([batch, rows, columns, channels],)),
                (aten.permute.default, ([0, 3, 1, 2],)),
            ]
            new = source
            value = torch.empty(node_shape(source), device="meta")
            with graph.inserting_before(node):
                for operation, arguments in chain:
                    operands = (constant, new) if operation is aten.matmul.default else (new, *arguments)
                    new = graph.call_function(operation, operands)
                    value = torch.matmul(matrix.to("meta"), value) if not arguments else operation(value, *arguments)
                    new.meta = {**node.meta, "val": value}
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        count += 1
    return count


LARGEST_BIN_MATRIX = 1_000_000
"""Entries of a matrix for both axes, 4 MB: six by six bins, as networks of this kind have, of a 128x216 map."""


def _by_rows_and_columns(module: GraphModule, node: Node, name: str, rows: Tensor, columns: Tensor) -> Node:
    """What a node makes of its first argument, [N, C, h, w], as two products: ``rows`` is [H, h], ``columns`` [W, w]."""
    source = cast(Node, node.args[0])
    left = add_constant(module, node, f"{name}_rows", rows)
    right = add_constant(module, node, f"{name}_columns", columns.T.contiguous())
    with module.graph.inserting_before(node):
        tall = module.graph.call_function(aten.matmul.default, (left, source))
        both = module.graph.call_function(aten.matmul.default, (tall, right))
    shape = (*node_shape(source)[:2], rows.shape[0], node_shape(source)[3])
    tall.meta = {**node.meta, "val": node.meta["val"].new_empty(shape)}
    both.meta = dict(node.meta)
    return both


def step_by_the_factor(module: GraphModule) -> int:
    """Bilinear resizes by a factor that leaves a part of a pixel over, as products with constant matrices.

    PyTorch steps through such a map by 1 / factor; converters keep the sizes alone, whose ratio is another step (litert-torch),
    or refuse (coremltools).
    """
    count = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not aten.upsample_bilinear2d.vec:
            continue
        source, factors = cast(Node, node.args[0]), argument(node, "scale_factors")
        lengths = node_shape(source)[2:]
        uneven = factors and any(length * factor % 1 for length, factor in zip(lengths, factors, strict=True))
        if not uneven or argument(node, "align_corners"):
            continue
        _resize_by_matrices(module, node, "bilinear", antialias=False)
        count += 1
    return count


def resize_by_matrices(module: GraphModule) -> int:
    """Bicubic resizes as products with constant matrices.

    Core ML and TensorRT have none, and in ONNX Runtime and OpenVINO the products are faster.
    """
    return _resize_all(module, {aten.upsample_bicubic2d.vec: ("bicubic", False)})


def smooth_by_matrices(module: GraphModule) -> int:
    """Resizes with antialiasing as products with constant matrices.

    Not among :data:`REWRITES`: OpenVINO and ONNX Runtime have it, and are faster; coremltools drops it, others refuse it.
    """
    count = _resize_all(module, ANTIALIASED)
    module.recompile()
    return count


ANTIALIASED = {
    aten._upsample_bilinear2d_aa.vec: ("bilinear", True),
    aten._upsample_bicubic2d_aa.vec: ("bicubic", True),
}
"""By operation, the mode and antialiasing."""


def _resize_all(module: GraphModule, modes: Mapping[Any, tuple[str, bool]]) -> int:
    nodes = [node for node in module.graph.nodes if node.op == "call_function" and node.target in modes]
    for node in nodes:
        mode, antialias = modes[node.target]
        _resize_by_matrices(module, node, mode, antialias=antialias)
    return len(nodes)


def _resize_by_matrices(module: GraphModule, node: Node, mode: str, *, antialias: bool) -> None:
    lengths, sizes = (node_shape(one)[2:] for one in (cast(Node, node.args[0]), node))
    factors = argument(node, "scale_factors") or (None, None)
    aligned = bool(argument(node, "align_corners"))
    matrices = [
        resizing_matrix(length, size if factor is None else factor, mode, align_corners=aligned, antialias=antialias)
        for length, size, factor in zip(lengths, sizes, factors, strict=True)
    ]
    node.replace_all_uses_with(_by_rows_and_columns(module, node, "resize", *matrices))
    module.graph.erase_node(node)


def resizing_matrix(
    length: int, wanted: float, mode: str = "bilinear", *, align_corners: bool = False, antialias: bool = False
) -> Tensor:
    """A resize along one axis, to a size if ``wanted`` is an int, else by a factor, as a matrix: float32 [size, length]."""
    unit = torch.eye(length).reshape(1, 1, length, length)
    size = {"size": (wanted, length)} if isinstance(wanted, int) else {"scale_factor": (wanted, 1.0)}
    resized = torch.nn.functional.interpolate(unit, **size, mode=mode, align_corners=align_corners, antialias=antialias)
    return resized[0, 0].contiguous()


def sum_before_resizing(module: GraphModule) -> int:
    """Maps of one size, each resized to another and then summed, are summed first and resized once.

    Bilinear resizing is linear, so the sum of resizes is the resize of the sum; the small maps cost next to nothing.
    """
    count = 0
    for root in list(module.graph.nodes):
        if not _is_sum(root) or any(_is_sum(user) and _adds_within(user, root) for user in root.users):
            continue
        terms = _terms(root)
        groups: dict[Any, list[Node]] = {}
        for term in terms:
            if term.target is aten.upsample_bilinear2d.vec and len(term.users) == 1 and terms.count(term) == 1:
                source = cast(Node, term.args[0])
                groups.setdefault((node_shape(source), repr(term.args[1:])), []).append(term)
        if all(len(group) == 1 for group in groups.values()):
            continue
        with module.graph.inserting_before(root):
            for group in groups.values():
                if len(group) > 1:
                    total = _sum(module, [cast(Node, term.args[0]) for term in group], group[0].meta)
                    resized = module.graph.call_function(aten.upsample_bilinear2d.vec, (total, *group[0].args[1:]))
                    resized.meta = dict(group[0].meta)
                    terms = [resized if term is group[0] else term for term in terms if term not in group[1:]]
                    count += len(group)
            result = _sum(module, terms, root.meta)
        root.replace_all_uses_with(result)
    module.graph.eliminate_dead_code()
    return count


def _is_sum(node: Node) -> bool:
    """Whether it adds two maps of one size, neither of them weighted."""
    return (
        node.op == "call_function"
        and node.target is aten.add.Tensor
        and not node.kwargs
        and all(isinstance(term, Node) and node_shape(term) == node_shape(node) for term in node.args)
    )


def _adds_within(total: Node, term: Node) -> bool:
    """Whether ``term``, itself a sum, is of no use but to ``total``."""
    return len(term.users) == 1 and total.args.count(term) == 1


def _terms(total: Node) -> list[Node]:
    """What a sum of sums adds up, in its order."""
    terms = []
    for term in cast("tuple[Node, Node]", total.args):
        terms += _terms(term) if _is_sum(term) and _adds_within(total, term) else [term]
    return terms


def _sum(module: GraphModule, terms: list[Node], meta: dict[str, Any]) -> Node:
    """Nodes that add the terms up from the first to the last; ``meta`` names their place in the user's code."""
    total = terms[0]
    for term in terms[1:]:
        value = total.meta["val"]
        total = module.graph.call_function(aten.add.Tensor, (total, term))
        total.meta = {**meta, "val": value}
    return total


def split_max_pooling(module: GraphModule) -> int:
    """Max pooling over large windows as one over columns and one over rows: the same maxima, a fraction of the comparisons.

    Not among :data:`REWRITES`: some runtimes gain a third of the pooling's time, others lose by the map between the two.
    """
    count = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not aten.max_pool2d.default:
            continue
        source, kernel, *rest = cast("tuple[Any, ...]", node.args)
        stride, padding, dilation, ceil_mode = (*rest, *_POOLING[len(rest) :])
        if min(kernel) < SPLIT_FROM or list(dilation) != [1, 1] or ceil_mode:
            continue
        stride = stride or kernel
        with module.graph.inserting_before(node):
            columns = module.graph.call_function(
                aten.max_pool2d.default, (source, [1, kernel[1]], [1, stride[1]], [0, padding[1]])
            )
            both = module.graph.call_function(
                aten.max_pool2d.default, (columns, [kernel[0], 1], [stride[0], 1], [padding[0], 0])
            )
        height = node_shape(source)[2]
        columns.meta = {
            **node.meta,
            "val": node.meta["val"].new_empty((*node_shape(node)[:2], height, node_shape(node)[3])),
        }
        both.meta = dict(node.meta)
        node.replace_all_uses_with(both)
        module.graph.erase_node(node)
        count += 1
    module.graph.lint()
    module.recompile()
    return count


_POOLING: tuple[Any, ...] = ([], [0, 0], [1, 1], False)
"""Defaults of aten.max_pool2d after input and kernel: stride (the kernel's), padding, dilation, ceil_mode."""

SPLIT_FROM = 4
"""Windows of 3x3 are left alone: nine comparisons against six, and a map more to write."""


def change_types_by_to(module: GraphModule) -> int:
    """Write a change of type as ``.to(dtype)``: OpenVINO's frontend does not know the form that it is exported in."""
    count = 0
    for node in module.graph.nodes:
        if node.target == aten._to_copy.default and node.kwargs.get("dtype") is not None:
            node.target, node.args, node.kwargs = aten.to.dtype, (node.args[0], node.kwargs["dtype"]), {}
            count += 1
    module.recompile()
    return count


def _one_over(self: Tensor) -> Any:
    return torch.from_numpy(np.ones((), np.float32)) / self


def divide_one(module: GraphModule) -> int:
    """Reciprocals as quotients of one.

    Not among :data:`REWRITES`: Core ML alone adds 1e-4 to what it takes a reciprocal of.
    """
    count = write_forms(
        module, {aten.reciprocal.default: (_one_over, lambda node: node.meta["val"].is_floating_point())}
    )
    module.recompile()
    return count


def _chosen(self: Tensor, dim: int, index: Tensor) -> Any:
    return self[:, index]


def choose_by_index(module: GraphModule) -> int:
    """A choice of channels as an index.

    Not among :data:`REWRITES`: OpenVINO alone moves the other form into a convolution behind it, in the inverse order.
    """
    of_channels = {aten.index_select.default: (_chosen, lambda node: node.args[1] in (1, 1 - len(node_shape(node))))}
    count = write_forms(module, of_channels)
    module.recompile()
    return count


def attend_with_heads(module: GraphModule) -> int:
    """Attention over [N, L, E] as one head's over [N, 1, L, E].

    Not among :data:`REWRITES`: PyTorch's ONNX exporter alone takes no other (torch 2.13, "only 4D query, key, and value").
    """
    count = 0
    for node in list(module.graph.nodes):
        attends = node.op == "call_function" and node.target is aten.scaled_dot_product_attention.default
        if not attends or len(node_shape(node)) != 3:
            continue
        for index, given in enumerate(node.args):
            if isinstance(given, Node) and len(node_shape(given)) == 3:
                with module.graph.inserting_before(node):
                    headed = module.graph.call_function(aten.unsqueeze.default, (given, 1))
                headed.meta = {**given.meta, "val": given.meta["val"].unsqueeze(1)}
                node.update_arg(index, headed)
        with module.graph.inserting_after(node):
            headless = module.graph.call_function(aten.squeeze.dim, (node, 1))
        headless.meta = dict(node.meta)
        node.meta["val"] = node.meta["val"].unsqueeze(1)
        node.replace_all_uses_with(headless, lambda user, headless=headless: user is not headless)
        count += 1
    module.graph.lint()
    module.recompile()
    return count


def drop_idle(module: GraphModule) -> int:
    """Remove what changes nothing in evaluation: dropout, copies, resizes to the same size, slices of everything."""
    count = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in (aten.view.default, aten._unsafe_view.default):
            # The same values, and needs no copy before it (a channel shuffle's contiguous, attention's own).
            node.target = aten.reshape.default
        idle = node.target in (aten.alias.default, aten.detach.default, aten.clone.default)
        if node.target is aten.dropout.default:
            idle = not argument(node, "train")
        if node.target is aten.upsample_bilinear2d.vec or node.target is aten.slice.Tensor:
            idle = node_shape(node) == node_shape(cast(Node, node.args[0]))
        if idle:
            node.replace_all_uses_with(cast(Node, node.args[0]))
            module.graph.erase_node(node)
            count += 1
    return count


FORMS: Forms = {**arithmetic.FORMS, **windows.FORMS}
"""What is written out in other operations, since a converter does not know it, or drops one of its arguments."""


def write_out(module: GraphModule) -> int:
    """Write the operations of :data:`FORMS` out."""
    return write_forms(module, FORMS)


def is_written_out(node: Node) -> bool:
    """Whether :func:`write_out` takes a node."""
    found = FORMS.get(cast(Any, node.target))
    return found is not None and found[1](node)


MOST_FOLDED = 1_000_000
"""Numbers in a map that is computed of constants, beyond which it is kept as what makes it, which may be far smaller."""


def fold_constants(module: GraphModule, most: int | None = MOST_FOLDED) -> int:
    """Replace each map that no input has a part in by what it is, such as weights that are normalized, or coordinates.

    Args:
        module: the graph.
        most: numbers that a map may have, if it has more than what it is made of; None for any.
    """
    known: dict[Node, Tensor] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(value := constant_tensor(module, node), Tensor):
            known[node] = value
        elif _computes_a_constant(node, known):
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            with torch.no_grad():
                value = node.target(*args, **kwargs)
            held = sum(known[source].numel() for source in node.all_input_nodes)
            if isinstance(value, Tensor) and (most is None or value.numel() <= max(most, held)):
                known[node] = value
    count = 0
    for node, value in known.items():
        if node.op == "call_function" and any(user not in known for user in node.users):
            node.replace_all_uses_with(add_constant(module, node, "folded", value.contiguous()))
            count += 1
    module.graph.eliminate_dead_code()
    drop_unused_constants(module)
    return count


def _computes_a_constant(node: Node, known: Collection[Node]) -> bool:
    is_drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    is_known = node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and not is_drawn
    return is_known and isinstance(node.meta.get("val"), Tensor) and all(one in known for one in node.all_input_nodes)


BROADCASTING = tuple(
    getattr(aten, name)
    for name in ("add", "sub", "mul", "div", "maximum", "minimum", "where", "gt", "ge", "lt", "le", "eq", "ne")
)
"""Operations that repeat a smaller map by themselves."""


def drop_expansions(module: GraphModule) -> int:
    """Remove expansions to the size of a map that they then meet, by which they would be repeated anyway."""
    count = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in (aten.expand.default, aten.expand_as.default):
            continue
        source = cast(Node, node.args[0])
        for user in list(node.users):
            if getattr(user.target, "overloadpacket", None) not in BROADCASTING or "val" not in user.meta:
                continue
            others = [node_shape(one) for one in user.all_input_nodes if one is not node]
            without = torch.broadcast_shapes(node_shape(source), *others)  # type: ignore[no-untyped-call]
            if without == node_shape(user):
                user.replace_input_with(node, source)
                count += 1
    module.graph.eliminate_dead_code()
    return count


REWRITES = (
    drop_idle,
    number_padding,
    write_out,
    fold_constants,
    drop_expansions,
    fold_products,
    fold_batch_norm,
    replace_adaptive_pooling,
    step_by_the_factor,
    resize_by_matrices,
    sum_before_resizing,
)


def apply_rewrites(module: GraphModule) -> tuple[str, ...]:
    """Apply all rewrites; returns lines such as ``fold_batch_norm x 51``."""
    applied = []
    for rewrite in REWRITES:
        count = rewrite(module)
        if count:
            applied.append(f"{rewrite.__name__} x {count}")
    module.graph.eliminate_dead_code()
    drop_unused_constants(module)
    module.graph.lint()
    module.recompile()
    return tuple(applied)
