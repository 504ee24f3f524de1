"""TFLite / LiteRT: litert-torch converts, ai-edge-quantizer quantizes, the LiteRT interpreter (XNNPACK) runs."""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import ConversionError, TargetError
from edgekit.core.files import write_bytes
from edgekit.core.registry import missing_packages, versions
from edgekit.core.seam import Session
from edgekit.core.values import (
    Artifact,
    Converted,
    DeployableGraph,
    Engine,
    OutputKind,
    Precision,
    Quantization,
    Recipe,
    SessionOptions,
    UInt8,
)
from edgekit.runtimes.common import threads
from edgekit.runtimes.litert import interpreter_class, open_session
from targets.common import (
    float_edges,
    kept_layers,
    native_output,
    recognize,
    require_quantization,
    widen,
    with_width,
)
from targets.tflite_graph.floats import WEIGHTED, left_in_float
from targets.tflite_graph.model import FLOAT32, Model, kinds

LARGEST_BIAS = 2.0**30
"""The most that an int8 convolution's bias may be, in steps of input scale times weight scale: int32 with room for the sum."""

BENCHMARK_MODEL = (
    "adb push {artifact}/model.tflite /data/local/tmp/ && adb shell /data/local/tmp/benchmark_model "
    "--graph=/data/local/tmp/model.tflite --num_threads=4 --use_xnnpack=true --num_runs=200"
)
"""One forward pass on a phone, by LiteRT's own tool (which the user brings); ``{artifact}`` is the artifact's folder."""


@dataclass(frozen=True)
class TFLite:
    """The ``tflite`` target."""

    name: str = "tflite"
    title: str = "TFLite"
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    output: OutputKind = "logits"
    device_pages: tuple[str, ...] = ("android",)

    def missing(self) -> str | None:
        """See :class:`edgekit.Target`. Running alone needs one interpreter; converting needs the rest too."""
        interpreters = [name for name in ("ai_edge_litert", "tflite_runtime") if importlib.util.find_spec(name)]
        return missing_packages(
            ("litert_torch", "ai_edge_quantizer", "torch") if interpreters else ("ai_edge_litert",), "tflite"
        )

    def tools(self) -> Mapping[str, str]:
        """See :class:`edgekit.Target`."""
        return versions("litert-torch", "ai-edge-quantizer", "ai-edge-litert", "tflite-runtime", "torch")

    def engine(self) -> Engine:
        """See :class:`edgekit.Target`."""
        found = versions("ai-edge-litert", "tflite-runtime")
        package, number = next(iter(found.items()), ("LiteRT", ""))
        return Engine("measured", f"{package} {number} interpreter, XNNPACK")

    def convert(
        self, graph: DeployableGraph, recipe: Recipe, quantization: Quantization | None, folder: Path
    ) -> Converted:
        """Channels-last from edge to edge, then int8 for all but the edges."""
        size = graph.size
        model = _float_model(graph, recipe.output, recipe.output_stride)
        kept: tuple[str, ...] = ()
        if recipe.precision == "int8":
            from targets.tflite_graph.frame import on_bytes

            quantized, layers, kinds = _quantize(model, graph, recipe, require_quantization(recipe, quantization))
            centred = not on_bytes(quantized, graph.normalization.mean_colour())
            model = quantized.pack()
            givers = ("what gives these layers what they read",) if layers else ()
            kept = (*layers, *givers, *kinds, *float_edges(recipe, centred=centred))
        write_bytes(folder / "model.tflite", model)
        return Converted(
            model="model.tflite",
            native_input=f"uint8 [1,{size.height},{size.width},3] RGB",
            native_output=native_output(
                graph, recipe, channels_last=True, dtype=_output_type(model, graph, int8=recipe.precision == "int8")
            ),
            tools=self.tools(),
            kept_float=kept,
            scheme="asymmetric" if recipe.precision == "int8" else None,
            notes={"measure on android": BENCHMARK_MODEL},
        )

    def open(self, artifact: Artifact, options: SessionOptions) -> AbstractContextManager[Session]:
        """See :class:`edgekit.Target`; raises TargetError when no interpreter is installed."""
        _interpreter_class()
        return open_session(artifact, options)

    def show_tensors(self, artifact: Artifact, frame: UInt8, look: Callable[[str, NDArray[Any]], None]) -> None:
        """See :class:`edgekit.core.seam.Inspectable`."""
        interpreter = _open_interpreter(artifact.model_path.read_bytes())
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], frame)
        interpreter.invoke()
        for detail in interpreter.get_tensor_details():
            scale, zero_point = detail["quantization"]
            integer = np.issubdtype(detail["dtype"], np.integer)
            if not detail["name"] or (integer and not scale):  # scratch memory, shapes and the like
                continue
            try:
                value = interpreter.get_tensor(detail["index"])
            except ValueError:  # a kernel's own memory, without an allocation outside it
                continue
            look(detail["name"], scale * (value.astype(np.float32) - zero_point) if integer else value)


def _float_model(graph: DeployableGraph, output: OutputKind, output_stride: int) -> bytes:
    """The float flatbuffer, converted once for a float artifact and the int8 ones made after it, which have other weights."""
    from targets.tflite_graph.weights import with_weights_of

    def convert() -> bytes:
        return _convert(graph, output, output_stride)

    key = (output, output_stride)
    before, model = (graph.origin or graph).derived.once("tflite", key, lambda: (graph, convert()))
    other = model if before is graph else with_weights_of(model, before, graph)
    return graph.derived.once("tflite of its own", key, convert) if other is None else other


def _convert(graph: DeployableGraph, output: OutputKind, output_stride: int) -> bytes:
    import litert_torch
    import torch

    from edgekit.export.graph import FrameToLabels
    from edgekit.export.litert import for_litert
    from edgekit.export.refusals import refusal

    module = FrameToLabels(graph, channels_last=True, output=output, output_stride=output_stride).eval()
    for_litert(module.core)
    frame = torch.zeros(1, graph.size.height, graph.size.width, 3, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.tflite"
        try:
            litert_torch.convert(module, (frame,)).export(str(path))
        except Exception as error:  # it raises many types; each means that it cannot take this network
            raise refusal(graph, "tflite", "litert-torch", error) from error
        return path.read_bytes()


def _interpreter_class() -> Any:
    try:
        return interpreter_class()
    except ImportError as error:
        raise TargetError("no TFLite interpreter is installed: run pip install 'edgekit[tflite]'") from error


def _quantize(
    content: bytes, graph: DeployableGraph, recipe: Recipe, quantization: Quantization
) -> tuple[Model, tuple[str, ...], list[str]]:
    """Static int8: weights per channel and symmetric, activations per tensor. The edges stay as they are.

    And the layers kept in float, and the kinds of operations that are in float elsewhere.
    """
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer import recipe as recipes

    from edgekit.export.refusals import refusal
    from targets.tflite_graph.padding import make_padding_finite
    from targets.tflite_graph.weights import flatten_biases

    model = Model(content)
    ranges, kept = _ranges(content, model, graph, recipe, quantization)
    make_padding_finite(model, ranges)
    flatten_biases(model)
    edges = _edge_tensors(model)
    floats, excluded = _floats(model, kept, edges)
    named = (*edges, *(f"^{re.escape(name)};?$" for name in floats))
    left = [f"^{re.escape(name)};?$" for name in left_in_float(model, ranges)]
    tool = quantizer.Quantizer(model.pack(), recipes.static_wi8_ai8())
    for name in (*named, *left):
        tool.update_quantization_recipe(
            regex=name,
            operation_name=recipes.TFLOperationName.ALL_SUPPORTED,
            algorithm_key=recipes.AlgorithmName.NO_QUANTIZE,
        )
    # The constant pooling products: a handful of operations on a 1/32 map, where int8 gains nothing.
    tool.update_quantization_recipe(
        regex=".*",
        operation_name=recipes.TFLOperationName.BATCH_MATMUL,
        algorithm_key=recipes.AlgorithmName.NO_QUANTIZE,
    )
    try:
        quantized = Model(bytes(tool.quantize(ranges).quantized_model))
    except Exception as error:  # it raises many types; each means that it cannot take this network
        raise refusal(graph, "tflite", "ai-edge-quantizer", error, int8=True) from error
    return quantized, kept_layers(recipe, excluded), _float_kinds(quantized, re.compile("|".join(named)))


def _float_kinds(model: Model, but: re.Pattern[str]) -> list[str]:
    """Kinds of operations of which some give floats, those aside whose result has such a name: for the manifest."""
    found = {
        model.kind(operator)
        for operator in model.operators
        if model.tensor(operator.outputs[0]).type == FLOAT32 and not but.search(model.result(operator))
    }
    return sorted(found - {"DEQUANTIZE"})


def _ranges(
    content: bytes, model: Model, graph: DeployableGraph, recipe: Recipe, quantization: Quantization
) -> tuple[dict[str, Any], dict[str, str]]:
    """Smallest and largest value of every float tensor, in the form of what the quantizer's own ``calibrate`` gives.

    And those that layers kept in float give, with their layers.
    """
    interpreter = _open_interpreter(content)
    names = {
        index: model.name(index)
        for operator in model.operators
        for index in operator.outputs
        if model.tensor(index).type == FLOAT32
    }

    def values(pixels: UInt8, indices: Iterable[int]) -> Iterator[tuple[str, Any]]:
        interpreter.set_tensor(model.graph.inputs[0], pixels)
        interpreter.invoke()
        return ((names[index], interpreter.get_tensor(index)) for index in indices)

    seen = recognize(graph, quantization, recipe, "asymmetric", values(quantization.probe, names))
    found, unknown = seen.ranges(), set(seen.unknown)
    for operator in model.operators:  # what is no node: the frame's bytes, and a convolution's own padding
        kind = model.kind(operator)
        source, result = names.get(operator.inputs[0]), names.get(operator.outputs[0])
        if result in unknown and kind == "CAST" and operator.inputs[0] in model.graph.inputs:
            found[result] = (0.0, 255.0)
        elif result in unknown and kind == "PAD" and source in found:
            low, high = found[source]
            found[result] = (min(low, 0.0), max(high, 0.0))
        elif result in unknown and kind == "PADV2" and source in found:  # before a max pooling, with minus infinity
            found[result] = found[source]
    others = [index for index, name in names.items() if name in unknown and name not in found]
    if others:
        for pixels in quantization.batches():
            for name, value in values(pixels, others):
                widen(found, name, value)
    ranges = {
        name: {"min": np.asarray(low, np.float32), "max": np.asarray(high, np.float32)}
        for name, (low, high) in with_width(found).items()
    }
    ranges |= _weight_ranges(model, ranges)
    return ranges, seen.kept


def _floats(model: Model, kept: Mapping[str, str], edges: Sequence[str]) -> tuple[list[str], set[str]]:
    """The results of the operations that stay in float, and the layers of which one would have been int8.

    An int8 operation gives int8: what gives a layer in float what it reads, by way of a padding too, must stay in float.
    """
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    quantizable = {kinds()[code] for code in tfl_flatbuffer_utils.TFL_OP_CODE_TO_NAME}
    floats: dict[str, None] = {}
    excluded = set()
    read: set[int] = set()
    for operator in reversed(model.operators):
        name, kind = model.result(operator), model.kind(operator)
        if name in kept or operator.outputs[0] in read:
            floats[name] = None
        if name in kept or (kind == "PAD" and operator.outputs[0] in read):
            read |= set(operator.inputs)
        is_edge = any(re.search(pattern, name) for pattern in edges)
        if name in kept and not is_edge and kind in quantizable - {"BATCH_MATMUL"}:
            excluded.add(kept[name])
    return list(floats), excluded


def _weight_ranges(model: Model, ranges: Mapping[str, Any]) -> dict[str, Any]:
    """Ranges of weights that are so small beside their bias that it would not fit into int32, and would be cut off."""
    from targets.tflite_graph.weights import CONVOLUTIONS

    found: dict[str, Any] = {}
    for operator in model.operators:
        kind = model.kind(operator)
        if kind not in CONVOLUTIONS or len(operator.inputs) < 3:
            continue
        source, weights, biases = operator.inputs[:3]
        weight, bias = model.constant(weights), model.constant(biases)
        of_source = ranges.get(model.name(source))
        if weight is None or bias is None or of_source is None:
            continue
        axis = CONVOLUTIONS[kind]
        reach = np.abs(weight).max(tuple(other for other in range(4) if other != axis), keepdims=True)
        step = (max(float(of_source["max"]), 0.0) - min(float(of_source["min"]), 0.0)) / 255
        least = (127 * np.abs(bias) / (LARGEST_BIAS * step)).reshape(reach.shape).astype(np.float32)
        if (least > reach).any():
            name = model.name(weights)
            reach = np.maximum(np.maximum(reach, least), found[name]["max"] if name in found else 0.0)
            found[name] = {"min": -reach, "max": reach}
    return found


def _open_interpreter(model: bytes) -> Any:
    """An interpreter whose every tensor can be read: without a delegate, which keeps its own to itself."""
    cls = _interpreter_class()
    resolver = importlib.import_module(cls.__module__).OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = cls(
        model_content=model,
        num_threads=threads(SessionOptions()),
        experimental_op_resolver_type=resolver,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    return interpreter


def _output_type(model: bytes, graph: DeployableGraph, *, int8: bool) -> str:
    """``float32``, or ``int8`` where the last convolution is quantized: the decoder reads either.

    Raises:
        ConversionError: the model does not run, which a converter may not notice.
    """
    from edgekit.export.refusals import refusal

    try:
        interpreter = _interpreter_class()(model_content=model)
        interpreter.allocate_tensors()
        shape = (1, graph.size.height, graph.size.width, 3)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.full(shape, 127, np.uint8))
        interpreter.invoke()
    except (RuntimeError, ValueError) as error:
        raise refusal(graph, "tflite", "LiteRT", error, int8=int8) from error
    return str(interpreter.get_output_details()[0]["dtype"].__name__)


def _edge_tensors(model: Model) -> list[str]:
    """Patterns for the outputs of the operations before the first and after the last convolution."""
    operators = model.operators
    convolutions = [index for index, operator in enumerate(operators) if model.kind(operator) in WEIGHTED]
    if not convolutions:
        raise ConversionError("this network has no convolution that could be quantized: convert it in fp32")
    before = operators[: convolutions[0]]
    # A convolution's own padding is done in int8, where XNNPACK makes one operation of the two.
    while before and model.kind(before[-1]) == "PAD":
        before.pop()
    edges = [*before, *operators[convolutions[-1] + 1 :]]
    return [f"^{re.escape(model.result(operator))}[;]?$" for operator in edges]


TARGET = TFLite()
