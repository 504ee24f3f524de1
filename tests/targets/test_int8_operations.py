"""Operations that a runtime's int8, or a vendor's tool, makes something else of unless edgekit sees to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import graph_of
from torch import Tensor, nn
from torch.nn import functional as F

from calibration.equalization import equalized
from calibration.ranges import calibrate
from calibration.simulation import quantized_places
from calibration.streets import draw
from edgekit.core.progress import noise_to
from edgekit.core.registry import load_target
from edgekit.core.values import Artifact, Normalization, Precision, Recipe, SessionOptions, Size
from edgekit.export.graph import normalize, reference_labels

SIZE = Size(64, 96)
WIDTH = 16
OFFSETS = {
    "linear attention": -0.6,
    "epsilon": -0.1,
    "epsilon, often alone": -0.15,
    "padded average of a signed map": -1.0,
}


class Between(nn.Module):
    """A stem and a head; what lies between is the case."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case
        self.stem, self.before = nn.Conv2d(3, WIDTH, 3, 2, 1), nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)
        self.after = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, groups=WIDTH)
        self.head = nn.Conv2d(WIDTH, 4, 1)
        self.mix, self.scale = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.rand(WIDTH) + 0.5)
        with torch.no_grad():  # zero is far from what is padded, or all that many pixels have
            self.before.bias += OFFSETS.get(case, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(torch.relu(self.stem(x)))
        if self.case == "padded max pooling":
            x = F.max_pool2d(x, 3, 2, 1)
        elif self.case == "padded average of a signed map":
            x = F.avg_pool2d(x, 7, 2, 3)
        elif self.case == "clamp above zero":
            x = torch.relu(self.after(x.clamp(min=1.2)))
        elif "epsilon" in self.case:
            x = x.relu() / (x.relu().pow(2).sum(1, keepdim=True) + 1e-6).sqrt()
        elif self.case == "elu":
            x = self.after(F.elu(8 * (x - 1.0)))
        elif self.case == "linear attention":  # EfficientViT's: the sum of the weights is one channel more
            query, key = self.after(x).relu().flatten(2), x.relu().flatten(2)
            value = F.pad(x.flatten(2), (0, 0, 0, 1), value=1.0)
            found = value @ key.transpose(1, 2) @ query
            x = x + (found[:, :-1] / (found[:, -1:] + 1e-6)).reshape(x.shape)
        elif self.case == "layer scale":  # ConvNeXt's: channels last, a product behind a linear layer
            x = x + (self.scale * self.mix(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        elif self.case == "tokens beside their map":
            x = x + self.before(F.layer_norm(x.flatten(2).transpose(1, 2), (WIDTH,)).transpose(1, 2).reshape(x.shape))
        elif self.case == "shares beside their map":
            x = x + self.before(8 * x.permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2))
        elif self.case == "mask":
            tokens = F.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
            query = self.mix(tokens)
            near = torch.ones(tokens.shape[1], tokens.shape[1]).tril().bool()
            scores = (query @ query.transpose(1, 2) * 0.25).masked_fill(~near, float("-inf")).softmax(-1)
            found = (scores @ tokens).transpose(1, 2).reshape(-1, WIDTH, x.shape[2] // 4, x.shape[3] // 4)
            x = x + 0.1 * F.interpolate(found, size=x.shape[2:], mode="bilinear", align_corners=False)
        else:  # SegFormer's feed-forward: what stands along the second axis of tokens is no channel
            tokens = x.flatten(2).transpose(1, 2)
            mixed = self.mix(tokens).transpose(1, 2).reshape(x.shape)
            x = F.gelu(self.after(mixed)).flatten(2).transpose(1, 2) + tokens
            x = x.transpose(1, 2).reshape(1, WIDTH, SIZE.height // 2, SIZE.width // 2)
        logits: Tensor = self.head(x)
        return logits


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("padded max pooling", "tflite"),  # litert pads with minus infinity
        ("padded average of a signed map", "openvino"),  # the CPU plugin pads with the integer 0
        ("clamp above zero", "onnxruntime"),  # the tool leaves the clamp to a range, which holds zero
        ("epsilon, often alone", "onnxruntime"),  # a constant that rounds to zero, and a quotient by zero
        ("epsilon", "tflite"),
        ("elu", "tflite"),  # litert computes exponentials that it discards, in int8 by their scale
        ("linear attention", "tflite"),  # what divides, and what is divided, by one scale
        ("linear attention", "openvino"),  # divisors that round to zero, the epsilon with them
        ("layer scale", "tflite"),  # a bias of four axes, which the quantizer fails on
        ("tokens beside their map", "openvino"),  # the CPU plugin writes the one over the other
        ("shares beside their map", "openvino"),
        ("tokens", "openvino"),  # NNCF wants a range for each token
        ("mask", "openvino"),  # minus infinity, in what stays in float
        ("mask", "onnxruntime"),
        ("mask", "coreml"),
        ("mask", "tflite"),
    ],
)
def test_int8_labels_as_float_does(case: str, name: str, tmp_path: Path) -> None:
    assert labelled_alike(case, name, "int8", tmp_path) > 0.93


@pytest.mark.parametrize("case", ["tokens beside their map", "shares beside their map"])
def test_what_works_in_place_leaves_the_map_as_it_was(case: str, tmp_path: Path) -> None:
    """In OpenVINO's float, too: what a convolution adds to its result was written over before."""
    assert labelled_alike(case, "openvino", "fp32", tmp_path) > 0.999


def labelled_alike(case: str, name: str, precision: Precision, folder: Path) -> float:
    """The share of pixels that the artifact labels as float PyTorch does."""
    target = load_target(name)
    if (sentence := target.missing()) is not None:
        pytest.skip(sentence)
    torch.manual_seed(1)
    network = Between(case).eval()
    frames = [draw("train", index, SIZE.height, SIZE.width).image[None] for index in range(2)]
    examples = [normalize(torch.from_numpy(frame), Normalization()) for frame in frames]
    with torch.no_grad():
        logits = network(examples[1])
        network.head.bias -= logits.mean((0, 2, 3))  # four classes that are nearly even everywhere
        expected = reference_labels(network(examples[1]), SIZE).numpy()
    assert len(np.unique(expected)) > 2
    graph, quantization = graph_of(network, SIZE, rewrites=True), None
    if precision == "int8":
        quantization = calibrate(graph, lambda: iter(frames), 2).quantization
        graph = equalized(graph, quantization.scales)
    with noise_to(folder / "log"):
        made = target.convert(graph, Recipe(precision, target.output), quantization, folder)
    manifest = {"notes": {}}
    artifact = Artifact(folder, name, precision, SIZE, graph.class_names, target.output, 1, made.model, manifest)
    with noise_to(folder / "log"), target.open(artifact, SessionOptions(1)) as session:
        labels = session.run(frames[1])
    return float((labels == expected).mean())


def test_what_no_symmetric_target_rounds_is_not_simulated() -> None:
    """An epsilon in a sum, which would be lost: the choice between estimators, and the layers' losses, would rest on that."""
    graph = graph_of(Between("epsilon"), SIZE, rewrites=True)
    before_sums = {
        node.args[0].name
        for node in graph.module.graph.nodes
        if node.target == torch.ops.aten.add.Tensor and isinstance(node.args[0], torch.fx.Node)
    }
    assert before_sums and before_sums <= quantized_places(graph, "asymmetric")
    assert not before_sums & quantized_places(graph, "symmetric")
