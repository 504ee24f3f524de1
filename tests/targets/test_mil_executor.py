"""Core ML packages at the seam: what edgekit writes, executed from its own bytes, gives PyTorch's labels."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import graph_of
from torch import Tensor
from torch.nn import functional as F

from calibration.equalization import equalized
from calibration.ranges import calibrate
from edgekit.core.errors import ArtifactError, ConversionError, TargetError
from edgekit.core.values import Artifact, DeployableGraph, Normalization, Precision, Recipe, SessionOptions, Size, UInt8
from edgekit.export.graph import deployable, normalize, reference_labels
from edgekit.networks.checkpoint import Description, load_checkpoint, save_checkpoint
from edgekit.networks.spssn import SPSSN
from targets.coreml import TARGET
from targets.mil.executor import Executor, Program, load_program
from targets.mil.ops import OPS

ct = pytest.importorskip("coremltools")
mb = pytest.importorskip("coremltools.converters.mil").Builder

CLASSES = tuple("abcdefgh")
SMALL, ODD = Size(96, 160), Size(77, 203)


def scenes(count: int, size: Size, seed: int) -> tuple[Tensor, Tensor]:
    """Smooth random frames uint8 [N, 3, H, W], and labels that say which channels are bright."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 3, 6, 8, generator=generator) * 255
    smooth = F.interpolate(low, (size.height, size.width), mode="bicubic")
    noise = torch.randn(smooth.shape, generator=generator) * 12
    bright = (smooth > 127).long()
    return (smooth + noise).clamp(0, 255).byte(), bright[:, 0] * 4 + bright[:, 1] * 2 + bright[:, 2]


def frames(count: int, size: Size, seed: int) -> Iterator[UInt8]:
    """Frames as sessions take them: uint8 [1, H, W, 3]."""
    for frame in scenes(count, size, seed)[0]:
        yield frame[None].permute(0, 2, 3, 1).contiguous().numpy()


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A briefly fitted SPSSN: an untrained one amplifies rounding errors as no trained network does."""
    torch.manual_seed(0)
    network = SPSSN(len(CLASSES), pooling_stages=1)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for step in range(45):
        batch, labels = scenes(4, SMALL, step)
        logits = network(normalize(batch.permute(0, 2, 3, 1), Normalization()))
        upsampled = F.interpolate(logits, (SMALL.height, SMALL.width), mode="bilinear")
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(upsampled, labels))
        optimizer.step()
    path = tmp_path_factory.mktemp("checkpoint") / "spssn.safetensors"
    save_checkpoint(
        path,
        network,
        Description(
            network="spssn",
            arguments={"pooling_stages": 1},
            class_names=CLASSES,
            normalization=Normalization(),
            dataset="test",
            recipe={},
            metrics={},
        ),
    )
    return path


def converted(graph: DeployableGraph, folder: Path, precision: Precision, recipe: Recipe | None = None) -> Artifact:
    recipe = recipe or Recipe(precision)
    quantization = calibrate(graph, lambda: frames(4, graph.size, 1), 4).quantization if precision == "int8" else None
    graph = graph if quantization is None else equalized(graph, quantization.scales)
    result = TARGET.convert(graph, recipe, quantization, folder)
    return Artifact(
        folder=folder,
        target="coreml",
        precision=precision,
        size=graph.size,
        class_names=graph.class_names,
        output=recipe.output,
        output_stride=recipe.output_stride,
        model=result.model,
        manifest={"kept_float": result.kept_float},
    )


def agreement(graph: DeployableGraph, artifact: Artifact) -> float:
    """Share of pixels with PyTorch's label, over frames that calibration has not seen."""
    shares = []
    with TARGET.open(artifact, SessionOptions(threads=1)) as session:
        for frame in frames(2, graph.size, 77):
            labels = session.run(frame)
            assert labels.dtype == np.uint8 and labels.shape == (1, graph.size.height, graph.size.width)
            with torch.no_grad():
                logits = graph.module(normalize(torch.from_numpy(frame), graph.normalization))
            shares.append((reference_labels(logits, graph.size).numpy() == labels).mean())
        session.run_graph()
    return float(np.mean(shares))


@pytest.fixture(scope="module")
def small_graph(checkpoint_path: Path) -> DeployableGraph:
    return deployable(load_checkpoint(str(checkpoint_path)), SMALL)


def test_fp32_labels_are_pytorchs_at_a_size_no_stride_divides(checkpoint_path: Path, tmp_path: Path) -> None:
    graph = deployable(load_checkpoint(str(checkpoint_path)), ODD)
    artifact = converted(graph, tmp_path, "fp32")
    kinds = [op.op_type for op in load_program(artifact.model_path).function.operations]
    assert "upsample_bilinear" in kinds
    assert agreement(graph, artifact) >= 0.999


def test_fp16_logits_give_pytorchs_labels(small_graph: DeployableGraph, tmp_path: Path) -> None:
    artifact = converted(small_graph, tmp_path, "fp16", Recipe("fp16", output="logits"))
    assert agreement(small_graph, artifact) >= 0.99


def test_int8_is_w8a8_and_agrees(
    small_graph: DeployableGraph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = converted(small_graph, tmp_path, "int8")
    program = load_program(artifact.model_path)
    operations = list(program.function.operations)
    kinds = [op.op_type for op in operations]
    convolutions = [op for op in operations if op.op_type == "conv"]
    assert all(op.inputs["weight"].op.op_type == "constexpr_affine_dequantize" for op in convolutions)
    assert all(op.inputs["weight"].op.quantized_data.val.dtype == np.int8 for op in convolutions)
    assert all(op.inputs["x"].op.op_type in ("dequantize", "reduce_mean", "matmul") for op in convolutions)
    assert kinds.count("quantize") > len(convolutions)
    # The frame's edges stay float: nothing quantizes the frame itself, nor what argmax reads.
    edge = operations[kinds.index("quantize")].inputs["input"].op
    assert edge.op_type == "mul" and edge.y.val == 2.0**-6 and edge.x.op.op_type == "sub"
    assert "quantize" not in kinds[len(kinds) - 1 - kinds[::-1].index("conv") :]
    assert any("logits" in text for text in artifact.manifest["kept_float"])
    capsys.readouterr()
    assert agreement(small_graph, artifact) >= 0.95
    assert capsys.readouterr() == ("", "")  # open() and run() are quiet


@pytest.fixture(scope="module")
def tiny_graph() -> DeployableGraph:
    """One strided convolution: enough for what does not depend on the network."""
    torch.manual_seed(3)
    return graph_of(torch.nn.Conv2d(3, len(CLASSES), 3, 4, 1), SMALL)


def weight_scales(artifact: Artifact) -> np.ndarray:
    operations = load_program(artifact.model_path).function.operations
    return np.concatenate(
        [np.ravel(op.scale.val) for op in operations if op.op_type == "constexpr_affine_dequantize"]
    ).astype(np.float32)


class Levels(torch.nn.Module):
    """Three convolutions, the first's result scaled against the second's weights: the function stays the same."""

    def __init__(self, level: float, gate: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.Conv2d(8, 8, 3, 1, 1)
        self.head, self.gate = torch.nn.Conv2d(8, len(CLASSES), 1), gate
        with torch.no_grad():
            for parameter in self.first.parameters():
                parameter.mul_(level)
            self.second.weight.div_(level)
            self.head.weight.mul_(20.0)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.first(x))
        logits: Tensor = self.head(torch.relu(self.second(first)))
        return logits if self.gate is None else logits + first * torch.sigmoid(first * self.gate)


@pytest.mark.parametrize("level", [1.0, 1e-3, 1e3])
def test_int8_weight_scales_are_normal_fp16_numbers(level: float, tmp_path: Path) -> None:
    """Whatever the level of a map; normalization, which makes the first weights small, included."""
    graph = graph_of(Levels(level), SMALL)
    artifact = converted(graph, tmp_path, "int8")
    assert weight_scales(artifact).min() >= 2.0**-14
    assert agreement(graph, artifact) >= 0.95


def test_small_int8_weights_that_must_stay_are_told(tmp_path: Path) -> None:
    """A map that a sigmoid reads cannot be scaled, and so neither can the weights that make it."""
    graph = graph_of(Levels(1e-3, gate=1e3), SMALL)
    quantization = calibrate(graph, lambda: frames(2, SMALL, 1), 2).quantization
    made = TARGET.convert(equalized(graph, quantization.scales), Recipe("int8"), quantization, tmp_path)
    assert re.search(
        r"smallest normal number, 6\.1e-05: 8 of first; .*keep these layers in float", made.notes["small weights"]
    )


def test_ranges_that_coremltools_cannot_hold_are_told(tmp_path: Path) -> None:
    network = Levels(1.0)
    frame = torch.from_numpy(next(frames(1, SMALL, 1)))
    with torch.no_grad():
        reach = float(network.first(normalize(frame, Normalization())).max())
    graph = graph_of(Levels(45000.0 / reach, gate=1e-4), SMALL)
    quantization = calibrate(graph, lambda: frames(1, SMALL, 1), 1).quantization
    with pytest.raises(ConversionError, match=r"reaches 4\d{4} on the calibration frames.*32000: convert in fp16"):
        TARGET.convert(equalized(graph, quantization.scales), Recipe("int8"), quantization, tmp_path)


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML itself predicts on macOS only")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_core_ml_itself_gives_what_the_executor_gives(
    precision: Precision, small_graph: DeployableGraph, tmp_path: Path
) -> None:
    """The same package and frames, on the CPU: logits within the precision's rounding, and labels."""
    from PIL import Image

    artifact = converted(small_graph, tmp_path, precision, Recipe(precision, output="logits"))
    executor = Executor(load_program(artifact.model_path))
    model = ct.models.MLModel(str(artifact.model_path), compute_units=ct.ComputeUnit.CPU_ONLY)
    for frame in frames(2, SMALL, 77):
        planes = torch.from_numpy(frame).permute(0, 3, 1, 2).float()
        expected = executor.run({"frame": planes})["logits"].numpy()
        logits = np.asarray(model.predict({"frame": Image.fromarray(frame[0])})["logits"])
        assert logits.shape == expected.shape
        error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
        assert error < {"fp32": 1e-4, "fp16": 0.02, "int8": 0.1}[precision]
        assert (logits.argmax(1) == expected.argmax(1)).mean() > {"fp32": 0.999, "fp16": 0.99, "int8": 0.97}[precision]


def test_output_stride_decides_on_the_coarse_map(tiny_graph: DeployableGraph, tmp_path: Path) -> None:
    artifact = converted(tiny_graph, tmp_path, "fp32", Recipe("fp32", output_stride=4))
    with TARGET.open(artifact, SessionOptions()) as session:
        frame = next(frames(1, SMALL, 3))
        labels = session.run(frame)
        with pytest.raises(TargetError, match="resize"):
            session.run(frame[:, :64])
    logits = tiny_graph.module(normalize(torch.from_numpy(frame), tiny_graph.normalization))
    assert np.array_equal(labels[:, ::4, ::4], logits.argmax(1).numpy())
    assert np.array_equal(labels, labels[:, ::4, ::4].repeat(4, 1).repeat(4, 2))


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model\.mlpackage"):
        load_program(tmp_path / "model.mlpackage")


# Single ops ----------------------------------------------------------------------------------------------------------


def built(body: Callable[[Any], Any], shape: tuple[int, ...], folder: Path, fp16: bool = False) -> Program:
    """A tiny package with one input ``x``, written and read back."""
    program = mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=ct.target.iOS17)(body)
    precision = ct.precision.FLOAT16 if fp16 else ct.precision.FLOAT32
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=precision,
        skip_model_load=True,
    )
    model.save(str(folder / "tiny.mlpackage"))
    return load_program(folder / "tiny.mlpackage")


def execute(program: Program, x: Tensor) -> list[Tensor]:
    (name,) = program.inputs
    results = Executor(program).run({name: x})
    return [results[output] for output in program.outputs]


X = torch.randn(1, 4, 9, 12, generator=torch.Generator().manual_seed(1))
W = torch.randn(6, 2, 3, 4, generator=torch.Generator().manual_seed(2))


def linear_map(x: Tensor, axis: int, points: Tensor) -> Tensor:
    """Values between pixels of an axis, by numpy's own interpolation."""
    array = np.apply_along_axis(lambda row: np.interp(points, np.arange(len(row)), row), axis, x.numpy())
    return torch.from_numpy(array).float()


CASES: dict[str, tuple[Callable[[Any], Any], Callable[[Tensor], Tensor]]] = {
    "grouped conv, same padding, stride 2": (
        lambda x: mb.conv(x=x, weight=W.numpy(), groups=2, strides=[2, 2], pad_type="same"),
        lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1)), W, stride=2, groups=2),
    ),
    "grouped conv, same_lower": (
        lambda x: mb.conv(x=x, weight=W.numpy(), groups=2, pad_type="same_lower"),
        lambda x: F.conv2d(F.pad(x, (2, 1, 1, 1)), W, groups=2),
    ),
    "dilated conv, custom padding": (
        lambda x: mb.conv(x=x, weight=W.numpy(), groups=2, dilations=[2, 1], pad_type="custom", pad=[2, 1, 0, 3]),
        lambda x: F.conv2d(F.pad(x, (0, 3, 2, 1)), W, groups=2, dilation=(2, 1)),
    ),
    "max_pool 5x5 stride 2": (
        lambda x: mb.max_pool(x=x, kernel_sizes=[5, 5], strides=[2, 2], pad_type="custom", pad=[2, 2, 2, 2]),
        lambda x: F.max_pool2d(x, 5, 2, 2),
    ),
    "max_pool uneven padding": (
        lambda x: mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="same"),
        lambda x: F.max_pool2d(F.pad(x, (0, 0, 0, 1), value=-1e9), 2),
    ),
    "max_pool ceil": (
        lambda x: mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid", ceil_mode=True),
        lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
    ),
    "avg_pool counting padding": (
        lambda x: mb.avg_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]),
        lambda x: F.avg_pool2d(x, 3, 2, 1),
    ),
    "avg_pool uneven, not counting padding": (
        lambda x: mb.avg_pool(
            x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="same", exclude_padding_from_average=True
        ),
        lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False),
    ),
    "upsample_bilinear half-pixel, factor not whole": (
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2.3334, scale_factor_width=1.75, align_corners=False),
        lambda x: F.interpolate(x, (21, 21), mode="bilinear", align_corners=False),
    ),
    "upsample_bilinear corners aligned": (
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=3, align_corners=True),
        lambda x: F.interpolate(x, (18, 36), mode="bilinear", align_corners=True),
    ),
    "resize_bilinear default": (
        lambda x: mb.resize_bilinear(x=x, target_size_height=18, target_size_width=7, sampling_mode="DEFAULT"),
        lambda x: linear_map(linear_map(x, 2, torch.arange(18) / 2), 3, torch.arange(7) * 12 / 7),
    ),
    "resize_bilinear offset corners": (
        lambda x: mb.resize_bilinear(x=x, target_size_height=9, target_size_width=20, sampling_mode="OFFSET_CORNERS"),
        lambda x: linear_map(linear_map(x, 2, (torch.arange(9) + 0.5) * 8 / 9), 3, (torch.arange(20) + 0.5) * 11 / 20),
    ),
    "resize half-pixel": (
        lambda x: mb.resize(
            x=x, shape=[5, 30], resized_dims=np.uint32(2), interpolation_mode="LINEAR", sampling_mode="UNALIGN_CORNERS"
        ),
        lambda x: F.interpolate(x, (5, 30), mode="bilinear"),
    ),
    "upsample_nearest_neighbor": (
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2.0, scale_factor_width=1.5),
        lambda x: F.interpolate(x, (18, 18), mode="nearest"),
    ),
    "slice_by_index with masks": (
        lambda x: mb.slice_by_index(
            x=x,
            begin=[0, -2, 1, 0],
            end=[0, 0, 8, 12],
            stride=[1, 1, 2, 1],
            begin_mask=[True, False, False, True],
            end_mask=[True, True, False, False],
            squeeze_mask=[False, True, False, False],
        ),
        lambda x: x[:, -2, 1:8:2],
    ),
    "concat, transpose, reshape": (
        lambda x: mb.reshape(x=mb.transpose(x=mb.concat(values=[x, x], axis=1), perm=[0, 2, 3, 1]), shape=[9, -1]),
        lambda x: torch.cat([x, x], 1).permute(0, 2, 3, 1).reshape(9, -1),
    ),
    "softmax, reduce_mean, matmul": (
        lambda x: mb.matmul(
            x=np.eye(9, dtype=np.float32) * 2,
            y=mb.sub(x=mb.softmax(x=x, axis=1), y=mb.reduce_mean(x=x, axes=[1], keep_dims=True)),
        ),
        lambda x: 2 * (x.softmax(1) - x.mean(1, keepdim=True)),
    ),
    "clip, leaky_relu, sigmoid_hard": (
        lambda x: mb.sigmoid_hard(
            x=mb.leaky_relu(x=mb.clip(x=x, alpha=-1.0, beta=0.5), alpha=0.1), alpha=0.2, beta=0.5
        ),
        lambda x: (F.leaky_relu(x.clamp(-1.0, 0.5), 0.1) * 0.2 + 0.5).clamp(0, 1),
    ),
    "quantize and dequantize": (
        lambda x: mb.dequantize(
            input=mb.quantize(input=x, scale=np.float32(0.011), zero_point=np.int8(-7), output_dtype="int8"),
            scale=np.float32(0.011),
            zero_point=np.int8(-7),
        ),
        lambda x: ((x / 0.011).round() - 7).clamp(-128, 127).add(7) * 0.011,
    ),
}


def blocks_of(x: Tensor, block: int) -> Tensor:
    """[N, C, H, W] -> [N, i, j, C, y, x], the place in a block before the channel."""
    rows = [[x[:, :, i::block, j::block] for j in range(block)] for i in range(block)]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


CASES |= {
    "cumsum, exclusive from the end": (
        lambda x: mb.cumsum(x=x, axis=1, exclusive=True, reverse=True),
        lambda x: torch.stack([x[:, index + 1 :].sum(1) for index in range(4)], 1),
    ),
    "space_to_depth": (
        lambda x: mb.space_to_depth(x=x, block_size=3),
        lambda x: blocks_of(x, 3).reshape(1, 36, 3, 4),
    ),
    "depth_to_space": (
        lambda x: mb.depth_to_space(x=mb.space_to_depth(x=x, block_size=3), block_size=3),
        lambda x: x,
    ),
    "pixel_unshuffle": (
        lambda x: mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(3)),
        lambda x: F.pixel_unshuffle(x, 3),
    ),
    "space_to_batch": (
        lambda x: mb.space_to_batch(x=x, block_shape=[3, 3], paddings=[[0, 3], [2, 1]]),
        lambda x: blocks_of(F.pad(x, (2, 1, 0, 3)), 3).reshape(9, 4, 4, 5),
    ),
    "batch_to_space": (
        lambda x: mb.batch_to_space(
            x=mb.space_to_batch(x=x, block_shape=[3, 3], paddings=[[0, 3], [2, 1]]),
            block_shape=[3, 3],
            crops=[[0, 3], [2, 1]],
        ),
        lambda x: x,
    ),
    "reductions of absolute values and squares": (
        lambda x: mb.add(
            x=mb.reduce_l1_norm(x=x, axes=[1], keep_dims=True),
            y=mb.sub(
                x=mb.reduce_l2_norm(x=x, axes=[-1], keep_dims=True),
                y=mb.reduce_sum_square(x=x, axes=[2, 3], keep_dims=True),
            ),
        ),
        lambda x: x.abs().sum(1, True) + x.norm(dim=-1, keepdim=True) - x.pow(2).sum((2, 3), True),
    ),
    "reductions of logarithms, products": (
        lambda x: mb.add(x=mb.reduce_log_sum_exp(x=x, axes=[1, 3]), y=mb.reduce_prod(x=x, axes=[-1, 1])),
        lambda x: x.exp().sum((1, 3)).log() + x.prod(3).prod(1),
    ),
    "l2_norm": (lambda x: mb.l2_norm(x=x, epsilon=1e-6), lambda x: x / (x.norm() ** 2 + 1e-6) ** 0.5),
    "local_response_norm": (
        lambda x: mb.local_response_norm(x=x, size=3, alpha=0.3, beta=0.6, k=1.5),
        lambda x: x / (1.5 + 0.3 / 3 * F.pad(x.square(), (0, 0, 0, 0, 1, 1)).unfold(1, 3, 1).sum(-1)) ** 0.6,
    ),
    "topk, smallest first": (
        lambda x: mb.topk(x=x, k=3, axis=2, ascending=True)[0],
        lambda x: torch.from_numpy(np.sort(x.numpy(), 2)[:, :, :3]),
    ),
    "gather along an axis by argsort": (
        lambda x: mb.gather_along_axis(x=x, indices=mb.argsort(x=x, axis=3, ascending=False), axis=3),
        lambda x: torch.from_numpy(np.sort(x.numpy(), 3)[..., ::-1].copy()),
    ),
    "gather_nd": (
        lambda x: mb.gather_nd(x=x, indices=np.array([[0, 3, 1], [0, 0, 8]], np.int32)),
        lambda x: torch.stack([x[0, 3, 1], x[0, 0, 8]]),
    ),
    "one_hot of the leading class": (
        lambda x: mb.one_hot(
            indices=mb.reduce_argmax(x=x, axis=1, keep_dims=False),
            one_hot_vector_size=4,
            axis=1,
            on_value=2.0,
            off_value=-1.0,
        ),
        lambda x: torch.where(x == x.amax(1, keepdim=True), 2.0, -1.0),
    ),
    "band_part, reverse, crop": (
        lambda x: mb.crop(
            x=mb.reverse(x=mb.band_part(x=x, lower=2, upper=1), axes=[1, 3]), crop_height=[1, 2], crop_width=[0, 5]
        ),
        lambda x: torch.from_numpy(np.triu(np.tril(x.numpy(), 1), -2)).flip(1, 3)[:, :, 1:7, :7],
    ),
    "sliding_windows": (
        lambda x: mb.sliding_windows(x=x, axis=2, size=4, stride=2),
        lambda x: torch.stack([x[:, :, start : start + 4] for start in (0, 2, 4)], 2),
    ),
    "einsum": (
        lambda x: mb.einsum(values=(x, W_EINSUM), equation="nchw,nwhu->nchu"),
        lambda x: torch.stack([x[:, :, h] @ torch.from_numpy(W_EINSUM)[:, :, h] for h in range(9)], 2),
    ),
    "threshold, softplus_parametric, exp2, atan": (
        lambda x: mb.atan(
            x=mb.exp2(x=mb.softplus_parametric(x=mb.threshold(x=x, alpha=-0.4), alpha=HALVES, beta=HALVES + 1))
        ),
        lambda x: (2 ** (F.softplus(x.clamp(min=-0.4) * (COLUMN + 1)) * COLUMN)).atan(),
    ),
}
W_EINSUM = np.random.default_rng(3).normal(size=(1, 12, 9, 5)).astype(np.float32)
HALVES = np.arange(1, 5, dtype=np.float32) / 2
COLUMN = torch.from_numpy(HALVES)[None, :, None, None]


# Places in pixels, some beyond the edges; by torch's own names of what ``resample`` does.
PLACES = 14 * torch.rand(1, 5, 7, 2, generator=torch.Generator().manual_seed(4)) - 2


def resampled(mode: str, padding: str, coordinates: str, align_corners: bool, value: float = 0.0) -> Any:
    return lambda x: mb.resample(
        x=x, coordinates=PLACES.numpy(), sampling_mode=mode, padding_mode=padding, padding_value=value,
        coordinates_mode=coordinates, align_corners=align_corners,
    )  # fmt: skip


def in_pixels(x: Tensor, points: Tensor, axis: int) -> Tensor:
    """Rows of an axis at places within it."""
    return linear_map(x, axis, points)


def reflected(x: Tensor, edge: bool) -> Tensor:
    """By numpy's padding: nine pixels more on each side, and what ``PLACES`` names in them."""
    wide = np.pad(x.numpy(), ((0, 0), (0, 0), (9, 9), (9, 9)), mode="symmetric" if edge else "reflect")
    rows = [
        [
            in_pixels(in_pixels(torch.from_numpy(wide), PLACES[0, i, j, 1:] + 9, 2), PLACES[0, i, j, :1] + 9, 3)[
                ..., 0, 0
            ]
            for j in range(7)
        ]
        for i in range(5)
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


CASES |= {
    "resample in pixels, constant": (
        resampled("bilinear", "constant", "unnormalized", True, 0.5),
        lambda x: F.grid_sample(x - 0.5, (2 * PLACES + 1) / torch.tensor([12, 9]) - 1, align_corners=False) + 0.5,
    ),
    "resample at shares, corners at centres": (
        resampled("bilinear", "border", "normalized_minus_one_to_one", True),
        lambda x: F.grid_sample(x, PLACES, padding_mode="border", align_corners=True),
    ),
    "resample at shares, corners at edges": (
        resampled("nearest", "border", "normalized_zero_to_one", False),
        lambda x: F.grid_sample(x, 2 * PLACES - 1, "nearest", "border", align_corners=False),
    ),
    "resample, reflected at the pixels": (
        resampled("bilinear", "reflection", "unnormalized", False),
        lambda x: reflected(x, edge=False),
    ),
    "resample, reflected at the edge": (
        resampled("bilinear", "symmetric", "unnormalized", True),
        lambda x: reflected(x, edge=True),
    ),
    "affine": (
        lambda x: mb.affine(
            x=x,
            transform_matrix=np.array([[0.8, 0.3, 0.1, -0.2, 1.1, 0.4]], np.float32),
            output_height=5,
            output_width=8,
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=True,
        ),
        lambda x: F.grid_sample(
            x,
            F.affine_grid(torch.tensor([[[0.8, 0.3, 0.1], [-0.2, 1.1, 0.4]]]), [1, 4, 5, 8], align_corners=True),
            align_corners=True,
        ),
    ),
    "scatter": (
        lambda x: mb.scatter(data=x, indices=np.array([2, 0], np.int32), updates=ROWS, axis=1, mode="sub"),
        lambda x: x - F.pad(torch.from_numpy(ROWS)[:, [1, 0]], (0, 0, 0, 0, 0, 2))[:, [0, 2, 1, 3]],
    ),
    "scatter along an axis": (
        lambda x: mb.scatter_along_axis(
            data=x, indices=np.argsort(ALL, axis=3).astype(np.int32), updates=ALL, axis=3, mode="update"
        ),
        lambda x: torch.from_numpy(np.take_along_axis(ALL, np.argsort(np.argsort(ALL, axis=3), axis=3), 3)),
    ),
    "scatter to named places": (
        lambda x: mb.scatter_nd(
            data=x, indices=np.array([[0, 3, 1], [0, 0, 8], [0, 3, 1]], np.int32), updates=ALL[0, 0, :3], mode="add"
        ),
        lambda x: added(x, [(3, 1), (0, 8), (3, 1)]),
    ),
    "scatter, larger and smaller": (
        lambda x: mb.scatter(
            data=mb.scatter(data=x, indices=np.array([1, 3], np.int32), updates=ROWS, axis=1, mode="max"),
            indices=np.array([0, 3], np.int32),
            updates=ROWS,
            axis=1,
            mode="min",
        ),
        lambda x: torch.stack(
            [
                x[:, 0].minimum(ROW[0]),
                x[:, 1].maximum(ROW[0]),
                x[:, 2],
                x[:, 3].maximum(ROW[1]).minimum(ROW[1]),
            ],
            1,
        ),
    ),
    "l2_pool": (
        lambda x: mb.l2_pool(x=x, kernel_sizes=[2, 3], strides=[2, 2], pad_type="custom", pad=[0, 1, 1, 0]),
        lambda x: F.pad(x, (1, 0, 0, 1)).square().unfold(2, 2, 2).unfold(3, 3, 2).sum((-1, -2)).sqrt(),
    ),
}
ALL = np.random.default_rng(5).normal(size=X.shape).astype(np.float32)
ROWS = ALL[:, :2]
ROW = torch.from_numpy(ROWS[0])[:, None]


def added(x: Tensor, places: list[tuple[int, int]]) -> Tensor:
    whole = x.clone()
    for (channel, row), update in zip(places, torch.from_numpy(ALL[0, 0]), strict=False):
        whole[0, channel, row] += update
    return whole


class Written(torch.nn.Module):
    """What PyTorch code does to parts of a map, and to places that depend on it; coremltools writes it as updates of slices."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 1:3, ::2] = 2 * x[:, :2, ::2]
        y[:, :, -1] = x[:, :, 0]
        y = y.masked_fill(y > 0.5, -1.0)
        return torch.where(y == y.amax((2, 3), keepdim=True), x, y)


def test_updates_of_slices(tmp_path: Path) -> None:
    program = torch.jit.trace(Written().eval(), X)
    model = ct.convert(
        program, inputs=[ct.TensorType(name="x", shape=X.shape)], minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32, skip_model_load=True,
    )  # fmt: skip
    model.save(str(tmp_path / "written.mlpackage"))
    loaded = load_program(tmp_path / "written.mlpackage")
    assert "slice_update" in {operation.op_type for operation in loaded.function.operations}
    (result,) = execute(loaded, X)
    torch.testing.assert_close(result, Written()(X))


def test_places_that_depend_on_the_values(tmp_path: Path) -> None:
    program = built(lambda x: mb.non_zero(x=mb.cast(x=mb.greater(x=x, y=0.7), dtype="int32")), X.shape, tmp_path)
    (result,) = execute(program, X)
    torch.testing.assert_close(result.long(), (X > 0.7).nonzero())


@pytest.mark.parametrize("kind", ["palette", "sparse", "affine", "blocks"])
def test_compressed_weights(kind: str, tmp_path: Path) -> None:
    """Weights in coremltools' compressed forms are those that its own decompression gives."""
    import coremltools.optimize.coreml as cto

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 1)).eval()
    model = ct.convert(
        torch.jit.trace(network, X), inputs=[ct.TensorType(name="x", shape=X.shape)], minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32, skip_model_load=True,
    )  # fmt: skip
    if kind == "palette":
        small = cto.palettize_weights(
            model, cto.OptimizationConfig(cto.OpPalettizerConfig(mode="kmeans", nbits=4, weight_threshold=0))
        )
    elif kind == "sparse":
        small = cto.prune_weights(
            model, cto.OptimizationConfig(cto.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=0))
        )
    else:
        granularity = {
            "affine": {"granularity": "per_channel"},
            "blocks": {"granularity": "per_block", "block_size": 4},
        }[kind]
        quantizer = cto.OpLinearQuantizerConfig(
            mode="linear", dtype="int4" if kind == "blocks" else "int8", weight_threshold=0, **granularity
        )
        small = cto.linear_quantize_weights(model, cto.OptimizationConfig(quantizer))
    results = []
    for name, form in (("small", small), ("whole", cto.decompress_weights(small)), ("float", model)):
        form.save(str(tmp_path / f"{name}.mlpackage"))
        program = load_program(tmp_path / f"{name}.mlpackage")
        assert any(op.op_type.startswith("constexpr") for op in program.function.operations) == (name == "small")
        results += execute(program, X)
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(results[0], results[2], atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_op_semantics(case: str, tmp_path: Path) -> None:
    body, expected = CASES[case]
    (result,) = execute(built(lambda x: body(x), tuple(X.shape), tmp_path), X)
    torch.testing.assert_close(result, expected(X), rtol=1e-4, atol=1e-5)


def test_quantize_rounds_ties_to_even(tmp_path: Path) -> None:
    program = built(
        lambda x: mb.cast(x=mb.quantize(input=x, scale=np.float32(0.5), output_dtype="int8"), dtype="int32"),
        (6,),
        tmp_path,
    )
    (result,) = execute(program, torch.tensor([0.25, 0.75, 1.25, -0.25, 99.0, -99.0]))
    assert result.tolist() == [0, 2, 2, 0, 127, -128]


def test_fp16_values_are_rounded_after_each_op(tmp_path: Path) -> None:
    program = built(lambda x: mb.add(x=mb.mul(x=x, y=0.1), y=1.0), (1, 4), tmp_path, fp16=True)
    x = torch.tensor([[0.1, 1.0, 3.3, 1000.3]])
    (result,) = execute(program, x)
    expected = ((x.half().float() * torch.tensor(0.1).half().float()).half().float() + 1).half().float()
    assert torch.equal(result, expected)
    (name,) = program.inputs
    exact = Executor(program, rounding=False).run({name: x})[program.outputs[0]]
    assert not torch.equal(exact, expected)
    torch.testing.assert_close(exact, x * 0.1 + 1, rtol=1e-3, atol=1e-4)


def test_the_observer_sees_every_float(tmp_path: Path) -> None:
    program = built(lambda x: mb.reduce_argmax(x=mb.relu(x=x), axis=1), tuple(X.shape), tmp_path)
    seen: dict[str, float] = {}
    (name,) = program.inputs
    Executor(program).run({name: X}, lambda tensor, value: seen.update({tensor: value.max().item()}))
    assert len(seen) == 2  # the input and relu's result, not the integer labels
    assert set(seen.values()) == {X.max().item()}


def test_an_unknown_op_is_named_with_its_place(tmp_path: Path) -> None:
    assert "random_normal" not in OPS  # and cannot be: no two runtimes draw the same
    program = built(lambda x: mb.add(x=x, y=mb.random_normal(shape=[1])), tuple(X.shape), tmp_path)
    with pytest.raises(TargetError, match=r"'random_normal', which makes '[^']+' \(operation \d+ of \d+\)"):
        Executor(program)
