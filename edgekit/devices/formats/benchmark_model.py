"""``benchmark_model``: two tools bear the name. What they print, which of them it is, and what really ran.

The classic one is TensorFlow Lite's (``tflite/tools/benchmark`` of LiteRT, ``tensorflow/lite/tools/benchmark`` before): it
times an interpreter with delegates. LiteRT's own (``litert/tools``) times a compiled model on accelerators; it takes
neither input files nor an output file, so that no accuracy can be had from it.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from edgekit.core.errors import DeviceError
from edgekit.core.quantities import LONGEST_MS, MOST_BYTES, MOST_MS, MOST_RUNS, is_milliseconds, is_runs, is_share
from edgekit.devices.formats.text import LISTED, NUMBER, last_said, lines, number, shortened

Tool = Literal["tflite", "litert"]
Share = Literal["all", "part", "none"]

_FLAG = re.compile(r"\s*--([A-Za-z0-9_]+)=")
_COUNT = re.compile(r"\bcount=([0-9]+)(?=\s|$)")
_STATISTICS = ("first", "curr", "min", "max", "avg", "std", "p5", "median", "p95")
_ROUNDED = 1e-4
"""Share by which a printed mean may be off: the tool prints six digits of it."""
_SERIES = "Running benchmark for "
"""Said before each series: the warm-up, then the inference."""
_SUMMARY = re.compile(
    rf"Inference timings in us: Init: ({NUMBER}), First inference: ({NUMBER}), Warmup \(avg\): ({NUMBER}), "
    rf"Inference \(avg\): ({NUMBER})"
)
# To TensorFlow 2.1, in two forms.
_OLD_SUMMARY = re.compile(
    rf"Average inference timings in us: Warmup: ({NUMBER}), Init: ({NUMBER}), (?:no stats|Inference): ({NUMBER})"
)
_FOOTPRINT = re.compile(rf"[Mm]emory footprint[^:]{{0,60}}\(MB\): init={NUMBER} overall=({NUMBER})")
_PEAK = re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: ({NUMBER})")
_APPLIED = re.compile(
    r"(?:Explicitly a|A)pplied (\S{1,100}) delegate, and the model graph will be (completely|partially) executed (?:by|w/) the delegate"
)
_IGNORED = re.compile(
    r"Though (\S{1,100}) delegate is explicitly applied, the model graph will not be executed by the delegate"
)
_REPLACED = re.compile(r"Replacing ([0-9]+)(?: out of ([0-9]+))? node\(s\) with delegate \(([^)\s]{1,100})\) node")
_UNSUPPORTED = re.compile(r"(GPU|NNAPI) acceleration is unsupported on this platform")
_FAILED = re.compile(r"Failed to apply (\S{1,100}) delegate")
_UNKNOWN = re.compile(r"Unconsumed cmdline flags: (.*)")
_ERROR = re.compile(r"(?:^|\s)(?:(?:ERROR|FATAL):|E[/ ]tflite\s{0,20}(?:\(\s{0,20}[0-9]+\))?:)\s*(.*)")
_OTHER_LEVEL = re.compile(
    r"(?:^|\s)(?:(?:VERBOSE|DEBUG|INFO|WARN|WARNING):|[VDIW][/ ]tflite\s{0,20}(?:\(\s{0,20}[0-9]+\))?:)"
)
_OPERATIONS = re.compile(r"(?:Following|Next) operations are not supported by (\S{1,40}) delegate:")
"""Begins a list, a line an operation and why, which ends with how many operations run where."""
_WHY = re.compile(r"[A-Z][A-Z0-9_]{0,60}\b[^:]{0,60}:|(?:First )?[0-9]+ operations? will run on the ")
_LITERT = re.compile(
    r"(Model initialization|Warmup \(first\)|Warmup \(avg\)|Inference \(avg\)|Overall footprint|Peak memory)"
    rf":\s{{1,40}}({NUMBER})(?: ms| MB)?(?: \([0-9]+ runs\))?$"
)

_MEMORY = ("Overall footprint", "Peak memory")
"""Values that are no times. One that cannot be, as of a process that shrank, is not told; the times stand."""


@dataclass(frozen=True)
class Timings:
    """Milliseconds of one series of runs. What a version of the tool does not print is None.

    The values are those that runs can have: times of a clock, in their order, and a spread that they allow.
    """

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
            f"(it said: {last_said(help_text)})"
        )
    return found


def tool_of(flags: frozenset[str]) -> Tool:
    """Which of the two tools has these flags."""
    return "litert" if "use_npu" in flags or "dispatch_library_path" in flags else "tflite"


def parse(text: str | bytes, code: int | None = None) -> BenchmarkRun:
    """Read a run of either tool, standard output and error together.

    Args:
        code: the exit code, which tells a crash.

    Raises:
        DeviceError: it ended before it had a result, and why it says it did; or it prints what no run can have.
    """
    reading = _Reading()
    for line in lines(text):
        reading.take(line)
    if reading.nonsense:
        raise DeviceError(f"benchmark_model prints {reading.nonsense[0]}: run it there by hand and look")
    inference = reading.series[-1] if reading.series else None
    if inference is None or not (reading.summary or reading.named):
        raise DeviceError(f"benchmark_model ended without a result{_crash(code)}: {_why(reading, text, code)}")
    init, first, warmup, mean = reading.summary or (
        reading.named.get("Model initialization"), reading.named.get("Warmup (first)"),
        reading.named.get("Warmup (avg)", 0.0), reading.named.get("Inference (avg)", 0.0),
    )  # fmt: skip
    if abs(inference.mean_ms - mean) > max(0.02 * mean, 0.02):  # the one prints two decimals of a millisecond
        raise DeviceError(
            f"benchmark_model contradicts itself: {inference.mean_ms:g} ms in its statistics, {mean:g} ms in its summary"
        )
    before = [one for one in reading.series[:-1] if one is not None]
    matching = next((one for one in before if abs(one.mean_ms - warmup) <= max(0.02 * warmup, 0.02)), None)
    footprint = reading.named.get("Overall footprint", reading.footprint)
    return BenchmarkRun(
        "litert" if reading.named else "tflite", inference, matching, _time(init), _time(first),
        _megabytes(footprint), _megabytes(reading.named.get("Peak memory", reading.peak)),
        tuple(reading.delegates.values()), tuple(reading.operations), tuple(reading.ignored),
        (*reading.remarks, *reading.errors),
    )  # fmt: skip


def _crash(code: int | None) -> str:
    """In what way the process ended, in parentheses; nothing where it was its own way."""
    if code is None or code < 128:
        return "" if not code else f" (exit code {code})"
    try:
        return f" (ended by {signal.Signals(code - 128).name}, exit code {code})"
    except ValueError:
        return f" (exit code {code})"


def _why(reading: _Reading, text: str | bytes, code: int | None) -> str:
    """What the tool complained of, and of one that crashed the last that it said."""
    told = [*reading.errors[:2], *reading.remarks[:1]]
    last = last_said(text)
    if not told or (code is not None and code >= 128 and not any(last in part for part in told)):
        told.append(last if not told else f"the last it said: {last}")
    return "; ".join(told)


class _Reading:
    """What was read so far, line after line."""

    def __init__(self) -> None:
        self.series: list[Timings | None] = []
        """One for each that was begun; None while its statistics have not come, or when it had no runs."""
        self.summary: tuple[float | None, float | None, float, float] | None = None
        self.named: dict[str, float] = {}
        self.footprint: float | None = None
        self.peak: float | None = None
        self.delegates: dict[str, Delegated] = {}
        self.operations: list[Operation] = []
        self.ignored: list[str] = []
        self.remarks: list[str] = []
        self.errors: list[str] = []
        self.nonsense: list[str] = []
        """What cannot be, in the words of a sentence."""
        self._section = ""
        self._announced = False
        self._listing = False

    def take(self, line: str) -> None:
        if "Profiling Info" in line:
            self._section = "operations" if "Operator-wise" in line else "others"
        elif "==========" in line and self._section:
            self._section = "run order" if self._section == "operations" and "Run Order" in line else "others"
        elif self._section == "run order":
            if (operation := _operation(line)) is not None and len(self.operations) < LISTED:
                self.operations.append(operation)
        elif not self._section:  # profiles have count= lines of their own
            self._result(line)
        self._message(line)

    def _result(self, line: str) -> None:
        if _SERIES in line:
            self.series += [None][: LISTED - len(self.series)]
            self._announced = True
        elif match := _COUNT.search(line):
            self._statistics(line, int(match[1]), line[match.end() :])
        elif match := _SUMMARY.search(line):
            init, first, warmup, mean = (float(part) / 1e3 for part in match.groups())
            self._sum_up(line, init, first, warmup, mean)
        elif match := _OLD_SUMMARY.search(line):
            warmup, init, mean = (float(part) / 1e3 for part in match.groups())
            self._sum_up(line, init, None, warmup, mean)
        elif match := _LITERT.search(line):
            self.named[match[1]] = float(match[2])
            if match[1] not in _MEMORY and not 0 <= float(match[2]) <= LONGEST_MS:
                self.nonsense.append(f"a time that no run has: '{shortened(line, 200)}'")
        elif match := _PEAK.search(line):
            self.peak = float(match[1])
        elif match := _FOOTPRINT.search(line):
            self.footprint = float(match[1])

    def _statistics(self, line: str, count: int, rest: str) -> None:
        """``count=0``, ``count=1 curr=9``, ``count=3 curr=9(all same)`` and the full line of any version."""
        said: dict[str, str] = {}
        for part in rest.replace("(all same)", "").split():
            name, equals, value = part.partition("=")
            if not equals:  # words of another line that happens to count something
                return
            said.setdefault(name, value)
        if not count or not said.keys() & set(_STATISTICS):
            return
        try:
            timings = _timings(count, said)
        except ValueError as error:
            self.nonsense.append(f"statistics that no runs have ({error}, in '{shortened(line, 200)}')")
            return
        if not self._announced:  # a version that does not say when a series begins
            self.series += [timings][: LISTED - len(self.series)]
        elif self.series[-1] is None:
            self.series[-1] = timings

    def _sum_up(self, line: str, init: float, first: float | None, warmup: float, mean: float) -> None:
        times = init, first or 0.0, warmup, mean
        if not all(0 <= value <= LONGEST_MS for value in times):
            self.nonsense.append(f"times that no run has: '{shortened(line, 200)}'")
        self.summary = init, first, warmup, mean

    def _message(self, line: str) -> None:
        if self._listed(line):
            return
        if match := _REPLACED.search(line):
            nodes, of = int(match[1]), int(match[2]) if match[2] else None
            if nodes > (MOST_RUNS if of is None else of):
                return
            share: Share = "none" if not nodes else "all" if nodes == of else "part"
            self._delegate(Delegated(_short_name(match[3]), share, nodes, of))
        elif match := _APPLIED.search(line):
            share = "all" if match[2] == "completely" else "part"
            self._delegate(replace(self.delegates.get(match[1], Delegated(match[1], share)), share=share))
        elif match := _IGNORED.search(line) or _UNSUPPORTED.search(line) or _FAILED.search(line):
            self._delegate(Delegated(match[1], "none"))
            self.remarks += [shortened(match[0])][: LISTED - len(self.remarks)]
        elif match := _UNKNOWN.search(line):
            self.ignored += re.findall(r"--([A-Za-z0-9_]{1,100})", match[1])[: LISTED - len(self.ignored)]
        elif (match := _ERROR.search(line)) and len(self.errors) < 10:
            self.errors.append(shortened(match[1]))
            self._listing = bool(_OPERATIONS.search(line))

    def _listed(self, line: str) -> bool:
        """Whether it is a line of the list of what a delegate lacks, which belongs to the error that it begins."""
        if not self._listing:
            return False
        error = _ERROR.search(line)
        said = error[1] if error else line.strip()
        if _OTHER_LEVEL.search(line) or not _WHY.match(said) or len(self.errors[-1]) > 500:
            self._listing = False
            return False
        self.errors[-1] += f"{'' if self.errors[-1].endswith(':') else ';'} {shortened(said, 120)}"
        return True

    def _delegate(self, found: Delegated) -> None:
        if found.name in self.delegates or len(self.delegates) < LISTED:
            self.delegates[found.name] = found


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


def _timings(count: int, said: dict[str, str]) -> Timings:
    """The series of a line's fields, microseconds there.

    Raises:
        ValueError: it cannot be, and why.
    """
    values: dict[str, float] = {}
    for name in _STATISTICS:
        value = number(said[name]) if name in said else None
        if value is not None:
            values[name] = value / 1e3
        elif name in said and name != "std":  # old tools print the root of a rounded zero, which may be "-nan"
            raise ValueError(f"{name}={said[name]:.40} is no number")
    same = values.get("curr")
    if "avg" in values:
        found = Timings(
            count, values["avg"], values.get("first"), values.get("min"), values.get("max"), values.get("std"),
            values.get("p5"), values.get("median"), values.get("p95"),
        )  # fmt: skip
    elif same is not None and values.keys() == {"curr"}:
        found = Timings(count, same, same, same, same, 0.0)
    else:
        raise ValueError("they have no mean")
    _check(found)
    return found


def _check(found: Timings) -> None:
    """Raise ValueError for what no series of runs has."""
    if not is_runs(found.count) or found.count * found.mean_ms > MOST_MS:
        raise ValueError(f"{found.count} runs of {found.mean_ms:g} ms are more than a day has")
    ordered = [
        (name, value)
        for name, value in (
            ("min", found.minimum_ms), ("p5", found.p5_ms), ("median", found.median_ms), ("p95", found.p95_ms),
            ("max", found.maximum_ms),
        )
        if value is not None
    ]  # fmt: skip
    inside = [(name, value) for name, value in (("first", found.first_ms), ("avg", found.mean_ms)) if value is not None]
    for name, value in (*ordered, *inside):
        if not is_milliseconds(value):
            raise ValueError(f"{name} is {value:g} ms, which is no time of a run")
    for (low, smaller), (high, larger) in pairwise(ordered):
        if smaller > larger:
            raise ValueError(f"{low} is above {high}")
    slack = _ROUNDED * found.mean_ms
    for name, value in inside:
        if (found.minimum_ms or 0.0) - slack > value or value > (found.maximum_ms or LONGEST_MS) + slack:
            raise ValueError(f"{name} is not between min and max")
    # Of n positive values the standard deviation is at most the mean times the root of n - 1 (n, where it is a sample's).
    if found.std_ms is not None and not 0 <= found.std_ms <= (1 + _ROUNDED) * found.mean_ms * found.count**0.5:
        raise ValueError(f"std is {found.std_ms:g} ms where the mean is {found.mean_ms:g}")


def _operation(line: str) -> Operation | None:
    """One row of the profile: kind, two or three times (of which the last is the mean), its %, the sum's %, KB, calls, name."""
    kind, _, rest = line.strip().partition(" " if "\t" not in line.strip() else "\t")
    before, percent, after = rest.partition("%")
    times = [number(part) for part in before.split()]
    rows = after.split(None, 3)
    if len(times) not in (3, 4) or None in times or not percent or len(rows) < 4 or not rows[0].endswith("%"):
        return None
    mean, share = (times[-2] or 0.0), (times[-1] or 0.0) / 100
    if not kind.strip() or not (0 <= mean <= LONGEST_MS and is_share(share)):
        return None
    return Operation(shortened(kind, 100), shortened(rows[3], 300), mean, share)


def _time(value: float | None) -> float | None:
    """Milliseconds of loading or of a first run; old versions print 0 where there was none."""
    return value if is_milliseconds(value) else None


def _megabytes(value: float | None) -> int | None:
    """Bytes; None where there are none, as of a process that shrank."""
    return None if value is None or not 0 <= value <= MOST_BYTES / (1 << 20) else int(value * (1 << 20))
