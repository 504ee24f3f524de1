"""Rewrites are exact, whatever the network and the size."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strangers
import torch
from graphs import NORMALIZATION, OWN, lively, uneven
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from edgekit.core.errors import CheckpointError, ConversionError, EdgekitError, UsageError
from edgekit.core.values import DeployableGraph, Normalization, Size
from edgekit.export import rewrites
from edgekit.export.columns import fold_columns
from edgekit.export.graph import PROOF_TOLERANCE, FrameToLabels, deployable, export_aten, normalize, reference_labels
from edgekit.export.litert import crop_transposed_convolutions
from edgekit.export.nodes import add_constant, constant_tensor
from edgekit.export.pixels import on_bordered_pixels, on_centred_pixels
from edgekit.export.rewrites import (
    apply_rewrites,
    attend_with_heads,
    drop_expansions,
    drop_idle,
    fold_batch_norm,
    fold_constants,
    number_padding,
    pooling_matrix,
    replace_adaptive_pooling,
    resize_by_matrices,
    split_max_pooling,
    step_by_the_factor,
    sum_before_resizing,
    write_out,
)
from edgekit.networks.checkpoint import Checkpoint, load_checkpoint
from edgekit.networks.fast_scnn import FastSCNN
from edgekit.networks.spssn import SPSSN


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The user's module, importable as ``own_networks``."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_networks.py").write_text(OWN)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield importlib.import_module("own_networks")
    sys.path.remove(str(folder))
    sys.modules.pop("own_networks", None)


def operations(module: nn.Module) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


def build(name: str, own: Any) -> nn.Module:
    return lively(SPSSN(7) if name == "spssn" else FastSCNN(7) if name == "fast-scnn" else own.Own(7))


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [("spssn", 65, 203), ("fast-scnn", 97, 130), ("own", 64, 64), ("own", 65, 203), ("own", 97, 130), ("own", 129, 75)],
)
def test_each_rewrite_alone_is_exact(own: Any, name: str, height: int, width: int) -> None:
    network = build(name, own)
    example = torch.randn(1, 3, height, width)
    with torch.no_grad():
        expected = network(example)
        module = export_aten(network, example)
        for rewrite, gone in (
            (drop_idle, ("dropout",)),
            (number_padding, ("conv2d.padding",)),
            (write_out, ()),
            (fold_constants, ()),
            (drop_expansions, ()),
            (fold_batch_norm, ("batch_norm",)),
            (replace_adaptive_pooling, ("adaptive_avg_pool",)),
            (step_by_the_factor, ()),
            (resize_by_matrices, ()),
            (sum_before_resizing, ()),
            (split_max_pooling, ()),
            (crop_transposed_convolutions, ()),
        ):
            before = operations(module)
            count = rewrite(module)
            module.graph.lint()
            module.recompile()
            result = module(example)
            assert result.shape == expected.shape
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
            assert count >= sum(1 for operation in before if any(word in operation for word in gone))
            for word in gone:
                assert not [operation for operation in operations(module) if word in operation]


def check_pixel_forms(network: nn.Module, height: int, width: int, bordered: bool) -> None:
    """Normalizing first, centred pixels and bordered raw pixels give the same."""
    graph = uneven(network, height, width)
    frame = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8)
    mean = torch.from_numpy(graph.normalization.mean_colour()).reshape(1, 3, 1, 1)
    pixels = frame.permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = network(normalize(frame, NORMALIZATION))
        close = {"rtol": 1e-4, "atol": 1e-4 * max(float(expected.abs().max()), 1e-3)}
        centred = on_centred_pixels(graph)
        torch.testing.assert_close(centred(pixels - mean), expected, **close)
        found = on_bordered_pixels(graph)
        assert (found is not None) == bordered
        if found is None:
            return
        shape = (1, 3, found.top + height + found.bottom, found.left + width + found.right)
        whole = mean.expand(shape).clone()
        whole[:, :, found.top : found.top + height, found.left : found.left + width] = pixels
        torch.testing.assert_close(found.module(whole), expected, **close)
    assert [round(float(value)) for value in mean.ravel()] == found.colour.tolist()
    for module in (centred, found.module):
        read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
        assert {name for name, _ in [*module.named_parameters(), *module.named_buffers()]} == read


@pytest.mark.parametrize(
    ("name", "height", "width"), [("spssn", 65, 203), ("spssn", 64, 96), ("fast-scnn", 97, 130), ("own", 65, 203)]
)
def test_normalization_moves_into_the_convolutions(own: Any, name: str, height: int, width: int) -> None:
    """``own`` reads the frame by a batch norm, so that it needs the product, and can have no border."""
    check_pixel_forms(build(name, own), height, width, bordered=name != "own")


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(9, 24), width=st.integers(9, 24), kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)), padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.integers(1, 2), bias=st.booleans(),
)  # fmt: skip
def test_any_first_convolution_takes_pixels(
    height: int, width: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: int,
    bias: bool,
) -> None:  # fmt: skip
    network = nn.Conv2d(3, 4, kernel, stride, padding, dilation, bias=bias).eval()
    check_pixel_forms(network, height, width, bordered=True)


def test_convolutions_that_pad_differently_share_no_border() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + self.other(x)

    check_pixel_forms(Two().eval(), 12, 15, bordered=False)


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(2, 7), st.integers(2, 7)), stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    height=st.integers(8, 20), width=st.integers(8, 20), data=st.data(),
)  # fmt: skip
def test_large_maxima_are_taken_in_two_steps(
    kernel: tuple[int, int], stride: tuple[int, int], height: int, width: int, data: st.DataObject
) -> None:
    padding = tuple(data.draw(st.integers(0, side // 2)) for side in kernel)
    x = torch.randn(1, 2, height, width) - 5  # padding must not win as zero
    network = nn.MaxPool2d(kernel, stride, padding)
    module = export_aten(network, x)
    assert split_max_pooling(module) == (min(kernel) >= 4)
    assert torch.equal(module(x), network(x))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_without_heads_gets_one(masked: bool) -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            mask = (torch.arange(6)[:, None] >= torch.arange(6))[None] if masked else None
            attended = F.scaled_dot_product_attention(tokens, tokens * 2, tokens + 1, mask, scale=0.3)
            heads = tokens[:, None]
            return attended + F.scaled_dot_product_attention(heads, heads, heads)[:, 0] * attended

    x = torch.randn(2, 4, 2, 3)
    module = export_aten(Attention(), x)
    assert attend_with_heads(module) == 1
    torch.testing.assert_close(module(x), Attention()(x))
    assert attend_with_heads(module) == 0


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 70), kernel=st.tuples(st.integers(1, 4), st.integers(1, 7)), stride=st.integers(1, 4),
    width=st.integers(7, 40),
)  # fmt: skip
def test_several_columns_at_once(channels: int, kernel: tuple[int, int], stride: int, width: int) -> None:
    rng = np.random.default_rng(width)
    weight = rng.integers(-9, 10, (channels, *kernel, 3))
    frame = rng.integers(0, 256, (6, width, 3))

    def convolved(frame: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
        x, w = (
            torch.from_numpy(frame).permute(2, 0, 1)[None].double(),
            torch.from_numpy(weight).permute(0, 3, 1, 2).double(),
        )
        return F.conv2d(x, w, stride=(1, stride))[0].permute(1, 2, 0).numpy()

    expected = convolved(frame, weight, stride)
    folding = fold_columns(channels, kernel[1], stride, expected.shape[1], width)
    if folding is None:
        return
    assert 1 < folding.together * channels <= 64
    wide = np.pad(frame, ((0, 0), (0, folding.added), (0, 0)), constant_values=77)
    blocks = wide.reshape(6, -1, 3 * folding.block)
    found = convolved(blocks, folding.weight(weight), 1)
    assert np.array_equal(found.reshape(expected.shape), expected)


class Sums(nn.Module):
    """Sums of resizes of every kind; ``resizes`` of their result are left."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        small, other, tiny = x[..., ::2, ::2], x.neg()[..., 1::2, 1::2].exp(), x[..., ::4, ::4]
        size = x.shape[2:]

        def up(y: Tensor, corners: bool = False) -> Tensor:
            return F.interpolate(y, size=size, mode="bilinear", align_corners=corners)

        if self.form == "chain":  # two of one size and one of another between other terms
            return x + up(small) + x.exp() + (up(tiny) + (up(other) - 1) * 2 + up(other)) + up(tiny.exp())
        if self.form == "corners":
            return up(small, True) + up(other, True) + up(small.exp()) + x
        if self.form == "twice":  # the same resize, and a sum that others read
            y = up(small)
            z = y + y + up(other)
            return z + z + up(small.exp()) + z.exp()
        if self.form == "weighted":
            return torch.add(up(small), up(other), alpha=2) + 1
        return up(small[:, :1]) + up(other)  # one is broadcast


@settings(max_examples=25, deadline=None)
@given(
    form=st.sampled_from([("chain", 3), ("corners", 2), ("twice", 3), ("weighted", 2), ("broadcast", 2)]),
    height=st.integers(2, 9), width=st.integers(2, 9),
)  # fmt: skip
def test_resizes_are_summed_before_they_are_made(form: tuple[str, int], height: int, width: int) -> None:
    x = torch.randn(1, 2, 4 * height, 4 * width)
    network = Sums(form[0]).eval()
    module = export_aten(network, x)
    assert bool(sum_before_resizing(module)) == (form[0] in ("chain", "corners"))
    module.graph.lint()
    module.recompile()
    torch.testing.assert_close(module(x), network(x), rtol=1e-5, atol=1e-5)
    assert operations(module).count("aten.upsample_bilinear2d.vec") == form[1]


def make(own: Any, tmp_path: Path, factory: str, classes: int = 5, seed: int = 0) -> tuple[Any, nn.Module]:
    """A checkpoint of ``own_networks:factory``, and the network itself."""
    network = lively(getattr(own, factory)(classes), seed)
    path = tmp_path / f"{factory}.pt"
    torch.save(network.state_dict(), path)
    names = tuple(f"class {index}" for index in range(classes))
    return load_checkpoint(str(path), network=f"own_networks:{factory}", class_names=names), network


def check_graph(graph: DeployableGraph) -> None:
    left = [op for op in operations(graph.module) if any(word in op for word in ("batch_norm", "adaptive", "dropout"))]
    assert not left
    assert all(node.meta.get("val") is not None for node in graph.module.graph.nodes if node.op == "call_function")
    read = {str(node.target) for node in graph.module.graph.nodes if node.op == "get_attr"}
    held = {name for name, _ in [*graph.module.named_parameters(), *graph.module.named_buffers()]}
    assert held == read, "constants that no node reads, such as the weights from before a fold"


@pytest.mark.parametrize(("height", "width"), [(64, 96), (77, 203)])
def test_deployable_equals_the_checkpoint(
    small_checkpoint: Path, streets_frames: Callable[..., Any], height: int, width: int
) -> None:
    from edgekit.networks.checkpoint import load_network

    checkpoint = load_checkpoint(str(small_checkpoint))
    graph = deployable(checkpoint, Size(height, width))
    check_graph(graph)
    assert graph.logits_size == Size(-(-height // 8), -(-width // 8))
    assert graph.size == Size(height, width)
    assert graph.checkpoint_sha256 == checkpoint.sha256
    assert graph.class_names == checkpoint.class_names
    assert any(line.startswith("fold_batch_norm") for line in graph.rewrites)
    network = load_network(checkpoint)
    for frame in streets_frames(2, height, width):
        x = normalize(torch.from_numpy(frame.image[None]), checkpoint.normalization)
        with torch.no_grad():
            expected, result = network(x), graph.module(x)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize(("factory", "stride"), [("own1", 1), ("own", 2), ("own4", 4)])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (76, 132)])
def test_networks_of_any_output_stride(
    own: Any, tmp_path: Path, factory: str, stride: int, height: int, width: int
) -> None:
    checkpoint, network = make(own, tmp_path, factory)
    graph = deployable(checkpoint, Size(height, width))
    check_graph(graph)
    assert graph.logits_size == Size(height // stride, width // stride)
    frame = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8)
    with torch.no_grad():
        logits = network(normalize(frame, Normalization()))
        expected = reference_labels(logits, Size(height, width))
        for channels_last in (True, False):
            labels = FrameToLabels(graph, channels_last=channels_last)(
                frame if channels_last else frame.permute(0, 3, 1, 2)
            )
            assert labels.dtype == torch.uint8
            assert (labels == expected).float().mean() > 0.999  # float rounding may turn a tie


@pytest.mark.parametrize("factory", ["tuple_", "list_", "nested", "dict_", "other_dict", "extra"])
def test_output_forms(own: Any, tmp_path: Path, factory: str) -> None:
    checkpoint, network = make(own, tmp_path, factory)
    graph = deployable(checkpoint, Size(64, 96))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = network.net(x)[:, :5]
        result = graph.module(x)
    assert isinstance(result, Tensor)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_a_resize_to_the_same_size_is_idle_whatever_its_scale(own: Any, tmp_path: Path) -> None:
    checkpoint, network = make(own, tmp_path, "Nudged")
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected = network(x)
        assert expected.shape[-2:] == (32, 32)
        torch.testing.assert_close(deployable(checkpoint, Size(128, 128)).module(x), expected, rtol=1e-4, atol=1e-5)


def refused(action: Callable[[], Any], kind: type[EdgekitError], *words: str) -> None:
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("factory", ["vector", "text"])
def test_outputs_that_are_no_logits(own: Any, tmp_path: Path, factory: str) -> None:
    checkpoint, _ = make(own, tmp_path, factory)
    refused(lambda: deployable(checkpoint, Size(64, 96)), CheckpointError, "logits")


def test_fewer_channels_than_classes(own: Any, tmp_path: Path) -> None:
    (tmp_path / "few.py").write_text("from own_networks import Own\n\n\ndef make():\n    return Own(3)\n")
    sys.path.insert(0, str(tmp_path))
    try:
        path = tmp_path / "few.pt"
        torch.save(own.Own(3).state_dict(), path)
        checkpoint = load_checkpoint(str(path), network="few:make", class_names=("a", "b", "c", "d"))
        refused(lambda: deployable(checkpoint, Size(64, 96)), CheckpointError, "3 channels", "4 classes", "--data")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("few", None)


def test_a_network_that_refuses_the_size(own: Any, tmp_path: Path) -> None:
    checkpoint, _ = make(own, tmp_path, "Divisible")
    deployable(checkpoint, Size(64, 96))
    refused(lambda: deployable(checkpoint, Size(65, 96)), ConversionError, "own_networks:Divisible", "65x96")


@pytest.mark.parametrize(("factory", "words"), [("nan", ("NaN", "logarithm")), ("random", ("again", "dropout"))])
def test_a_network_without_logits_of_its_own(own: Any, tmp_path: Path, factory: str, words: tuple[str, ...]) -> None:
    """What would otherwise be taken for a rewrite that is wrong."""
    checkpoint, _ = make(own, tmp_path, factory)
    refused(lambda: deployable(checkpoint, Size(64, 64)), CheckpointError, f"own_networks:{factory}", *words)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A network whose own rounding reaches further than the bound for most."""
    path = tmp_path_factory.mktemp("deep") / "deep.pt"
    torch.save(strangers.Deep().state_dict(), path)
    return load_checkpoint(str(path), network="strangers:Deep", class_names=tuple("abcde"))


def test_rounding_of_a_deep_network_is_no_fault(deep: Checkpoint) -> None:
    network, x = strangers.Deep().eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, result = network(x), deployable(deep, Size(64, 64)).module(x)
    apart = (result - expected).abs().max() / expected.abs().max()
    assert PROOF_TOLERANCE < apart < 0.1
    assert torch.get_default_dtype() == torch.float32
    assert {value.dtype for value in network.parameters()} == {torch.float32}


def add_to_the_head(module: GraphModule) -> int:
    """A rewrite that is wrong by a thousandth."""
    (head,) = (node for node in module.graph.nodes if str(node.target) == "network.head.bias")
    return set_constant(module, head, lambda value: value + 1e-3 * value.abs().max())


def cancel_digits(module: GraphModule) -> int:
    """A rewrite that is right, but for the digits that float32 loses by it."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    (last,) = output.all_input_nodes
    with module.graph.inserting_before(output):
        large = module.graph.call_function(torch.ops.aten.add.Tensor, (last, 1e7))
        back = module.graph.call_function(torch.ops.aten.sub.Tensor, (large, 1e7))
    output.replace_input_with(last, back)
    return 1


def set_constant(module: GraphModule, node: torch.fx.Node, change: Callable[[Tensor], Tensor]) -> int:
    value = constant_tensor(module, node)
    assert value is not None
    with torch.no_grad():
        node.replace_all_uses_with(add_constant(module, node.next, "changed", change(value)))
    return 1


@pytest.mark.parametrize(
    ("rewrite", "text"), [(add_to_the_head, "in float64"), (cancel_digits, "away from those in float64")]
)
def test_rewrites_that_are_wrong_are_refused(
    rewrite: Callable[[GraphModule], int], text: str, deep: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a deep network too, where float32 alone would not tell."""
    monkeypatch.setattr(rewrites, "REWRITES", (*rewrites.REWRITES, rewrite))
    with pytest.raises(RuntimeError, match=text):
        deployable(deep, Size(64, 64))


def test_more_classes_than_a_byte_has_values(own: Any, tmp_path: Path) -> None:
    checkpoint, _ = make(own, tmp_path, "own")
    many = replace(checkpoint, class_names=tuple(f"class {number}" for number in range(257)))
    refused(lambda: deployable(many, Size(64, 64)), ConversionError, "257 classes", "256")


def test_a_network_that_cannot_be_exported(own: Any, tmp_path: Path) -> None:
    checkpoint, _ = make(own, tmp_path, "Unexportable")
    refused(lambda: deployable(checkpoint, Size(64, 64)), ConversionError, "own_networks:Unexportable", "64x64")


@pytest.mark.parametrize("size", [Size(63, 128), Size(128, 8)])
def test_too_small_sizes(small_checkpoint: Path, size: Size) -> None:
    refused(lambda: deployable(load_checkpoint(str(small_checkpoint)), size), UsageError, str(size), "64")


@pytest.fixture(scope="module")
def small_graph(small_checkpoint: Path) -> DeployableGraph:
    return deployable(load_checkpoint(str(small_checkpoint)), Size(100, 140))


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("channels_last", [True, False])
def test_output_strides_repeat_decisions(
    small_graph: DeployableGraph, streets_frames: Callable[..., Any], stride: int, channels_last: bool
) -> None:
    graph = small_graph
    frame = torch.from_numpy(streets_frames(1, 100, 140)[0].image[None])
    given = frame if channels_last else frame.permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = graph.module(normalize(frame, graph.normalization))
        labels = FrameToLabels(graph, channels_last=channels_last, output_stride=stride)(given)
        raw = FrameToLabels(graph, channels_last=channels_last, output="logits")(given)
    decided = reference_labels(logits, Size(-(-100 // stride), -(-140 // stride)))
    rows, columns = torch.arange(100) // stride, torch.arange(140) // stride
    assert tuple(labels.shape) == (1, 100, 140)
    assert (labels == decided[:, rows][:, :, columns]).float().mean() > 0.999
    torch.testing.assert_close(raw.permute(0, 3, 1, 2) if channels_last else raw, logits, rtol=1e-4, atol=1e-4)


def test_reference_labels_breaks_ties_to_the_lowest_class() -> None:
    assert reference_labels(torch.zeros(1, 4, 2, 2), Size(5, 7)).unique().tolist() == [0]


@settings(max_examples=150, deadline=None)
@given(length=st.integers(1, 120), bins=st.integers(1, 40))
def test_pooling_matrix_is_adaptive_pooling(length: int, bins: int) -> None:
    x = torch.randn(2, length, dtype=torch.float64)
    expected = F.adaptive_avg_pool1d(x, bins)
    matrix = pooling_matrix(length, bins)
    assert matrix.dtype == torch.float32
    assert matrix.shape == (bins, length)
    torch.testing.assert_close(x @ matrix.double().T, expected, rtol=1e-6, atol=1e-6)


def rewritten(network: nn.Module, x: Tensor, rewrite: Callable[[GraphModule], int], count: int) -> GraphModule:
    """The network's graph after one rewrite that did what it says, so many times, and changed nothing."""
    module = export_aten(network, x)
    assert rewrite(module) == count
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    with torch.no_grad():
        torch.testing.assert_close(module(x), network(x), rtol=1e-5, atol=1e-5)
    values = {node.name: node.meta["val"] for node in module.graph.nodes if node.op == "call_function"}
    Shapes(module, values).run(x)
    return module


class Shapes(torch.fx.Interpreter):
    """Holds every value of a graph to the shape that its node claims."""

    def __init__(self, module: GraphModule, claimed: dict[str, Any]) -> None:
        super().__init__(module)
        self.claimed = claimed

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        claimed = self.claimed.get(n.name)
        assert not isinstance(claimed, Tensor) or result.shape == claimed.shape, n
        return result


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 2]), bias=st.booleans(), padding=st.sampled_from(["same", "valid"]),
)  # fmt: skip
def test_padding_by_name_becomes_numbers(
    kernel: tuple[int, int], dilation: tuple[int, int], groups: int, bias: bool, padding: str
) -> None:
    """And a batch norm behind is then folded like any other."""
    convolution = nn.Conv2d(4, 6, kernel, padding=padding, dilation=dilation, groups=groups, bias=bias)
    network, x = nn.Sequential(convolution, lively(nn.BatchNorm2d(6))).eval(), torch.randn(1, 4, 13, 15)
    module = rewritten(network, x, number_padding, 1)
    assert "aten.conv2d.padding" not in operations(module)
    module = export_aten(network, x)
    assert set(apply_rewrites(module)) == {"number_padding x 1", "fold_batch_norm x 1"}
    kinds = operations(module)
    assert kinds.count("aten.conv2d.default") == 1 and not {"aten.mul.Tensor", "aten.conv2d.padding"} & set(kinds)
    with torch.no_grad():
        torch.testing.assert_close(module(x), network(x), rtol=1e-4, atol=1e-4)


transposed = given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)), stride=st.tuples(st.integers(2, 3), st.integers(2, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)), extra=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    groups=st.sampled_from([1, 2]), dilation=st.integers(1, 2), bias=st.booleans(),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@transposed
def test_batch_norm_behind_a_transposed_convolution_is_folded(bias: bool, groups: int, **form: Any) -> None:
    convolution = nn.ConvTranspose2d(
        4, 6, form["kernel"], form["stride"], form["padding"], form["extra"], groups, bias, form["dilation"]
    )
    network = nn.Sequential(convolution, lively(nn.BatchNorm2d(6))).eval()
    module = rewritten(network, torch.randn(1, 4, 8, 9), fold_batch_norm, 1)
    assert operations(module) == ["aten.conv_transpose2d.input"]


@settings(max_examples=40, deadline=None)
@transposed
def test_transposed_convolutions_are_cropped_where_tensorflow_cannot_pad(bias: bool, groups: int, **form: Any) -> None:
    kernel, stride, padding, extra = (form[name] for name in ("kernel", "stride", "padding", "extra"))
    network = nn.ConvTranspose2d(4, 6, kernel, stride, padding, extra, groups, bias, form["dilation"]).eval()
    fits = all(p == 0 or (2 * p == k - s and e == 0) for k, s, p, e in zip(kernel, stride, padding, extra, strict=True))
    possible = form["dilation"] == 1 and not fits and all(e <= p for p, e in zip(padding, extra, strict=True))
    module = rewritten(network, torch.randn(1, 4, 8, 9), crop_transposed_convolutions, int(possible))
    if possible:
        (node,) = (entry for entry in module.graph.nodes if entry.target is torch.ops.aten.conv_transpose2d.input)
        assert list(node.args[4]) == [0, 0] and list(node.args[5]) == [0, 0]


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), channels=st.integers(1, 3),
    factor=st.sampled_from([0.25, 0.3, 0.5, 0.75, 1.3, 1.5, 2.0, 2.4, 3.0]), aligned=st.booleans(),
)  # fmt: skip
def test_resizes_by_a_factor_keep_its_step(
    height: int, width: int, channels: int, factor: float, aligned: bool
) -> None:
    """Those, and only those, whose sizes have another ratio, which is all that converters keep."""
    if min(height, width) * factor < 1:
        return
    x = torch.randn(1, channels, height, width)
    network = nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=aligned)
    uneven = not aligned and any(length * factor % 1 for length in (height, width))
    module = rewritten(network, x, step_by_the_factor, int(uneven))
    assert ("aten.upsample_bilinear2d.vec" in operations(module)) != uneven


class Constants(nn.Module):
    """Weights by a norm, coordinates, a large map of a small one, and numbers that are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, 1, 1))
        self.register_buffer("small", torch.rand(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x) + torch.arange(x.shape[3]) / x.shape[3] + torch.eye(x.shape[2], x.shape[3])
        large = (self.small.expand(1, 4, 600, 600) * 2)[..., : x.shape[2], : x.shape[3]]
        return F.dropout(x + large.cos(), 0.0)


def test_constants_are_computed_once() -> None:
    """But for a map that would be far larger than what it is made of."""
    module = rewritten(Constants().eval(), torch.randn(1, 3, 12, 15), fold_constants, 3)
    kinds = operations(module)
    assert not {
        "aten._weight_norm_interface.default",
        "aten.arange.default",
        "aten.eye.m",
        "aten.norm.ScalarOpt_dim",
    } & set(kinds)
    assert "aten.expand.default" in kinds and sum(value.numel() for value in module.buffers()) < 2000


class Expanded(nn.Module):
    """Expansions that a sum, a product or a choice makes idle, and two that something else reads."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True).expand_as(x)
        row = x.mean(2, keepdim=True).expand(-1, -1, x.shape[2], -1)
        both = x.mean(1).expand(1, 2, *x.shape[2:]) * mean[:, :2]
        gate = torch.where(x > mean, row, x) / mean
        return torch.cat([x * mean + row, both, mean, gate, mean.sigmoid() + row.expand(1, -1, -1, -1)], 1)


def test_expansions_to_what_they_meet_are_dropped() -> None:
    module = rewritten(Expanded().eval(), torch.rand(1, 3, 5, 6) + 0.1, drop_expansions, 7)
    assert operations(module).count("aten.expand.default") == 2


def test_many_bins_take_a_matrix_for_each_axis() -> None:
    """129x257 bins of 257x513 would take 17 GB as one matrix, and a hundred times the products."""
    pooling = nn.AdaptiveAvgPool2d((129, 257))
    module = rewritten(pooling, torch.randn(1, 2, 257, 513), replace_adaptive_pooling, 1)
    assert sum(value.numel() for value in module.buffers()) == 129 * 257 + 257 * 513


@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), rows=st.integers(1, 9), columns=st.integers(1, 9),
    channels=st.integers(1, 5),
)  # fmt: skip
def test_any_adaptive_pooling_is_replaced_exactly(
    height: int, width: int, rows: int, columns: int, channels: int
) -> None:
    x = torch.randn(1, channels, height, width)
    module = export_aten(nn.AdaptiveAvgPool2d((rows, columns)), x)
    assert replace_adaptive_pooling(module) == 1
    module.graph.lint()
    module.recompile()
    torch.testing.assert_close(module(x), F.adaptive_avg_pool2d(x, (rows, columns)), rtol=1e-5, atol=1e-5)


class Normed(nn.Module):
    """Batch norm and constant factors behind what ``kind`` names."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.other = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False)
        self.up = nn.ConvTranspose2d(3, 6, 2, 2)
        self.norm = nn.BatchNorm2d({"join": 12, "image": 9, "deep": 15, "reused": 12, "alone": 6}.get(kind, 6))
        self.register_buffer("factors", torch.linspace(0.5, -2.0, 6).reshape(1, 6, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = self.one(x), self.other(x)
        larger = F.interpolate(one, scale_factor=2.0, mode="bilinear", align_corners=False)
        if self.kind == "join":
            return self.norm(torch.cat([one, other], 1))
        if self.kind == "image":
            return self.norm(torch.cat([one, x], 1))
        if self.kind == "deep":
            return self.norm(torch.cat([torch.cat([one, x], 1), other], 1))
        if self.kind == "reused":
            return self.norm(torch.cat([one, other], 1))[:, :6] + one
        if self.kind == "sum":
            return self.norm(one + other)
        if self.kind == "twice":
            return self.norm(one + one)
        if self.kind == "resized":
            return self.norm(larger)
        if self.kind == "resized sum":
            return self.norm(larger + self.up(x))
        if self.kind == "alone":
            return self.norm(torch.cat([x, x], 1))
        return 0.25 * (one * self.factors) + other * 3.0


@pytest.mark.parametrize(
    ("kind", "convolutions"),
    [
        ("join", 2), ("image", 2), ("deep", 3), ("reused", 3), ("sum", 2), ("twice", 2), ("resized", 1), ("resized sum", 2),
        ("alone", 1), ("factors", 2),
    ],
)  # fmt: skip
def test_factors_go_into_the_convolutions_before(kind: str, convolutions: int) -> None:
    """Through joins, sums and resizes that nothing else reads; what no convolution takes is one of its own, by channel."""
    torch.manual_seed(3)
    network = lively(Normed(kind))
    x = torch.randn(1, 3, 12, 10)
    with torch.no_grad():
        expected = network(x)
        module = export_aten(network, x)
        apply_rewrites(module)
        torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    found = operations(module)
    assert sum("conv" in name for name in found) == convolutions, found
    assert not any("mul" in name or "batch_norm" in name for name in found), found
