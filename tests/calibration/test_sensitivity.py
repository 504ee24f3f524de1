"""Which layers cost int8 its accuracy: what is charged to a layer is what a target leaves out to keep it in float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import graph_of
from test_bias import shifted
from test_ranges import SIZE, frames
from torch import nn

from calibration.classes import CAMVID, CITYSCAPES
from calibration.datasets import FrameReference, Split, open_split
from calibration.equalization import equalized
from calibration.ranges import calibrate
from calibration.sensitivity import LayerLoss, layer_losses
from edgekit.core.errors import DataError
from edgekit.core.progress import Progress
from edgekit.core.values import DeployableGraph, Quantization, Scheme, Size
from edgekit.export.layers import layers_of
from edgekit.networks.checkpoint import load_checkpoint
from edgekit.pipeline import int8
from edgekit.pipeline.artifacts import lazy_graph
from reports.sensitivity import sensitivity_text


class Power(nn.Module):
    """The fourth power of a map, which int8 represents badly, and which ``third`` reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.third, self.head = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.second.weight *= 3
            self.head.weight *= 20

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        second = torch.relu(self.second(torch.relu(self.first(x))))
        logits: torch.Tensor = self.head(torch.relu(self.third(second * second * second * second)))
        return logits


def losses_of(
    graph: DeployableGraph, quantization: Quantization, scheme: Scheme, labels: bool = True
) -> dict[str, LayerLoss]:
    truth = np.zeros((SIZE.height, SIZE.width), np.uint8) if labels else None
    seen = [(frame, truth) for frame in frames(2)]
    losses = layer_losses(equalized(graph, quantization.scales), quantization, scheme, seen, lambda *_: None)
    return {loss.layer: loss for loss in losses}


def test_a_map_is_charged_to_what_reads_it() -> None:
    """And neither a product nor the frame, which no exclusion touches, is ranked."""
    graph = graph_of(Power(), SIZE)
    quantization = calibrate(graph, lambda: frames(3), 3).quantization
    for scheme in ("symmetric", "asymmetric"):
        losses = losses_of(graph, quantization, scheme)
        assert list(losses) == ["first", "second", "third", "head"]
        assert max(losses.values(), key=lambda loss: loss.expected_drop).layer == "third"
        assert all(loss.output_error > 0 and loss.drop is not None for loss in losses.values())


def test_layers_are_ranked_without_labels() -> None:
    graph = graph_of(Power(), SIZE)
    quantization = calibrate(graph, lambda: frames(3), 3).quantization
    without = losses_of(graph, quantization, "symmetric", labels=False)
    assert without == {
        name: replace(loss, drop=None) for name, loss in losses_of(graph, quantization, "symmetric").items()
    }


def test_a_layer_is_charged_with_its_bias_as_int8_corrects_it() -> None:
    graph = shifted()
    quantization = calibrate(graph, lambda: frames(3), 3).quantization
    assert quantization.biases
    as_made = losses_of(graph, quantization, "symmetric")["second"]
    without = losses_of(graph, replace(quantization, biases={}), "symmetric")["second"]
    assert as_made.output_error < 0.5 * without.output_error


@pytest.fixture
def as_cached(small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The document of the command over frames of ``split``, its pages in ``tmp_path``."""
    monkeypatch.setattr(int8, "RANKING_PIXELS", 1)  # two frames

    def measure(split: Split) -> dict[str, Any]:
        return int8.sensitivity(
            load_checkpoint(str(small_checkpoint)),
            split,
            3,
            Size(64, 96),
            ("symmetric",),
            tmp_path,
            Progress(silent=True),
        )

    return measure


def test_the_page_says_what_layers_were_ranked_on(as_cached: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    document = as_cached(open_split("streets", "train", size=Size(64, 96)))
    assert document["calibration"]["frames"] == 3
    assert document["ranked_on"] == {"frames": 2, "no_labels": None}
    page = (tmp_path / "sensitivity" / "index.md").read_text()
    assert "calibrated on 3 streets train frames, ranked on 2 of them." in page
    assert "on 2 of the 3 calibration frames" in sensitivity_text(document)
    assert "on labels)" in sensitivity_text(document)


def test_the_page_lists_every_layer_that_may_stay_in_float(
    as_cached: Callable[..., dict[str, Any]], small_checkpoint: Path, tmp_path: Path
) -> None:
    document = as_cached(open_split("streets", "train", size=Size(64, 96)))
    listed = {loss["layer"] for loss in document["layers"]["symmetric"]} | set(document["others"])
    graph = lazy_graph(load_checkpoint(str(small_checkpoint)), Size(64, 96), Progress(silent=True))()
    assert listed == {layer.name for layer in layers_of(graph)} - {"frame"}
    page = (tmp_path / "sensitivity" / "index.md").read_text()
    assert document["others"] and all(f"`{name}`" in page for name in document["others"])


def without_labels(split: Split) -> Split:
    """The same frames before they were labelled."""

    def none() -> Any:
        raise DataError("every frame needs its label image")

    def unlabelled(one: FrameReference) -> FrameReference:
        return replace(one, load_labels=none, identity=one.image_identity)

    return replace(split, references=tuple(map(unlabelled, split.references)))


def test_labels_that_came_later_are_scored(as_cached: Callable[..., dict[str, Any]], camvid_tree: Path) -> None:
    split = replace(open_split("camvid", "train", camvid_tree), classes=CITYSCAPES)  # numbers that the network has
    before = as_cached(without_labels(split))
    after = as_cached(split)
    assert (before["ranked_on"]["no_labels"] is None, after["ranked_on"]["no_labels"]) == (False, None)
    for early, late in zip(*(document["layers"]["symmetric"] for document in (before, after)), strict=True):
        assert (early["drop"] is None, late["drop"] is None) == (True, False)
        assert {**early, "drop": None} == {**late, "drop": None}, "nothing but the labels changed"


@pytest.mark.parametrize("case", ["no labels", "other classes"])
def test_labels_that_are_missing_or_of_other_classes_are_not_scored(
    case: str, as_cached: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    split = open_split("streets", "train", size=Size(64, 96))
    if case == "other classes":
        split = replace(split, classes=CAMVID)
        why = "streets's classes are not the network's"
    else:
        split = without_labels(split)
        why = "every frame needs its label image"
    document = as_cached(split)
    assert document["ranked_on"]["no_labels"] == why
    assert all(loss["drop"] is None and loss["output_error"] > 0 for loss in document["layers"]["symmetric"])
    page = (tmp_path / "sensitivity" / "index.md").read_text()
    assert f"On labels nothing was measured: {why}." in page
    assert "not measured |" in page
    assert why in sensitivity_text(document)
    assert "on labels)" not in sensitivity_text(document)
