"""``trtexec``: its command lines that mean the same on TensorRT 10 and 11, and what it prints and exports.

10 and 11 time different things by default (11 captures a CUDA graph, spins, and leaves the copies out), so every choice is
said here. Flags and forms: ``samples/common/sampleOptions.cpp`` and ``sampleReporting.cpp`` of NVIDIA's TensorRT.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.core.errors import DeviceError
from edgekit.devices.formats.text import lines, shortened

Version = tuple[int, int, int]
OLDEST: Version = (10, 0, 0)
"""Before it there is no ``--stronglyTyped`` that is to be relied on."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|-?inf|-?nan"
_BANNER = re.compile(r"TensorRT\.trtexec \[TensorRT v(\d{4,6}|\d+\.\d+\.\d+)(?:\.\d+)?\](?: \[b\d+\])?")
_VERSION = re.compile(r"TensorRT version: (\d+)\.(\d+)\.(\d+)")
# To TensorRT 8.2 there is an "End-to-End Host Latency" too, which is another thing.
_METRIC = re.compile(r"(?:^|\] ?)(GPU Compute Time|Latency|Enqueue Time|H2D Latency|D2H Latency): (min = .*)$")
_STATISTIC = re.compile(rf"(min|max|mean|median|percentile\((?P<at>\d+(?:\.\d+)?)%\)) = (?P<value>{_NUMBER}) ms")
_THROUGHPUT = re.compile(rf"Throughput: ({_NUMBER}) qps")
_QUERIES = re.compile(r"Timing trace has (\d+) queries")
_UNSTABLE = re.compile(rf"coefficient of variance = ({_NUMBER})%")
_DEVICE = re.compile(r"Selected Device: (.+)$")
_COMPUTE = re.compile(r"Compute Capability: (\d+\.\d+)")
_GPU_NOW = re.compile(
    r"\[MemUsageChange\] TensorRT-managed allocation in [^:]{1,80}: .*now: CPU -?\d+, GPU (-?\d+) \(MiB\)"
)
_GPU_PART = re.compile(r"Total (?:Device Persistent|Scratch|Activation|Weights) Memory: (\d+)(?: bytes)?$")
_BUILT = re.compile(rf"Engine (built|loaded|deserialized) in ({_NUMBER}) sec")
_LEVEL = re.compile(r"\[([EW])\] (.*)$")
_UNKNOWN = re.compile(r"Unknown option: (\S+)")
_OTHER_DEVICE = (
    "engine plan file is generated on an incompatible device",
    "engine plan file is not compatible with this version of TensorRT",
    "Version tag does not match",
    "Platform specific tag mismatch",
    "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed",
    "Target GPU SM",
    "Using an engine plan file across different models of devices",
)
"""How TensorRT says that an engine was built elsewhere: the runtime's errors of 8 to 11, and one warning."""


@dataclass(frozen=True)
class Statistics:
    """Milliseconds of one of the printed metrics; percentiles by their number."""

    minimum: float
    maximum: float
    mean: float
    median: float
    percentiles: Mapping[float, float]


@dataclass(frozen=True)
class TrtexecRun:
    """What one call printed.

    Attributes:
        version: TensorRT's.
        gpu: the device's name, and its compute capability.
        seconds: building or loading the engine.
        queries: timed ones; None without inference.
        throughput: queries a second.
        metrics: ``GPU Compute Time``, ``Latency``, ``Enqueue Time``, ``H2D Latency``, ``D2H Latency``.
        gpu_bytes: what TensorRT itself held on the GPU at the end.
        warnings: trtexec's own, such as an unstable time.
    """

    version: Version
    gpu: str | None
    compute_capability: str | None
    seconds: float | None
    queries: int | None
    throughput: float | None
    metrics: Mapping[str, Statistics]
    gpu_bytes: int | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class LayerTime:
    """One layer of the engine: its mean and median milliseconds, and its part of the whole."""

    name: str
    mean_ms: float
    median_ms: float | None
    share: float


def build_command(
    version: Version, onnx: str, engine: str, timing_cache: str, layers: str, program: str = "trtexec"
) -> tuple[str, ...]:
    """Builds the engine and does not run it. The graph's own precisions are taken at their word.

    Args:
        version: of the trtexec that will be called.
        onnx, engine, timing_cache, layers: paths on the device: the model, and what is written.

    Raises:
        DeviceError: that TensorRT is too old for a graph with Q/DQ.
    """
    check(version)
    # In 11 every network is strongly typed and the flag is kept as a no-op: it is left out there, lest it goes.
    typed = ("--stronglyTyped",) if version[0] == 10 else ()
    return (
        program, f"--onnx={onnx}", f"--saveEngine={engine}", *typed, "--skipInference",
        "--profilingVerbosity=detailed", f"--timingCacheFile={timing_cache}", f"--exportLayerInfo={layers}",
    )  # fmt: skip


def time_command(
    version: Version,
    engine: str,
    times: str,
    profile: str | None,
    *,
    warmup_ms: int,
    seconds: int,
    queries: int,
    transfers: bool = False,
    program: str = "trtexec",
) -> tuple[str, ...]:
    """Times an engine: one query after another, with a CUDA graph, spinning, on both versions.

    Args:
        times: file on the device that is written.
        profile: likewise, from a run of its own; None for none.
        warmup_ms: before the first timed query.
        seconds, queries: the least of each.
        transfers: copy frame and labels too, as ``latency`` shows; else ``compute`` is all there is.
    """
    check(version)
    copies: tuple[str, ...] = ("--noDataTransfers",)
    if transfers:
        copies = ("--includeDataTransfers",) if version[0] >= 11 else ()
    profiled: tuple[str, ...] = ()
    if profile is not None:
        profiled = ("--separateProfileRun", "--profilingVerbosity=detailed", f"--exportProfile={profile}")
    return (
        program, f"--loadEngine={engine}", "--useCudaGraph", "--useSpinWait", *copies, f"--warmUp={warmup_ms}",
        f"--duration={seconds}", f"--iterations={queries}", "--percentile=50,90,99", f"--exportTimes={times}", *profiled,
    )  # fmt: skip


def check(version: Version) -> None:
    """Raise DeviceError where TensorRT is older than 10."""
    if version < OLDEST:
        raise DeviceError(
            f"TensorRT {'.'.join(map(str, version))} is too old for a strongly typed Q/DQ graph: "
            "use JetPack 6 or newer, which has TensorRT 10"
        )


def parse_version(text: str | bytes) -> Version:
    """TensorRT's version from any output of trtexec, ``--help`` included.

    Raises:
        DeviceError: there is none.
    """
    found = _version(text)
    if found is None:
        raise DeviceError(
            f"trtexec does not say its version: install TensorRT's own trtexec there (it said: {_said(text)})"
        )
    return found


def parse_output(text: str | bytes) -> TrtexecRun:
    """What a build or a timing run printed, standard output and error together.

    Raises:
        DeviceError: it did not pass, and why it says so.
    """
    version = _version(text)
    gpu = compute = None
    seconds: float | None = None
    queries: int | None = None
    throughput: float | None = None
    metrics: dict[str, Statistics] = {}
    gpu_mib: int | None = None
    parts = 0
    warnings: list[str] = []
    errors: list[str] = []
    passed = False
    for line in lines(text):
        if line.startswith("&&&& "):
            passed = line.startswith("&&&& PASSED")
        elif match := _LEVEL.search(line):
            (errors if match[1] == "E" else warnings).append(shortened(match[2]))
        elif (match := _METRIC.search(line)) and (statistics := _statistics(match[2])):
            metrics[match[1]] = statistics
        elif match := _THROUGHPUT.search(line):
            throughput = _finite(match[1])
        elif match := _QUERIES.search(line):
            queries = int(match[1])
        elif match := _DEVICE.search(line):
            gpu = shortened(match[1], 100)
        elif match := _COMPUTE.search(line):
            compute = match[1]
        elif match := _GPU_NOW.search(line):
            gpu_mib = max(int(match[1]), gpu_mib or 0)
        elif match := _GPU_PART.search(line):
            parts += int(match[1])
        elif match := _BUILT.search(line):
            seconds = _finite(match[2])
    if not passed or version is None:
        raise DeviceError(f"trtexec failed: {_why(errors, warnings, text)}")
    # On Jetson the allocator's whole mebibytes are often 0; the builder's own sums are bytes.
    held = gpu_mib * (1 << 20) if gpu_mib else parts or None
    return TrtexecRun(
        version, gpu, compute, seconds, queries, throughput, metrics, held, tuple(dict.fromkeys(warnings))[:20]
    )


def built_elsewhere(text: str | bytes) -> bool:
    """Whether trtexec refuses, or warns of, an engine that another GPU or another TensorRT built."""
    return any(phrase in line for line in lines(text) for phrase in _OTHER_DEVICE)


def unknown_options(text: str | bytes) -> tuple[str, ...]:
    """Options that this trtexec refused."""
    return tuple(match[1] for line in lines(text) if (match := _UNKNOWN.search(line)))


def unstable(run: TrtexecRun) -> float | None:
    """The coefficient of variation that trtexec warns of, as a fraction; None when it does not."""
    found = (match for warning in run.warnings if (match := _UNSTABLE.search(warning)))
    value = next((_finite(match[1]) for match in found), None)
    return None if value is None else value / 100


def parse_profile(text: str | bytes) -> tuple[LayerTime, ...]:
    """``--exportProfile``: layers in the engine's order.

    Raises:
        DeviceError: it is not that.
    """
    rows = [row for row in _rows(text, "--exportProfile") if "name" in row]
    if not rows or not all(_is_number(row.get(field)) for row in rows for field in ("averageMs", "percentage")):
        raise DeviceError("trtexec's --exportProfile holds no layer: the engine was not profiled, look at its log")
    return tuple(
        LayerTime(
            shortened(str(row["name"]), 500), float(row["averageMs"]),
            float(row["medianMs"]) if _is_number(row.get("medianMs")) else None, float(row["percentage"]) / 100,
        )
        for row in rows
    )  # fmt: skip


def parse_layers(text: str | bytes) -> Mapping[str, str]:
    """``--exportLayerInfo``: each layer's name and the precision (``INT8``, ``FP16``, ...) of its first output.

    An engine that was built without detail lists bare names, which have no precision: they map to an empty text.

    Raises:
        DeviceError: it is not that.
    """
    document = _json(text, "--exportLayerInfo")
    layers = document.get("Layers") if isinstance(document, dict) else None
    if not isinstance(layers, list):
        raise DeviceError("trtexec's --exportLayerInfo holds no layers: build the engine again")
    found: dict[str, str] = {}
    for layer in layers:
        if isinstance(layer, str):
            found[shortened(layer, 500)] = ""
        elif isinstance(layer, dict) and "Name" in layer:
            outputs = layer.get("Outputs")
            first = outputs[0] if isinstance(outputs, list) and outputs and isinstance(outputs[0], dict) else {}
            found[shortened(str(layer["Name"]), 500)] = _precision(str(first.get("Format/Datatype", "")))
    return found


_PRECISIONS = (
    ("int8", "INT8"), ("fp8", "FP8"), ("fp16", "FP16"), ("half", "FP16"), ("bf16", "BF16"), ("fp32", "FP32"),
    ("float", "FP32"), ("int32", "INT32"), ("int64", "INT64"), ("uint8", "UINT8"),
)  # fmt: skip


def _precision(form: str) -> str:
    """``INT8`` of ``Thirty-two wide channel vectorized row major Int8 format`` (to 10.x) and of ``Int8 NC/32HW32`` alike."""
    words = re.findall(r"[a-z]+\d*", form.lower())
    return next((name for word, name in _PRECISIONS if word in words), shortened(form, 60))


def _version(text: str | bytes) -> Version | None:
    for line in lines(text):
        if match := _BANNER.search(line):
            digits = match[1]
            if "." in digits:
                major, minor, patch = (int(part) for part in digits.split("."))
                return major, minor, patch
            if len(digits) < 5:  # to TensorRT 8: v8502 is 8.5.2
                return int(digits[0]), int(digits[1]), int(digits[2:])
            return int(digits[:-4]), int(digits[-4:-2]), int(digits[-2:])
        if match := _VERSION.search(line):
            return int(match[1]), int(match[2]), int(match[3])
    return None


def _statistics(text: str) -> Statistics | None:
    found: dict[str, float] = {}
    percentiles: dict[float, float] = {}
    for match in _STATISTIC.finditer(text):
        value = float(match["value"])
        if match["at"] is None:
            found[match[1]] = value
        elif math.isfinite(value):
            percentiles[float(match["at"])] = value
    if not {"min", "max", "mean", "median"} <= found.keys() or not all(map(math.isfinite, found.values())):
        return None
    return Statistics(found["min"], found["max"], found["mean"], found["median"], percentiles)


def _json(text: str | bytes, flag: str) -> Any:
    try:
        # trtexec does not escape a layer's name, and names come from the user's modules.
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        raise DeviceError(f"trtexec's {flag} file is not valid JSON: it was cut short, run it again") from None


def _rows(text: str | bytes, flag: str) -> list[dict[str, Any]]:
    document = _json(text, flag)
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise DeviceError(f"trtexec's {flag} file is no list of records: run it again")
    return document


def _is_number(value: Any) -> bool:
    # The limit first: JSON has integers that no float holds.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15


def _finite(number: str) -> float | None:
    value = float(number)
    return value if math.isfinite(value) else None


def _why(errors: list[str], warnings: list[str], text: str | bytes) -> str:
    if options := unknown_options(text):
        return f"this version does not know {', '.join(options)}"
    # The last errors only say that something before them failed.
    told = [error for error in errors if "set up failed" not in error and "Failed to create engine" not in error]
    return "; ".join((told or errors or warnings)[:2]) or _said(text)


def _said(text: str | bytes) -> str:
    last = [line for line in lines(text) if line.strip()][-1:]
    return shortened(last[0], 200) if last else "nothing"
