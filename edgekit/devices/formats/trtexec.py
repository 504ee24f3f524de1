"""``trtexec``: its command lines that mean the same on TensorRT 10 and 11, and what it prints and exports.

10 and 11 time different things by default (11 captures a CUDA graph, spins, and leaves the copies out), so every choice is
said here. Flags and forms: ``samples/common/sampleOptions.cpp`` and ``sampleReporting.cpp`` of NVIDIA's TensorRT.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.core.errors import DeviceError
from edgekit.core.quantities import LONGEST_MS, MOST_MS, is_bytes, is_number, is_runs
from edgekit.devices.formats.text import LISTED, NUMBER, clean_text, last_said, lines, number, shortened

Version = tuple[int, int, int]
OLDEST: Version = (10, 0, 0)
"""Before it there is no ``--stronglyTyped`` that is to be relied on."""

_BANNER = re.compile(r"TensorRT\.trtexec \[TensorRT v([0-9]{4,6}|[0-9]{1,2}\.[0-9]{1,3}\.[0-9]{1,3})(?:\.[0-9]+)?\]")
_VERSION = re.compile(r"TensorRT version: ([0-9]{1,2})\.([0-9]{1,3})\.([0-9]{1,3})\b")
# To TensorRT 8.2 there is an "End-to-End Host Latency" too, which is another thing.
_METRIC = re.compile(r"(?:^|\] ?)(GPU Compute Time|Latency|Enqueue Time|H2D Latency|D2H Latency): (min = .*)$")
_PERCENTILE = re.compile(r"percentile\(([0-9]{1,2}(?:\.[0-9]{1,6})?|100)%\)")
_THROUGHPUT = re.compile(rf"Throughput: ({NUMBER}) qps")
_QUERIES = re.compile(r"Timing trace has ([0-9]+) queries")
_UNSTABLE = re.compile(rf"coefficient of variance = ({NUMBER})%")
_DEVICE = re.compile(r"Selected Device: (.+)$")
_COMPUTE = re.compile(r"Compute Capability: ([0-9]{1,2}\.[0-9]{1,2})\b")
_GPU_NOW = re.compile(
    r"\[MemUsageChange\] TensorRT-managed allocation in [^:]{1,80}: [^:\[]{1,80}now: CPU -?[0-9]+, GPU (-?[0-9]+) \(MiB\)"
)
_GPU_PART = re.compile(r"Total (?:Device Persistent|Scratch|Activation|Weights) Memory: ([0-9]+)(?: bytes)?$")
_BUILT = re.compile(rf"Engine (?:built|loaded|deserialized) in ({NUMBER}) sec")
_LEVEL = re.compile(r"\[([VIWEF])\] (.*)$")
_UNKNOWN = re.compile(r"Unknown option: (\S{1,200})")
_SUMMED = 0.1
"""Share by which a mean may be off: trtexec adds up all queries in single precision."""
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
    """Milliseconds of one of the printed metrics, in their order; percentiles by their number. Copies may take none."""

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


@dataclass(frozen=True)
class Timing:
    """How an engine is to be timed.

    Attributes:
        queries, seconds: the least of each.
        warmup_ms: before the first timed query.
        transfers: copy frame and labels too, as ``latency`` shows; else ``compute`` is all there is.
        profiled: write a profile, too, from a run of its own.
    """

    queries: int
    seconds: float
    warmup_ms: int = 1000
    transfers: bool = False
    profiled: bool = False


def time_command(
    version: Version, engine: str, timing: Timing, times: str, profile: str, program: str = "trtexec"
) -> tuple[str, ...]:
    """Times an engine: one query after another, with a CUDA graph, spinning, on both versions.

    Args:
        times, profile: files on the device that are written.
    """
    check(version)
    copies: tuple[str, ...] = ("--noDataTransfers",)
    if timing.transfers:
        copies = ("--includeDataTransfers",) if version[0] >= 11 else ()
    profiled: tuple[str, ...] = ()
    if timing.profiled:
        profiled = ("--separateProfileRun", "--profilingVerbosity=detailed", f"--exportProfile={profile}")
    seconds = max(1, round(timing.seconds))
    return (
        program, f"--loadEngine={engine}", "--useCudaGraph", "--useSpinWait", *copies, f"--warmUp={timing.warmup_ms}",
        f"--duration={seconds}", f"--iterations={timing.queries}", "--percentile=50,90,99", f"--exportTimes={times}", *profiled,
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
            f"trtexec does not say its version: install TensorRT's own trtexec there (it said: {last_said(text)})"
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
    nonsense: list[str] = []
    passed = False
    for line in lines(text):
        if line.startswith("&&&& "):
            passed = line.startswith("&&&& PASSED")
        elif (match := _LEVEL.search(line)) and match[1] in "EFW":
            if match[1] == "W" and len(warnings) < LISTED:
                warnings.append(shortened(match[2]))
        elif match := _METRIC.search(line):
            try:
                metrics[match[1]] = _statistics(match[2])
            except ValueError as error:
                nonsense.append(f"{match[1]}, {error}: '{shortened(match[2], 200)}'")
        elif match := _THROUGHPUT.search(line):
            throughput = number(match[1])
            if throughput is None or not 0 <= throughput <= 1e9:
                nonsense.append(f"a throughput: '{shortened(match[0], 200)}'")
        elif match := _QUERIES.search(line):
            queries = int(match[1])
            if queries and not is_runs(queries):
                nonsense.append(f"a number of queries: '{shortened(match[0], 200)}'")
        elif match := _DEVICE.search(line):
            gpu = shortened(match[1], 100)
        elif match := _COMPUTE.search(line):
            compute = match[1]
        elif match := _GPU_NOW.search(line):
            gpu_mib = max(int(match[1]), gpu_mib or 0)
        elif match := _GPU_PART.search(line):
            parts += int(match[1])
        elif match := _BUILT.search(line):
            seconds = number(match[1])
            if seconds is None or not 0 <= seconds <= MOST_MS / 1e3:
                nonsense.append(f"a time: '{shortened(match[0], 200)}'")
    if not passed or version is None:
        raise DeviceError(f"trtexec failed: {why(text)}")
    if nonsense:
        raise DeviceError(f"trtexec prints what no run has, {nonsense[0]}: run it there by hand and look")
    # On Jetson the allocator's whole mebibytes are often 0; the builder's own sums are bytes.
    held = gpu_mib * (1 << 20) if gpu_mib else parts or None
    return TrtexecRun(
        version, gpu, compute, seconds, queries, throughput, metrics, held if is_bytes(held) else None,
        tuple(dict.fromkeys(warnings))[:20],
    )  # fmt: skip


def why(text: str | bytes) -> str:
    """What trtexec says went wrong: its first errors, each with what belongs to it."""
    if options := unknown_options(text):
        return f"this version does not know {', '.join(options[:5])}"
    errors, warnings = _complaints(text)
    # The last errors only say that something before them failed.
    told = [error for error in errors if "set up failed" not in error and "Failed to create engine" not in error]
    return shortened("; ".join((told or errors or warnings)[:2]), 600) or last_said(text)


def _complaints(text: str | bytes) -> tuple[list[str], list[str]]:
    """Errors and warnings. What the ONNX parser says of one node is one error: where, and the lines without a level that say why."""
    errors: list[str] = []
    warnings: list[str] = []
    follows = node = False
    for line in lines(text):
        match = _LEVEL.search(line)
        said = match[2] if match else line.strip()
        if match is not None and match[1] not in "EF":
            follows = node = False
            warnings += [shortened(said)] if match[1] == "W" and len(warnings) < LISTED else []
        elif match is not None and ("--- Begin node ---" in said or "--- End node ---" in said):
            node = "Begin" in said  # as the model holds it, which may be pages long
        elif node or not said or line.startswith("&&&& "):
            continue
        elif errors and (errors[-1].endswith(":") if match else follows):
            errors[-1] = shortened(f"{errors[-1]} {said}", 500)
        elif match is not None and len(errors) < LISTED:
            errors.append(shortened(said))
            follows = True
    return errors, warnings


def built_elsewhere(text: str | bytes) -> bool:
    """Whether trtexec refuses, or warns of, an engine that another GPU or another TensorRT built."""
    return any(phrase in line for line in lines(text) for phrase in _OTHER_DEVICE)


def unknown_options(text: str | bytes) -> tuple[str, ...]:
    """Options that this trtexec refused."""
    return tuple(match[1] for line in lines(text) if (match := _UNKNOWN.search(line)))[:LISTED]


def unstable(run: TrtexecRun) -> float | None:
    """The coefficient of variation that trtexec warns of, as a fraction; None when it does not."""
    found = (match for warning in run.warnings if (match := _UNSTABLE.search(warning)))
    value = next((number(match[1]) for match in found), None)
    return None if value is None or not 0 <= value <= 1e6 else value / 100


def parse_profile(text: str | bytes) -> tuple[LayerTime, ...]:
    """``--exportProfile``: layers in the engine's order.

    Raises:
        DeviceError: it is not that.
    """
    rows = [row for row in _rows(text, "--exportProfile") if "name" in row]
    if not rows or not all(_is_time(row.get("averageMs")) and _is_percent(row.get("percentage")) for row in rows):
        raise DeviceError("trtexec's --exportProfile holds no layer: the engine was not profiled, look at its log")
    return tuple(
        LayerTime(
            clean_text(str(row["name"]), 500), float(row["averageMs"]),
            float(row["medianMs"]) if _is_time(row.get("medianMs")) else None, float(row["percentage"]) / 100,
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
            found[clean_text(layer, 500)] = ""
        elif isinstance(layer, dict) and "Name" in layer:
            outputs = layer.get("Outputs")
            first = outputs[0] if isinstance(outputs, list) and outputs and isinstance(outputs[0], dict) else {}
            found[clean_text(str(layer["Name"]), 500)] = _precision(str(first.get("Format/Datatype", "")))
    return found


_PRECISIONS = (
    ("int8", "INT8"), ("fp8", "FP8"), ("fp16", "FP16"), ("half", "FP16"), ("bf16", "BF16"), ("fp32", "FP32"),
    ("float", "FP32"), ("int32", "INT32"), ("int64", "INT64"), ("uint8", "UINT8"),
)  # fmt: skip


def _precision(form: str) -> str:
    """``INT8`` of ``Thirty-two wide channel vectorized row major Int8 format`` (to 10.x) and of ``Int8 NC/32HW32`` alike."""
    words = re.findall(r"[a-z]+\d*", form.lower())
    return next((name for word, name in _PRECISIONS if word in words), clean_text(form, 60))


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


def _statistics(text: str) -> Statistics:
    """One metric's line.

    Raises:
        ValueError: it lacks one of the four, or has what no times have.
    """
    found: dict[str, float] = {}
    percentiles: dict[float, float] = {}
    for part in text.split(", ")[:LISTED]:
        name, _, rest = part.partition(" = ")
        value = number(rest.partition(" ")[0])
        if value is None or not _is_time(value):
            raise ValueError(f"{shortened(name, 40)} is no time")
        if percentile := _PERCENTILE.fullmatch(name):
            percentiles[float(percentile[1])] = value
        else:
            found[name] = value
    if lacking := [name for name in ("min", "max", "mean", "median") if name not in found]:
        raise ValueError(f"there is no {lacking[0]}")
    low, high = found["min"], found["max"]
    between = all(low <= value <= high for value in (found["median"], *percentiles.values()))
    if not between or not (1 - _SUMMED) * low <= found["mean"] <= (1 + _SUMMED) * high:
        raise ValueError("not all are between min and max")
    ordered = [percentiles[at] for at in sorted(percentiles)]
    if ordered != sorted(ordered):
        raise ValueError("the percentiles do not rise")
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


def _is_time(value: Any) -> bool:
    """Milliseconds, or nothing at all, as of a copy that was left out."""
    return is_number(value) and 0 <= value <= LONGEST_MS


def _is_percent(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 100.01
