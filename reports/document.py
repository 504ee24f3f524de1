"""From measurements to ``report.json``, and the check of its schema."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from edgekit.core.errors import EdgekitError
from edgekit.core.measurement import LOCAL, SCHEMA, Failure, Latency, Measurement, Row, Untimed
from edgekit.core.values import PRECISIONS, ClassSet, Int64, Provenance, ProvenanceKind, Size, UInt8, filled_note
from edgekit.metrics.scores import Scores, add_counts, dense, score
from reports.counts import shown
from reports.statistics import (
    Interval,
    LatencySummary,
    bootstrap_drop,
    condition_warnings,
    printed_latency,
    summarize_latency,
)

REPORT_SCHEMA = 1
SEEN = "The network was trained on these frames: on others it does worse."
NO_DEVICE = "no device connected"

ROW_KEYS = (
    "target", "precision", "device", "size", "output_stride", "model_bytes", "miou", "miou_category", "miou_drop",
    "miou_drop_ci", "per_class_iou", "iiou", "iiou_category", "pixel_accuracy", "mean_class_accuracy",
    "latency_scope", "latency_ms", "fps", "peak_rss_bytes", "provenance",
)  # fmt: skip
LATENCY_KEYS = ("p50", "p90", "mean", "cv", "first", "n")
PROVENANCE_KEYS = ("kind", "by", "why")


@dataclass(frozen=True)
class Strip:
    """One frame to look at.

    Attributes:
        name: of the frame.
        image: uint8 [h, w, 3] RGB.
        truth: uint8 [h, w] train ids, 255 ignored.
        predictions: artifact's title -> uint8 [h, w] train ids, in the order to show.
    """

    name: str
    image: UInt8
    truth: UInt8
    predictions: Mapping[str, UInt8]


@dataclass(frozen=True)
class ReportContext:
    """What a report says beside its measurements.

    Attributes:
        checkpoint: name, sha256, network, classes, dataset, recipe, metrics.
        dataset: name, split, frames (their number).
        class_names: in the order of train ids.
        classes: categories and colours of the same classes.
        command: the command line that made the run.
        created: ISO time.
        edgekit_version: of the edgekit that wrote the report.
        strips: frames to show.
        run_folder: the run's folder as commands should name it; empty means ``runs/<checkpoint>``.
    """

    checkpoint: Mapping[str, Any]
    dataset: Mapping[str, Any]
    class_names: tuple[str, ...]
    classes: ClassSet
    command: str
    created: str
    edgekit_version: str
    strips: tuple[Strip, ...] = ()
    run_folder: str = ""

    @property
    def folder(self) -> str:
        """The run's folder, for command lines."""
        return self.run_folder or f"runs/{self.checkpoint.get('name', 'checkpoint')}"


@dataclass(frozen=True)
class Result:
    """One artifact on one device, with everything derived from its raw samples.

    Attributes:
        row: what was measured, or the failure.
        device: where the result stands; another than the row's for a page without a connected device.
        scores: None when the accuracy was not measured.
        drop: float PyTorch minus artifact, fractions of mIoU; None for the float itself or without scores.
        latency: None when it was not measured.
        accuracy_provenance, latency_provenance: how the numbers were obtained.
        agreement: mean fraction of pixels labelled as float PyTorch does; None when not recorded.
        reference: float PyTorch at the same size, which the drop is measured from; None for itself, or without one.
    """

    row: Row
    device: str
    scores: Scores | None
    drop: Interval | None
    latency: LatencySummary | None
    accuracy_provenance: Provenance
    latency_provenance: Provenance
    agreement: float | None = None
    reference: Result | None = None

    @property
    def failed(self) -> str | None:
        """Why there is no artifact, or None."""
        return self.row.failed if isinstance(self.row, Failure) else None

    @property
    def measured(self) -> Measurement | None:
        """What was measured, None for a failure."""
        return self.row if isinstance(self.row, Measurement) else None

    @property
    def taken(self) -> Latency | None:
        """The times behind ``latency``; None when there are none on this page or of this artifact."""
        found = self.row.latency if isinstance(self.row, Measurement) else None
        return found if isinstance(found, Latency) and self.latency is not None else None

    @property
    def is_float(self) -> bool:
        """Whether it is the float PyTorch that drops are measured from."""
        return self.row.is_float

    @property
    def name(self) -> str:
        """Title and precision, as charts and tables name it."""
        return f"{self.row.named} {self.row.precision}"

    @property
    def scope(self) -> str | None:
        """The latency's scope, None when it was not measured."""
        return None if self.taken is None else self.taken.scope


def trainings(recipe: Mapping[str, Any]) -> list[str]:
    """Commands of the trainings that led to a checkpoint, the oldest first, as far as its recipe recorded them.

    A teacher's come before those that learned from it; each command once.
    """
    others = [(recipe.get(f"{role}_checkpoint") or {}).get("recipe") or {} for role in ("initial", "teacher")]
    own = [str(recipe["command"])] if recipe.get("command") else []
    return list(dict.fromkeys([*(command for other in others if other for command in trainings(other)), *own]))


def artifact_folder(row: Measurement, context: ReportContext) -> str:
    """An artifact's folder as commands should name it."""
    return f"{row.run_folder or context.folder}/artifacts/{row.artifact}"


def bench_command(row: Measurement, context: ReportContext, device: str) -> str:
    """The command that would measure an artifact's latency on a device: what its target notes for it, or the bench."""
    artifact = artifact_folder(row, context)
    quoted = shlex.quote(artifact)
    if device == row.device != LOCAL:
        return f"edgekit bench {quoted} --device {device}"
    noted = row.notes.get(f"measure on {device}")
    return filled_note(noted, artifact) if noted else f"edgekit bench {quoted}"


def analyse(rows: Sequence[Row], context: ReportContext) -> tuple[Result, ...]:
    """Everything derived from what was measured: one result for each and one more for each page it stands on.

    The order is that of the rows; the float reference comes first.

    Raises:
        EdgekitError: two accuracies are not of the same frames, or one is of another checkpoint than the run. Counts that
            cannot be shown are ``not measured`` instead, with the reason.
    """
    whole = context.checkpoint.get("sha256")
    for row in rows:
        own = row.checkpoint.sha256 if isinstance(row, Measurement) and row.checkpoint is not None else None
        if whole is not None and own is not None and own != whole:
            raise EdgekitError(f"{_label(row)} is of another checkpoint than the run was: run it again to its end")
    ordered: list[Row] = []
    floats: dict[Size, Result] = {}
    confusions: dict[Size, Int64] = {}
    frames: Sequence[str] | None = None
    truth: Int64 | None = None
    for raw in sorted(rows, key=lambda row: not row.is_float):
        if isinstance(raw, Failure):
            ordered.append(raw)
            continue
        row = shown(raw, context.classes, truth)
        ordered.append(row)
        if row.accuracy is None:
            continue
        if frames is not None and row.accuracy.frames != frames:
            raise EdgekitError(
                f"{_label(row)} was evaluated on other frames than {_label(ordered[0])}: evaluate both again"
            )
        frames = row.accuracy.frames
        if row.is_float:
            confusions[row.size] = confusions_of(row, context)
            truth = confusions[row.size].sum(2)
    connected = {(row.artifact, row.device) for row in ordered if isinstance(row, Measurement)}
    there = {row.stands_for for row in ordered}
    results: list[Result] = []
    for row in ordered:
        result = _own_result(row, context, floats.get(row.size), confusions.get(row.size))
        if result.is_float and result.scores is not None:
            floats.setdefault(row.size, result)
        results.append(result)
        if result.device != LOCAL:
            continue
        for page in row.device_pages:
            if page in there:  # a device of that kind has a page of its own
                continue
            if isinstance(row, Failure) or (row.artifact, page) not in connected:
                results.append(_unconnected(result, context, page))
    return tuple(results)


def _label(row: Row) -> str:
    return row.artifact or f"{row.target} {row.precision}"


def confusions_of(row: Measurement, context: ReportContext) -> Int64:
    """int64 [frames, C, C] of a row that has an accuracy."""
    assert row.accuracy is not None
    classes = len(context.class_names)
    found: Int64 = np.stack([dense(counts, classes).confusion for counts in row.accuracy.counts])
    return found


def latency_summary(latency: Latency | Untimed) -> LatencySummary | None:
    """Everything derived from a latency; None where nothing was measured."""
    if isinstance(latency, Untimed):
        return None
    if latency.rounds_ms is not None:
        summary = summarize_latency(latency.rounds_ms, latency.mode, latency.warmup_ms, latency.first_ms)
    else:
        assert latency.statistics is not None
        summary = printed_latency(latency.statistics, latency.mode)
    return replace(summary, warnings=(*summary.warnings, *condition_warnings(latency)))


def _own_result(row: Row, context: ReportContext, floating: Result | None, reference: Int64 | None) -> Result:
    if isinstance(row, Failure):
        nothing = Provenance("not measured", "", f"no artifact: {row.failed}")
        return Result(row, row.device, None, None, None, nothing, nothing)
    if row.schema != SCHEMA:
        raise EdgekitError(f"the measurement of {_label(row)} has another schema than {SCHEMA}: measure it again")
    scores, drop, agreement = None, None, None
    if row.accuracy is not None:
        counts = [dense(frame, len(context.class_names)) for frame in row.accuracy.counts]
        scores = score(add_counts(counts), context.classes)
        accuracy_provenance = row.accuracy.provenance
        if row.accuracy.agreement:
            agreement = float(np.mean(row.accuracy.agreement))
        if reference is not None and not row.is_float:
            drop = bootstrap_drop(reference, np.stack([frame.confusion for frame in counts]))
            drop = None if any(math.isnan(value) for value in (drop.value, drop.low, drop.high)) else drop
    else:
        subject = artifact_folder(row, context)
        if row.is_float:
            subject = str(context.checkpoint.get("name", "CHECKPOINT"))
        data, split = context.dataset.get("name", "DATA"), context.dataset.get("split", "SPLIT")
        way = f"edgekit evaluate {shlex.quote(subject)} --data {data} --split {split}"
        why = row.accuracy_why or f"it was not evaluated; measure with: {way}"
        accuracy_provenance = Provenance("not measured", "", why)
    latency_provenance = row.latency.provenance
    summary = latency_summary(row.latency)
    if summary is None and not latency_provenance.why:
        way = bench_command(row, context, row.device)
        latency_provenance = Provenance("not measured", "", f"it was not timed; measure with: {way}")
    return Result(
        row, row.device, scores, drop, summary, accuracy_provenance, latency_provenance, agreement, floating
    )  # fmt: skip


def _unconnected(local: Result, context: ReportContext, device: str) -> Result:
    """The result of a device that is not there: accuracy by the local engine, latency by nobody."""
    if isinstance(local.row, Failure):
        return replace(local, device=device)
    accuracy = local.accuracy_provenance
    if local.scores is not None:
        why = "; ".join(part for part in ("ran on this machine, not on the device", accuracy.why) if part)
        accuracy = Provenance("reference", accuracy.by, why)
    latency = local.latency_provenance
    if local.latency is not None:
        way = bench_command(local.row, context, device)
        latency = Provenance("not measured", "", f"{NO_DEVICE}; measure with: {way}")
    return replace(local, device=device, latency=None, accuracy_provenance=accuracy, latency_provenance=latency)


def build(results: Sequence[Result], context: ReportContext) -> dict[str, Any]:
    """The ``report.json`` document of :func:`analyse`'s results; validated."""
    document = {
        "schema": REPORT_SCHEMA,
        "checkpoint": _finite(dict(context.checkpoint)),
        "dataset": _finite(dict(context.dataset)),
        "rows": [_row(result) for result in results],
    }
    validate(document)
    return document


def build_document(rows: Sequence[Row], context: ReportContext) -> dict[str, Any]:
    """The ``report.json`` document of what was measured; see :func:`analyse` for what it raises."""
    return build(analyse(rows, context), context)


def _finite(value: Any) -> Any:
    """A JSON-ready copy with null for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _row(result: Result) -> dict[str, Any]:
    source, latency, drop = result.row, result.latency, result.drop
    row: dict[str, Any] = dict.fromkeys(ROW_KEYS)
    row.update(
        target=source.target,
        precision=source.precision,
        device=result.device,
        size=[source.size.height, source.size.width],
        output_stride=source.output_stride if isinstance(source, Measurement) else None,
        model_bytes=source.model_bytes if isinstance(source, Measurement) else None,
        provenance={"miou": result.accuracy_provenance.to_json(), "latency": result.latency_provenance.to_json()},
    )
    if result.scores is not None:
        row.update(result.scores.to_json())
    if drop is not None:
        row.update(miou_drop=drop.value, miou_drop_ci=[drop.low, drop.high])
    if latency is not None:
        row.update(
            latency_scope=result.scope,
            latency_ms={key: getattr(latency, key) for key in LATENCY_KEYS},
            fps=latency.fps,
            peak_rss_bytes=None if result.taken is None else result.taken.peak_rss_bytes,
        )
    return row


def validate(document: Any) -> None:
    """Check a ``report.json`` document against schema 1.

    Raises:
        EdgekitError: names the first place that is wrong, for example ``rows[3].latency_ms.p50``.
    """
    for problem in _problems(document):
        raise EdgekitError(f"this is not a report of schema {REPORT_SCHEMA}: {problem}")


def _problems(document: Any) -> Iterator[str]:
    if not isinstance(document, Mapping):
        yield "the document must be an object"
        return
    yield from _keys(document, ("schema", "checkpoint", "dataset", "rows"), "the document")
    if document["schema"] != REPORT_SCHEMA or isinstance(document["schema"], bool):
        yield f"schema must be {REPORT_SCHEMA}"
    for key in ("checkpoint", "dataset"):
        if not isinstance(document[key], Mapping):
            yield f"{key} must be an object"
    if not isinstance(document["rows"], list):
        yield "rows must be a list"
        return
    for index, row in enumerate(document["rows"]):
        yield from _row_problems(row, f"rows[{index}]")


def _keys(value: Any, expected: Sequence[str], place: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{place} must be an object"
        return
    for key in expected:
        if key not in value:
            yield f"{place} lacks {key}"
    for key in value:
        if key not in expected:
            yield f"{place} has the unknown key {key}"


def _number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _row_problems(row: Any, place: str) -> Iterator[str]:
    yield from _keys(row, ROW_KEYS, place)
    for key in ("target", "device"):
        if not isinstance(row[key], str) or not row[key]:
            yield f"{place}.{key} must be a text"
    if row["precision"] not in PRECISIONS:
        yield f"{place}.precision must be one of {', '.join(PRECISIONS)}"
    size = row["size"]
    if not isinstance(size, list) or len(size) != 2 or not all(_whole(side, 1) for side in size):
        yield f"{place}.size must be [height, width]"
    for key, low in (("output_stride", 1), ("model_bytes", 0), ("peak_rss_bytes", 0)):
        if row[key] is not None and not _whole(row[key], low):
            yield f"{place}.{key} must be a whole number or null"
    for key in ("miou", "miou_category", "iiou", "iiou_category", "pixel_accuracy", "mean_class_accuracy"):
        if row[key] is not None and not _number(row[key], 0, 1):
            yield f"{place}.{key} must be a fraction or null"
    if row["miou_drop"] is not None and not _number(row["miou_drop"], -1, 1):
        yield f"{place}.miou_drop must be a difference of fractions or null"
    interval = row["miou_drop_ci"]
    if interval is not None and not (
        isinstance(interval, list)
        and len(interval) == 2
        and all(_number(end, -1, 1) for end in interval)
        and interval[0] <= interval[1]
    ):
        yield f"{place}.miou_drop_ci must be [low, high] or null"
    if (interval is None) != (row["miou_drop"] is None):
        yield f"{place}.miou_drop and miou_drop_ci must stand together"
    ious = row["per_class_iou"]
    if ious is not None and not (
        isinstance(ious, list) and all(value is None or _number(value, 0, 1) for value in ious)
    ):
        yield f"{place}.per_class_iou must be a list of fractions or null"
    if row["latency_scope"] is not None and not isinstance(row["latency_scope"], str):
        yield f"{place}.latency_scope must be a text or null"
    latency = row["latency_ms"]
    if latency is not None:
        yield from _keys(latency, LATENCY_KEYS, f"{place}.latency_ms")
        for key in ("p50", "p90", "mean"):
            if key == "p90" and latency[key] is None:  # a tool that prints its own percentiles need not print this one
                continue
            if not _number(latency[key], 0, float("inf")) or not 0 < latency[key] < float("inf"):
                yield f"{place}.latency_ms.{key} must be a positive number"
        if latency["cv"] is not None and not _number(latency["cv"], 0, 1e9):
            yield f"{place}.latency_ms.cv must be a fraction or null"
        if latency["first"] is not None and not _number(latency["first"], 0, 1e12):
            yield f"{place}.latency_ms.first must be a number or null"
        if not _whole(latency["n"], 1):
            yield f"{place}.latency_ms.n must be a whole number"
        if not _number(row["fps"], 0, 1e12):
            yield f"{place}.fps must be a number where the latency is one"
        if row["latency_scope"] is None:
            yield f"{place}.latency_scope must name the latency's scope"
    elif row["fps"] is not None:
        yield f"{place}.fps must be null where no latency is"
    yield from _provenance_problems(row, place)


def _provenance_problems(row: Mapping[str, Any], place: str) -> Iterator[str]:
    yield from _keys(row["provenance"], ("miou", "latency"), f"{place}.provenance")
    for key, number in (("miou", row["miou"]), ("latency", row["latency_ms"])):
        provenance, where = row["provenance"][key], f"{place}.provenance.{key}"
        yield from _keys(provenance, PROVENANCE_KEYS, where)
        if provenance["kind"] not in get_args(ProvenanceKind):
            yield f"{where}.kind must be one of {', '.join(get_args(ProvenanceKind))}"
        for text in ("by", "why"):
            if not isinstance(provenance[text], str):
                yield f"{where}.{text} must be a text"
        if provenance["kind"] == "not measured":
            if number is not None:
                yield f"{where} says not measured, but the number is there"
            if not provenance["why"].strip():
                yield f"{where}.why must say why it was not measured"
        elif key == "latency" and number is None:
            yield f"{where} says {provenance['kind']}, but the number is missing"
        elif not provenance["by"].strip():
            yield f"{where}.by must name what produced the number"
