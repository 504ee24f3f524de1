"""Measurement documents as reports take them: what cannot be shown is taken out, and why it was stands in its place.

A faulty device may have answered nonsense, and a file may have been damaged or changed by hand: that costs its own row only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np

from edgekit.core.contract import LATENCY_CONTRACTS
from edgekit.core.errors import EdgekitError
from edgekit.core.quantities import (
    LONGEST_MS,
    MOST_MS,
    MOST_ROUNDS,
    are_milliseconds,
    is_bytes,
    is_milliseconds,
    is_number,
    is_runs,
    is_share,
    is_whole,
)
from edgekit.core.values import PRECISIONS, ClassSet, Int64, ProvenanceKind

Check = Callable[[Any, str], None]
"""Raises EdgekitError for a value that is not what it must be, with its place."""


def _a(good: Callable[[Any], bool], what: str) -> Check:
    def check(value: Any, place: str) -> None:
        if not good(value):
            raise EdgekitError(f"{place} is {_short(value)}, which is not {what}")

    return check


def _or_none(inner: Check) -> Check:
    def check(value: Any, place: str) -> None:
        if value is not None:
            inner(value, place)

    return check


def _each(inner: Check, least: int = 0, most: int = 1 << 20) -> Check:
    def check(value: Any, place: str) -> None:
        if not isinstance(value, (list, tuple)) or len(value) < least:
            raise EdgekitError(f"{place} is {_short(value)}, which is not a list" + (" with entries" if least else ""))
        if len(value) > most:
            raise EdgekitError(f"{place} has {len(value)} entries, which are more than {most}")
        for index, item in enumerate(value):
            inner(item, f"{place}[{index}]")

    return check


def _named(inner: Check) -> Check:
    """An object of such values, whatever its keys."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, Mapping):
            raise EdgekitError(f"{place} is {_short(value)}, which is not an object")
        for key, item in value.items():
            inner(item, f"{place}.{key!s:.40}")

    return check


def _parts(needed: Mapping[str, Check], others: Mapping[str, Check] | None = None) -> Check:
    """An object with these keys; those of ``others`` may be missing or null, and further ones are nobody's business."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, Mapping):
            raise EdgekitError(f"{place} is {_short(value)}, which is not an object")
        for key, inner in needed.items():
            if key not in value:
                raise EdgekitError(f"{place} has no {key}")
            inner(value[key], f"{place}.{key}")
        for key, inner in (others or {}).items():
            if value.get(key) is not None:
                inner(value[key], f"{place}.{key}")

    return check


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _times(value: Any, place: str) -> None:
    """A list of milliseconds, which may be long: its entries are only named where one is wrong."""
    if not are_milliseconds(value):
        _each(_TIME)(value, place)


def _samples(value: Any, place: str) -> None:
    _each(_a(lambda part: isinstance(part, list) and len(part) > 0, "a list of samples"), 1, MOST_ROUNDS)(value, place)
    for index, part in enumerate(value):
        _times(part, f"{place}[{index}]")
    if sum(map(sum, value)) > MOST_MS:
        raise EdgekitError(f"{place} holds more than a day of samples")


def _shows(value: Any) -> bool:
    return not isinstance(value, (int, float)) or abs(value) < 1e15


_ANYTHING: Check = lambda value, place: None  # noqa: E731
_TEXT = _a(lambda value: isinstance(value, str), "a text")
_NUMBER = _a(lambda value: is_number(value) and abs(value) < 1e15, "a number")
_SHARE = _a(is_share, "a fraction")
_TIME = _a(is_milliseconds, "a time in milliseconds")
_TIME_OR_NONE_TAKEN = _a(lambda value: is_number(value) and 0 <= value <= LONGEST_MS, "a time in milliseconds")
_BYTES = _a(is_bytes, "a number of bytes")
_RUNS = _a(is_runs, "a number of runs")
_COUNT = _a(lambda value: is_whole(value, 0, 1 << 50), "a count")
_SIDE = _a(lambda value: is_whole(value, 1, 1 << 20), "a number of pixels")
_MODE = _a(
    lambda value: isinstance(value, str) and value in LATENCY_CONTRACTS, f"one of {', '.join(LATENCY_CONTRACTS)}"
)
_TEXTS, _NUMBERS, _COUNTS = _named(_TEXT), _named(_NUMBER), _named(_COUNT)
_PROVENANCE = _parts(
    {"kind": _a(lambda value: isinstance(value, str) and value in get_args(ProvenanceKind), "a way to obtain a number")},
    {"by": _TEXT, "why": _TEXT},
)  # fmt: skip

_STATISTICS = _parts(
    {"mean": _TIME, "n": _RUNS}, {"p50": _TIME, "p90": _TIME, "p95": _TIME, "cv": _NUMBER, "first": _TIME_OR_NONE_TAKEN}
)  # fmt: skip
_QUANTITY = _a(_shows, "a quantity of any device")
"""A number that can be shown, or anything that is none and is passed over."""
_BATTERY = _a(
    lambda value: not isinstance(value, Mapping) or all(_shows(value.get(key)) for key in ("level", "celsius")),
    "a battery",
)
_CONDITIONS = {"clock_khz": _named(_QUANTITY), "temperature_c": _named(_QUANTITY), "battery": _BATTERY}
_UNIT = _parts({}, {"failed": _TEXT, "p50": _TIME, "mean": _TIME, "operations": _named(_ANYTHING)})
_TEGRASTATS = _parts(
    {},
    {
        "mean_watts": _NUMBER, "max_celsius": _NUMBERS,
        "gpu_clock_mhz": _parts({"min": _NUMBER, "median": _NUMBER, "max": _NUMBER}),
    },
)  # fmt: skip
_TRTEXEC = _parts(
    {},
    {
        "graph_ms": _TIME, "with_copies_ms": _TIME, "gpu_bytes": _BYTES, "unstable_cv": _NUMBER, "precisions": _COUNTS,
        "layers": _each(_parts({"name": _TEXT, "mean_ms": _TIME_OR_NONE_TAKEN, "share": _NUMBER})),
        "tegrastats": _TEGRASTATS,
    },
)  # fmt: skip
_PLAN = _parts({}, {"operations": _COUNTS, "cost": _NUMBERS, "elsewhere": _COUNTS})
_LATENCY = _parts(
    {"provenance": _PROVENANCE, "mode": _MODE},
    {
        "scope": _TEXT, "rounds_ms": _samples, "statistics": _STATISTICS, "warmup_ms": _times,
        "rounds": _each(_parts({"count": _RUNS}, {"median_ms": _TIME}), 0, MOST_ROUNDS),
        "first_ms": _TIME_OR_NONE_TAKEN, "load_ms": _TIME_OR_NONE_TAKEN, "peak_rss_bytes": _BYTES,
        "settings": _named(_ANYTHING), "conditions": _each(_parts({}, _CONDITIONS)),
        "clock_set_seconds": _NUMBER, "compute_units": _named(_UNIT), "placement": _named(_PLAN), "trtexec": _TRTEXEC,
    },
)  # fmt: skip
_SUSTAINED = _parts(
    {
        "seconds": _a(lambda value: is_number(value) and 1e-3 <= value <= MOST_MS / 1e3, "a time in seconds"),
        "intervals": _each(
            _parts({"begin_s": _NUMBER, "end_s": _NUMBER}, {"samples_ms": _times, "statistics": _STATISTICS, **_CONDITIONS}),
            1,
        ),
    },
    {"settings": _named(_ANYTHING)},
)  # fmt: skip
_ENVIRONMENT = _parts({}, {"packages": _named(_ANYTHING), "memory_bytes": _QUANTITY})
_CALIBRATION = _parts(
    {"frames": _COUNT, "dataset": _TEXT, "split": _TEXT},
    {
        "chosen": _TEXT, "estimator": _TEXT, "scheme": _TEXT, "equalization": _TEXT, "expected_drop": _NUMBERS,
        "bias_correction": _parts({"taken": _a(lambda value: isinstance(value, bool), "true or false")}, {"expected_drop": _NUMBER}),
        "simulated_frames": _COUNT, "expected_drop_of_halves": _each(_NUMBER), "left_out": _named(_ANYTHING),
        "frame_sizes": _COUNTS,
    },
)  # fmt: skip
_PIXEL_COUNT = _a(lambda value: is_number(value) and 0 <= value < 1e15, "a number of pixels")


def _pixels(value: Any, place: str) -> None:
    """Counts of a frame by class, of which a report has hundreds of thousands: named only where one is wrong."""
    if not isinstance(value, list) or not all(type(count) in (int, float) and 0 <= count < 1e15 for count in value):
        _each(_PIXEL_COUNT)(value, place)


_ACCURACY = _parts(
    {
        "frames": _each(_TEXT, 1), "provenance": _PROVENANCE,
        "counts": _each(
            _parts(
                {
                    "confusion": _a(lambda value: isinstance(value, list), "a list"), "class_hits": _pixels,
                    "class_misses": _pixels, "category_hits": _pixels, "category_misses": _pixels,
                }
            ),
            1,
        ),
    },
    {"agreement": _each(_SHARE)},
)  # fmt: skip
_ROW = {
    "target": _TEXT, "precision": _a(lambda value: isinstance(value, str) and value in PRECISIONS, "a precision"),
    "size": _a(
        lambda value: isinstance(value, (list, tuple)) and len(value) == 2 and all(is_whole(side, 1, 1 << 20) for side in value),
        "a height and a width",
    ),
}  # fmt: skip
_FAILED = _parts(
    {**_ROW, "failed": _TEXT}, {"title": _TEXT, "device": _TEXT, "device_pages": _each(_TEXT), "model_bytes": _BYTES}
)
_DOCUMENT = _parts(
    {
        **_ROW, "artifact": _TEXT, "latency": _parts({"provenance": _PROVENANCE}),
    },
    {
        "title": _TEXT, "output": _TEXT, "output_stride": _SIDE, "model_bytes": _BYTES, "device": _TEXT,
        "device_pages": _each(_TEXT), "kept_float": _each(_TEXT), "notes": _TEXTS, "calibration": _CALIBRATION,
        "accuracy_why": _TEXT, "checkpoint": _parts({}, {"sha256": _TEXT}), "run_folder": _TEXT, "stands_for": _TEXT,
        "accuracy": _parts({"provenance": _PROVENANCE}),
    },
)  # fmt: skip
"""What every row needs to be one at all; its numbers are looked at one by one."""


def check(document: Any) -> None:
    """Raise EdgekitError for what is no measurement document at all; its numbers are looked at by :func:`shown`."""
    if isinstance(document, Mapping) and document.get("failed") is not None:
        _FAILED(document, "the row of an artifact that failed")
    else:
        name = document.get("artifact", document.get("target")) if isinstance(document, Mapping) else "a row"
        _DOCUMENT(document, f"the measurement of {name!s:.80}")


def shown(document: Mapping[str, Any], classes: ClassSet, truth: Int64 | None) -> Mapping[str, Any]:
    """The document without the numbers that cannot be shown: they are ``not measured``, and the reason is what is wrong with them.

    Args:
        document: checked.
        classes: of the network.
        truth: int64 [frames, C], the labelled pixels of each frame, which all rows share; None where nobody knows them.
    """
    if document.get("failed") is not None:
        return document
    found = dict(document)
    if found.get("accuracy") is not None and (
        why := _wrong(lambda: _check_accuracy(found["accuracy"], classes, truth))
    ):
        found["accuracy"], found["accuracy_why"] = None, why
    latency = found["latency"]
    if latency["provenance"]["kind"] != "not measured" and (why := _wrong(lambda: _check_latency(latency))):
        by = latency["provenance"].get("by") or ""
        found["latency"] = {"provenance": {"kind": "not measured", "by": by, "why": why}}
    if found.get("sustained") is not None and (why := _wrong(lambda: _check_sustained(found["sustained"]))):
        found["sustained"] = {"failed": why}
    if found.get("environment") is not None and _wrong(lambda: _ENVIRONMENT(found["environment"], "environment")):
        found["environment"] = {}
    return found


def _wrong(check: Callable[[], None]) -> str | None:
    try:
        check()
    except EdgekitError as error:
        return f"what was measured cannot be shown, {error}: measure it again"
    return None


def _check_latency(latency: Any) -> None:
    _LATENCY(latency, "latency")
    if (latency.get("rounds_ms") is None) == (latency.get("statistics") is None):
        raise EdgekitError("latency has neither samples nor statistics, or both")
    if latency.get("trtexec", {}).get("failed") is not None:
        _TEXT(latency["trtexec"]["failed"], "latency.trtexec.failed")


def _check_sustained(sustained: Any) -> None:
    _SUSTAINED(sustained, "sustained")
    before = 0.0
    for index, entry in enumerate(sustained["intervals"]):
        place = f"sustained.intervals[{index}]"
        if not before <= entry["begin_s"] < entry["end_s"] <= MOST_MS / 1e3:
            raise EdgekitError(
                f"{place} is from {entry['begin_s']} s to {entry['end_s']} s, which does not follow the one before"
            )
        before = entry["begin_s"]
        if not entry.get("samples_ms") and not entry.get("statistics"):
            raise EdgekitError(f"{place} has no samples")


def _check_accuracy(accuracy: Any, classes: ClassSet, truth: Int64 | None) -> None:
    _ACCURACY(accuracy, "accuracy")
    frames = len(accuracy["frames"])
    for key in ("counts", "agreement"):
        if accuracy.get(key) and len(accuracy[key]) != frames:
            raise EdgekitError(f"accuracy.{key} has {len(accuracy[key])} entries for {frames} frames")
    for index, counts in enumerate(accuracy["counts"]):
        place = f"accuracy.counts[{index}]"
        for kind, number in (("class", len(classes)), ("category", len(classes.category_names))):
            for key in (f"{kind}_hits", f"{kind}_misses"):
                if len(counts[key]) != number:
                    raise EdgekitError(f"{place}.{key} has {len(counts[key])} entries for {number}")
        pixels = _labelled(counts["confusion"], len(classes), f"{place}.confusion")
        if truth is not None and (len(truth) != frames or not np.array_equal(pixels, truth[index])):
            raise EdgekitError(
                f"{place} counts {pixels.sum()} pixels, which are not those that float PyTorch was counted on"
            )


def _labelled(confusion: Any, classes: int, place: str) -> Int64:
    """int64 [C]: the pixels of each class of the truth."""
    pixels = np.zeros(classes, np.int64)
    try:
        triples = np.asarray(confusion if len(confusion) else np.zeros((0, 3), np.int64))
    except (ValueError, OverflowError):  # of several lengths
        triples = np.zeros(0)
    good = triples.ndim == 2 and triples.shape[1] == 3 and triples.dtype.kind == "i" and bool((triples >= 0).all())
    if not good or (len(triples) and (triples[:, :2].max() >= classes or triples[:, 2].max() > 1 << 40)):
        raise EdgekitError(f"{place} is not a list of pairs of {classes} classes and counts")
    np.add.at(pixels, triples[:, 0], triples[:, 2])
    return pixels
