"""What of a network converts badly, on which target, why, and what helps: rules on its exported ATen graph.

Each rule rests on a conversion with the versions in constraints.txt, which ``tests/export/test_lint.py`` makes again: where a
converter has learned better, the test fails and the rule goes. What converts well everywhere has no rule.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from edgekit.core.errors import EdgekitError, first_line
from edgekit.core.values import DeployableGraph, Size
from edgekit.export.graph import MOST_CLASSES, Logits, export_aten, module_of
from edgekit.export.litert import MOST_LARGEST, can_be_cropped, fits_tensorflow, has_few_largest
from edgekit.export.nodes import argument, sides
from edgekit.export.rewrites import apply_rewrites, is_written_out
from edgekit.networks.subnormals import flush_subnormals

Severity = Literal["fails", "wrong", "slow", "rewritten"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""Worst first. ``fails``: no artifact, or one that does not run. ``wrong``: it converts without a word, to something
else. ``slow``: to a slow form, or to one that int8 leaves in float. ``rewritten``: edgekit mends it."""

Precision = Literal["any", "int8"]

COREML, ONNXRUNTIME, OPENVINO, TENSORRT, TFLITE = "coreml", "onnxruntime", "openvino", "tensorrt", "tflite"
TARGETS = (COREML, ONNXRUNTIME, OPENVINO, TENSORRT, TFLITE)
"""The targets that the rules know."""

SMALLEST_SHARE = 0.01
"""A channel whose range is below this share of the largest has one or two of int8's 127 steps."""


@dataclass(frozen=True)
class Finding:
    """One rule that one place of the network meets.

    Attributes:
        rule: the rule's name.
        severity: see :data:`SEVERITIES`.
        targets: those concerned.
        precision: ``int8`` when float artifacts are not concerned, else ``any``.
        module: name of the module in the user's network; ``""`` is the network itself.
        source: ``file:line`` of the user's code, or ``""`` where it is not known.
        operation: ATen operation, or what else is meant.
        reason, remedy: one sentence each.
        rewrite: the rewrite that mends it, for ``rewritten``.
        count: operations of this kind at this place.
    """

    rule: str
    severity: Severity
    targets: tuple[str, ...]
    precision: Precision
    module: str
    source: str
    operation: str
    reason: str
    remedy: str
    rewrite: str = ""
    count: int = 1


@dataclass(frozen=True)
class Outcome:
    """What becomes of a pattern on some targets, of some of the rule's ``operations`` if any are named. See :class:`Finding`."""

    severity: Severity
    targets: tuple[str, ...]
    reason: str
    precision: Precision = "any"
    operations: tuple[str, ...] = ()


def _always(_: Node) -> bool:
    return True


@dataclass(frozen=True)
class Rule:
    """A pattern that converts badly.

    Attributes:
        name: of the rule.
        operations: names of ATen operations, without overloads; empty for operations that are not ATen's.
        outcomes: what becomes of it.
        remedy: what the user can do.
        when: whether a node of such an operation is meant.
        rewrite: name of the rewrite that mends it; the rule is then asked before the rewrites, else after them.
    """

    name: str
    operations: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    remedy: str
    when: Callable[[Node], bool] = _always
    rewrite: str = ""


# What the rules ask of a node ----------------------------------------------------------------------------------------


def operation_of(node: Node) -> str:
    """``upsample_bilinear2d`` of aten.upsample_bilinear2d.vec; ``library::name`` of an operation that is not ATen's."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return node.target._schema.name.removeprefix("aten::")


def _value(node: Any) -> Tensor | None:
    """The fake tensor that a node makes, or None."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    return value if isinstance(value, Tensor) else None


def _shape(node: Any) -> tuple[int, ...]:
    """Sides of what a node makes; -1 where one depends on the data. Empty when it makes no tensor."""
    value = _value(node)
    return () if value is None else tuple(side if isinstance(side, int) else -1 for side in value.shape)


def _source(node: Node) -> Node | None:
    """The node behind the first argument."""
    return next((argument for argument in node.args[:1] if isinstance(argument, Node)), None)


def _sides(node: Node | None) -> tuple[int, int]:
    """Height and width of what a node makes."""
    height, width = (1, 1, *_shape(node))[-2:]
    return height, width


def _annotate(module: GraphModule) -> None:
    """Note at each node whether its value is known before a frame is, and at each convolution its weights.

    Known are weights and what is computed of them alone.
    """
    for node in module.graph.nodes:
        computed = node.op == "call_function" and all(_is_constant(source) for source in node.all_input_nodes)
        node.meta["constant"] = node.op == "get_attr" or computed
        if operation_of(node) == "conv2d":
            node.meta["weight"] = _weight(module, node)


def _weight(module: GraphModule, node: Node) -> Tensor | None:
    """The weights of a convolution at their values, where they are constants."""
    weight = argument(node, "weight")
    if not isinstance(weight, Node) or weight.op != "get_attr":
        return None
    return cast(Tensor, attrgetter(str(weight.target))(module).detach())


def _is_constant(node: Any) -> bool:
    return not isinstance(node, Node) or bool(node.meta.get("constant"))


def _of_a_map(node: Node) -> bool:
    source = _source(node)
    return source is not None and not _is_constant(source) and len(_shape(source)) == 4


def _divides(node: Node) -> bool:
    (height, width), (rows, columns) = _sides(_source(node)), sides(argument(node, "output_size"), 1)
    return height % rows == 0 and width % columns == 0


def _leaves_remainder(node: Node) -> bool:
    return not _divides(node)


def _not_enlarged_evenly(node: Node) -> bool:
    """A nearest resize to anything but a whole multiple."""
    (height, width), (tall, wide) = _sides(_source(node)), _sides(node)
    return tall % height != 0 or wide % width != 0


def _leaves_a_part_over(node: Node) -> bool:
    """A resize by a factor, to a map that no whole number of pixels gives."""
    factors = argument(node, "scale_factors") or ()
    lengths = _sides(_source(node))
    aligned = bool(argument(node, "align_corners"))
    return not aligned and any(length * factor % 1 for length, factor in zip(lengths, factors, strict=False))


def _groups(node: Node) -> int:
    return int(argument(node, "groups") or 1)


def _has_groups(node: Node) -> bool:
    return _groups(node) > 1


def _has_wide_groups(node: Node) -> bool:
    """Groups with more than one output channel each, and a bias."""
    return _groups(node) > 1 and _shape(argument(node, "weight"))[1] > 1 and argument(node, "bias") is not None


def _has_narrow_groups(node: Node) -> bool:
    """Neither dense nor depthwise, with at most four channels a group."""
    weight = _shape(argument(node, "weight"))
    return _groups(node) > 1 and 1 < weight[1] <= 4


def _is_depthwise(node: Node) -> bool:
    return _groups(node) > 1 and _shape(argument(node, "weight"))[1] == 1


def _is_wide_depthwise(node: Node) -> bool:
    return _is_depthwise(node) and prod(_shape(argument(node, "weight"))[2:]) > 25


def _unlike_tensorflow(node: Node) -> bool:
    """A transposed convolution that neither TensorFlow's two paddings (VALID, SAME) nor a crop behind can say."""
    return not fits_tensorflow(node) and not can_be_cropped(node)


def _is_unfolded_batch_norm(node: Node) -> bool:
    """The convolution by channel that ``fold_batch_norm`` makes where there is none to fold into."""
    weight = node.args[1] if len(node.args) > 1 else None
    return isinstance(weight, Node) and str(weight.target).startswith("by_channel_weight")


def _wraps_around(node: Node) -> bool:
    return bool(argument(node, "mode") == "circular")


def _mirrors(node: Node) -> bool:
    return argument(node, "mode") in ("reflect", "replicate")


def _reads_places(node: Node) -> bool:
    """Whether anything uses the places of the maxima, not only the maxima."""
    return any(user.args[1] == 1 and bool(user.users) for user in node.users)


def _is_dilated(node: Node) -> bool:
    return max(sides(argument(node, "dilation"), 1)) > 1


def _bounds_are_integers(node: Node) -> bool:
    """Bounds given as integers, nn.Hardtanh(-2, 2); ReLU6's own have a form of their own."""
    bounds = (argument(node, "min_val"), argument(node, "max_val"))
    return any(isinstance(bound, int) for bound in bounds) and bounds != (0, 6)


def _is_not_relu6(node: Node) -> bool:
    low, high = (
        argument(node, name) for name in (("min", "max") if operation_of(node) == "clamp" else ("min_val", "max_val"))
    )
    return (low, high) != (0, 6) and None not in (low, high) and _of_a_map(node)


def _is_by_mask(node: Node) -> bool:
    if operation_of(node) == "nonzero":
        return True
    indices = [_value(index) for index in cast("Sequence[Any]", argument(node, "indices") or ())]
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _steps_over_a_map(node: Node) -> bool:
    return int(argument(node, "step") or 1) > 1 and _of_a_map(node) and int(argument(node, "dim") or 0) % 4 > 1


def _uses_running_statistics(node: Node) -> bool:
    return argument(node, "use_input_stats") is False


def _uses_own_statistics(node: Node) -> bool:
    return not _uses_running_statistics(node)


def _divides_by_a_map(node: Node) -> bool:
    divisor = argument(node, "other")
    return isinstance(divisor, Node) and not _is_constant(divisor)


def _of_two_maps(node: Node) -> bool:
    return sum(not _is_constant(source) for source in node.all_input_nodes) > 1 or (
        operation_of(node) == "scaled_dot_product_attention"
    )


def _has_six_dimensions(node: Node) -> bool:
    return len(_shape(node)) > 5 and not _is_constant(node)


def _is_foreign(node: Node) -> bool:
    """Whether an operator is of the user's own library; torchvision's are known to some converters."""
    return "::" in operation_of(node) and not operation_of(node).startswith(("prim", "prims", "torchvision"))


def _ranges_hide_channels(node: Node) -> bool:
    """A depthwise convolution some of whose channels are tiny, although the next convolution lives on them.

    Weights and what follows are read at their values; a channel that nothing makes large again is dead, and harmless. Only behind
    a bound such as ReLU6's: where nothing, ReLU or leaky ReLU is between the two, edgekit equalizes channels itself.
    """
    following, bounded = _next_convolution(node)
    if not _is_depthwise(node) or following is None or not bounded:
        return False
    weight, reader = node.meta.get("weight"), following.meta.get("weight")
    if weight is None or reader is None or reader.shape[1] != weight.shape[0]:
        return False
    ranges = weight.abs().amax((1, 2, 3))
    effect = ranges * reader.abs().amax((0, 2, 3))
    tiny = (ranges < SMALLEST_SHARE * ranges.max()) & (effect > 0.1 * effect.max())
    return bool(tiny.any())


def _next_convolution(node: Node) -> tuple[Node | None, bool]:
    """The only convolution behind a node, by way of activations, and whether one of them has a bound that does not scale."""
    bounded = False
    while len(node.users) == 1:
        node = next(iter(node.users))
        if operation_of(node) == "conv2d":
            return (node if _groups(node) == 1 else None), bounded
        if operation_of(node) not in ("relu", "hardtanh", "leaky_relu", "clamp"):
            break
        bounded |= operation_of(node) in ("hardtanh", "clamp")
    return None, bounded


# The rules -----------------------------------------------------------------------------------------------------------

_XNNPACK = "which XNNPACK, LiteRT's fast path on a CPU, does not take"


UNKNOWN: dict[str, tuple[str, ...]] = {
    COREML: ("cummax", "cummin", "prod", "index_add", "index_fill", "cdist", "upsample_trilinear3d"),
    ONNXRUNTIME: ("cummax", "cummin", "cumprod"),
    OPENVINO: ("cummax", "cummin", "cumprod", "index_fill"),
    TENSORRT: ("cummax", "cummin", "cumprod"),
    TFLITE: ("cummax", "cummin", "cumprod", "scatter_add", "index_add", "index_fill"),
}
"""Operations that a target does not have, and that have no form in others that would be as exact."""

UNKNOWN_OPERATIONS = tuple(dict.fromkeys(name for names in UNKNOWN.values() for name in names))

WRITTEN_OUT = (
    "add", "sub", "rsub", "addcmul", "addcdiv", "lerp", "dot", "hypot", "round", "trunc", "fix", "frac", "fmod", "sgn", "fmax",
    "fmin", "heaviside", "isinf", "nan_to_num", "xlogy", "sinc", "bilinear", "lstm_cell", "bucketize", "one_hot", "exp2", "erfc",
    "asinh", "acosh", "logit", "logaddexp", "logaddexp2", "softplus", "threshold", "elu", "rrelu", "var", "std", "var_mean",
    "std_mean", "aminmax", "kthvalue", "median", "count_nonzero", "cosine_similarity", "pairwise_distance", "rms_norm",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "rot90", "take_along_dim", "unfold", "__and__", "__or__", "__xor__",
)  # fmt: skip
"""Operations that ``write_out`` knows and no other rule names."""

RULES: tuple[Rule, ...] = (
    Rule(
        "custom-operation",
        (),
        (Outcome("fails", TARGETS, "no converter knows an operation of your own library"),),
        "write it with plain torch operations, at least in the forward pass that is exported",
        _is_foreign,
    ),
    Rule(
        "spelled-out",
        WRITTEN_OUT,
        (
            Outcome(
                "rewritten",
                TARGETS,
                "some converters do not know this operation, or drop one of its arguments without a word",
            ),
        ),
        "nothing to do: edgekit writes it out in operations that all of them have right",
        is_written_out,
        "write_out",
    ),
    Rule(
        "unknown-operation",
        UNKNOWN_OPERATIONS,
        tuple(
            Outcome("fails", (target,), "its converter, or its runtime, does not have this operation", operations=names)
            for target, names in UNKNOWN.items()
        ),
        "write it with arithmetic, pooling or topk, or keep to the targets that have it",
    ),
    Rule(
        "computed-kernel",
        ("conv2d",),
        (Outcome("slow", (TFLITE,), "weights that are made of the frame: it becomes slices of the map and products"),),
        "nothing to do where few layers have such weights; else mix the results of fixed convolutions instead",
        lambda node: not _is_constant(argument(node, "weight")),
    ),
    Rule(
        "topk",
        ("topk",),
        (
            Outcome(
                "slow", (TFLITE,), f"it becomes {MOST_LARGEST} or fewer searches for the largest, one after another"
            ),
        ),
        "choose fewer, or use max_pool or amax",
        has_few_largest,
    ),
    Rule(
        "sort",
        ("topk", "sort", "argsort"),
        (Outcome("fails", (TFLITE,), "it becomes STABLEHLO_SORT, which the LiteRT interpreter refuses"),),
        f"choose {MOST_LARGEST} or fewer of the largest with topk",
        lambda node: operation_of(node) != "topk" or not has_few_largest(node),
    ),
    Rule(
        "bicubic",
        ("upsample_bicubic2d",),
        (
            Outcome("rewritten", (COREML, TENSORRT), "neither coremltools nor TensorRT's parser has a bicubic resize"),
            Outcome("rewritten", (TFLITE,), "LiteRT has none: 16 gathers and 17 transposes stand in for it"),
        ),
        "nothing to do: edgekit makes it products with constant matrices; mode='bilinear' is faster",
        rewrite="resize_by_matrices",
    ),
    Rule(
        "nearest-exact",
        ("_upsample_nearest_exact2d",),
        (
            Outcome("rewritten", (COREML, OPENVINO), "its converter does not know nearest-exact"),
            Outcome("rewritten", (ONNXRUNTIME, TENSORRT, TFLITE), "a gather by index maps stands in for the resize"),
        ),
        "nothing to do: edgekit makes it a plain resize by whole multiples, else a choice of rows and of columns",
        rewrite="write_out",
    ),
    Rule(
        "nearest-uneven",
        ("upsample_nearest2d",),
        (
            Outcome(
                "slow",
                (TFLITE,),
                "LiteRT takes other pixels than PyTorch unless the map grows by a whole multiple: edgekit makes it two gathers",
            ),
        ),
        "resize by whole multiples, use mode='bilinear', or subsample with max_pool2d(x, 1, stride)",
        _not_enlarged_evenly,
    ),
    Rule(
        "adaptive-max-pooling",
        ("adaptive_max_pool2d",),
        (
            Outcome("rewritten", (TFLITE,), "litert-torch has no adaptive max pooling"),
            Outcome("rewritten", (ONNXRUNTIME, TENSORRT), "the ONNX exporter takes only bins that divide the map"),
            Outcome("rewritten", (COREML,), "it becomes a slice and a maximum for every bin"),
        ),
        "nothing to do: edgekit makes it a maximum for each row of bins, and for each column of those",
        _leaves_remainder,
        "write_out",
    ),
    Rule(
        "adaptive-average-pooling",
        ("adaptive_avg_pool2d",),
        (
            Outcome(
                "rewritten",
                (COREML, ONNXRUNTIME, TENSORRT, TFLITE),
                "bins that do not divide the map become slices and sums, one or more for every bin",
            ),
        ),
        "nothing to do: edgekit makes it a product with a constant bin matrix, or one each for rows and columns",
        _leaves_remainder,
        "replace_adaptive_pooling",
    ),
    Rule(
        "uneven-factor",
        ("upsample_bilinear2d",),
        (
            Outcome("rewritten", (COREML,), "coremltools refuses a factor that leaves a part of a pixel over"),
            Outcome("rewritten", (TFLITE,), "litert-torch then steps through the map by another factor than PyTorch"),
        ),
        "nothing to do: edgekit makes it products with constant matrices; give size= instead of scale_factor= for a faster resize",
        _leaves_a_part_over,
        "step_by_the_factor",
    ),
    Rule(
        "batch-norm",
        ("_native_batch_norm_legit_no_training",),
        (
            Outcome(
                "rewritten", (COREML, OPENVINO), "the converter does not know batch norm in the form it is exported in"
            ),
        ),
        "nothing to do: edgekit folds it into the convolutions before it, or makes it one of its own",
        rewrite="fold_batch_norm",
    ),
    Rule(
        "unfolded-batch-norm",
        ("conv2d",),
        (
            Outcome(
                "slow",
                (ONNXRUNTIME, TENSORRT, TFLITE),
                "no convolution before this batch norm can take it, so that it becomes one of its own, over the whole map",
            ),
        ),
        "put the batch norm behind a convolution that nothing else reads",
        _is_unfolded_batch_norm,
    ),
    Rule(
        "transposed-convolution-padding",
        ("conv_transpose2d",),
        (
            Outcome(
                "fails",
                (TFLITE,),
                "LiteRT has it undilated only, and with no more output_padding than padding",
            ),
        ),
        "use kernel 4, stride 2, padding 1, or a bilinear resize and a convolution",
        _unlike_tensorflow,
    ),
    Rule(
        "transposed-convolution-groups",
        ("conv_transpose2d",),
        (
            Outcome("slow", (TFLITE,), "it becomes a slice and a transposed convolution for every group"),
            Outcome("slow", (OPENVINO,), "NNCF leaves a grouped transposed convolution in float", "int8"),
        ),
        "use a bilinear resize (a fixed depthwise one is just that), or groups=1",
        _has_groups,
    ),
    Rule(
        "transposed-convolution-wide-groups",
        ("conv_transpose2d",),
        (
            Outcome(
                "fails",
                (ONNXRUNTIME,),
                "ONNX Runtime's quantizer miscounts the channels of a group with a bias",
                "int8",
            ),
        ),
        "use groups=1 or bias=False",
        _has_wide_groups,
    ),
    Rule(
        "transposed-convolution-int8",
        ("conv_transpose2d",),
        (Outcome("slow", (ONNXRUNTIME,), "ONNX Runtime has no int8 kernel for it and computes in float", "int8"),),
        "use a bilinear resize and a convolution, which int8 takes",
        lambda node: not _has_wide_groups(node),
    ),
    Rule(
        "circular-padding",
        ("pad",),
        (
            Outcome("rewritten", (COREML,), "coremltools has no circular padding"),
            Outcome("rewritten", (TFLITE,), "it becomes slices, paddings and selections, some outside XNNPACK"),
        ),
        "nothing to do: edgekit joins the map's ends to it; zero padding is part of the convolution",
        _wraps_around,
        "write_out",
    ),
    Rule(
        "mirror-padding",
        ("pad",),
        (Outcome("slow", (TFLITE,), f"reflect and replicate become a mirror padding or gathers, {_XNNPACK}"),),
        "use zero padding, which is part of the convolution",
        _mirrors,
    ),
    Rule(
        "group-norm",
        ("group_norm",),
        (Outcome("slow", (COREML, TFLITE), "it becomes nine or more operations, reshapes among them"),),
        "use batch norm, which costs nothing once folded",
    ),
    Rule(
        "layer-norm",
        ("layer_norm",),
        (Outcome("slow", (TFLITE,), "it becomes a dozen operations, among them five reshapes"),),
        "use batch norm, which costs nothing once folded",
    ),
    Rule(
        "instance-norm",
        ("instance_norm",),
        (Outcome("slow", (TFLITE,), "it becomes ten operations with two transposes"),),
        "use batch norm, which costs nothing once folded",
        _uses_own_statistics,
    ),
    Rule(
        "instance-norm-statistics",
        ("instance_norm",),
        (Outcome("rewritten", (COREML,), "coremltools drops the running statistics and takes the frame's own"),),
        "nothing to do: edgekit makes it the batch norm that it is in evaluation",
        _uses_running_statistics,
        "write_out",
    ),
    Rule(
        "division-by-a-map",
        ("div",),
        (Outcome("slow", (TFLITE,), "int8 leaves it in float, between a dequantize and a quantize", "int8"),),
        "multiply with a sigmoid instead, or convert in fp32",
        _divides_by_a_map,
    ),
    Rule(
        "smooth-activation",
        ("mish", "softplus", "elu", "celu"),
        (
            Outcome(
                "slow", (TFLITE,), f"it becomes four to seven operations with a comparison and a selection, {_XNNPACK}"
            ),
        ),
        "use ReLU or Hardswish, and train a few epochs with it",
        _of_a_map,
    ),
    Rule(
        "unknown-activation",
        ("celu", "log_sigmoid"),
        (Outcome("rewritten", (COREML,), "coremltools does not know this activation"),),
        "nothing to do: edgekit writes it as an ELU, or as a softplus",
        rewrite="write_out",
    ),
    Rule(
        "int8-activation",
        ("leaky_relu", "hardtanh", "clamp"),
        (Outcome("slow", (TFLITE,), "int8 leaves it in float, between a dequantize and a quantize", "int8"),),
        "use ReLU or ReLU6, which are part of the convolution",
        lambda node: operation_of(node) == "leaky_relu" or _is_not_relu6(node),
    ),
    Rule(
        "float-activation",
        ("gelu", "silu", "hardswish", "mish", "prelu", "elu"),
        (Outcome("slow", (ONNXRUNTIME,), "ONNX Runtime's int8 leaves it in float, as one to five operations", "int8"),),
        "use ReLU, ReLU6 or LeakyReLU, and train a few epochs with it",
        _of_a_map,
    ),
    Rule(
        "integer-bounds",
        ("hardtanh",),
        (Outcome("rewritten", (COREML,), "coremltools refuses bounds that are integers"),),
        "nothing to do: edgekit writes them as floats",
        _bounds_are_integers,
        "write_out",
    ),
    Rule(
        "channel-shuffle",
        ("channel_shuffle",),
        (Outcome("rewritten", (COREML,), "coremltools does not know nn.ChannelShuffle"),),
        "nothing to do: edgekit writes it as reshape, transpose and reshape",
        rewrite="write_out",
    ),
    Rule(
        "pixel-shuffle",
        ("pixel_shuffle", "pixel_unshuffle"),
        (Outcome("slow", (TFLITE,), "it becomes three reshapes and transposes of the whole map"),),
        "use a bilinear resize and a convolution, or leave the last shuffle to the decoder",
    ),
    Rule(
        "grid-sample",
        ("grid_sampler",),
        (
            Outcome("slow", (TFLITE,), "some eighty operations stand in for it, comparisons and gathers among them"),
            Outcome("wrong", (TFLITE,), "the places to sample at are rounded to 255 steps over the map", "int8"),
        ),
        "replace the warp by plain convolutions and resizes, or keep to the targets that have it",
    ),
    Rule(
        "affine-grid",
        ("affine_grid_generator",),
        (
            Outcome("rewritten", (OPENVINO,), "OpenVINO's frontend does not know affine_grid"),
            Outcome("rewritten", (COREML,), "coremltools knows affine_grid only with grid_sample right behind it"),
        ),
        "nothing to do: edgekit makes it a product with a constant, or a constant where the transform is one",
        rewrite="write_out",
    ),
    Rule(
        "max-unpooling",
        ("max_unpool2d",),
        (
            Outcome(
                "fails",
                (COREML, OPENVINO, TENSORRT, TFLITE),
                "writing to places that depend on the frame is more than its converter can",
            ),
        ),
        "use a bilinear resize, or max pooling's input through a skip connection",
    ),
    Rule(
        "pooling-places",
        ("max_pool2d_with_indices",),
        (
            Outcome("wrong", (TFLITE,), "litert-torch gives other numbers for the places of the maxima"),
            Outcome("fails", (TENSORRT,), "TensorRT's parser gives the maxima only"),
            Outcome("fails", (COREML,), "coremltools does not know max pooling with return_indices"),
        ),
        "leave return_indices out",
        _reads_places,
    ),
    Rule(
        "pooling-with-places",
        ("max_pool2d_with_indices",),
        (Outcome("rewritten", (COREML,), "coremltools does not know max pooling with return_indices"),),
        "nothing to do: edgekit leaves the places out",
        lambda node: not _reads_places(node),
        "write_out",
    ),
    Rule(
        "dilated-max-pooling",
        ("max_pool2d",),
        (
            Outcome("fails", (COREML, TENSORRT), "neither coremltools nor TensorRT's parser has a dilated max pooling"),
            Outcome("slow", (TFLITE,), f"it becomes a reduction over windows, {_XNNPACK}"),
            Outcome("fails", (TFLITE,), "ai-edge-quantizer does not know the reduction that it becomes", "int8"),
        ),
        "use an undilated pooling, or two in a row",
        _is_dilated,
    ),
    Rule(
        "mask",
        ("index", "index_put", "nonzero"),
        (Outcome("fails", (TFLITE,), "the number of pixels that a mask selects depends on the frame"),),
        "use torch.where(mask, x, 0), whose size does not depend on the frame",
        _is_by_mask,
    ),
    Rule(
        "mask-assignment",
        ("index_put",),
        (Outcome("fails", (OPENVINO,), "OpenVINO's frontend does not know an assignment by a mask"),),
        "use torch.where(mask, value, x)",
        _is_by_mask,
    ),
    Rule(
        "assignment",
        ("slice_scatter", "select_scatter"),
        (
            Outcome("rewritten", (COREML, OPENVINO), "its converter does not know an assignment to a part of a map"),
            Outcome("rewritten", (TFLITE,), f"it becomes a padding and a selection, {_XNNPACK}"),
        ),
        "nothing to do: edgekit joins what is written to what is left",
        lambda node: argument(node, "step") in (None, 1),
        "write_out",
    ),
    Rule(
        "eye",
        ("eye",),
        (Outcome("rewritten", (TFLITE,), "it becomes STABLEHLO_IOTA, which the LiteRT interpreter refuses"),),
        "nothing to do: edgekit computes constants once",
        rewrite="fold_constants",
    ),
    Rule(
        "fourier-transform",
        ("fft_rfft2", "fft_irfft2"),
        (Outcome("fails", (COREML, TENSORRT, TFLITE), "its converter has no two-dimensional Fourier transform"),),
        "use a large convolution instead, or keep to the targets that have it",
    ),
    Rule(
        "unfold",
        ("im2col",),
        (Outcome("slow", (TFLITE,), "it becomes gathers by index maps, with transposes around them"),),
        "write it as a convolution with a fixed kernel, or as shifted slices",
    ),
    Rule(
        "fold",
        ("col2im",),
        (
            Outcome(
                "fails", (TENSORRT, TFLITE), "the sums of overlapping windows become a scatter that it does not have"
            ),
        ),
        "use a transposed convolution with a fixed kernel",
    ),
    Rule(
        "product-of-maps",
        ("matmul", "bmm", "scaled_dot_product_attention"),
        (
            Outcome(
                "slow", (TFLITE,), "edgekit keeps products of two maps in float, with a change of type around", "int8"
            ),
        ),
        "nothing to do where attention works on a small map; else attend at a larger stride",
        _of_two_maps,
    ),
    Rule(
        "six-dimensions",
        ("permute", "transpose"),
        (Outcome("slow", (COREML,), "Core ML has five dimensions: coremltools splits it into a dozen operations"),),
        "partition rows and columns in two steps of at most five dimensions",
        _has_six_dimensions,
    ),
    Rule(
        "strided-slice",
        ("slice",),
        (Outcome("slow", (TFLITE,), f"a strided slice, {_XNNPACK}"),),
        "use a convolution with stride 2, whose weights can do the same",
        _steps_over_a_map,
    ),
    Rule(
        "spectral-norm",
        ("vdot",),
        (Outcome("rewritten", (COREML, OPENVINO), "the parametrization is exported along and cannot be converted"),),
        "nothing to do: edgekit computes weights that no frame has a part in once",
        rewrite="fold_constants",
    ),
    Rule(
        "narrow-groups",
        ("conv2d",),
        (Outcome("slow", (ONNXRUNTIME, TFLITE), "int8 is slower than float with so few channels a group", "int8"),),
        "use depthwise or dense convolutions, or at least eight channels a group",
        _has_narrow_groups,
    ),
    Rule(
        "large-depthwise-kernel",
        ("conv2d",),
        (Outcome("slow", (TFLITE,), "int8 is slower than float: the fast int8 kernels end at 5x5", "int8"),),
        "use 5x5 or smaller kernels, or several in a row",
        _is_wide_depthwise,
    ),
    Rule(
        "channel-ranges",
        ("conv2d",),
        (
            Outcome(
                "wrong",
                TARGETS,
                "some channels have less than 1/100 of the largest one's range, int8 has one scale for all of them, and behind a "
                "bound such as ReLU6's edgekit cannot equalize them",
                "int8",
            ),
        ),
        "use ReLU, whose channels edgekit equalizes by itself, or train with weight decay",
        _ranges_hide_channels,
    ),
)


# From a network to findings ------------------------------------------------------------------------------------------


def lint(network: nn.Module, size: Size, classes: int | None = None) -> tuple[Finding, ...]:
    """What of a network converts badly at a size, worst first. Weights may be random.

    Args:
        network: takes float32 [1, 3, H, W] and gives logits, as :func:`edgekit.deployable` asks.
        size: input size.
        classes: channels of the logits that are classes; all by default.

    Raises:
        CheckpointError: the output is no map of logits.
    """
    flush_subnormals()  # here, since this may be the first parallel work
    size.check()
    weights = tuple(_weights(network))
    logits = Logits(network, classes).float().eval()
    example = torch.randn(1, 3, size.height, size.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if (failure := _failure(lambda: logits(example))) is not None:
            return (_at_no_such_size(logits, size, failure),)
        try:
            module = export_aten(logits, example)
        except Exception as error:  # torch.export raises many types; each means that this network cannot be exported
            return (_not_exportable(error),)
        mended = list(_rules_met(module, rewritten=True))
        apply_rewrites(module)
    return _sorted([*mended, *_rules_met(module, rewritten=False), *_of_the_output(module.graph, size), *weights])


def grave(graph: DeployableGraph, target: str, precision: str) -> tuple[str, ...]:
    """What of a deployable graph fails or is wrong on a target in a precision, a sentence each; nothing of a target without rules."""
    found = [*_rules_met(graph.module, rewritten=False), *_of_the_output(graph.module.graph, graph.size)]
    return tuple(
        f"{finding.severity} on {target}: {finding.operation or 'the network'} in '{finding.module or 'the network itself'}"
        f"{f' ({finding.source})' if finding.source else ''}, {finding.reason}; {finding.remedy}"
        for finding in _sorted(found)
        if finding.severity in ("wrong", "fails")
        and target in finding.targets
        and finding.precision in ("any", precision)
    )


def failures(module: GraphModule, target: str) -> list[Finding]:
    """What of an exported and rewritten graph is known to fail on a target, in the graph's order."""
    found = _rules_met(module, rewritten=False)
    return [entry for entry in found if entry.severity == "fails" and target in entry.targets]


def _failure(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except EdgekitError:
        raise
    except Exception as error:  # a user's network and torch.export fail in ways of their own
        return error
    return None


def _sorted(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Equal findings of one place as one with a count; worst first, else in the network's order."""
    merged: dict[Finding, int] = {}
    for finding in findings:
        merged[finding] = merged.get(finding, 0) + finding.count
    counted = [replace(finding, count=count) for finding, count in merged.items()]
    return tuple(sorted(counted, key=lambda finding: SEVERITIES.index(finding.severity)))


def _rules_met(module: GraphModule, *, rewritten: bool) -> Iterator[Finding]:
    """The rules that a graph's nodes meet: those that a rewrite mends, or the others."""
    _annotate(module)
    rules = [rule for rule in RULES if bool(rule.rewrite) == rewritten]
    for node in module.graph.nodes:
        operation = operation_of(node)
        for rule in rules if operation else ():
            if (not rule.operations or operation in rule.operations) and rule.when(node):
                for outcome in rule.outcomes:
                    if outcome.operations and operation not in outcome.operations:
                        continue
                    yield Finding(
                        rule=rule.name, severity=outcome.severity, targets=outcome.targets, precision=outcome.precision,
                        module=module_of(node), source=source_of(node), operation=operation, reason=outcome.reason,
                        remedy=rule.remedy, rewrite=rule.rewrite,
                    )  # fmt: skip


# Where a node comes from ---------------------------------------------------------------------------------------------

_NOT_THE_USERS = (os.path.dirname(torch.__file__), os.path.dirname(__file__))


def source_of(node: Node) -> str:
    """The innermost line of the user's code that a node comes from."""
    places = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return next(
        (f"{_short(file)}:{line}" for file, line in reversed(places) if not file.startswith(_NOT_THE_USERS)), ""
    )


def _source_of_error(error: BaseException | None) -> str:
    """The innermost line of the user's code that an error passed through, or the one that its text names."""
    text = ""
    while error is not None:
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename.endswith(".py") and not frame.filename.startswith(_NOT_THE_USERS):
                return f"{_short(frame.filename)}:{frame.lineno}"
        text += str(error)
        error = error.__cause__ or error.__context__
    places = re.findall(r'File "([^"]+)", line (\d+)', text)
    return next(
        (f"{_short(file)}:{line}" for file, line in reversed(places) if not file.startswith(_NOT_THE_USERS)), ""
    )


def _short(file: str) -> str:
    """A path as one would type it here."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


# Findings about the network as a whole -------------------------------------------------------------------------------


def _of_the_network(rule: str, severity: Severity, operation: str, reason: str, remedy: str, **more: Any) -> Finding:
    finding = Finding(rule, severity, TARGETS, "any", "", "", operation, reason, remedy)
    return replace(finding, **more)


def _at_no_such_size(network: nn.Module, size: Size, error: Exception) -> Finding:
    remedy = "make it run in PyTorch first, or try another --size"
    for multiple in (2, 4, 8, 16, 32, 64, 128):
        other = Size(-(-size.height // multiple) * multiple, -(-size.width // multiple) * multiple)
        if other != size and _failure(partial(network, torch.zeros(1, 3, other.height, other.width))) is None:
            remedy = f"use --size {other}, or make the network pad its input to multiples of {multiple}"
            break
    return _of_the_network(
        "size", "fails", "forward", f"the network does not run at {size} ({first_line(error)})", remedy,
        source=_source_of_error(error),
    )  # fmt: skip


def _not_exportable(error: Exception) -> Finding:
    text = f"{type(error).__name__} {error}"
    if re.search(r"data-dependent|DataDependent|unbacked", text, re.IGNORECASE):
        reason = "what is computed there depends on the values of a frame, and an exported graph is fixed"
        remedy = "decide by shapes or constants, or compute both sides and choose with torch.where"
    elif "numpy" in text:
        reason = "torch.export cannot follow values into numpy"
        remedy = "compute it in torch, or once in the constructor as a buffer"
    else:
        reason = f"torch.export cannot take it ({first_line(error)})"
        remedy = "write this line with plain torch operations on the tensors it is given"
    return _of_the_network("not-exportable", "fails", "torch.export", reason, remedy, source=_source_of_error(error))


def _of_the_output(graph: Graph, size: Size) -> Iterator[Finding]:
    """The last operations: those that edgekit's decoder or the argmax makes idle."""
    output = next(node for node in graph.nodes if node.op == "output")
    node: Node | None = output.all_input_nodes[0] if output.all_input_nodes else None
    classes = _shape(node)[1]
    if classes == 1:
        yield _of_the_network(
            "one-channel", "wrong", operation_of(node) if node else "",
            "the largest of one channel is that channel, so every label is 0, whatever a threshold would say",
            "give two channels, such as torch.cat([torch.zeros_like(x), x], 1) of the logit x, whose argmax is its sign",
        )  # fmt: skip
    if classes > MOST_CLASSES:
        yield _of_the_network(
            "many-classes", "fails", operation_of(node) if node else "",
            f"it gives {classes} classes, and a label is one byte", f"give {MOST_CLASSES} channels at most",
        )  # fmt: skip
    while node is not None and operation_of(node) in ("slice", "softmax", "log_softmax", "sigmoid", "_softmax"):
        if operation_of(node) != "slice":
            yield _of_the_network(
                "probabilities", "slow", operation_of(node),
                "the class with the largest logit is the one with the largest probability, and computing it costs a pass over all classes",
                "give the logits, and take the softmax where probabilities are shown",
                module=module_of(node), source=source_of(node),
            )  # fmt: skip
        node = _source(node)
    if node is None or not operation_of(node).startswith("upsample") or _sides(node) != (size.height, size.width):
        return
    aligned = bool(argument(node, "align_corners"))
    reason = f"{_shape(node)[1]} full-size channels are written and read again for one label a pixel"
    if operation_of(node) != "upsample_bilinear2d" or aligned:
        form = "align_corners" if aligned else "another mode than bilinear"
        reason += f", and {form} is not what edgekit's exact decoder interpolates"
        remedy = "train with bilinear and align_corners=False, then leave it out: edgekit upsamples exactly from the small map"
        rule = "final-upsampling-form"
    else:
        remedy = "leave the final upsampling out: edgekit decides the same labels exactly from the small map"
        rule = "final-upsampling"
    yield _of_the_network(
        rule, "slow", operation_of(node), reason, remedy, module=module_of(node), source=source_of(node)
    )


def _weights(network: nn.Module) -> Iterator[Finding]:
    """Weights that no arithmetic likes. Read as bits, since a subnormal number may be flushed to zero in any other way."""
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            continue
        bits = value.detach().cpu().contiguous().numpy().view(np.uint32) & 0x7FFFFFFF
        module, _, parameter = name.rpartition(".")
        if broken := int((bits >= 0x7F800000).sum()):
            yield _of_the_network(
                "not-finite", "wrong", parameter, f"{broken} of {bits.size} values are NaN or infinite", "train it again",
                module=module,
            )  # fmt: skip
        if tiny := int(((bits > 0) & (bits < 0x00800000)).sum()):
            yield _of_the_network(
                "subnormal", "slow", parameter,
                f"{tiny} of {bits.size} values are subnormal, which ONNX Runtime by default computes up to a hundred times slower",
                "set values below 1e-30 to zero, or session.set_denormal_as_zero to 1 in your app, as edgekit's session does",
                module=module, targets=(ONNXRUNTIME,),
            )  # fmt: skip
