"""What the tests of conversions share: the graph of a small network."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgekit.core.values import DeployableGraph, Normalization, Size
from edgekit.export.graph import export_aten
from edgekit.export.rewrites import apply_rewrites

OWN = '''
import torch
from torch import nn
from torch.nn import functional as F


class Own(nn.Module):
    """What other people's networks hold and edgekit's do not."""

    def __init__(self, classes=5, stride=2):
        super().__init__()
        self.stride = stride
        self.input_norm = nn.BatchNorm2d(3)  # before any convolution
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)  # with a bias
        self.stem_norm = nn.BatchNorm2d(16, affine=False)
        self.after_relu = nn.BatchNorm2d(16, eps=1e-3)
        self.shared = nn.Conv2d(16, 16, 3, 1, 1, groups=4, bias=False)
        self.shared_norm = nn.BatchNorm2d(16)  # its convolution is read by others too
        self.same = nn.Conv2d(16, 16, 3, padding="same", dilation=2, bias=False)
        self.same_norm = nn.BatchNorm2d(16)
        self.transposed = nn.ConvTranspose2d(16, 16, 2, 2)
        self.transposed_norm = nn.BatchNorm2d(16)
        self.pool = nn.AdaptiveAvgPool2d((3, 5))
        self.dropout = nn.Dropout2d(0.3)
        self.head = nn.Conv2d(64, classes, 1)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(self.input_norm(x))), inplace=True)
        x = self.after_relu(x)
        y = self.shared(x)
        y = y + F.relu6(self.shared_norm(y))
        z = self.same_norm(self.same(y))
        up = self.transposed_norm(self.transposed(F.max_pool2d(z, 2, ceil_mode=True)))[..., : y.shape[2], : y.shape[3]]
        thin = y[:, ::2, ::2, ::2]
        pooled = torch.cat([F.adaptive_avg_pool2d(y, (7, 2)).mean((2, 3), keepdim=True).expand_as(y), up], 1)
        coarse = F.interpolate(self.pool(z), size=y.shape[2:], mode="bilinear", align_corners=False)
        fine = F.interpolate(thin, size=y.shape[2:], mode="bilinear", align_corners=False)
        fine = F.interpolate(fine, size=y.shape[2:], mode="bilinear", align_corners=False)  # idle
        batch, channels, height, width = y.shape  # a channel shuffle, as in ShuffleNet
        shuffled = y.view(batch, 4, channels // 4, height, width).transpose(1, 2).contiguous()
        shuffled = shuffled.view(batch, channels, height, width)
        heads = F.max_pool2d(shuffled, 8).flatten(2).transpose(1, 2).unflatten(2, (2, 8)).transpose(1, 2)
        heads = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).reshape(batch, -1, channels)
        shuffled = shuffled + heads.mean(1)[..., None, None]  # attention joins its heads by a copy and a view
        gate = F.adaptive_avg_pool2d(shuffled, 1).sigmoid()
        y = torch.cat([pooled, coarse * gate, F.pad(fine, (0, 0, 0, 0, 0, 8)) + shuffled], 1)
        logits = self.head(F.dropout(self.dropout(y), 0.2, self.training))
        if self.stride == 1:
            return F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        return logits if self.stride == 2 else F.avg_pool2d(logits, 2)


class Nudged(nn.Module):
    """A resize whose sizes agree although its scale is not 1: PyTorch copies there, so it is idle."""

    def __init__(self, classes=5):
        super().__init__()
        self.head = nn.Conv2d(3, classes, 3, 4, 1)

    def forward(self, x):
        return F.interpolate(self.head(x), scale_factor=1.01, mode="bilinear", align_corners=False)


class Wrapped(nn.Module):
    def __init__(self, classes, form):
        super().__init__()
        self.net = Own(classes + (form == "extra") * 3)
        self.form = form

    def forward(self, x):
        y = self.net(x)
        return {
            "tuple": (y, y * 2, None), "list": [y, y.mean()], "nested": ((y,), y), "dict": {"aux": y * 3, "out": y},
            "other dict": {"logits": y, "aux": y * 3}, "extra": y, "vector": y.mean((2, 3)), "text": "no tensor",
        }[self.form]


class Divisible(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Conv2d(3, classes, 1)

    def forward(self, x):
        y = F.interpolate(F.max_pool2d(x, 32), scale_factor=32)
        return self.head(x + y)


class Unfit(nn.Module):
    """Logits that are NaN, or others in every run."""

    def __init__(self, classes, form):
        super().__init__()
        self.head = nn.Conv2d(3, classes, 3, 2, 1)
        self.form = form

    def forward(self, x):
        return self.head(x.log() if self.form == "nan" else F.dropout(x, 0.5, training=True))


class Unexportable(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Conv2d(3, classes, 1)

    def forward(self, x):
        y = self.head(x)
        return y if float(y.sum()) > 0 else -y


def own(classes, stride=2):
    return Own(classes, stride)


def nan(classes):
    return Unfit(classes, "nan")


def random(classes):
    return Unfit(classes, "random")


def own1(classes):
    return Own(classes, 1)


def own4(classes):
    return Own(classes, 4)


def tuple_(classes):
    return Wrapped(classes, "tuple")


def list_(classes):
    return Wrapped(classes, "list")


def nested(classes):
    return Wrapped(classes, "nested")


def dict_(classes):
    return Wrapped(classes, "dict")


def other_dict(classes):
    return Wrapped(classes, "other dict")


def extra(classes):
    return Wrapped(classes, "extra")


def vector(classes):
    return Wrapped(classes, "vector")


def text(classes):
    return Wrapped(classes, "text")
'''


NORMALIZATION = Normalization(mean=(0.2, 0.5, 0.9), std=(0.1, 0.2, 0.4))
"""Channels that differ, so that none can stand for another."""


def graph_of(
    network: nn.Module, size: Size, rewrites: bool = False, normalization: Normalization | None = None
) -> DeployableGraph:
    """The network's own graph, or the rewritten one; its classes are "class 0" and on."""
    example = torch.zeros(1, 3, size.height, size.width)
    with torch.no_grad():
        module = export_aten(network.eval(), example)
        applied = apply_rewrites(module) if rewrites else ()
        logits = module(example)
    names = tuple(f"class {index}" for index in range(logits.shape[1]))
    shape = Size(*logits.shape[2:])
    return DeployableGraph(module, size, shape, names, normalization or Normalization(), "0" * 64, applied)


class First(nn.Module):
    """A first convolution, its ReLU, and logits."""

    def __init__(self, channels: int, kernel: tuple[int, int], stride: tuple[int, int], padding: int, dilation: int):
        super().__init__()
        self.first = nn.Conv2d(3, channels, kernel, stride, padding, dilation)
        self.head = nn.Conv2d(channels, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.relu(self.first(x)))
        return logits


def first(
    channels: int, kernel: tuple[int, int], stride: tuple[int, int], padding: int, dilation: int, width: int
) -> tuple[nn.Module, DeployableGraph, np.ndarray]:
    """The network, its graph at 22 rows, and a frame of noise."""
    torch.manual_seed(width)
    network = First(channels, kernel, stride, padding, dilation)
    return (
        network,
        graph_of(network, Size(22, width)),
        np.random.default_rng(width).integers(0, 256, (1, 22, width, 3), np.uint8),
    )


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and weights of a trained network's kind: nothing is 0 or 1, a few variances are tiny."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.2, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.5)
                with torch.no_grad():
                    module.weight[0] *= -1
    return network.eval()


def uneven(network: nn.Module, height: int, width: int) -> DeployableGraph:
    """Its rewritten graph with channels that differ."""
    return graph_of(network, Size(height, width), rewrites=True, normalization=NORMALIZATION)
