"""``dumpsys thermalservice`` of Android 10 and newer: how hard it throttles, and what its sensors read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.core.errors import DeviceError
from edgekit.devices.formats.text import lines, shortened

STATUSES = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""``android.os.Temperature.ThrottlingSeverity``, by number. From ``light`` on the phone may run slower."""

_NOT_HEAT = (6, 7, 8)
"""Types of readings that are no temperature: the battery current limiter's voltage, current and percentage."""

_STATUS = re.compile(r"^\s*Thermal Status: (\d)\s*$")
_READING = re.compile(
    r"Temperature\{mValue=(-?\d+(?:\.\d+)?(?:E-?\d{1,3})?|NaN), mType=(-?\d+), mName=([^,}]{1,80}), mStatus=(\d)\}"
)
_COLDEST = -40.0
"""Below it no phone works: such values (-99.9, -273.15) stand for a sensor that reads nothing."""


@dataclass(frozen=True)
class Heat:
    """What the thermal service says.

    Attributes:
        status: 0 (none) to 6, an index of :data:`STATUSES`.
        celsius: temperatures by sensor; read now where the device does that, else its last known ones.
        fresh: whether they were read now.
    """

    status: int
    celsius: Mapping[str, float]
    fresh: bool

    @property
    def name(self) -> str:
        """The status in Android's word."""
        return STATUSES[min(self.status, len(STATUSES) - 1)]


def parse(text: str | bytes) -> Heat:
    """Read the dump.

    Raises:
        DeviceError: it is none, as on Android 9 and older.
    """
    status: int | None = None
    section = ""
    found: dict[str, dict[str, float]] = {"cached": {}, "now": {}}
    said = ""
    for line in lines(text):
        if match := _STATUS.match(line):
            status = int(match[1])
        elif line.strip().endswith(":"):
            heading = line.strip()
            # Cooling devices and thresholds follow, in forms of their own.
            section = {"Cached temperatures:": "cached", "Current temperatures from HAL:": "now"}.get(heading, "")
        elif section and (match := _READING.search(line)):
            value = float(match[1])
            if int(match[2]) not in _NOT_HEAT and math.isfinite(value) and value > _COLDEST:
                found[section][match[3]] = value
        if line.strip() and not said:
            said = line
    if status is None:
        raise DeviceError(
            f"dumpsys thermalservice says no thermal status: Android 10 or newer has it (it said: {shortened(said, 200) or 'nothing'})"
        )
    return Heat(status, found["now"] or found["cached"], bool(found["now"]))
