"""Calibration: what int8 is to represent, chosen by what it costs, and the graph's values found again in a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from graphs import graph_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from calibration import ranges
from calibration.equalization import equalized
from calibration.ranges import ESTIMATORS, calibrate, observe
from calibration.simulation import quantized_places, represented
from edgekit.core.errors import ConversionError
from edgekit.core.values import Scheme, Size, UInt8
from edgekit.export.compare import map_shapes
from edgekit.export.graph import normalize
from edgekit.export.layers import nodes_of
from edgekit.export.pixels import on_bordered_pixels
from edgekit.export.values import channel_limits, find_nodes, known_limits, visit_values, whole_range

SIZE = Size(64, 96)
ENDS = st.floats(-50, 50, width=32, allow_subnormal=False)  # edgekit flushes subnormals
SCHEMES = st.sampled_from(["symmetric", "asymmetric"])


class Chain(nn.Module):
    """Two convolutions with a ReLU between, and logits; ``first`` channels and a pole that few values reach."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.first(x))
        logits: torch.Tensor = self.head(torch.relu(self.second(first)) + first)
        return logits


def frames(count: int, seed: int = 0) -> Iterator[UInt8]:
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield generator.integers(0, 256, (1, SIZE.height, SIZE.width, 3), np.uint8)


@given(ENDS, ENDS, st.lists(st.floats(-60, 60, width=32, allow_subnormal=False), min_size=1), SCHEMES)
def test_int8_represents_a_range_to_half_a_step_and_zero_exactly(
    one: float, other: float, values: list[float], scheme: Scheme
) -> None:
    low, high = min(one, other, 0.0), max(one, other, 0.0)
    given_values = torch.tensor([*values, 0.0])
    result = represented(given_values, low, high, scheme)
    step = max(-low, high) / 127 if scheme == "symmetric" else (high - low) / 255
    nearest = given_values.clamp(low, high)
    # The zero point is a whole number, so that one end may lie half a step further in.
    assert (result - nearest).abs().max() <= step * 1.001 + 1e-5 or scheme == "symmetric"
    inside = (given_values >= low + step) & (given_values <= high - step)
    assert ((result - given_values).abs()[inside] <= step / 2 * 1.001 + 1e-5).all()
    assert result[-1] == 0
    assert len(torch.unique(represented(torch.linspace(-60, 60, 5000), low, high, scheme))) <= 256


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_estimator_leaves_what_was_seen(name: str) -> None:
    generator = np.random.default_rng(1)
    for sample in (generator.normal(size=4000), np.abs(generator.normal(size=4000)), np.zeros(50), np.full(10, -3.0)):
        values = sample.astype(np.float32)
        seen = float(values.min()), float(values.max())
        low, high = ESTIMATORS[name](values, *seen, "symmetric")
        assert min(seen[0], 0.0) <= low <= high <= max(seen[1], 0.0)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("low", "high"), [(1.0, 1 + 2e-7), (0.0, 3e-45), (0.0, 0.0), (-2.0, -2.0)])
def test_values_almost_all_alike_have_a_range(name: str, low: float, high: float) -> None:
    """float32 has no room for a histogram's edges there."""
    sample = np.asarray([low, high] * 8, np.float32)
    found = ESTIMATORS[name](sample, float(sample.min()), float(sample.max()), "asymmetric")
    assert np.isfinite(found).all() and found[0] <= found[1]


def test_limits_are_those_of_each_channel_in_any_layout() -> None:
    value = torch.randn(1, 6, 10, 14)
    expected = np.stack([value.amin((0, 2, 3)).numpy(), value.amax((0, 2, 3)).numpy()], 1)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert np.array_equal(channel_limits(value.contiguous(memory_format=layout).numpy()), expected)
    assert np.array_equal(channel_limits(value[0].numpy()), [[value.min(), value.max()]])


def test_every_value_of_the_graph_is_found_again_in_either_layout() -> None:
    graph = graph_of(Chain(), SIZE)
    quantization = calibrate(graph, lambda: frames(2), 2).quantization
    found = {}

    def look(node: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        if node.op == "call_function":
            last = value.permute(0, 2, 3, 1).contiguous().numpy()
            found[node.name] = (
                find_nodes(graph, quantization, value.numpy()),
                find_nodes(graph, quantization, last * np.float32(1.001)),
            )
            assert find_nodes(graph, quantization, value.numpy() * np.float32(1.1)) == ()
        return value

    visit_values(graph, quantization.probe, look)
    assert len(found) >= 6
    assert all(names == ((name,), (name,)) for name, names in found.items())
    mean = graph.normalization.mean_colour()
    pixels = (quantization.probe - mean).transpose(0, 3, 1, 2)
    (frame,) = (node.name for node in graph.module.graph.nodes if node.op == "placeholder")
    assert find_nodes(graph, quantization, pixels) == (frame,)


class Branches(nn.Module):
    """Three branches, of which the first never gives anything and the second nothing for dark frames; two that are copies."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dead, self.idle, self.busy = (nn.Conv2d(3, 8, 3, 2, 1) for _ in range(3))
        self.head = nn.Conv2d(32, 4, 1)
        with torch.no_grad():
            self.dead.bias.fill_(-1000.0)
            self.idle.bias.fill_(-1.2)
            self.idle.weight.abs_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dead, idle, busy = (torch.relu(branch(x)) for branch in (self.dead, self.idle, self.busy))
        logits: torch.Tensor = self.head(torch.cat([dead, idle, busy, nn.functional.leaky_relu(busy, 0.5)], 1))
        return logits


def test_maps_that_the_probe_cannot_tell_apart_are_held_together() -> None:
    """A branch that is idle on the probe does not get the range of one that is always zero; of copies either one's is held."""
    graph = graph_of(Branches(), SIZE)

    def batches() -> Iterator[UInt8]:
        return (frame // 6 if index == 0 else frame for index, frame in enumerate(frames(4)))

    quantization = calibrate(graph, batches, 4).quantization
    graph = equalized(graph, quantization.scales)
    found = {}

    def look(node: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        names = find_nodes(graph, quantization, value.numpy())
        found[node.name] = names, known_limits(graph, quantization, "symmetric", names)
        return value

    visit_values(graph, quantization.probe, look)
    held = quantization.ranges["symmetric"]
    assert whole_range(held["relu"])[1] == 0
    assert whole_range(held["relu_1"])[1] > 1
    assert found["relu"] == found["relu_1"] == (("relu", "relu_1"), None)
    names, limits = found["leaky_relu"]
    assert names == ("relu_2", "leaky_relu")
    assert limits is not None
    assert whole_range(limits)[1] == max(whole_range(held[name])[1] for name in names)


def test_a_few_giant_values_do_not_decide_the_range() -> None:
    """One hot pixel in one frame stretches what is seen a hundredfold: representing it all costs more than cutting it off."""
    network = Chain()
    with torch.no_grad():
        network.first.weight[0] = 0.0
        network.first.weight[0, 0, 1, 1] = 400.0
        network.first.bias[0] = -2.2 * 400.0  # normalized red reaches 2.25: only the brightest pixels pass
        network.second.weight[:, 0] = 0.0  # and nothing comes of them
        network.head.weight[:, 0] = 0.0
        network.head.weight *= 40.0  # a network that is sure of its labels
    graph = graph_of(network, SIZE)

    def dim(seed: int) -> Iterator[UInt8]:
        for frame in frames(3, seed):
            frame = frame // 2
            frame[0, 10, 10] = 255
            yield frame

    calibrated = calibrate(graph, lambda: dim(7), 3)
    for scheme in ("symmetric", "asymmetric"):
        record = calibrated.record["ranges"][scheme]
        assert record["expected_drop"][record["estimator"]] == min(record["expected_drop"].values())
        assert set(record["expected_drop"]) | set(record["left_out"]) == set(ESTIMATORS)
        assert min(record["expected_drop"].values()) < 0.1 * record["expected_drop"]["min-max"]


def test_a_percentile_needs_values_beyond_it() -> None:
    """Two frames show no 99.999th percentile: it is left out, with the reason, rather than the maximum called by its name."""
    several = list(frames(2))
    for count, without in ((1, {"percentile 99.999", "percentile 99.99"}), (2, {"percentile 99.999"})):
        batches = partial(iter, several[:count])
        for record in calibrate(graph_of(Chain(), SIZE), batches, count).record["ranges"].values():
            assert set(record["left_out"]) == without
            assert set(record["expected_drop"]) == set(ESTIMATORS) - without
            assert all(
                f"{count * 8192} values of a map" in why and "--samples" in why for why in record["left_out"].values()
            )
    values = np.arange(1000, dtype=np.float32)
    assert ESTIMATORS["percentile 99.99"](values, 0.0, 2000.0, "symmetric") == (0.0, 2000.0)
    assert ESTIMATORS["percentile 99.99"](np.tile(values, 20), 0.0, 2000.0, "symmetric")[1] <= 999.0


def test_ranges_from_half_of_the_frames_are_judged_on_the_frames_that_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their drops stand beside that of all: a sum over other frames could not be set against it."""
    judged: list[int] = []

    def counted(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
        judged.append(len(list(pairs)))
        return judged[-1] / 100

    monkeypatch.setattr(ranges, "expected_drop", counted)
    for record in calibrate(graph_of(Chain(), SIZE), lambda: frames(4), 4).record["ranges"].values():
        assert record["expected_drop_of_halves"] == [0.04, 0.04]
        assert set(record["expected_drop"].values()) == {record["bias_correction"]["expected_drop"]} == {0.04}


def test_samples_are_held_once_and_of_quantized_maps_alone() -> None:
    """Memory for many frames is the samples', and little beside: nothing is copied to put frames together or to equalize."""
    import tracemalloc

    graph, count = graph_of(Chain(), SIZE), 24
    observe(graph, frames(1), 1)
    tracemalloc.start()
    observed = observe(graph, frames(count), count)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(observed.samples) == quantized_places(graph, "symmetric")
    held = sum(value.nbytes for value in observed.samples.values())
    assert held == 4 * count * 4 * 8192
    assert peak < 1.6 * held
    scaled = observed.scaled({"relu": np.full(8, 0.5, np.float32)})
    assert scaled.samples is observed.samples
    assert np.array_equal(scaled.sample("relu"), observed.sample("relu") * 0.5)
    assert np.array_equal(scaled.whole("relu"), observed.whole("relu") * 0.5)


def test_one_pass_over_the_frames_is_enough() -> None:
    passes = []

    def batches() -> Iterator[UInt8]:
        passes.append(None)
        return frames(5)

    calibrate(graph_of(Chain(), SIZE), batches, 5)
    assert len(passes) == 1


def test_places_are_what_int8_operations_read() -> None:
    graph = graph_of(Chain(), SIZE)
    (frame,) = (node.name for node in graph.module.graph.nodes if node.op == "placeholder")
    symmetric, asymmetric = quantized_places(graph, "symmetric"), quantized_places(graph, "asymmetric")
    assert symmetric - asymmetric == {frame}
    # Not what a ReLU alone reads, and not the logits.
    assert len(asymmetric) == 3


class Counting(nn.Module):
    """Coordinates of whole numbers, an activation of a parameter, and a map in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)
        self.weights = nn.Parameter(torch.tensor([0.5, -0.25]))

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.first(x).relu().chunk(2, 1)
        rows = (torch.arange(one.shape[2]) + 0.5) / one.shape[2]
        share = self.weights.relu()
        mixed = one * share[0] + other * share[1] + rows[:, None]
        return self.last(torch.cat([mixed, other], 1))


def test_networks_that_count_weigh_and_part_their_maps() -> None:
    graph = graph_of(Counting(), SIZE)
    observe(graph, frames(2), 2)
    record = calibrate(graph, lambda: frames(2), 2).record
    assert set(record["ranges"]) == {"symmetric", "asymmetric"}
    assert nodes_of(graph, ("last",)) == {"conv2d_1"}
    assert all(len(shape) == 3 for shape in map_shapes(graph).values())


class Odd(nn.Module):
    """``kind`` of what few networks do."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.kind = kind
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.norm.running_mean, self.norm.running_var = torch.randn(8), torch.rand(8) + 0.5
        self.place = nn.Parameter(torch.randn(1, 1, 8, 1, 1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "writes into its input":
            x.sub_(0.5).div_(0.25)
        if self.kind == "counts its calls":
            self.calls += 1
        bias = self.first.bias * (2 + x.mean()) if "bias" in self.kind else self.first.bias
        x = functional.conv2d(x, self.first.weight, bias, 2, 1)
        x = self.norm(x) if "norm" in self.kind else x
        if self.kind == "has a parameter of five axes":
            x = x + self.place[:, 0]
        if self.kind == "strides by hand":
            x = torch.as_strided(x, x.shape, (8 * 32 * 48, 32 * 48, 48, 1))
        if self.kind == "is complex for a while":
            x = torch.view_as_real(torch.view_as_complex(x.reshape(1, 8, 32, 24, 2))).reshape(1, 8, 32, 48)
        if self.kind == "rounds to bfloat16":
            x = x.bfloat16().float()
        logits: Tensor = self.last(x.relu())
        return logits


ODD = (
    "writes into its input", "counts its calls", "computes a bias", "computes a bias before its norm",
    "has a parameter of five axes", "strides by hand", "is complex for a while", "rounds to bfloat16",
)  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_odd_networks_are_what_they_were(kind: str) -> None:
    """Their graph, rewritten, on pixels, and while its values are looked at; it leaves its input as it is."""
    network = Odd(kind).eval()
    graph = graph_of(network, SIZE, rewrites=True)
    (frame,) = frames(1)
    x = normalize(torch.from_numpy(frame), graph.normalization)
    with torch.no_grad():
        expected = network(x.clone())
        before = x.clone()
        torch.testing.assert_close(graph.module(x), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(x, before)
        if (bordered := on_bordered_pixels(graph)) is not None:
            raw = torch.from_numpy(
                np.pad(frame[0], ((bordered.top, bordered.bottom), (bordered.left, bordered.right), (0, 0)))
            )
            made = bordered.module(raw.permute(2, 0, 1)[None].float())
            assert (made - expected)[..., 1:, 1:].abs().max() < 1e-2, (
                "but for the border, which is the mean colour there"
            )
    assert (bordered is None) == (
        kind in ("computes a bias", "computes a bias before its norm", "writes into its input")
    )
    assert "aten.copy_" not in str(graph.module.graph)
    seen = visit_values(graph, frame, lambda node, value: torch.from_numpy(value.numpy()))
    torch.testing.assert_close(seen, expected, rtol=1e-3, atol=1e-3)


def test_values_that_are_not_finite_are_told_by_their_module() -> None:
    network = Chain()
    with torch.no_grad():
        network.second.bias[3] = float("nan")
    with pytest.raises(ConversionError, match=r"not finite at 'second'.*calibration frame 1"):
        observe(graph_of(network, SIZE), frames(2), 2)


def test_frames_that_are_missing_or_of_another_size_are_told() -> None:
    graph = graph_of(Chain(), SIZE)
    with pytest.raises(ConversionError, match="gave no frames"):
        observe(graph, iter(()), 1)
    with pytest.raises(ConversionError, match="shape"):
        observe(graph, [np.zeros((1, 64, 64, 3), np.uint8)], 1)
