"""A measurement that no device can have made costs its own row: the report of all the others is made, and says why."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from measurements import CLASSES, context, pages, phone, render, run, text

from edgekit.core.errors import EdgekitError
from edgekit.core.quantities import LONGEST_MS, SHORTEST_MS
from reports.document import ReportContext

Change = Callable[[dict[str, Any]], None]
Render = Callable[[Sequence[Mapping[str, Any]], ReportContext], Mapping[str, bytes | str]]


def on_board() -> dict[str, Any]:
    """An artifact's measurement on a connected board."""
    (document,) = (copy.deepcopy(one) for one in run() if (one["target"], one["precision"]) == ("onnxruntime", "int8"))
    return document | {"device": "board", "device_pages": [], "stands_for": None, "sustained": load()}


def load() -> dict[str, Any]:
    interval = {"clock_khz": {"0-3": 1_800_000}, "temperature_c": {"cpu": 60.0}}
    return {
        "seconds": 20.0, "scope": "frame-to-labels", "settings": {"threads": 4}, "before": {},
        "intervals": [{"begin_s": 10.0 * i, "end_s": 10.0 * i + 10, "samples_ms": [8.0, 8.1], **interval} for i in range(2)],
    }  # fmt: skip


def put(path: str, value: Any) -> Change:
    """Sets one value, by its place as the reason names it."""
    *parents, last = path.replace("[", ".").replace("]", "").split(".")

    def change(document: dict[str, Any]) -> None:
        inside: Any = document
        for part in parents:
            inside = inside[int(part)] if isinstance(inside, list) else inside[part]
        inside[int(last) if isinstance(inside, list) else last] = value

    return change


def every_sample(value: float) -> Change:
    return lambda document: document["latency"].update(rounds_ms=[[value]] * 8)


LATENCY: list[tuple[Change, str]] = [
    (every_sample(1e-300), "latency.rounds_ms[0][0] is 1e-300, which is not a time in milliseconds"),
    (every_sample(9.9e8), "latency.rounds_ms[0][0] is 990000000.0"),
    (put("latency.rounds_ms[3][5]", "fast"), "latency.rounds_ms[3][5] is 'fast'"),
    (put("latency.rounds_ms[3]", []), "latency.rounds_ms[3] is []"),
    (put("latency.rounds_ms", None), "neither samples nor statistics"),
    (put("latency.rounds_ms[7][0]", float("nan")), "latency.rounds_ms[7][0] is nan"),
    (put("latency.rounds_ms", [[1.0]] * 4000), "latency.rounds_ms has 4000 entries, which are more than 64"),
    (put("latency.mode", "slow"), "latency.mode is 'slow'"),
    (put("latency.peak_rss_bytes", -1), "latency.peak_rss_bytes is -1"),
    (put("latency.first_ms", 1e13), "latency.first_ms is"),
    (put("latency.settings", "none"), "latency.settings is 'none'"),
    (put("latency.conditions", [1]), "latency.conditions[0] is 1"),
    (put("latency.warmup_ms", 3), "latency.warmup_ms is 3"),
    (put("latency.trtexec", {"layers": [{"name": "a"}]}), "latency.trtexec.layers[0] has no mean_ms"),
    (put("latency.trtexec", {"tegrastats": {"max_celsius": {"cpu": "hot"}}}), "max_celsius.cpu is 'hot'"),
    (put("latency.compute_units", {"CPU": {"p50": 0}}), "latency.compute_units.CPU.p50 is 0"),
    (put("latency.placement", {"ALL": {"operations": 3}}), "latency.placement.ALL.operations is 3"),
]
ACCURACY: list[tuple[Change, str]] = [
    (lambda one: [counts.update(confusion=[]) for counts in one["accuracy"]["counts"]] and None, "counts 0 pixels"),
    (put("accuracy.counts[2].confusion", []), "accuracy.counts[2] counts 0 pixels, which are not those that float PyTorch"),
    (put("accuracy.counts[2].confusion[0]", [0, 99, 4]), "accuracy.counts[2].confusion is not a list of pairs of 5 classes"),
    (put("accuracy.counts[2].confusion[0]", [0, 1]), "accuracy.counts[2].confusion is not a list of pairs"),
    (put("accuracy.counts[2].confusion[0]", [0, 1, -4]), "accuracy.counts[2].confusion is not a list of pairs"),
    (put("accuracy.counts[2].confusion[0]", [0, 1, 10**30]), "accuracy.counts[2].confusion is not a list of pairs"),
    (put("accuracy.counts[2].class_hits", [0]), "accuracy.counts[2].class_hits has 1 entries for 5"),
    (put("accuracy.counts[2].class_misses", ["a"] * 5), "accuracy.counts[2].class_misses[0] is 'a'"),
    (put("accuracy.counts", []), "accuracy.counts is []"),
    (put("accuracy.agreement[1]", None), "accuracy.agreement[1] is None, which is not a fraction"),
    (put("accuracy.agreement[1]", 1e300), "accuracy.agreement[1] is 1e+300"),
]  # fmt: skip
SUSTAINED: list[tuple[Change, str]] = [
    (put("sustained.intervals[0].samples_ms", []), "sustained.intervals[0] has no samples"),
    (put("sustained.intervals[1].samples_ms", [9.9e8]), "sustained.intervals[1].samples_ms[0] is 990000000.0"),
    (put("sustained.intervals[1].begin_s", -1e14), "does not follow the one before"),
    (put("sustained.intervals[1].end_s", 10.0), "does not follow the one before"),
    (put("sustained.seconds", 0), "sustained.seconds is 0"),
    (put("sustained.seconds", 1e-300), "sustained.seconds is 1e-300"),
    (put("sustained.intervals", {}), "sustained.intervals is {}"),
]


@pytest.fixture(scope="module")
def without() -> Mapping[str, Any]:
    """The report of the same run before the board was connected."""
    return pages([*run()[:2], phone(lambda: "said")], context())


def made(change: Change, draw: Render = pages) -> Mapping[str, bytes | str]:
    document = on_board()
    change(document)
    return draw([*run()[:2], phone(lambda: "said"), document], context())


def row_of(files: Mapping[str, bytes | str]) -> dict[str, Any]:
    (row,) = (row for row in json.loads(text(files, "report.json"))["rows"] if row["device"] == "board")
    return dict(row)


@pytest.mark.parametrize(("change", "why"), LATENCY)
def test_a_latency_that_nothing_has(change: Change, why: str, without: Mapping[str, Any]) -> None:
    files = made(change)
    row = row_of(files)
    assert row["latency_ms"] is None and row["provenance"]["latency"]["kind"] == "not measured"
    assert why in row["provenance"]["latency"]["why"] and "measure it again" in row["provenance"]["latency"]["why"]
    assert row["miou"] is not None and row["provenance"]["miou"]["kind"] == "measured"
    for page in ("local.md", "pixel.md"):
        assert files[page] == without[page]


@pytest.mark.parametrize(("change", "why"), ACCURACY)
def test_an_accuracy_that_nothing_has(change: Change, why: str, without: Mapping[str, Any]) -> None:
    files = made(change)
    row = row_of(files)
    assert row["miou"] is None and row["provenance"]["miou"]["kind"] == "not measured"
    assert why in row["provenance"]["miou"]["why"] and "measure it again" in row["provenance"]["miou"]["why"]
    assert row["latency_ms"] is not None
    for page in ("local.md", "pixel.md"):
        assert files[page] == without[page]


@pytest.mark.parametrize(("change", "why"), SUSTAINED)
def test_a_sustained_load_that_nothing_has(change: Change, why: str) -> None:
    files = made(change)
    page = text(files, "board.md")
    assert row_of(files)["latency_ms"] is not None
    assert why.replace("[", r"\[").replace("]", r"\]") in page and "measure it again" in page
    assert "figures/board-sustained.svg" not in files


def test_an_environment_that_is_none_is_not_shown() -> None:
    page = text(made(put("environment", ["x"])), "board.md")
    assert "## Environment\n\nNot recorded." in page


@pytest.mark.parametrize("milliseconds", [SHORTEST_MS, LONGEST_MS])
def test_the_shortest_and_the_longest_time_can_be_shown(milliseconds: float) -> None:
    """What is let through is shown, in tables and in charts."""
    files = made(every_sample(milliseconds), render)
    assert row_of(files)["latency_ms"]["p50"] == milliseconds
    assert b"<svg" in files["figures/board-scatter.svg"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (put("size", [0]), r"size is \[0\]"), (put("precision", "int3"), "precision is 'int3'"),
        (put("latency", 3), "latency is 3"), (put("notes", [1]), "notes is"), (put("artifact", None), "artifact is None"),
        (put("calibration", {"frames": 3}), "calibration has no dataset"), (put("latency.provenance", {}), "has no kind"),
        (put("accuracy.provenance", None), "accuracy.provenance is None"),
    ],
)  # fmt: skip
def test_what_is_no_measurement_at_all_is_named(change: Change, why: str) -> None:
    with pytest.raises(EdgekitError, match=f"the measurement of .*{why}"):
        made(change)


def test_the_float_reference_too_is_looked_at() -> None:
    """Without it no drop can be said, and the rows stay."""
    documents = run()[:3]
    documents[0]["accuracy"]["counts"][0]["confusion"] = [[len(CLASSES), 0, 1]]
    rows = json.loads(text(pages(documents, context()), "report.json"))["rows"]
    assert [row["miou"] is None for row in rows[:3]] == [True, False, False]
    assert all(row["miou_drop"] is None for row in rows)
