"""What only a device's page shows: sustained load, Core ML's units, TensorRT's layers, and the way it differs from this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekit.core import measurement
from edgekit.core.measurement import HEADLINE_SCOPE, LOCAL, Latency, LoadInterval, Placement, Unheld, Unit, Watched
from reports import figures
from reports.document import ReportContext, Result, confusions_of
from reports.numbers import megabytes, milliseconds, percent
from reports.statistics import bootstrap_drop
from reports.sustained import SHORT, SLOWER, Sustained, summarize_sustained, throttling
from reports.text import Notes, distinct_names, escape, interval, table

SHOWN = 4
"""Artifacts in the figure of sustained load: more lines could not be told apart."""
MIXED = "tegrastats did not always say that the GPU was under load: moments without may be among these"


def _sustained(results: Sequence[Result]) -> list[tuple[str, Result, Sustained]]:
    held = [(result, load) for result in results if isinstance(load := _load(result), measurement.Sustained)]
    names = distinct_names([result for result, _ in held])
    return [(name, result, summarize_sustained(load)) for name, (result, load) in zip(names, held, strict=True)]


def _load(result: Result) -> measurement.Sustained | Unheld | None:
    return None if result.measured is None else result.measured.sustained


def _intervals(result: Result) -> tuple[LoadInterval, ...]:
    load = _load(result)
    return load.intervals if isinstance(load, measurement.Sustained) else ()


def sustained_chart(results: Sequence[Result], colours: Mapping[str, str], form: str = "svg") -> bytes | None:
    """Latency, clock and temperature over time; None where nothing was kept under load."""
    held = sorted(_sustained(results), key=lambda entry: entry[2].first)[:SHOWN]
    if not held:
        return None
    lines = [figures.Load(name, result.row.target, result.row.precision, found) for name, result, found in held]
    return figures.sustained(lines, colours, form)


def sustained_section(results: Sequence[Result], pictures: Mapping[str, str]) -> list[str]:
    """What heat left of the speed; empty where nothing was kept under load."""
    held = _sustained(results)
    unheld = [result for result in results if isinstance(_load(result), Unheld)]
    if not held and not unheld:
        return []
    rows, notes = [], Notes()
    for name, result in zip(distinct_names(unheld), unheld, strict=True):
        load = _load(result)
        assert isinstance(load, Unheld)
        rows.append([escape(name), *[notes.mark("not measured", load.failed)] * 7])
    for name, result, found in held:
        heats = [entry.temperature for entry in found.intervals if entry.temperature is not None]
        clocks = [entry.clock for entry in found.intervals if entry.clock is not None]
        mixed = [MIXED] if any(entry.under_load is False for entry in _intervals(result)) else []
        rows.append([
            escape(name), f"{found.seconds / 60:.3g}", milliseconds(found.first), milliseconds(found.last),
            f"{100 * found.slowdown:+.1f}", throttling(found),
            notes.mark(f"{clocks[0]:.2f} to {clocks[-1]:.2f}", *mixed) if clocks else "unavailable",
            f"{heats[0]:.0f} to {max(heats):.0f}" if heats else "unavailable",
        ])  # fmt: skip
    header = [
        "Artifact", "Minutes", "First p50, ms", "Last p50, ms", "Slower, %", "Throttling",
        "Clock, GHz", "Temperature, C",
    ]  # fmt: skip
    lead = (
        "Each artifact ran without a pause, alone. Throttling begins with the minute from which every minute's p50 is more "
        f"than {100 * SLOWER:g} % above the first one's; under {SHORT / 60:g} minutes first and last are sixths of the whole. "
        f"The clock is {_whose_clock(held)}, first and last; the temperature the hottest sensor's, first and highest."
    )
    lines = ["## Sustained load", "", lead, "", *table(header, rows), *notes.lines()]
    if "sustained" in pictures:
        lines += [f"![Latency, clock and temperature under sustained load]({pictures['sustained']})", ""]
        if len(held) > SHOWN:
            lines += [f"The chart shows the {SHOWN} fastest artifacts.", ""]
    return lines


def _whose_clock(held: Sequence[tuple[str, Result, Sustained]]) -> str:
    """A load by trtexec comes with the GPU's clock, any other with the cores'."""
    gpus = [any("GPU" in entry.conditions.clock_khz for entry in _intervals(result)) for _, result, _ in held]
    if gpus and all(gpus):
        return "the GPU's under load (the median of each interval)"
    return "the fastest core's (the GPU's under load for TensorRT)" if any(gpus) else "the fastest core's"


def units_section(results: Sequence[Result]) -> list[str]:
    """Latency on each choice of Core ML's compute units, and where its compute plan puts the operations."""
    rows, plans, notes = [], [], Notes()
    chosen = timed_by_unit(results, "coreml")
    units = list(dict.fromkeys(unit for _, _, own in chosen for unit in own))
    for name, latency, own in chosen:
        rows.append([escape(name), *(_unit_cell(own.get(unit), notes) for unit in units)])
        for unit, plan in (latency.placement or {}).items():
            plans.append([escape(name), escape(unit), *_plan_cells(plan, notes)])
    if not rows:
        return []
    lead = (
        f"p50 on each choice of Core ML's compute units, {HEADLINE_SCOPE}. The first is the headline: what an app gets."
    )
    header = ["Artifact", *(f"{escape(unit)}, ms" for unit in units)]
    lines = ["## Compute units", "", lead, "", *table(header, rows)]
    if plans:
        lead = "Where Core ML's compute plan puts the operations. The cost is the plan's own estimate."
        lines += [lead, "", *table(["Artifact", "Units", "Operations", "Not with the most"], plans, left=4)]
    return lines + notes.lines()


def timed_by_unit(results: Sequence[Result], target: str) -> list[tuple[str, Latency, Mapping[str, Unit]]]:
    """A target's results that were timed on several compute units or backends: name, latency, and by unit."""
    chosen = [(result, taken) for result in results if (taken := _taken(result)) and result.row.target == target]
    chosen = [(result, taken) for result, taken in chosen if taken.compute_units]
    names = distinct_names([result for result, _ in chosen])
    return [(name, taken, taken.compute_units or {}) for name, (_, taken) in zip(names, chosen, strict=True)]


def _taken(result: Result) -> Latency | None:
    latency = None if result.measured is None else result.measured.latency
    return latency if isinstance(latency, Latency) else None


def _plan_cells(plan: Placement, notes: Notes) -> list[str]:
    """Operations by where they run, and those that are not where most of the cost is."""
    if not plan.operations:
        return [notes.mark("not planned", plan.failed or "Core ML's plan names no operation"), "not planned"]
    costs = plan.cost or {}
    shares = [
        f"{device} {count} ({percent(costs.get(device, 0.0))} % of the cost)"
        for device, count in plan.operations.items()
    ]
    rest = [f"{count} x {what}" for what, count in (plan.elsewhere or {}).items()]
    return [escape(", ".join(shares)), escape(", ".join(rest)) or "none"]


def _unit_cell(unit: Unit | None, notes: Notes) -> str:
    if unit is None:
        return notes.mark("not measured", "it was not asked for there")
    if unit.p50 is None:
        return notes.mark("not measured", unit.failed or "it did not run")
    return milliseconds(unit.p50)


def tensorrt_section(results: Sequence[Result]) -> list[str]:
    """What trtexec tells beside the latency: copies, memory, power, and the slowest layers."""
    rows, layers, notes = [], [], Notes()
    chosen = [(result, taken.trtexec) for result in results if (taken := _taken(result)) and taken.trtexec]
    names = distinct_names([result for result, _ in chosen])
    for name, (result, told) in zip(names, chosen, strict=True):
        watched = told.tegrastats or Watched()
        graph, copies, memory = told.graph_ms, told.with_copies_ms, told.gpu_bytes
        failed = [f"trtexec failed: {why}"] if (why := told.failed) else []
        if graph is None and result.latency is not None and not failed:
            graph = result.latency.p50
        unstable = told.unstable_cv
        beside = [f"warning, unstable by trtexec's own word: CV is {100 * unstable:.1f} %"] if unstable else failed
        without = [f"trtexec failed when it timed the copies: {why}"] if (why := told.with_copies_failed) else []
        mixed = [MIXED] if watched.under_load is False else []
        watts = watched.mean_watts
        heat = max((watched.max_celsius or {}).values(), default=None)
        rows.append([
            escape(name), notes.mark("unavailable" if graph is None else milliseconds(graph), *beside),
            notes.mark("unavailable" if copies is None else milliseconds(copies), *without),
            "unavailable" if memory is None else megabytes(memory, 0),
            "unavailable" if watts is None else notes.mark(f"{watts:.1f}", *mixed),
            "unavailable" if heat is None else f"{heat:.0f}",
            escape(", ".join(f"{count} {kind}" for kind, count in (told.precisions or {}).items())) or "unavailable",
        ])  # fmt: skip
        layers += [
            [escape(name), escape(layer.name), milliseconds(layer.mean_ms), percent(layer.share)]
            for layer in told.layers
        ]
    if not rows:
        return []
    header = [
        "Artifact",
        "Graph p50, ms",
        "With copies p50, ms",
        "GPU memory, MB",
        "Power, W",
        "Hottest sensor, C",
        "Layers",
    ]
    lines = ["## TensorRT", "", "By trtexec and tegrastats on the device.", "", *table(header, rows), *notes.lines()]
    if layers:
        lines += ["The slowest layers.", "", *table(["Artifact", "Layer", "Mean, ms", "Share, %"], layers, left=2)]
    return lines


def against_local(page: Sequence[Result], everything: Sequence[Result], context: ReportContext) -> list[str]:
    """The same artifacts' labels on this machine and on the device: how far they are from each other."""
    rows = []
    for name, result in zip(distinct_names(page), page, strict=True):
        if result.device == LOCAL or result.scores is None:
            continue
        local = next(
            (
                other
                for other in everything
                if other.device == LOCAL and other.scores is not None
                and other.row.artifact == result.row.artifact
            ),
            None,
        )  # fmt: skip
        if local is None or local.measured is None or result.measured is None:
            continue
        assert local.scores is not None
        if (
            result.accuracy_provenance.by == local.accuracy_provenance.by
            and result.accuracy_provenance.kind == "reference"
        ):
            continue  # what stands on the page are this machine's own numbers
        drop = bootstrap_drop(confusions_of(local.measured, context), confusions_of(result.measured, context))
        rows.append([
            escape(name), percent(local.scores.miou), percent(result.scores.miou), interval(drop),
            escape(local.accuracy_provenance.by), escape(result.accuracy_provenance.by),
        ])  # fmt: skip
    if not rows:
        return []
    header = ["Artifact", "mIoU here, %", "mIoU there, %", "Here minus there, points [95 %]", "By", "By, there"]
    lead = "The same artifact on the same frames, on the machine that made this report and on the device."
    return ["## Against this machine", "", lead, "", *table(header, rows)]
