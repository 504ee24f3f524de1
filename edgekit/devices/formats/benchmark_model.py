"""``benchmark_model``: two tools bear the name. What they print, which of them it is, and what really ran.

The classic one is TensorFlow Lite's (``tflite/tools/benchmark`` of LiteRT, ``tensorflow/lite/tools/benchmark`` before): it
times an interpreter with delegates. LiteRT's own (``litert/tools``) times a compiled model on accelerators; it takes
neither input files nor an output file, so that no accuracy can be had from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from edgekit.core.errors import DeviceError
from edgekit.devices.formats.text import lines, shortened

Tool = Literal["tflite", "litert"]
Share = Literal["all", "part", "none"]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,2})?"
_FLAG = re.compile(r"^\s*--([A-Za-z0-9_]+)=")
_COUNT = re.compile(rf"\bcount=(\d+)((?: \w+={_NUMBER}(?:\(all same\))?)*)\s*$")
_FIELD = re.compile(rf"(\w+)=({_NUMBER})")
_SUMMARY = re.compile(
    rf"Inference timings in us: Init: ({_NUMBER}), First inference: ({_NUMBER}), Warmup \(avg\): ({_NUMBER}), "
    rf"Inference \(avg\): ({_NUMBER})"
)
_FOOTPRINT = re.compile(rf"[Mm]emory footprint[^:]{{0,60}}\(MB\): init={_NUMBER} overall=({_NUMBER})")
_PEAK = re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: ({_NUMBER})")
_APPLIED = re.compile(
    r"(?:Explicitly a|A)pplied (\S+) delegate, and the model graph will be (completely|partially) executed (?:by|w/) the delegate"
)
_IGNORED = re.compile(
    r"Though (\S+) delegate is explicitly applied, the model graph will not be executed by the delegate"
)
_REPLACED = re.compile(r"Replacing (\d+)(?: out of (\d+))? node\(s\) with delegate \(([^)\s]{1,100})\) node")
_UNSUPPORTED = re.compile(r"(GPU|NNAPI) acceleration is unsupported on this platform")
_FAILED = re.compile(r"Failed to apply (\S+) delegate")
_UNKNOWN = re.compile(r"Unconsumed cmdline flags: (.*)")
_ERROR = re.compile(r"(?:^|\s)(?:(?:ERROR|FATAL):|E[/ ]tflite\s*:)\s*(.*)")
_LITERT = re.compile(
    r"(Model initialization|Warmup \(first\)|Warmup \(avg\)|Inference \(avg\)|Overall footprint|Peak memory)"
    rf":\s+({_NUMBER})(?: ms| MB)?(?: \(\d+ runs\))?\s*$"
)
_OPERATION = re.compile(
    rf"^\s*(\S+)\s+((?:{_NUMBER}\s+){{2,3}})({_NUMBER})%\s+{_NUMBER}%\s+{_NUMBER}\s+(\d+)\s+(\S.*)$"
)


@dataclass(frozen=True)
class Timings:
    """Milliseconds of one series of runs. What a version of the tool does not print is None."""

    count: int
    mean_ms: float
    first_ms: float | None = None
    minimum_ms: float | None = None
    maximum_ms: float | None = None
    std_ms: float | None = None
    p5_ms: float | None = None
    median_ms: float | None = None
    p95_ms: float | None = None

    @property
    def cv(self) -> float | None:
        """Standard deviation over mean."""
        return None if self.std_ms is None or not self.mean_ms else self.std_ms / self.mean_ms


@dataclass(frozen=True)
class Delegated:
    """What a delegate got of the graph.

    Attributes:
        name: as the tool names it: ``GPU``, ``NNAPI``, ``XNNPACK``, or the runtime's own name for it.
        share: of the graph; ``none`` means that it ran on the CPU, whatever was asked for.
        nodes, of: operations that it took, where the runtime says so.
    """

    name: str
    share: Share
    nodes: int | None = None
    of: int | None = None


@dataclass(frozen=True)
class Operation:
    """One row of the profile: what ran, how long on average, and how much of the whole that is."""

    kind: str
    name: str
    mean_ms: float
    share: float


@dataclass(frozen=True)
class BenchmarkRun:
    """What one call of the tool said.

    Attributes:
        tool: which of the two.
        inference: the series that counts.
        warmup: the series before it, where its line was printed.
        init_ms: loading the model and making its delegates.
        first_ms: the very first inference.
        footprint_bytes: memory gained from the tool's start to its end.
        peak_bytes: the most at once, where it was asked to look.
        delegates: what each delegate that the tool or the runtime speaks of got.
        operations: the profile, where it was asked for.
        ignored_flags: what this version of the tool did not know and ran without.
        remarks: why something is not as asked, in the tool's words.
    """

    tool: Tool
    inference: Timings
    warmup: Timings | None
    init_ms: float | None
    first_ms: float | None
    footprint_bytes: int | None
    peak_bytes: int | None
    delegates: tuple[Delegated, ...]
    operations: tuple[Operation, ...]
    ignored_flags: tuple[str, ...]
    remarks: tuple[str, ...]


def flags_of(help_text: str | bytes) -> frozenset[str]:
    """The flags that ``--help`` lists, without dashes.

    Raises:
        DeviceError: it is no usage of either tool.
    """
    found = frozenset(match[1] for line in lines(help_text) if (match := _FLAG.match(line)))
    if not {"graph", "num_runs"} <= found:
        raise DeviceError(
            "benchmark_model --help lists neither --graph nor --num_runs: give LiteRT's benchmark_model for this device "
            f"(it said: {_said(help_text)})"
        )
    return found


def tool_of(flags: frozenset[str]) -> Tool:
    """Which of the two tools has these flags."""
    return "litert" if "use_npu" in flags or "dispatch_library_path" in flags else "tflite"


def parse(text: str | bytes) -> BenchmarkRun:
    """Read a run of either tool, standard output and error together.

    Raises:
        DeviceError: it ended before it had a result, and why it says it did.
    """
    reading = _Reading()
    for line in lines(text):
        reading.take(line)
    if not reading.series or not (reading.summary or reading.named):
        raise DeviceError(f"benchmark_model ended without a result: {reading.why() or _said(text)}")
    inference = reading.series[-1]
    init, first, warmup, mean = reading.summary or (
        reading.named.get("Model initialization"), reading.named.get("Warmup (first)"),
        reading.named.get("Warmup (avg)", 0.0), reading.named.get("Inference (avg)", 0.0),
    )  # fmt: skip
    if inference.mean_ms <= 0:
        raise DeviceError(
            f"benchmark_model says {inference.mean_ms:g} ms, which is no time: run it there by hand and look"
        )
    if abs(inference.mean_ms - mean) > max(0.02 * mean, 0.02):  # the one prints two decimals of a millisecond
        raise DeviceError(
            f"benchmark_model contradicts itself: {inference.mean_ms:g} ms in its statistics, {mean:g} ms in its summary"
        )
    before = next((one for one in reading.series[:-1] if abs(one.mean_ms - warmup) <= max(0.02 * warmup, 0.02)), None)
    footprint = reading.named.get("Overall footprint", reading.footprint)
    return BenchmarkRun(
        "litert" if reading.named else "tflite", inference, before, init, first,
        _megabytes(footprint), _megabytes(reading.named.get("Peak memory", reading.peak)),
        tuple(reading.delegates.values()), tuple(reading.operations), tuple(reading.ignored),
        (*reading.remarks, *reading.errors),
    )  # fmt: skip


class _Reading:
    """What was read so far, line after line."""

    def __init__(self) -> None:
        self.series: list[Timings] = []
        self.summary: tuple[float, float, float, float] | None = None
        self.named: dict[str, float] = {}
        self.footprint: float | None = None
        self.peak: float | None = None
        self.delegates: dict[str, Delegated] = {}
        self.operations: list[Operation] = []
        self.ignored: list[str] = []
        self.remarks: list[str] = []
        self.errors: list[str] = []
        self._section = ""

    def take(self, line: str) -> None:
        if "Profiling Info" in line:
            self._section = "operations" if "Operator-wise" in line else "others"
        elif "==========" in line and self._section:
            self._section = "run order" if self._section == "operations" and "Run Order" in line else "others"
        elif self._section == "run order":
            if match := _OPERATION.match(line):
                mean = float(match[2].split()[-1])
                self.operations.append(Operation(match[1], match[5].strip(), mean, float(match[3]) / 100))
        elif not self._section:  # profiles have count= lines of their own
            self._result(line)
        self._message(line)

    def _result(self, line: str) -> None:
        if match := _COUNT.search(line):
            if (timings := _timings(match)) is not None:
                self.series.append(timings)
        elif match := _SUMMARY.search(line):
            init, first, warmup, mean = (float(number) / 1e3 for number in match.groups())
            self.summary = init, first, warmup, mean
        elif match := _LITERT.search(line):
            self.named[match[1]] = float(match[2])
        elif match := _PEAK.search(line):
            self.peak = float(match[1])
        elif match := _FOOTPRINT.search(line):
            self.footprint = float(match[1])

    def _message(self, line: str) -> None:
        if match := _REPLACED.search(line):
            nodes, of = int(match[1]), int(match[2]) if match[2] else None
            share: Share = "none" if not nodes else "all" if nodes == of else "part"
            self.delegates[_short_name(match[3])] = Delegated(_short_name(match[3]), share, nodes, of)
        elif match := _APPLIED.search(line):
            share = "all" if match[2] == "completely" else "part"
            before = self.delegates.get(match[1], Delegated(match[1], share))
            self.delegates[match[1]] = replace(before, share=share)
        elif match := _IGNORED.search(line) or _UNSUPPORTED.search(line) or _FAILED.search(line):
            self.delegates[match[1]] = Delegated(match[1], "none")
            self.remarks.append(shortened(match[0]))
        elif match := _UNKNOWN.search(line):
            self.ignored += re.findall(r"--([A-Za-z0-9_]{1,100})", match[1])
        elif (match := _ERROR.search(line)) and len(self.errors) < 10:
            self.errors.append(shortened(match[1]))

    def why(self) -> str:
        return "; ".join([*self.errors[:2], *self.remarks[:1]])


def fallback(run: BenchmarkRun, name: str) -> str | None:
    """None when delegate ``name`` (``GPU``, ``NNAPI``) ran the graph or a part of it, else why it did not.

    A run whose delegate came to nothing is the CPU's, and the tool does not fail for it.
    """
    found = next((delegate for delegate in run.delegates if delegate.name == name), None)
    if found is not None and found.share != "none":
        return None
    return next((remark for remark in run.remarks if name in remark), f"the tool does not say that {name} ran anything")


# LITERT_CL is LiteRT's own delegate for the GPU by OpenCL.
_NAMES = (
    ("gpu", "GPU"), ("litert_cl", "GPU"), ("litert_gl", "GPU"), ("nnapi", "NNAPI"), ("xnnpack", "XNNPACK"),
    ("dispatch", "NPU"), ("hexagon", "Hexagon"),
)  # fmt: skip


def _short_name(delegate: str) -> str:
    """``GPU`` for ``TfLiteGpuDelegateV2``: the runtime's log and the tool's name the same delegates differently."""
    return next((name for part, name in _NAMES if part in delegate.lower()), delegate)


def _timings(match: re.Match[str]) -> Timings | None:
    """``count=0``, ``count=1 curr=9``, ``count=3 curr=9(all same)`` and the full line of any version; None for no runs."""
    values = {name: float(number) / 1e3 for name, number in _FIELD.findall(match[2])}
    count = int(match[1])
    if not count or not values:
        return None
    if "avg" not in values:
        same = values["curr"]
        return Timings(count, same, same, same, same, 0.0)
    return Timings(
        count, values["avg"], values.get("first"), values.get("min"), values.get("max"), values.get("std"),
        values.get("p5"), values.get("median"), values.get("p95"),
    )  # fmt: skip


def _megabytes(value: float | None) -> int | None:
    return None if value is None else int(value * (1 << 20))


def _said(text: str | bytes) -> str:
    last = [line for line in lines(text) if line.strip()][-1:]
    return shortened(last[0], 200) if last else "nothing"
