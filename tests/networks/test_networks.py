"""The networks are the papers': Table 1 row by row, parameter counts, and any size."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgekit.core.errors import CheckpointError, UsageError
from edgekit.networks.checkpoint import NETWORKS, build_network
from edgekit.networks.fast_scnn import FastSCNN
from edgekit.networks.spssn import SPSSN

Shape = tuple[int, ...]


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def folded_parameters(network: nn.Module) -> int:
    """As the paper counts: batch norms are merged, so each leaves its convolution a bias."""
    count = sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Conv2d))
    count += sum(
        layer.bias.numel() for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.bias is not None
    )
    return count + sum(layer.num_features for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))


def shapes(network: nn.Module, height: int, width: int) -> tuple[dict[str, tuple[Shape, Shape]], Shape]:
    """(input, output) shape, [h, w, channels] as the paper writes them, of every module; and the network's output."""
    seen: dict[str, tuple[Shape, Shape]] = {}

    def hook(name: str) -> Any:
        def record(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            given = inputs[0].shape
            seen[name] = ((*given[2:], given[1]), (*output.shape[2:], output.shape[1]))

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in network.named_modules()]
    with torch.no_grad():
        output = network(torch.empty(1, 3, height, width, device="meta"))
    for handle in handles:
        handle.remove()
    return seen, tuple(output.shape)


# (name in Table 1, module, input, output); the paper writes width x height, edgekit height x width.
TABLE_1 = [
    ("Conv2D", "downsample.0", (1024, 2048, 3), (512, 1024, 32)),
    ("DSCConv", "downsample.1", (512, 1024, 32), (256, 512, 48)),
    ("DSCConv", "downsample.2", (256, 512, 48), (128, 256, 64)),
    ("Stage-pooling 1", "pooling.0", (128, 256, 64), (128, 256, 128)),
    ("Bottleneck 1", "units.0", (128, 256, 64), (64, 128, 64)),
    ("Stage-pooling 2", "pooling.1", (64, 128, 64), (128, 256, 128)),
    ("Bottleneck 2", "units.1", (64, 128, 64), (32, 64, 96)),
    ("Stage-pooling 3", "pooling.2", (32, 64, 96), (128, 256, 128)),
    ("Bottleneck 3", "units.2", (32, 64, 96), (32, 64, 128)),
    ("Stage-pooling 4", "pooling.3", (32, 64, 128), (128, 256, 128)),
    ("SPP", "pyramid", (32, 64, 128), (32, 64, 128)),
    ("DSCConv 1 (the FFM's sum goes in)", "classifier.0", (128, 256, 128), (128, 256, 128)),
    ("DSCConv 2", "classifier.1", (128, 256, 128), (128, 256, 128)),
    ("Conv2D", "classifier.3", (128, 256, 128), (128, 256, 19)),
]


@cache
def table_1_shapes() -> dict[str, tuple[Shape, Shape]]:
    return shapes(SPSSN().to("meta").eval(), 1024, 2048)[0]


@pytest.mark.parametrize(("row", "module", "source", "result"), TABLE_1, ids=[row[0] + " " + row[1] for row in TABLE_1])
def test_table_1(row: str, module: str, source: Shape, result: Shape) -> None:
    assert table_1_shapes()[module] == (source, result)


def test_table_1_repeats() -> None:
    network = SPSSN()
    assert [len(unit) for unit in network.units] == [3, 3, 3]
    assert len(network.pooling) == 4


def test_shallow_branch_joins_at_one_eighth() -> None:
    assert table_1_shapes()["shallow"] == ((128, 256, 64), (128, 256, 128))


def test_pooling_keeps_its_stage_resolution() -> None:
    """Stage pooling pools before it upsamples (Fig. 2a); stream pooling after (Fig. 5)."""
    stage = table_1_shapes()
    stream, _ = shapes(SPSSN(stream=True).to("meta").eval(), 1024, 2048)
    resolutions = [(128, 256), (64, 128), (32, 64), (32, 64)]
    for index, resolution in enumerate(resolutions):
        assert stage[f"pooling.{index}.pooling"][0] == (*resolution, 128)
        assert stream[f"pooling.{index}.pooling"][0] == (128, 256, 128)


def test_camvid_variant_keeps_the_first_unit_at_one_eighth() -> None:
    seen, output = shapes(SPSSN(11, camvid=True).to("meta").eval(), 720, 720)
    assert seen["units.0"] == ((90, 90, 64), (90, 90, 64))
    assert seen["units.1"] == ((90, 90, 64), (45, 45, 96))
    assert seen["units.2"] == ((45, 45, 96), (45, 45, 128))
    assert [seen[f"pooling.{index}"][1] for index in range(4)] == [(90, 90, 128)] * 4
    assert output == (1, 11, 90, 90)


@pytest.mark.parametrize(
    ("network", "with_batch_norm", "folded"),
    [
        (SPSSN(), 1_427_971, 1_415_875),
        (SPSSN(pooling_stages=2), None, None),
        (SPSSN(stream=True), None, 1_465_411),
        (FastSCNN(), 1_137_795, 1_125_955),
    ],
    ids=["spssn", "spssn with two pairs", "spssn-stream", "fast-scnn"],
)
def test_parameter_counts(network: nn.Module, with_batch_norm: int | None, folded: int | None) -> None:
    if with_batch_norm is not None:
        assert parameters(network) == with_batch_norm
    if folded is not None:
        assert folded_parameters(network) == folded


def test_two_pairs_are_not_the_papers_count() -> None:
    assert parameters(SPSSN(pooling_stages=2)) == 1_296_899


def test_fast_scnn_convolutions_alone_are_the_papers_count() -> None:
    layers = [layer for layer in FastSCNN().modules() if isinstance(layer, nn.Conv2d)]
    own = sum(layer.weight.numel() + (0 if layer.bias is None else layer.bias.numel()) for layer in layers)
    assert own == 1_114_115


def test_camvid_variant_has_the_same_parameters() -> None:
    assert parameters(SPSSN(11, camvid=True)) == parameters(SPSSN(11))


META = {
    "spssn": SPSSN().to("meta").eval(),
    "spssn-stream": SPSSN(stream=True).to("meta").eval(),
    "camvid": SPSSN(11, camvid=True).to("meta").eval(),
    "fast-scnn": FastSCNN().to("meta").eval(),
}


@settings(max_examples=10, deadline=None)
@given(
    height=st.integers(64, 1100),
    width=st.integers(64, 2100),
    batch=st.integers(1, 3),
    name=st.sampled_from(sorted(META)),
)
def test_any_size_gives_one_eighth(height: int, width: int, batch: int, name: str) -> None:
    with torch.no_grad():
        output = META[name](torch.empty(batch, 3, height, width, device="meta"))
    assert tuple(output.shape) == (batch, 11 if name == "camvid" else 19, -(-height // 8), -(-width // 8))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 203), (127, 64)])
@pytest.mark.parametrize("name", NETWORKS)
def test_smallest_and_odd_sizes_compute(name: str, height: int, width: int) -> None:
    """The meta device knows shapes only; kernels have their own limits."""
    network = build_network(name, 5, {}).eval()
    with torch.no_grad():
        output = network(torch.randn(1, 3, height, width))
    assert tuple(output.shape) == (1, 5, -(-height // 8), -(-width // 8))
    assert torch.isfinite(output).all()


def test_every_parameter_learns() -> None:
    for name in NETWORKS:
        network = build_network(name, 5, {})
        network(torch.randn(2, 3, 64, 64)).square().sum().backward()
        idle = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()]
        # A shift before a batch norm changes nothing; everything else must take part.
        assert not idle, f"{name}: {idle}"


def test_unknown_network_and_unknown_argument() -> None:
    with pytest.raises(UsageError, match=r"no network 'unet'.*spssn"):
        build_network("unet", 19, {})
    with pytest.raises(CheckpointError, match="pooling_stage"):
        build_network("spssn", 19, {"pooling_stage": 2})
