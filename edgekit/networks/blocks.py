"""Blocks that SPSSN, its stream-pooling ablation and Fast-SCNN are built from (paper, section 4 and Table 1)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def channels_last(module: nn.Module) -> nn.Module:
    """The same module with its weights in channels-last order, in which CPUs and GPUs run convolutions fastest.

    Those of four axes alone: ``module.to(memory_format=...)`` fails on weights of five.
    """
    for value in (*module.parameters(), *module.buffers()):
        if not is_lazy(value) and value.ndim == 4:
            value.data = value.data.contiguous(memory_format=torch.channels_last)
    return module


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize with half-pixel centres, [N, C, h, w] -> [N, C, height, width].

    Half-pixel centres (``align_corners=False``) are the form that every runtime has a kernel for.
    """
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


class ConvBNReLU(nn.Sequential):
    """Convolution, batch norm and, unless ``relu=False``, ReLU; padding keeps the size at stride 1."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, *, relu: bool = True
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        if relu:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class DSConv(nn.Sequential):
    """Depthwise separable convolution ("DSCConv" in Table 1): 3x3 depthwise, then 1x1, each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            ConvBNReLU(inputs, inputs, 3, stride, groups=inputs),
            ConvBNReLU(inputs, outputs, 1),
        )


class Bottleneck(nn.Module):
    """Inverted residual block of MobileNetV2 with a linear last layer; the sum only where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int = 6) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.block = nn.Sequential(
            ConvBNReLU(inputs, hidden, 1),
            ConvBNReLU(hidden, hidden, 3, stride, groups=hidden),
            ConvBNReLU(hidden, outputs, 1, relu=False),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.block(x))
        return x + y if self.residual else y


def bottleneck_unit(inputs: int, outputs: int, stride: int, repeats: int = 3) -> nn.Sequential:
    """A row "Bottleneck, n = 3" of Table 1: the first block carries the stride."""
    blocks = [Bottleneck(inputs, outputs, stride)]
    blocks += [Bottleneck(outputs, outputs, 1) for _ in range(repeats - 1)]
    return nn.Sequential(*blocks)


class LearningToDownsample(nn.Sequential):
    """Rows 1-3 of Table 1: three stride-2 layers, [N, 3, H, W] -> [N, 64, H/8, W/8]."""

    def __init__(self) -> None:
        super().__init__(ConvBNReLU(3, 32, 3, 2), DSConv(32, 48, 2), DSConv(48, 64, 2))


class PyramidPooling(nn.Module):
    """SPP of Table 1 (PSPNet's, with Fast-SCNN's widths): average pools of 1, 2, 3 and 6 bins, 128/4 channels each.

    [N, C, h, w] -> [N, outputs, h, w].
    """

    def __init__(self, inputs: int = 128, outputs: int = 128, bins: tuple[int, ...] = (1, 2, 3, 6)) -> None:
        super().__init__()
        width = inputs // len(bins)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), ConvBNReLU(inputs, width, 1)) for size in bins
        )
        self.project = ConvBNReLU(inputs + width * len(bins), outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        pooled = [resize(branch(x), height, width) for branch in self.branches]
        return cast(Tensor, self.project(torch.cat([x, *pooled], 1)))


class ResidualPooling(nn.Module):
    """Light-weight chained residual pooling (CRP-LW, Fig. 2b): 5x5 max pools and 1x1 convolutions whose outputs add up.

    Args:
        channels: width, kept throughout.
        stages: pool-convolution pairs in the chain. Section 4.3 describes two; only four (the default of
            RefineNet-LW, which the module is taken from) give the paper's 1.42 M parameters at 19 classes
            (1,415,875 with batch norm folded, against 1.285 M), so four is the default.
    """

    def __init__(self, channels: int, stages: int = 4) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in range(stages))

    def forward(self, x: Tensor) -> Tensor:
        top = x
        for convolution in self.convolutions:
            top = convolution(self.pool(top))
            x = x + top
        return x


class Classifier(nn.Sequential):
    """The last rows of Table 1: two DSConv, then a 1x1 convolution to the classes, at 1/8.

    Dropout (0.1, as in Fast-SCNN) only acts in training.
    """

    def __init__(self, classes: int, channels: int = 128) -> None:
        super().__init__(
            DSConv(channels, channels), DSConv(channels, channels), nn.Dropout(0.1), nn.Conv2d(channels, classes, 1)
        )
