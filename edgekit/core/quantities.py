"""What a quantity that a device tells can be: bounds by physics and by any hardware there is, so that nonsense is known as such.

A report is made of such numbers. One that no device can have would spoil its tables and charts for all the others.
"""

from __future__ import annotations

from typing import Any

SHORTEST_MS = 1e-6
"""A nanosecond: no clock that measures a query tells less."""
LONGEST_MS = 3.6e6
"""An hour: whoever waits for one query gave up before."""
MOST_MS = 24 * LONGEST_MS
"""All queries of one measurement together."""
MOST_RUNS = 10**9
"""Queries of one measurement: a day of them at a tenth of a millisecond."""
MOST_ROUNDS = 64
"""Rounds of one measurement, of which edgekit makes 8 to 32; a trend over them is looked for in time by a power of their number."""
COLDEST, HOTTEST = -40.0, 200.0
"""Celsius, neither included: below and above no device works. Such values (-256, -273.15) stand for a sensor that reads nothing."""
MOST_BYTES = 1 << 50
MOST_KHZ = 10**8
MOST_WATTS = 1e5
MOST_CORES = 4096


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float that a float holds, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300


def is_milliseconds(value: Any) -> bool:
    """Whether it is the time of something that was measured."""
    return is_number(value) and SHORTEST_MS <= value <= LONGEST_MS


def are_milliseconds(value: Any) -> bool:
    """Whether it is a list of such times; an empty one is."""
    return isinstance(value, (list, tuple)) and all(map(is_milliseconds, value))


def is_whole(value: Any, least: int, most: int) -> bool:
    """Whether it is an int from ``least`` to ``most``, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_runs(value: Any) -> bool:
    """Whether it is a number of queries, at least one."""
    return is_whole(value, 1, MOST_RUNS)


def is_bytes(value: Any) -> bool:
    """Whether it is a size of memory or of a file."""
    return is_whole(value, 0, MOST_BYTES)


def is_celsius(value: Any) -> bool:
    """Whether a working device can be that warm."""
    return is_number(value) and COLDEST < value < HOTTEST


def is_khz(value: Any) -> bool:
    """Whether it is a clock, in kHz."""
    return is_number(value) and 0 < value <= MOST_KHZ


def is_watts(value: Any) -> bool:
    """Whether it is a power; a rail may give some back."""
    return is_number(value) and abs(value) <= MOST_WATTS


def is_share(value: Any) -> bool:
    """Whether it is a fraction from 0 to 1."""
    return is_number(value) and 0 <= value <= 1
