"""int8 of tensors that no calibration knows: those that are no nodes of the graph, and constant ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import first, graph_of
from own_targets import OWN, missing
from torch import nn

from calibration.equalization import equalized
from calibration.ranges import calibrate
from edgekit.core.progress import noise_to
from edgekit.core.registry import load_target
from edgekit.core.values import (
    Artifact,
    Normalization,
    Recipe,
    SessionOptions,
    Size,
)
from edgekit.export.graph import normalize, reference_labels


@pytest.mark.parametrize("name", OWN)
def test_int8_of_tensors_that_are_no_nodes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is known again, every target looks at its own tensors over all frames."""
    if (sentence := missing(name)) is not None:
        pytest.skip(sentence)
    from edgekit.export import values

    target = load_target(name)
    network, graph, frame = first(16, (3, 3), (2, 2), 1, 1, 48)
    passes = []

    def batches() -> Iterator[np.ndarray]:
        passes.append(None)
        return iter([frame // 2, frame])

    quantization = calibrate(graph, batches, 2).quantization
    graph = equalized(graph, quantization.scales)
    monkeypatch.setattr(values, "TOLERANCE", -1.0)
    known = len(passes)
    recipe = Recipe("int8", output="labels")
    with noise_to(tmp_path / "log"):
        made = target.convert(graph, recipe, quantization, tmp_path)
    assert len(passes) == known + 1
    artifact = Artifact(tmp_path, name, "int8", graph.size, graph.class_names, "labels", 1, made.model, {"notes": {}})
    expected = reference_labels(network(normalize(torch.from_numpy(frame), graph.normalization)), graph.size).numpy()
    with target.open(artifact, SessionOptions(1)) as session:
        assert (session.run(frame) == expected).mean() > 0.9


@pytest.mark.parametrize("constant", ["zero", "half", "idle on the probe"])
@pytest.mark.parametrize("name", OWN)
def test_int8_of_constant_maps(name: str, constant: str, tmp_path: Path) -> None:
    """A map that is always zero, or always the same, has no range of its own; one that is idle on the probe has."""
    if (sentence := missing(name)) is not None:
        pytest.skip(sentence)

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(4)
            self.stem, self.odd, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 4, 1)
            with torch.no_grad():
                self.odd.weight.abs_().mul_(float(constant != "half"))
                self.odd.bias.fill_({"zero": -1000.0, "half": 0.5}.get(constant, -1.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            stem = torch.relu(self.stem(x))
            logits: torch.Tensor = self.head(torch.relu(self.odd(stem)) + stem)
            return logits

    network, size, target = Sum().eval(), Size(64, 96), load_target(name)
    frame = np.random.default_rng(3).integers(0, 256, (1, size.height, size.width, 3), np.uint8)
    frames = [np.full_like(frame, 120), frame]
    example = normalize(torch.from_numpy(frame), Normalization())
    with torch.no_grad():
        network.head.bias -= network(example).mean((0, 2, 3))  # four classes that are nearly even everywhere
    graph = graph_of(network, size)
    quantization = calibrate(graph, lambda: iter(frames), 2).quantization
    graph = equalized(graph, quantization.scales)
    with noise_to(tmp_path / "log"):
        made = target.convert(graph, Recipe("int8", output="labels"), quantization, tmp_path)
    artifact = Artifact(tmp_path, name, "int8", size, graph.class_names, "labels", 1, made.model, {"notes": {}})
    expected = reference_labels(network(example), size).numpy()
    assert len(np.unique(expected)) > 1
    with target.open(artifact, SessionOptions(1)) as session:
        assert (session.run(frame) == expected).mean() > 0.9
