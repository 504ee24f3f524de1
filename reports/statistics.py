"""Latency summaries and intervals from raw samples and per-frame counts. Times are milliseconds, mIoU are fractions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma, log, log1p
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.core.contract import CROWDED, LATENCY_CONTRACTS
from edgekit.core.errors import EdgekitError
from edgekit.core.measurement import Latency, Statistics
from edgekit.core.quantities import LONGEST_MS, SHORTEST_MS, is_milliseconds
from edgekit.metrics.scores import mean_iou

Float64 = NDArray[np.float64]
Mode = Literal["quick", "full"]

RESAMPLES = 2000
SEED = 20240607
CONFIDENCE = 0.99
"""MLPerf's confidence of the early-stopping estimate."""

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)
"""Student's t at 97.5 % for 1 to 14 degrees of freedom."""

FEW_FRAMES, FEW_ROUNDS = 16, 9
"""Below these many, percentiles of resamples err far more often than in 5 % (no resample leaves the few values that there are), and an
interval is Student's t around the value."""

MAXIMUM_CV = 0.025
P99_QUERIES = 662
"""Below this number of queries no early-stopping estimate of the 99th percentile exists."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LatencySummary:
    """What raw samples say.

    Attributes:
        p50, mean: milliseconds.
        p90: milliseconds; the early-stopping estimate when ``p90_early_stopping``, else the plain percentile; None where a
            tool that keeps its samples to itself does not print it.
        p99: milliseconds, early-stopping estimate; None outside full mode or below 662 queries.
        cv: standard deviation / mean, a fraction; None where a tool does not print it.
        first: milliseconds of the first inference after loading; None when it was not recorded.
        n: number of samples.
        fps: 1000 / p50.
        warnings: sentences that belong beside the number.
    """

    p50: float
    p90: float | None
    p99: float | None
    p90_early_stopping: bool
    mean: float
    cv: float | None
    first: float | None
    n: int
    fps: float
    mode: str
    warnings: tuple[str, ...] = ()


def early_stopping_discards(n: int, percentile: float, confidence: float = CONFIDENCE) -> int:
    """MLPerf's number t of overlatency queries that n queries may hold.

    With n independent queries of which a fraction ``percentile`` is truly within a bound, the number beyond the bound
    is Binomial(n, 1 - percentile). t is the largest number with

        P(Binomial(n, 1 - percentile) <= t)  =  I_percentile(n - t, t + 1)  <=  1 - confidence,

    where I is the regularized incomplete beta function (loadgen's early_stopping.cc with tolerance 0): t or fewer
    overlatency queries would be this unlikely if the bound were below the true percentile.

    Returns:
        t >= 0; 0 when n is too small for an estimate (n < 64 for p90, n < 662 for p99).
    """
    miss = 1.0 - percentile
    cumulative, discards = 0.0, -1
    for t in range(n):
        chance = exp(lgamma(n + 1) - lgamma(t + 1) - lgamma(n - t + 1) + t * log(miss) + (n - t) * log1p(-miss))
        cumulative += chance
        if cumulative > 1.0 - confidence:
            break
        discards = t
    return max(discards, 0)


def early_stopping_estimate(samples: Sequence[float], percentile: float) -> float | None:
    """MLPerf single-stream estimate of a percentile: the t-th largest sample, an upper bound with 99 % confidence.

    Args:
        samples: milliseconds, any order.
        percentile: a fraction, 0.9 or 0.99.

    Returns:
        Milliseconds, or None with too few samples; see :func:`early_stopping_discards`.
    """
    t = early_stopping_discards(len(samples), percentile)
    return float(np.sort(np.asarray(samples, np.float64))[len(samples) - t]) if t else None


def rising_trend(rounds_ms: Sequence[Sequence[float]]) -> float | None:
    """By which fraction of the median the latency rose from the first to the last round, if it did.

    Mann-Kendall's exact one-sided test on the rounds' medians at 5 %, and Theil-Sen's slope for the size. With fewer
    than five rounds no order of the medians is rare enough, so the samples are cut into eight consecutive blocks.

    Returns:
        The rise as a fraction when it is significant and above 2.5 %, else None.
    """
    blocks = [np.asarray(samples, np.float64) for samples in rounds_ms if len(samples)]
    if len(blocks) < 5:
        joined = np.concatenate(blocks) if blocks else np.zeros(0)
        if len(joined) < 16:
            return None
        blocks = np.array_split(joined, 8)
    medians = np.asarray([np.median(block) for block in blocks])
    count = len(medians)
    first, second = np.triu_indices(count, 1)
    rises = medians[second] - medians[first]
    # Ties count as falls: a constant latency must not look like a trend.
    if _chance_of_inversions(count, int((rises <= 0).sum())) > 0.05:
        return None
    rise = float(np.median(rises / (second - first)) * (count - 1) / np.median(medians))
    return rise if rise > MAXIMUM_CV else None


def _chance_of_inversions(count: int, inversions: int) -> float:
    """Chance that a random order of ``count`` values has at most ``inversions`` falling pairs."""
    ways = np.ones(1)
    for size in range(2, count + 1):  # inserting the next value adds 0..size-1 inversions, each equally often
        ways = np.convolve(ways, np.full(size, 1.0 / size))
    return float(ways[: inversions + 1].sum())


def summarize_latency(
    rounds_ms: Sequence[Sequence[float]],
    mode: str,
    warmup_ms: Sequence[float] | None = None,
    first_ms: float | None = None,
) -> LatencySummary:
    """Summary of one artifact's raw samples.

    Args:
        rounds_ms: samples of each round in the order they were taken, milliseconds.
        mode: ``quick`` or ``full``; decides the contract and how p90 is estimated.
        warmup_ms: the warm-up runs; None when they were not recorded, then they are not judged.
        first_ms: the first inference.

    Raises:
        EdgekitError: no samples, a sample that no query takes, or an unknown mode.
    """
    samples = np.asarray([sample for samples in rounds_ms for sample in samples], np.float64)
    if not len(samples) or not ((samples >= SHORTEST_MS) & (samples <= LONGEST_MS)).all():
        raise EdgekitError(
            "latency samples must be positive numbers of milliseconds, at least one and none above an hour: measure again"
        )
    if mode not in LATENCY_CONTRACTS:
        raise EdgekitError(f"latency mode '{mode}' is unknown: it must be one of {', '.join(LATENCY_CONTRACTS)}")
    p50, mean = float(np.median(samples)), float(samples.mean())
    cv = float(samples.std(ddof=1) / mean) if len(samples) > 1 else 0.0
    warnings = []
    if cv > MAXIMUM_CV:
        warnings.append(f"unsteady: CV is {100 * cv:.1f} %, above 2.5 %")
    rise = rising_trend(rounds_ms)
    if rise is not None:
        warnings.append(f"rising: the latency grew by {100 * rise:.1f} % during the measurement")
    contract = LATENCY_CONTRACTS[mode]
    warnings += _short(len(samples), float(samples.sum()), mode)
    if warmup_ms is not None:
        runs, warm_seconds = contract.warmup_runs, contract.warmup_seconds
        if len(warmup_ms) < runs or sum(warmup_ms) < 1000 * warm_seconds:
            warnings.append(
                f"barely warmed up: {len(warmup_ms)} runs in {sum(warmup_ms) / 1000:.1f} s, "
                f"the contract asks for {runs} and {warm_seconds:g} s"
            )
    listed = samples.tolist()
    estimate = early_stopping_estimate(listed, 0.9) if mode == "full" else None
    return LatencySummary(
        p50=p50,
        p90=float(np.percentile(samples, 90)) if estimate is None else estimate,
        p99=early_stopping_estimate(listed, 0.99) if mode == "full" and len(samples) >= P99_QUERIES else None,
        p90_early_stopping=estimate is not None,
        mean=mean,
        cv=cv,
        first=first_ms,
        n=len(samples),
        fps=1000.0 / p50,
        mode=mode,
        warnings=tuple(warnings),
    )


def _short(queries: int, milliseconds: float, mode: str, rounding: float = 0.0) -> list[str]:
    """A warning where fewer queries, or less time, were taken than the mode asks for.

    Args:
        rounding: share of the time by which it may seem shorter than it was.
    """
    contract = LATENCY_CONTRACTS[mode]
    if queries >= contract.queries and milliseconds >= (1 - rounding) * 1000 * contract.seconds:
        return []
    return [
        f"short: {queries} queries in {milliseconds / 1000:.1f} s, {mode} mode asks for {contract.queries} and {contract.seconds:g} s"
    ]


def printed_latency(printed: Statistics, mode: str) -> LatencySummary:
    """Summary of a tool that keeps its samples to itself and prints statistics of them.

    Raises:
        EdgekitError: its mean or median is no time.
    """
    mean, p50, cv, n = printed.mean, printed.p50, printed.cv, printed.n
    if not is_milliseconds(mean) or not (p50 is None or is_milliseconds(p50)):
        raise EdgekitError("a printed latency must have a mean above zero and below an hour: measure again")
    warnings = [] if p50 else ["the tool prints no median: the mean stands for it"]
    middle = float(p50 or mean)
    if cv is not None and cv > MAXIMUM_CV:
        warnings.append(f"unsteady: CV is {100 * cv:.1f} %, above 2.5 %")
    warnings += _short(n, n * mean, mode, rounding=0.01)  # the tool's own mean is rounded
    return LatencySummary(
        p50=middle, p90=printed.p90, p99=None, p90_early_stopping=False, mean=float(mean), cv=cv,
        first=printed.first, n=n, fps=1000.0 / middle, mode=mode,
        warnings=tuple(warnings),
    )  # fmt: skip


THROTTLED = 0.9
"""A clock that falls below this share of its highest during a measurement is worth a warning."""


_HOT = ("moderate", "severe", "critical", "emergency", "shutdown")
"""Android's thermal statuses from which on it throttles, the least first; ``light`` does not touch what a user sees."""


def condition_warnings(latency: Latency) -> list[str]:
    """What the conditions beside the samples say against a number: heat, a clock that fell, a time of day that was set."""
    warnings = []
    highest = []
    said = [entry.thermal_status for entry in latency.conditions]
    if hot := [status for status in _HOT if status in said]:
        warnings.append(f"throttled: the phone's thermal status was {hot[-1]}")
    for entry in latency.conditions:
        if clocks := entry.clocks:
            highest.append(max(clocks))
    watched = latency.trtexec.tegrastats if latency.trtexec is not None else None
    gpu = watched.gpu_clock_mhz if watched is not None and watched.under_load else None
    if gpu is not None and gpu.min < THROTTLED * gpu.max:
        warnings.append(f"throttled: the GPU's clock was between {gpu.min} and {gpu.max} MHz under load")
    if highest and min(highest) < THROTTLED * max(highest):
        warnings.append(f"throttled: the clock was between {min(highest) / 1e6:.2f} and {max(highest) / 1e6:.2f} GHz")
    taken = [entry.cores_taken for entry in latency.conditions if entry.cores_taken is not None]
    if taken and max(taken) > CROWDED:
        warnings.append(
            f"busy machine: other programs took up to {max(taken):.1f} of the cores that it had threads for"
        )
    if jump := latency.clock_set_seconds:
        warnings.append(f"the time of day was set by {jump:+.0f} s meanwhile; the samples are of a clock that keeps on")
    return warnings


def bootstrap_drop(
    reference: NDArray[Any], artifact: NDArray[Any], resamples: int = RESAMPLES, seed: int = SEED
) -> Interval:
    """Drop of mIoU, reference minus artifact, with its 95 % paired percentile bootstrap interval over frames.

    Both networks are scored on the same resampled frames, so what makes a frame hard for both cancels out. With few
    frames the interval is Student's t by the resamples' standard error, sqrt(n / (n - 1)) times as large as they show it
    (Hesterberg 2015, https://arxiv.org/abs/1411.5279, section 3.2); of one it holds all that a drop can be. Frames without
    a labelled pixel say nothing and are not among them.

    Args:
        reference, artifact: int64 [frames, C, C] confusion matrices, rows truth, columns prediction, same frames.
        resamples: number of bootstrap resamples.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        Fractions between -1 and 1: positive when the artifact is worse. NaN when no frame has a labelled pixel.

    Raises:
        EdgekitError: the two have not the same frames and classes, or there is no frame.
    """
    if reference.shape != artifact.shape or reference.ndim != 3 or not len(reference):
        raise EdgekitError(
            f"confusions of shapes {reference.shape} and {artifact.shape} are not of the same frames and classes"
        )
    classes = reference.shape[1]
    labelled = reference.sum((1, 2)) > 0
    frames, reference, artifact = int(labelled.sum()), reference[labelled], artifact[labelled]
    if not frames:
        return Interval(math.nan, math.nan, math.nan)
    value = float(mean_iou(reference.sum(0)) - mean_iou(artifact.sum(0)))
    weights = np.random.default_rng(seed).multinomial(frames, np.full(frames, 1.0 / frames), size=resamples)
    drops = _resampled_miou(weights, reference, classes) - _resampled_miou(weights, artifact, classes)
    if frames == 1:
        return Interval(value, -1.0, 1.0)
    if frames < FEW_FRAMES:
        found = _student(value, float(drops.std()) * math.sqrt(frames / (frames - 1)), frames)
        return Interval(value, max(found.low, -1.0), min(found.high, 1.0))
    low, high = np.percentile(drops, (2.5, 97.5))
    return Interval(value, float(low), float(high))


def _student(value: float, error: float, count: int) -> Interval:
    """Around a value of ``count`` observations with this standard error."""
    reach = STUDENT[count - 2] * error
    return Interval(value, value - reach, value + reach)


def _resampled_miou(weights: NDArray[Any], confusions: NDArray[Any], classes: int) -> Float64:
    """weights int64 [R, F], confusions [F, C, C] -> float64 [R]. In doubles: exact for counts, and a BLAS product."""
    summed = weights.astype(np.float64) @ confusions.reshape(len(confusions), -1).astype(np.float64)
    return mean_iou(summed.reshape(len(weights), classes, classes))


def bootstrap_ratio(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Median latency of ``first`` over that of ``second``, with a 95 % paired bootstrap interval.

    What is drawn should differ as much as two measurements would: processes where there are several, else rounds. They are
    resampled in pairs (both artifacts ran in the same round under the same clock), then samples inside each. Of
    few the interval is Student's t on the logarithms of their own ratios, around their mean, and takes in the value.

    Args:
        first, second: processes or rounds of milliseconds; number i of both ran next to each other.

    Raises:
        EdgekitError: they do not have the same number of rounds, or a round is empty.
    """
    if len(first) != len(second) or not first or not all(len(samples) for samples in (*first, *second)):
        raise EdgekitError("a latency ratio needs two artifacts measured in the same interleaved, non-empty rounds")
    numerator = [np.asarray(samples, np.float64) for samples in first]
    denominator = [np.asarray(samples, np.float64) for samples in second]
    value = float(np.median(np.concatenate(numerator)) / np.median(np.concatenate(denominator)))
    if 2 <= len(first) < FEW_ROUNDS:
        pairs = zip(numerator, denominator, strict=True)
        logarithms = np.log([np.median(one) / np.median(other) for one, other in pairs])
        own = _student(float(logarithms.mean()), float(logarithms.std(ddof=1)) / math.sqrt(len(first)), len(first))
        return Interval(value, min(value, math.exp(own.low)), max(value, math.exp(own.high)))
    generator = np.random.default_rng(seed)
    ratios: list[Float64] = []
    waiting: list[tuple[Float64, Float64]] = []
    for start in range(0, resamples, 50):  # in chunks: full mode has tens of thousands of samples
        drawn = generator.integers(0, len(first), (min(50, resamples - start), len(first)))
        waiting.append((_resampled(drawn, numerator, generator), _resampled(drawn, denominator, generator)))
        if sum(one.size + other.size for one, other in waiting) > 1 << 20 or start + 50 >= resamples:
            one, other = (_medians(np.concatenate(side)) for side in zip(*waiting, strict=True))
            ratios.append(one / other)
            waiting.clear()
    low, high = np.percentile(np.concatenate(ratios), (2.5, 97.5))
    return Interval(value, float(low), float(high))


def _resampled(drawn: NDArray[np.int64], rounds: Sequence[Float64], generator: np.random.Generator) -> Float64:
    """drawn int64 [R, K] indices of rounds -> float64 [R, samples]. Each drawn round gives as many samples as the mean round."""
    lengths = np.asarray([len(samples) for samples in rounds])
    starts = np.cumsum(lengths) - lengths
    each = max(1, round(float(lengths.mean())))
    inside = (generator.random((*drawn.shape, each)) * lengths[drawn][..., None]).astype(np.int64)
    picked: Float64 = np.concatenate(rounds)[starts[drawn][..., None] + inside].reshape(len(drawn), -1)
    return picked


def _medians(rows: Float64) -> Float64:
    """float64 [R, samples] -> float64 [R]; what ``np.median`` gives, which takes longer to begin than these few numbers take."""
    high = rows.shape[1] // 2
    low = high - (rows.shape[1] % 2 == 0)
    parted = np.partition(rows, (low, high), axis=1)
    medians: Float64 = (parted[:, low] + parted[:, high]) / 2
    return medians
