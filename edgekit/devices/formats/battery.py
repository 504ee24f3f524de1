"""``dumpsys battery``: charge, temperature, and whether the phone is being charged, which warms it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.core.errors import DeviceError
from edgekit.devices.formats.text import lines, shortened

STATUSES = {1: "unknown", 2: "charging", 3: "discharging", 4: "not charging", 5: "full"}
"""``android.os.BatteryManager``, by number."""

_FIELD = re.compile(r"^\s*([A-Za-z][\w ]{0,40}): (\S.*?)\s*$")


@dataclass(frozen=True)
class Battery:
    """What the battery service says.

    Attributes:
        level: percent.
        celsius: None where it has no sensor.
        status: in Android's word.
        plugged: by ``AC``, ``USB``, ``Wireless`` or ``Dock``; empty on battery.
        faked: somebody set values by hand (``dumpsys battery set``), so that none of this counts.
    """

    level: float
    celsius: float | None
    status: str
    plugged: tuple[str, ...]
    faked: bool


def parse(text: str | bytes) -> Battery:
    """Read the dump.

    Raises:
        DeviceError: it is none.
    """
    fields: dict[str, str] = {}
    faked = False
    said = ""
    for line in lines(text):
        said = said or line.strip()
        faked = faked or "UPDATES STOPPED" in line
        if match := _FIELD.match(line):
            fields.setdefault(match[1].strip(), match[2])  # vendors append sections that say some of it again
    level, scale = _integer(fields.get("level")), _integer(fields.get("scale")) or 100
    if level is None or "status" not in fields:
        raise DeviceError(
            f"dumpsys battery says no level: is it an Android device? (it said: {shortened(said, 200) or 'nothing'})"
        )
    tenths = _integer(fields.get("temperature"))
    return Battery(
        100 * level / scale,
        tenths / 10 if tenths else None,  # 0 is what Android says without a sensor
        STATUSES.get(_integer(fields["status"]) or 1, "unknown"),
        tuple(name for name in ("AC", "USB", "Wireless", "Dock") if fields.get(f"{name} powered") == "true"),
        faked,
    )


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"-?\d{1,9}", text) else None
