"""Evaluation side by side: the numbers of the plain loop, errors that name their frame, subnormals that cost nothing."""

from __future__ import annotations

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import strangers
import torch
from torch.nn import functional as F

from calibration.datasets import Frame, Split, open_split
from edgekit.core.errors import ArtifactError, DataError
from edgekit.core.progress import Progress
from edgekit.core.values import Size, UInt8
from edgekit.export.graph import normalize, reference_labels
from edgekit.metrics.scores import add_counts, dense, score
from edgekit.networks.blocks import channels_last
from edgekit.networks.checkpoint import load_checkpoint, load_network
from edgekit.pipeline.accuracy import Frames, Labeller, labelled, measure_accuracy, pytorch_labeller

SIZE = Size(96, 192)


@pytest.fixture(scope="module")
def nine() -> Split:
    return open_split("streets", "val", size=SIZE).first(9)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_evaluation_gives_the_numbers_of_the_plain_loop(nine: Split, threads: int) -> None:
    checkpoint = load_checkpoint("spssn-streets")
    with pytorch_labeller(checkpoint, SIZE, threads) as labeller:
        taken = measure_accuracy("PyTorch", labeller, SIZE, Frames(nine), Progress(silent=True))
    counts = [dense(count, 19) for count in taken.counts]
    network = load_network(checkpoint)
    confusion = np.zeros((19, 19), np.int64)
    for reference, count in zip(nine.references, counts, strict=True):
        frame = reference.load()
        x = (torch.from_numpy(frame.image).float() / 255 - torch.tensor(checkpoint.normalization.mean)) / torch.tensor(
            checkpoint.normalization.std
        )
        with torch.inference_mode():
            logits = network(x.permute(2, 0, 1)[None])
            labels = F.interpolate(logits, (96, 192), mode="bilinear", align_corners=False).argmax(1)[0].numpy()
        mine = np.zeros((19, 19), np.int64)
        known = frame.labels != 255
        np.add.at(mine, (frame.labels[known], labels[known]), 1)
        # Another memory layout rounds otherwise: a pixel between two classes may fall to either.
        assert np.abs(mine - count.confusion).sum() <= 4, reference.name
        confusion += mine
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    expected = np.mean(hits[union > 0] / union[union > 0])
    assert score(add_counts(counts), nine.classes).miou == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_labels_come_back_with_their_frame(nine: Split, at_once: int) -> None:
    labeller = Labeller(lambda frame: frame[..., 0].copy(), at_once)
    seen = list(labelled(Frames(nine), SIZE, labeller))
    assert [frame.name for frame, _ in seen] == [reference.name for reference in nine.references]
    assert all(np.array_equal(labels, frame.image[..., 0]) for frame, labels in seen)


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_frame_that_cannot_be_read_is_named(nine: Split, at_once: int) -> None:
    def broken() -> Frame:
        raise DataError("frame 4 is damaged")

    references = list(nine.references)
    references[4] = replace(references[4], load=broken)
    seen = []
    with pytest.raises(DataError, match="frame 4"):
        for frame, _ in labelled(
            Frames(replace(nine, references=tuple(references))), SIZE, Labeller(lambda frame: frame[..., 0], at_once)
        ):
            seen.append(frame.name)
    assert seen == [reference.name for reference in nine.references[:4]]


def test_labels_of_another_size_are_refused(nine: Split) -> None:
    with pytest.raises(ArtifactError, match="session contract"):
        list(labelled(Frames(nine), SIZE, Labeller(lambda frame: frame[:, 1:, :, 0])))


def test_subnormal_numbers_are_zero_where_frames_are_labelled() -> None:
    """In every thread that evaluates; otherwise a trained network is up to twenty times slower (facts, not timed here)."""
    checkpoint = load_checkpoint("spssn-streets")
    with pytorch_labeller(checkpoint, SIZE, 2) as labeller, ThreadPoolExecutor(2, initializer=labeller.prepare) as pool:
        tiny = torch.full((64,), 1e-39)
        for product in pool.map(lambda factor: (tiny * factor).sum().item(), [1.0, 0.5, 0.25]):
            assert product == 0.0


STATEFUL = """
import time

from torch import nn
from torch.nn import functional as F


class Hooked(nn.Module):
    \"\"\"A decoder reads what a hook kept of the encoder.\"\"\"

    def __init__(self, classes):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.last = nn.Conv2d(8, classes, 1)
        self.kept = {}
        self.first.register_forward_hook(lambda module, given, made: self.kept.update(map=made))

    def forward(self, x):
        x = F.relu(self.second(self.first(x)))
        time.sleep(0.01)  # another frame's turn
        return self.last(x + self.kept["map"])


class Viewing(nn.Module):
    \"\"\"A view that only contiguous strides allow.\"\"\"

    def __init__(self, classes):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, classes, 1)

    def forward(self, x):
        x = self.first(x)
        weights = F.adaptive_avg_pool2d(x, 2).view(x.size(0), -1).mean(1)
        return self.last(x.view(x.size(0), 2, 4, *x.shape[2:]).flatten(1, 2) * weights[:, None, None, None])
"""


@pytest.mark.parametrize("name", ["Hooked", "Viewing"])
def test_networks_of_every_kind_are_labelled_side_by_side(
    nine: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What one keeps between its modules is no other frame's, and a view that fast strides forbid is given others."""
    (tmp_path / "stateful.py").write_text(STATEFUL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stateful", raising=False)
    network = getattr(importlib.import_module("stateful"), name)(19).eval()
    torch.save(network.state_dict(), tmp_path / "stateful.pth")
    checkpoint = load_checkpoint(str(tmp_path / "stateful.pth"), f"stateful:{name}", nine.classes.names)
    frames = Frames(nine)
    monkeypatch.setattr("edgekit.runtimes.common.available_cores", lambda: 4)
    with pytorch_labeller(checkpoint, SIZE, 4) as labeller:
        assert labeller.at_once == 4
        for _ in range(3):
            for frame, labels in labelled(frames, SIZE, labeller):
                with torch.inference_mode():
                    logits = network(normalize(torch.from_numpy(frame.image[None]), checkpoint.normalization))
                    expected = reference_labels(logits, SIZE)[0].numpy()
                assert (labels == expected).mean() > 0.999, frame.name


@pytest.mark.parametrize("name", ["KernelAttention", "Volume"])
def test_weights_of_five_axes(nine: Split, tmp_path: Path, name: str) -> None:
    """Channels last is an order of four: those are moved, others stay, and frames are labelled as ever."""
    network = getattr(strangers, name)(19).eval()
    torch.save(network.state_dict(), tmp_path / "five.pth")
    checkpoint = load_checkpoint(str(tmp_path / "five.pth"), f"strangers:{name}", nine.classes.names)
    with pytorch_labeller(checkpoint, SIZE, 1) as labeller:
        (frame, labels), *_ = labelled(Frames(nine.first(1)), SIZE, labeller)
    with torch.inference_mode():
        logits = network(normalize(torch.from_numpy(frame.image[None]), checkpoint.normalization))
    assert (labels == reference_labels(logits, SIZE)[0].numpy()).mean() > 0.999
    moved = channels_last(network)
    values = list(moved.state_dict().values())
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in values if value.ndim == 4)
    assert any(value.ndim == 5 for value in values)


def test_a_frame_is_loaded_once(nine: Split, tmp_path: Path) -> None:
    loads: list[str] = []

    def counted(frame: UInt8) -> UInt8:
        return frame[..., 0].copy()

    references = []
    for reference in nine.references:

        def load(kept: Frame = reference.load()) -> Frame:  # noqa: B008  # bound here on purpose
            loads.append(kept.name)
            return kept

        references.append(replace(reference, load=load))
    frames = Frames(replace(nine, references=tuple(references)))
    for _ in range(2):
        list(labelled(frames, SIZE, Labeller(counted, 3)))
    assert len(loads) == 9
