"""SPSSN (Mamoon et al. 2020, https://doi.org/10.1631/FITEE.1900697), stage pooling and the stream-pooling ablation."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from edgekit.networks.blocks import (
    Classifier,
    ConvBNReLU,
    LearningToDownsample,
    PyramidPooling,
    ResidualPooling,
    bottleneck_unit,
    resize,
)

WIDTH = 128
"""Channels of the shallow branch and of every pooling module (section 4.3)."""


class StagePooling(nn.Module):
    """Fig. 2a: a pointwise convolution to 128 channels, the pooling module at the stage's own resolution, then up to 1/8."""

    def __init__(self, inputs: int, stages: int) -> None:
        super().__init__()
        self.adapt = ConvBNReLU(inputs, WIDTH, 1)
        self.pooling = ResidualPooling(WIDTH, stages)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        y = self.pooling(self.adapt(x))
        return cast(Tensor, y) if y.shape[-2:] == (height, width) else resize(y, height, width)


class StreamPooling(nn.Module):
    """Fig. 5: as stage pooling, but up to 1/8 first, added to the previous stream module, pooled there.

    Every module after the first has one more 128x128 pointwise convolution, on the previous module's output: that
    reading gives 1.465 M parameters, the paper's 1.47 M.
    """

    def __init__(self, inputs: int, stages: int, *, first: bool) -> None:
        super().__init__()
        self.adapt = ConvBNReLU(inputs, WIDTH, 1)
        self.previous = None if first else ConvBNReLU(WIDTH, WIDTH, 1)
        self.pooling = ResidualPooling(WIDTH, stages)

    def forward(self, x: Tensor, previous: Tensor | None) -> Tensor:
        y = self.adapt(x)
        if previous is not None and self.previous is not None:
            y = resize(y, previous.shape[-2], previous.shape[-1]) + self.previous(previous)
        return cast(Tensor, self.pooling(y))


class SPSSN(nn.Module):
    """Light-weight stage-pooling network, Table 1 layer by layer.

    float32 [N, 3, H, W] normalized -> logits [N, classes, ceil(H/8), ceil(W/8)]; any H, W of at least 64.

    Args:
        classes: channels of the classifier.
        pooling_stages: pairs in each pooling module's chain; four by default although Fig. 2b is described with two,
            because only four give the paper's parameter count (see :class:`ResidualPooling`).
        camvid: the CamVid variant of section 5.2: no downsampling in the first bottleneck unit.
        stream: the ablation of section 6: stream pooling instead of stage pooling.
    """

    def __init__(
        self, classes: int = 19, pooling_stages: int = 4, *, camvid: bool = False, stream: bool = False
    ) -> None:
        super().__init__()
        self.downsample = LearningToDownsample()
        self.units = nn.ModuleList(
            [bottleneck_unit(64, 64, 1 if camvid else 2), bottleneck_unit(64, 96, 2), bottleneck_unit(96, 128, 1)]
        )
        inputs = (64, 64, 96, 128)
        self.stream = stream
        self.pooling = nn.ModuleList(
            StreamPooling(width, pooling_stages, first=index == 0) if stream else StagePooling(width, pooling_stages)
            for index, width in enumerate(inputs)
        )
        self.pyramid = PyramidPooling(WIDTH, WIDTH)
        self.shallow = ConvBNReLU(64, WIDTH, 1)
        self.classifier = Classifier(classes, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        height, width = x.shape[-2:]
        stages = [x]
        for unit in self.units:
            stages.append(unit(stages[-1]))
        fused = cast(Tensor, self.shallow(x))
        if self.stream:
            streamed: Tensor | None = None
            for module, stage in zip(self.pooling, stages, strict=True):
                streamed = module(stage, streamed)
            assert streamed is not None
            fused = fused + streamed
        else:
            for module, stage in zip(self.pooling, stages, strict=True):
                fused = fused + module(stage, height, width)
        # FFM (section 4.5): the deep branch's pyramid, upsampled, joins by element-wise addition.
        fused = fused + resize(self.pyramid(stages[-1]), height, width)
        return cast(Tensor, self.classifier(fused))
