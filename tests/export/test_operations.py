"""Operations that are written out are equal to what they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.export.graph import export_aten, module_of
from edgekit.export.rewrites import FORMS, apply_rewrites, resize_by_matrices, smooth_by_matrices, write_out

CHANNELS, HEIGHT, WIDTH = 4, 7, 9


class Resized(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, **self.options)


class Of(nn.Module):
    """A function of two maps: x of all signs, and y from 0.1 to 2."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(x, y)


def both(one: Any) -> Tensor:
    return one[0] + 2 * one[1]


CASES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add": lambda x, y: torch.add(x, y, alpha=0.3) + torch.add(x, 2.0, alpha=0.3) + torch.add(x, y[:, :1], alpha=1),
    "sub": lambda x, y: torch.sub(x, y, alpha=2) - torch.sub(x, 2.0, alpha=0.3),
    "rsub": lambda x, y: torch.rsub(x, y, alpha=2) - torch.rsub(x, 2.0, alpha=0.3),
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=0.3) + torch.addcmul(x, x, y),
    "addcdiv": lambda x, y: torch.addcdiv(x, x, y, value=0.3) + torch.addcdiv(x, x, y),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3) + torch.lerp(x, y, y),
    "dot": lambda x, y: torch.dot(x.flatten(), y.flatten()) + torch.vdot(y.flatten(), y.flatten()),
    "hypot": torch.hypot,
    "round": lambda x, y: torch.round(x, decimals=1) + torch.round(x, decimals=3) + torch.round(90 * x, decimals=-1),
    "trunc": lambda x, y: torch.trunc(3 * x) + torch.fix(2 * x),
    "frac": lambda x, y: torch.frac(3 * x),
    "fmod": lambda x, y: torch.fmod(x, 0.3) + torch.fmod(x, -0.3) + torch.fmod(3 * x, y),
    "sgn": lambda x, y: torch.sgn(x),
    "logical": lambda x, y: ((x > 0) & (y > 1) | (x < -1) ^ (y > 0.5)) * 1.0,
    "fmax": lambda x, y: torch.fmax(x, torch.where(y > 1, torch.nan, y)) + torch.fmin(torch.where(x > 1, torch.nan, x), y),
    "heaviside": lambda x, y: torch.heaviside(torch.round(x), y),
    "isinf": lambda x, y: torch.isinf(torch.log(F.relu(x))) * x,
    "nan_to_num": lambda x, y: torch.nan_to_num(torch.where(y > 1, torch.nan, x)) + torch.nan_to_num(x / F.relu(x - 1), 2, 3, 4),
    "xlogy": lambda x, y: torch.xlogy(F.relu(x), torch.round(y)).clamp(-9),
    "sinc": lambda x, y: torch.sinc(torch.round(x * 4) / 4),
    "bilinear": lambda x, y: F.bilinear(x, y[..., :5], y.reshape(-1)[:135].reshape(3, 9, 5), y[0, 0, 0, :3]),
    "bucketize": lambda x, y: torch.bucketize(x, y[0, 0, 0].sort()[0]) + torch.bucketize(y, x[0, 0, 0].sort()[0], right=True),
    "one_hot": lambda x, y: F.one_hot(y.to(torch.int64), 3) * x[..., None],
    "exp2": lambda x, y: torch.exp2(x),
    "erfc": lambda x, y: torch.erfc(x),
    "asinh": lambda x, y: torch.asinh(x),
    "acosh": lambda x, y: torch.acosh(y + 1),
    "logit": lambda x, y: torch.logit(y / 2.1) + torch.logit(x, eps=0.2),
    "logaddexp": lambda x, y: torch.logaddexp(x, y) + torch.logaddexp2(30 * x, y),
    "log_sigmoid": lambda x, y: F.logsigmoid(20 * x),
    "softplus": lambda x, y: F.softplus(9 * x, beta=3) + F.softplus(x, 1, 0.5) + F.softplus(x, 2, 0.5) + F.softplus(x, 0.1),
    "threshold": lambda x, y: F.threshold(x, 0.3, 0.1) + F.threshold(x, -1, 3),
    "celu": lambda x, y: F.celu(x, 0.3) + F.celu(x),
    "elu": lambda x, y: torch.ops.aten.elu(x, 0.7, 1.3, 1.1),
    "selu": lambda x, y: F.selu(x),
    "hardtanh": lambda x, y: F.hardtanh(3 * x, -2, 1) + F.hardtanh(6 * x, 0, 6),
    "rrelu": lambda x, y: F.rrelu(x, 0.1, 0.5),
    "softshrink": lambda x, y: F.softshrink(x, 0.3),
    "hardshrink": lambda x, y: F.hardshrink(x, 0.3),
    "var": lambda x, y: x.var(1, correction=2, keepdim=True) + x.var(correction=3) + x.var((2, 3), correction=2)[0, 0],
    "std": lambda x, y: x.std((1, -1), correction=2).mean() + x,
    "var_mean": lambda x, y: both(torch.var_mean(x)) + both(torch.var_mean(x, (2, 3), keepdim=True)),
    "var_mean of one axis": lambda x, y: both(torch.var_mean(x, 1, unbiased=False)) + both(torch.var_mean(y, correction=2)),
    "std_mean": lambda x, y: both(torch.std_mean(x, False)) + both(torch.std_mean(x, 1, keepdim=True)),
    "aminmax": lambda x, y: both(torch.aminmax(x, dim=1, keepdim=True)),
    "cosine_similarity": lambda x, y: F.cosine_similarity(x, y) + F.cosine_similarity(x, y, 3, eps=3.0).mean(),
    "cosine_similarity of unlike shapes": lambda x, y: F.cosine_similarity(x[:, None], y[:, :2, None], 2),
    "pairwise_distance": lambda x, y: F.pairwise_distance(x, y) + F.pairwise_distance(x, y, 1, 0.1, keepdim=True).mean(),
    "rms_norm": lambda x, y: F.rms_norm(x, (WIDTH,), y[0, 0, 0], 0.3) + F.rms_norm(x, (HEIGHT, WIDTH)),
    "avg_pool": lambda x, y: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True) + F.avg_pool2d(x, 3, 2, 1, True, False, 5),
    "avg_pool1d": lambda x, y: F.avg_pool1d(x.flatten(2), 5, 3, 2, ceil_mode=True),
    "max_pool with places": lambda x, y: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0] + F.max_pool2d(y, 2, return_indices=True)[0].mean(),
    "adaptive_max_pool": lambda x, y: F.adaptive_max_pool2d(x, (4, 5)) + F.adaptive_max_pool2d(y, (1, 1)) + F.adaptive_max_pool2d(y, (7, 3)).mean(),
    "pad": lambda x, y: F.pad(x, (3, -3, -2, 2)) + F.pad(x, (3, -3, -2, 2), value=1.5),
    "pad that crops": lambda x, y: F.pad(x, (-1, -2, 0, 0, -1, 1)),
    "pad by mirrors": lambda x, y: F.pad(x, (2, -3, -1, 3), "reflect") + F.pad(x, (2, -3, -1, 3), "replicate"),
    "pad that goes round": lambda x, y: F.pad(x, (2, 3, 0, 1), "circular") + F.pad(x, (5, 0, 4, -3), "circular"),
    "kthvalue": lambda x, y: both(x.kthvalue(2, 1, keepdim=True)) + both(x.kthvalue(7, 2))[:, :, None],
    "median": lambda x, y: both(x.median(1, keepdim=True)) + both(y.median(2, keepdim=True)),
    "lstm_cell": lambda x, y: both(torch.lstm_cell(x[0, 0], (y[0, 0, :, :2], y[0, 1, :, :2]), x[0, 1:3].reshape(-1)[:72].reshape(8, 9),
                                                   y[0, 2].reshape(-1)[:16].reshape(8, 2), x[0, 1, 0, :8], y[0, 1, 0, :8])),
    "rot90": lambda x, y: x.rot90(1, (2, 3)) + y.rot90(-1, (3, 2)) + (x.rot90(2, (2, 3)) + y.rot90(4)).transpose(2, 3),
    "take_along_dim": lambda x, y: torch.take_along_dim(x, x[:, :, :1].argsort(1), 1),
    "copy": lambda x, y: torch.ops.aten.copy(x, y[:, :1]) + torch.ops.aten.copy(y, x.argmax(1, keepdim=True)),
    "affine_grid": lambda x, y: F.affine_grid(x[0, :2, :2, :3], [2, 1, 4, 5], align_corners=False)
                                + F.affine_grid(y[0, :2, :2, :3], [2, 1, 4, 5], align_corners=True),
    "count_nonzero": lambda x, y: torch.count_nonzero(x > 0, 1) + torch.count_nonzero(y, (2, 3)).sum() + x.mean(1),
    "matmul": lambda x, y: torch.matmul(x.flatten(), y.flatten()) * x,
    "nearest": lambda x, y: F.interpolate(x, scale_factor=1.3).mean() + F.interpolate(y, scale_factor=(0.8, 1.35)),
    "nearest-exact": lambda x, y: F.interpolate(x, (5, 11), mode="nearest-exact"),
    "nearest-exact by a factor": lambda x, y: F.interpolate(x, scale_factor=0.7, mode="nearest-exact"),
    "nearest-exact by a multiple": lambda x, y: F.interpolate(x, scale_factor=(2, 3), mode="nearest-exact"),
    "slice_scatter": lambda x, y: torch.slice_scatter(x, y[:, :2], 1, 1, 3) + torch.slice_scatter(x, y[..., -2:], -1, -2),
    "select_scatter": lambda x, y: torch.select_scatter(x, y[:, 0], 1, -1),
    "channel_shuffle": lambda x, y: F.channel_shuffle(x, 2),
    "unsafe_split": lambda x, y: torch.unsafe_chunk(x, 2, 1)[1],
    "unfold": lambda x, y: x.unfold(2, 3, 2).mean(-1) + x.unfold(2, 1, 1)[:, :, ::2][:, :, :3, :, 0],
}  # fmt: skip


@pytest.fixture(scope="module")
def maps() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(1, CHANNELS, HEIGHT, WIDTH), torch.rand(1, CHANNELS, HEIGHT, WIDTH) * 1.9 + 0.1


def written_out(network: nn.Module, *maps: Tensor) -> tuple[torch.fx.GraphModule, int]:
    """The network's graph with its operations written out, which changed nothing and left none; and how many were."""
    module = export_aten(network.eval(), maps[0]) if len(maps) == 1 else exported(network, *maps)
    count = write_out(module)
    module.graph.lint()
    module.recompile()
    with torch.no_grad():
        expected, result = network(*maps), module(*maps)
    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=2e-6 * max(1.0, float(expected.abs().max())))
    for node in module.graph.nodes:
        if node.op == "call_function":
            form, condition = FORMS.get(node.target, (None, None))
            assert form is None or not condition(node), node
            assert "val" in node.meta or not node.users, node
    return module, count


def exported(network: nn.Module, *maps: Tensor) -> torch.fx.GraphModule:
    program = torch.export.export(network, maps).run_decompositions({})
    return torch.fx.GraphModule(program.module(check_guards=False), program.module(check_guards=False).graph)


@pytest.mark.parametrize("case", CASES)
def test_operations_are_written_out(case: str, maps: tuple[Tensor, Tensor]) -> None:
    _, count = written_out(Of(CASES[case]), *maps)
    assert count > 0 or case in ("softshrink", "hardshrink", "selu")  # which torch.export writes out by itself


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
def test_resizes_by_matrices(antialias: bool, aligned: bool, maps: tuple[Tensor, Tensor]) -> None:
    """By a size, and by a factor that leaves a part over."""
    rewrite = smooth_by_matrices if antialias else resize_by_matrices
    for mode in ("bilinear", "bicubic") if antialias else ("bicubic",):
        for size in ({"size": (5, 13)}, {"scale_factor": (1.3, 0.7)}):
            network = Resized(**size, mode=mode, antialias=antialias, align_corners=aligned)
            module = export_aten(network, maps[0])
            assert rewrite(module) == 1
            module.recompile()
            torch.testing.assert_close(module(maps[0]), network(maps[0]), rtol=1e-5, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(
    axes=st.integers(1, 3), length=st.integers(5, 14), kernel=st.integers(1, 5), stride=st.integers(1, 6),
    ceil_mode=st.booleans(), counts=st.booleans(), divisor=st.sampled_from([None, None, 1, 4]), data=st.data(),
)  # fmt: skip
def test_average_pooling_counts_as_pytorch_does(
    axes: int, length: int, kernel: int, stride: int, ceil_mode: bool, counts: bool, divisor: int | None,
    data: st.DataObject,
) -> None:  # fmt: skip
    pooling = (torch.ops.aten.avg_pool1d, torch.ops.aten.avg_pool2d, torch.ops.aten.avg_pool3d)[axes - 1].default
    padding = data.draw(st.integers(0, kernel // 2))
    options: dict[str, Any] = {
        "kernel_size": [kernel] * axes, "stride": [stride] * axes, "padding": [padding] * axes, "ceil_mode": ceil_mode,
        "count_include_pad": counts, **({} if axes == 1 else {"divisor_override": divisor}),
    }  # fmt: skip
    x = torch.randn(1, 2, *(length + axis for axis in range(axes)))
    torch.testing.assert_close(FORMS[pooling][0](self=x, **options), pooling(x, **options), rtol=1e-5, atol=1e-6)


def test_constants_of_a_form_are_the_graphs(maps: tuple[Tensor, Tensor]) -> None:
    """And a place is kept, by which messages name the module that an operation comes from."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(CHANNELS, 5, 3, 2, 1)
            self.pool = nn.AvgPool2d(3, 2, 1, ceil_mode=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.first(x))

    module = export_aten(Outer().eval(), maps[0])
    applied = apply_rewrites(module)
    assert applied == ("write_out x 1",)
    names = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    assert {name for name, _ in [*module.named_parameters(), *module.named_buffers()]} == names
    assert {module_of(node) for node in module.graph.nodes if node.op == "call_function"} == {"first", "pool"}


def test_what_is_right_everywhere_is_left_alone() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.softplus(x) + F.elu(x) + F.hardtanh(x, -0.3, 0.2) - x.var(1, keepdim=True)
            y = F.avg_pool2d(F.pad(y, (1, 1, 2, 0)), 3, 1, 1, count_include_pad=False)
            return F.avg_pool2d(torch.round(y * 5), 2, ceil_mode=True) * 1.5

    module = export_aten(Plain().eval(), torch.randn(1, 3, 8, 9))
    assert write_out(module) == 0
