"""Core ML: ML Programs for iOS 17 and macOS 14 or newer, made on any operating system."""

from __future__ import annotations

import contextlib
import importlib
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import ArtifactError, ConversionError, TargetError, UsageError
from edgekit.core.registry import missing_packages, versions
from edgekit.core.seam import Session
from edgekit.core.text import parse_json
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
    Size,
    TensorForm,
    UInt8,
)
from edgekit.runtimes.common import check_frame, label_map, output_settings, threads
from edgekit.runtimes.coreml import quiet
from targets.common import (
    float_edges,
    kept_layers,
    native_output,
    recognize,
    require_quantization,
    widen,
    with_width,
)

if TYPE_CHECKING:
    import torch

    from targets.mil.executor import Executor

MODEL = "model.mlpackage"

QUANTIZED_OPS = ("conv", "linear", "add", "max_pool", "avg_pool")
"""What coremltools puts quantize/dequantize pairs around."""

JOINED_OPS = ("relu", "relu6", "leaky_relu", "prelu", "clip")
"""What is part of the op before."""

WEIGHTED_OPS = ("conv", "conv_transpose", "linear")
"""The operations whose weights are int8."""

SMALLEST_RANGE = 127 * 2.0**-14
"""Activation ranges are at least this, so that their scale is a normal fp16 number: devices may flush smaller ones."""

SMALLEST_SCALE = 2.0**-14
"""fp16's smallest normal number, in which the scales of weights are kept too."""

PIXEL_FACTOR = 2.0**-6
"""The factor on the centred pixels that int8 reads: the weights that read them are then about as large as the network's own."""

LARGEST_HALF = 65504.0
"""The largest fp16 number."""

LARGEST_RANGE = 32000.0
"""coremltools computes twice the range in fp16, which would overflow."""

Ranges = dict[str, dict[str, float]]
"""``rmin`` and ``rmax`` by tensor name, the form coremltools' activation passes take."""


class CoreML:
    """Core ML as a target: fp16, fp32 and W8A8 int8 ML Programs with the frame's edges inside."""

    name = "coreml"
    title = "Core ML"
    precisions: tuple[Precision, ...] = ("fp16", "fp32", "int8")
    output: OutputKind = "labels"
    device_pages: tuple[str, ...] = ("apple",)

    def missing(self) -> str | None:
        """None when coremltools and torch are installed, else the install command."""
        return missing_packages(("coremltools", "torch"), "coreml")

    def tools(self) -> Mapping[str, str]:
        """Versions of what decides the package's bytes."""
        return versions("coremltools", "torch", "numpy")

    def engine(self) -> Engine:
        """Core ML itself on a Mac, the reference executor elsewhere."""
        if sys.platform == "darwin":
            return Engine("measured", f"Core ML, macOS {platform.mac_ver()[0]}")
        return Engine(
            "reference",
            by=f"edgekit's ML Program executor (torch {versions('torch').get('torch', 'absent')})",
            why="the package's own program, executed op by op; Core ML itself runs on Apple devices only",
            no_latency=("Core ML runs on Apple devices only: run edgekit bench ARTIFACT on a Mac to measure it"),
        )

    def convert(
        self, graph: DeployableGraph, recipe: Recipe, quantization: Quantization | None, folder: Path
    ) -> Converted:
        """Write ``folder/model.mlpackage``: RGB image in, int32 labels [1, H, W] (or float32 logits) out.

        Raises:
            ConversionError: coremltools cannot take the graph, or int8 got no calibration frame.
        """
        model = _float_model(graph, recipe)
        kept: tuple[str, ...] = ()
        notes = {"deployment target": "iOS 17, macOS 14 or newer"}
        if recipe.precision == "int8":
            model, layers, floats, small = _quantized(model, graph, recipe, require_quantization(recipe, quantization))
            kept = (
                *layers,
                *float_edges(recipe),
                *_float_kinds(model),
                *(f"result of {name}" for name in floats),
            )
            notes["int8"] = "activations per tensor, symmetric (zero point 0); weights per output channel, symmetric"
            if small:
                notes["small weights"] = (
                    f"channels whose weights' scale is below fp16's smallest normal number, {SMALLEST_SCALE:.1e}: "
                    f"{', '.join(f'{count} of {layer}' for layer, count in small.items())}; a processor without "
                    "subnormal numbers may take them for zero: measure on it, or keep these layers in float"
                )
        _describe(model, graph, recipe)
        model.save(str(folder / MODEL))
        height, width = graph.size.height, graph.size.width
        return Converted(
            model=MODEL,
            native_input=f"RGB image {width} wide, {height} high",
            native_output=TensorForm("int32", (1, height, width), "NHW")
            if recipe.output == "labels"
            else native_output(graph, recipe),
            tools=self.tools(),
            kept_float=kept,
            scheme="symmetric" if recipe.precision == "int8" else None,
            notes={**notes, "measure on apple": "edgekit bench {artifact}    # on a Mac"},
        )

    @contextlib.contextmanager
    def open(self, artifact: Artifact, options: SessionOptions) -> Iterator[Session]:
        """Load the package: Core ML on a Mac, elsewhere the executor with ``options.threads`` torch threads.

        Raises:
            ArtifactError: the package is missing or damaged.
            TargetError: the program holds an op that the executor does not know.
        """
        if sys.platform == "darwin":
            from edgekit.runtimes.coreml import open_session

            with open_session(artifact, options) as session:
                yield session
            return
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(threads(options))
        try:
            yield _ExecutorSession(artifact, options)
        finally:
            torch.set_num_threads(before)

    def show_tensors(self, artifact: Artifact, frame: UInt8, look: Callable[[str, NDArray[Any]], None]) -> None:
        """See :class:`edgekit.core.seam.Inspectable`."""
        from targets.mil.executor import Executor, load_program

        executor = Executor(load_program(artifact.model_path))
        (name,) = executor.inputs
        executor.run({name: _planes(frame)}, lambda name, value: look(name, value.numpy()))


TARGET = CoreML()


def adopt(package: Path, class_names: tuple[str, ...] | None) -> Artifact:
    """A package from anywhere as an artifact, so that it can be run and evaluated.

    Args:
        package: an ML Program that takes an RGB image and gives labels [1, H, W] or logits [1, classes, h, w].
        class_names: None for those that an artifact of edgekit's names in its metadata.

    Raises:
        ArtifactError: no ML Program, or one of another form.
        UsageError: it does not say its classes.
    """
    from targets.mil.executor import dtype_of, load_program

    program = load_program(package)
    with quiet():
        ct = importlib.import_module("coremltools")
        specification = ct.models.MLModel(str(package), skip_model_load=True).get_spec()
    inputs, metadata = specification.description.input, specification.description.metadata.userDefined
    shapes = list(program.inputs.values())
    is_image = len(inputs) == 1 and inputs[0].type.WhichOneof("Type") == "imageType"
    if not is_image or inputs[0].type.imageType.colorSpace != ct.proto.FeatureTypes_pb2.ImageFeatureType.RGB:
        given = ", ".join(f"{one.name} ({one.type.WhichOneof('Type')})" for one in inputs)
        raise ArtifactError(
            f"'{package}' takes {given}, not one RGB image: convert it again with coremltools.ImageType(color_layout='RGB'), "
            "normalization inside"
        )
    if class_names is None and "classes" in metadata:
        class_names = _classes_of(package, metadata["classes"])
    if class_names is None:
        raise UsageError(
            f"'{package}' does not say its classes: name the dataset whose classes it has (--data; of predict, --classes)"
        )
    output = program.function.outputs[0]
    shape, is_float = tuple(int(side) for side in output.shape), dtype_of(output).startswith("fp")
    if len(program.outputs) != 1 or len(shape) != (4 if is_float else 3) or (is_float and shape[1] != len(class_names)):
        raise ArtifactError(
            f"'{package}' gives {', '.join(program.outputs)}, first {list(shape)}: labels [1, H, W] or logits "
            f"[1, {len(class_names)}, h, w] are understood"
        )
    _, _, height, width = shapes[0]
    precision: Precision = "int8" if any(op.op_type == "quantize" for op in program.function.operations) else "fp16"
    return Artifact(
        folder=package.parent,
        target="coreml",
        precision=precision,
        size=Size(height, width),
        class_names=class_names,
        output="logits" if is_float else "labels",
        output_stride=1,
        model=package.name,
        manifest={"notes": {}},
    )


def _classes_of(package: Path, text: str) -> tuple[str, ...]:
    """The classes that a package's metadata names."""
    try:
        names = parse_json(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not 1 <= len(names) <= 255 or not all(isinstance(name, str) for name in names):
        raise ArtifactError(
            f"'{package}' names its classes in its metadata, and they are no list of 1 to 255 names: make it again"
        )
    return tuple(names)


def _float_model(graph: DeployableGraph, recipe: Recipe) -> Any:
    """The float program, not yet saved; fp16 is what int8 is made from."""
    import torch

    ct = importlib.import_module("coremltools")

    from edgekit.export.graph import FrameToLabels
    from edgekit.export.refusals import refusal
    from edgekit.export.rewrites import divide_one, smooth_by_matrices

    shape = (1, 3, graph.size.height, graph.size.width)
    wrapped = FrameToLabels(
        graph,
        channels_last=False,
        output=recipe.output,
        output_stride=recipe.output_stride,
        label_dtype=torch.int32,
        pixel_factor=PIXEL_FACTOR if recipe.precision == "int8" else 1.0,
    )
    divide_one(wrapped.core)
    smooth_by_matrices(wrapped.core)
    passes = ct.PassPipeline.DEFAULT
    if _divides_constants(wrapped.core):
        # It takes a constant over a convolution for the convolution over the constant (coremltools 9.0).
        passes.remove_passes({"common::fuse_conv_scale"})
    dtype = np.int32 if recipe.output == "labels" else np.float32
    precision = ct.precision.FLOAT32 if recipe.precision == "fp32" else ct.precision.FLOAT16
    try:
        with torch.no_grad():
            traced = torch.jit.trace(wrapped, torch.zeros(shape), check_trace=False)  # type: ignore[no-untyped-call]
        return ct.convert(
            traced,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,  # the first with quantize and dequantize
            inputs=[ct.ImageType(name="frame", shape=shape, color_layout=ct.colorlayout.RGB)],
            outputs=[ct.TensorType(name=recipe.output, dtype=dtype)],
            compute_precision=precision,
            pass_pipeline=passes,
            skip_model_load=True,
        )
    except Exception as error:  # the converter raises many types; each means that it cannot take this network
        raise refusal(graph, "coreml", "coremltools", error) from error


def _divides_constants(module: torch.fx.GraphModule) -> bool:
    import torch

    quotients = [node for node in module.graph.nodes if node.target is torch.ops.aten.div.Tensor]
    return any(not isinstance(node.args[0], torch.fx.Node) or node.args[0].op == "get_attr" for node in quotients)


def _describe(model: Any, graph: DeployableGraph, recipe: Recipe) -> None:
    model.short_description = f"Semantic segmentation of {graph.size} frames, {len(graph.class_names)} classes"
    model.user_defined_metadata["classes"] = json.dumps(list(graph.class_names))
    model.user_defined_metadata["precision"] = recipe.precision
    model.input_description["frame"] = "RGB frame"
    model.output_description[recipe.output] = (
        "Class of each pixel: its position in the metadata's classes"
        if recipe.output == "labels"
        else "Logits by class, before upsampling"
    )


# int8 ----------------------------------------------------------------------------------------------------------------


def _quantized(
    model: Any, graph: DeployableGraph, recipe: Recipe, quantization: Quantization
) -> tuple[Any, tuple[str, ...], tuple[str, ...], dict[str, int]]:
    """W8A8 from the fp16 program, with the layers kept in float, the ops whose results stay float, and channels of small scales."""
    from edgekit.export.refusals import refusal
    from targets.mil.executor import load_program

    coreml = importlib.import_module("coremltools.optimize.coreml")
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch, MODEL)
        model.save(str(package))
        program = load_program(package)
    ranges, kept = _ranges(program, graph, recipe, quantization)
    floats = [op for op in program.function.operations if kept.keys() & {var.name for var in op.outputs}]
    last = _last_ops(program.function)
    constant_adds = [op.name for op in program.function.operations if op.op_type == "add" and _has_constant(op)]
    activations = coreml.OptimizationConfig(
        global_config=coreml.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8"),
        op_name_configs=dict.fromkeys((*last, *constant_adds, *(op.name for op in floats))),
    )
    # By name, because a global configuration would leave small (depthwise) kernels float and quantize other constants.
    kernel = coreml.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=0
    )
    weights = coreml.OptimizationConfig(
        op_name_configs=dict.fromkeys(_kernels(program.function, without=floats), kernel)
    )
    try:
        with _calibrated(ranges):
            model = coreml.linear_quantize_activations(model, activations, sample_data=[])
        model = coreml.linear_quantize_weights(_reading_float(model, kept) if kept else model, weights)
    except Exception as error:  # its passes raise many types; each means that this program cannot be quantized
        raise refusal(graph, "coreml", "coremltools' quantizer", error, int8=True) from error
    excluded = {
        kept[var.name]
        for op in floats
        if op.op_type in WEIGHTED_OPS or (op.op_type in QUANTIZED_OPS and op.name not in (*last, *constant_adds))
        for var in op.outputs
    }
    small = _small_scales(program.function, without=floats)
    return model, kept_layers(recipe, excluded), last, _by_layer(small, program, graph, quantization)


def _float_kinds(model: Any) -> list[str]:
    """Kinds of ops that coremltools never quantizes, of those that a quantized model holds: for the manifest."""
    function = model.get_spec().mlProgram.functions["main"]
    (block,) = function.block_specializations.values()
    frame = {value.name for value in function.inputs}
    aside = {*QUANTIZED_OPS, *JOINED_OPS, "const", "quantize", "dequantize"}
    found = set()
    for op in block.operations:
        # The frame's edge is told by itself.
        if op.type in ("cast", "sub", "mul") and op.inputs["x"].arguments[0].name in frame:
            frame.update(value.name for value in op.outputs)
        elif op.type not in aside and not op.type.startswith("constexpr"):
            found.add(op.type)
    return sorted(found)


def _reading_float(model: Any, kept: Collection[str]) -> Any:
    """The model with the ops that give these values reading in float what others read, or give, rounded."""
    ct = importlib.import_module("coremltools")
    spec = model.get_spec()
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    givers = {output.name: op for op in block.operations for output in op.outputs}

    def given(name: str, kind: str) -> str | None:
        """What the op of a kind that gives a value reads; None where another one gives it."""
        giver = givers.get(name)
        return giver.inputs["input"].arguments[0].name if giver is not None and giver.type == kind else None

    for op in block.operations:
        if any(output.name in kept for output in op.outputs):
            for argument in (argument for source in op.inputs.values() for argument in source.arguments):
                rounded = given(argument.name, "dequantize")
                source = given(rounded, "quantize") if rounded is not None else None
                if source is not None:
                    argument.name = source
    return ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)


def _ranges(
    program: Any, graph: DeployableGraph, recipe: Recipe, quantization: Quantization
) -> tuple[Ranges, dict[str, str]]:
    """Smallest and largest value of every float tensor, the graph's where it is one of its nodes.

    And those that layers kept in float give, with their layers.
    """
    from targets.mil.executor import Executor

    executor = Executor(program, rounding=False)
    found: dict[str, tuple[float, float]] = {}
    unknown: set[str] = set()
    kept: dict[str, str] = {}

    def compare(name: str, value: torch.Tensor) -> None:
        seen = recognize(graph, quantization, recipe, "symmetric", [(name, value.numpy())])
        found.update(seen.ranges())
        unknown.update(seen.unknown)
        kept.update(seen.kept)

    def observe(name: str, value: torch.Tensor) -> None:
        if name in unknown:
            widen(found, name, value.numpy())

    executor.run({"frame": _planes(quantization.probe)}, compare)
    for op in program.function.operations:  # the pixels' factor: no node, and a multiple of one
        (result, *_) = op.outputs
        if (
            op.op_type == "mul"
            and result.name in unknown
            and op.x.name in found
            and np.array_equal(op.y.val, PIXEL_FACTOR)
        ):
            low, high = found[op.x.name]
            found[result.name] = low * PIXEL_FACTOR, high * PIXEL_FACTOR
            unknown.remove(result.name)
    quantized = _read_by_quantized(program.function)
    if unknown & quantized:
        for frame in quantization.batches():
            executor.run({"frame": _planes(frame)}, observe)
    bad = [name for name, (low, high) in found.items() if max(abs(low), abs(high)) > LARGEST_HALF]
    if bad:
        raise ConversionError(f"'{bad[0]}' overflows fp16 on the calibration frames: Core ML's int8 cannot hold it")
    wide = [name for name in found if name in quantized and max(map(abs, found[name])) > LARGEST_RANGE]
    if wide:
        raise ConversionError(
            f"'{wide[0]}' reaches {max(map(abs, found[wide[0]])):.0f} on the calibration frames, and coremltools computes "
            f"int8 of no more than {LARGEST_RANGE:.0f}: convert in fp16"
        )
    return {name: _usable(low, high) for name, (low, high) in with_width(found).items()}, kept


def _read_by_quantized(function: Any) -> set[str]:
    """Names of what the quantized ops read and give."""
    names = set()
    for op in function.operations:
        if op.op_type in QUANTIZED_OPS:
            sources = [
                var for source in op.inputs.values() for var in (source if isinstance(source, tuple) else (source,))
            ]
            names |= {var.name for var in (*sources, *op.outputs) if var is not None}
    return names


def _usable(low: float, high: float) -> dict[str, float]:
    reach = min(max(abs(low), abs(high), SMALLEST_RANGE), LARGEST_RANGE)  # wider ones no quantized op reads
    return {"rmin": -reach, "rmax": reach}


def _planes(frame: UInt8) -> torch.Tensor:
    """uint8 [1, H, W, 3] -> float32 [1, 3, H, W], 0..255."""
    import torch

    return torch.from_numpy(frame).permute(0, 3, 1, 2).float()


def _has_constant(op: Any) -> bool:
    return any(op.inputs[key].val is not None for key in ("x", "y"))


def _kernels(function: Any, without: Sequence[Any]) -> list[str]:
    """Names of the constants that are weights of convolutions and linear layers, but for some of these."""
    return [
        op.inputs["weight"].op.name
        for op in function.operations
        if op.op_type in WEIGHTED_OPS and op.inputs["weight"].op is not None and op not in without
    ]


def _small_scales(function: Any, without: Sequence[Any]) -> dict[str, int]:
    """How many channels have weights whose scale is not a normal fp16 number, by an op's result; of those not all zero."""
    found = {}
    for op in function.operations:
        if op.op_type in WEIGHTED_OPS and op not in without and op.weight.val is not None:
            weight = np.abs(np.asarray(op.weight.val, np.float32))
            axis = 1 if op.op_type == "conv_transpose" else 0
            reach = weight.max(tuple(other for other in range(weight.ndim) if other != axis))
            if small := int(((reach > 0) & (reach / 127 < SMALLEST_SCALE)).sum()):
                found[op.outputs[0].name] = small
    return found


def _by_layer(
    counts: Mapping[str, int], program: Any, graph: DeployableGraph, quantization: Quantization
) -> dict[str, int]:
    """Counts by the layers that ``--keep-float`` takes, instead of by an op's result; by that where no layer gives it."""
    from edgekit.export.layers import layers_of
    from edgekit.export.values import find_nodes
    from targets.mil.executor import Executor

    layers = {node: layer.name for layer in layers_of(graph) for node in layer.nodes}
    found: dict[str, int] = {}

    def look(name: str, value: torch.Tensor) -> None:
        if name in counts:
            nodes = find_nodes(graph, quantization, value.numpy())
            layer = layers[nodes[0]] if nodes else name
            found[layer] = found.get(layer, 0) + counts[name]

    if counts:
        Executor(program, rounding=False).run({"frame": _planes(quantization.probe)}, look)
    return found


def _last_ops(function: Any) -> tuple[str, ...]:
    """The ops that make the logits: back from the outputs, the first that would be quantized.

    Their results stay float: the final upsampling interpolates between them, and 256 levels would tie classes.
    """
    found: dict[str, None] = {}
    waiting = [var.op for var in function.outputs]
    visited: set[str] = set()
    while waiting:
        op = waiting.pop()
        if op is None or op.name in visited:
            continue
        visited.add(op.name)
        if op.op_type in QUANTIZED_OPS:
            found[op.name] = None
            continue
        for source in op.inputs.values():
            waiting += [var.op for var in (source if isinstance(source, list | tuple) else [source]) if var is not None]
    return tuple(found)


@contextlib.contextmanager
def _calibrated(ranges: Ranges) -> Iterator[None]:
    """Let coremltools' activation quantization take our ranges.

    Its own calibration predicts with Core ML, so it needs macOS; it also keeps the last sample's ranges only.
    """
    module = importlib.import_module("coremltools.optimize.coreml._post_training_quantization")
    name = "_get_activation_calibration_stats"
    original = getattr(module, name, None)
    if original is None:
        raise TargetError("this coremltools calibrates activations in a way edgekit does not know: install 9.0")
    setattr(module, name, lambda *_, **__: ranges)
    try:
        yield
    finally:
        setattr(module, name, original)


# Sessions ------------------------------------------------------------------------------------------------------------


class _ExecutorSession:
    """The package's program in the reference executor."""

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        import torch

        from targets.mil.executor import Executor, load_program

        self._artifact = artifact
        self._options = options
        self._executor: Executor = Executor(load_program(artifact.model_path))
        self._last: torch.Tensor | None = None
        self.settings: Mapping[str, Any] = {
            "engine": "ML Program executor",
            "threads": torch.get_num_threads(),
            "inference precision": "float32, rounded to fp16 after each fp16 operation",
            **output_settings(artifact),
        }

    def run(self, frame: UInt8) -> UInt8:
        """uint8 [1, H, W, 3] -> uint8 [1, H, W]."""
        check_frame(frame, self._artifact)
        self._last = _planes(frame)
        return label_map(self._outputs().numpy(), self._artifact, self._options)

    def run_graph(self) -> None:
        """One forward pass on the last frame."""
        if self._last is None:
            raise UsageError("run_graph needs a frame first: call run")
        self._outputs()

    def _outputs(self) -> torch.Tensor:
        (name,) = self._executor.inputs
        assert self._last is not None
        return self._executor.run({name: self._last})[self._executor.outputs[0]]
