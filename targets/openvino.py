"""OpenVINO: IR quantized by NNCF, run by the CPU plugin."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import ConversionError
from edgekit.core.registry import missing_packages, versions
from edgekit.core.seam import Session
from edgekit.core.values import (
    Artifact,
    Converted,
    DeployableGraph,
    Engine,
    Float32,
    OutputKind,
    Precision,
    Quantization,
    Recipe,
    SessionOptions,
    Size,
    UInt8,
)
from edgekit.export.sizes import decision_size
from edgekit.runtimes.openvino import load, open_session, without_telemetry
from targets.common import (
    SMALLEST_REACH,
    Recognized,
    float_edges,
    kept_layers,
    native_output,
    planes,
    recognize,
    require_quantization,
)

Source = tuple[str, int]
"""An operation's name in the float core, and which of its results."""

JOINED = ("Add", "Clamp", "Elu", "HSigmoid", "HSwish", "PRelu", "Relu", "Sigmoid")
"""What the CPU plugin makes part of the operation before."""

CARRYING = (
    "MaxPool", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Concat", "Split", "VariadicSplit", "Slice", "StridedSlice",
    "Gather", "ShuffleChannels", "DepthToSpace", "SpaceToDepth",
)  # fmt: skip
"""What gives the values that it reads: what reads those reads them rounded, if they are."""

OF_DIVISORS = ("Multiply", "Power", "Sqrt", "ReduceSum", "ReduceMean", *CARRYING)
"""What makes a divisor of larger things: a step of int8, small beside those, may be all that is left of it."""

VIEWS = ("Reshape", "Squeeze", "Unsqueeze")
"""What gives the tensor that it reads another shape, in the same memory."""

CONSTANT = ("Constant", "Convert")

# NNCF would put quantizers around the constant pooling products and the resizes, where int8 gains nothing.
KEPT_FLOAT = ("MatMul", "Interpolate")

WEIGHTED = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
"""Operations whose bias is a sum of its own."""

QUANTIZED = (
    *(kind for kind in WEIGHTED if kind not in KEPT_FLOAT),
    *("Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "AvgPool", "MaxPool", "ReduceMean", "Concat"),
)
"""Operations that NNCF has read int8."""

ELEMENTS_AT_ONCE = 1 << 28
"""Tensors of so many elements are read together."""

SMALLEST_SHARE = 1e-3
"""The least of a channel's range, as a share of the widest channel's."""


WITHOUT_VNNI = (
    "the CPU plugin adds pairs of int8 products in 16 bits there, which overflow where two values in the upper half of "
    "their range meet two of the largest weights: edgekit evaluate on such a CPU shows whether that matters to your network"
)


@dataclass(frozen=True)
class OpenVINO:
    """The ``openvino`` target."""

    name: str = "openvino"
    title: str = "OpenVINO"
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    output: OutputKind = "logits"
    device_pages: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """See :class:`edgekit.Target`."""
        return missing_packages(("openvino", "nncf", "torch"), "openvino")

    def tools(self) -> Mapping[str, str]:
        """See :class:`edgekit.Target`."""
        return versions("openvino", "nncf", "torch", "numpy")

    def engine(self) -> Engine:
        """See :class:`edgekit.Target`."""
        return Engine("measured", f"OpenVINO {versions('openvino').get('openvino', '')} CPU plugin")

    def convert(
        self, graph: DeployableGraph, recipe: Recipe, quantization: Quantization | None, folder: Path
    ) -> Converted:
        """The core first, quantized alone, then the edges around it.

        NNCF over the whole frame-to-labels graph gives a model that the CPU plugin cannot compile.
        """
        ov = load()
        size = graph.size
        with without_telemetry():
            core = _core(graph).clone()
            kept: tuple[str, ...] = ()
            if recipe.precision == "int8":
                core, kept = _quantize(core, graph, recipe, require_quantization(recipe, quantization))
        _copy_before_transposes(core)
        model = _add_edges(core, graph, recipe)
        _name_by_place(model)
        ov.save_model(model, folder / "model.xml", compress_to_fp16=recipe.precision == "fp16")
        quantized = recipe.precision == "int8"
        return Converted(
            model="model.xml",
            native_input=f"uint8 [1,{size.height},{size.width},3] RGB",
            native_output=native_output(graph, recipe, channels_last=True),
            tools=self.tools(),
            kept_float=(*kept, *float_edges(recipe)) if quantized else (),
            scheme="asymmetric" if quantized else None,
            notes={"weights": "model.bin lies beside model.xml and is part of the model"}
            | ({"on x86 without VNNI": WITHOUT_VNNI} if quantized else {}),
        )

    def open(self, artifact: Artifact, options: SessionOptions) -> AbstractContextManager[Session]:
        """See :class:`edgekit.Target`."""
        return open_session(artifact, options)

    def show_tensors(self, artifact: Artifact, frame: UInt8, look: Callable[[str, NDArray[Any]], None]) -> None:
        """See :class:`edgekit.core.seam.Inspectable`."""
        ov = load()
        model = ov.Core().read_model(artifact.model_path)
        elements = {source: np.prod(node.get_output_shape(0)) for source, node in _float_results(model).items()}
        left = sorted(elements, key=lambda source: -elements[source])
        while left:  # gigabytes in all
            together: list[Source] = []
            held = 0
            while left and (not together or held + elements[left[-1]] <= ELEMENTS_AT_ONCE):
                together.append(left.pop())
                held += elements[together[-1]]
            order, values = _open(model, set(together), lambda one: one)
            for (name, index), value in zip(order, values(frame), strict=True):
                look(f"{name}:{index}", value)


def _core(graph: DeployableGraph) -> Any:
    """The core as an OpenVINO model, converted once for all precisions; users clone it, since edges are added in place."""
    return graph.derived.once("openvino core", None, lambda: _convert(graph))


def _convert(graph: DeployableGraph) -> Any:
    import torch

    from edgekit.export.pixels import on_centred_pixels
    from edgekit.export.refusals import refusal
    from edgekit.export.rewrites import change_types_by_to, choose_by_index, split_max_pooling

    shape = [1, 3, graph.size.height, graph.size.width]
    module = on_centred_pixels(graph)
    change_types_by_to(module)
    choose_by_index(module)
    split_max_pooling(module)  # a tenth of a bf16 graph's time on CPUs with AMX
    with torch.no_grad():  # given a module, OpenVINO traces it twice
        traced = torch.jit.trace(module, torch.zeros(*shape), check_trace=False)  # type: ignore[no-untyped-call]
    try:
        return load().convert_model(traced, input=shape)
    except Exception as error:  # its frontend raises many types; each means that it cannot take this network
        raise refusal(graph, "openvino", "OpenVINO", error) from error


def _quantize(
    core: Any, graph: DeployableGraph, recipe: Recipe, quantization: Quantization
) -> tuple[Any, tuple[str, ...]]:
    """Quantizers where NNCF puts them, for the ranges that were worked out.

    And what stays in float: layers, and kinds of operations.
    """
    import nncf

    def centred(frame: UInt8) -> Float32:
        return planes(frame - graph.normalization.mean_colour())

    results = _float_results(core)
    looked_at = (
        set(results) if recipe.keep_float else set()
    )  # the others are looked at once it is known which are quantized
    seen = _recognize(core, looked_at, graph, recipe, quantization, centred)
    kept = _kept(results, seen)
    floats = {*kept, *_wrongly_padded(core), *_of_divisions(core)}
    try:
        quantized = nncf.quantize(
            core.clone(),
            nncf.Dataset([centred(quantization.probe)]),  # for the places alone
            # Symmetric weights, asymmetric activations: after ReLU the same, before a sum without one finer.
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=1,
            ignored_scope=nncf.IgnoredScope(names=sorted(floats), types=list(KEPT_FLOAT), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
        )
    except (nncf.errors.ValidationError, nncf.errors.UnsupportedModelError) as error:
        raise ConversionError(f"NNCF cannot quantize this network ({error}): convert it in fp32 or fp16") from error
    for node in quantized.get_ordered_ops():
        if node.get_friendly_name() in floats:
            _read_float(node)
    quantizers = [node for node in quantized.get_ordered_ops() if _quantizes_activations(node)]
    sources = {_source(node) for node in quantizers}
    others = _recognize(core, sources - looked_at, graph, recipe, quantization, centred)
    limits = {source: known for source, known in {**seen.limits, **others.limits}.items() if source in sources}
    limits |= _observed_limits(core, sources - limits.keys(), quantization, centred)
    shared: dict[bytes, list[Any]] = {}
    for node in quantizers:  # those around a concatenation have one range for all
        shared.setdefault(b"".join(_constant(node, side).tobytes() for side in (1, 2)), []).append(node)
    for nodes in shared.values():
        of_each = [limits[_source(node)] for node in nodes]
        if _constant(nodes[0], 1).size == 1:
            of_each = [np.stack([one[:, 0].min(keepdims=True), one[:, 1].max(keepdims=True)], 1) for one in of_each]
        together = np.stack(of_each)
        for node in nodes:
            _set_range(node, together[..., 0].min(0), together[..., 1].max(0))
    excluded = {
        layer for node in core.get_ordered_ops()
        if (layer := kept.get(node.get_friendly_name())) and node.get_type_name() in QUANTIZED
    }  # fmt: skip
    return quantized, (*kept_layers(recipe, excluded), *_float_kinds(quantized, kept))


def _wrongly_padded(core: Any) -> list[str]:
    """The average poolings that would count a padding wrongly in int8, by name.

    The CPU plugin pads with the integer 0 (2026.4.1), which stands for zero only where nothing is negative.
    """
    return [
        node.get_friendly_name()
        for node in core.get_ordered_ops()
        if node.get_type_name() == "AvgPool"
        and not node.get_attributes()["exclude-pad"]
        and any((*node.get_attributes()["pads_begin"], *node.get_attributes()["pads_end"]))
        and node.input_value(0).get_node().get_type_name() not in ("Relu", "Sigmoid")
    ]


def _of_divisions(core: Any) -> list[str]:
    """The quotients by what is computed, and what makes their divisors, by name.

    A divisor that int8 rounds to zero gives infinity, though an epsilon was added to it (linear attention).
    """
    found = []
    divisors: set[str] = set()
    for node in reversed(core.get_ordered_ops()):
        name, kind = node.get_friendly_name(), node.get_type_name()
        sources = [value.get_source_output().get_node() for value in node.inputs()]
        constants = [source.get_type_name() in CONSTANT for source in sources]
        if kind == "Divide" and not constants[1]:
            divisors.add(sources[1].get_friendly_name())
        elif name in divisors and (kind in OF_DIVISORS or (kind == "Add" and any(constants))):
            divisors |= {source.get_friendly_name() for source in sources}
        else:
            continue
        found.append(name)
    return found


def _float_kinds(quantized: Any, kept: Collection[str]) -> list[str]:
    """Kinds of operations of which some read nothing rounded, those of layers kept in float aside: for the manifest.

    A sum with a bias and an activation right behind an int8 operation are part of it. What comes through a pooling or another
    layout is as rounded as it was before.
    """
    int8: set[str] = set()
    rounded: set[str] = set()
    found = set()
    for node in quantized.get_ordered_ops():
        kind, name = node.get_type_name(), node.get_friendly_name()
        sources = [value.get_source_output().get_node() for value in node.inputs()]
        maps = [source for source in sources if source.get_type_name() not in ("Constant", "Convert", "Parameter")]
        joined = kind in JOINED and [source.get_friendly_name() in int8 for source in maps] == [True]
        reads = [_quantizes_activations(source) or source.get_friendly_name() in rounded for source in maps]
        if kind in CARRYING and reads and all(reads):
            rounded.add(name)
        if joined or any(reads):
            int8.add(name)
        elif maps and kind not in ("FakeQuantize", "Result") and name not in kept:
            found.add(kind)
    return sorted(found)


def _read_float(node: Any) -> None:
    """Have an operation read what others read rounded: NNCF puts one quantizer where several operations read."""
    for read in node.inputs():
        given = read.get_source_output().get_node()
        if _quantizes_activations(given):
            read.replace_source_output(given.input_value(0))


def _quantizes_activations(node: Any) -> bool:
    return node.get_type_name() == "FakeQuantize" and node.input_value(0).get_node().get_type_name() not in CONSTANT


def _source(quantizer: Any) -> Source:
    """What a quantizer reads, as the float core calls it."""
    value = quantizer.input_value(0)
    return value.get_node().get_friendly_name(), value.get_index()


def _open(
    core: Any, sources: set[Source], to_input: Callable[[UInt8], Any]
) -> tuple[list[Source], Callable[[UInt8], list[Any]]]:
    """Parts of the float core in an order, and what gives their values for a frame."""
    ov = load()
    copy = core.clone()
    nodes = {node.get_friendly_name(): node for node in copy.get_ordered_ops()}
    order = sorted(sources)
    model = ov.Model(
        [ov.opset13.result(nodes[name].output(index)) for name, index in order], copy.get_parameters(), "open"
    )
    compiled = ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def values(frame: UInt8) -> list[Any]:
        result = compiled([to_input(frame)])
        return [result[index] for index in range(len(order))]

    return order, values


def _float_results(model: Any) -> dict[Source, Any]:
    """The operations that compute one float tensor of a fixed shape, by what they are known as."""
    return {
        (node.get_friendly_name(), 0): node
        for node in model.get_ordered_ops()
        if node.get_output_size() == 1 and node.get_type_name() not in ("Constant", "Parameter", "Result")
        and node.get_output_element_type(0) == load().Type.f32 and not node.get_output_partial_shape(0).is_dynamic
    }  # fmt: skip


def _recognize(
    core: Any,
    sources: set[Source],
    graph: DeployableGraph,
    recipe: Recipe,
    quantization: Quantization,
    to_input: Callable[[UInt8], Float32],
) -> Recognized[Source]:
    """What parts of the float core are in the graph."""
    if not sources:
        return Recognized({}, [], {})
    order, values = _open(core, sources, to_input)
    return recognize(graph, quantization, recipe, "asymmetric", zip(order, values(quantization.probe), strict=True))


def _observed_limits(
    core: Any, sources: set[Source], quantization: Quantization, to_input: Callable[[UInt8], Float32]
) -> dict[Source, Float32]:
    """Smallest and largest value by channel, [channels, 2], on the calibration frames, of parts that are no node of the graph."""
    from edgekit.export.values import channel_limits, joined_limits

    found: dict[Source, Float32] = {}
    if not sources:
        return found
    order, values = _open(core, sources, to_input)
    for frame in quantization.batches():
        for source, value in zip(order, values(frame), strict=True):
            now = channel_limits(value)
            found[source] = joined_limits(found.get(source, now), now)
    return found


def _kept(results: Mapping[Source, Any], seen: Recognized[Source]) -> dict[str, str]:
    """Names of the operations that belong to layers kept in float, the convolution before a bias too, and their layers."""
    names = {}
    for source, layer in seen.kept.items():
        node = results[source]
        names[node.get_friendly_name()] = layer
        before = node.input_value(0).get_node()
        if before.get_type_name() in WEIGHTED and node.get_type_name() == "Add":
            names[before.get_friendly_name()] = layer
    return names


def _constant(node: Any, side: int) -> Any:
    return node.input_value(side).get_node().get_data()


def _set_range(quantizer: Any, low: Float32, high: Float32) -> None:
    """Have it represent these values, and zero exactly.

    Args:
        low, high: float32 [channels], of one that has a range for each, or [1].
    """
    ov = load()
    shape = _constant(quantizer, 1).shape
    # NNCF may want one for each of what is no channel, such as the tokens of a sequence.
    low, high = (np.broadcast_to(side, (int(np.prod(shape)),)) for side in (low, high))
    low, high = np.minimum(low, 0.0).astype(np.float64), np.maximum(high, 0.0).astype(np.float64)
    widest = float((high - low).max())  # of a map that is always zero any range holds all
    high = np.maximum(high, low + SMALLEST_SHARE * (widest if widest > SMALLEST_REACH else 1.0))
    scale = (high - low) / (quantizer.get_levels() - 1)
    zero_point = np.round(-low / scale)
    # Both ends move outwards alone, so that nothing that was seen is cut off.
    scale = np.maximum(
        np.divide(-low, zero_point, out=scale.copy(), where=zero_point > 0),
        np.divide(high, 255 - zero_point, out=scale.copy(), where=zero_point < 255),
    )
    ends = (-zero_point * scale, (255 - zero_point) * scale)
    for position, end in zip((1, 2, 3, 4), (*ends, *ends), strict=True):
        quantizer.input(position).replace_source_output(
            ov.opset13.constant(end.reshape(shape).astype(np.float32)).output(0)
        )


def _copy_before_transposes(core: Any) -> None:
    """Copy a map that is transposed where something else reads it too.

    The CPU plugin (2026.4.1) takes a map that it holds channels last and its transposed form for one piece of memory. What works in
    place then (layer norm, softmax, a quantizer) writes over the map, which a sum joined to a convolution reads afterwards:
    ``x + conv(norm(tokens of x))`` becomes ``norm + conv(norm)``. A maximum with the smallest number is exact, and is not left out.
    """
    ov = load()
    for node in core.get_ordered_ops():
        if node.get_type_name() != "Transpose":
            continue
        if {read.get_node().get_type_name() for read in node.output(0).get_target_inputs()} <= set(WEIGHTED):
            continue  # none works in place
        read, shared = node.input(0), False
        while True:
            source = read.get_source_output()
            shared |= len(source.get_target_inputs()) > 1
            if source.get_node().get_type_name() not in VIEWS:
                break
            read = source.get_node().input(0)
        if shared and source.get_element_type() == ov.Type.f32 and source.get_node().get_type_name() not in CONSTANT:
            smallest = ov.opset13.constant(np.float32(np.finfo(np.float32).min))
            read.replace_source_output(ov.opset13.maximum(source, smallest).output(0))


def _name_by_place(model: Any) -> None:
    """Replace names that hold the process's count of nodes, so that the same inputs give the same bytes."""
    for position, node in enumerate(model.get_ordered_ops()):
        kind = node.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{kind}_{position}")


def _add_edges(core: Any, graph: DeployableGraph, recipe: Recipe) -> Any:
    """Frame in, labels or logits out, around the core."""
    ov = load()
    from openvino import opset13 as ops

    frame = ops.parameter([1, graph.size.height, graph.size.width, 3], ov.Type.u8, name="frame")
    frame.output(0).get_tensor().set_names({"frame"})
    _put_before(core, frame, graph)
    node = core.outputs[0].node.input_value(0)
    if recipe.output == "logits":
        # Channels last, as the plugin holds them: channels first would be a reorder.
        last = ops.transpose(node, np.asarray([0, 2, 3, 1], np.int64)).output(0)
        last.get_tensor().set_names({"logits"})
        return ov.Model([ops.result(last)], [frame], "edgekit")
    decision = decision_size(graph.size, recipe.output_stride)

    def to_size(value: Any, size: Size, mode: str) -> Any:
        return ops.interpolate(
            value, np.asarray([size.height, size.width], np.int64), mode, "sizes", axes=np.asarray([2, 3], np.int64),
            coordinate_transformation_mode="half_pixel" if mode == "linear_onnx" else "asymmetric", nearest_mode="floor",
        )  # fmt: skip

    if decision != graph.logits_size:
        node = to_size(node, decision, "linear_onnx").output(0)
    best = ops.topk(node, np.int64(1), 1, "max", "none", index_element_type="i32")
    labels = ops.convert(best.output(1), "u8").output(0)
    if decision != graph.size:
        stride = recipe.output_stride
        labels = to_size(labels, Size(decision.height * stride, decision.width * stride), "nearest").output(0)
        begin, end = (np.asarray(sides, np.int64) for sides in ([0, 0], [graph.size.height, graph.size.width]))
        labels = ops.slice(labels, begin, end, np.ones(2, np.int64), np.asarray([2, 3], np.int64)).output(0)
    labels = ops.squeeze(labels, np.asarray([1], np.int64)).output(0)
    labels.get_tensor().set_names({"labels"})
    return ov.Model([ops.result(labels)], [frame], "edgekit")


def _put_before(core: Any, frame: Any, graph: DeployableGraph) -> None:
    """Have a core of centred planes read a uint8 frame, [1, H, W, 3]; what rounds it, if it is one quantizer, comes first.

    Element by element the plugin is two to three times as fast over whole rows of a frame as over its three channels, and in this
    order it makes the transpose part of the first convolution's layout.
    """
    from openvino import opset13 as ops

    height, width = graph.size.height, graph.size.width
    rows = ops.convert(ops.reshape(frame, np.asarray([1, height, 3 * width], np.int64), False), "f32")
    value = ops.subtract(rows, np.tile(graph.normalization.mean_colour(), width).reshape(1, 1, 3 * width))
    readers = [read.get_node() for read in core.inputs[0].get_target_inputs()]
    replaced = core.inputs[0]
    if len(readers) == 1 and _quantizes_activations(readers[0]):
        ends = [_constant(readers[0], side) for side in (1, 2, 3, 4)]
        if all(end.size == 1 for end in ends):
            constants = [ops.constant(end.reshape(1, 1, 1)) for end in ends]
            value = ops.fake_quantize(value, *constants, readers[0].get_levels())
            replaced = readers[0].output(0)
    pixels = ops.reshape(value, np.asarray([1, height, width, 3], np.int64), False)
    replaced.replace(ops.transpose(pixels, np.asarray([0, 3, 1, 2], np.int64)).output(0))


TARGET = OpenVINO()
