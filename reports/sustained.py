"""What a sustained load shows: how the latency, the clock and the heat went, and when the device throttled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.core import measurement
from edgekit.core.errors import EdgekitError
from edgekit.core.measurement import LoadInterval
from reports.numbers import milliseconds

SLOWER = 0.05
"""A device throttles from the minute on whose p50, and that of every minute after it, is this much above the first's."""


SHORT = 120.0
"""Seconds: a shorter load has no two minutes to compare."""


@dataclass(frozen=True)
class Interval:
    """One interval of a sustained load.

    Attributes:
        end: minutes from the beginning to its end.
        p50: milliseconds; the mean where a tool prints no median.
        p90: milliseconds; None where a tool that keeps its samples to itself does not print it.
        n: samples.
        clock: the highest clock of any core at its end, or the GPU's under load by trtexec, GHz; None where the device
            does not say.
        temperature: of its hottest sensor, Celsius; None likewise.
    """

    end: float
    p50: float
    p90: float | None
    n: int
    clock: float | None
    temperature: float | None


@dataclass(frozen=True)
class Sustained:
    """A sustained load, summed up.

    Attributes:
        intervals: in order.
        seconds: how long it was asked for.
        first, last: p50 of the first and the last minute (of the first and the last sixth where it was shorter than two).
        throttled: the minute, from 1, in which throttling began; None when it did not, or when there were no two minutes.
        settings: of the session.
    """

    intervals: tuple[Interval, ...]
    seconds: float
    first: float
    last: float
    throttled: int | None
    settings: Mapping[str, Any]

    @property
    def slowdown(self) -> float:
        """Last over first, minus one: 0.2 is a fifth slower."""
        return self.last / self.first - 1


def summarize_sustained(taken: measurement.Sustained) -> Sustained:
    """Everything derived from a sustained load.

    Raises:
        EdgekitError: it holds no samples.
    """
    raw = taken.intervals
    if not raw or not all(_samples(entry) for entry in raw):
        raise EdgekitError("a sustained load without samples says nothing: measure it again")
    # Minutes; shorter loads are cut into six parts, so that there is a first and a last one.
    part = 60.0 if taken.seconds >= SHORT else taken.seconds / 6
    minutes: dict[int, list[float]] = {}
    for entry in raw:
        middle = (entry.begin_s + entry.end_s) / 2
        minutes.setdefault(int(middle / part), []).extend(_samples(entry))
    order = sorted(minutes)
    medians = [float(np.median(minutes[minute])) for minute in order]
    slow = [median > medians[0] * (1 + SLOWER) for median in medians]
    throttled = None
    if taken.seconds < SHORT:
        slow = []
    for index in range(len(slow) - 1, 0, -1):
        if not slow[index]:
            break
        throttled = index
    return Sustained(
        intervals=tuple(_interval(entry) for entry in raw),
        seconds=float(taken.seconds),
        first=medians[0],
        last=medians[-1],
        throttled=None if throttled is None else order[throttled] + 1,
        settings=taken.settings,
    )


def _samples(entry: LoadInterval) -> Sequence[float]:
    """Milliseconds: all of an interval, or the one that a tool prints for it (the median, or the mean without one)."""
    if entry.statistics is None:
        return entry.samples_ms or ()
    return [float(entry.statistics.p50 or entry.statistics.mean)]


def _interval(entry: LoadInterval) -> Interval:
    samples = np.asarray(_samples(entry), np.float64)
    printed = entry.statistics
    clocks, temperatures = entry.conditions.clocks, entry.conditions.temperatures
    return Interval(
        end=entry.end_s / 60,
        p50=float(np.median(samples)),
        p90=float(np.percentile(samples, 90)) if printed is None else printed.p90,
        n=len(samples) if printed is None else printed.n,
        clock=max(clocks) / 1e6 if clocks else None,
        temperature=max(temperatures) if temperatures else None,
    )


def sustained_line(taken: measurement.Sustained) -> str:
    """One line for the terminal."""
    found = summarize_sustained(taken)
    text = f"sustained {found.seconds / 60:.3g} min: p50 {milliseconds(found.first)} ms first, {milliseconds(found.last)} ms last"
    text += f" ({100 * found.slowdown:+.1f} %)"
    return f"{text}, {throttling(found)}"


def throttling(found: Sustained) -> str:
    """When it throttled, in words."""
    if found.seconds < SHORT:
        return "too short to show throttling"
    return "no throttling" if found.throttled is None else f"throttles from minute {found.throttled} on"
