"""Layers that a user keeps in float, on every target."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import graph_of
from own_targets import OWN, missing
from torch import nn

from calibration.equalization import equalized
from calibration.ranges import calibrate
from edgekit.core.errors import UsageError
from edgekit.core.files import path_bytes
from edgekit.core.progress import noise_to
from edgekit.core.registry import load_target
from edgekit.core.values import (
    Artifact,
    Normalization,
    Ranges,
    Recipe,
    Scheme,
    SessionOptions,
    Size,
)
from edgekit.export.graph import normalize, reference_labels
from edgekit.export.layers import nodes_of


@pytest.mark.parametrize("name", OWN)
def test_layers_stay_in_float(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their modules' names, on every target: all of them kept, int8 is float; one kept, its weights are."""
    from edgekit.export import columns

    monkeypatch.setattr(columns, "FOLDED_CHANNELS", 0)  # its weights would outweigh what is looked at
    if (sentence := missing(name)) is not None:
        pytest.skip(sentence)
    target = load_target(name)
    torch.manual_seed(4)
    network = nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 32, 3, 2, 1), active=nn.ReLU(), middle=nn.Conv2d(32, 32, 3, 1, 1), again=nn.ReLU(),
            head=nn.Conv2d(32, 4, 1),
        )
    ).eval()  # fmt: skip
    size = Size(64, 96)
    frame = np.random.default_rng(3).integers(0, 256, (1, size.height, size.width, 3), np.uint8)
    example = normalize(torch.from_numpy(frame), Normalization())
    with torch.no_grad():
        network.head.bias -= network(example).mean((0, 2, 3))  # four classes that are nearly even everywhere
    graph = graph_of(network, size)
    quantization = calibrate(graph, lambda: iter([frame]), 1).quantization
    graph = equalized(graph, quantization.scales)
    with torch.no_grad():
        expected = network(normalize(torch.from_numpy(frame), graph.normalization))
    labels = reference_labels(expected, size).numpy()
    wrong, bytes_ = {}, {}
    for kept in ((), ("middle",), ("stem", "middle", "head")):
        folder = tmp_path / str(len(kept))
        folder.mkdir()
        recipe = Recipe("int8", output="labels", keep_float=kept)
        with noise_to(tmp_path / "log"):
            made = target.convert(graph, recipe, quantization, folder)
        assert set(kept) <= set(made.kept_float)
        artifact = Artifact(folder, name, "int8", size, graph.class_names, "labels", 1, made.model, {"notes": {}})
        with target.open(artifact, SessionOptions(1)) as session:
            wrong[len(kept)] = float((session.run(frame) != labels).mean())
        bytes_[len(kept)] = path_bytes(folder)
    assert wrong[3] < 0.002 < wrong[0]
    assert bytes_[1] - bytes_[0] > 32 * 32 * 9 * (0.4 if name == "coreml" else 1.2)  # a byte each becomes two, or four
    with pytest.raises(UsageError, match="no layer 'missing': edgekit sensitivity"), noise_to(tmp_path / "log"):
        target.convert(graph, Recipe("int8", keep_float=("missing",)), quantization, tmp_path)


class Shared(nn.Module):
    """What ``second`` gives is read by ``third``, which decides the labels, and by ``side``, which hardly matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.third, self.side, self.head = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 4, 1)
        with torch.no_grad():
            self.side.weight *= 1e-3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shared = torch.relu(self.second(torch.relu(self.first(x))))
        third = self.third(shared)
        logits: torch.Tensor = self.head(third * third + self.side(shared))
        return logits


@pytest.mark.parametrize("name", OWN)
def test_a_layer_in_float_reads_in_float_what_others_read_rounded(name: str, tmp_path: Path) -> None:
    """As the ranking of layers counts it: here what ``third`` reads is rounded to a few levels, and nothing else matters."""
    if (sentence := missing(name)) is not None:
        pytest.skip(sentence)
    target, network, size = load_target(name), Shared().eval(), Size(64, 96)
    frame = np.random.default_rng(3).integers(0, 256, (1, size.height, size.width, 3), np.uint8)
    example = normalize(torch.from_numpy(frame), Normalization())
    with torch.no_grad():
        network.head.bias -= network(example).mean((0, 2, 3))
        labels = reference_labels(network(example), size).numpy()
    graph = graph_of(network, size)
    quantization = calibrate(graph, lambda: iter([frame]), 1).quantization
    graph = equalized(graph, quantization.scales)
    shared = nodes_of(graph, ["second"])
    coarse: dict[Scheme, Ranges] = {
        scheme: {node: limits * (100.0 if node in shared else 1.0) for node, limits in ranges.items()}
        for scheme, ranges in quantization.ranges.items()
    }
    quantization = replace(quantization, ranges=coarse)
    wrong = []
    for kept in ((), ("third",)):
        folder = tmp_path / str(len(kept))
        folder.mkdir()
        with noise_to(tmp_path / "log"):
            made = target.convert(graph, Recipe("int8", output="labels", keep_float=kept), quantization, folder)
        artifact = Artifact(folder, name, "int8", size, graph.class_names, "labels", 1, made.model, {"notes": {}})
        with target.open(artifact, SessionOptions(1)) as session:
            wrong.append(float((session.run(frame) != labels).mean()))
    assert wrong[1] < 0.04 < 0.3 < wrong[0]


@pytest.mark.parametrize("name", OWN)
def test_a_layer_without_an_int8_operation_is_not_said_to_be_kept(name: str, tmp_path: Path) -> None:
    if (sentence := missing(name)) is not None:
        pytest.skip(sentence)
    network, size = Shared().eval(), Size(64, 96)
    frame = np.random.default_rng(3).integers(0, 256, (1, size.height, size.width, 3), np.uint8)
    graph = graph_of(network, size)
    quantization = calibrate(graph, lambda: iter([frame]), 1).quantization
    recipe = Recipe("int8", keep_float=("frame", ":mul", ":add", "third"))
    with noise_to(tmp_path / "log"):
        made = load_target(name).convert(graph, recipe, quantization, tmp_path)
    expected = {
        "tensorrt": ("third",),
        "coreml": (":add", "third"),
        "onnxruntime": (":add", "third"),
        "openvino": (":mul", ":add", "third"),
        "tflite": (":mul", ":add", "third"),
    }[name]
    assert made.kept_float[: len(expected)] == expected
    assert "frame" not in made.kept_float
    assert (":mul" in made.kept_float) == (":mul" in expected)
