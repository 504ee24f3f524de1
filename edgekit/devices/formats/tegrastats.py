"""``tegrastats``: one line a sample, whose fields differ by board and JetPack.

Xavier's JetPack 5 says ``GR3D_FREQ 0%@114``, Orin's 6 ``GR3D_FREQ 26%@[306,306]``, Thor's 7 ``GR3D_FREQ @[314,314,314]``
or nothing; rails are ``VDD_IN 4900mW/5000mW`` (now and mean), three values or one on Thor, and have no unit before L4T 32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.core.errors import DeviceError
from edgekit.core.quantities import MOST_CORES, MOST_KHZ, is_bytes, is_celsius, is_watts
from edgekit.devices.formats.text import LISTED, lines, shortened

_TIME = re.compile(r"^\s*([0-9]{2}-[0-9]{2}-[0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2}) ")
_RAM = re.compile(r"\bRAM ([0-9]+)/([0-9]+)(MB|kB|GB)\b")
_CPU = re.compile(r"\bCPU \[([^\[\]]{1,20000})\]")
_CORE = re.compile(r"([0-9]{1,3})%(?:@([0-9]+))?")
_GPU = re.compile(r"\bGR3D_FREQ (?:([0-9]+)%)?(?:@\[?([0-9,]+)\]?)?")
_TEMPERATURE = re.compile(r"\b([A-Za-z][A-Za-z0-9_.-]{0,30})@(-?[0-9]+(?:\.[0-9]+)?)C\b")
_POWER = re.compile(r"\b([A-Z][A-Z0-9_]{1,40}) (-?[0-9]+)mW(?:/(-?[0-9]+)mW)?")
_OLD_POWER = re.compile(r"\b((?:POM|VDD|VIN)_[A-Z0-9_]{1,40}|GPU|CPU|SOC|CV|VDDRQ|SYS5V) ([0-9]+)/([0-9]+)(?=\s|$)")
_UNITS = {"kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


@dataclass(frozen=True)
class Rail:
    """Milliwatts of one power rail: now, and the mean since tegrastats began."""

    milliwatts: int
    mean_milliwatts: int | None


@dataclass(frozen=True)
class Core:
    """One CPU core that is on: load in percent, clock in MHz."""

    load: int
    clock: int | None


@dataclass(frozen=True)
class TegraSample:
    """One line. What a board does not print, or prints as no board has it, is None or empty.

    Attributes:
        time: the line's own, as printed; not every version has it.
        ram_bytes, ram_total_bytes: memory, which CPU and GPU share.
        cores: one for each core, None for one that is off.
        gpu_load: percent.
        gpu_clock: MHz, the highest of its clusters.
        celsius: temperatures by sensor; those whose part of the chip has no power read -256 and are left out.
        rails: power by rail.
    """

    time: str | None
    ram_bytes: int
    ram_total_bytes: int
    cores: tuple[Core | None, ...]
    gpu_load: int | None
    gpu_clock: int | None
    celsius: Mapping[str, float]
    rails: Mapping[str, Rail]

    @property
    def watts(self) -> float | None:
        """Power of the whole module: the rail that says so, or the sum of those there are; None where none is printed.

        tegrastats prints rails only to those who may read them (root on most boards).
        """
        for name in ("VDD_IN", "VIN", "POM_5V_IN"):
            if name in self.rails:
                return self.rails[name].milliwatts / 1e3
        return sum(rail.milliwatts for rail in self.rails.values()) / 1e3 if self.rails else None


def parse(text: str | bytes) -> tuple[TegraSample, ...]:
    """Every whole sample of a log; a line that was cut short at either end of it is left out.

    Raises:
        DeviceError: no line is tegrastats'.
    """
    said = ""
    samples = []
    for line in lines(text):
        sample = _sample(line)
        if sample is not None:
            samples.append(sample)
        elif line.strip():
            said = line
    if not samples:
        raise DeviceError(
            f"tegrastats printed no sample: run it on the device by hand and look (it said: {shortened(said, 200) or 'nothing'})"
        )
    return tuple(samples)


def _sample(line: str) -> TegraSample | None:
    ram, cpu = _RAM.search(line), _CPU.search(line)
    if ram is None or cpu is None:
        return None
    used, total = (int(ram[place]) * _UNITS[ram[3]] for place in (1, 2))
    if used > total or not is_bytes(total):
        return None
    time, gpu = _TIME.search(line), _GPU.search(line)
    clocks = (
        [clock for part in (gpu[2] or "").split(",")[:LISTED] if (clock := _clock(part)) is not None] if gpu else []
    )
    load = int(gpu[1]) if gpu and gpu[1] else None
    temperatures = {match[1]: float(match[2]) for match in _TEMPERATURE.finditer(line)}
    return TegraSample(
        time[1] if time else None,
        used,
        total,
        tuple(_core(part) for part in cpu[1].split(",")[:MOST_CORES]),
        load if load is None or load <= 100 else None,
        max(clocks) if clocks else None,
        {name: value for name, value in temperatures.items() if is_celsius(value)},
        _rails(line),
    )


def _rails(line: str) -> dict[str, Rail]:
    rails: dict[str, Rail] = {}
    for match in (*_OLD_POWER.finditer(line), *_POWER.finditer(line)):
        now, mean = int(match[2]), int(match[3]) if match[3] else None
        # NC is not connected
        if match[1] != "NC" and is_watts(now / 1e3) and (mean is None or is_watts(mean / 1e3)) and len(rails) < LISTED:
            rails[match[1]] = Rail(now, mean)
    return rails


def _clock(text: str) -> int | None:
    """MHz; None where there are none, or more than any chip has."""
    return int(text) if text and int(text) * 1000 <= MOST_KHZ else None


def _core(text: str) -> Core | None:
    match = _CORE.fullmatch(text.strip())
    if match is None or int(match[1]) > 100:
        return None
    return Core(int(match[1]), _clock(match[2] or ""))
