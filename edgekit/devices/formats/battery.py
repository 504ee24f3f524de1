"""``dumpsys battery``: charge, temperature, and whether the phone is being charged, which warms it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.core.errors import DeviceError
from edgekit.core.quantities import is_celsius
from edgekit.devices.formats.text import lines, shortened

STATUSES = {1: "unknown", 2: "charging", 3: "discharging", 4: "not charging", 5: "full"}
"""``android.os.BatteryManager``, by number."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_ ]{0,40}")
_WHOLE = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class Battery:
    """What the battery service says.

    Attributes:
        level: percent, 0 to 100.
        celsius: None where it has no sensor, or one that reads what no battery survives.
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
        DeviceError: it is none, or has a charge that no battery has.
    """
    fields: dict[str, str] = {}
    faked = False
    said = ""
    for line in lines(text):
        said = said or line.strip()
        faked = faked or "UPDATES STOPPED" in line
        name, colon, value = line.partition(": ")
        if colon and value.strip() and _NAME.fullmatch(name.strip()):
            fields.setdefault(name.strip(), value.strip())  # vendors append sections that say some of it again
    level, scale = _whole(fields.get("level")), _whole(fields.get("scale"))
    if level is None or "status" not in fields:
        raise DeviceError(
            f"dumpsys battery says no level: is it an Android device? (it said: {shortened(said, 200) or 'nothing'})"
        )
    scale = 100 if scale is None else scale
    if not 0 <= level <= scale or not scale:
        raise DeviceError(
            f"dumpsys battery says a level of {level} in {scale}, which no battery has: look at the phone"
        )
    tenths = _whole(fields.get("temperature"))
    return Battery(
        100 * level / scale,
        tenths / 10 if tenths and is_celsius(tenths / 10) else None,  # 0 is what Android says without a sensor
        STATUSES.get(_whole(fields["status"]) or 1, "unknown"),
        tuple(name for name in ("AC", "USB", "Wireless", "Dock") if fields.get(f"{name} powered") == "true"),
        faked,
    )


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and _WHOLE.fullmatch(text) else None
