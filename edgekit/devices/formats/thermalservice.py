"""``dumpsys thermalservice`` of Android 10 and newer: how hard it throttles, and what its sensors read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.core.errors import DeviceError
from edgekit.core.quantities import is_celsius
from edgekit.devices.formats.text import LISTED, lines, shortened

STATUSES = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""``android.os.Temperature.ThrottlingSeverity``, by number. From ``light`` on the phone may run slower."""

_NOT_HEAT = (6, 7, 8)
"""Types of readings that are no temperature: the battery current limiter's voltage, current and percentage."""

_STATUS = re.compile(r"Thermal Status: ([0-9]{1,9})")
_READING = re.compile(
    r"Temperature\{mValue=(-?[0-9]+(?:\.[0-9]+)?(?:E-?[0-9]{1,3})?), mType=(-?[0-9]+), mName=([^,}]{1,80}), mStatus=[0-9]\}"
)


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
        return STATUSES[self.status]


def parse(text: str | bytes) -> Heat:
    """Read the dump.

    Raises:
        DeviceError: it is none, as on Android 9 and older, or has a status that Android does not have.
    """
    status: int | None = None
    section = ""
    found: dict[str, dict[str, float]] = {"cached": {}, "now": {}}
    said = ""
    for line in lines(text):
        if match := _STATUS.fullmatch(line.strip()):
            status = int(match[1])
        elif line.strip().endswith(":"):
            heading = line.strip()
            # Cooling devices and thresholds follow, in forms of their own.
            section = {"Cached temperatures:": "cached", "Current temperatures from HAL:": "now"}.get(heading, "")
        elif section and (match := _READING.search(line)) and len(found[section]) < LISTED:
            value = float(match[1])
            if int(match[2]) not in _NOT_HEAT and is_celsius(value):
                found[section][match[3]] = value
        if line.strip() and not said:
            said = line
    if status is None:
        raise DeviceError(
            f"dumpsys thermalservice says no thermal status: Android 10 or newer has it (it said: {shortened(said, 200) or 'nothing'})"
        )
    if status >= len(STATUSES):
        raise DeviceError(
            f"dumpsys thermalservice says thermal status {status}, which Android does not have: look there"
        )
    return Heat(status, found["now"] or found["cached"], bool(found["now"]))
