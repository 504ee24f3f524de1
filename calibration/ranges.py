"""What a network's values are over the calibration frames, and the ranges that int8 is to represent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from calibration.bias import Corrections, corrected, find_corrections
from calibration.equalization import Scales, equalized, find_scales, settled
from calibration.simulation import (
    SMALLEST_SCALE,
    expected_drop,
    quantized_places,
    represented,
    simulate,
    with_int8_weights,
)
from calibration.threads import side_by_side
from edgekit.core.errors import ConversionError
from edgekit.core.values import Batches, DeployableGraph, Float32, Int64, Quantization, Ranges, Scheme, UInt8
from edgekit.export.graph import module_of
from edgekit.export.values import as_cores_read, channel_limits, visit_values, whole_range

SIMULATED_PIXELS, MOST_SIMULATED = 4 << 20, 12
"""Estimators are compared on frames of so many pixels together, and on no more frames."""

LEAST_SQUARES_BINS = 1 << 13
"""The bins of a histogram: some thirty in each step of int8."""

SAMPLES_PER_FRAME = 8192
"""So many values of each map of each frame are kept, at random positions: of 32 frames, some 26 lie above the 99.99th percentile."""


@dataclass(frozen=True)
class Observed:
    """What each node held over all frames.

    Attributes:
        limits: smallest and largest value of each channel in each frame, float32 [frames, channels, 2], exactly.
        samples: of the nodes that are quantized anywhere, float32 [frames, at most SAMPLES_PER_FRAME], some of their values.
        channels: of what channel each sample is; one array for all maps of one size.
        scales: what the channels of maps are multiplied by, where equalization is to have been there before. Applied on
            the way out: many frames' samples are hundreds of megabytes.
    """

    limits: Mapping[str, Float32]
    samples: Mapping[str, Float32]
    channels: Mapping[str, NDArray[np.unsignedinteger[Any]]]
    scales: Scales = field(default_factory=dict)

    def of(self, frames: slice) -> Observed:
        """What some of the frames alone would have shown."""
        return Observed(
            {name: value[frames] for name, value in self.limits.items()},
            {name: value[frames] for name, value in self.samples.items()},
            {name: value[frames] for name, value in self.channels.items()},
            self.scales,
        )

    def scaled(self, scales: Scales) -> Observed:
        """What the equalized graph would have shown."""
        return replace(self, scales=scales)

    def whole(self, name: str) -> Float32:
        """Smallest and largest value of each of a node's channels: float32 [channels, 2]."""
        limits = self.limits[name]
        ends = np.stack([limits[:, :, 0].min(0), limits[:, :, 1].max(0)], 1)
        return ends * self.scales[name][:, None] if name in self.scales else ends

    def sample(self, name: str) -> Float32:
        """Some of a node's values over all frames: float32 [values]."""
        values = self.samples[name]
        return (values * self.scales[name][self.channels[name]] if name in self.scales else values).ravel()


def observe(graph: DeployableGraph, frames: Iterable[UInt8], count: int) -> Observed:
    """One pass of the float graph over the frames, some of them at a time; no map is kept.

    Args:
        count: frames there are at most.

    Raises:
        ConversionError: no frames, frames of another size, or a value that is not finite and must be represented.
    """
    limits: dict[str, Float32] = {}
    samples: dict[str, Float32] = {}
    channels: dict[str, NDArray[Any]] = {}
    by_size: dict[tuple[int, int], NDArray[Any]] = {}  # maps of one size are looked at in the same places
    places = frozenset(name for scheme in SCHEMES for name in quantized_places(graph, scheme))

    def look(index: int, node: Node, value: Tensor) -> Tensor:
        held = as_cores_read(graph, node, value)
        now = channel_limits(held.numpy())
        if not np.isfinite(now).all():
            if node.name in places or bool(held.isnan().any()):
                raise ConversionError(
                    f"the network gives values that are not finite at {_place(node)} for calibration frame {index + 1}: "
                    "int8 cannot represent them, look at its weights"
                )
            # An attention's mask, before its softmax: in float on all targets.
            held = held.nan_to_num(posinf=0.0, neginf=0.0)
            now = channel_limits(held.numpy())
        limits.setdefault(node.name, np.empty((count, *now.shape), np.float32))[index] = now
        if node.name in places:
            ordered = held.permute(0, 2, 3, 1) if held.ndim == 4 else held  # as it lies in memory
            flat = ordered.reshape(-1).numpy()
            width = value.shape[1] if value.ndim == 4 else 1
            positions = _positions(flat.size, index)
            shape = (count, positions.size)
            samples.setdefault(node.name, np.empty(shape, np.float32))[index] = flat[positions]
            numbers = by_size.setdefault((flat.size, width), np.empty(shape, np.min_scalar_type(width - 1)))
            numbers[index] = positions % width
            channels[node.name] = numbers
        return value

    def visit(numbered: tuple[int, UInt8]) -> None:
        index, frame = numbered
        if frame.shape != (1, graph.size.height, graph.size.width, 3):
            raise ConversionError(f"a calibration frame has the shape {list(frame.shape)}, not that of {graph.size}")
        visit_values(graph, frame, partial(look, index))

    done = sum(1 for _ in side_by_side(visit, enumerate(frames)))
    if not done:
        raise ConversionError("calibration gave no frames: choose a --calib dataset that has some")
    return Observed(limits, samples, channels).of(slice(done))


def _place(node: Node) -> str:
    module = module_of(node)
    return f"'{module}' ({node.name})" if module else f"'{node.name}'"


def _positions(size: int, frame: int) -> Int64:
    """Places in a map, which depend on nothing but its size and the frame's number."""
    if size <= SAMPLES_PER_FRAME:
        return np.arange(size)
    return np.random.default_rng((frame, size)).integers(0, size, SAMPLES_PER_FRAME)


def _suffices(values: int, share: float) -> bool:
    """Whether so many values have any beyond a percentile."""
    return values * share >= 1 - 1e-9


Estimator = Callable[[Float32, float, float, Scheme], tuple[float, float]]
"""A sample of a tensor's values, its smallest and largest, and the scheme -> the range to represent."""


def _percentile(share: float) -> Estimator:
    """All but ``share`` of the values at each end; everything where that is less than one value."""

    def estimate(sample: Float32, low: float, high: float, scheme: Scheme) -> tuple[float, float]:
        if not _suffices(sample.size, share):
            return low, high
        ends = np.quantile(sample, [share, 1 - share])
        return max(low, float(ends[0])), min(high, float(ends[1]))

    return estimate


def _least_squares(sample: Float32, low: float, high: float, scheme: Scheme) -> tuple[float, float]:
    """The share of the whole range at which rounding and cutting off together err least."""
    counts, width = _histogram(sample, LEAST_SQUARES_BINS, low, high)
    seen = counts.nonzero()[0]
    values, weights = torch.from_numpy(low + (seen + 0.5) * width), torch.from_numpy(counts[seen].astype(np.float64))
    shares = np.linspace(0.2, 1.0, 41)
    errors = [
        float((represented(values, low * share, high * share, scheme) - values).square_() @ weights) for share in shares
    ]
    best = float(shares[int(np.argmin(errors))])
    return low * best, high * best


def _histogram(values: Float32, bins: int, low: float, high: float) -> tuple[Int64, float]:
    """Values in each of so many equal bins from ``low`` to ``high``, which none is beyond, and a bin's width."""
    width = (high - low) / bins
    # numpy's own histogram takes four times as long to be exact at the bins' edges. All is in the first where they have no width.
    per_value = np.float32(1 / width if width >= SMALLEST_SCALE else 0.0)
    places = ((values - np.float32(low)) * per_value).astype(np.int32)
    return np.bincount(np.minimum(places, bins - 1), minlength=bins), width


def _entropy(sample: Float32, low: float, high: float, scheme: Scheme) -> tuple[float, float]:
    """The threshold at which the distribution in 128 steps is nearest to that in 2048 (NVIDIA's calibration, 2017)."""
    bins, steps = 2048, 128
    reach = max(-low, high)
    counts = _histogram(np.abs(sample), bins, 0.0, reach)[0].astype(np.float64)
    counts[0] = counts[1]  # the zeros of ReLU say nothing of the rest
    best, least = bins, np.inf
    for kept in range(steps, bins + 1, 16):
        whole = counts[:kept].copy()
        whole[-1] += counts[kept:].sum()
        edges = np.arange(steps + 1) * kept // steps
        coarse = np.add.reduceat(counts[:kept], edges[:-1])
        filled = np.add.reduceat((counts[:kept] > 0).astype(np.float64), edges[:-1])
        spread = np.repeat(np.divide(coarse, filled, out=np.zeros(steps), where=filled > 0), np.diff(edges))
        spread[counts[:kept] == 0] = 0.0
        if whole.sum() == 0 or spread.sum() == 0:
            continue
        p, q = whole / whole.sum(), spread / spread.sum()
        seen = p > 0
        divergence = float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())
        if divergence < least:
            best, least = kept, divergence
    threshold = reach * best / bins
    return max(low, -threshold), min(high, threshold)


PERCENTILES: Mapping[str, float] = {"percentile 99.999": 1e-5, "percentile 99.99": 1e-4}
"""The share of the values that each leaves out at either end."""

ESTIMATORS: Mapping[str, Estimator] = {
    "min-max": lambda sample, low, high, scheme: (low, high),
    **{name: _percentile(share) for name, share in PERCENTILES.items()},
    "least squares": _least_squares,
    "entropy": _entropy,
}


FIRST_ESTIMATOR = "least squares"
"""By which equalizations are compared."""

EQUALIZATIONS: Mapping[str, float | None] = {"none": None, "halfway": 0.5, "full": 1.0}
"""The evenness of channels' ranges, see :func:`calibration.equalization.find_scales`."""

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
EVERY = slice(None)


def left_out(observed: Observed, places: frozenset[str]) -> dict[str, str]:
    """Percentiles that these frames are too few for, and why: most maps would show them no value beyond."""
    usual = int(np.median([observed.samples[name].size for name in places])) if places else 0
    return {
        name: f"{usual} values of a map are seen, fewer than the {round(1 / share)} of which one lies beyond: "
        "raise --samples"
        for name, share in PERCENTILES.items()
        if not _suffices(usual, share)
    }


def estimate(observed: Observed, estimator: Estimator, scheme: Scheme, places: frozenset[str]) -> Ranges:
    """Ranges of all nodes: the estimator's at the quantized places, everything elsewhere."""
    ranges = {name: observed.whole(name) for name in observed.limits}
    for name in places:
        limits = ranges[name]
        low, high = estimator(observed.sample(name), *whole_range(limits), scheme)
        ranges[name] = np.clip(limits, np.float32(low), np.float32(high))
    return ranges


@dataclass(frozen=True)
class Calibrated:
    """How int8 is to represent a network, and how that was found.

    Attributes:
        quantization: for the targets.
        record: for manifests: equalizations, estimators and bias correction with the drops in mIoU that they are expected
            to cost, percentiles left out and why, and the drop with ranges from either half of the frames alone, in plain
            values.
    """

    quantization: Quantization
    record: dict[str, Any]


def calibrate(graph: DeployableGraph, batches: Batches, count: int) -> Calibrated:
    """The equalization, ranges and biases that cost the network least: all are simulated on some frames, the best are taken.

    Args:
        batches: one pass is taken.
        count: frames in it.

    Raises:
        ConversionError: see :func:`observe`.
    """
    simulated = min(count, MOST_SIMULATED, max(2, SIMULATED_PIXELS // (graph.size.height * graph.size.width)))
    chosen = set(np.linspace(0, count - 1, simulated).round().astype(int).tolist())
    frames: list[UInt8] = []

    def keep_some() -> Iterator[UInt8]:
        for index, frame in enumerate(batches()):
            if index in chosen:
                frames.append(frame)
            yield frame

    observed = observe(graph, keep_some(), count)
    expected = [visit_values(graph, frame, lambda _, value: value) for frame in frames]

    def drop(form: _Form, scheme: Scheme, candidate: Ranges, some: slice = EVERY) -> float:
        return expected_drop(
            (logits, simulate(form.rounded, frame, candidate, scheme, form.places[scheme]))
            for frame, logits in zip(frames[some], expected[some], strict=True)
        )

    def tried(form: _Form, scheme: Scheme, estimator: str, some: slice = EVERY) -> tuple[Ranges, float]:
        candidate = estimate(form.observed, ESTIMATORS[estimator], scheme, form.places[scheme])
        return candidate, drop(form, scheme, candidate, some)

    def tried_first(case: tuple[str, Scheme]) -> float:
        few = slice(None, None, 2)  # enough to tell apart what differs much
        return tried(forms[case[0]], case[1], FIRST_ESTIMATOR, few)[1]

    forms = {name: _form(graph, observed, evenness) for name, evenness in EQUALIZATIONS.items()}
    cases = list(product(forms, SCHEMES))
    first = dict(zip(cases, side_by_side(tried_first, cases), strict=True))
    in_all = {name: sum(first[name, scheme] for scheme in SCHEMES) for name in forms}  # one graph serves all targets
    equalization = min(forms, key=in_all.__getitem__)
    form = forms[equalization]
    ranges: dict[Scheme, Ranges] = {}
    record: dict[str, Any] = {}
    uncorrected: dict[Scheme, float] = {}
    for scheme in SCHEMES:
        without = left_out(observed, form.places[scheme])
        names = [name for name in ESTIMATORS if name not in without]
        candidates = dict(zip(names, side_by_side(partial(tried, form, scheme), names), strict=True))
        best = min(names, key=lambda name: candidates[name][1])
        ranges[scheme], uncorrected[scheme] = candidates[best]
        record[scheme] = {
            "estimator": best,
            "expected_drop": {name: candidates[name][1] for name in names},
            "left_out": without,
            "equalization": equalization,
            "expected_drop_by_equalization": {name: first[name, scheme] for name in forms},
            "expected_drop_by_equalization_in_all": in_all,
        }
    corrections = find_corrections(form.graph, frames)
    other = _with_biases(form, corrections)
    after = dict(zip(SCHEMES, side_by_side(lambda scheme: drop(other, scheme, ranges[scheme]), SCHEMES), strict=True))
    better = sum(after.values()) < sum(uncorrected.values())  # one graph serves all targets
    form, corrections = (other, corrections) if better else (form, {})
    for scheme in SCHEMES:
        record[scheme]["bias_correction"] = {"taken": better, "expected_drop": after[scheme]}
        if count > 1:  # how much it matters which frames give the ranges: two halves that share none, each alone
            halves = [replace(form, observed=form.observed.of(slice(start, None, 2))) for start in range(2)]
            estimator = record[scheme]["estimator"]
            both = side_by_side(partial(tried, scheme=scheme, estimator=estimator), halves)
            record[scheme]["expected_drop_of_halves"] = [dropped for _, dropped in both]
    quantization = Quantization(ranges, form.scales, frames[0], batches, corrections)
    return Calibrated(quantization, {"ranges": record, "simulated_frames": len(frames)})


@dataclass(frozen=True)
class _Form:
    """A network with its channels scaled in one way, in float and with int8 weights."""

    graph: DeployableGraph
    scales: Scales
    observed: Observed
    rounded: DeployableGraph
    places: Mapping[Scheme, frozenset[str]]


def _form(graph: DeployableGraph, observed: Observed, evenness: float | None) -> _Form:
    reaches = {name: np.abs(observed.whole(name)).max(1) for name in observed.limits}
    for node in graph.module.graph.nodes:
        if node.op == "placeholder":  # the convolutions here read it normalized
            reaches[node.name] = reaches[node.name] * graph.normalization.scale()
    scales = settled(graph, reaches, {} if evenness is None else find_scales(graph, reaches, evenness))
    scaled = equalized(graph, scales)
    places = {scheme: quantized_places(scaled, scheme) for scheme in SCHEMES}
    return _Form(scaled, scales, observed.scaled(scales), with_int8_weights(scaled), places)


def _with_biases(form: _Form, corrections: Corrections) -> _Form:
    graph = corrected(form.graph, corrections)
    return replace(form, graph=graph, rounded=with_int8_weights(graph))
