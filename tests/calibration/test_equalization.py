"""Equalization: the network stays the same bit for bit, and how its channels were scaled before does not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from graphs import OWN, lively, uneven
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from calibration.equalization import equalized, find_scales, settled
from calibration.ranges import calibrate
from edgekit.core.values import DeployableGraph, Float32, Size, UInt8
from edgekit.export.graph import deployable, normalize
from edgekit.export.values import visit_values
from edgekit.networks.checkpoint import load_checkpoint
from edgekit.networks.fast_scnn import FastSCNN
from edgekit.networks.spssn import SPSSN


def frame_of(size: Size, seed: int = 0) -> UInt8:
    return np.random.default_rng(seed).integers(0, 256, (1, size.height, size.width, 3), np.uint8)


def reaches_of(graph: DeployableGraph, frame: UInt8) -> dict[str, Float32]:
    found = {}

    def look(node: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
        if value.ndim == 4:
            found[node.name] = value.abs().amax((0, 2, 3)).numpy()
        return value

    visit_values(graph, frame, look)
    return found


def own() -> nn.Module:
    names: dict[str, Any] = {}
    exec(compile(OWN, "own.py", "exec"), names)
    network: nn.Module = names["Own"]()
    return network


@settings(max_examples=4, phases=[Phase.generate])
@given(st.integers(64, 130), st.integers(64, 130), st.sampled_from([0.0, 0.5, 1.0]))
@pytest.mark.parametrize("make", [lambda: SPSSN(7), lambda: FastSCNN(7), own], ids=["spssn", "fast-scnn", "own"])
def test_the_network_stays_the_same_bit_for_bit(
    make: Callable[[], nn.Module], height: int, width: int, evenness: float
) -> None:
    graph = uneven(lively(make(), height * width), height, width)
    scales = find_scales(graph, reaches_of(graph, frame_of(graph.size)), evenness)
    assert scales or make is own  # where something else reads every map
    other = equalized(graph, scales)
    given_frame = normalize(torch.from_numpy(frame_of(graph.size, 1)), graph.normalization)
    with torch.no_grad():
        assert torch.equal(other.module(given_frame), graph.module(given_frame))
    for name, factors in scales.items():
        mantissas = np.frexp(factors)[0]
        assert (mantissas == 0.5).all(), name


class Depthwise(nn.Module):
    """A block as mobile networks have them, with what lies between: pooling, a resize, a sum and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.project = nn.Conv2d(8, 8, 1)
        self.beside = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem = torch.relu(self.stem(x))
        inner = torch.relu(self.depthwise(stem))
        summed = nn.functional.max_pool2d(self.project(inner) + self.beside(stem), 2)
        wide = nn.functional.interpolate(summed, scale_factor=2, mode="bilinear", align_corners=False)
        logits: torch.Tensor = self.head(torch.cat([wide, stem], 1))
        return logits


@settings(max_examples=20, phases=[Phase.generate])
@given(st.lists(st.integers(-7, 7), min_size=8, max_size=8), st.sampled_from([0.0, 0.5, 1.0]))
def test_how_channels_were_scaled_before_does_not_matter(exponents: list[int], evenness: float) -> None:
    torch.manual_seed(5)
    network = Depthwise().eval()
    frame = frame_of(Size(64, 96))

    def weights() -> list[torch.Tensor]:
        graph = uneven(network, 64, 96)
        module = equalized(graph, find_scales(graph, reaches_of(graph, frame), evenness)).module
        return [value for _, value in sorted([*module.named_buffers(), *module.named_parameters()])]

    before = weights()
    factors = torch.tensor([2.0**exponent for exponent in exponents])
    with torch.no_grad():
        network.depthwise.weight *= factors[:, None, None, None]
        network.depthwise.bias *= factors
        network.project.weight /= factors[None, :, None, None]
    after = weights()
    for one, other in zip(before, after, strict=True):
        ratio = (other / one)[one != 0]  # all channels of a map together may be scaled
        assert (ratio == ratio[0]).all()


@pytest.mark.parametrize("level", [2.0**-12, 2.0**12])
def test_a_map_far_from_the_usual_level_is_brought_there(level: float) -> None:
    """As a whole, bit for bit the same function; maps that are near enough, or that something else reads, stay."""
    torch.manual_seed(5)
    network = lively(Depthwise())
    frame = frame_of(Size(64, 96))
    graph = uneven(network, 64, 96)
    usual = settled(graph, reaches_of(graph, frame), {})
    with torch.no_grad():
        network.depthwise.weight *= level
        network.depthwise.bias *= level
        network.project.weight /= level
    graph = uneven(network, 64, 96)
    scales = settled(graph, reaches_of(graph, frame), {})
    moved = {name for name in scales if name not in usual or not np.array_equal(scales[name], usual[name])}
    assert moved == {"conv2d_1", "relu_1"}
    assert all((scales[name] == scales[name][0]).all() for name in scales)
    other = equalized(graph, scales)
    given_frame = normalize(torch.from_numpy(frame), graph.normalization)
    with torch.no_grad():
        assert torch.equal(other.module(given_frame), graph.module(given_frame))
    reaches = reaches_of(other, frame)
    assert 4.0 <= reaches["relu_1"].max() <= 16.0


def test_channels_read_by_depthwise_convolutions_come_out_alike() -> None:
    torch.manual_seed(6)
    network = lively(Depthwise())
    graph = uneven(network, 64, 96)
    frame = frame_of(graph.size)
    scales = find_scales(graph, reaches_of(graph, frame), 1.0)
    reaches = reaches_of(equalized(graph, scales), frame)
    for name, reach in reaches.items():
        if name.startswith("relu"):
            active = reach[reach > 0]
            assert active.max() <= 2.0 * active.min() * 1.001


def collapsed() -> tuple[DeployableGraph, DeployableGraph]:
    """The shipped network, and the same function with its depthwise channels' ranges a thousandfold apart."""
    checkpoint, size = load_checkpoint("spssn-streets"), Size(192, 384)
    graph = deployable(checkpoint, size)
    generator = np.random.default_rng(3)
    scales = {}
    for node in graph.module.graph.nodes:
        users = list(node.users)
        if node.target is torch.ops.aten.conv2d.default and len(node.args) > 6 and node.args[6] > 1:
            channels = node.meta["val"].shape[1]
            factors = 2.0 ** generator.integers(-5, 6, channels).astype(np.float32)
            reader = users[0] if users[0].target is torch.ops.aten.relu.default else node
            if len(users) == 1 and all(user.target is torch.ops.aten.conv2d.default for user in reader.users):
                scales |= {node.name: factors, reader.name: factors}
    assert len(scales) > 20
    return graph, equalized(graph, scales)


@pytest.mark.slow
def test_a_network_whose_channels_are_a_thousandfold_apart_keeps_its_accuracy() -> None:
    def frames() -> Iterator[UInt8]:
        from calibration.streets import draw

        return (draw("train", index, 192, 384).image[None] for index in range(6))

    original, rescaled = (calibrate(graph, frames, 6).record["ranges"] for graph in collapsed())
    for scheme in ("symmetric", "asymmetric"):
        least = {name: min(one[scheme]["expected_drop"].values()) for name, one in (("o", original), ("r", rescaled))}
        assert rescaled[scheme]["expected_drop_by_equalization"]["none"] > 0.05
        assert least["r"] < 0.005
        assert least["r"] <= least["o"] + 0.001


def test_what_cannot_be_scaled_is_left_alone() -> None:
    class Shared(nn.Module):
        """A convolution called twice, a sigmoid's input, and a map that is also the output."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.again = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
            self.gate, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.again(self.again(self.first(x)))
            logits: torch.Tensor = self.head(y * torch.sigmoid(self.gate(y)))
            return logits

    torch.manual_seed(7)
    graph = uneven(lively(Shared()), 64, 64)
    assert find_scales(graph, reaches_of(graph, frame_of(graph.size)), 1.0) == {}
    assert equalized(graph, {}) is graph


class Gate(nn.Module):
    """A gate of the whole map, PReLU, and a join behind it, which a depthwise convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.active = nn.Conv2d(3, 8, 3, 2, 1), nn.PReLU(8)
        self.look, self.after = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.last = nn.Conv2d(16, 4, 1)
        with torch.no_grad():
            self.first.weight.mul_(torch.logspace(-2, 1, 8).reshape(8, 1, 1, 1))
            self.active.weight.copy_(torch.linspace(-0.2, 0.6, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.active(self.first(x))
        return self.last(self.after(torch.cat([y * self.look(y.mean((2, 3), keepdim=True)).sigmoid(), y], 1)))


def test_channels_are_evened_out_through_gates() -> None:
    """The network stays the same bit for bit, and its joined map's channels come to like ranges."""
    torch.manual_seed(5)
    network = Gate().eval()
    graph = uneven(network, 32, 48)
    frame = np.random.default_rng(1).integers(0, 256, (1, 32, 48, 3), np.uint8)
    limits: dict[str, np.ndarray] = {}

    def look(node: Any, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim == 4:
            limits[node.name] = np.abs(value.numpy()).max((0, 2, 3))
        return value

    logits = visit_values(graph, frame, look)
    scales = find_scales(graph, limits, 1.0)
    again = equalized(graph, scales)
    before = dict(limits)
    assert torch.equal(visit_values(again, frame, look), logits)
    (join,) = (node.name for node in graph.module.graph.nodes if node.target is torch.ops.aten.cat.default)
    spread = [float(found[join].max() / found[join][found[join] > 0].min()) for found in (before, limits)]
    assert spread[1] < spread[0] / 8
