"""Losses of a segmentation network, decided at the resolution that the recipe asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.core.values import IGNORE, Int64


def pixel_counts(index: list[tuple[int, int, int]], path: Path, classes: int) -> Int64:
    """Labelled pixels of each class in the decoded frames: int64 [classes]."""
    data = np.memmap(path, np.uint8, "r")
    counts = np.zeros(256, np.int64)
    for offset, height, width in index:
        counts += np.bincount(data[offset + 3 : offset + height * width * 4 : 4], minlength=256)
    return counts[:classes]


def class_weights(counts: Int64, balance: float) -> Tensor | None:
    """Loss weights [C] of (median frequency / frequency) ** balance, mean 1 over the pixels; None without balancing.

    A class without a pixel weighs what the rarest class with one does: no label looks it up, but a teacher may name it.
    """
    if not balance:
        return None
    present = np.where(counts, counts, counts[counts > 0].min())
    weights = (np.median(present) / present) ** balance
    return torch.from_numpy((weights * counts.sum() / (weights * counts).sum()).astype(np.float32))


def at_labels(logits: Tensor, labels: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Logits upsampled bilinearly to the labels' every ``stride``-th pixel, float32 [N, C, h, w], and those labels."""
    truth = labels[:, stride // 2 :: stride, stride // 2 :: stride].long()
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.interpolate(exact, size=truth.shape[-2:], mode="bilinear", align_corners=False), truth


def cross_entropy(logits: Tensor, truth: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pixel cross-entropy (section 4.5) as (sum over the pixels, the sum of their weights): their ratio is the mean.

    Kept apart, so that processes that hold different parts of a batch can divide by the weights of all of it.
    """
    labelled = truth != IGNORE
    total = F.cross_entropy(logits, truth, weight=weights, ignore_index=IGNORE, reduction="sum")
    if weights is None:
        return total, labelled.sum()
    # Not by selecting the labelled pixels: their number is known to a GPU only, and all would wait for it to be counted.
    return total, torch.where(labelled, weights[torch.where(labelled, truth, 0)], 0).sum()


def taught_cross_entropy(logits: Tensor, taught: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy with a teacher's probabilities in the labels' place, as (sum, sum of weights) like :func:`cross_entropy`.

    Distillation (Hinton et al. 2015, https://arxiv.org/abs/1503.02531) at temperature 1. Both float32 [N, C, h, w]; classes
    weigh what they weigh as labels, so that both losses ask for the same, and pixels without a label count: the teacher has
    an opinion on them.
    """
    target = taught.softmax(1)
    total = F.cross_entropy(logits, target, weight=weights, reduction="sum")
    return total, target.sum() if weights is None else torch.einsum("nchw,c->", target, weights)


def lovasz_softmax(logits: Tensor, truth: Tensor) -> Tensor:
    """The Lovász-Softmax loss (Berman et al. 2018, algorithm 1), a surrogate of 1 - mIoU over the classes in the batch.

    logits float32 [N, C, h, w], truth int64 [N, h, w]; 0 where nothing is labelled.
    """
    labelled = (truth != IGNORE).flatten()
    flat = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])[labelled].softmax(1)
    target = truth.flatten()[labelled]
    losses = []
    for index in torch.bincount(target, minlength=1).nonzero().flatten().tolist():
        foreground = (target == index).float()
        errors, order = (foreground - flat[:, index]).abs().sort(descending=True)
        foreground = foreground[order]
        positives = foreground.sum()
        intersection = positives - foreground.cumsum(0)
        union = positives + (1 - foreground).cumsum(0)
        jaccard = 1 - intersection / union
        gradient = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
        losses.append(errors @ gradient)
    return torch.stack(losses).mean() if losses else logits.sum() * 0.0
