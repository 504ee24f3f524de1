"""IoU, accuracy and iIoU from per-frame counts, as cityscapesScripts' evalPixelLevelSemanticLabeling defines them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import ArtifactError
from edgekit.core.measurement import Counts
from edgekit.core.values import ClassSet, Int32, Int64, UInt8

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class FrameCounts:
    """What one frame adds to every metric; counts of frames simply add up.

    Attributes:
        confusion: int64 [C, C], rows truth, columns prediction, ignored pixels left out.
        class_hits, class_misses: float64 [C], instance-weighted true positive and false negative pixels.
        category_hits, category_misses: float64 [K], the same per category.
    """

    confusion: Int64
    class_hits: Float64
    class_misses: Float64
    category_hits: Float64
    category_misses: Float64


@dataclass(frozen=True)
class Scores:
    """All metrics as fractions; NaN where a class does not occur. iIoU is None for datasets without instances."""

    miou: float
    miou_category: float
    per_class_iou: Float64
    pixel_accuracy: float
    mean_class_accuracy: float
    iiou: float | None
    iiou_category: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values; null for NaN."""
        return {
            "miou": _plain(self.miou), "miou_category": _plain(self.miou_category),
            "per_class_iou": [_plain(value) for value in self.per_class_iou],
            "iiou": _plain(self.iiou), "iiou_category": _plain(self.iiou_category),
            "pixel_accuracy": _plain(self.pixel_accuracy), "mean_class_accuracy": _plain(self.mean_class_accuracy),
        }  # fmt: skip


def _plain(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else float(value)


def confusion_matrix(prediction: UInt8, truth: UInt8, classes: int) -> Int64:
    """int64 [classes, classes] over pixels whose truth is a class.

    Raises:
        ArtifactError: a prediction is no class.
    """
    if prediction.shape != truth.shape:
        raise ArtifactError(f"labels of shape {prediction.shape} cannot be compared with truth of shape {truth.shape}")
    if int(prediction.max(initial=0)) >= classes:
        raise ArtifactError(
            f"the artifact labelled a pixel {int(prediction.max())}, but there are only {classes} classes"
        )
    # One byte pair per pixel: bincount over uint16 is several times faster than over int64 masks. All that is ignored shares a
    # row, since a table of 256 rows for each frame, freed between frames that are kept, leaves the heap in pieces.
    rows = np.minimum(truth.ravel(), classes).astype(np.uint16)
    table = np.bincount(rows * np.uint16(256) + prediction.ravel(), minlength=(classes + 1) * 256).reshape(-1, 256)
    return table[:classes, :classes].astype(np.int64)


def count_frame(prediction: UInt8, truth: UInt8, instances: Int32 | None, classes: ClassSet) -> FrameCounts:
    """Counts of one frame.

    Args:
        prediction: uint8 [H, W] train ids.
        truth: uint8 [H, W] train ids, 255 ignored.
        instances: int32 [H, W] train id * 1000 + n, -1 where there is none; or None.
        classes: of the dataset; ``instance_pixels`` are the iIoU weights.
    """
    names = classes.category_names
    class_hits, class_misses = np.zeros(len(classes)), np.zeros(len(classes))
    category_hits, category_misses = np.zeros(len(names)), np.zeros(len(names))
    category_of = np.full(256, -1)
    category_of[: len(classes)] = [names.index(category) for category in classes.categories]
    with_instances = np.zeros(256, bool)
    with_instances[: len(classes)] = [name in classes.instance_pixels for name in classes.names]
    if instances is not None:
        inside = instances >= 0
        ids, inverse = np.unique(instances[inside], return_inverse=True)
        predicted = prediction[inside]
        sizes = np.bincount(inverse, minlength=len(ids))
        owners = ids // 1000
        hits = np.bincount(inverse, weights=predicted == owners[inverse], minlength=len(ids))
        # Only predictions of classes with instances count for a category's iIoU (the script's category masks).
        same = (category_of[predicted] == category_of[owners[inverse]]) & with_instances[predicted]
        group_hits = np.bincount(inverse, weights=same, minlength=len(ids))
        for owner, size, hit, group_hit in zip(owners, sizes, hits, group_hits):
            pixels = classes.instance_pixels.get(classes.names[owner])
            if pixels is None:
                continue
            weight = pixels / size
            class_hits[owner] += hit * weight
            class_misses[owner] += (size - hit) * weight
            category_hits[category_of[owner]] += group_hit * weight
            category_misses[category_of[owner]] += (size - group_hit) * weight
    return FrameCounts(
        confusion_matrix(prediction, truth, len(classes)), class_hits, class_misses, category_hits, category_misses
    )


def add_counts(counts: Sequence[FrameCounts]) -> FrameCounts:
    """The sum over frames; at least one frame."""
    return FrameCounts(
        np.sum([count.confusion for count in counts], 0),
        np.sum([count.class_hits for count in counts], 0),
        np.sum([count.class_misses for count in counts], 0),
        np.sum([count.category_hits for count in counts], 0),
        np.sum([count.category_misses for count in counts], 0),
    )


def class_iou(confusion: NDArray[Any]) -> Float64:
    """[..., C, C] -> float64 [..., C]; NaN where a class is neither in the truth nor predicted."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(-1) + confusion.sum(-2) - hits
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(union > 0, hits / union, np.nan)


def mean_iou(confusion: NDArray[Any]) -> Float64:
    """[..., C, C] -> float64 [...], mean over the classes that occur."""
    iou = class_iou(confusion)
    valid = ~np.isnan(iou)
    total = np.where(valid, iou, 0.0).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Float64 = total / valid.sum(-1)
    return mean


def score(counts: FrameCounts, classes: ClassSet) -> Scores:
    """All metrics of summed counts."""
    confusion = counts.confusion
    names = classes.category_names
    member = np.asarray([[category == name for category in classes.categories] for name in names], np.int64)
    grouped = member @ confusion @ member.T
    truth = confusion.sum(1)
    hits = np.diagonal(confusion)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = np.where(truth > 0, hits / truth, np.nan)
        pixel_accuracy = float(hits.sum() / confusion.sum()) if confusion.sum() else float("nan")
    return Scores(
        miou=_mean(class_iou(confusion)),
        miou_category=_mean(class_iou(grouped)),
        per_class_iou=class_iou(confusion),
        pixel_accuracy=pixel_accuracy,
        mean_class_accuracy=_mean(accuracy),
        iiou=_class_iiou(counts, classes),
        iiou_category=_category_iiou(counts, classes, member),
    )


def _mean(values: Float64) -> float:
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if len(valid) else float("nan")


def _class_iiou(counts: FrameCounts, classes: ClassSet) -> float | None:
    thing = np.asarray([name in classes.instance_pixels for name in classes.names])
    if not (counts.class_hits.sum() + counts.class_misses.sum()):
        return None
    false_positives = counts.confusion.sum(0) - np.diagonal(counts.confusion)
    union = counts.class_hits + counts.class_misses + false_positives
    with np.errstate(invalid="ignore", divide="ignore"):
        return _mean(np.where(thing & (union > 0), counts.class_hits / union, np.nan))


def _category_iiou(counts: FrameCounts, classes: ClassSet, member: Int64) -> float | None:
    if not (counts.category_hits.sum() + counts.category_misses.sum()):
        return None
    thing = np.asarray([name in classes.instance_pixels for name in classes.names])
    # Predictions of the category's instance classes on truth of any other category.
    columns = counts.confusion * thing[None, :]
    false_positives = np.asarray([((1 - row) @ columns @ row) for row in member], np.float64)
    has_instances = (member * thing[None, :]).sum(1) > 0
    union = counts.category_hits + counts.category_misses + false_positives
    with np.errstate(invalid="ignore", divide="ignore"):
        return _mean(np.where(has_instances & (union > 0), counts.category_hits / union, np.nan))


def sparse(counts: FrameCounts) -> Counts:
    """Counts as files and devices carry them."""
    rows, columns = np.nonzero(counts.confusion)
    hits = (counts.class_hits, counts.class_misses, counts.category_hits, counts.category_misses)
    triples = [[int(r), int(c), int(counts.confusion[r, c])] for r, c in zip(rows, columns)]
    return Counts(triples, *(tuple(values.tolist()) for values in hits))


def dense(counts: Counts, classes: int) -> FrameCounts:
    """The inverse of :func:`sparse`."""
    confusion = np.zeros((classes, classes), np.int64)
    for row, column, pixels in counts.confusion:
        confusion[row, column] = pixels
    hits = (counts.class_hits, counts.class_misses, counts.category_hits, counts.category_misses)
    return FrameCounts(confusion, *map(np.asarray, hits))
