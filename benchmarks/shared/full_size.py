"""The network as it is usually exported; a file of its own, since its pickle names it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class FullSize(nn.Module):
    """The network with its logits brought to the input's size, as segmentation networks are usually exported."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.network(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
