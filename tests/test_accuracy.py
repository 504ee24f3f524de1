"""Evaluation side by side: the numbers of the plain loop, errors that name their frame, subnormals that cost nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from calibration.datasets import Frame, Split, open_split
from edgekit.core.errors import ArtifactError, DataError
from edgekit.core.progress import Progress
from edgekit.core.values import Size, UInt8
from edgekit.metrics.scores import add_counts, counts_from_json, score
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
        taken = measure_accuracy("PyTorch", labeller, SIZE, Frames(nine), None, None, 0, Progress(silent=True))
    counts = [counts_from_json(count, 19) for count in taken["counts"]]
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
