"""Every rule is met by what it is about and by nothing like it; and what it says is true: each conversion is made again."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import graph_of
from hypothesis import given, settings
from hypothesis import strategies as st
from seam import Done, call, own_network
from torch import Tensor, nn
from torch.nn import functional as F

from calibration import ranges as ranges_of_int8
from calibration.ranges import calibrate
from edgekit.core.errors import CheckpointError, EdgekitError
from edgekit.core.progress import noise_to
from edgekit.core.registry import load_target
from edgekit.core.values import Artifact, DeployableGraph, Precision, Recipe, SessionOptions, Size
from edgekit.export.graph import Logits, normalize, reference_labels
from edgekit.export.lint import COREML, ONNXRUNTIME, OPENVINO, RULES, TARGETS, TENSORRT, TFLITE, UNKNOWN, Finding, lint
from edgekit.networks.checkpoint import build_network, load_checkpoint, load_network
from edgekit.pipeline.quantization import int8_graph
from reports.lint import lint_text

SIZE = Size(64, 64)
C = 8
FLOATS: dict[str, Precision] = {COREML: "fp16", ONNXRUNTIME: "fp32", OPENVINO: "fp32", TENSORRT: "fp32", TFLITE: "fp32"}


@torch.library.custom_op("lintlab::twist", mutates_args=())
def twist(x: Tensor) -> Tensor:
    return x.flip(3) * 2


@twist.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Fn(nn.Module):
    """A function of the map, as a module with tensors of its own."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.register_buffer(name, part) if isinstance(part, Tensor) else setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def resize(**options: Any) -> nn.Module:
    return Fn(lambda s, x: F.interpolate(x, **options))


def conv(**options: Any) -> nn.Module:
    return nn.Conv2d(C, C, 3, 1, 1, **options)


def far_corner(s: Any, x: Tensor) -> Tensor:
    """Where steps of another length have gone furthest astray."""
    return x[:, :, -8:, -8:]


def flow(s: Any, x: Tensor) -> Tensor:
    return F.grid_sample(x, s.grid + s.conv(x).permute(0, 2, 3, 1) * 0.05, align_corners=True)


def affine(s: Any, x: Tensor) -> Tensor:
    return x + F.affine_grid(s.theta, [1, C, 32, 32], align_corners=False).permute(0, 3, 1, 2).mean(1, keepdim=True)


def unpool(s: Any, x: Tensor) -> Tensor:
    y, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(y, places, 2)


def assign(s: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :4] = x[:, :4] * 2
    return y


def assign_mask(s: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[y < 0.1] = 0
    return y


def windows(s: Any, x: Tensor) -> Tensor:
    return (
        x.reshape(1, C, 4, 8, 4, 8)
        .permute(0, 2, 4, 3, 5, 1)
        .reshape(16, 64, C)
        .mean(1)
        .reshape(1, 4, 4, C)
        .permute(0, 3, 1, 2)
    )


def windows_in_steps(s: Any, x: Tensor) -> Tensor:
    rows = x.reshape(C, 4, 8, 32).permute(1, 2, 3, 0).reshape(4, 8, 4, 8, C)
    return rows.permute(0, 2, 1, 3, 4).reshape(16, 64, C).mean(1).reshape(1, 4, 4, C).permute(0, 3, 1, 2)


def shuffle(s: Any, x: Tensor) -> Tensor:
    return x.view(1, 2, C // 2, 32, 32).transpose(1, 2).reshape(1, C, 32, 32)


def attend(s: Any, x: Tensor) -> Tensor:
    tokens = F.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).reshape(1, C, 8, 8)


def layer_norm(s: Any, x: Tensor) -> Tensor:
    y: Tensor = s.norm(x.permute(0, 2, 3, 1))
    return y.permute(0, 3, 1, 2)


def ranges(share: float, activation: type[nn.Module] = nn.ReLU6) -> nn.Module:
    """Half of the channels shrunk in the depthwise convolution and grown again in the next one."""
    torch.manual_seed(5)
    network = nn.Sequential(conv(groups=C, bias=False), activation(), nn.Conv2d(C, C, 1))
    with torch.no_grad():
        for module, axis, factor in ((network[0], 0, share), (network[2], 1, 1 / share)):
            scale = torch.ones(C)
            scale[: C // 2] = factor
            module.weight.uniform_(0.1, 0.3).mul_(scale.reshape([-1 if side == axis else 1 for side in range(4)]))
    return network


def up(kernel: int, stride: int, padding: int, **options: Any) -> nn.Module:
    return nn.ConvTranspose2d(C, C, kernel, stride, padding, **options)


def warp() -> nn.Module:
    lines = torch.linspace(-1, 1, 32)
    grid = torch.stack(torch.meshgrid(lines, lines, indexing="xy"), -1)[None]
    return Fn(flow, grid=grid, conv=nn.Conv2d(C, 2, 3, 1, 1))


def with_statistics(module: nn.Module) -> nn.Module:
    """Running statistics of a trained network's kind."""
    for part in module.modules():
        if getattr(part, "running_mean", None) is not None:
            part.running_mean.normal_(0, 0.5)  # type: ignore[operator, union-attr]
            part.running_var.uniform_(0.2, 2.0)  # type: ignore[operator, union-attr]
    return module


Maker = Callable[[], nn.Module]
ORDER = [3, 1, 0, 2, 7, 6, 5, 4]
CASES: dict[str, tuple[Maker, Maker]] = {
    "custom-operation": (lambda: Fn(lambda s, x: torch.ops.lintlab.twist(x)), lambda: Fn(lambda s, x: x * 2)),
    "spelled-out": (
        lambda: Fn(lambda s, x: torch.add(F.avg_pool2d(x, 3, 1, 1, divisor_override=4), (x.sigmoid() * 0.9).logit(), alpha=0.3)),
        lambda: Fn(lambda s, x: torch.add(F.avg_pool2d(x, 3, 1, 1), x.round())),
    ),
    "unknown-operation": (lambda: Fn(lambda s, x: x.cummax(1)[0]), lambda: Fn(lambda s, x: x.cumsum(1))),
    "computed-kernel": (
        lambda: Fn(lambda s, x: F.conv2d(x, s.k * x.mean((2, 3)).reshape(1, C, 1, 1), padding=1), k=torch.randn(C, C, 3, 3)),
        lambda: Fn(lambda s, x: F.conv2d(x, s.k / s.k.norm(dim=1, keepdim=True), padding=1), k=torch.randn(C, C, 3, 3)),
    ),
    "topk": (lambda: Fn(lambda s, x: x.topk(3, 1)[0].sum(1, keepdim=True)), lambda: Fn(lambda s, x: x.amax(1, keepdim=True))),
    "sort": (lambda: Fn(lambda s, x: x.sort(1, descending=True)[0]), lambda: Fn(lambda s, x: x.topk(3, 1)[0])),
    "bicubic": (lambda: resize(scale_factor=2, mode="bicubic"), lambda: resize(scale_factor=2, mode="bilinear")),
    "nearest-exact": (
        lambda: resize(scale_factor=2, mode="nearest-exact"),
        lambda: resize(scale_factor=2, mode="nearest"),
    ),
    "nearest-uneven": (lambda: nn.Sequential(resize(size=(45, 77), mode="nearest"), Fn(far_corner)), lambda: resize(scale_factor=3, mode="nearest")),
    "adaptive-max-pooling": (lambda: nn.AdaptiveMaxPool2d((5, 7)), lambda: nn.AdaptiveMaxPool2d((4, 8))),
    "adaptive-average-pooling": (lambda: nn.AdaptiveAvgPool2d((5, 7)), lambda: nn.AdaptiveAvgPool2d((4, 8))),
    "uneven-factor": (lambda: nn.Sequential(resize(scale_factor=1.3, mode="bilinear"), Fn(far_corner)),
                      lambda: nn.Sequential(resize(scale_factor=1.5, mode="bilinear"), Fn(far_corner))),
    "batch-norm": (lambda: with_statistics(nn.Sequential(conv(), nn.BatchNorm2d(C))), conv),
    "unfolded-batch-norm": (
        lambda: with_statistics(nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(C))),
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(C)),
    ),
    "transposed-convolution-padding": (lambda: up(3, 2, 1, dilation=2), lambda: up(3, 2, 1, output_padding=1)),
    "transposed-convolution-groups": (lambda: up(4, 2, 1, groups=C), lambda: up(4, 2, 1)),
    "transposed-convolution-wide-groups": (lambda: up(4, 2, 1, groups=2), lambda: up(4, 2, 1, groups=2, bias=False)),
    "transposed-convolution-int8": (lambda: up(2, 2, 0), lambda: nn.Sequential(nn.Upsample(scale_factor=2), conv())),
    "circular-padding": (lambda: conv(padding_mode="circular"), conv),
    "mirror-padding": (lambda: conv(padding_mode="reflect"), conv),
    "group-norm": (lambda: nn.GroupNorm(2, C), lambda: nn.Sequential(conv(), nn.BatchNorm2d(C))),
    "layer-norm": (lambda: Fn(layer_norm, norm=nn.LayerNorm(C)), lambda: Fn(layer_norm, norm=nn.Linear(C, C))),
    "instance-norm": (
        lambda: nn.InstanceNorm2d(C, affine=True),
        lambda: nn.InstanceNorm2d(C, affine=True, track_running_stats=True),
    ),
    "instance-norm-statistics": (
        lambda: with_statistics(nn.InstanceNorm2d(C, affine=True, track_running_stats=True)),
        lambda: nn.InstanceNorm2d(C, affine=True),
    ),
    "division-by-a-map": (
        lambda: Fn(lambda s, x: x / (1 + s.conv(x).sigmoid()), conv=nn.Conv2d(C, C, 1)),
        lambda: Fn(lambda s, x: x / 3),
    ),
    "smooth-activation": (lambda: nn.Sequential(conv(), nn.Mish()), lambda: nn.Sequential(conv(), nn.Hardswish())),
    "unknown-activation": (lambda: nn.Sequential(conv(), nn.CELU()), lambda: nn.Sequential(conv(), nn.ELU())),
    "int8-activation": (lambda: nn.Sequential(conv(), nn.LeakyReLU(0.1)), lambda: nn.Sequential(conv(), nn.ReLU6())),
    "float-activation": (lambda: nn.Sequential(conv(), nn.GELU()), lambda: nn.Sequential(conv(), nn.LeakyReLU(0.1))),
    "integer-bounds": (
        lambda: nn.Sequential(conv(), nn.Hardtanh(-2, 2)),
        lambda: nn.Sequential(conv(), nn.Hardtanh(-2.0, 2.0)),
    ),
    "channel-shuffle": (lambda: nn.ChannelShuffle(2), lambda: Fn(shuffle)),
    "pixel-shuffle": (lambda: nn.Sequential(nn.Conv2d(C, 4 * C, 1), nn.PixelShuffle(2)), lambda: nn.Conv2d(C, 4 * C, 1)),
    "grid-sample": (warp, lambda: resize(scale_factor=2, mode="bilinear")),
    "affine-grid": (
        lambda: Fn(affine, theta=torch.tensor([[[1.0, 0.1, 0.0], [0.0, 1.0, 0.05]]])),
        lambda: Fn(lambda s, x: x + s.grid, grid=torch.rand(1, 1, 32, 32)),
    ),
    "max-unpooling": (lambda: Fn(unpool), lambda: nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2))),
    "pooling-places": (
        lambda: Fn(lambda s, x: F.max_pool2d(x, 2, return_indices=True)[1].type_as(x) / 1024),
        lambda: Fn(lambda s, x: F.max_pool2d(x, 2, return_indices=True)[0]),
    ),
    "pooling-with-places": (
        lambda: Fn(lambda s, x: F.max_pool2d(x, 2, return_indices=True)[0]),
        lambda: nn.MaxPool2d(2),
    ),
    "dilated-max-pooling": (lambda: nn.MaxPool2d(3, 1, 1, dilation=2), lambda: nn.MaxPool2d(3, 1, 1)),
    "mask": (
        lambda: Fn(lambda s, x: x + x[x > 0.1].mean()),
        lambda: Fn(lambda s, x: x + torch.where(x > 0.1, x, 0.0).mean()),
    ),
    "mask-assignment": (lambda: Fn(assign_mask), lambda: Fn(lambda s, x: torch.where(x < 0.1, 0.0, x))),
    "assignment": (lambda: Fn(assign), lambda: Fn(lambda s, x: torch.cat([x[:, :4] * 2, x[:, 4:]], 1))),
    "eye": (
        lambda: Fn(lambda s, x: x + torch.eye(32)[None, None]),
        lambda: Fn(lambda s, x: x + s.eye, eye=torch.eye(32)[None, None]),
    ),
    "fourier-transform": (
        lambda: Fn(lambda s, x: torch.fft.rfft2(x).abs() / 32),
        lambda: Fn(lambda s, x: s.conv(x).abs(), conv=nn.Conv2d(C, C, 15, 1, 7)),
    ),
    "unfold": (
        lambda: Fn(lambda s, x: F.unfold(x, 3, padding=1).reshape(1, C, 9, 32, 32).mean(2)),
        lambda: nn.AvgPool2d(3, 1, 1),
    ),
    "fold": (
        lambda: Fn(lambda s, x: F.fold(F.pixel_unshuffle(x, 2).flatten(2), (32, 32), 2, stride=2)),
        lambda: nn.ConvTranspose2d(C, C, 2, 2),
    ),
    "product-of-maps": (lambda: Fn(attend), lambda: Fn(lambda s, x: x @ s.m, m=torch.randn(32, 32) / 6)),
    "six-dimensions": (lambda: Fn(windows), lambda: Fn(windows_in_steps)),
    "strided-slice": (lambda: Fn(lambda s, x: x[..., ::2, ::2]), lambda: Fn(lambda s, x: x[..., 1:-1, 1:-1])),
    "spectral-norm": (
        lambda: nn.utils.parametrizations.spectral_norm(conv()),
        lambda: nn.utils.parametrizations.weight_norm(conv()),
    ),
    "narrow-groups": (
        lambda: nn.Sequential(nn.Conv2d(C, 64, 1), nn.Conv2d(64, 64, 3, 1, 1, groups=32)),
        lambda: nn.Sequential(nn.Conv2d(C, 64, 1), nn.Conv2d(64, 64, 3, 1, 1, groups=64)),
    ),
    "large-depthwise-kernel": (
        lambda: nn.Conv2d(C, C, 13, 1, 6, groups=C),
        lambda: nn.Conv2d(C, C, 5, 1, 2, groups=C),
    ),
    "channel-ranges": (lambda: ranges(1e-3), lambda: nn.Sequential(ranges(0.1), ranges(1e-3, nn.ReLU))),
}  # fmt: skip
"""For each rule what meets it, and something alike that does not: maps [1, 8, 32, 32] in, maps out."""


class Branches(nn.Module):
    """Patterns side by side. Each gives one channel of the logits: a 3x3 corner of its first channel."""

    def __init__(self, patterns: dict[str, nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, C, 3, 2, 1), nn.ReLU())
        self.branches = nn.ModuleDict(patterns)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.cat([branch(x)[:, :1, :3, :3] for branch in self.branches.values()], 1)


def branches(*rules: str, good: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Branches({rule: CASES[rule][good]() for rule in rules}).eval()


# What a rule is met by -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> dict[bool, list[Finding]]:
    """What lint finds in all the patterns that meet a rule, and in all those that do not."""
    return {good: list(lint(branches(*CASES, good=good), SIZE)) for good in (False, True)}


def at(findings: list[Finding], case: str) -> set[str]:
    place = f"branches.{case}"
    return {entry.rule for entry in findings if entry.module == place or entry.module.startswith(f"{place}.")}


def test_every_rule_has_a_case() -> None:
    assert list(CASES) == list(dict.fromkeys(CASES)) and set(CASES) == {rule.name for rule in RULES}


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_is_met_by_its_pattern_only(rule: str, found: dict[bool, list[Finding]]) -> None:
    assert rule in at(found[False], rule)
    assert rule not in at(found[True], rule)


def test_findings_name_the_line_and_the_outcomes(found: dict[bool, list[Finding]]) -> None:
    mine = [entry for entry in found[False] if entry.rule == "fourier-transform"]
    line = Fn.forward.__code__.co_firstlineno + 1  # the module's line: an export keeps no helper function's
    assert {(entry.severity, entry.targets, entry.module) for entry in mine} == {
        ("fails", (COREML, TENSORRT, TFLITE), "branches.fourier-transform"),
    }
    assert all(entry.source.endswith(f"test_lint.py:{line}") and entry.operation == "fft_rfft2" for entry in mine)
    order = [entry.severity for entry in found[False]]
    assert order == sorted(order, key=["fails", "wrong", "slow", "rewritten"].index)
    for entry in found[False]:
        assert entry.source and set(entry.targets) <= set(TARGETS)
        assert "\n" not in entry.reason + entry.remedy and not (entry.reason + entry.remedy).endswith(".")
        assert bool(entry.rewrite) == (entry.severity == "rewritten")


@pytest.mark.parametrize("name", ["spssn-stream", "spssn-camvid"])  # fast-scnn: see the command
def test_shipped_networks_are_clean(name: str) -> None:
    random = name == "spssn-stream"
    module = build_network(name, 19, {}) if random else load_network(load_checkpoint(name))
    findings = lint(module, Size(64, 96))
    assert {entry.severity for entry in findings} == {"rewritten"}
    assert {"batch-norm", "adaptive-average-pooling"} == {entry.rule for entry in findings}


@settings(max_examples=4, deadline=None)
@given(
    st.lists(st.sampled_from(["sort", "mirror-padding", "group-norm", "pixel-shuffle"]), min_size=1, max_size=4),
    st.booleans(),
)
def test_counts_are_those_of_the_network(rules: list[str], good: bool) -> None:
    """Whatever stands in a row: as many operations are found as there are patterns of a rule."""
    row = nn.Sequential(
        nn.Conv2d(3, C, 1), *[nn.Sequential(CASES[rule][good](), nn.LazyConv2d(C, 3, 2, 1)) for rule in rules]
    )
    row(torch.zeros(1, 3, 64, 64))
    counts = Counter()
    for entry in lint(row, SIZE):
        counts[entry.rule] = max(counts[entry.rule], 0) + (
            entry.count if entry.targets[0] in (TENSORRT, TFLITE, COREML) else 0
        )
    outcomes = {rule.name: len(rule.outcomes) for rule in RULES}
    assert all(counts[rule] == (0 if good else rules.count(rule) * outcomes[rule]) for rule in set(rules))


# The network as a whole ----------------------------------------------------------------------------------------------


class Head(nn.Module):
    def __init__(self, last: Callable[[Tensor], Tensor], stride: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 9, stride, 4)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x))


def bilinear(align_corners: bool) -> Callable[[Tensor], Tensor]:
    return lambda x: F.interpolate(x, scale_factor=8, mode="bilinear", align_corners=align_corners)


@pytest.mark.parametrize(
    ("last", "rule", "same_labels"),
    [
        (bilinear(False), "final-upsampling", True),
        (bilinear(True), "final-upsampling-form", False),
        (lambda x: x.softmax(1), "probabilities", None),
    ],
)
def test_last_operations(last: Callable[[Tensor], Tensor], rule: str, same_labels: bool | None) -> None:
    """What is said to be idle is: without it the labels stay, but for corners that were aligned."""
    torch.manual_seed(0)
    network, x = Head(last).eval(), torch.randn(1, 3, 64, 64)
    assert [entry.rule for entry in lint(network, SIZE)] == [rule]
    with torch.no_grad():
        small, given_ = network.conv(x), network(x)
    if same_labels is None:
        assert torch.equal(given_.argmax(1), small.argmax(1))
    else:
        equal = (reference_labels(small, SIZE) == given_.argmax(1)).float().mean()
        assert (equal > 0.999) if same_labels else (equal < 0.99)


def test_logits_of_any_other_form_are_clean() -> None:
    assert lint(Head(lambda x: x), SIZE) == ()
    assert lint(Head(lambda x: x, stride=1), SIZE) == ()  # full-size, but not by a resize that could be left out


def test_numbers_of_classes_that_a_label_cannot_say() -> None:
    """One channel, as thresholds want it, whose argmax is 0 everywhere; and more than a byte has values."""
    (one,) = lint(Head(lambda x: x[:, :1]), SIZE)
    assert (one.rule, one.severity, one.targets) == ("one-channel", "wrong", TARGETS)
    (many,) = lint(nn.Conv2d(3, 257, 1), SIZE)
    assert (many.rule, many.severity) == ("many-classes", "fails") and "257" in many.reason and "256" in many.remedy
    assert lint(nn.Conv2d(3, 256, 1), SIZE) == ()


def test_more_channels_than_classes() -> None:
    assert lint(Head(lambda x: x), SIZE, classes=3) == ()
    with pytest.raises(CheckpointError, match="5 channels for 9 classes"):
        lint(Head(lambda x: x), SIZE, classes=9)


def test_a_size_it_cannot_run_at() -> None:
    class Skip(Head):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x + F.interpolate(F.max_pool2d(x, 16), scale_factor=16))

    (finding,) = lint(Skip(lambda x: x), Size(70, 100))
    assert (finding.rule, finding.severity, finding.targets) == ("size", "fails", TARGETS)
    assert "test_lint.py:" in finding.source and "80x112" in finding.remedy and "multiples of 16" in finding.remedy


def decides(x: Tensor) -> Tensor:
    return x if float(x.sum()) > 0 else -x


def leaves_torch(x: Tensor) -> Tensor:
    return x + torch.from_numpy(x.detach().numpy().copy())


@pytest.mark.parametrize(("last", "word"), [(decides, "torch.where"), (leaves_torch, "numpy")])
def test_what_cannot_be_exported_is_a_line(last: Callable[[Tensor], Tensor], word: str, tmp_path: Path) -> None:
    with noise_to(tmp_path / "log"):
        (finding,) = lint(Head(last), SIZE)
    line = last.__code__.co_firstlineno + 1
    assert (finding.rule, finding.severity) == ("not-exportable", "fails")
    assert finding.source.endswith(f"test_lint.py:{line}") and word in finding.reason + finding.remedy


def test_weights_that_no_arithmetic_likes() -> None:
    network = Head(lambda x: x)
    values = torch.full((5, 3, 9, 9), 0x00000100, dtype=torch.int32).view(torch.float32)
    with torch.no_grad():
        network.conv.weight.copy_(values)
        network.conv.bias[0] = float("nan")
    rules = {entry.rule: entry for entry in lint(network, SIZE)}
    assert set(rules) == {"subnormal", "not-finite"}
    assert rules["not-finite"].reason.startswith("1 of 5") and rules["not-finite"].module == "conv"
    assert rules["subnormal"].reason.startswith("1215 of 1215")


# What the rules say is true ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)


def logits_graph(network: nn.Module, rewrites: bool = True) -> DeployableGraph:
    return graph_of(Logits(network, None), SIZE, rewrites)


class Conversion:
    """A network converted by an edgekit target, opened, and run on a frame."""

    def __init__(
        self, target: str, graph: DeployableGraph, precision: Precision, frame: np.ndarray, folder: Path
    ) -> None:
        self.target, self.frame = load_target(target), frame
        folder = folder / f"{target}-{precision}-{len(list(folder.iterdir()))}"
        folder.mkdir()
        with noise_to(folder / "log"):
            quantization = calibrate(graph, lambda: iter([frame]), 1).quantization if precision == "int8" else None
            made = graph if quantization is None else int8_graph(graph, quantization, ())
            converted = self.target.convert(made, Recipe(precision, "logits"), quantization, folder)
        self.artifact = Artifact(
            folder, target, precision, SIZE, graph.class_names, "logits", 1, converted.model, {"notes": {}}
        )
        with torch.no_grad():
            self.expected = graph.module(normalize(torch.from_numpy(frame), graph.normalization)).numpy()

    def logits(self) -> np.ndarray:
        with self.target.open(self.artifact, SessionOptions(1)) as session:
            session.run(self.frame)
            inner: Any = session
            if self.target.name == OPENVINO:
                return np.array(inner.request.infer([self.frame])[0]).transpose(0, 3, 1, 2)
            if self.target.name == TFLITE:
                return np.array(inner.interpreter.get_tensor(inner.output_index)).transpose(0, 3, 1, 2)
            if self.target.name == COREML:
                planes = torch.from_numpy(self.frame).permute(0, 3, 1, 2).float()
                return np.array(inner._executor.run({"frame": planes})["logits"].numpy())
            return np.array(inner.session.run(None, {"frame": self.frame})[0])

    def errors(self) -> np.ndarray:
        """Of each channel, relative to its own spread."""
        difference = self.logits().astype(np.float64) - self.expected
        return np.asarray(np.sqrt((difference**2).mean((0, 2, 3))) / self.expected.std((0, 2, 3)))

    def milliseconds(self) -> float:
        with self.target.open(self.artifact, SessionOptions(1)) as session:
            session.run(self.frame)
            best = float("inf")
            for _ in range(20):
                started = time.perf_counter()
                session.run_graph()
                best = min(best, time.perf_counter() - started)
        return 1e3 * best

    def operations(self) -> Counter[str]:
        """What the artifact holds; a TFLite operation with the type that it gives."""
        path = self.artifact.model_path
        if self.target.name == OPENVINO:
            import openvino

            return Counter(node.get_type_name() for node in openvino.Core().read_model(path).get_ops())
        if self.target.name == COREML:
            from targets.mil.executor import load_program

            return Counter(op.op_type for op in load_program(path).function.operations)
        if self.target.name == TFLITE:
            return Counter(tflite_operations(path))
        import onnx

        return Counter(node.op_type for node in onnx.load(path).graph.node)


def tflite_operations(path: Path) -> Iterator[str]:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    model = tfl_flatbuffer_utils.read_model(path.read_bytes())
    graph = model.subgraphs[0]
    for operator in graph.operators:
        name = names[model.operatorCodes[operator.opcodeIndex].builtinCode]
        yield name
        yield f"{name} {types[graph.tensors[operator.outputs[0]].type]}"


Convert = Callable[..., Conversion]


@pytest.fixture
def convert(frame: np.ndarray, tmp_path: Path) -> Convert:
    """``convert(target, graph or rule, precision="")``: float by default; skips where the target is not installed."""

    def make(target: str, subject: DeployableGraph | str, precision: Precision | None = None) -> Conversion:
        if (sentence := load_target(target).missing()) is not None:
            pytest.skip(sentence)
        graph = logits_graph(branches(subject)) if isinstance(subject, str) else subject
        return Conversion(target, graph, precision or FLOATS[target], frame, tmp_path)

    return make


def outcomes(severity: str, precision: str) -> list[tuple[str, str]]:
    """Pairs of target and rule that the table claims."""
    return [
        (target, rule.name)
        for target in TARGETS
        for rule in RULES
        for outcome in rule.outcomes
        if outcome.severity == severity and outcome.precision == precision and target in outcome.targets
    ]


EXPORTED = ("custom-operation", "unknown-operation")
"""Rules on the ONNX exporter, which TensorRT and ONNX Runtime share: one export stands for both."""

TENSORRT_TEXTS = {
    "dilated-max-pooling": "dilated", "max-unpooling": "places of the maxima",
    "pooling-places": "places of the maxima", "fourier-transform": "operator DFT", "fold": "operator Col2Im",
}  # fmt: skip
"""What the parser's rules say; the other failures are the exporter's."""


@pytest.mark.parametrize(
    ("target", "rule"),
    [pair for pair in outcomes("fails", "any") if pair[0] != TENSORRT or pair[1] not in (*TENSORRT_TEXTS, *EXPORTED)],
)
def test_what_fails_does(target: str, rule: str, convert: Convert) -> None:
    with pytest.raises(Exception):  # noqa: B017  (each converter has errors of its own)
        convert(target, rule).logits()


UNKNOWN_CASES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "cummax": lambda s, x: x.cummax(1)[0],
    "cummin": lambda s, x: x.cummin(1)[0],
    "cumprod": lambda s, x: x.cumprod(1),
    "prod": lambda s, x: x.prod(1, keepdim=True),
    "index_add": lambda s, x: x.index_add(1, torch.tensor([0, 2]), x[:, :2]),
    "index_fill": lambda s, x: x.index_fill(1, torch.tensor([0, 2]), 0.5),
    "scatter_add": lambda s, x: x.scatter_add(1, torch.zeros(1, 1, 32, 32, dtype=torch.long), x[:, :1]),
    "cdist": lambda s, x: torch.cdist(x, x * 2),
    "upsample_trilinear3d": lambda s, x: F.interpolate(x[:, None], size=(C, 34, 34), mode="trilinear")[:, 0],
}


@pytest.mark.parametrize(
    ("target", "operation"),
    [(target, name) for target in TARGETS if target != TENSORRT for name in UNKNOWN[target] if name != "cummax"],
)
def test_operations_that_a_target_does_not_have(target: str, operation: str, convert: Convert) -> None:
    """Each converter, or runtime, refuses each; what TensorRT is given is ONNX Runtime's."""
    network = Branches({"case": Fn(UNKNOWN_CASES[operation])}).eval()
    rules = {entry.rule: entry for entry in lint(network, SIZE) if target in entry.targets}
    assert rules["unknown-operation"].severity == "fails" and rules["unknown-operation"].operation == operation
    with pytest.raises(Exception):  # noqa: B017
        convert(target, logits_graph(network)).logits()
    assert UNKNOWN[TENSORRT] == UNKNOWN[ONNXRUNTIME]


def test_what_tensorrt_refuses(convert: Convert) -> None:
    """Each by its own words, in one graph."""
    assert {rule for target, rule in outcomes("fails", "any") if target == TENSORRT} >= set(TENSORRT_TEXTS)
    if (sentence := load_target(TENSORRT).missing()) is not None:
        pytest.skip(sentence)
    from targets.onnx_graph.build import build
    from targets.onnx_graph.rules import check

    graph = logits_graph(branches(*TENSORRT_TEXTS))
    texts = [
        entry.text
        for entry in check(build(graph, Recipe("fp32", "logits"), None, "symmetric")[0])
        if entry.level == "error"
    ]
    for word in set(TENSORRT_TEXTS.values()):
        assert any(word in text for text in texts)
    assert sum("places" in text for text in texts) == 2
    with pytest.raises(EdgekitError, match="TensorRT's parser"):
        convert(TENSORRT, graph)


@pytest.mark.parametrize(("target", "rule"), outcomes("fails", "int8"))
def test_what_fails_in_int8_does(target: str, rule: str, convert: Convert) -> None:
    graph = logits_graph(branches(rule))
    assert np.isfinite(convert(target, graph).logits()).all()  # in float it runs
    with pytest.raises(Exception):  # noqa: B017
        convert(target, graph, "int8").logits()


@pytest.mark.parametrize("precision", ["float", "int8"])
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_not_said_to_fail_does_not(
    target: str,
    precision: str,
    convert: Convert,
    found: dict[bool, list[Finding]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All patterns in one network: no converter, and no calibration, may stumble over what lint lets pass."""
    # Of maps of a few values, a share that is cut off is much.
    monkeypatch.setattr(ranges_of_int8, "FIRST_ESTIMATOR", "min-max")
    monkeypatch.setattr(ranges_of_int8, "ESTIMATORS", {"min-max": ranges_of_int8.ESTIMATORS["min-max"]})
    unfit = {
        severity: {
            rule.name
            for rule in RULES
            for outcome in rule.outcomes
            if outcome.severity == severity and target in outcome.targets and outcome.precision in ("any", precision)
        }
        for severity in ("fails", "wrong")
    }
    cases = [case for case in CASES if not at(found[False], case) & unfit["fails"]]
    made = convert(target, logits_graph(branches(*cases)), "int8" if precision == "int8" else FLOATS[target])
    size, error = (np.sqrt((values**2).mean((0, 2, 3))) for values in (made.expected, made.logits() - made.expected))
    steps = np.ptp(made.expected) / 255  # of the channels together, which share a scale
    close = error < (0.1 * size + steps if precision == "int8" else 0.01 * size)
    held = {case: bool(is_close) for case, is_close in zip(cases, close, strict=True)}
    assert len(held) > 30
    assert {case for case in cases if not held[case] and not at(found[False], case) & unfit["wrong"]} == set()


MARKS: dict[tuple[str, str], dict[str, int]] = {
    (COREML, "group-norm"): {"square": 1, "sqrt": 1, "real_div": 1},
    (COREML, "six-dimensions"): {"transpose": 6},
    (ONNXRUNTIME, "unfolded-batch-norm"): {"Conv": 1},
    (TENSORRT, "unfolded-batch-norm"): {"Conv": 1},
    (TFLITE, "nearest-uneven"): {"GATHER_ND": 2},
    (TFLITE, "computed-kernel"): {"BATCH_MATMUL": 1},
    (TFLITE, "topk"): {"ARG_MAX": 2},
    (TFLITE, "unfolded-batch-norm"): {"DEPTHWISE_CONV_2D": 1},
    (TFLITE, "transposed-convolution-groups"): {"TRANSPOSE_CONV": 8},
    (TFLITE, "mirror-padding"): {"MIRROR_PAD": 1},
    (TFLITE, "group-norm"): {"RSQRT": 1, "MEAN": 2},
    (TFLITE, "layer-norm"): {"RSQRT": 1, "MEAN": 2, "SQUARED_DIFFERENCE": 1},
    (TFLITE, "instance-norm"): {"RSQRT": 1, "MEAN": 2, "TRANSPOSE": 2},
    (TFLITE, "smooth-activation"): {"EXP": 1, "LOG": 1, "SELECT": 1},
    (TFLITE, "pixel-shuffle"): {"RESHAPE": 3, "TRANSPOSE": 2},
    (TFLITE, "grid-sample"): {"LOGICAL_AND": 10, "FLOOR": 2, "LESS": 12},
    (TFLITE, "dilated-max-pooling"): {"STABLEHLO_REDUCE_WINDOW": 1},
    (TFLITE, "unfold"): {"GATHER_ND": 1},
    (TFLITE, "strided-slice"): {"STRIDED_SLICE": 2},
}
"""The operations by which a slow form is known in a float artifact, and how many of them."""


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_slow_or_wrong_is(target: str, convert: Convert) -> None:
    """All patterns of a target in one network: the operations of each are there, and exactly the wrong ones are wrong."""
    slow = [rule for name, rule in outcomes("slow", "any") if name == target]
    wrong = [rule for name, rule in outcomes("wrong", "any") if name == target]
    assert {(target, rule) for rule in slow} == {key for key in MARKS if key[0] == target}
    if not slow + wrong:
        pytest.skip("no rule claims it of this target")
    made = convert(target, logits_graph(branches(*slow, *wrong)))
    expected: Counter[str] = Counter()
    for rule in slow:
        expected.update(MARKS[target, rule])
    counted = made.operations()
    assert not {name: (counted[name], count) for name, count in expected.items() if counted[name] < count}
    for rule, error in zip([*slow, *wrong], made.errors(), strict=True):
        assert (error > 0.1) if rule in wrong else (error < 0.02), f"{rule}: {error}"


INT8_MARKS: dict[tuple[str, str], tuple[str, int]] = {
    (ONNXRUNTIME, "transposed-convolution-int8"): ("ConvTranspose", 1),
    (ONNXRUNTIME, "float-activation"): ("Erf", 1),
    (OPENVINO, "transposed-convolution-groups"): ("GroupConvolutionBackpropData", 1),
    (TFLITE, "division-by-a-map"): ("DIV FLOAT32", 1),
    (TFLITE, "int8-activation"): ("LEAKY_RELU FLOAT32", 1),
    (TFLITE, "product-of-maps"): ("BATCH_MATMUL FLOAT32", 1),
}
TIMED = {(ONNXRUNTIME, "narrow-groups"), (TFLITE, "narrow-groups"), (TFLITE, "large-depthwise-kernel")}


@pytest.mark.parametrize("target", TARGETS)
def test_what_int8_leaves_in_float_or_gets_wrong(target: str, convert: Convert) -> None:
    """Beside the slow ones: the same depthwise convolution with its channels' ranges apart, and not so."""
    slow = [rule for name, rule in outcomes("slow", "int8") if name == target and (name, rule) not in TIMED]
    assert {(target, rule) for rule in slow} == {key for key in INT8_MARKS if key[0] == target}
    assert (target, "channel-ranges") in outcomes("wrong", "int8")
    torch.manual_seed(0)
    patterns = {rule: CASES[rule][0]() for rule in slow} | {
        "mended": ranges(1e-3, nn.ReLU), "apart": ranges(1e-3), "alike": ranges(0.5)
    }  # fmt: skip
    made = convert(target, logits_graph(Branches(patterns).eval()), "int8")
    counted = made.operations()
    assert not [rule for rule in slow if counted[INT8_MARKS[target, rule][0]] < INT8_MARKS[target, rule][1]]
    mended, apart, alike = made.errors()[-3:]
    assert apart > 3 * alike and apart > 0.2
    assert mended < apart / 3, "what edgekit equalizes is nothing to complain of"


class Typed(nn.Module):
    """Coordinates of its own making, a softmax and a map whose types it names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(10, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        rows = (torch.arange(x.shape[2]) + 0.5) / x.shape[2]
        columns = torch.linspace(-1, 1, x.shape[3])
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]
        x = self.second(torch.cat([x, places], 1)).to(torch.float32)
        x = x + self.second(torch.cat([(x > 0) * 1.0, places], 1))
        logits: Tensor = self.last(torch.softmax(x, 1, dtype=torch.float32) * 4)
        return logits


def test_types_that_a_network_names_are_half_in_fp16(convert: Convert) -> None:
    torch.manual_seed(3)
    made = convert(TENSORRT, logits_graph(Typed()), "fp16")
    assert (made.errors() < 0.02).all()


@pytest.mark.parametrize(("target", "rule"), sorted(TIMED))
def test_what_int8_slows_down_is_slower(target: str, rule: str, convert: Convert) -> None:
    graph = logits_graph(branches(rule))
    skip_on_amd("on AMD's processors XNNPACK's int8 kernels here are about as fast as its float ones")
    assert convert(target, graph, "int8").milliseconds() > 1.5 * convert(target, graph).milliseconds()


def test_subnormal_weights_are_slow(convert: Convert) -> None:
    """In ONNX Runtime as it comes; the same model with subnormals flushed, as edgekit's session has it, is the yardstick."""
    skip_on_amd("AMD's processors multiply subnormals at full speed")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), *[nn.Conv2d(16, 16, 3, 1, 1, bias=False) for _ in range(3)])
    with torch.no_grad():
        bits = torch.randint(1, 0x00100000, (16, 16, 3, 3), dtype=torch.int32)  # arithmetic might flush them
        network[1].weight.copy_(bits.view(torch.float32))  # type: ignore[operator]
    made = convert(ONNXRUNTIME, logits_graph(network))
    default, flushed = (milliseconds_in_a_process_of_its_own(made.artifact.model_path, flush) for flush in "01")
    assert default > 3 * flushed


def skip_on_amd(why: str) -> None:
    """What these rules say of speed was found on Intel's processors, and holds there."""
    information = Path("/proc/cpuinfo")
    if information.is_file() and "AuthenticAMD" in information.read_text():
        pytest.skip(why)


def milliseconds_in_a_process_of_its_own(model: Path, flush: str) -> float:
    """Whether ONNX Runtime flushes subnormals is decided once in a process, and by whatever else changes the thread."""
    code = f"""
import time, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.set_denormal_as_zero", "{flush}")
session = onnxruntime.InferenceSession({str(model)!r}, options, providers=["CPUExecutionProvider"])
frame = numpy.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=numpy.uint8)
times = []
for _ in range(8):
    started = time.perf_counter()
    session.run(None, {{"frame": frame}})
    times.append(time.perf_counter() - started)
print(1e3 * min(times))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    return float(done.stdout)


WRONG_WITHOUT = {(TFLITE, "uneven-factor"), (COREML, "instance-norm-statistics"), (ONNXRUNTIME, "spelled-out")}
SLOW_WITHOUT = {
    (COREML, "adaptive-average-pooling"): ("slice_by_index", 35),
    (ONNXRUNTIME, "adaptive-average-pooling"): ("Add", 35),
    (TFLITE, "adaptive-average-pooling"): ("SLICE", 35),
    (COREML, "adaptive-max-pooling"): ("reduce_max", 35),
    (TFLITE, "bicubic"): ("GATHER_ND", 16),
    (ONNXRUNTIME, "nearest-exact"): ("GatherND", 1),
    (TFLITE, "nearest-exact"): ("GATHER_ND", 1),
    (TFLITE, "circular-padding"): ("SELECT", 4),
    (TFLITE, "assignment"): ("SELECT", 1),
}
"""What becomes of a pattern that is not rewritten, where the conversion does not fail."""


@pytest.mark.parametrize(("target", "rule"), [pair for pair in outcomes("rewritten", "any") if pair[0] != TENSORRT])
def test_what_is_rewritten_converts_badly_without(target: str, rule: str, convert: Convert) -> None:
    graph = logits_graph(branches(rule), rewrites=False)
    if (target, rule) in WRONG_WITHOUT:
        assert convert(target, graph).errors().min() > 0.1
    elif (target, rule) in SLOW_WITHOUT:
        mark, count = SLOW_WITHOUT[target, rule]
        assert convert(target, graph).operations()[mark] >= count
    else:
        with pytest.raises(Exception):  # noqa: B017
            convert(target, graph).logits()


# The command ---------------------------------------------------------------------------------------------------------

USER = """
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.Mish())
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x):
        print("chatter")
        x = self.stem(x)
        return self.head(x * x.prod(1, keepdim=True))
"""


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Any]:
    """``run_here("lint", ...)`` from a folder with the user's ``lintnet.py`` and ``ownnet.py``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lintnet.py").write_text(USER)
    own_network(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield lambda *arguments: call(monkeypatch, capfd, "lint", *arguments)
    for name in ("lintnet", "ownnet"):
        sys.modules.pop(name, None)


def test_text(run_here: Callable[..., Done]) -> None:
    done = run_here("lintnet:Net", "--size", "64x64")
    assert done.code == 1 and "lintnet:Net does not convert as it should for coreml" in done.sentence
    lines = done.out.splitlines()
    assert lines[0] == "lintnet:Net at 64x64, random weights"
    assert lines[2] == "the network itself  (lintnet.py:15)"
    assert lines[3] == "  fails  prod on coreml  [unknown-operation]"
    assert "stem.1  (lintnet.py:14)" in lines and "chatter" not in done.out
    assert lines[-5:] == [
        "coreml: 1 fails", "onnxruntime: 1 slow", "openvino: clean", "tensorrt: clean", "tflite: 1 slow",
    ]  # fmt: skip
    assert max(map(len, lines)) <= 100


def test_json_and_only_the_asked_targets(run_here: Callable[..., Done]) -> None:
    done = run_here("lintnet:Net", "--size", "64x64", "--target", "tflite,openvino", "--json")
    assert (done.code, done.err) == (0, "")
    document = done.document
    assert document["targets"] == ["tflite", "openvino"] and document["size"] == [64, 64]
    assert document["summary"]["tflite"] == {"fails": 0, "wrong": 0, "slow": 1, "rewritten": 0}
    assert {entry["rule"] for entry in document["findings"]} == {"smooth-activation"}
    assert all(entry["targets"] == ["tflite"] and entry["reason"] and entry["remedy"] for entry in document["findings"])
    assert lint_text(json.loads(done.out)).endswith("tflite: 1 slow\nopenvino: clean\n")


def test_a_name_a_checkpoint_and_a_state_dict(run_here: Callable[..., Done]) -> None:
    done = run_here("--network", "fast-scnn", "--size", "64x96")
    assert done.code == 0 and "fast-scnn at 64x96, random weights" in done.out
    assert "tflite: clean; 3 rewritten by edgekit" in done.out
    done = run_here("own.pth", "--network", "ownnet:factory", "--classes", "streets", "--size", "64x96")
    assert done.code == 0 and "fold_batch_norm x 2 for coreml, openvino" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("no.pth",), 1, "there is no checkpoint"),
        (("lintnet:Nothing",), 2, "cannot be imported"),
        (("lintnet:Net", "--network", "spssn"), 2, "leave one out"),
        (("--network", "nonsense"), 2, "there is no network"),
        (("spssn", "--target", "abacus"), 2, "there is no target 'abacus'"),
        (("spssn", "--size", "32x32"), 2, "too small"),
        (("lintnet:Net", "--classes", "nonsense"), 2, "nonsense"),
    ],
)
def test_bad_input(run_here: Callable[..., Done], arguments: tuple[str, ...], code: int, word: str) -> None:
    done = run_here(*arguments)
    assert (done.code, word in done.sentence) == (code, True)


def test_a_target_without_rules() -> None:
    document = {
        "network": "n",
        "weights": "random weights",
        "size": [64, 64],
        "findings": [],
        "summary": {"abacus": None},
    }
    assert lint_text(document).endswith("abacus: edgekit has no rules for this target\n")
