"""What was measured of an artifact on a device, as frozen values; :mod:`edgekit.core.record` writes and reads them.

The agent makes some of them, so this runs on Python 3.9.

Schema of a measurement's file:

1. The first. Since 0.2 ``sustained`` may be ``{"failed": why}``; older files are read as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Annotated, Any, Union

from edgekit.core.contract import LATENCY_CONTRACTS
from edgekit.core.errors import EdgekitError
from edgekit.core.quantities import (
    LONGEST_MS,
    MOST_MS,
    MOST_ROUNDS,
    is_bytes,
    is_milliseconds,
    is_number,
    is_runs,
    is_share,
    is_whole,
)
from edgekit.core.record import Entries, Must, absent, inline, read
from edgekit.core.values import Precision, Provenance, Size

SCHEMA = 1
LOCAL = "local"
"""The name of this machine among devices."""
HEADLINE_SCOPE = "frame-to-labels"


def _shows(value: Any) -> bool:
    return not isinstance(value, (int, float)) or abs(value) < 1e15


def _battery_shows(value: Any) -> bool:
    return not isinstance(value, Mapping) or all(_shows(value.get(key)) for key in ("level", "celsius"))


Number = Annotated[float, Must(lambda value: is_number(value) and abs(value) < 1e15, "a number")]
Share = Annotated[float, Must(is_share, "a fraction")]
Milliseconds = Annotated[float, Must(is_milliseconds, "a time in milliseconds")]
"""The time of something that was measured: above 0, at most an hour."""
MaybeInstant = Annotated[
    float, Must(lambda value: is_number(value) and 0 <= value <= LONGEST_MS, "a time in milliseconds")
]
Bytes = Annotated[int, Must(is_bytes, "a number of bytes")]
Runs = Annotated[int, Must(is_runs, "a number of runs")]
Count = Annotated[int, Must(lambda value: is_whole(value, 0, 1 << 50), "a count")]
Pixels = Annotated[float, Must(lambda value: is_number(value) and 0 <= value < 1e15, "a number of pixels")]
Quantity = Annotated[Any, Must(_shows, "a quantity of any device")]
"""A number that can be shown, or anything that is none and is passed over."""
Stride = Annotated[int, Must(lambda value: is_whole(value, 1, 1 << 20), "a number of pixels")]
ContractMode = Annotated[
    str,
    Must(lambda value: isinstance(value, str) and value in LATENCY_CONTRACTS, f"one of {', '.join(LATENCY_CONTRACTS)}"),
]
LoadSeconds = Annotated[
    float, Must(lambda value: is_number(value) and 1e-3 <= value <= MOST_MS / 1e3, "a time in seconds")
]
Triples = Annotated[Any, Must(lambda value: isinstance(value, (list, tuple)), "a list")]
Battery = Annotated[Any, Must(_battery_shows, "a battery")]
Samples = Annotated[tuple[Milliseconds, ...], Entries(1, 1 << 26)]
Environment = Mapping[str, Any]
"""The machine as it was: what :mod:`edgekit.devices.environment` or a device tells of it."""


@dataclass(frozen=True)
class Counts:
    """What one frame adds to every metric, sparse; :func:`edgekit.metrics.scores.dense` makes arrays of it.

    Attributes:
        confusion: triples of truth, prediction and the number of such pixels.
        class_hits, class_misses, category_hits, category_misses: see :class:`edgekit.metrics.scores.FrameCounts`.
    """

    confusion: Triples
    class_hits: tuple[Pixels, ...]
    class_misses: tuple[Pixels, ...]
    category_hits: tuple[Pixels, ...]
    category_misses: tuple[Pixels, ...]


@dataclass(frozen=True)
class Counted:
    """One evaluated frame.

    Attributes:
        counts: of its labels against the truth.
        agreement: fraction of pixels labelled as float PyTorch does; None where that was not asked for.
    """

    counts: Counts
    agreement: float | None


@dataclass(frozen=True)
class Accuracy:
    """What an artifact labelled, counted frame by frame.

    Attributes:
        dataset, split: of the frames.
        frames: their names, in order.
        counts: of each.
        agreement: of each, the fraction of pixels labelled as float PyTorch does; None where that was not asked for.
        provenance: how it was obtained.
        environment: of the device that counted; None for this machine.
    """

    frames: Annotated[tuple[str, ...], Entries(1)]
    counts: Annotated[tuple[Counts, ...], Entries(1)]
    provenance: Provenance
    dataset: str = ""
    split: str = ""
    agreement: tuple[Share, ...] | None = None
    environment: Environment | None = absent(None)

    def check(self, place: str) -> None:
        """Raise EdgekitError where the lists are not of the same frames."""
        for key, listed in (("counts", self.counts), ("agreement", self.agreement)):
            if listed and len(listed) != len(self.frames):
                raise EdgekitError(f"{place}.{key} has {len(listed)} entries for {len(self.frames)} frames")


@dataclass(frozen=True)
class Conditions:
    """What may change while a measurement goes on, at one moment.

    Attributes:
        clock_khz: by group of cores, or of the GPU.
        temperature_c: by sensor, Celsius.
        thermal_status: of a phone.
        battery: of a phone: level, status, what it is plugged into.
        cores_taken: by other programs while a round was taken, of those that the artifact has threads for; 0.5 is half of one.
    """

    clock_khz: Mapping[str, Quantity] = field(default_factory=dict)
    temperature_c: Mapping[str, Quantity] = field(default_factory=dict)
    thermal_status: str | None = absent(None)
    battery: Battery = absent(None)
    cores_taken: Number | None = absent(None)

    @property
    def clocks(self) -> list[float]:
        """The numbers among the clocks, kHz."""
        return [float(value) for value in self.clock_khz.values() if isinstance(value, (int, float))]

    @property
    def temperatures(self) -> list[float]:
        """The numbers among the temperatures, Celsius."""
        return [float(value) for value in self.temperature_c.values() if isinstance(value, (int, float))]


@dataclass(frozen=True)
class Statistics:
    """What a tool that keeps its samples to itself prints of them, milliseconds; None where it does not print it.

    Attributes:
        cv: standard deviation / mean, a fraction.
        first: the first inference after loading.
        n: number of samples.
    """

    mean: Milliseconds
    n: Runs
    p50: Milliseconds | None = None
    p90: Milliseconds | None = None
    p95: Milliseconds | None = None
    cv: Number | None = None
    first: MaybeInstant | None = None


@dataclass(frozen=True)
class Round:
    """One round of a tool that prints statistics, milliseconds; what it does not print is None."""

    count: Runs
    mean_ms: Milliseconds | None = absent(None)
    median_ms: Milliseconds | None = absent(None)
    std_ms: Number | None = absent(None)


@dataclass(frozen=True)
class Unit:
    """A latency on one choice of compute units or one backend; ``failed`` says why there is none.

    Attributes:
        p50, mean: milliseconds; the mean where a tool prints no median.
        operations: what took how many of the graph's operations.
    """

    p50: Milliseconds | None = absent(None)
    mean: Milliseconds | None = absent(None)
    operations: Mapping[str, Any] | None = absent(None)
    failed: str | None = absent(None)


@dataclass(frozen=True)
class Placement:
    """Where a runtime puts a graph's operations; ``failed`` says why nobody knows.

    Attributes:
        operations: number by device.
        cost: share of the plan's own estimate by device.
        elsewhere: operations that are not where most of the cost is, by kind.
    """

    operations: Mapping[str, Count] | None = absent(None)
    cost: Mapping[str, Number] | None = absent(None)
    elsewhere: Mapping[str, Count] | None = absent(None)
    failed: str | None = absent(None)


@dataclass(frozen=True)
class Spread:
    """The least, the middle and the highest of some numbers."""

    median: Number
    min: Number
    max: Number


@dataclass(frozen=True)
class Watched:
    """What tegrastats told meanwhile.

    Attributes:
        under_load: false where no sample says that the GPU was: power and clocks are of idle moments, too.
        mean_watts, max_watts: of the board.
        max_celsius: by sensor.
        gpu_clock_mhz: of the GPU.
    """

    samples: Any = None
    under_load: bool | None = None
    mean_watts: Number | None = None
    max_watts: Number | None = None
    max_celsius: Mapping[str, Number] | None = None
    gpu_clock_mhz: Spread | None = None


@dataclass(frozen=True)
class Layer:
    """One of the layers that trtexec's profile names."""

    name: str
    mean_ms: MaybeInstant
    share: Number


@dataclass(frozen=True)
class Trtexec:
    """What trtexec tells beside the latency; ``failed`` says why it tells nothing.

    Attributes:
        graph_ms, with_copies_ms: medians, without and with the copies to the GPU and back; ``with_copies_failed`` says why not.
        built_seconds: of the engine; None when it was there.
        gpu_bytes: memory of the engine.
        unstable_cv: where trtexec itself says so.
        layers: the slowest.
        precisions: number of layers by precision.
    """

    graph_ms: Milliseconds | None = absent(None)
    built_seconds: Any = None
    gpu_bytes: Bytes | None = None
    unstable_cv: Number | None = None
    with_copies_ms: Milliseconds | None = None
    with_copies_failed: str | None = None
    layers: tuple[Layer, ...] = ()
    precisions: Mapping[str, Count] | None = None
    warnings: Any = ()
    tegrastats: Watched | None = None
    failed: str | None = absent(None)


@dataclass(frozen=True)
class Latency:
    """How long queries took: raw samples, or what a tool prints of them.

    Attributes:
        scope: ``frame-to-labels`` or ``graph``.
        mode: of the contract.
        rounds_ms: samples of each round in the order they were taken; None where ``statistics`` stand for them.
        process_rounds: how many rounds each process took, in order; None where one took all.
        rounds: of a tool that prints statistics.
        warmup_ms: None when it was not recorded.
        first_ms, load_ms: the first inference, and loading.
        settings: of the session.
        conditions: beside each round.
        clock_set_seconds: by which the time of day was set meanwhile.
        compute_units: p50 by choice of units or by backend; the first is the headline.
        placement: where the operations run, by compute units.
    """

    provenance: Provenance
    mode: ContractMode
    scope: str = HEADLINE_SCOPE
    rounds_ms: Annotated[tuple[Samples, ...], Entries(1, MOST_ROUNDS)] | None = absent(None)
    process_rounds: tuple[Runs, ...] | None = absent(None)
    statistics: Statistics | None = absent(None)
    rounds: Annotated[tuple[Round, ...], Entries(0, MOST_ROUNDS)] = absent(())
    warmup_ms: tuple[Milliseconds, ...] | None = None
    first_ms: MaybeInstant | None = None
    load_ms: MaybeInstant | None = None
    peak_rss_bytes: Bytes | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    conditions: tuple[Conditions, ...] = ()
    clock_set_seconds: Number | None = absent(None)
    compute_units: Mapping[str, Unit] | None = absent(None)
    placement: Mapping[str, Placement] | None = absent(None)
    trtexec: Trtexec | None = absent(None)

    def check(self, place: str) -> None:
        """Raise EdgekitError where there are neither samples nor statistics, or more samples than a day holds."""
        if (self.rounds_ms is None) == (self.statistics is None):
            raise EdgekitError(f"{place} has neither samples nor statistics, or both")
        if self.rounds_ms is not None and sum(map(sum, self.rounds_ms)) > MOST_MS:
            raise EdgekitError(f"{place}.rounds_ms holds more than a day of samples")
        if self.process_rounds is not None and sum(self.process_rounds) != len(self.rounds_ms or ()):
            raise EdgekitError(
                f"{place}.process_rounds tells of {sum(self.process_rounds)} rounds, not of those of rounds_ms"
            )

    @property
    def samples(self) -> list[float]:
        """All samples, milliseconds; empty where a tool keeps them to itself."""
        return [sample for part in self.rounds_ms or () for sample in part]

    @property
    def processes_ms(self) -> list[list[float]]:
        """Samples of each process, or of each round where one process took all: what intervals are made of."""
        rounds = iter(self.rounds_ms or ())
        if self.process_rounds is None:
            return [list(one) for one in rounds]
        return [[sample for one in islice(rounds, count) for sample in one] for count in self.process_rounds]


@dataclass(frozen=True)
class Untimed:
    """A latency that there is none of; its provenance says why.

    Attributes:
        failed: what went wrong, where it was tried.
    """

    provenance: Provenance
    failed: str | None = absent(None)

    @staticmethod
    def holds(document: Any) -> bool:
        """Whether JSON has one of these, not a :class:`Latency`."""
        told = document.get("provenance") if isinstance(document, Mapping) else None
        return isinstance(told, Mapping) and told.get("kind") == "not measured"


@dataclass(frozen=True)
class Timed:
    """What came of timing an artifact, and the machine as it was then; None where nobody looked."""

    latency: Latency | Untimed
    environment: Environment | None = None


@dataclass(frozen=True)
class LoadInterval:
    """One interval of a sustained load.

    Attributes:
        begin_s, end_s: seconds from the load's beginning.
        samples_ms: all of it; None where ``statistics`` stand for them.
        conditions: at its end.
        under_load: false where the clock is also of moments without load; None where nobody asked.
    """

    begin_s: Number
    end_s: Number
    conditions: Conditions = inline()
    samples_ms: tuple[Milliseconds, ...] | None = absent(None)
    statistics: Statistics | None = absent(None)
    under_load: bool | None = absent(None)


@dataclass(frozen=True)
class Sustained:
    """One artifact under load without a pause.

    Attributes:
        seconds: that were asked for.
        intervals: in order.
        scope: see :class:`Latency`.
        settings: of the session.
        before: the conditions as it began.
    """

    seconds: LoadSeconds
    intervals: Annotated[tuple[LoadInterval, ...], Entries(1)]
    scope: str = HEADLINE_SCOPE
    settings: Mapping[str, Any] = field(default_factory=dict)
    before: Conditions = field(default_factory=Conditions)

    def check(self, place: str) -> None:
        """Raise EdgekitError for intervals that do not follow each other, or hold nothing."""
        before = 0.0
        for index, entry in enumerate(self.intervals):
            if not before <= entry.begin_s < entry.end_s <= MOST_MS / 1e3:
                raise EdgekitError(
                    f"{place}.intervals[{index}] is from {entry.begin_s} s to {entry.end_s} s, which does not follow the one before"
                )
            before = entry.begin_s
            if not entry.samples_ms and not entry.statistics:
                raise EdgekitError(f"{place}.intervals[{index}] has no samples")


@dataclass(frozen=True)
class Unheld:
    """A sustained load that cannot be shown, and why."""

    failed: str

    @staticmethod
    def holds(document: Any) -> bool:
        """Whether JSON has one of these, not a :class:`Sustained`."""
        return isinstance(document, Mapping) and document.get("failed") is not None


@dataclass(frozen=True)
class Origin:
    """The checkpoint that an artifact was made of."""

    name: str = ""
    sha256: str | None = None


@dataclass(frozen=True)
class BiasCorrection:
    """Whether biases were corrected, and the drop of mIoU that is expected then, a fraction."""

    taken: bool
    expected_drop: Number | None = absent(None)


@dataclass(frozen=True)
class CalibrationSummary:
    """How int8's ranges were found; drops of mIoU are fractions. See :mod:`calibration.ranges`."""

    frames: Count
    dataset: str
    split: str
    chosen: str | None = absent(None)
    estimator: str | None = absent(None)
    scheme: str | None = absent(None)
    equalization: str | None = absent(None)
    expected_drop: Mapping[str, Number] | None = absent(None)
    bias_correction: BiasCorrection | None = absent(None)
    simulated_frames: Count | None = absent(None)
    expected_drop_of_halves: tuple[Number, ...] = absent(())
    left_out: Mapping[str, Any] | None = absent(None)
    frame_sizes: Mapping[str, Count] | None = absent(None)


@dataclass(frozen=True)
class Failure:
    """An artifact that there is not.

    Attributes:
        failed: why.
        missing: what makes or runs it is not installed here.
    """

    target: str
    precision: Precision
    size: Size
    failed: str
    title: str = ""
    device: str = absent(LOCAL)
    device_pages: tuple[str, ...] = absent(())
    missing: bool = absent(default=False)

    artifact = ""
    output = "labels"
    output_stride = 1
    stands_for = None
    is_float = False

    @property
    def named(self) -> str:
        """The target as people name it."""
        return self.title or self.target


@dataclass(frozen=True)
class Measurement:
    """One artifact on one device: what ``measurements/`` keeps and reports read.

    Attributes:
        artifact: its folder's name.
        artifact_key: of its manifest; None for float PyTorch.
        target, title: what made it, and as people name that.
        model_bytes: of the model's file.
        device: of the inventory, ``local`` for this machine.
        device_pages: report pages that it stands on besides, where no such device is connected.
        stands_for: the page whose place its device takes.
        kept_float: layers in higher precision.
        notes: of the target.
        accuracy: None where ``accuracy_why`` says why.
        environment: the machine.
        sustained: None where nothing was kept under load.
        run_folder: where commands find the artifact, besides the run's own.
        collapsed: why its int8 must not be shipped; None of what may be.
    """

    artifact: str
    target: str
    precision: Precision
    size: Size
    latency: Latency | Untimed
    schema: Any = None
    artifact_key: str | None = absent(None)
    checkpoint: Origin | None = absent(None)
    title: str = ""
    output: str = "labels"
    output_stride: Stride | None = None
    model_bytes: Bytes | None = None
    device: str = LOCAL
    device_pages: tuple[str, ...] = ()
    stands_for: str | None = absent(None)
    kept_float: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    calibration: CalibrationSummary | None = None
    accuracy: Accuracy | None = None
    accuracy_why: str | None = absent(None)
    environment: Environment = field(default_factory=dict)
    sustained: Sustained | Unheld | None = absent(None)
    run_folder: str | None = absent(None)
    collapsed: str | None = absent(None)

    @property
    def named(self) -> str:
        """The target as people name it."""
        return self.title or self.target

    @property
    def is_float(self) -> bool:
        """Whether it is the float PyTorch that drops are measured from."""
        return self.target == "pytorch" and self.precision == "fp32"


Row = Union[Measurement, Failure]  # noqa: UP007  the agent's Python 3.9 evaluates it
"""What a report has a row for."""


def read_row(document: Any) -> Row:
    """A measurement, or a failure, as JSON holds it.

    A part whose numbers cannot be shown is ``not measured`` instead, and what is wrong with it stands in its place: a faulty
    device or a file changed by hand costs its own number only.

    Raises:
        EdgekitError: it is neither.
    """
    if isinstance(document, Mapping) and document.get("failed") is not None:
        return read(Failure, document, "the row of an artifact that failed")
    name = document.get("artifact", document.get("target")) if isinstance(document, Mapping) else "a row"
    place = f"the measurement of {name!s:.80}"
    whole = read(_Proofs, document, place)
    parts: dict[str, Any] = dict.fromkeys(("accuracy", "sustained", "environment"))
    untimed = {"provenance": {"kind": "not measured"}}
    row = read(Measurement, {**document, **parts, "latency": untimed}, place)
    accuracy, why_accuracy = _part(Accuracy, document.get("accuracy"), "accuracy")
    latency, why_latency = _part(Latency, document["latency"], "latency")
    sustained, why_sustained = _part(Sustained, document.get("sustained"), "sustained")
    if Untimed.holds(document["latency"]):
        latency = read(Untimed, document["latency"], "latency")
    elif latency is None:
        latency = Untimed(Provenance("not measured", whole.latency.provenance.by, why_latency or ""))
    if Unheld.holds(document.get("sustained")):
        sustained = read(Unheld, document["sustained"], "sustained")
    elif why_sustained is not None:
        sustained = Unheld(why_sustained)
    environment, _ = _part(_Machine, document.get("environment"), "environment")
    return replace(
        row,
        accuracy=accuracy,
        accuracy_why=why_accuracy or row.accuracy_why,
        latency=latency,
        sustained=sustained,
        environment={} if environment is None else document["environment"],
    )


@dataclass(frozen=True)
class _Proof:
    """What every number has."""

    provenance: Provenance


@dataclass(frozen=True)
class _Proofs:
    """How a measurement's numbers were obtained, without which it is none."""

    latency: _Proof
    accuracy: _Proof | None = None


@dataclass(frozen=True)
class _Machine:
    """What is looked at of an environment."""

    packages: Mapping[str, Any] | None = None
    memory_bytes: Quantity = None


def _part(kind: type[Any], document: Any, place: str) -> tuple[Any, str | None]:
    """A part and None; or None and what is wrong with it, if there is one at all."""
    if document is None:
        return None, None
    try:
        return read(kind, document, place), None
    except EdgekitError as error:
        return None, f"what was measured cannot be shown, {error}: measure it again"
