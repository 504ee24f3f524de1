"""What machine the numbers are from. What it does not offer is recorded as unavailable, never guessed."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from edgekit.core.registry import versions

PACKAGES = (
    "torch", "numpy", "openvino", "nncf", "ai-edge-litert", "litert-torch", "ai-edge-quantizer", "coremltools", "onnx",
    "onnxruntime",
)  # fmt: skip
UNAVAILABLE = "unavailable"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip() or UNAVAILABLE
    except OSError:
        return UNAVAILABLE


def _processor() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.lower().startswith(("model name", "hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or UNAVAILABLE


def _flags() -> list[str]:
    """The processor's features that decide how fast and in which precision networks run."""
    interesting = (
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_int8",
        "amx_bf16",
        "asimddp",
        "i8mm",
        "sve",
    )
    for line in _read("/proc/cpuinfo").splitlines():
        if line.lower().startswith(("flags", "features")):
            present = set(line.partition(":")[2].split())
            return [flag for flag in interesting if flag in present]
    return []


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _temperature() -> str:
    readings = []
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        value = _read(str(zone / "temp"))
        if value.lstrip("-").isdigit():
            readings.append(f"{_read(str(zone / 'type'))} {int(value) / 1000:.0f} C")
    return ", ".join(readings) or UNAVAILABLE


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_environment() -> dict[str, Any]:
    """CPU, memory, system, clocks, temperature and package versions, as plain values."""
    cores = available_cores()
    return {
        "cpu": _processor(),
        "cpu_flags": _flags(),
        "cores": cores,
        "memory_bytes": _memory(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "clock_khz": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"),
        "temperature": _temperature(),
        "packages": versions(*PACKAGES),
    }
