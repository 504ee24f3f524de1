"""All pages of a report: index.md, a page per device, report.json and the figures."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.core.contract import LATENCY_CONTRACTS
from edgekit.core.errors import EdgekitError
from edgekit.core.measurement import HEADLINE_SCOPE, LOCAL, CalibrationSummary, Measurement, Row
from edgekit.core.values import filled_note
from reports import figures
from reports.devices import against_local, sustained_chart, sustained_section, tensorrt_section, units_section
from reports.document import (
    NO_DEVICE,
    SEEN,
    ReportContext,
    Result,
    analyse,
    artifact_folder,
    bench_command,
    build,
    trainings,
)
from reports.numbers import megabytes, milliseconds, percent, points
from reports.phones import phone_section
from reports.statistics import bootstrap_ratio
from reports.text import Notes, code, distinct_names, escape, interval, size_of, table

STANDING_PAGES = ("apple", "jetson", "android")
"""Pages that every report has, with or without a device."""

VERDICT_POINTS = 1.0
"""The verdict lines look for the fastest artifact whose drop's interval ends within this many points of mIoU."""

_CONNECT = {
    "apple": 'Add a Mac to `devices.toml` with its name, `kind = "ssh"` and its address; then this measures what is missing:',
    "jetson": 'Add the Jetson to `devices.toml` with its name, `kind = "ssh"` and its address; then this measures what is missing:',
    "android": 'Add the phone to `devices.toml` with its name, `kind = "adb"`, its serial as the address and the path of `benchmark_model`; '
    "then this measures what is missing:",
}
_UNLABELLED = "no pixel of these frames is labelled"
_COMPARED_BY = (
    "edgekit quantize and edgekit run set an artifact beside its checkpoint, edgekit bench has the artifact alone"
)
_OTHER = "Add the device to `devices.toml`; then this measures what is missing:"
_SCOPES = {
    HEADLINE_SCOPE: (
        "Frame to labels",
        (
            "Batch 1, synchronous: from one frame in host memory to its label map in host memory, the runtime's own "
            "input and output forms included."
        ),
    ),
    "graph": ("Bare graph", "One forward pass of the bare model: no frame conversion, no label map."),
}


# Cells ------------------------------------------------------------------------------------------------------------


def _target(result: Result) -> str:
    return result.row.named


def _missing(notes: Notes, why: str) -> str:
    return notes.mark("not measured", why)


def _accuracy_cell(result: Result, notes: Notes) -> str:
    if result.scores is None:
        return _missing(notes, result.accuracy_provenance.why)
    if math.isnan(result.scores.miou):
        return _missing(notes, _UNLABELLED)
    return percent(result.scores.miou)


def _drop_cell(result: Result, notes: Notes) -> str:
    if result.is_float:
        return "does not apply"
    if result.drop is not None:
        return interval(result.drop)
    if result.scores is None:
        return _missing(notes, result.accuracy_provenance.why)
    if math.isnan(result.scores.miou):
        return _missing(notes, _UNLABELLED)
    return _missing(notes, f"float PyTorch was not evaluated on these frames at {size_of(result)}: {_COMPARED_BY}")


def _latency_cells(result: Result, notes: Notes) -> list[str]:
    """p50, p90, FPS and peak memory."""
    latency = result.latency
    if latency is None:
        return [_missing(notes, result.latency_provenance.why)] * 4
    unprinted = "the tool that timed it does not print this percentile"
    p90 = _missing(notes, unprinted) if latency.p90 is None else milliseconds(latency.p90)
    if latency.p90_early_stopping:
        p90 = notes.mark(p90, "MLPerf's early-stopping estimate: with 99 % confidence the p90 is not above it")
    peak = None if result.taken is None else result.taken.peak_rss_bytes
    memory = _missing(notes, "the device did not offer its peak memory") if peak is None else megabytes(peak, 0)
    p50 = notes.mark(milliseconds(latency.p50), *(f"warning, {text}" for text in latency.warnings))
    return [p50, p90, f"{latency.fps:.3g}" if latency.fps < 100 else f"{latency.fps:.0f}", memory]


def _provenance_cell(result: Result, notes: Notes) -> str:
    """How the row's numbers were obtained; who did it is named, a reason is a note."""

    def one(provenance: Any) -> str:
        done = provenance.kind != "not measured" and provenance.by.strip()
        text = f"{provenance.kind} by {escape(provenance.by)}" if done else provenance.kind
        return notes.mark(text, provenance.why) if provenance.why else text

    accuracy, latency = one(result.accuracy_provenance), one(result.latency_provenance)
    return accuracy if accuracy == latency else f"mIoU: {accuracy}; latency: {latency}"


# Sections ---------------------------------------------------------------------------------------------------------


def _main_table(results: Sequence[Result]) -> list[str]:
    notes = Notes()
    rows = []
    for result in results:
        start = [escape(_target(result)), str(result.row.precision), size_of(result)]
        if result.failed is not None:
            why = f"failed, no artifact: {result.failed}"
            rows.append([*start, notes.mark("failed", why), *[_missing(notes, why)] * 6, notes.mark("failed", why)])
            continue
        size = None if result.measured is None else result.measured.model_bytes
        rows.append([
            *start, "does not apply" if result.is_float and size is None else megabytes(size),
            _accuracy_cell(result, notes), _drop_cell(result, notes), *_latency_cells(result, notes),
            _provenance_cell(result, notes),
        ])  # fmt: skip
    header = [
        "Target", "Precision", "Size", "Model, MB", "mIoU, %", "Drop, points [95 %]", "p50, ms", "p90, ms", "FPS",
        "Peak memory, MB", "How obtained",
    ]  # fmt: skip
    return table(header, rows, left=2) + notes.lines()


def _result_sections(results: Sequence[Result]) -> list[str]:
    """The main table, one per latency scope: numbers of two scopes never share a column."""
    scopes = [scope for scope in dict.fromkeys(result.scope for result in results) if scope is not None]
    scopes.sort(key=lambda scope: scope != HEADLINE_SCOPE)
    first = scopes[0] if scopes else HEADLINE_SCOPE
    lines = []
    for scope in scopes or [first]:
        title, meaning = _SCOPES.get(scope, (scope, ""))
        if len(scopes) > 1:
            lines += [f"### {escape(title)}", ""]
        if scopes:
            lines += [f"Latency scope `{scope}`. {meaning}".strip(), ""]
        lines += _main_table([r for r in results if r.scope == scope or (r.scope is None and scope == first)])
    lines += [
        ("Drop is float PyTorch minus the artifact on the same frames, in points of mIoU, with its 95 % paired "
        "bootstrap interval over frames (Student's t below 16 of them). Positive is worse. MB are 10^6 bytes. p50 and p90 are percentiles of the "
        "latency."), "",
    ]  # fmt: skip
    return lines


def _accuracy_section(results: Sequence[Result]) -> list[str]:
    scored = [result for result in results if result.scores is not None]
    if not scored:
        return []
    rows, notes = [], Notes()
    for name, result in zip(distinct_names(scored), scored, strict=True):
        scores = result.scores
        assert scores is not None
        instances = (scores.iiou, scores.iiou_category)
        optional = ["does not apply" if value is None else percent(value) for value in instances]
        alike = percent(result.agreement) if result.agreement is not None else _missing(notes, _COMPARED_BY)
        rows.append([
            escape(name), percent(scores.miou), percent(scores.miou_category), *optional,
            percent(scores.pixel_accuracy), percent(scores.mean_class_accuracy),
            "does not apply" if result.is_float else alike,
        ])  # fmt: skip
    header = [
        "Artifact", "mIoU", "Category mIoU", "iIoU", "Category iIoU", "Pixel accuracy", "Mean class accuracy",
        "Labelled as float PyTorch",
    ]  # fmt: skip
    lines = ["## Accuracy in full", "", "All values in %.", "", *table(header, rows), *notes.lines()]
    if any(result.scores is not None and result.scores.iiou is None for result in scored):
        lines += ["iIoU does not apply where the frames have no labelled instances.", ""]
    return lines


def _class_section(page: Sequence[Result], context: ReportContext) -> list[str]:
    compared = [(result, result.reference) for result in page if result.drop is not None]
    lines: list[str] = []
    sizes = dict.fromkeys(size_of(result) for result, _ in compared)
    for size in sizes:
        group = [result for result, _ in compared if size_of(result) == size]
        floating = next(reference for result, reference in compared if size_of(result) == size)
        assert floating is not None and floating.scores is not None
        base = floating.scores.per_class_iou
        rows = []
        for index, name in enumerate(context.class_names):
            cells = []
            for result in group:
                assert result.scores is not None
                drop = float(base[index] - result.scores.per_class_iou[index])
                cells.append("absent" if math.isnan(drop) else points(drop))
            rows.append([escape(name), percent(float(base[index])), *cells])
        if len(sizes) > 1:
            lines += [f"### {size}", ""]
        lines += table(["Class", "Float IoU, %", *(escape(name) for name in distinct_names(group))], rows)
    if not lines:
        return []
    lead = "Points of IoU that each artifact loses against float PyTorch. Positive is worse."
    if any("absent" in line for line in lines):
        lead += " `absent`: neither the truth nor the prediction has the class in these frames."
    return ["## Drops by class", "", lead, "", *lines]


def _ratio_section(results: Sequence[Result]) -> list[str]:
    """int8 against float of each target, and the fastest against the next, where both ran in the same interleaved rounds."""
    rows = []
    timed = [result for result in results if result.taken is not None]
    pairs = [
        (result, other)
        for result in timed
        for other in timed
        if result.row.precision == "int8" and other.row.precision != "int8" and _is_of_same(result, other)
    ]
    names = dict(zip(map(id, timed), distinct_names(timed), strict=True))
    for size in dict.fromkeys(size_of(result) for result in timed):
        first, second = [*_fastest([result for result in timed if size_of(result) == size])[:2], None, None][:2]
        if first is not None and second is not None and (second, first) not in pairs and (first, second) not in pairs:
            pairs.append((second, first))
    for result, other in pairs:
        if not _interleaved(result, other):
            continue
        ratio = bootstrap_ratio(_parts(result), _parts(other))
        if ratio.high < 1:
            reading = f"{1 / ratio.value:.2f} times as fast"
        elif ratio.low > 1:
            reading = f"slower: {ratio.value:.2f} times the time"
        else:
            reading = "undecided"
        rows.append([
            f"{escape(names[id(result)])} / {escape(names[id(other)])}", size_of(result), str(result.scope),
            f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]", reading,
        ])  # fmt: skip
    if not rows:
        return ["## Latency, one against the other", "", "No two artifacts of this page were interleaved.", ""]
    lead = (
        "p50 of int8 over p50 of the same target in float, and of the second fastest artifact over the fastest, with the 95 % paired interval over "
        "the processes that each was measured in (bootstrap; Student's t of up to 8). Only pairs of the same interleaved rounds, with one scope, "
        "size and thread count, are compared. *Undecided* is a pair whose interval holds 1: another measurement may well turn it round."
    )
    header = ["Pair", "Size", "Scope", "Ratio [95 %]", "Reading"]
    return ["## Latency, one against the other", "", lead, "", *table(header, rows)]


def _fastest(timed: Iterable[Result]) -> list[Result]:
    """Timed results, the fastest first."""
    return sorted(timed, key=lambda result: result.latency.p50 if result.latency else math.inf)


def _is_of_same(first: Result, second: Result) -> bool:
    """Whether two artifacts are of one target and network, and do the same."""
    one, two = first.measured, second.measured
    alike = ("target", "checkpoint", "size", "output", "output_stride", "device")
    return one is not None and two is not None and all(getattr(one, key) == getattr(two, key) for key in alike)


def _interleaved(first: Result, second: Result) -> bool:
    """Whether a ratio of two measured artifacts has a meaning."""
    one, two = first.measured, second.measured
    if one is None or two is None or first.taken is None or second.taken is None:
        return False
    return (
        one.checkpoint == two.checkpoint
        and one.size == two.size
        and one.device == two.device
        and first.scope == second.scope
        and first.taken.mode == second.taken.mode
        and len(_parts(first)) == len(_parts(second)) >= 2
        and first.taken.settings.get("threads") == second.taken.settings.get("threads")
    )


def _parts(result: Result) -> Sequence[Sequence[float]]:
    """Raw samples by process or round, or each round's median where a tool keeps its samples; none where it has neither."""
    if result.taken is None:
        return ()
    printed = [one.median_ms for one in result.taken.rounds]
    medians = [[median] for median in printed if median is not None]
    return result.taken.processes_ms or (medians if len(medians) == len(printed) else ())


def _processes(timed: Sequence[Result]) -> str:
    """How many processes each artifact was measured in, in words."""
    counts = sorted({len(result.taken.process_rounds or (1,)) for result in timed if result.taken is not None})
    if counts == [1]:
        return "a fresh process"
    return f"{' to '.join(dict.fromkeys(map(str, (counts[0], counts[-1]))))} fresh processes, one after the other"


def _sizes(result: Result) -> list[int]:
    """Samples of each round."""
    if result.taken is None:
        return []
    return [len(one) for one in result.taken.rounds_ms or ()] or [one.count for one in result.taken.rounds]


def _plain(value: Any) -> str:
    if value is None or value == "":
        return "unavailable"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    return str(value)


def _spread(values: Sequence[int]) -> str:
    return str(values[0]) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _how_section(results: Sequence[Result]) -> list[str]:
    lines = ["## How it was measured", ""]
    timed = [result for result in results if result.taken is not None]
    if not timed:
        return [*lines, "Latency: not measured on this device. The notes above say why and how to get it.", ""]
    for scope in dict.fromkeys(str(result.scope) for result in timed):
        lines.append(f"- Scope `{scope}`: {_SCOPES.get(scope, ('', 'as the runtime defines it.'))[1]}")
    warm = LATENCY_CONTRACTS["quick"]  # the same in every mode
    lines += [
        f"- Each artifact runs in {_processes(timed)}. The process that runs the model reads the clock.",
        f"- Warm-up: at least {warm.warmup_runs} runs and {warm.warmup_seconds:g} s before the first sample.",
    ]
    for mode in dict.fromkeys(result.taken.mode for result in timed if result.taken is not None):
        queries, seconds = LATENCY_CONTRACTS[mode].queries, LATENCY_CONTRACTS[mode].seconds
        text = f"- {mode.capitalize()} mode: at least {queries} queries and {seconds:g} s."
        if mode == "full":
            text += " p90 is MLPerf's early-stopping estimate, p99 needs 662 queries."
        lines.append(text)
    if not all(len(_sizes(result)) > 1 for result in timed):
        lines.append("- Artifacts of one round were not interleaved with others, so they have no ratio.")
    elif len(timed) > 1:
        lines.append("- Artifacts run in interleaved rounds, so that a change of the clock reaches all of them.")
    lines += [
        "- A warning stands beside a number: CV above 2.5 %, a rising latency, too few samples, too short a warm-up.",
        "",
    ]
    rows = []
    for name, result in zip(distinct_names(timed), timed, strict=True):
        latency, raw = result.latency, result.taken
        assert latency is not None and raw is not None
        warmup = raw.warmup_ms
        settings = "; ".join(f"{key.replace('_', ' ')}: {_plain(v)}" for key, v in raw.settings.items())
        rows.append([
            escape(name), escape(settings) or "not recorded",
            escape("; ".join(latency.warnings)) or "none", latency.mode,
            str(len(_sizes(result)) or "not recorded"),
            _spread(_sizes(result)) if _sizes(result) else "not recorded", str(latency.n),
            "not recorded" if warmup is None else f"{len(warmup)} in {sum(warmup) / 1000:.1f} s",
            milliseconds(latency.mean), "not printed" if latency.cv is None else f"{100 * latency.cv:.1f}",
            "needs --full" if latency.mode != "full"
            else "too few queries" if latency.p99 is None else milliseconds(latency.p99),
            *("not recorded" if value is None else milliseconds(value)
              for value in (latency.first, raw.load_ms)),
        ])  # fmt: skip
    header = [
        "Artifact", "Settings", "Warnings", "Mode", "Rounds", "Samples a round", "Samples", "Warm-up", "Mean, ms",
        "CV, %", "p99, ms", "First, ms", "Load, ms",
    ]  # fmt: skip
    return lines + table(header, rows, left=3)


def _environment_section(results: Sequence[Result]) -> list[str]:
    machines: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    packages: dict[str, set[str]] = {}
    temperatures: dict[str, list[str]] = {}
    for name, result in zip(distinct_names(results), results, strict=True):
        environment = {} if result.measured is None else result.measured.environment
        if not environment:
            continue
        rest = {key: value for key, value in environment.items() if key not in ("packages", "temperature")}
        identity = json.dumps(rest, sort_keys=True, default=str)
        machines.setdefault(identity, (environment, []))[1].append(name)
        temperatures.setdefault(identity, []).append(_plain(environment.get("temperature")))
        for package, version in (environment.get("packages") or {}).items():
            packages.setdefault(str(package), set()).add(_plain(version))
    lines = ["## Environment", ""]
    if not machines:
        return [*lines, "Not recorded.", ""]
    for identity, (environment, names) in machines.items():
        if len(machines) > 1:
            lines += [f"For {escape(', '.join(names))}:", ""]
        rows = []
        for key, value in environment.items():
            if key == "packages":
                continue
            known = {"cpu": "CPU", "os": "OS", "memory_bytes": "Memory, GB"}
            label = known.get(key, key.replace("_", " ").capitalize())
            if key == "temperature":  # it differs between artifacts of one machine
                value = list(dict.fromkeys(temperatures[identity]))
            text = f"{value / 1e9:.1f}" if key == "memory_bytes" and isinstance(value, (int, float)) else _plain(value)
            rows.append([escape(label), escape(text)])
        lines += table(["Machine", "Value"], rows, left=2)
    if packages:
        rows = [[escape(name), escape(", ".join(sorted(packages[name])))] for name in sorted(packages)]
        lines += table(["Package", "Version"], rows, left=2)
    return lines


def _calibration(calibration: CalibrationSummary) -> str:
    text = f"{calibration.frames} frames of {calibration.dataset} {calibration.split}"
    if calibration.chosen:
        text += f", {calibration.chosen}"
    estimator = calibration.estimator
    if estimator is None:
        return text
    drop = (calibration.expected_drop or {}).get(estimator)
    equalization = calibration.equalization or "none"
    equalized = "" if equalization == "none" else f", channels equalized ({equalization})"
    correction = calibration.bias_correction
    if correction is not None and correction.taken:
        drop, equalized = correction.expected_drop, f"{equalized}, biases corrected"
    cost = "" if drop is None else f", expected to cost {100 * drop:.2f} points of mIoU"
    text += (
        f"; {calibration.scheme} ranges by {estimator}{equalized}{cost} "
        f"(simulated on {calibration.simulated_frames} of them)"
    )
    if calibration.expected_drop_of_halves:
        costs = " and ".join(f"{100 * half:.2f}" for half in calibration.expected_drop_of_halves)
        text += f"; {costs} points with ranges from either half of the frames alone"
    if calibration.left_out:
        text += f"; too few frames for {' and '.join(calibration.left_out)}"
    if len(sizes := calibration.frame_sizes or {}) > 1:
        text += f"; resized from {', '.join(f'{size} ({count})' for size, count in sizes.items())}"
    return text


def _artifact_section(results: Sequence[Result], context: ReportContext) -> list[str]:
    rows, commands = [], []
    artifacts = [result for result in results if not result.is_float]
    for name, result in zip(distinct_names(artifacts), artifacts, strict=True):
        row = result.measured
        if row is None:
            continue
        frames = "not recorded" if row.precision == "int8" else "does not apply"
        if row.calibration is not None:
            frames = _calibration(row.calibration)
        output = f"{row.output}, stride {row.output_stride or 1}"
        rows.append([escape(name), escape(output), escape(frames), escape(", ".join(row.kept_float) or "none")])
        for key, text in row.notes.items():
            note = filled_note(text, artifact_folder(row, context))
            commands += [f"{escape(name)}, {escape(key)}:", "", code(note), ""]
    if not rows:
        return []
    header = [
        "Artifact",
        "Output",
        "Calibration",
        "In higher precision: layers, and operations of these kinds, some or all",
    ]
    return ["## Artifacts", "", *table(header, rows, left=4), *commands]


# Figures ----------------------------------------------------------------------------------------------------------


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unnamed"


def _page_scope(page: Sequence[Result]) -> str:
    """What the page's latencies are compared by: frame to labels, unless the device's own tool times something else."""
    scopes = {result.scope for result in page} - {None, HEADLINE_SCOPE}
    only = len(scopes) == 1 and all(result.scope != HEADLINE_SCOPE for result in page)
    return str(scopes.pop()) if only else HEADLINE_SCOPE


def _scatter(page: Sequence[Result], everything: Sequence[Result], form: str = "svg") -> bytes | None:
    scope = _page_scope(page)
    chosen = [r for r in page if r.scope == scope and r.scores is not None and not math.isnan(r.scores.miou)]
    if not chosen:
        return None
    sizes = {size_of(result) for result in chosen}
    references = [result if result.is_float else result.reference for result in chosen]
    # One line can only stand for one size.
    reference = references[0] if len(sizes) == 1 else None
    drawn = []
    for name, result, floating in zip(distinct_names(chosen), chosen, references, strict=True):
        assert result.latency is not None and result.scores is not None
        interval = None
        if result.drop is not None and floating is not None and floating.scores is not None:
            base = floating.scores.miou
            interval = (base - result.drop.high, base - result.drop.low)
        row = result.row
        drawn.append(figures.Point(name, row.target, row.precision, result.latency.p50, result.scores.miou, interval))
    miou = None if reference is None or reference.scores is None else reference.scores.miou
    return figures.scatter(drawn, miou, _colours(everything), form)


def _colours(results: Sequence[Result]) -> dict[str, str]:
    return figures.target_colours([result.row.target for result in results if not result.is_float]) | {
        "pytorch": "#1f2937"
    }


def _class_chart(
    page: Sequence[Result], everything: Sequence[Result], context: ReportContext, form: str = "svg"
) -> bytes | None:
    compared = [result for result in page if result.drop is not None]
    if not compared:
        return None
    artifacts = []
    for name, result in zip(distinct_names(compared), compared, strict=True):
        floating = result.reference
        assert floating is not None and floating.scores is not None and result.scores is not None
        drops = np.asarray(floating.scores.per_class_iou - result.scores.per_class_iou, np.float64)
        artifacts.append(figures.ClassDrops(name, result.row.target, result.row.precision, drops))
    return figures.class_drops(artifacts, context.class_names, _colours(everything), form)


def _reference_title(predictions: Mapping[str, Any]) -> str | None:
    """The key of float PyTorch among a strip's predictions."""
    return next((title for title in predictions if title.lower().startswith(("pytorch", "float pytorch"))), None)


# Pages ------------------------------------------------------------------------------------------------------------


def _verdicts(results: Sequence[Result], device: str) -> list[str]:
    """What is not to be shipped, then what is."""
    artifacts = [result for result in results if not result.is_float and result.failed is None]
    names = dict(zip(map(id, artifacts), distinct_names(artifacts), strict=True))
    broken = [
        f"**{escape(names[id(result)])} has collapsed**: {escape(result.measured.collapsed)}."
        for result in artifacts
        if result.measured is not None and result.measured.collapsed is not None
    ]
    sound = [result for result in artifacts if result.measured is None or result.measured.collapsed is None]
    if broken and not sound:
        return [*broken, f"No artifact for {escape(device)} may be shipped."]
    return [*broken, _verdict(sound, names, device, _page_scope(results))]


def _verdict(artifacts: Sequence[Result], names: Mapping[int, str], device: str, scope: str) -> str:
    """The artifact to ship, in one or two sentences."""
    good = [r for r in artifacts if r.drop is not None and round(100 * r.drop.high, 9) <= VERDICT_POINTS]
    timed = [result for result in good if result.scope == scope and result.latency is not None]
    where = f"on {escape(device)}"

    def describe(result: Result) -> str:
        assert result.drop is not None
        return f"**{escape(names[id(result)])}**, drop {interval(result.drop)} points"

    if timed:
        best, *others = _fastest(timed)
        assert best.latency is not None
        text = f"Fastest {where} within {VERDICT_POINTS:g} point of float: {describe(best)}, "
        of = "" if scope == HEADLINE_SCOPE else f" of `{scope}`"
        text += f"p50{of} {milliseconds(best.latency.p50)} ms ({best.latency_provenance.kind}), mIoU "
        text += f"{best.accuracy_provenance.kind}."
        for other in others[:1]:
            ratio = bootstrap_ratio(_parts(other), _parts(best)) if _interleaved(best, other) else None
            if ratio is not None and ratio.low <= 1:
                text += (
                    f" Undecided beside {describe(other)}, which takes {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] times "
                    "as long: either may be the faster one next time."
                )
        if best.latency.warnings:
            text += f" Warning, {escape('; '.join(best.latency.warnings))}."
        return text
    if any(result.scope == scope for result in artifacts):
        return f"No artifact timed {where} is within {VERDICT_POINTS:g} point of float (upper end of the interval)."
    if good:
        sizes = {id(result): result.measured.model_bytes if result.measured else None for result in good}
        best = min(good, key=lambda result: (sizes[id(result)] or math.inf, names[id(result)]))
        # What was not timed on this machine does not run on it, or was made for others.
        aim = "Smallest, for a device that runs it," if device == LOCAL else f"Smallest for {escape(device)}"
        return (
            f"{aim} within {VERDICT_POINTS:g} point of float: {describe(best)}, "
            f"{megabytes(sizes[id(best)])} MB. mIoU: {best.accuracy_provenance.kind}. Latency: not measured."
        )
    if artifacts:
        text = f"For {escape(device)} no latency was measured"
        return f"{text}, and no artifact is shown to be within {VERDICT_POINTS:g} point of float."
    return f"No artifact of this run is for {escape(device)}."


def _subject(context: ReportContext) -> list[str]:
    checkpoint, data = context.checkpoint, context.dataset
    return [
        (
            f"Checkpoint **{escape(checkpoint.get('name', 'unnamed'))}**, "
            f"dataset {escape(data.get('name', 'unnamed'))} "
            f"{escape(data.get('split', ''))}, {data.get('frames', 'unknown')} frames. [Index](index.md)."
        ),
        "",
        *(line for text in _told_of_frames(data) for line in (text, "")),
    ]


def _told_of_frames(data: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the frames before any accuracy."""
    told = []
    if data.get("trained_on"):
        told.append(SEEN)
    if data.get("name") == "streets":
        told.append("These scenes are drawn by edgekit from a seed: accuracy on them says nothing about real streets.")
    return [f"**{text}**" for text in told]


def _footer(context: ReportContext) -> list[str]:
    return [f"Written by edgekit {escape(context.edgekit_version)}, {escape(context.created)}.", ""]


def _measured_page(
    device: str,
    page: Sequence[Result],
    everything: Sequence[Result],
    context: ReportContext,
    pictures: Mapping[str, str],
) -> str:
    lines = [f"# {escape(device)}", "", *_subject(context)]
    lines += [f"- {text}" for text in _verdicts(page, device)] + [""]
    lines += ["## Accuracy against latency", "", *_result_sections(page)]
    if "scatter" in pictures:
        alternative = f"mIoU over p50 latency of each artifact on {escape(device)}"
        lines += [f"![{alternative}]({pictures['scatter']})", ""]
        if any(result.row.size != page[0].row.size for result in page if result.latency is not None):
            lines += ["The artifacts have several sizes; each is compared with float PyTorch at its own size.", ""]
    else:
        lines += ["No chart: no artifact of this page has both a measured latency and a mIoU.", ""]
    lines += _ratio_section(page)
    lines += sustained_section(page, pictures)
    lines += units_section(page)
    lines += phone_section(page)
    lines += tensorrt_section(page)
    lines += against_local(page, everything, context)
    lines += _accuracy_section(page)
    lines += _class_section(page, context)
    if "drops" in pictures:
        lines += [f"![Points of IoU lost by class]({pictures['drops']})", ""]
        if sum(result.drop is not None for result in page) > 5:
            lines += ["The chart shows the five artifacts that lost most.", ""]
    lines += _strip_section(pictures, context) if device == LOCAL else []
    lines += _how_section(page)
    lines += _artifact_section(page, context)
    lines += _environment_section(page)
    return "\n".join(lines + _footer(context))


def _strip_section(pictures: Mapping[str, str], context: ReportContext) -> list[str]:
    lines: list[str] = []
    for index, frame in enumerate(context.strips):
        name = escape(frame.name)
        lines += [f"![{name}: image, truth and predictions]({pictures[f'strip-{index}']})", ""]
    if not lines:
        return []
    lead = "The image, its truth and what each artifact labels, side by side."
    if any(_reference_title(frame.predictions) for frame in context.strips):
        lead += " White pixels differ from float PyTorch."
    return ["## Frames", "", lead, "", *lines]


def _unconnected_page(device: str, page: Sequence[Result], context: ReportContext) -> str:
    lines = [f"# {escape(device)}: {NO_DEVICE}", "", *_subject(context)]
    lines += [f"- {text}" for text in _verdicts(page, device)] + [""]
    if not page:
        lines += [
            "Accuracy and latency: not measured, because no artifact of this run is for this device.",
            "`edgekit targets` lists the targets; make an artifact for one that runs there.", "",
        ]  # fmt: skip
        return "\n".join(lines + _footer(context))
    lines += [
        ("The accuracy is a reference: the artifact's own bytes ran in the engine named in its row, on this machine "
        "and not on the device. The latency is not measured."), "",
    ]  # fmt: skip
    lines += ["## Accuracy, and latency to be measured", "", *_result_sections(page)]
    commands = [bench_command(row, context, device) for row in (result.measured for result in page) if row is not None]
    if commands:
        lines += [
            "## How to measure",
            "",
            _CONNECT.get(device, _OTHER),
            "",
            code(f"{context.command} --device NAME"),
            "",
        ]
        lines += ["Or by hand:", "", code("\n".join(commands)), ""]
    lines += _accuracy_section(page)
    drops = "Drops by class and the frames to look at are in [local](local.md)."
    lines += [drops, ""] if any(result.drop is not None for result in page) else []
    lines += _artifact_section(page, context)
    return "\n".join(lines + _footer(context))


def _index(pages: Mapping[str, Sequence[Result]], everything: Sequence[Result], context: ReportContext) -> str:
    checkpoint, data = context.checkpoint, context.dataset
    lines = [f"# Report: {escape(checkpoint.get('name', 'unnamed'))}", ""]
    for device, page in pages.items():
        lines += [f"- {text}" for text in _verdicts(page, device)]
    lines += [line for text in _told_of_frames(data) for line in ("", text)]
    lines += [
        "", "## Devices", "", *_device_table(pages), "## Latency over devices", "",
        *_matrix(pages, everything),
    ]  # fmt: skip
    lines += ["## Checkpoint", "", *_checkpoint_section(checkpoint, context)]
    rows = [["Name", escape(_plain(data.get("name")))], ["Split", escape(_plain(data.get("split")))]]
    rows.append(["Frames", escape(_plain(data.get("frames")))])
    seen = {True: "yes", False: "no", None: "the checkpoint does not say"}
    rows.append(["Seen in training", seen[data["trained_on"]] if "trained_on" in data else "not recorded"])
    lines += ["## Dataset", "", *table(["Dataset", "Value"], rows, left=2)]
    lines += ["## How to read it", "", *_LEGEND, "", "## Command", "", code(context.command), ""]
    lines += ["All numbers are in [report.json](report.json).", ""]
    return "\n".join(lines + _footer(context))


def _checkpoint_section(checkpoint: Mapping[str, Any], context: ReportContext) -> list[str]:
    own = ":" in str(checkpoint.get("network", ""))
    digest = "sha256 of the file, its network's name and source" if own else "sha256"
    labels = {"name": "Name", "sha256": digest, "network": "Network", "dataset": "Trained on"}
    rows = [
        [label, escape(_plain(checkpoint[key]) if key in checkpoint else "not recorded")]
        for key, label in labels.items()
    ]
    rows.append(["Classes", str(len(context.class_names))])
    scores = [
        f"{percent(found.get('miou'))} % on {found.get('frames', 'unknown')} frames of {name.replace(':', ' ')}"
        for name, found in (checkpoint.get("metrics") or {}).items()
        if isinstance(found, Mapping)
    ]
    rows.append(["Class mIoU it carries", escape(", ".join(scores)) if scores else "not recorded"])
    commands = trainings(checkpoint.get("recipe") or {})
    if not commands:
        rows.append(["Recipe", escape(_plain(checkpoint.get("recipe") or "not recorded"))])
    lines = table(["Checkpoint", "Value"], rows, left=2)
    return [*lines, "Trained by:", "", code("\n".join(commands)), ""] if commands else lines


_LEGEND = (
    "- `measured`: that artifact ran on that device.",
    "- `reference`: the artifact's own bytes ran in another engine, which is named.",
    "- `not measured`: a note says why, and how to get the number.",
    "- Drop: float PyTorch minus the artifact, same frames, in points of mIoU, with a 95 % paired bootstrap interval (Student's t below 16 frames).",
    f"- Within {VERDICT_POINTS:g} point of float: the upper end of that interval is at most {VERDICT_POINTS:g} point.",
)


def _device_table(pages: Mapping[str, Sequence[Result]]) -> list[str]:
    rows = []
    for device, page in pages.items():
        artifacts = [result for result in page if not result.is_float]
        counted = []
        for provenances in (
            [result.accuracy_provenance.kind for result in artifacts],
            [result.latency_provenance.kind for result in artifacts],
        ):
            kinds = [(kind, provenances.count(kind)) for kind in ("measured", "reference", "not measured")]
            counted.append(", ".join(f"{count} {kind}" for kind, count in kinds if count) or "no artifact")
        link = f"[{escape(device)}]({_file_name(device)}.md)"
        failed = sum(result.failed is not None for result in artifacts)
        rows.append([link, *counted, str(len(artifacts) - failed), str(failed)])
    return table(["Device", "Accuracy", "Latency", "Artifacts", "Failed"], rows, left=3)


def _matrix(pages: Mapping[str, Sequence[Result]], everything: Sequence[Result]) -> list[str]:
    """One row per artifact, one column of p50 per device."""
    notes = Notes()
    own: dict[str, Result] = {}
    for result in everything:
        own.setdefault(_key(result), result)
    listed = list(own.values())
    rows = []
    for name, result in zip(distinct_names(listed), listed, strict=True):
        cells = []
        for device, page in pages.items():
            here = next((other for other in page if _key(other) == _key(result)), None)
            if here is None:
                cells.append("does not apply")
            elif here.failed is not None:
                cells.append(notes.mark("failed", f"no artifact: {here.failed}"))
            elif here.latency is None:
                why = here.latency_provenance.why
                if why.startswith(NO_DEVICE):
                    why = f"{NO_DEVICE}; the page {_file_name(device)}.md has the command that measures"
                cells.append(_missing(notes, why))
            else:
                scope = () if here.scope == HEADLINE_SCOPE else (f"scope {here.scope}: not comparable with the others",)
                warnings = (f"warning, {text}" for text in here.latency.warnings)
                cells.append(notes.mark(milliseconds(here.latency.p50), *scope, *warnings))
        if result.failed is not None:
            mark = notes.mark("failed", f"no artifact: {result.failed}")
            accuracy = [mark, mark]
        else:
            accuracy = [_accuracy_cell(result, notes), _drop_cell(result, notes)]
        rows.append([escape(name), *accuracy, *cells])
    header = ["Artifact", "mIoU, %", "Drop, points [95 %]", *(f"{escape(device)} p50, ms" for device in pages)]
    return table(header, rows) + notes.lines()


def _key(result: Result) -> str:
    row = result.row
    return row.artifact or f"{row.target} {row.precision} {row.size}"


def render_bench(rows: Sequence[Measurement], context: ReportContext) -> dict[str, bytes | str]:
    """A page for each device of artifacts that were measured apart from a run, and its figure.

    Args:
        rows: what was measured, without a float reference.
        context: ``dataset`` is empty where no accuracy was taken.

    Returns:
        Path relative to the report's folder -> text or bytes.
    """
    everything = analyse(rows, context)
    colours = _colours(everything)
    files: dict[str, bytes | str] = {}
    for device in dict.fromkeys(result.device for result in everything):
        page = [result for result in everything if result.device == device]
        pictures: dict[str, str] = {}
        if (chart := sustained_chart(page, colours)) is not None:
            pictures["sustained"] = f"figures/{_file_name(device)}-sustained.svg"
            files[pictures["sustained"]] = chart
        data = context.dataset
        frames = f"{data['frames']} frames of {data['name']} {data['split']}" if data else "no frames"
        lines = [f"# {escape(device)}", "", f"Artifacts measured apart from a run; accuracy on {escape(frames)}.", ""]
        lines += [line for text in _told_of_frames(data) for line in (text, "")]
        lines += ["## Latency", "", *_result_sections(page), *_ratio_section(page)]
        lines += [
            *sustained_section(page, pictures),
            *units_section(page),
            *phone_section(page),
            *tensorrt_section(page),
        ]
        lines += [
            *_accuracy_section(page),
            *_how_section(page),
            *_artifact_section(page, context),
            *_environment_section(page),
        ]
        lines += ["## Command", "", code(context.command), ""]
        files[f"{_file_name(device)}.md"] = "\n".join(lines + _footer(context))
    return files


def render(rows: Sequence[Row], context: ReportContext) -> dict[str, bytes | str]:
    """All files of a report.

    Args:
        rows: what a run measured, the float reference and failed artifacts among them.
        context: checkpoint, dataset, classes, strips.

    Returns:
        Path relative to the report's folder -> text or bytes: index.md, local.md, a page per further device (which takes
        the place of its kind's standing page),
        report.json, figures/*.

    Raises:
        EdgekitError: the rows contradict each other.
    """
    everything = analyse(rows, context)
    stood_for = {result.row.stands_for for result in everything}
    standing = [page for page in STANDING_PAGES if page not in stood_for]  # else the device has a page of its own
    devices = dict.fromkeys([LOCAL, *standing, *(result.device for result in everything)])
    pages = {device: [result for result in everything if result.device == device] for device in devices}
    names = [_file_name(device) for device in devices]
    if len(set(names)) != len(names) or "index" in names:
        raise EdgekitError(f"two devices would share a page: rename one of {', '.join(devices)}")
    files: dict[str, bytes | str] = {"index.md": _index(pages, everything, context)}
    for device, page in pages.items():
        # A page is measured when a row is from that device; a page of borrowed accuracies is not connected.
        connected = any(result.row.device == device for result in page)
        if device != LOCAL and not connected:
            files[f"{_file_name(device)}.md"] = _unconnected_page(device, page, context)
            continue
        pictures: dict[str, str] = {}
        charts = {
            "scatter": _scatter(page, everything),
            "sustained": sustained_chart(page, _colours(everything)),
            "drops": _class_chart(page, everything, context),
        }
        for kind, chart in charts.items():
            if chart is not None:
                pictures[kind] = f"figures/{_file_name(device)}-{kind}.svg"
                files[pictures[kind]] = chart
        if device == LOCAL:
            for index, frame in enumerate(context.strips):
                pictures[f"strip-{index}"] = f"figures/strip-{index + 1}-{_file_name(frame.name)}.png"
                picture = figures.strip(frame, context.classes, _reference_title(frame.predictions))
                files[pictures[f"strip-{index}"]] = picture
        files[f"{_file_name(device)}.md"] = _measured_page(device, page, everything, context, pictures)
    text = json.dumps(build(everything, context), indent=1, allow_nan=False, ensure_ascii=False)
    files["report.json"] = text + "\n"
    return files
