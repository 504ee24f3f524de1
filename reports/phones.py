"""What only a phone's page shows: latency by backend, and its heat, battery and clocks before, while and after it was timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.core.measurement import Conditions, Unit
from reports.devices import timed_by_unit
from reports.document import Result
from reports.numbers import milliseconds
from reports.text import Notes, escape, table


def phone_section(results: Sequence[Result]) -> list[str]:
    """Backends, heat and battery beside the latency; empty for what is no phone."""
    return [*_backends(results), *_conditions(results)]


def _backends(results: Sequence[Result]) -> list[str]:
    chosen = timed_by_unit(results, "tflite")
    names = list(dict.fromkeys(name for _, _, backends in chosen for name in backends))
    rows, notes = [], Notes()
    for title, _, backends in chosen:
        rows.append([escape(title), *(_backend(backends.get(name), notes) for name in names)])
    if not rows:
        return []
    lead = (
        f"p50 of one forward pass (`graph`) on each backend of benchmark_model, in turns. {escape(names[0])} is the headline, on "
        "which accuracy is measured too."
    )
    header = ["Artifact", *(f"{escape(name)}, ms" for name in names)]
    return ["## Backends", "", lead, "", *table(header, rows), *notes.lines()]


def _backend(found: Unit | None, notes: Notes) -> str:
    middle = None if found is None else found.p50 or found.mean
    if found is None or middle is None:
        why = None if found is None else found.failed
        return notes.mark("not measured", why or "this tool does not have it")
    said = [f"{name} took {share} operations" for name, share in (found.operations or {}).items()]
    if found.p50 is None:
        said.append("the mean: this version of the tool prints no median")
    return notes.mark(milliseconds(middle), *said)


def _conditions(results: Sequence[Result]) -> list[str]:
    rows: list[list[str]] = []
    seen: list[tuple[Conditions, ...]] = []
    for result in results:
        conditions = result.taken.conditions if result.taken is not None else ()
        if conditions in seen or all(entry.thermal_status is None for entry in conditions):
            continue  # artifacts that took turns share them
        seen.append(conditions)
        for number, entry in enumerate(conditions):
            when = "before" if not number else "after" if number == len(conditions) - 1 else f"after round {number}"
            heats, clocks, battery = entry.temperatures, entry.clocks, entry.battery
            rows.append([
                when, escape(entry.thermal_status or "unavailable"),
                f"{max(heats):.1f}" if heats else "unavailable",
                f"{max(clocks) / 1e6:.2f}" if clocks else "unavailable",
                *_battery(battery if isinstance(battery, Mapping) else {}),
            ])  # fmt: skip
    if not rows:
        return []
    lead = (
        "What the phone said of itself beside the latency. The clock is the highest that it allowed its fastest core at that "
        "moment: heat lowers it. From the thermal status `light` on Android may run slower; a phone that is charged is warmer."
    )
    header = [
        "When", "Thermal status", "Hottest sensor, C", "Clock allowed, GHz", "Battery, %", "Battery, C", "Power",
    ]  # fmt: skip
    return ["## Heat and battery", "", lead, "", *table(header, rows, left=2)]


def _battery(battery: Mapping[str, Any]) -> list[str]:
    level, celsius = battery.get("level"), battery.get("celsius")
    if battery.get("faked"):  # by hand (dumpsys battery set): none of it counts
        return ["set by hand"] * 3
    plugged = ", ".join(map(str, battery.get("plugged") or ()))
    power = " by ".join(part for part in (str(battery.get("status") or ""), plugged) if part)
    return [
        f"{level:.0f}" if isinstance(level, (int, float)) else "unavailable",
        f"{celsius:.1f}" if isinstance(celsius, (int, float)) else "unavailable",
        escape(power) or "unavailable",
    ]
