"""Small networks of the kinds that people train for scenes, each with what is hard for int8 about its kind.

``KINDS[name](classes)`` makes one; ``SCALES[name]`` is the normalization that it is trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.core.values import Normalization

BYTES = Normalization((110 / 255, 110 / 255, 110 / 255), (1 / 255, 1 / 255, 1 / 255))
"""Pixels less 110: as far as 145 from zero."""
UNIT = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""0 to 1."""
SIGNED = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""-1 to 1."""
USUAL = Normalization()


def conv(read: int, give: int, side: int = 3, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(read, give, side, stride, dilation * (side // 2), dilation, groups, bias=False)


def block(read: int, give: int, side: int = 3, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(read, give, side, stride, dilation, groups), nn.BatchNorm2d(give), nn.ReLU())


def normed(width: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width), nn.PReLU(width))


def larger(x: Tensor, factor: int = 2) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class Network(nn.Module):
    """A stem to stride 4 (``width`` channels), what ``inner`` does, and a head at stride 4."""

    width = 32

    def __init__(self, classes: int = 19) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(3, 16, stride=2), block(16, self.width, stride=2))
        self.build()
        self.head = nn.Conv2d(self.given(), classes, 1)

    def build(self) -> None:
        """The modules of ``inner``."""

    def given(self) -> int:
        """Channels that ``inner`` gives."""
        return self.width

    def inner(self, x: Tensor) -> Tensor:
        """[1, width, H / 4, W / 4] -> [1, given, H / 4, W / 4]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.inner(self.stem(x)))
        return out


class JoinedImage(nn.Module):
    """Context-guided blocks: the image, pooled, is joined to inner maps at two strides, before batch norm and PReLU."""

    def __init__(self, classes: int = 19) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(conv(3, 24, stride=2), normed(24)), conv(27, 48, stride=2)
        self.at_half, self.at_quarter = normed(27), normed(51)
        self.local, self.around = conv(51, 51, groups=51), conv(51, 51, dilation=4, groups=51)
        self.joined = normed(102)
        self.reduced = conv(102, 48, 1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(48, 8, 1), nn.ReLU(), nn.Conv2d(8, 48, 1), nn.Sigmoid()
        )
        self.last = normed(99)
        self.head = nn.Conv2d(99, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        half = F.avg_pool2d(x, 3, 2, 1)
        y = self.at_half(torch.cat([self.first(x), half], 1))
        y = self.at_quarter(torch.cat([self.second(y), F.avg_pool2d(half, 3, 2, 1)], 1))
        z = self.reduced(self.joined(torch.cat([self.local(y), self.around(y)], 1)))
        out: Tensor = self.head(self.last(torch.cat([z * self.gate(z), y], 1)))
        return out


class UnlikeJoin(Network):
    """Maps of unlike level are joined before one batch norm."""

    def build(self) -> None:
        self.plain, self.strong = conv(32, 24), nn.Conv2d(32, 24, 3, padding=1)
        self.after = nn.Sequential(nn.BatchNorm2d(80), nn.ReLU(), block(80, 32))

    def inner(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(torch.cat([0.05 * self.plain(x), 20.0 * self.strong(x), x], 1))
        return out


class Gates(Network):
    """Squeeze and excitation, with hard swish."""

    def build(self) -> None:
        self.wide = nn.Sequential(conv(32, 64, 1), nn.BatchNorm2d(64), nn.Hardswish())
        self.deep = nn.Sequential(conv(64, 64, 5, groups=64), nn.BatchNorm2d(64), nn.Hardswish())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 16, 1), nn.ReLU(), nn.Conv2d(16, 64, 1), nn.Hardsigmoid()
        )
        self.narrow = nn.Sequential(conv(64, 32, 1), nn.BatchNorm2d(32))

    def inner(self, x: Tensor) -> Tensor:
        y = self.deep(self.wide(x))
        out: Tensor = x + self.narrow(y * self.gate(y))
        return out


class Pyramid(Network):
    """Dilated depthwise branches summed one upon the other, joined, then batch norm and PReLU, beside a residual."""

    def build(self) -> None:
        self.reduced = conv(32, 16, 1)
        self.branches = nn.ModuleList(conv(16, 16, dilation=dilation, groups=16) for dilation in (1, 2, 4, 8))
        self.after, self.mixed = normed(64), nn.Sequential(conv(64, 32, 1), nn.BatchNorm2d(32))
        self.active = nn.PReLU(32)

    def inner(self, x: Tensor) -> Tensor:
        y = self.reduced(x)
        found = [branch(y) for branch in self.branches]
        for index in range(1, len(found)):
            found[index] = found[index] + found[index - 1]
        out: Tensor = self.active(x + self.mixed(self.after(torch.cat(found, 1))))
        return out


class Dense(Network):
    """Each layer is joined to all before it; batch norm comes before each convolution."""

    def build(self) -> None:
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(32 + 12 * index), nn.ReLU(), conv(32 + 12 * index, 12)) for index in range(4)
        )
        self.last = nn.Sequential(nn.BatchNorm2d(80), nn.ReLU())

    def given(self) -> int:
        return 80

    def inner(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        out: Tensor = self.last(x)
        return out


class Ghosts(Network):
    """Half of the channels by convolution, half by a cheap depthwise one of those; then channels are shuffled."""

    def build(self) -> None:
        self.made, self.cheap = block(32, 16, 1), block(16, 16, groups=16)
        self.right = nn.Sequential(block(16, 16, 1), conv(16, 16, groups=16), nn.BatchNorm2d(16), block(16, 16, 1))
        self.out = block(32, 32)

    def inner(self, x: Tensor) -> Tensor:
        y = self.made(x)
        left, right = torch.cat([y, self.cheap(y)], 1).chunk(2, 1)
        y = torch.cat([left, self.right(right)], 1)
        n, c, h, w = y.shape
        out: Tensor = self.out(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))
        return out


class Factorized(Network):
    """3x1 and 1x3 convolutions in residual blocks, dilated, with a down-sampler that joins pooling and convolution."""

    def build(self) -> None:
        self.down = conv(32, 32, stride=2)
        self.norm = nn.BatchNorm2d(64)
        self.units = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(64, 64, (3, 1), padding=(step, 0), dilation=(step, 1), groups=4), nn.ReLU(),
                nn.Conv2d(64, 64, (1, 3), padding=(0, step), dilation=(1, step), groups=4), nn.BatchNorm2d(64), nn.ReLU(),
                nn.Conv2d(64, 64, (3, 1), padding=(1, 0)), nn.ReLU(), nn.Conv2d(64, 64, (1, 3), padding=(0, 1)),
                nn.BatchNorm2d(64),
            )
            for step in (2, 4)
        )  # fmt: skip

    def given(self) -> int:
        return 64

    def inner(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(torch.cat([self.down(x), F.max_pool2d(x, 2, 2)], 1)))
        for unit in self.units:
            x = F.relu(x + unit(x))
        return larger(x)


class TwoResolutions(Network):
    """A fine and a coarse branch that exchange what they found."""

    def build(self) -> None:
        self.coarse = block(32, 48, stride=2)
        self.fine, self.deep = block(32, 32), block(48, 48)
        self.down = nn.Sequential(conv(32, 48, stride=2), nn.BatchNorm2d(48))
        self.up = nn.Sequential(conv(48, 32, 1), nn.BatchNorm2d(32))
        self.last, self.low = block(32, 32), block(48, 32, 1)

    def inner(self, x: Tensor) -> Tensor:
        fine, coarse = self.fine(x), self.deep(self.coarse(x))
        fine, coarse = F.relu(fine + larger(self.up(coarse))), F.relu(coarse + self.down(fine))
        out: Tensor = self.last(fine) + larger(self.low(coarse))
        return out


class Refinement(Network):
    """Attention refinement: global pooling, a sigmoid gate, and the pooled vector added at every place."""

    def build(self) -> None:
        self.deep = nn.Sequential(block(32, 64, stride=2), block(64, 64, stride=2))
        self.gate = nn.Sequential(conv(64, 64, 1), nn.BatchNorm2d(64), nn.Sigmoid())
        self.whole, self.narrow, self.mixed = block(64, 64, 1), block(64, 32), block(64, 32)

    def inner(self, x: Tensor) -> Tensor:
        y = self.deep(x)
        pooled = y.mean((2, 3), keepdim=True)
        y = y * self.gate(pooled) + self.whole(pooled)
        out: Tensor = self.mixed(torch.cat([x, self.narrow(larger(y, 4))], 1))
        return out


class ChannelsNorm(nn.Module):
    """Layer norm over the channels of each place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


class LargeKernels(Network):
    """Depthwise 7x7 convolutions, layer norm, GELU and a scale of each layer, in residual blocks."""

    def build(self) -> None:
        self.units = nn.ModuleList(
            nn.Sequential(conv(32, 32, 7, groups=32), ChannelsNorm(32), nn.Conv2d(32, 96, 1), nn.GELU(), nn.Conv2d(96, 32, 1))
            for _ in range(2)
        )  # fmt: skip
        self.scales = nn.ParameterList(nn.Parameter(torch.full((1, 32, 1, 1), 0.3)) for _ in range(2))

    def inner(self, x: Tensor) -> Tensor:
        for unit, scale in zip(self.units, self.scales, strict=True):
            x = x + scale * unit(x)
        return x


class Boundary(Network):
    """A branch for boundaries whose sigmoid weighs detail against context."""

    def build(self) -> None:
        self.context = nn.Sequential(
            block(32, 48, stride=2), block(48, 48, dilation=2), conv(48, 32, 1), nn.BatchNorm2d(32)
        )
        self.detail, self.edge = block(32, 32), nn.Conv2d(32, 1, 3, padding=1)
        self.out = block(32, 32)

    def inner(self, x: Tensor) -> Tensor:
        context, detail = larger(self.context(x)), self.detail(x)
        edge = torch.sigmoid(self.edge(detail))
        out: Tensor = self.out(edge * detail + (1 - edge) * context)
        return out


class Attention(Network):
    """Tokens of a coarse map that look at each other, laid back into a map, convolved and added."""

    def build(self) -> None:
        self.down, self.up = block(32, 32, stride=4), nn.Sequential(conv(32, 32, 1), nn.BatchNorm2d(32))
        self.norm, self.look = nn.LayerNorm(32), nn.MultiheadAttention(32, 2, batch_first=True)
        self.mixed = nn.Sequential(conv(32, 32, groups=32), nn.BatchNorm2d(32))
        self.last = block(64, 32)

    def inner(self, x: Tensor) -> Tensor:
        y = self.down(x)
        n, c, h, w = y.shape
        tokens = self.norm(y.flatten(2).transpose(1, 2))
        tokens = tokens + self.look(tokens, tokens, tokens, need_weights=False)[0]
        y = tokens.transpose(1, 2).reshape(n, c, h, w)
        y = y + self.mixed(y)
        out: Tensor = self.last(torch.cat([x, larger(self.up(y), 4)], 1))
        return out


KINDS: Mapping[str, Callable[[int], nn.Module]] = {
    "joined-image": JoinedImage, "unlike-join": UnlikeJoin, "gates": Gates, "pyramid": Pyramid, "dense": Dense, "ghosts": Ghosts,
    "factorized": Factorized, "two-resolutions": TwoResolutions, "refinement": Refinement, "large-kernels": LargeKernels,
    "boundary": Boundary, "attention": Attention,
}  # fmt: skip
SCALES: Mapping[str, Normalization] = {
    "joined-image": BYTES, "unlike-join": USUAL, "gates": SIGNED, "pyramid": BYTES, "dense": UNIT, "ghosts": USUAL,
    "factorized": UNIT, "two-resolutions": USUAL, "refinement": SIGNED, "large-kernels": USUAL, "boundary": UNIT, "attention": SIGNED,
}  # fmt: skip
