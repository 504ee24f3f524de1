"""Reports from made-up measurements: intervals, provenance, tables, figures."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from measurements import (
    CLASSES,
    HEIGHT,
    UNTIMED,
    WIDTH,
    accuracy,
    analyse,
    build_document,
    context,
    counted,
    latency,
    measurement,
    pages,
    phone,
    predictions,
    render,
    run,
    tables,
    text,
    truths,
)
from PIL import Image

from edgekit.core.errors import EdgekitError
from edgekit.core.measurement import Latency
from edgekit.core.record import read
from edgekit.metrics.scores import add_counts, class_iou, count_frame, mean_iou, score
from reports.document import ROW_KEYS, trainings, validate
from reports.figures import ClassDrops, Point, class_drops, scatter, target_colours
from reports.numbers import megabytes, milliseconds, percent, points
from reports.statistics import (
    bootstrap_drop,
    bootstrap_ratio,
    condition_warnings,
    early_stopping_discards,
    early_stopping_estimate,
    rising_trend,
    summarize_latency,
)
from reports.summary import summary
from reports.text import escape, table


@pytest.fixture(scope="module")
def files() -> dict[str, bytes | str]:
    return render(run(), context())


def confusions(labels: Sequence[np.ndarray], maps: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([count_frame(p, t, None, CLASSES).confusion for p, t in zip(labels, maps, strict=True)])


def test_drop_interval_covers_the_known_drop() -> None:
    known = mean_iou(confusions(predictions(truths(99, 600), 0.1, 5), truths(99, 600)).sum(0)) - mean_iou(
        confusions(predictions(truths(99, 600), 0.13, 5), truths(99, 600)).sum(0)
    )
    covered = 0
    for seed in range(20):
        maps = truths(seed, 40)
        interval = bootstrap_drop(
            confusions(predictions(maps, 0.1, seed), maps), confusions(predictions(maps, 0.13, seed), maps)
        )
        assert interval.low < interval.value < interval.high
        covered += interval.low <= known <= interval.high
    assert covered >= 16


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_identical_predictions_drop_exactly_nothing(frames: int, classes: int, seed: int) -> None:
    table = np.random.default_rng(seed).integers(0, 50, (frames, classes, classes))
    interval = bootstrap_drop(table, table.copy(), resamples=200)
    assert (interval.value, interval.low, interval.high) == (0, 0, 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_drop_equals_the_metrics_drop_and_changes_sign(frames: int, classes: int, seed: int) -> None:
    first, second = np.random.default_rng(seed).integers(0, 40, (2, frames, classes, classes))
    forth, back = bootstrap_drop(first, second, 300), bootstrap_drop(second, first, 300)
    assert forth.value == pytest.approx(float(mean_iou(first.sum(0)) - mean_iou(second.sum(0))))
    assert (forth.value, forth.low, forth.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert bootstrap_drop(first, second, 300) == forth


@pytest.mark.parametrize("frames", [2, 3, 5, 8, 15, 24])
def test_the_interval_of_few_frames_does_not_lie(frames: int) -> None:
    """It misses the drop of endless frames about as often as it says."""
    generator = np.random.default_rng(frames)

    def drawn(count: int) -> list[np.ndarray]:
        right = generator.integers(400, 700, (count, 2))
        lost = generator.normal(20, 15, (count, 2)).round().astype(np.int64)
        return [
            np.stack([correct[:, 0], 800 - correct[:, 0], 800 - correct[:, 1], correct[:, 1]], 1).reshape(-1, 2, 2)
            for correct in (right, right - lost)
        ]

    reference, artifact = drawn(50_000)
    drop = float(mean_iou(reference.sum(0)) - mean_iou(artifact.sum(0)))
    intervals = [bootstrap_drop(*drawn(frames), 400) for _ in range(300)]
    missed = sum(not interval.low <= drop <= interval.high for interval in intervals)
    assert 0.01 * len(intervals) <= missed <= 0.09 * len(intervals), "5 % is said"


def test_one_labelled_frame_says_nothing_of_others() -> None:
    table = np.array([[[7, 1], [2, 8]]])
    other = np.array([[[6, 2], [2, 8]]])
    void = np.zeros((3, 2, 2), np.int64)
    for pair in ((table, other), (np.concatenate([table, void]), np.concatenate([other, void]))):
        interval = bootstrap_drop(*pair)
        assert interval.value > 0
        assert (interval.low, interval.high) == (-1, 1)


def test_the_ends_are_drops() -> None:
    """However little two frames say, a report takes it."""
    reference = np.array([[[50, 0], [0, 50]]] * 2)
    artifact = np.array([[[50, 0], [0, 50]], [[0, 50], [50, 0]]])
    interval = bootstrap_drop(reference, artifact)
    assert (interval.low, interval.high) == (-1, 1)


@pytest.mark.parametrize("rounds", [2, 4, 5, 8])
def test_the_interval_of_few_rounds_does_not_lie(rounds: int) -> None:
    """Of two artifacts that take the same time: 1 is in it about as often as it says."""
    generator = np.random.default_rng(rounds)
    intervals = [bootstrap_ratio(*generator.lognormal(3, 0.03, (2, rounds, 1)).tolist(), 400) for _ in range(300)]
    missed = sum(not interval.low <= 1 <= interval.high for interval in intervals)
    assert 0.01 * len(intervals) <= missed <= 0.11 * len(intervals), "5 % is said"


def test_drop_refuses_other_frames() -> None:
    with pytest.raises(EdgekitError, match="same frames"):
        bootstrap_drop(np.ones((3, 2, 2)), np.ones((4, 2, 2)))


def test_unlabelled_frames_have_no_drop() -> None:
    assert np.isnan(bootstrap_drop(np.zeros((3, 2, 2)), np.zeros((3, 2, 2))).value)


def test_early_stopping_needs_as_many_queries_as_mlperf() -> None:
    for percentile, least in ((0.9, 64), (0.99, 662)):
        assert early_stopping_discards(least - 1, percentile) == 0
        assert early_stopping_discards(least, percentile) == 1


def test_early_stopping_p90_is_above_p90_and_falls_towards_it() -> None:
    excess = []
    for n in (64, 256, 1024, 16384):
        samples = np.random.default_rng(3).permutation(np.linspace(10, 20, n)).tolist()
        estimate = early_stopping_estimate(samples, 0.9)
        assert estimate is not None
        excess.append(estimate - float(np.percentile(samples, 90)))
    assert all(later < earlier for earlier, later in pairwise(excess))
    assert 0 < excess[-1] < 0.1


def test_early_stopping_p90_rarely_lies_below_the_truth() -> None:
    generator = np.random.default_rng(0)
    below = sum(early_stopping_estimate(generator.random(300).tolist(), 0.9) < 0.9 for _ in range(500))  # type: ignore[operator]
    assert below <= 12


def test_latency_summary_of_known_samples() -> None:
    result = summarize_latency([[10.0] * 300, [10.0] * 300], "quick", [10.0] * 120, 31.0)
    assert (result.p50, result.p90, result.mean, result.cv, result.n, result.fps) == (10, 10, 10, 0, 600, 100)
    assert (result.first, result.p99, result.warnings) == (31.0, None, ())


def test_full_mode_uses_early_stopping() -> None:
    samples = np.random.default_rng(0).gamma(50, 1, 1400).tolist()
    quick, full = summarize_latency([samples], "quick"), summarize_latency([samples], "full")
    assert full.p90 > quick.p90 and full.p90_early_stopping and not quick.p90_early_stopping
    assert full.p99 is not None and full.p99 > full.p90 and quick.p99 is None
    assert summarize_latency([samples[:600]], "full").p99 is None


def test_warnings_name_what_is_wrong() -> None:
    noisy = np.random.default_rng(0).normal(100, 10, 100).tolist()
    assert [w.split(":")[0] for w in summarize_latency([noisy], "quick").warnings] == ["unsteady"]
    rising = [[100.0 + 2 * i] * 20 for i in range(6)]
    assert any(w.startswith("rising") for w in summarize_latency(rising, "quick").warnings)
    assert any(w.startswith("short") for w in summarize_latency([[1.0] * 64], "quick").warnings)
    assert any(w.startswith("barely") for w in summarize_latency([[100.0] * 64], "quick", [1.0]).warnings)


@pytest.mark.parametrize("bad", [[], [[]], [[0.0]], [[float("nan")]], [[-1.0, 2.0]]])
def test_samples_must_be_times(bad: list[list[float]]) -> None:
    with pytest.raises(EdgekitError, match="positive"):
        summarize_latency(bad, "quick")


def test_a_trend_is_neither_seen_in_noise_nor_in_constants() -> None:
    generator = np.random.default_rng(0)
    seen = sum(rising_trend(generator.normal(10, 0.5, (8, 5)).tolist()) is not None for _ in range(200))
    assert seen <= 20
    assert rising_trend([[5.0] * 9] * 8) is None
    assert rising_trend([np.linspace(10, 12, 64).tolist()]) == pytest.approx(0.16, abs=0.03)


def test_ratio_interval_is_paired_over_rounds() -> None:
    generator = np.random.default_rng(0)
    clock = generator.uniform(1, 1.3, 10)  # each round has its own clock, shared by both artifacts
    first = [(5 * c * (1 + 0.005 * generator.standard_normal(20))).tolist() for c in clock]
    second = [(10 * c * (1 + 0.005 * generator.standard_normal(20))).tolist() for c in clock]
    ratio = bootstrap_ratio(first, second, 500)
    assert ratio.low <= 0.5 <= ratio.high and ratio.high - ratio.low < 0.05
    same = bootstrap_ratio(first, first, 500)
    assert same.value == 1 and same.low <= 1 <= same.high
    with pytest.raises(EdgekitError, match="interleaved"):
        bootstrap_ratio(first, second[:-1])


def test_rows_agree_with_the_metrics() -> None:
    documents = run()
    rows = build_document(documents, context())["rows"]
    floating = next(row for row in rows if row["target"] == "pytorch")
    for document in documents:
        if "failed" in document:
            continue
        counts = add_counts([counted(frame) for frame in document["accuracy"]["counts"]])
        expected = score(counts, CLASSES).to_json()
        mine = [r for r in rows if (r["target"], r["precision"]) == (document["target"], document["precision"])]
        assert len(mine) == 1 + len(document["device_pages"])
        for row in mine:
            assert {key: row[key] for key in expected} == expected
            if document["target"] != "pytorch":
                assert row["miou_drop"] == pytest.approx(floating["miou"] - row["miou"])
                assert row["miou_drop_ci"][0] <= row["miou_drop"] <= row["miou_drop_ci"][1]


def test_every_artifact_has_a_row_for_each_of_its_devices() -> None:
    documents = run()
    rows = build_document(documents, context())["rows"]
    expected = {
        (d["target"], d["precision"], device) for d in documents for device in ["local", *d.get("device_pages", [])]
    }
    assert {(row["target"], row["precision"], row["device"]) for row in rows} == expected
    assert len(rows) == len(expected)
    for row in rows:
        assert tuple(row) == ROW_KEYS
        if row["device"] != "local":
            assert row["provenance"]["miou"]["kind"] == "reference" and row["provenance"]["miou"]["by"]
            assert "not on the device" in row["provenance"]["miou"]["why"]
            assert row["latency_ms"] is None and row["provenance"]["latency"]["kind"] == "not measured"
    android = [row for row in rows if row["device"] == "android"]
    assert all("edgekit bench" in row["provenance"]["latency"]["why"] for row in android)
    apple = next(row for row in rows if row["device"] == "apple")
    assert apple["provenance"]["latency"]["why"] == UNTIMED["provenance"]["why"]
    assert "MIL executor" in apple["provenance"]["miou"]["by"]


def test_a_measured_device_has_its_own_row_and_page() -> None:
    documents = run()
    phone = copy.deepcopy(next(d for d in documents if d["target"] == "tflite"))
    phone |= {"device": "android", "device_pages": []}
    made = pages([*documents, phone], context())
    rows = json.loads(text(made, "report.json"))["rows"]
    mine = [r for r in rows if (r["target"], r["precision"], r["device"]) == ("tflite", "fp16", "android")]
    assert len(mine) == 1 and mine[0]["latency_ms"] is not None
    assert "no device connected" not in text(made, "android.md").splitlines()[0]
    assert "figures/android-scatter.svg" in made


def test_accuracy_that_was_not_evaluated_is_null_with_the_way_to_get_it() -> None:
    documents = run()
    documents[1]["accuracy"] = None
    made = pages(documents, context())
    row = next(r for r in json.loads(text(made, "report.json"))["rows"] if r["target"] == "openvino")
    assert row["miou"] is None and row["miou_drop"] is None and row["per_class_iou"] is None
    assert row["provenance"]["miou"]["kind"] == "not measured"
    assert "edgekit evaluate runs/spssn-streets/artifacts/openvino-fp32" in row["provenance"]["miou"]["why"]


def test_other_frames_are_refused() -> None:
    documents = run()
    documents[2]["accuracy"]["frames"][0] = "test-9999"
    with pytest.raises(EdgekitError, match=r"openvino-int8.*other frames"):
        analyse(documents, context())


def test_classes_absent_from_the_truth() -> None:
    maps = truths(4, 6, classes=3)
    floats = predictions(maps, 0.1, 1, classes=3)
    documents = [
        measurement("pytorch", "PyTorch", "fp32", [], latency=UNTIMED, accuracy=accuracy(maps, floats, floats, "T")),
        measurement(
            "openvino", "OpenVINO", "int8", [], latency=latency(9.0, 1, "OpenVINO"),
            accuracy=accuracy(maps, predictions(maps, 0.2, 1, classes=3), floats, "OpenVINO"),
        ),
    ]  # fmt: skip
    made = pages(documents, context())
    rows = json.loads(text(made, "report.json"))["rows"]
    assert rows[1]["per_class_iou"][3:] == [None, None] and rows[1]["miou_drop"] > 0
    drops = next(t for t in tables(text(made, "local.md")) if t[0][0] == "Class")
    assert [row[1:] for row in drops if row[0] == "person"] == [["absent", "absent"]]
    confusion = sum(counted(c).confusion for c in documents[1]["accuracy"]["counts"])
    assert rows[1]["miou"] == pytest.approx(float(np.nanmean(class_iou(np.asarray(confusion)))))


def test_no_labelled_pixel_at_all() -> None:
    maps = [np.full((8, 8), 255, np.uint8)] * 2
    labels = [np.zeros((8, 8), np.uint8)] * 2
    documents = [
        measurement("pytorch", "PyTorch", "fp32", [], latency=UNTIMED, accuracy=accuracy(maps, labels, labels, "T")),
        measurement("openvino", "OpenVINO", "fp32", [], accuracy=accuracy(maps, labels, labels, "OV"), latency=UNTIMED),
    ]
    made = pages(documents, context(strips=()))
    assert json.loads(text(made, "report.json"))["rows"][1]["miou"] is None
    assert "no pixel of these frames is labelled" in text(made, "local.md")


BREAKS = {
    "schema": lambda d: d.update(schema=2),
    "rows": lambda d: d.update(rows={}),
    r"rows\[1\] lacks fps": lambda d: d["rows"][1].pop("fps"),
    r"rows\[1\] has the unknown key": lambda d: d["rows"][1].update(speed=3),
    r"rows\[1\].miou ": lambda d: d["rows"][1].update(miou=69.4),
    r"rows\[1\].size": lambda d: d["rows"][1].update(size="512x1024"),
    r"rows\[1\].latency_ms.p50": lambda d: d["rows"][1]["latency_ms"].update(p50=float("nan")),
    r"rows\[1\].latency_ms lacks n": lambda d: d["rows"][1]["latency_ms"].pop("n"),
    r"rows\[1\].latency_scope": lambda d: d["rows"][1].update(latency_scope=None),
    r"rows\[1\].miou_drop_ci": lambda d: d["rows"][1].update(miou_drop_ci=[0.2, 0.1]),
    r"rows\[1\].precision": lambda d: d["rows"][1].update(precision="int4"),
    r"rows\[1\].provenance.miou.kind": lambda d: d["rows"][1]["provenance"]["miou"].update(kind="guessed"),
    r"rows\[1\].provenance.miou.by": lambda d: d["rows"][1]["provenance"]["miou"].update(by=""),
    r"rows\[0\].provenance.latency.why": lambda d: d["rows"][0]["provenance"]["latency"].update(why=" "),
    r"rows\[1\].provenance.latency says": lambda d: d["rows"][1]["provenance"]["latency"].update(kind="not measured"),
    r"rows\[2\] must be": lambda d: d["rows"].__setitem__(2, None),
}


@pytest.fixture(scope="module")
def report(files: dict[str, bytes | str]) -> Any:
    return json.loads(text(files, "report.json"))


def test_the_report_validates(report: Any) -> None:
    validate(report)


@pytest.mark.parametrize("place", BREAKS)
def test_a_broken_report_is_refused_by_place(place: str, report: Any) -> None:
    broken = copy.deepcopy(report)
    BREAKS[place](broken)
    with pytest.raises(EdgekitError, match=place):
        validate(broken)


@pytest.mark.parametrize("value", [None, [], 3, "report", {}])
def test_what_is_no_report_is_refused(value: Any) -> None:
    with pytest.raises(EdgekitError):
        validate(value)


def test_files_of_a_report(files: dict[str, bytes | str]) -> None:
    assert set(files) == {
        "index.md", "local.md", "apple.md", "jetson.md", "android.md", "report.json", "figures/local-scatter.svg",
        "figures/local-drops.svg", "figures/strip-1-test-0000.png",
    }  # fmt: skip
    for name in files:
        if name.endswith(".md"):
            for link in re.findall(r"\]\(([^)]+)\)", text(files, name)):
                assert link in files


def test_the_checkpoint_says_what_it_scores_and_how_it_was_trained(files: dict[str, bytes | str]) -> None:
    page = text(files, "index.md")
    assert "| 69.40 % on 64 frames of streets val " in page
    assert "edgekit train --epochs 1\nedgekit train --epochs 2\n" in page, "the first training first"


def test_trainings_of_start_and_teacher_come_before_what_they_led_to() -> None:
    """In their order, and a teacher that taught twice once; one that says nothing of itself is passed over."""
    teacher = {"name": "teacher", "recipe": {"command": "train teacher"}}
    first = {"command": "train first", "teacher_checkpoint": teacher, "initial_checkpoint": {"name": "x", "recipe": {}}}
    second = {
        "command": "train second",
        "teacher_checkpoint": teacher,
        "initial_checkpoint": {"name": "a", "recipe": first},
    }
    assert trainings(second) == ["train teacher", "train first", "train second"]
    assert trainings({}) == []


def test_no_cell_is_blank_and_every_row_is_complete(files: dict[str, bytes | str]) -> None:
    for name in files:
        if name.endswith(".md"):
            found = tables(text(files, name))
            assert found
            for rows in found:
                assert len(rows) > 1
                assert all(len(row) == len(rows[0]) and all(row) for row in rows)
            assert not re.search(r"\bnan\b|\bNone\b|\binf\b", text(files, name))


def test_every_not_measured_cell_carries_a_reason(files: dict[str, bytes | str]) -> None:
    seen = 0
    for name in files:
        if not name.endswith(".md"):
            continue
        page = text(files, name)
        for rows in tables(page):
            if rows[0][0] not in ("Target", "Artifact"):
                continue
            for cell in (cell for row in rows[1:] for cell in row if cell.startswith(("not measured", "failed"))):
                number = re.search(r"\[(\d+)\]$", cell)
                assert number and re.search(rf"^- \[{number[1]}\] \S+", page, re.MULTILINE), cell
                seen += 1
    assert seen > 10


def test_pages_without_a_device_say_so_and_give_the_command(files: dict[str, bytes | str]) -> None:
    for name, artifact in (("apple", "coreml-int8"), ("jetson", "tensorrt-fp16"), ("android", "tflite-int8")):
        page = text(files, f"{name}.md")
        assert page.splitlines()[0] == f"# {name}: no device connected"
        assert f"edgekit bench runs/spssn-streets/artifacts/{artifact}-{HEIGHT}x{WIDTH}" in page
        assert "reference by" in page
    empty = pages([], context(strips=()))
    assert "no device connected" in text(empty, "apple.md") and "not measured" in text(empty, "apple.md")
    assert "edgekit targets" in text(empty, "apple.md")


def test_a_page_for_every_further_device() -> None:
    documents = run()
    documents[1]["device_pages"] = ["Raspberry Pi 5"]
    made = pages(documents, context())
    assert "no device connected" in text(made, "Raspberry-Pi-5.md")
    assert "(Raspberry-Pi-5.md)" in text(made, "index.md")


def test_a_failed_artifact_has_its_row_everywhere(files: dict[str, bytes | str]) -> None:
    for page in ("local.md", "index.md"):
        row = next(row for rows in tables(text(files, page)) for row in rows if row[0].startswith("ncnn"))
        assert any(cell.startswith("failed") for cell in row)
        assert "does not know the operator PixelShuffle" in text(files, page)


@pytest.mark.parametrize("name", ["a | b", "`x` *y*_z_ [u](v) <br>", "back\\slash|", "two\nlines", "$x$ & &amp;"])
def test_signs_in_names_do_not_break_tables(name: str, files: dict[str, bytes | str]) -> None:
    documents = run(title=name)
    documents[2]["kept_float"] = [name]
    made = pages(documents, context(command=f"edgekit run ```{name}"))
    for page in ("local.md", "index.md", "android.md"):
        plain = tables(text(files, page))
        assert [[len(row) for row in t] for t in tables(text(made, page))] == [[len(row) for row in t] for t in plain]
    cells = [cell for rows in tables(text(made, "local.md")) for row in rows for cell in row]
    assert escape(name) in cells


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_escaped_text_stays_in_its_cell(name: str) -> None:
    line = table(["A", "B"], [[f"x{escape(name)}", "1"]])[2]
    assert "\n" not in line
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3


HOSTILE = st.text(max_size=30) | st.sampled_from(
    [
        "<script>alert(1)</script>", "<!-- ", "![x](http://e/x.png)", "[l](javascript:1)", "| a | b |", "a\n\n# heading\n", "`c`",
        "\x1b[31mred\x07", "&lt;b&gt;", "<http://e>", "\\", "```", "a\r\n---\r\n", "\u2028> quote", "../../etc/passwd", "$x$",
    ]
)  # fmt: skip


def test_what_a_phone_s_tool_did_not_do_is_said() -> None:
    """A measurement cut short has a warning, a spread that was not printed no number."""
    document = phone(lambda: "said")
    document["latency"]["statistics"] |= {"mean": 5000.0, "p50": 4990.0, "cv": None, "n": 24}
    made = pages([*run()[:1], document], context())
    (row,) = (row for row in json.loads(text(made, "report.json"))["rows"] if row["device"] == "pixel")
    assert row["latency_ms"]["cv"] is None
    page = text(made, "pixel.md")
    assert "short: 24 queries in 120.0 s, quick mode asks for 64" in page
    assert "not printed" in page


def test_a_gpu_that_slowed_down_is_said() -> None:
    clocks = {"median": 800, "min": 510, "max": 918}
    document = latency(20.0, 1, "TensorRT")
    document["trtexec"] = {"tegrastats": {"under_load": True, "gpu_clock_mhz": clocks}}
    warnings = condition_warnings(read(Latency, document, "latency"))
    assert warnings == ["throttled: the GPU's clock was between 510 and 918 MHz under load"]
    document["trtexec"]["tegrastats"]["under_load"] = False
    assert condition_warnings(read(Latency, document, "latency")) == []


def test_artifacts_of_two_checkpoints_are_not_mixed() -> None:
    """Neither in a run that was stopped while another checkpoint's documents were still there, nor in a ratio."""
    documents = run()
    for document in documents:
        document["checkpoint"] = {"name": "spssn-streets", "sha256": "ab" * 32}
    page = text(render(documents, context()), "local.md")
    assert re.search(r"int8 / [^|]* fp", page)
    for document in documents:
        if document["precision"] == "int8":
            document["checkpoint"] = {"name": "spssn-streets", "sha256": "cd" * 32}
    with pytest.raises(EdgekitError, match="another checkpoint than the run was"):
        render(documents, context())
    loose = replace(context(), checkpoint={"name": "spssn-streets"})
    assert not re.search(r"int8 / [^|]* fp", text(render(documents, loose), "local.md"))


@settings(max_examples=25, deadline=None)  # half a second each
@given(st.data())
def test_what_a_device_says_is_text_on_its_page(data: st.DataObject) -> None:
    """A reader of markdown that is not ours sees the same structure, whatever a device says of itself."""
    parser = MarkdownIt("commonmark").enable("table")

    def structure(page: str) -> list[tuple[str, str]]:
        found = []
        for token in parser.parse(page):
            for part in (token, *(token.children or ())):
                if part.type not in ("text", "softbreak", "text_special") and part.type != "inline":
                    found.append((part.type, str(part.attrs.get("href") or part.attrs.get("src") or "")))
        return found

    plain = [*run()[:1], phone(lambda: "said")]
    expected = structure(text(pages(plain, context()), "pixel.md"))
    made = pages([*run()[:1], phone(lambda: data.draw(HOSTILE.map(lambda one: f"s{one}")))], context())
    page = text(made, "pixel.md")
    assert structure(page) == expected
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)
    validate(json.loads(text(made, "report.json")))


def test_a_phones_rounds_are_told_and_compared() -> None:
    floats = phone(lambda: "said") | {"precision": "fp16", "artifact": "tflite-fp16"}
    floats["latency"] = floats["latency"] | {"rounds": [{"count": 60, "mean_ms": 16.0, "median_ms": 15.8}] * 4}
    page = text(pages([*run()[:1], phone(lambda: "said"), floats], context()), "pixel.md")
    ratio = next(rows for rows in tables(page) if "Reading" in rows[0])
    assert ratio[1][0] == "TFLite int8 / TFLite fp16"
    assert ratio[1][3:] == ["0.500 [0.500, 0.500]", "2.00 times as fast"]
    told = next(rows for rows in tables(page) if "Samples a round" in rows[0])
    assert [row[4:6] for row in told[1:]] == [["4", "64"], ["4", "60"]] and "interleaved rounds" in page


def test_tables_refuse_blank_cells() -> None:
    with pytest.raises(EdgekitError, match="blank"):
        table(["A", "B"], [["x", " "]])


def test_scopes_never_share_a_table_or_a_ratio() -> None:
    documents = run()
    documents[2]["latency"]["scope"] = "graph"  # OpenVINO int8, next to its frame-to-labels fp32
    page = text(pages(documents, context()), "local.md")
    mains = [rows for rows in tables(page) if "p50, ms" in rows[0]]
    assert len(mains) == 2
    assert [row[:2] for row in mains[1][1:]] == [["OpenVINO", "int8"]]
    ratios = next(rows for rows in tables(page) if "Reading" in rows[0])
    assert [row[0].split(" int8")[0] for row in ratios[1:] if "int8 /" in row[0]] == ["ONNX Runtime", "TFLite"]
    assert not any(row[0].startswith("OpenVINO int8") for row in ratios)


def test_ratios_stand_where_a_target_was_interleaved(files: dict[str, bytes | str]) -> None:
    ratios = next(rows for rows in tables(text(files, "local.md")) if "Reading" in rows[0])
    assert [row[0].split(" int8")[0] for row in ratios[1:4]] == ["OpenVINO", "ONNX Runtime", "TFLite"]
    assert ratios[1][3].startswith("0.44") and "times as fast" in ratios[1][4]


def slow_process(latency: dict[str, Any], factor: float) -> dict[str, Any]:
    """The same samples from four processes, of which the third was slow in both its rounds."""
    rounds = [
        [sample * (factor if index in (4, 5) else 1.0) for sample in one]
        for index, one in enumerate(latency["rounds_ms"])
    ]
    return {**latency, "rounds_ms": rounds, "process_rounds": [2, 2, 2, 2]}


def test_a_process_that_began_badly_decides_nothing() -> None:
    """All rounds of one process share its fate: eight rounds in four processes are four that differ."""
    documents = run()
    timed = [document for document in documents if "rounds_ms" in document.get("latency", {})]
    best = min(timed, key=lambda document: np.median(np.concatenate(document["latency"]["rounds_ms"])))
    others = [document for document in timed if document is not best]
    best["latency"] = slow_process(best["latency"], 1.0)
    for other in others:
        other["latency"] = slow_process(
            {**best["latency"], "rounds_ms": [[1.001 * x for x in one] for one in best["latency"]["rounds_ms"]]}, 1.3
        )
    page = text(pages(documents, context()), "local.md")
    ratios = next(rows for rows in tables(page) if "Reading" in rows[0])
    assert {row[4] for row in ratios[1:]} == {"undecided"}
    assert "Undecided beside" in page and "4 fresh processes" in page
    for other in others:
        other["latency"].pop("process_rounds")
        other["latency"]["rounds_ms"] = [[1.2 * x for x in one] for one in best["latency"]["rounds_ms"]]
    best["latency"].pop("process_rounds")
    page = text(pages(documents, context()), "local.md")
    assert "Undecided beside" not in page and "a fresh process" in page


def test_a_busy_machine_is_told_beside_the_number() -> None:
    documents = run()
    for document in documents:
        if "rounds_ms" in document.get("latency", {}):
            document["latency"]["conditions"] = [
                {"clock_khz": {}, "temperature_c": {}, "cores_taken": share} for share in (0.0, 1.4)
            ]
    assert "busy machine: other programs took up to 1.4 of the cores" in text(pages(documents, context()), "local.md")


def test_a_calibration_says_how_its_ranges_were_chosen(files: dict[str, bytes | str]) -> None:
    text = (
        "32 frames of streets train, by class coverage among 128 of the split; symmetric ranges by least squares, channels "
        "equalized (full), expected to cost 0.78 points of mIoU (simulated on 12 of them); 0.81 and 0.85 points with ranges "
        "from either half of the frames alone; too few frames for percentile 99.999; resized from 360x480 (30), 96x128 (2)"
    )
    assert text in str(files["local.md"])


def test_warnings_stand_beside_the_number() -> None:
    documents = run()
    documents[1]["latency"] = latency(21.0, 0, "OpenVINO 1.0", noise=0.1)
    page = text(pages(documents, context()), "local.md")
    main = next(rows for rows in tables(page) if "p50, ms" in rows[0])
    row = next(row for row in main if row[:2] == ["OpenVINO", "fp32"])
    number = re.search(r"\[(\d+)\]$", row[main[0].index("p50, ms")])
    assert number and re.search(rf"^- \[{number[1]}\] warning, unsteady", page, re.MULTILINE)


@pytest.mark.parametrize("seen", [True, False, None])
def test_frames_that_say_little_of_others_are_told(seen: bool | None) -> None:
    """Drawn ones, and those that the network was trained on, on every page that has their accuracy."""
    dataset = {"name": "streets", "split": "train", "frames": 8, "trained_on": seen}
    files = pages(run(), replace(context(), dataset=dataset))
    for name in ("index.md", "local.md"):
        page = text(files, name)
        assert ("The network was trained on these frames" in page) is (seen is True)
        assert "drawn by edgekit" in page
    files = pages(run(), replace(context(), dataset={**dataset, "name": "camvid"}))
    assert "drawn by edgekit" not in text(files, "index.md")


def test_what_was_not_measured_was_done_by_nobody() -> None:
    documents = run()
    documents[1]["latency"] = {"provenance": {"kind": "not measured", "by": "a clock", "why": "none here"}}
    assert "not measured by" not in "".join(
        page for page in pages(documents, context()).values() if isinstance(page, str)
    )


def test_commands_on_pages_quote_paths() -> None:
    documents = run()
    documents[1]["accuracy"] = None
    page = text(pages(documents, replace(context(), run_folder="my runs/é")), "local.md")
    assert "edgekit evaluate 'my runs/é/artifacts/" in page


def test_verdict_names_the_fastest_within_a_point() -> None:
    documents = run()
    page = text(pages(documents, context()), "index.md")
    good = [
        row for row in build_document(documents, context())["rows"]
        if row["device"] == "local" and row["latency_ms"] and row["miou_drop_ci"][1] <= 0.01
    ]  # fmt: skip
    best = min(good, key=lambda row: row["latency_ms"]["p50"])
    assert f"p50 {milliseconds(best['latency_ms']['p50'])} ms" in page.splitlines()[2]


@pytest.mark.parametrize(
    ("value", "written"),
    [(12.345, "12.3"), (123.4, "123"), (1234.0, "1230"), (0.01234, "0.0123"), (9.999, "10.0"), (99.96, "100")],
)
def test_times_have_three_significant_digits(value: float, written: str) -> None:
    assert milliseconds(value) == written


def test_points_are_signed_and_never_minus_zero() -> None:
    assert [points(v) for v in (0.0123, -0.0045, -0.00001, 0.0)] == ["+1.23", "-0.45", "+0.00", "+0.00"]
    assert percent(float("nan")) == "absent" and percent(0.69415) == "69.42" and megabytes(None) == "not recorded"


def test_a_report_is_the_same_bytes_twice(files: dict[str, bytes | str]) -> None:
    assert render(run(), context()) == files


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.01, 5000), st.floats(0, 1, allow_subnormal=False), st.booleans()), min_size=1, max_size=10
    )
)
def test_scatter_draws_any_points(values: list[tuple[float, float, bool]]) -> None:
    drawn = [
        Point(f"target {i} $x$", f"t{i % 3}", "int8", p50, miou, (miou - 0.01, miou + 0.01) if bar else None)
        for i, (p50, miou, bar) in enumerate(values)
    ]
    colours = target_colours([point.target for point in drawn])
    assert scatter(drawn, 0.7, colours).startswith(b"<?xml")


def test_class_drops_with_absent_and_equal_classes() -> None:
    for drops in (np.zeros(5), np.asarray([0.1, np.nan, -0.2, 0, np.nan]), np.full(5, np.nan)):
        chart = class_drops([ClassDrops("a", "a", "int8", drops)], CLASSES.names, {"a": "#000000"}, "png")
        assert Image.open(io.BytesIO(chart)).width > 600


def test_strip_is_a_picture(files: dict[str, bytes | str]) -> None:
    content = files["figures/strip-1-test-0000.png"]
    assert isinstance(content, bytes)
    picture = Image.open(io.BytesIO(content))
    assert picture.format == "PNG" and picture.width > 3 * WIDTH


def test_summary_fits_the_terminal_and_leaves_nothing_out(report: Any) -> None:
    lines = summary(report["rows"]).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) == 3 + len(report["rows"])
    assert any("ncnn" in line and "not measured" in line for line in lines)
    long = copy.deepcopy(report["rows"])
    long[1].update(target="a-target-with-a-very-long-name" * 3, size=[256, 512])
    assert max(map(len, summary(long).splitlines())) <= 100


def test_a_target_may_note_how_it_is_measured_on_a_device() -> None:
    documents = run()
    for document in documents:
        if document["target"] == "tflite":
            document["notes"] = {"measure on android": "push {artifact}/model.tflite"}
    pages = render(documents, context())
    assert "push runs/spssn-streets/artifacts/tflite-int8" in text(pages, "android.md")
    assert "push runs/spssn-streets/artifacts/tflite-int8" in text(pages, "local.md")
    assert not [
        name for name, page in pages.items() if isinstance(page, str) and name.endswith(".md") and "{artifact}" in page
    ]
