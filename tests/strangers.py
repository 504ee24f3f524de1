"""Small networks of other people's kinds: one construct each, or a depth, that a converter or a bound once stumbled over.

Each is ``NAME(classes)``: a stem to stride 4, the construct, a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 16


def block(read: int, give: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(read, give, 3, stride, 1, bias=False), nn.BatchNorm2d(give), nn.ReLU())


def lively(network: nn.Module, spread: float) -> None:
    """Statistics of a trained network's kind."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=spread)
            nn.init.uniform_(module.running_var, 0.4, 1.4)
            nn.init.uniform_(module.weight, 0.6, 1.6)
            nn.init.normal_(module.bias, std=spread)


class Deep(nn.Module):
    """Layers that double what they read's rounding, until float32 has three digits left; types that it names itself."""

    def __init__(self, classes: int = 5, depth: int = 40, gain: float = 1.6) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.gain = gain
        self.stem = nn.Conv2d(3, WIDTH, 3, 4, 1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH)) for _ in range(depth)
        )
        self.head = nn.Conv2d(WIDTH, classes, 1)
        lively(self, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        places = torch.arange(x.shape[3]) / x.shape[3] + torch.zeros(x.shape[3], dtype=torch.float32)
        for layer in self.body:
            x = x + self.gain * torch.sin(layer(x.to(torch.float32)))
        logits: Tensor = self.head(x + places)
        return logits


class Around(nn.Module):
    """A stem, what a subclass makes of its map, and a head whose classes are nearly even."""

    def __init__(self, classes: int = 19) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(block(3, WIDTH, 2), block(WIDTH, WIDTH, 2))
        self.make()
        self.tail = block(WIDTH, 24)
        self.head = nn.Conv2d(24, classes, 1)
        lively(self, 0.2)
        with torch.no_grad():  # many classes are seen, as in a trained network
            self.head.weight.mul_(4)
            self.eval()
            self.head.bias -= self(torch.randn(1, 3, 96, 160)).mean((0, 2, 3))
            self.train()

    def make(self) -> None: ...

    def inner(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.tail(self.inner(self.stem(x))))
        return logits


class KernelAttention(Around):
    """Dynamic convolution: its kernel is a mixture, by shares that are made of the frame, of weights of five axes."""

    def make(self) -> None:
        self.kernels = nn.Parameter(torch.randn(4, WIDTH, WIDTH, 3, 3) * 0.1)
        self.choose = nn.Linear(WIDTH, 4)

    def inner(self, x: Tensor) -> Tensor:
        share = self.choose(x.mean((2, 3))).softmax(1)
        return F.conv2d(x, (share[0, :, None, None, None, None] * self.kernels).sum(0), padding=1)


class Volume(Around):
    """A Conv3d over channels, and a buffer of five axes."""

    def make(self) -> None:
        self.over = nn.Conv3d(1, 1, 3, padding=1)
        self.register_buffer("gain", torch.linspace(0.5, 1.5, WIDTH).reshape(1, 1, WIDTH, 1, 1))

    def inner(self, x: Tensor) -> Tensor:
        result: Tensor = (self.over(x[:, None]) * self.gain)[:, 0]
        return result


class KernelPrediction(Around):
    """A depthwise convolution whose weights are a pooled map."""

    def make(self) -> None:
        self.predict = nn.Conv2d(WIDTH, WIDTH, 1)

    def inner(self, x: Tensor) -> Tensor:
        kernels = self.predict(F.adaptive_avg_pool2d(x, 3)).reshape(WIDTH, 1, 3, 3)
        return x + F.conv2d(x, kernels, padding=1, groups=WIDTH)


class ObjectContext(Around):
    """OCR: two products of matrices, of which one has both factors transposed."""

    def make(self) -> None:
        self.regions = nn.Conv2d(WIDTH, 8, 1)

    def inner(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        share = self.regions(x).view(n, 8, -1).softmax(2)
        context = torch.matmul(share, x.view(n, c, -1).permute(0, 2, 1)).permute(0, 2, 1)
        weight = (torch.matmul(x.flatten(2).transpose(1, 2), context) * c**-0.5).softmax(-1)
        return x + torch.matmul(weight, context.transpose(1, 2)).permute(0, 2, 1).reshape(n, c, h, w)


class GlobalContext(Around):
    """GCNet's block as published: a product of matrices with an axis of one before, by a vector."""

    def make(self) -> None:
        self.share, self.mix = nn.Conv2d(WIDTH, 1, 1), nn.Conv2d(WIDTH, WIDTH, 1)

    def inner(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        share = self.share(x).view(n, 1, h * w).softmax(2).unsqueeze(-1)
        return x + self.mix(torch.matmul(x.view(n, c, h * w).unsqueeze(1), share).view(n, c, 1, 1))


def _resize(x: Tensor, **options: Any) -> Tensor:
    return F.interpolate(x, **options)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "number minus": lambda x, y: 1.5 - x,
    "number over": lambda x, y: 2 / y,
    "constant minus": lambda x, y: torch.linspace(0.5, 1.5, WIDTH)[:, None, None] - x * y,
    "constant over": lambda x, y: torch.linspace(0.5, 1.5, WIDTH)[:, None, None] / y,
    "reciprocal": lambda x, y: y.reciprocal(),
    "floor of a quotient": lambda x, y: torch.div(9 * x, y, rounding_mode="floor"),
    "alpha": lambda x, y: torch.sub(torch.add(x, y, alpha=0.3), x.mean(1, keepdim=True), alpha=2) + torch.rsub(x, 2, alpha=3),
    "addcmul": lambda x, y: torch.addcdiv(torch.addcmul(x, x, y, value=0.3), x, y) + torch.lerp(x, y, 0.3),
    "round to decimals": lambda x, y: torch.round(x, decimals=1),
    "trunc": lambda x, y: torch.trunc(3 * x) + torch.frac(x) + torch.sgn(x),
    "fmod": lambda x, y: torch.fmod(x, 0.7),
    "logical": lambda x, y: ((x > 0) & (y > 3) | (x < -0.2)) * y + torch.isinf(x),
    "exp2": lambda x, y: torch.exp2(x) + torch.erfc(x) + torch.asinh(x),
    "hypot": lambda x, y: torch.hypot(x, y) + torch.logaddexp(x, y),
    "logit": lambda x, y: torch.logit(0.9 * x.sigmoid()) + torch.logit(x.sigmoid(), eps=0.4),
    "softplus": lambda x, y: F.softplus(x, beta=2) + F.softplus(3 * x, 2, 1),
    "shrink": lambda x, y: F.softshrink(x, 0.3) + F.hardshrink(2 * x, 0.4),
    "log_sigmoid": lambda x, y: F.logsigmoid(x) + F.celu(x, 1.5) + torch.ops.aten.elu(x, 0.7, 1.3, 1.1),
    "threshold": lambda x, y: F.threshold(x, 0.3, 0.1) + F.rrelu(x - 0.2) + F.hardtanh(3 * x, -2, 1),
    "average pooling, ceil_mode": lambda x, y: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average pooling, ceil_mode, inside": lambda x, y: F.avg_pool2d(x, 3, 2, 1, True, False),
    "average pooling, divisor": lambda x, y: F.avg_pool2d(x, 3, 1, 1, divisor_override=4),
    "average pooling, inside": lambda x, y: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive maximum": lambda x, y: F.adaptive_max_pool2d(x, (5, 7)) + F.adaptive_max_pool2d(x, 1),
    "max pooling with places": lambda x, y: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0],
    "variance": lambda x, y: sum(torch.var_mean(x, 1, keepdim=True, unbiased=False)) + x.var(1, correction=2, keepdim=True),
    "normalize": lambda x, y: F.normalize(x, dim=1) * 4 + F.normalize(x, p=1, dim=3),
    "cosine similarity": lambda x, y: F.cosine_similarity(x, y, eps=9.0)[:, None] + F.cosine_similarity(x, y, 3)[..., None],
    "RMS norm": lambda x, y: F.rms_norm(x.permute(0, 2, 3, 1), (WIDTH,), eps=0.3).permute(0, 3, 1, 2),
    "median": lambda x, y: x[:, :5].median(1, keepdim=True)[0] + x.topk(3, 1)[0].mean(1, keepdim=True),
    "pad by less than nothing": lambda x, y: F.pad(x, (3, -3, -2, 2)) + F.pad(x, (1, -1, 2, -2), "reflect"),
    "pad that goes round": lambda x, y: F.pad(x, (1, 2, 3, 0), "circular"),
    "gate that is expanded": lambda x, y: x * x.mean((2, 3), keepdim=True).sigmoid().expand_as(x),
    "repeat": lambda x, y: torch.cat([x.repeat(1, 2, 1, 1), x.mean((2, 3), keepdim=True).expand_as(x)], 1).mean(1, keepdim=True),
    "assignment": lambda x, y: torch.select_scatter(torch.slice_scatter(x, y[:, :4] * 2, 1, 0, 4), y[:, 0], 1, 3)[:, :5],
    "channel shuffle": lambda x, y: F.channel_shuffle(x, 4)[:, :2],
    "channels by index": lambda x, y: F.conv2d(x.index_select(1, torch.arange(WIDTH - 1, -1, -1)), torch.eye(4, WIDTH)[..., None, None]),
    "windows of one axis": lambda x, y: x.unfold(2, 3, 1).mean(-1),
    "nearest": lambda x, y: _resize(x, size=(17, 25)),
    "nearest by a factor": lambda x, y: _resize(x, scale_factor=1.3),
    "nearest-exact": lambda x, y: _resize(x, size=(17, 25), mode="nearest-exact"),
    "bicubic": lambda x, y: _resize(x, scale_factor=1.5, mode="bicubic"),
    "antialias": lambda x, y: _resize(x, scale_factor=0.5, mode="bilinear", antialias=True),
    "fixed grid": lambda x, y: F.grid_sample(x, F.affine_grid(torch.tensor([[[1, 0.1, 0], [0, 1, 0.05]]]), [1, 1, 12, 20])),
    "dilated computed kernel": lambda x, y: F.conv2d(x, y[:, :, :3, :3].reshape(WIDTH, 1, 3, 3), None, 1, 2, 2, WIDTH),
    "both transposed": lambda x, y: (x.flatten(2).mT @ y.flatten(2)[..., :WIDTH].mT).mT[:, :, None],
}  # fmt: skip
"""Operations that some converter has not, or has wrong unless edgekit sees to it: x of both signs and y of about 3, maps alike."""


class Operations(nn.Module):
    """All of them side by side: each gives one channel of the logits, the mean over its own at a corner of 6x6."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names = tuple(names)
        self.signed, self.positive = nn.Conv2d(3, WIDTH, 3, 2, 1), nn.Conv2d(3, WIDTH, 3, 2, 1)
        with torch.no_grad():
            self.positive.weight.mul_(0.3)
            self.positive.bias.fill_(3.0)

    def forward(self, x: Tensor) -> Tensor:
        x, y = self.signed(x), self.positive(x)
        results = (OPERATIONS[name](x, y).float().mean(1, keepdim=True) for name in self.names)
        return torch.cat(
            [F.pad(one[..., -6:, -6:], (0, max(0, 6 - one.shape[3]), 0, max(0, 6 - one.shape[2]))) for one in results],
            1,
        )


BLOCKS = (KernelAttention, KernelPrediction, ObjectContext, GlobalContext)
CLASSES_EACH = 5


class Blocks(nn.Module):
    """Networks side by side: each gives five channels of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList(block(CLASSES_EACH) for block in BLOCKS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([network(x) for network in self.networks], 1)


class Recurrent(nn.Module):
    """An LSTM along the rows, both ways, and a GRU along the columns of a small map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 5, 8, 2), nn.Conv2d(24, 4, 1)
        self.along, self.down = nn.LSTM(8, 8, batch_first=True, bidirectional=True), nn.GRU(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        rows = self.along(x[0].permute(1, 2, 0))[0].permute(2, 0, 1)
        columns = self.down(x[0].permute(1, 2, 0))[0].permute(2, 0, 1)
        logits: Tensor = self.head(torch.cat([rows, columns])[None])
        return logits
