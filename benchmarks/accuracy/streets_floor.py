"""What colour and position alone can tell on the drawn streets.

Trains a per-pixel classifier (r, g, b, x, y -> 19 classes, three hidden layers of 128) on train frames and prints its
class mIoU on test frames, once with pixels sampled as they come and once balanced over the classes. It proves that the
scenes cannot be solved by colour and place: whatever a network scores above this floor it owes to shape, texture and
context.

    python -m benchmarks.accuracy.streets_floor [--steps 1500]
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.shared.measured import keep
from calibration import streets

CLASSES, HEIGHT, WIDTH = 19, 512, 1024
TRAIN_FRAMES, TEST_FRAMES, BATCH = 60, 24, 4096


def features(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [H * W, 5] in -1..1 from a uint8 [H, W, 3] picture: r, g, b, x, y."""
    height, width = image.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.dstack([image / 127.5 - 1.0, x, y]).reshape(-1, 5).astype(np.float32)


def pixels(per_frame: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [N, 5] features and int64 [N] labels of pixels drawn from the train frames, void left out.

    Of each frame `per_frame` pixels as they come and up to per_frame / 19 more of every class, for the rare ones.
    """
    rng = np.random.default_rng(0)
    xs, ys = [], []
    for index in range(TRAIN_FRAMES):
        scene = streets.draw("train", index, HEIGHT, WIDTH)
        x, y = features(scene.image), scene.labels.ravel()
        picks = [rng.choice(np.flatnonzero(y != streets.VOID), per_frame)]
        for c in range(CLASSES):
            own = np.flatnonzero(y == c)
            if own.size:
                picks.append(rng.choice(own, per_frame // CLASSES))
        chosen = np.concatenate(picks)
        xs.append(x[chosen])
        ys.append(y[chosen])
    return torch.from_numpy(np.concatenate(xs)), torch.from_numpy(np.concatenate(ys).astype(np.int64))


def fit(x: torch.Tensor, y: torch.Tensor, prior: torch.Tensor, steps: int) -> nn.Module:
    """Train the classifier on float32 [N, 5] and int64 [N]; `prior`, float32 [19], is the wanted share per class."""
    torch.manual_seed(0)
    sizes = [5, 128, 128, 128]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(128, CLASSES))
    count = torch.bincount(y, minlength=CLASSES).clamp(min=1).float()
    draws = torch.multinomial((prior / count)[y], steps * BATCH, replacement=True).view(steps, BATCH)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        loss = nn.functional.cross_entropy(model(x[draws[step]]), y[draws[step]])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    return model


def mean_iou(model: nn.Module) -> float:
    """Class mIoU over the 19 classes on the test frames, from one summed confusion."""
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    for index in range(TEST_FRAMES):
        scene = streets.draw("test", index, HEIGHT, WIDTH)
        seen = scene.labels.ravel() != streets.VOID
        with torch.no_grad():
            guess = model(torch.from_numpy(features(scene.image)[seen])).argmax(1).numpy()
        pairs = scene.labels.ravel()[seen].astype(np.int64) * CLASSES + guess
        confusion += np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    hit = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hit
    return float(np.mean(hit / np.maximum(union, 1)))


def main() -> None:
    """Print the floor for both samplings."""
    parser = argparse.ArgumentParser(description="the score of colour and position alone on the drawn streets")
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps per classifier")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    x, y = pixels(8000)
    share = torch.zeros(CLASSES)
    for index in range(TRAIN_FRAMES):
        labels = streets.draw("train", index, HEIGHT // 8, WIDTH // 8).labels
        share += torch.from_numpy(np.bincount(labels.ravel(), minlength=256)[:CLASSES]).float()
    floors = {"as they come": share / share.sum(), "balanced": torch.full((CLASSES,), 1 / CLASSES)}
    scores = {name: mean_iou(fit(x, y, prior, steps)) for name, prior in floors.items()}
    for name, score in scores.items():
        print(f"pixels {name}: test mIoU {score:.4f}")
    print(f"floor: {max(scores.values()):.4f}")
    keep(
        "streets_floor",
        {"miou": scores, "train_frames": TRAIN_FRAMES, "test_frames": TEST_FRAMES, "size": [HEIGHT, WIDTH]},
    )


if __name__ == "__main__":
    main()
