"""Every target: the conformance suite, odd sizes, and what its graph must and must not hold."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import first, graph_of
from own_targets import OWN, SMALL, Make, missing
from PIL import Image
from seam import edgekit
from torch import nn
from torch.nn import functional as F

from calibration.datasets import open_split
from calibration.equalization import equalized, find_scales
from calibration.ranges import calibrate
from calibration.streets import draw as streets_draw
from edgekit import check_target
from edgekit.core.errors import ArtifactError, UsageError
from edgekit.core.progress import Progress, noise_to
from edgekit.core.registry import load_target, target_names
from edgekit.core.values import (
    Artifact,
    DeployableGraph,
    Precision,
    Recipe,
    SessionOptions,
    Size,
)
from edgekit.decoder import HEADER
from edgekit.devices.board import device_key
from edgekit.export.graph import deployable, normalize, reference_labels
from edgekit.export.sizes import decision_size
from edgekit.export.values import channel_limits, visit_values
from edgekit.networks.checkpoint import Checkpoint, load_checkpoint
from edgekit.pipeline.artifacts import lazy_graph, make_artifact, open_artifact
from edgekit.pipeline.plans import Order


def test_own_targets_are_found() -> None:
    assert set(OWN) <= set(target_names())


@pytest.mark.parametrize("name", OWN)
def test_conformance(name: str, checkpoint: Checkpoint, folder: Path) -> None:
    if (sentence := missing(name)) is not None:
        pytest.skip(sentence)
    assert check_target(load_target(name), folder, checkpoint, SMALL) == []


@pytest.mark.parametrize("name", OWN)
def test_sizes_that_32_does_not_divide(name: str, checkpoint: Checkpoint, make: Make) -> None:
    """360x480 gives PyTorch's labels on every target."""
    if (sentence := missing(name)) is not None:
        pytest.skip(sentence)
    size = Size(360, 480)
    target = load_target(name)
    artifact = make(name, "fp32", size)
    frame = open_split("streets", "val", size=size).references[0].load().image[None].copy()
    network = deployable(checkpoint, size).module
    with torch.no_grad():
        expected = reference_labels(network(normalize(torch.from_numpy(frame), checkpoint.normalization)), size).numpy()
    with target.open(artifact, SessionOptions()) as session:
        labels = session.run(frame)
    assert len(np.unique(labels)) > 3, "a network that answers one class everywhere would prove nothing"
    assert (labels == expected).mean() >= 0.999


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "tflite"])
def test_output_variants(name: str, make: Make) -> None:
    """Logits decoded outside give the same labels, and bring the decoder; a stride repeats labels in blocks."""
    if (sentence := missing(name)) is not None:
        pytest.skip(sentence)
    if name == "tflite":
        pytest.importorskip("litert_torch")
    target = load_target(name)
    frame = open_split("streets", "val", size=SMALL).references[0].load().image[None].copy()
    results = {}
    variants = {"labels": {"output": "labels"}, "logits": {}, "stride8": {"output": "labels", "output_stride": 8}}
    for key, recipe in variants.items():
        if name == "tflite" and key == "stride8":
            continue  # the longest conversion: see test_odd_sizes_and_strides
        artifact = make(name, "fp32", **recipe)
        with target.open(artifact, SessionOptions()) as session:
            results[key] = session.run(frame)
            assert ("decoder" in session.settings) == (key == "logits")
        header = artifact.folder / HEADER.name
        assert header.is_file() == (key == "logits")
        assert key != "logits" or header.read_bytes() == HEADER.read_bytes()
    assert (results["labels"] == results["logits"]).mean() >= 0.9999
    if "stride8" in results:
        blocks = results["stride8"][0].reshape(SMALL.height // 8, 8, SMALL.width // 8, 8)
        assert (blocks == blocks[:, :1, :, :1]).all()
        assert (results["stride8"] == results["labels"]).mean() > 0.6


class Bends(nn.Module):
    """What a converter gets wrong by itself: a resize by a factor that leaves a part over, padding by name, a transposed
    convolution padded as TensorFlow cannot, each with a batch norm behind."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 4, padding="same"), nn.BatchNorm2d(8), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 5, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = F.interpolate(self.first(x), scale_factor=0.5, mode="bilinear", align_corners=False)
        logits: torch.Tensor = self.head(self.up(half))
        return logits


@pytest.fixture(scope="module")
def bends() -> DeployableGraph:
    """Rewritten, at a size that nothing divides."""
    torch.manual_seed(3)
    network = Bends()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            part.running_var.uniform_(0.3, 2.0)  # type: ignore[union-attr]
    return graph_of(network, Size(67, 93), rewrites=True)


@pytest.mark.parametrize("precision", ["float", "int8"])
@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("name", OWN)
def test_odd_sizes_and_strides(name: str, stride: int, precision: str, bends: DeployableGraph, tmp_path: Path) -> None:
    """Labels are PyTorch's on every target, decided at a stride and repeated by whole blocks from the first pixel on."""
    if (sentence := missing(name)) is not None:
        pytest.skip(sentence)
    target, size = load_target(name), bends.size
    frame = streets_draw("train", 0, size.height, size.width).image[None]
    floats: Precision = "fp16" if name == "coreml" else "fp32"
    recipe = Recipe("int8" if precision == "int8" else floats, "labels", stride)
    with noise_to(tmp_path / "log"):
        quantization = calibrate(bends, lambda: iter([frame]), 1).quantization if precision == "int8" else None
        converted = target.convert(bends, recipe, quantization, tmp_path)
    artifact = Artifact(
        tmp_path, target, recipe.precision, size, bends.class_names, "labels", stride, converted.model, {"notes": {}}
    )
    with target.open(artifact, SessionOptions(1)) as session:
        labels = session.run(frame)[0]
    with torch.no_grad():
        logits = bends.module(normalize(torch.from_numpy(frame), bends.normalization))
    decided = reference_labels(logits, decision_size(size, stride))[0].numpy()
    expected = decided.repeat(stride, 0).repeat(stride, 1)[: size.height, : size.width]
    assert len(np.unique(expected)) > 2
    assert (labels == expected).mean() > (0.9 if precision == "int8" else 0.99)
    blocks = labels[::stride, ::stride].repeat(stride, 0).repeat(stride, 1)[: size.height, : size.width]
    assert np.array_equal(labels, blocks)


class Gated(nn.Module):
    """Beside convolutions what some targets' int8 has no form for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.hardswish(self.first(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        logits: torch.Tensor = self.head(F.interpolate(x, scale_factor=2, mode="bilinear"))
        return logits


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("coreml", {"sigmoid", "mul", "reduce_mean", "upsample_bilinear"}),
        ("onnxruntime", {"Sigmoid", "Mul", "ReduceMean", "Resize"}),
        ("openvino", {"Interpolate"}),
        ("tensorrt", {"Sigmoid", "Mul", "ReduceMean", "Resize"}),
        ("tflite", set()),
    ],
)
def test_what_int8_has_no_form_for_is_told(name: str, kinds: set[str], tmp_path: Path) -> None:
    """By the kinds of operations that this network has, and only those that stay in float."""
    if (sentence := missing(name)) is not None:
        pytest.skip(sentence)
    torch.manual_seed(0)
    frame = streets_draw("train", 0, 64, 96).image[None]
    told = []
    for network in (Gated(), nn.Conv2d(3, 4, 3, 2, 1)):
        graph = graph_of(network, Size(64, 96), rewrites=True)
        with noise_to(tmp_path / "log"):
            quantization = calibrate(graph, lambda: iter([frame]), 1).quantization
            made = load_target(name).convert(graph, Recipe("int8", "logits"), quantization, tmp_path)
        told.append(set(made.kept_float))
    assert told[0] - told[1] >= kinds
    assert (
        not {"sub", "Conv", "Convolution", "CONV_2D", "conv", "MatMul", "Resize", "Interpolate", "BATCH_MATMUL"}
        & told[1]
    )


def test_what_is_pooled_or_joined_before_a_convolution_leaves_it_in_int8(tmp_path: Path) -> None:
    """OpenVINO's graph has its quantizers before the pooling; the convolution behind it is no float for that."""
    if (sentence := missing("openvino")) is not None:
        pytest.skip(sentence)

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.left, self.right = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
            self.last = nn.Conv2d(8, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.max_pool2d(self.first(x).relu(), 3, 2, 1)
            joined: torch.Tensor = self.last(torch.cat([self.left(x).relu(), self.right(x).relu()], 1))
            return joined

    torch.manual_seed(0)
    frame = streets_draw("train", 0, 64, 96).image[None]
    graph = graph_of(Pooled(), Size(64, 96), rewrites=True)
    with noise_to(tmp_path / "log"):
        quantization = calibrate(graph, lambda: iter([frame]), 1).quantization
        made = load_target("openvino").convert(graph, Recipe("int8", "logits"), quantization, tmp_path)
    assert set(made.kept_float) == {"centring of the frame"}


def test_tensorrt_makes_bytes_of_floats_only(bends: DeployableGraph, tmp_path: Path) -> None:
    """uint8 converts from and to floats alone in TensorRT: its rules say so of the graph that ONNX Runtime is given."""
    if (sentence := missing("tensorrt")) is not None:
        pytest.skip(sentence)
    from targets.onnx_graph.build import build
    from targets.onnx_graph.rules import check

    made = {scheme: build(bends, Recipe("fp32", "labels"), None, scheme)[0] for scheme in ("symmetric", "asymmetric")}
    assert check(made["symmetric"]) == []
    assert [finding.text for finding in check(made["asymmetric"])] == [
        "uint8 is made of floats only: a Cast to float must stand before it"
    ]


def test_tflite_graph(make: Make) -> None:
    """No GATHER or SLICE, at most one TRANSPOSE at each edge, at most 290 operations."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    pytest.importorskip("litert_torch")
    artifact = make("tflite", "fp32")
    # Without the delegate, so that every operation of the file is listed.
    opened = interpreter.Interpreter(
        str(artifact.model_path),
        experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    operations = [entry["op_name"] for entry in opened._get_ops_details()]
    counts = Counter(operations)
    assert len(operations) <= 290
    assert not [name for name in counts if name.startswith(("GATHER", "SLICE", "STRIDED_SLICE"))]
    edges = operations[:4] + operations[-5:]
    assert counts["TRANSPOSE"] == edges.count("TRANSPOSE") <= 2


@pytest.mark.parametrize("name", ["onnxruntime", "tensorrt"])
def test_artifacts_do_not_say_where_they_were_made(name: str, make: Make) -> None:
    if (sentence := missing(name)) is not None:
        pytest.skip(sentence)
    contents = make(name, "fp32").model_path.read_bytes()
    assert str(Path(torch.__file__).parents[1]).encode() not in contents
    assert str(Path(__file__).parents[2]).encode() not in contents


@pytest.mark.skipif(sys.platform == "darwin", reason="on macOS Core ML itself runs")
def test_reference_engines_say_so() -> None:
    for name in ("coreml", "tensorrt"):
        engine = load_target(name).engine()
        assert engine.kind == "reference"
        assert engine.no_latency
    for name in ("openvino", "tflite", "onnxruntime"):
        assert load_target(name).engine().kind == "measured"


CORNERS = """
import torch
from torch import nn
from torch.nn import functional as F


class Corners(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 16, 3, 4, 1), nn.Conv2d(16, 16, 3, 3, 1)
        self.head = nn.Conv2d(16, classes, 1)

    def forward(self, x):
        fine = F.relu(self.fine(x))
        corners = F.interpolate(F.relu(self.coarse(fine)), size=fine.shape[2:], mode="bilinear", align_corners=True)
        return F.interpolate(self.head(fine + 3 * corners), scale_factor=2, mode="bilinear", align_corners=True)
"""


@pytest.mark.parametrize("name", OWN)
def test_aligned_corners(name: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resizes with aligned corners, by a factor and by a size that is none, are PyTorch's on every target."""
    if (sentence := missing(name)) is not None:
        pytest.skip(sentence)
    (tmp_path / "corners_network.py").write_text(CORNERS)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(5)
    network = importlib.import_module("corners_network").Corners(7).eval()
    torch.save(network.state_dict(), tmp_path / "corners.pth")
    names = tuple(f"class {index}" for index in range(7))
    checkpoint = load_checkpoint(str(tmp_path / "corners.pth"), network="corners_network:Corners", class_names=names)
    size = Size(76, 104)
    target = load_target(name)
    progress = Progress(silent=True)
    order, recipe = Order(checkpoint, size, folder, "test"), Recipe("fp32", output=target.output)
    artifact = make_artifact(target, order, recipe, lazy_graph(checkpoint, size, progress), progress)
    frame = np.random.default_rng(5).integers(0, 256, (1, size.height, size.width, 3), np.uint8)
    with torch.no_grad():
        logits = network(normalize(torch.from_numpy(frame), checkpoint.normalization))
    expected = reference_labels(logits, size).numpy()
    with target.open(artifact, SessionOptions()) as session:
        labels = session.run(frame)
    assert len(np.unique(expected)) > 3
    assert (labels == expected).mean() >= 0.999


def test_a_package_is_labelled_without_a_word_from_its_libraries(make: Make, tmp_path: Path) -> None:
    if (sentence := missing("coreml")) is not None:
        pytest.skip(sentence)
    Image.fromarray(streets_draw("val", 1, SMALL.height, SMALL.width).image).save(tmp_path / "street.png")
    arguments = ("predict", make("coreml", "fp16").model_path, "street.png")
    done = edgekit(*arguments, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert "street.overlay.png: " in done.out


def test_a_core_ml_package_of_anybodys(make: Make, tmp_path: Path) -> None:
    """Without edgekit's manifest, under other names: the same labels; of another form: a sentence."""
    if (sentence := missing("coreml")) is not None:
        pytest.skip(sentence)
    import coremltools as ct

    artifact = make("coreml", "fp16")
    target = load_target("coreml")
    frame = streets_draw("val", 1, SMALL.height, SMALL.width).image[None]
    with target.open(artifact, SessionOptions(1)) as session:
        expected = session.run(frame)
    model = ct.models.MLModel(str(artifact.model_path), skip_model_load=True)
    spec = model.get_spec()
    for before, after in (("frame", "image"), ("labels", "classes")):
        ct.utils.rename_feature(spec, before, after)
    del spec.description.metadata.userDefined["classes"]
    theirs = tmp_path / "theirs.mlpackage"
    ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True).save(str(theirs))
    for opened in (open_artifact(str(artifact.model_path), None), open_artifact(str(theirs), artifact.class_names)):
        assert (opened.size, opened.class_names, opened.output) == (SMALL, artifact.class_names, "labels")
        with target.open(opened, SessionOptions(1)) as session:
            assert np.array_equal(session.run(frame), expected)
            session.run_graph()
    with pytest.raises(UsageError, match=r"does not say its classes.*--data.*--classes"):
        open_artifact(str(theirs), None)
    with pytest.raises(ArtifactError, match=r"theirs\.mlpackage was not made by edgekit.*without --device"):
        device_key(opened)
    with pytest.raises(ArtifactError, match=r"not an \.mlpackage"):
        open_artifact(str(tmp_path / "none.mlpackage"), None)
    traced = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 5, 3, 8, 1)).eval(), torch.zeros(1, 3, 64, 96))
    for kind, names, words in (
        (ct.TensorType(shape=(1, 3, 64, 96)), tuple("abcde"), "ImageType.*normalization inside"),
        (ct.ImageType(shape=(1, 3, 64, 96), color_layout=ct.colorlayout.BGR), tuple("abcde"), "color_layout='RGB'"),
        (ct.ImageType(shape=(1, 3, 64, 96), color_layout=ct.colorlayout.RGB), tuple("abcd"), r"logits \[1, 4, h, w\]"),
    ):
        path = tmp_path / "other.mlpackage"
        ct.convert(traced, inputs=[kind], minimum_deployment_target=ct.target.iOS17, skip_model_load=True).save(
            str(path)
        )
        with pytest.raises(ArtifactError, match=words):
            open_artifact(str(path), names)
    opened = open_artifact(str(path), tuple("abcde"))
    assert (opened.output, opened.size) == ("logits", Size(64, 96))
    with target.open(opened, SessionOptions(1)) as session:
        labels = session.run(frame[:, :64, :96].copy())
        assert labels.shape == (1, 64, 96)
        assert labels.max() < 5


def test_tflite_takes_other_weights(make: Make, checkpoint: Checkpoint) -> None:
    """What int8 is made of is the float model with its weights scaled: the same operations, the same logits."""
    if (sentence := missing("tflite")) is not None:
        pytest.skip(sentence)
    pytest.importorskip("litert_torch")
    from ai_edge_litert.interpreter import Interpreter

    from targets.tflite_graph.weights import with_weights_of

    model = make("tflite", "fp32").model_path.read_bytes()
    graph = deployable(checkpoint, SMALL)
    frame = streets_draw("train", 0, SMALL.height, SMALL.width).image[None]
    reaches: dict[str, np.ndarray] = {}

    def look(node: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        reaches[node.name] = np.abs(channel_limits(value.numpy())).max(1)
        return value

    visit_values(graph, frame, look)
    other = equalized(graph, find_scales(graph, reaches, 1.0))
    scaled = with_weights_of(model, graph, other)
    assert scaled is not None
    assert scaled != model
    found = []
    for content in (model, scaled):
        interpreter = Interpreter(model_content=content)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], frame)
        interpreter.invoke()
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    assert np.array_equal(*found)
    assert with_weights_of(model, other, graph) is None  # not what it was converted from


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "dilation", "width", "read", "folded"),
    [
        (32, (3, 3), (2, 2), 1, 1, 48, True, True),
        (16, (5, 3), (2, 3), 2, 1, 46, True, True),  # four columns at once, a tall kernel
        (64, (3, 3), (2, 2), 1, 1, 49, True, False),  # wide enough as it is
        (8, (3, 3), (2, 2), 2, 2, 48, False, False),  # dilated
    ],
)
def test_tflite_int8_reads_bytes(
    channels: int, kernel: tuple[int, int], stride: tuple[int, int], padding: int, dilation: int, width: int, read: bool,
    folded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if (sentence := missing("tflite")) is not None:
        pytest.skip(sentence)
    from ai_edge_litert.interpreter import Interpreter

    from edgekit.export import columns

    network, graph, frame = first(channels, kernel, stride, padding, dilation, width)
    quantization = calibrate(graph, lambda: iter([frame]), 1).quantization
    graph = equalized(graph, quantization.scales)

    def logits() -> tuple[np.ndarray, Counter[str]]:
        recipe = Recipe("int8", output="logits")
        made = load_target("tflite").convert(graph, recipe, quantization, tmp_path)
        assert made.native_output.dtype == "int8"
        interpreter = Interpreter(str(tmp_path / "model.tflite"))
        operations = Counter(operation["op_name"] for operation in interpreter._get_ops_details())
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], frame)
        interpreter.invoke()
        output = interpreter.get_output_details()[0]
        scale, zero_point = output["quantization"]
        found = scale * (interpreter.get_tensor(output["index"]).astype(np.float32) - zero_point)
        return found.transpose(0, 3, 1, 2), operations

    together, operations = logits()
    assert ("CAST" not in operations) == read
    assert ("RESHAPE" in operations) == folded
    monkeypatch.setattr(columns, "FOLDED_CHANNELS", 0)
    one_by_one, operations = logits()
    assert "RESHAPE" not in operations
    assert np.array_equal(together, one_by_one)
    expected = network(normalize(torch.from_numpy(frame), graph.normalization)).detach().numpy()
    assert np.abs(together - expected).max() < 0.1 * np.abs(expected).max()


def test_float_rows_are_float(make: Make) -> None:
    """OpenVINO runs f32 in bf16 on some CPUs unless told not to: the session must say f32."""
    if (sentence := missing("openvino")) is not None:
        pytest.skip(sentence)
    with load_target("openvino").open(make("openvino", "fp32"), SessionOptions(threads=1)) as session:
        assert session.settings["inference precision"] == "f32"
        assert session.settings["threads"] == 1
