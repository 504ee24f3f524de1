"""Which layers cost int8 its accuracy: what is charged to a layer is what a target leaves out to keep it in float."""

from __future__ import annotations

import numpy as np
import torch
from test_ranges import SIZE, frames, graph_of
from torch import nn

from calibration.equalization import equalized
from calibration.ranges import calibrate
from calibration.sensitivity import LayerLoss, layer_losses
from edgekit.core.values import Scheme


class Power(nn.Module):
    """The fourth power of a map, which int8 represents badly, and which ``third`` reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.third, self.head = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.second.weight *= 3
            self.head.weight *= 20

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        second = torch.relu(self.second(torch.relu(self.first(x))))
        logits: torch.Tensor = self.head(torch.relu(self.third(second * second * second * second)))
        return logits


def losses_of(scheme: Scheme) -> tuple[LayerLoss, ...]:
    graph = graph_of(Power())
    quantization = calibrate(graph, lambda: frames(3), 3).quantization
    labelled = [(frame, np.zeros((SIZE.height, SIZE.width), np.uint8)) for frame in frames(2)]
    return layer_losses(equalized(graph, quantization.scales), quantization, scheme, labelled, 4, lambda *_: None)


def test_a_map_is_charged_to_what_reads_it() -> None:
    """And neither a product nor the frame, which no exclusion touches, is ranked."""
    for scheme in ("symmetric", "asymmetric"):
        losses = losses_of(scheme)
        assert [loss.layer for loss in losses] == ["first", "second", "third", "head"]
        assert max(losses, key=lambda loss: loss.expected_drop).layer == "third"
        assert all(loss.output_error > 0 for loss in losses)
