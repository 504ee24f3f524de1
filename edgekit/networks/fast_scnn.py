"""Fast-SCNN (Poudel et al. 2019, https://arxiv.org/abs/1902.04502), the baseline SPSSN starts from."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.networks.blocks import (
    Classifier,
    ConvBNReLU,
    LearningToDownsample,
    PyramidPooling,
    bottleneck_unit,
    resize,
)


class FeatureFusion(nn.Module):
    """Table 3 of the Fast-SCNN paper: the deep input up to 1/8, depthwise, pointwise; the shallow one pointwise; sum; ReLU."""

    def __init__(self, shallow: int = 64, deep: int = 128, outputs: int = 128) -> None:
        super().__init__()
        self.depthwise = ConvBNReLU(deep, outputs, 3, groups=deep)
        self.deep = nn.Sequential(nn.Conv2d(outputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shallow = nn.Sequential(nn.Conv2d(shallow, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        deep = resize(deep, shallow.shape[-2], shallow.shape[-1])
        return F.relu(self.shallow(shallow) + self.deep(self.depthwise(deep)))


class FastSCNN(nn.Module):
    """Fast-SCNN, float32 [N, 3, H, W] normalized -> logits [N, classes, ceil(H/8), ceil(W/8)].

    At 19 classes: 1,137,795 parameters with batch norm (the 1.14 M of public code, whose two idle biases in the fusion
    make it 1,138,051), 1,125,955 with batch norm folded, and 1,114,115 when the convolutions' own weights and biases
    alone are counted: the 1.11 M of the papers.

    Args:
        classes: channels of the classifier.
        camvid: no downsampling in the first bottleneck unit, as SPSSN's CamVid variant, for a comparison on equal terms.
    """

    def __init__(self, classes: int = 19, *, camvid: bool = False) -> None:
        super().__init__()
        self.downsample = LearningToDownsample()
        self.units = nn.Sequential(
            bottleneck_unit(64, 64, 1 if camvid else 2), bottleneck_unit(64, 96, 2), bottleneck_unit(96, 128, 1)
        )
        self.pyramid = PyramidPooling(128, 128)
        self.fusion = FeatureFusion()
        self.classifier = Classifier(classes)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.downsample(x)
        deep = self.pyramid(self.units(shallow))
        return cast(Tensor, self.classifier(self.fusion(shallow, deep)))
