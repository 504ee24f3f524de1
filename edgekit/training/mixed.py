"""Mixed precision: one code path for CPU and GPU, and what it must step around."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn


class Float32Depthwise(nn.Conv2d):
    """A depthwise convolution that runs in float32 under autocast.

    With a stride or a kernel above 3x3, oneDNN has no fast bfloat16 kernel for its gradient on CPU. Measured: forward and
    backward of 384 channels at 40x40 with stride 2 take 159 ms in bfloat16 against 18 ms in float32, the casts included;
    the gradients of 720 channels at 24x24 with a 5x5 kernel 83 ms against 20 ms.
    """

    def forward(self, input: Tensor) -> Tensor:  # torch's own name
        with torch.autocast(input.device.type, enabled=False):
            output: Tensor = self._conv_forward(input.float(), self.weight, self.bias)
        return output.to(input.dtype)


def prepare(module: nn.Module) -> None:
    """Step around the kernels that bfloat16 lacks on CPU; parameters, names and results (but for rounding) stay."""
    for layer in module.modules():
        if type(layer) is not nn.Conv2d or layer.groups != layer.in_channels or layer.groups == 1:
            continue
        if max(layer.stride) > 1 or max(layer.kernel_size) > 3:
            layer.__class__ = Float32Depthwise  # the same object, so that whoever holds it keeps it


def autocast(device: torch.device, precision: str, *, cache: bool = True) -> AbstractContextManager[None]:
    """Autocast to bfloat16, or nothing for float32; ``cache`` keeps what a weight was cast to for its next use."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=cache)
