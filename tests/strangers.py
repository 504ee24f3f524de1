"""Small networks of other people's kinds: one construct each, or a depth, that a converter or a bound once stumbled over.

Each is ``NAME(classes)``: a stem to stride 4, the construct, a head.
"""

from __future__ import annotations

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
