"""Operations and blocks of other people's networks: each target's artifacts give PyTorch's logits, and in int8 about its labels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import graph_of
from strangers import BLOCKS, CLASSES_EACH, OPERATIONS, Blocks, Operations, Recurrent
from torch import nn

from calibration.ranges import calibrate
from calibration.streets import draw
from edgekit.core.errors import ConversionError
from edgekit.core.progress import noise_to
from edgekit.core.registry import load_target
from edgekit.core.values import Artifact, DeployableGraph, Precision, Quantization, Recipe, SessionOptions, Size
from edgekit.export.graph import normalize, reference_labels
from edgekit.pipeline.quantization import int8_graph

TARGETS = ("coreml", "onnxruntime", "openvino", "tensorrt", "tflite")
SIZE = Size(64, 96)


def frame_of(index: int) -> np.ndarray:
    return draw("train", index, SIZE.height, SIZE.width).image[None]


@cache
def operations(*without: str) -> tuple[DeployableGraph, np.ndarray]:
    """All operations in one rewritten graph, and the original's logits."""
    network = Operations(case for case in OPERATIONS if case not in without).eval()
    graph = graph_of(network, SIZE, rewrites=True)
    with torch.no_grad():
        return graph, network(normalize(torch.from_numpy(frame_of(0)), graph.normalization)).numpy()


def skip_if_missing(name: str) -> None:
    if (sentence := load_target(name).missing()) is not None:
        pytest.skip(sentence)


@contextlib.contextmanager
def opened(
    name: str, graph: DeployableGraph, recipe: Recipe, quantization: Quantization | None, folder: Path
) -> Iterator:
    target = load_target(name)
    with noise_to(folder / "log"):
        made = target.convert(graph, recipe, quantization, folder)
    artifact = Artifact(
        folder, target, recipe.precision, graph.size, graph.class_names, recipe.output, 1, made.model, {"notes": {}}
    )
    with target.open(artifact, SessionOptions(1)) as session:
        yield artifact, session


@pytest.mark.parametrize("name", TARGETS)
def test_operations_are_pytorchs(name: str, tmp_path: Path) -> None:
    """Whatever converters know of them, and whatever arguments they drop."""
    skip_if_missing(name)
    # ONNX Runtime and TensorRT then share one export: antialiasing is what they have in two ways.
    without = () if name in ("coreml", "tflite") else ("antialias",)
    graph, expected = operations(*without)
    recipe = Recipe("fp32", "logits")
    with opened(name, graph, recipe, None, tmp_path) as (artifact, session):
        session.run(frame_of(0))
        logits = logits_of(name, artifact, session)
    spread = expected.std((0, 2, 3)) + 1e-3
    errors = np.abs(logits - expected).max((0, 2, 3)) / spread
    # Where a rounding falls on the edge, a step of it may be missed at one place.
    stepping = ("floor of a quotient", "fmod", "round to decimals", "trunc")
    apart = {
        case: float(error)
        for case, error in zip((case for case in OPERATIONS if case not in without), errors, strict=True)
        if error > (0.1 if case in stepping else 1e-3)
    }
    assert apart == {}


def logits_of(name: str, artifact: Artifact, session: Any) -> np.ndarray:
    """What the runtime itself gives for the frame that the session saw last."""
    if name == "openvino":
        import openvino

        model = openvino.Core().compile_model(artifact.model_path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return np.array(model([frame_of(0)])[0]).transpose(0, 3, 1, 2)
    if name == "tflite":
        return np.array(session.interpreter.get_tensor(session.output_index)).transpose(0, 3, 1, 2)
    if name == "coreml":
        planes = torch.from_numpy(frame_of(0)).permute(0, 3, 1, 2).float()
        return np.array(session._executor.run({"frame": planes})["logits"].numpy())
    return np.array(session.session.run(None, {"frame": frame_of(0)})[0])


@pytest.mark.parametrize(("precision", "share"), [("fp32", 0.999), ("int8", 0.85)])
def test_blocks_of_litert_are_labelled_as_pytorch_does(precision: Precision, share: float, tmp_path: Path) -> None:
    """What litert-torch could not convert, or made a model of that did not run, or in int8 labelled at random.

    Their logits, joined for the test, share one scale of int8.
    """
    skip_if_missing("tflite")
    graph, quantization, expected = blocks()
    quantized = precision == "int8"
    made = int8_graph(graph, quantization, ()) if quantized else graph
    recipe = Recipe(precision, "logits")
    with opened("tflite", made, recipe, quantization if quantized else None, tmp_path) as (artifact, session):
        session.run(frame_of(1))
        logits = torch.from_numpy(logits_of("tflite", artifact, session))
    shares = {
        block.__name__: float((labels_of(logits, index) == labels_of(expected, index)).float().mean())
        for index, block in enumerate(BLOCKS)
    }
    assert {name: found for name, found in shares.items() if found < share} == {}


@cache
def blocks() -> tuple[DeployableGraph, Quantization, torch.Tensor]:
    """The networks side by side, what int8 is to represent, and the original's logits."""
    network = Blocks().eval()
    graph = graph_of(network, SIZE, rewrites=True)
    quantization = calibrate(graph, lambda: iter([frame_of(0), frame_of(1)]), 2).quantization
    with torch.no_grad():
        return graph, quantization, network(normalize(torch.from_numpy(frame_of(1)), graph.normalization))


def labels_of(logits: torch.Tensor, block: int) -> torch.Tensor:
    return reference_labels(logits[:, block * CLASSES_EACH : (block + 1) * CLASSES_EACH], SIZE)


def test_recurrent_layers_for_tensorrt(tmp_path: Path) -> None:
    """Its parser has them: LSTM along the rows, GRU along the columns."""
    skip_if_missing("tensorrt")
    network = Recurrent().eval()
    graph = graph_of(network, SIZE, rewrites=True)
    with opened("tensorrt", graph, Recipe("fp32", "logits"), None, tmp_path) as (artifact, session):
        session.run(frame_of(0))
        logits = logits_of("tensorrt", artifact, session)
    with torch.no_grad():
        expected = network(normalize(torch.from_numpy(frame_of(0)), graph.normalization)).numpy()
    assert np.abs(logits - expected).max() < 1e-4


class Unlike(nn.Module):
    """Two modules, one with what some converters do not have."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        self.stem, self.odd, self.head = nn.Conv2d(3, 8, 3, 2, 1), Odd(operation), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.odd(self.stem(x)))


class Odd(nn.Module):
    def __init__(self, operation: str) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.operation == "erfinv":
            return torch.erfinv(x.tanh() * 0.9)
        return x.cummax(1)[0] if self.operation == "cummax" else x.logcumsumexp(1)


@pytest.mark.parametrize(
    ("name", "operation", "words"),
    [
        ("coreml", "cummax", "write it with arithmetic"),  # a rule of the linter's
        ("onnxruntime", "cummax", "write it with arithmetic"),
        ("openvino", "cummax", "write it with arithmetic"),
        ("tflite", "cummax", "write it with arithmetic"),
        ("openvino", "logcumsumexp", "leave this target out with --target"),  # none
        ("onnxruntime", "erfinv", "leave this target out with --target"),
    ],
)
def test_a_refusal_is_one_sentence(name: str, operation: str, words: str, tmp_path: Path) -> None:
    """It names the operation, its module and its line, and what helps; no colours, no paths of a converter's."""
    skip_if_missing(name)
    graph = graph_of(Unlike(operation), SIZE, rewrites=True)
    with pytest.raises(ConversionError) as caught, opened(name, graph, Recipe("fp32", "logits"), None, tmp_path):
        pass
    sentence = str(caught.value)
    assert f"cannot convert {operation} in module 'odd' (" in sentence and "test_strange_networks.py:" in sentence
    assert sentence.endswith(words) or words in sentence
    assert "\x1b" not in sentence and "\n" not in sentence and "src/frontends" not in sentence
    assert caught.value.__cause__ is not None
