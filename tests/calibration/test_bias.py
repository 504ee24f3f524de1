"""Bias correction: a shift that rounded weights cause is found, taken off, and only where it helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import graph_of
from hypothesis import given
from hypothesis import strategies as st
from test_ranges import SIZE, Chain, frames

from calibration.bias import corrected, find_corrections
from calibration.equalization import equalized
from calibration.ranges import calibrate
from calibration.simulation import with_int8_weights
from edgekit.core.registry import load_target
from edgekit.core.values import Artifact, DeployableGraph, Float32, Recipe, SessionOptions, UInt8
from edgekit.export.layers import nodes_of
from edgekit.export.values import visit_values


def shifted() -> DeployableGraph:
    """Each channel of ``second`` has one large weight; all others lie just below half a step of it and are rounded away."""
    network = Chain()
    with torch.no_grad():
        network.second.weight.fill_(0.49 / 127)
        network.second.weight[:, 0, 1, 1] = torch.linspace(0.6, 1.0, 8)
        network.second.weight[:, 0, 0, 0] = 1.0
        network.head.weight *= 20.0  # a network that is sure of its labels
    return graph_of(network, SIZE)


def means(graph: DeployableGraph, frame: UInt8) -> dict[str, Float32]:
    """Of every map's channels."""
    found = {}

    def look(node: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        found[node.name] = value.mean((0, 2, 3)).numpy()
        return value

    visit_values(graph, frame, look)
    return found


def logits(graph: DeployableGraph, frame: UInt8) -> torch.Tensor:
    return visit_values(graph, frame, lambda _, value: value)


def convolution(graph: DeployableGraph, layer: str) -> str:
    """The node of a layer's convolution."""
    nodes = nodes_of(graph, [layer])
    (name,) = (
        node.name
        for node in graph.module.graph.nodes
        if node.name in nodes and node.target is torch.ops.aten.conv2d.default
    )
    return name


@pytest.mark.slow
@given(st.integers(0, 100))
def test_int8_weights_leave_the_means_where_they_were(seed: int) -> None:
    graph = shifted()
    (frame,) = frames(1, seed)
    name = convolution(graph, "second")
    before = means(graph, frame)[name]
    rounded = means(with_int8_weights(graph), frame)[name]
    mended = means(with_int8_weights(corrected(graph, find_corrections(graph, [frame]))), frame)[name]
    assert np.abs(rounded - before).max() > 0.1 * np.abs(before).max()
    # What is left comes through the layer before, whose own channels keep their means but not each value.
    assert np.abs(mended - before).max() < 0.02 * np.abs(rounded - before).max()


def test_it_is_taken_where_it_helps() -> None:
    graph = shifted()
    calibrated = calibrate(graph, lambda: frames(3), 3)
    for scheme in ("symmetric", "asymmetric"):
        record = calibrated.record["ranges"][scheme]
        assert record["bias_correction"]["taken"]
        assert record["bias_correction"]["expected_drop"] < 0.5 * record["expected_drop"][record["estimator"]]
    assert set(calibrated.quantization.biases) >= {convolution(graph, "second")}


def test_a_network_that_it_does_not_help_is_left_as_it_is() -> None:
    network = Chain()
    with torch.no_grad():  # every weight is a whole number of steps: nothing is rounded
        for layer in (network.first, network.second, network.head):
            steps = torch.randint(-126, 127, layer.weight.shape, generator=torch.Generator().manual_seed(1))
            steps.view(len(steps), -1)[:, 0] = 127
            layer.weight.copy_(steps / 1024)
    calibrated = calibrate(graph_of(network, SIZE), lambda: frames(3), 3)
    assert not calibrated.record["ranges"]["symmetric"]["bias_correction"]["taken"]
    assert not calibrated.quantization.biases


def test_a_layer_in_float_keeps_its_bias() -> None:
    graph = shifted()
    corrections = find_corrections(graph, frames(1))
    kept = nodes_of(graph, ["second"])
    other = corrected(graph, corrections, but=kept)
    (frame,) = frames(1)
    one, two = means(graph, frame), means(corrected(graph, {}), frame)
    assert all((one[name] == two[name]).all() for name in one)
    name = convolution(graph, "second")
    biases = {
        node.name: node.args[2].target
        for node in other.module.graph.nodes
        if node.target is torch.ops.aten.conv2d.default
    }
    assert biases[name].startswith("second")
    assert biases[convolution(graph, "head")].startswith("corrected_bias")
    assert [node.name for node in other.module.graph.nodes if node.op == "call_function"] == [
        node.name for node in graph.module.graph.nodes if node.op == "call_function"
    ]


def test_a_convolution_without_a_bias_gets_one() -> None:
    network = Chain()
    with torch.no_grad():
        network.second.weight.copy_(torch.full_like(network.second.weight, 0.49 / 127))
        network.second.weight[:, 0, 1, 1] = 1.0
    network.second.bias = None
    graph = graph_of(network, SIZE)
    (frame,) = frames(1)
    mended = with_int8_weights(corrected(graph, find_corrections(graph, [frame])))
    name = convolution(graph, "second")
    assert np.allclose(means(mended, frame)[name], means(graph, frame)[name], rtol=0.02)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_artifacts_hold_it(name: str, tmp_path: Path) -> None:
    """int8 made with corrected biases gives logits nearer to the float network's than int8 made without."""
    target = load_target(name)
    if (sentence := target.missing()) is not None:
        pytest.skip(sentence)
    graph = shifted()
    quantization = calibrate(graph, lambda: frames(3), 3).quantization
    assert quantization.biases
    scaled = equalized(graph, quantization.scales)
    (frame,) = frames(1, 9)
    expected = logits(graph, frame)[0].argmax(0).numpy()
    agreement = []
    for index, made_of in enumerate((scaled, corrected(scaled, quantization.biases))):
        folder = tmp_path / str(index)
        folder.mkdir()
        recipe = Recipe("int8", output="labels", output_stride=2)
        converted = target.convert(made_of, recipe, quantization, folder)
        manifest = {
            "target": name, "precision": "int8", "size": [SIZE.height, SIZE.width], "class_names": list(graph.class_names),
            "output": "labels", "output_stride": 2, "model": converted.model,
        }  # fmt: skip
        with target.open(Artifact.from_manifest(folder, manifest), SessionOptions()) as session:
            agreement.append(float((session.run(frame)[0, ::2, ::2] == expected).mean()))
    assert agreement[1] > 0.95
    assert 1 - agreement[1] < 0.7 * (1 - agreement[0])
