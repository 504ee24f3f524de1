"""What machine the numbers are from. What it does not offer is recorded as unavailable, never guessed.

Runs on devices too: Python 3.9 and numpy.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from edgekit.core.measurement import Conditions
from edgekit.core.quantities import is_celsius, is_khz
from edgekit.core.registry import versions
from edgekit.runtimes.common import available_cores as available_cores

PACKAGES = (
    "torch", "numpy", "openvino", "nncf", "ai-edge-litert", "tflite-runtime", "litert-torch", "ai-edge-quantizer",
    "coremltools", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt",
)  # fmt: skip
UNAVAILABLE = "unavailable"
PROCESSOR_FOLDERS = "/sys/devices/system/cpu"
ARM_PARTS = {
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1", "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1", "0xd41": "Cortex-A78", "0xd42": "Cortex-A78AE", "0xd44": "Cortex-X1", "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710", "0xd48": "Cortex-X2", "0xd49": "Neoverse-N2", "0xd4d": "Cortex-A715", "0xd4e": "Cortex-X3",
    "0xd4f": "Neoverse-V2", "0xd80": "Cortex-A520", "0xd81": "Cortex-A720", "0xd82": "Cortex-X4", "0xd84": "Neoverse-V3",
    "0xd85": "Cortex-X925", "0xd87": "Cortex-A725",
}  # fmt: skip
"""Arm's own cores by the part number of MIDR_EL1, which is all that Linux says of them."""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ") or UNAVAILABLE
    except OSError:
        return UNAVAILABLE


def _processor() -> str:
    text = _read("/proc/cpuinfo")
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "hardware"):
            return value.strip()
    return arm_cores(text) or platform.processor() or platform.machine() or UNAVAILABLE


def arm_cores(cpuinfo: str) -> str:
    """The cores that a Linux on Arm lists, as ``4 x Cortex-A55, 4 x Cortex-A76``; empty elsewhere."""
    parts = [
        ARM_PARTS.get(part, f"Arm part {part}") for part in re.findall(r"(?im)^CPU part\s*:\s*(\w{1,20})", cpuinfo)
    ]
    return ", ".join(f"{parts.count(name)} x {name}" for name in dict.fromkeys(parts))


_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "asimdhp", "asimddp",
    "i8mm", "bf16", "sve",
)  # fmt: skip


def cpu_flags(cpuinfo: str) -> list[str]:
    """The processor's features that decide how fast and in which precision networks run."""
    for line in cpuinfo.splitlines():
        if line.lower().startswith(("flags", "features")):
            present = set(line.partition(":")[2].split())
            return [flag for flag in _FLAGS if flag in present]
    return []


def memory_bytes() -> int | None:
    """What the machine has; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def temperatures() -> dict[str, float]:
    """Degrees Celsius by sensor; empty where there is none."""
    readings = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        value = _read(str(zone / "temp"))
        if re.fullmatch(r"-?[0-9]{1,9}", value) and is_celsius(int(value) / 1000):
            name = _read(str(zone / "type"))
            readings[zone.name if name == UNAVAILABLE or name in readings else name] = int(value) / 1000
    return readings


def clocks() -> dict[str, int]:
    """The clock of each group of cores that share one, now, in kHz; empty where the system does not say.

    Keys are the cores, as ``0-3``.
    """
    found: dict[str, int] = {}
    for policy in sorted(Path(PROCESSOR_FOLDERS, "cpufreq").glob("policy*")):
        value = _read(str(policy / "scaling_cur_freq"))
        if re.fullmatch(r"[0-9]{1,9}", value) and is_khz(int(value)):
            found[_read(str(policy / "related_cpus")).replace(" ", "-")] = int(value)
    return found


def processor() -> list[Any]:
    """What a runtime's labels may depend on: kernels are chosen by it, and some of them saturate."""
    return [_processor(), cpu_flags(_read("/proc/cpuinfo"))]


def clusters() -> list[str]:
    """Groups of cores with their governor and the highest clock that it may choose, as people read them."""
    return [
        cluster(*(_read(str(policy / name)) for name in ("related_cpus", "scaling_governor", "scaling_max_freq")))
        for policy in sorted(Path(PROCESSOR_FOLDERS, "cpufreq").glob("policy*"))
    ]


def cluster(cores: str, governor: str, highest: str) -> str:
    """One group in words; ``highest`` in kHz, as Linux says it."""
    limit = f"{int(highest) / 1e6:.2f} GHz" if re.fullmatch(r"[0-9]{1,9}", highest) else UNAVAILABLE
    return f"cores {cores}: {governor}, to {limit}"


def busy_seconds(process: int | None = None) -> float | None:
    """Seconds of work since the start, of the cores that this process may use or of one process; None where nobody says."""
    try:
        if process is None:
            cores = os.sched_getaffinity(0)
            lines = (line.split() for line in Path("/proc/stat").read_text(encoding="ascii").splitlines())
            own = [
                [int(value) for value in line[1:9]]
                for line in lines
                if re.fullmatch(r"cpu\d+", line[0]) and int(line[0][3:]) in cores
            ]
            ticks = sum(sum(line) - line[3] - line[4] for line in own)  # but for idle, and idle while a disk works
        else:
            text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
            ticks = sum(map(int, text.rpartition(")")[2].split()[11:13]))
        return float(ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def conditions() -> Conditions:
    """What may change while a measurement goes on, cheap enough to look at between any two blocks of samples."""
    return Conditions(clocks(), temperatures())


def _temperature() -> str:
    return ", ".join(f"{name} {value:.0f} C" for name, value in temperatures().items()) or UNAVAILABLE


def _system() -> str:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]}"
    name = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read("/etc/os-release"), re.MULTILINE)
    return f"{platform.system()} {platform.release()}" + (f" ({name[1]})" if name else "")


def local_environment() -> dict[str, Any]:
    """CPU, memory, system, clocks, temperature and package versions, as plain values."""
    return {
        "cpu": _processor(),
        "cpu_flags": cpu_flags(_read("/proc/cpuinfo")),
        "cores": available_cores(),
        "memory_bytes": memory_bytes(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "governor": _read(f"{PROCESSOR_FOLDERS}/cpu0/cpufreq/scaling_governor"),
        "clock_khz": _read(f"{PROCESSOR_FOLDERS}/cpu0/cpufreq/scaling_cur_freq"),
        "temperature": _temperature(),
        "packages": versions(*PACKAGES),
    }


def device_environment() -> dict[str, Any]:
    """:func:`local_environment` with what tells a board from another."""
    board = _read("/proc/device-tree/model")
    jetpack = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", _read("/etc/nv_tegra_release"))
    found = {
        **local_environment(),
        "os": _system(),
        "architecture": platform.machine(),
        "clusters": clusters() or UNAVAILABLE,
    }
    if board != UNAVAILABLE:
        found["board"] = board
    if jetpack:
        found["jetson_linux"] = f"{jetpack[1]}.{jetpack[2]}"
    return found


def boot_identity() -> str:
    """Changes with every start of the machine; empty where the system does not say."""
    identity = _read("/proc/sys/kernel/random/boot_id")
    return "" if identity == UNAVAILABLE else identity
