"""Scores equal cityscapesScripts' own, computed by that package from files."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.classes import CAMVID, CITYSCAPES, CITYSCAPES_LABEL_IDS
from calibration.datasets import Frame, Split, open_split
from edgekit.core.errors import ArtifactError
from edgekit.core.measurement import Counts
from edgekit.core.record import plain, read
from edgekit.core.values import IGNORE
from edgekit.metrics.scores import (
    FrameCounts,
    Scores,
    add_counts,
    class_iou,
    confusion_matrix,
    count_frame,
    dense,
    mean_iou,
    score,
    sparse,
)

Perturb = Callable[[Frame, np.random.Generator], np.ndarray]


def truth_filled(frame: Frame, generator: np.random.Generator) -> np.ndarray:
    """A prediction for every pixel: the truth where there is one, a class at random where not."""
    noise = generator.integers(0, 19, frame.labels.shape).astype(np.uint8)
    return np.where(frame.labels == IGNORE, noise, frame.labels)


def noisy(frame: Frame, generator: np.random.Generator) -> np.ndarray:
    prediction = truth_filled(frame, generator)
    flipped = generator.random(prediction.shape) < 0.3
    return np.where(flipped, generator.integers(0, 19, prediction.shape), prediction).astype(np.uint8)


def shifted(frame: Frame, generator: np.random.Generator) -> np.ndarray:
    return np.roll(truth_filled(frame, generator), (5, -9), (0, 1))


def confused_things(frame: Frame, generator: np.random.Generator) -> np.ndarray:
    """Persons become riders and cars trucks: wrong class, right category."""
    swap = np.arange(256, dtype=np.uint8)
    swap[[11, 12, 13, 14]] = [12, 11, 14, 13]
    return swap[truth_filled(frame, generator)]


def one_class(frame: Frame, generator: np.random.Generator) -> np.ndarray:
    return np.full(frame.labels.shape, 13, np.uint8)


def few_classes(frame: Frame, generator: np.random.Generator) -> np.ndarray:
    """Classes that the truth has are never predicted, and the other way round."""
    return (truth_filled(frame, generator) // 4 * 4).astype(np.uint8)


def official(predictions: list[Path], truths: list[Path]) -> dict[str, Any]:
    """The evaluation script used as a library, silent."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pytest.importorskip(
            "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
            reason="cityscapesscripts is not installed: pip install cityscapesscripts",
            exc_type=ImportError,
        )
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as script

        args = copy.copy(script.args)
        args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, True
        results: dict[str, Any] = script.evaluateImgLists(
            [str(path) for path in predictions], [str(path) for path in truths], args
        )
    return results


def evaluate(split: Split, perturb: Perturb, folder: Path, root: Path) -> tuple[Scores, dict[str, Any]]:
    generator = np.random.default_rng(0)
    to_label = np.asarray(CITYSCAPES_LABEL_IDS, np.uint8)
    counts, predictions, truths = [], [], []
    for reference in split.references:
        frame = reference.load()
        prediction = perturb(frame, generator)
        counts.append(count_frame(prediction, frame.labels, frame.instances, split.classes))
        predictions.append(folder / f"{frame.name}.png")
        Image.fromarray(to_label[prediction]).save(predictions[-1])
        truths.append(next(root.rglob(f"{frame.name}_gtFine_labelIds.png")))
    return score(add_counts(counts), split.classes), official(predictions, truths)


def check_equal(mine: Scores, theirs: dict[str, Any]) -> None:
    def same(value: float | None, expected: float) -> None:
        assert value == pytest.approx(expected, abs=1e-12, nan_ok=True)

    same(mine.miou, theirs["averageScoreClasses"])
    same(mine.miou_category, theirs["averageScoreCategories"])
    same(mine.iiou, theirs["averageScoreInstClasses"])
    same(mine.iiou_category, theirs["averageScoreInstCategories"])
    for name, value in zip(CITYSCAPES.names, mine.per_class_iou, strict=True):
        same(float(value), theirs["classScores"][name])


@pytest.mark.parametrize("perturb", [truth_filled, noisy, shifted, confused_things, one_class, few_classes])
@pytest.mark.filterwarnings("ignore")
def test_equals_cityscapes_scripts(cityscapes_tree: Path, tmp_path: Path, perturb: Perturb) -> None:
    split = open_split("cityscapes", "train", cityscapes_tree)
    mine, theirs = evaluate(split, perturb, tmp_path, cityscapes_tree)
    check_equal(mine, theirs)
    if perturb is truth_filled:
        assert mine.miou == mine.miou_category == mine.pixel_accuracy == mine.iiou == 1.0
    else:
        assert mine.miou < 1
        assert mine.iiou is not None
        assert mine.iiou < 1
    if perturb is confused_things:
        assert mine.iiou_category is not None
        assert mine.iiou_category > mine.iiou


@pytest.mark.filterwarnings("ignore")
def test_equals_cityscapes_scripts_on_real_frames(cityscapes_root: Path, tmp_path: Path) -> None:
    split = open_split("cityscapes", "train", cityscapes_root).first(2)
    check_equal(*evaluate(split, noisy, tmp_path, cityscapes_root))


def test_weights_are_the_scripts_own() -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        script = pytest.importorskip(
            "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
            reason="cityscapesscripts is not installed: pip install cityscapesscripts",
            exc_type=ImportError,
        )
    from cityscapesscripts.helpers.labels import labels

    own = [label for label in labels if not label.ignoreInEval]
    assert CITYSCAPES.names == tuple(label.name for label in own)
    assert CITYSCAPES.categories == tuple(label.category for label in own)
    assert tuple(label.id for label in own) == CITYSCAPES_LABEL_IDS
    assert CITYSCAPES.colours == tuple(label.color for label in own)
    assert dict(CITYSCAPES.instance_pixels) == {
        label.name: script.args.avgClassSize[label.name] for label in own if label.hasInstances
    }


def test_a_predicted_class_absent_from_the_truth_scores_zero() -> None:
    truth = np.zeros((4, 4), np.uint8)
    prediction = truth.copy()
    prediction[0, 0] = 1
    scores = score(count_frame(prediction, truth, None, CAMVID), CAMVID)
    assert scores.per_class_iou[0] == 15 / 16
    assert scores.per_class_iou[1] == 0.0
    assert np.isnan(scores.per_class_iou[2:]).all()
    assert scores.miou == 15 / 32
    assert scores.pixel_accuracy == scores.mean_class_accuracy == 15 / 16
    assert scores.iiou is None
    assert scores.iiou_category is None


def test_what_is_predicted_on_ignored_pixels_does_not_count() -> None:
    truth = np.zeros((4, 4), np.uint8)
    truth[:2] = IGNORE
    prediction = np.where(truth == IGNORE, 7, truth).astype(np.uint8)
    scores = score(count_frame(prediction, truth, None, CAMVID), CAMVID)
    assert scores.miou == scores.pixel_accuracy == 1.0
    assert np.isnan(scores.per_class_iou[7])


def test_an_all_ignored_frame_adds_nothing() -> None:
    void = np.full((4, 4), IGNORE, np.uint8)
    truth = np.arange(16, dtype=np.uint8).reshape(4, 4) % 11
    alone = count_frame(truth, void, np.full((4, 4), -1, np.int32), CITYSCAPES)
    empty = score(alone, CITYSCAPES)
    assert math.isnan(empty.miou)
    assert math.isnan(empty.miou_category)
    assert math.isnan(empty.pixel_accuracy)
    assert math.isnan(empty.mean_class_accuracy)
    document = json.dumps(empty.to_json(), allow_nan=False)
    assert json.loads(document)["miou"] is None
    counts = count_frame(truth, truth, None, CITYSCAPES)
    assert score(add_counts([counts, alone]), CITYSCAPES).to_json() == score(counts, CITYSCAPES).to_json()


@pytest.mark.parametrize("value", [11, 19, 254, 255])
def test_a_prediction_outside_the_classes_is_refused(value: int) -> None:
    truth = np.zeros((4, 4), np.uint8)
    prediction = truth.copy()
    prediction[2, 2] = value
    with pytest.raises(ArtifactError, match=f"{value}.*11 classes"):
        count_frame(prediction, truth, None, CAMVID)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ArtifactError, match="shape"):
        confusion_matrix(np.zeros((4, 4), np.uint8), np.zeros((2, 8), np.uint8), 3)


def test_confusion_rows_are_truth() -> None:
    truth, prediction = np.asarray([[0, 0, 1]], np.uint8), np.asarray([[0, 2, 1]], np.uint8)
    assert confusion_matrix(prediction, truth, 3).tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def random_counts(seed: int) -> FrameCounts:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 19, (20, 30)).astype(np.uint8)
    instances = np.where(truth >= 11, truth.astype(np.int32) * 1000 + generator.integers(0, 3, truth.shape), -1).astype(
        np.int32
    )
    prediction = np.where(generator.random(truth.shape) < 0.5, truth, generator.integers(0, 19, truth.shape)).astype(
        np.uint8
    )
    return count_frame(prediction, truth, instances, CITYSCAPES)


def test_counts_survive_json() -> None:
    counts = random_counts(1)
    back = dense(read(Counts, json.loads(json.dumps(plain(sparse(counts)))), "counts"), 19)
    for name in ("confusion", "class_hits", "class_misses", "category_hits", "category_misses"):
        assert np.array_equal(getattr(back, name), getattr(counts, name))
    assert score(back, CITYSCAPES).to_json() == score(counts, CITYSCAPES).to_json()


def test_batched_iou_equals_one_by_one() -> None:
    """The bootstrap scores many sums of frames at once."""
    stack = np.stack([random_counts(seed).confusion for seed in range(4)])
    stack[2, 3], stack[2, :, 3] = 0, 0
    assert np.array_equal(class_iou(stack), np.stack([class_iou(item) for item in stack]), equal_nan=True)
    assert mean_iou(stack).tolist() == pytest.approx([float(mean_iou(item)) for item in stack], abs=1e-15)
    assert float(mean_iou(stack[0])) == pytest.approx(float(np.nanmean(class_iou(stack[0]))), abs=1e-15)
